"""Operators declare what they can do, and what is made of them keeps what is true of it."""

from __future__ import annotations

import re
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import array_api_compat.numpy
import numpy as np
import operators_zoo as zoo
import pytest
from assertions import assert_close

import traceest as te
from traceest.operators.abilities import DECLARED, PRODUCTS
from traceest.operators.base import Delegating
from traceest.operators.factors import Scaled, Weighted
from traceest.operators.metering import Meter

N_BLOCKS, N_B, P = 4, 3, 7
N = N_BLOCKS * N_B
KINDS = pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])


def columns(n: int, k: int = 3, *, complex_: bool = False) -> np.ndarray:
    return zoo.jacobian(1, n, k, 3, complex_=complex_)


class Everything(te.DenseOperator):
    """An array as an operator that declares all abilities, and counts which of them it is asked for."""

    def __init__(self, array: Any, **known: Any) -> None:
        super().__init__(array, n_blocks=N_BLOCKS, parameters={"a": 3, "b": P - 3}, **known)
        self.asked: list[str] = []

    def block_sqnorms(self, V: Any) -> Any:
        self.asked.append("block_sqnorms")
        return np.sum(np.abs(self.block_rmatmat(V)) ** 2, axis=-1)

    def sketch_gram(self, V: Any) -> Any:
        self.asked.append("sketch_gram")
        return super().sketch_gram(V)

    def gram_matmat(self, V: Any) -> Any:
        self.asked.append("gram_matmat")
        return self.array @ (self.array.conj().T @ V)


def products(J: Any, V: Any, X: Any) -> dict[str, Any]:
    """All that can be asked of J."""
    found = {name: getattr(J, name)(V) for name in PRODUCTS if name not in ("matmat", "grouped_gram")}
    found["matmat"] = J.matmat(X)
    if J.parameters and te.can(J, "grouped_gram"):
        found["grouped_gram"] = J.grouped_gram(V, ((0,), (1,), (0, 1)))
    return found


def dense(J: np.ndarray, n_blocks: int, V: Any, X: Any) -> dict[str, Any]:
    """The same by dense linear algebra."""
    B, k = n_blocks, V.shape[1]
    g = np.stack([(J_b.conj().T @ V_b).T for J_b, V_b in zip(np.split(J, B), np.split(V, B), strict=True)])

    def gram(h: np.ndarray) -> np.ndarray:
        flat = h.reshape(B * k, -1)
        return (flat.conj() @ flat.T).reshape(B, k, B, k)

    return {
        "matmat": J @ X,
        "rmatmat": J.conj().T @ V,
        "gram_matmat": J @ (J.conj().T @ V),
        "block_rmatmat": g,
        "block_sqnorms": np.sum(np.abs(g) ** 2, axis=-1),
        "sketch_gram": gram(g),
        "grouped_gram": np.stack([gram(g[:, :, :3]), gram(g[:, :, 3:]), gram(g)]),
    }


def assert_same(J: Any, array: np.ndarray, n_blocks: int) -> None:
    complex_ = np.iscomplexobj(array)
    V, X = (columns(n, complex_=complex_) for n in array.shape)
    expected = dense(array, n_blocks, V, X)
    for name, value in products(J, V, X).items():
        assert_close(value, expected[name], 1e-12)


# -- declared, not probed -----------------------------------------------------------------------------


class Duck:
    """A user's class: what it has, and no more."""

    name = "duck"

    def __init__(self, A: np.ndarray, *sides: str, **known: Any) -> None:
        self.shape, self.dtype, self.device = A.shape, A.dtype, "cpu"
        both = {"matmat": lambda X: A @ X, "rmatmat": lambda X: A.conj().T @ X}
        self.__dict__ |= {side: both[side] for side in sides} | known

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        return array_api_compat.numpy


def one_sided(side: str) -> dict[str, Any]:
    A = zoo.nonsymmetric(N)
    full = te.aslinearoperator(A)
    other = "rmatmat" if side == "matmat" else "matmat"
    op = te.Operator(A.shape, like=A, **{side: getattr(full, side)})
    return {
        "operator": op,
        "adjoint": te.Operator(A.shape, like=A, **{other: getattr(full, other)}).H,
        "sum": op + full,
        "multiple": 3 * op,
        "product": op @ full,
        "power": op**2,
        "Kronecker": te.kron(op, full),
        "stack": te.vstack([full, op]),
        "metered": Meter(op).op,
        "declared": te.aslinearoperator(op, symmetric=True),
        "duck": te.aslinearoperator(Duck(A, side)),
    }


@pytest.mark.parametrize("side", ["matmat", "rmatmat"])
@pytest.mark.parametrize("name", one_sided("matmat"))
def test_a_missing_side_is_declared_and_asking_for_it_is_a_type_error(name: str, side: str) -> None:
    A, missing = one_sided(side)[name], "rmatmat" if side == "matmat" else "matmat"
    assert te.can(A, side)
    assert not te.can(A, missing)
    assert A.lacks(side) is None
    assert not hasattr(A, missing)
    cure = "fhutch needs matmat" if missing == "rmatmat" else "rhutch, .* need rmatmat"
    with pytest.raises(TypeError, match=rf"lacks {missing} \((?:reverse|forward) mode, ...\).*{cure}"):
        getattr(A, missing)(np.ones((A.shape[0], 1)))


def test_the_reason_is_told() -> None:
    forward = one_sided("matmat")["operator"]
    with pytest.raises(TypeError, match=r"trace: needs matmat .* lacks: K V = J\(JᴴV\) takes both sides of J\."):
        te.trace(te.gram(forward), method="xtrace")
    with pytest.raises(TypeError, match=r"lacks rmatmat .*: a part lacks it"):
        _ = te.vstack([forward]).rmatmat


def test_a_name_that_is_no_product_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown product 'rmatmatt'; known are matmat, rmatmat,"):
        te.can(te.aslinearoperator(np.eye(2)), "rmatmatt")


def test_all_is_there_on_what_a_users_object_becomes() -> None:
    bare = te.aslinearoperator(Duck(np.eye(4), "matmat"))
    assert (bare.symmetric, bare.psd, bare.factor, bare.n_blocks, bare.parameters) == (False, False, None, None, ())
    assert (bare.state_shape, bare.feature_axis, bare.chunk_columns) == (None, -1, None)
    assert [name for name in DECLARED if te.can(bare, name)] == ["matmat"]
    told = te.aslinearoperator(Duck(np.eye(4), "matmat", "rmatmat", psd=True, state_shape=(2, 2), chunk_columns=3))
    assert (told.psd, told.symmetric, told.state_shape, told.chunk_columns) == (True, True, (2, 2), 3)
    assert te.partial_trace(told, 2, keep=0).matrix.value.tolist() == [[2.0, 0.0], [0.0, 2.0]]


def test_a_wrapper_says_what_the_operator_inside_lacks() -> None:
    class Wrapper:
        def __init__(self, of: Any) -> None:
            self.of = of

        def __getattr__(self, name: str) -> Any:
            return getattr(self.of, name)

        def __array_namespace__(self, *, api_version: str | None = None) -> Any:
            return self.of.__array_namespace__()

    J = te.aslinearoperator(Wrapper(te.DenseOperator(zoo.jacobian(N_BLOCKS, N_B, P), n_blocks=N_BLOCKS)))
    has = {name for name in PRODUCTS if te.can(J, name)}
    assert has == {"matmat", "rmatmat", "block_rmatmat", "grouped_gram"}
    assert J.block_sqnorms(columns(N)).shape == (N_BLOCKS, 3)


# -- delegating -----------------------------------------------------------------------------------------


@KINDS
def test_what_is_not_declared_is_made_of_what_is(complex_: bool) -> None:
    J = zoo.jacobian(N_BLOCKS, N_B, P, complex_=complex_)
    assert_same(te.DenseOperator(J, n_blocks=N_BLOCKS), J, N_BLOCKS)
    assert_same(te.Operator(J.shape, like=J, matmat=lambda X: J @ X, rmatmat=lambda V: J.conj().T @ V), J, 1)


@KINDS
@pytest.mark.parametrize("c", [2.5, -1.5, 0.7 - 0.4j], ids=["positive", "negative", "complex"])
def test_a_multiple_can_do_all_that_its_operator_can(complex_: bool, c: complex) -> None:
    if isinstance(c, complex) and not complex_:
        return
    J = zoo.jacobian(N_BLOCKS, N_B, P, complex_=complex_)
    inside = Everything(J)
    A = c * inside
    assert [name for name in PRODUCTS if te.can(A, name)] == list(PRODUCTS)
    assert_same(A, c * J, N_BLOCKS)
    assert {"block_sqnorms", "sketch_gram", "gram_matmat"} <= set(inside.asked)


@KINDS
def test_rows_combined_within_blocks_keep_the_blocks(complex_: bool) -> None:
    J, L = zoo.jacobian(N_BLOCKS, N_B, P, complex_=complex_), columns(N, 1, complex_=complex_)
    A = Weighted(Everything(J), N, lambda V: L * V, lambda X: L.conj() * X)
    assert_same(A, L.conj() * J, N_BLOCKS)


def test_a_delegating_operator_is_the_one_inside() -> None:
    J = zoo.jacobian(N_BLOCKS, N_B, P)
    A = Delegating(Everything(J))
    assert (A.n_blocks, A.parameters, A.name) == (N_BLOCKS, ("a", "b"), "Everything")
    assert_same(A, J, N_BLOCKS)


def test_a_multiple_whose_norms_are_not_squared_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Scaled._product
    monkeypatch.setattr(
        Scaled, "_product", lambda self, name, X, *g: honest(self, name, X, *g) * (1 + (name == "sketch_gram"))
    )
    with pytest.raises(AssertionError):
        test_a_multiple_can_do_all_that_its_operator_can(False, 2.5)


# -- what is kept ---------------------------------------------------------------------------------------


def hermitian(n: int, complex_: bool, seed: int = 0) -> np.ndarray:
    return zoo.hermitian(n, seed) if complex_ else zoo.indefinite(n, seed)


def positive(n: int, complex_: bool) -> np.ndarray:
    A = hermitian(n, complex_, seed=1)
    return A @ A


def state(A: Any, shape: tuple[int, ...], **known: Any) -> Any:
    """An array as an operator on a state of that shape."""
    return te.Operator(
        A.shape, like=A, matmat=lambda X: A @ X, rmatmat=lambda V: A.conj().T @ V, state_shape=shape, **known
    )


COMPOSITES = {
    "sum": (lambda S, R, P: S + R, False),
    "difference": (lambda S, R, P: R - S, False),
    "sum of positive ones": (lambda S, R, P: R + 2 * R, True),
    "positive multiple": (lambda S, R, P: 2.5 * R, True),
    "negative multiple": (lambda S, R, P: -2 * R, False),
    "congruent": (lambda S, R, P: P @ S @ P.H, False),
    "congruent to a positive one": (lambda S, R, P: P @ R @ P.H, True),
    "congruent twice": (lambda S, R, P: S @ P @ R @ P.H @ S.H, True),
    "congruent by brackets": (lambda S, R, P: P @ (S @ P.H), False),
    "adjoint in front": (lambda S, R, P: P.H @ S @ P, False),
    "square": (lambda S, R, P: S @ S, True),
    "with its adjoint": (lambda S, R, P: P @ P.H, True),
    "by itself": (lambda S, R, P: S @ R @ S, True),
    "transpose": (lambda S, R, P: R.T, True),
    "adjoint": (lambda S, R, P: S.H, False),
    "polynomial": (
        lambda S, R, P: te.polynomial(S, [1.0, -2.0]) if isinstance(S, te.Operator) else np.eye(N) - 2 * S,
        False,
    ),
}


@KINDS
@pytest.mark.parametrize("name", COMPOSITES)
def test_symmetry_and_positivity_are_kept_where_they_are_true(name: str, complex_: bool) -> None:
    make, psd = COMPOSITES[name]
    S, R = hermitian(N, complex_), positive(N, complex_)
    Q = zoo.complex_general(N) if complex_ else zoo.nonsymmetric(N)
    shape = (2, 2, N // 4)
    ops = state(S, shape, symmetric=True), state(R, shape, psd=True), state(Q, shape)

    class Array(np.ndarray):
        H = property(lambda self: self.conj().T)

    truth = np.asarray(make(*(np.asarray(X).view(Array) for X in (S, R, Q))))
    made = make(*ops)
    assert_close(te.to_dense(made), truth, 1e-12)
    assert_close(truth, truth.conj().T, 1e-12)
    assert made.symmetric
    assert made.psd == psd
    assert not psd or np.linalg.eigvalsh(truth).min() > -1e-12 * np.linalg.norm(truth)


@pytest.mark.parametrize(
    "make",
    [
        lambda S, R, P: P @ S @ P,
        lambda S, R, P: P @ S @ P.T,
        lambda S, R, P: P.H @ S @ P.H,
        lambda S, R, P: S @ R,
        lambda S, R, P: 1j * S,
        lambda S, R, P: S + P,
        lambda S, R, P: P @ P @ P.H,
        lambda S, R, P: P @ S @ R @ P.H,
    ],
)
def test_nothing_is_claimed_that_may_be_false(make: Any) -> None:
    S, R, Q = zoo.hermitian(N), positive(N, True), zoo.complex_general(N)
    made = make(te.aslinearoperator(S, symmetric=True), te.aslinearoperator(R, psd=True), te.aslinearoperator(Q))
    A = te.to_dense(made)
    assert np.linalg.norm(A - A.conj().T) > 1e-3
    assert not made.symmetric
    assert not made.psd


@KINDS
@pytest.mark.parametrize("n_blocks", [None, N_BLOCKS])
def test_what_is_congruent_to_a_gram_operator_is_one(complex_: bool, n_blocks: int | None) -> None:
    J, Q = zoo.jacobian(N_BLOCKS, N_B, P, complex_=complex_), columns(9, N, complex_=complex_)
    outer = te.aslinearoperator(Q)
    K = outer @ te.gram(J, n_blocks=n_blocks) @ outer.H
    assert isinstance(K, te.Gram)
    assert_close(te.to_dense(K), Q @ J @ J.conj().T @ Q.conj().T, 1e-12)
    assert_same(K.factor, Q @ J, 1)
    e = te.rhutch(K, 4, rng=0)
    assert (e.n_matvecs, e.n_rmatvecs) == (0, 4)


@KINDS
def test_rows_mixed_within_blocks_keep_the_blocks(complex_: bool) -> None:
    J, W = zoo.jacobian(N_BLOCKS, N_B, P, complex_=complex_), columns(2, N_B, complex_=complex_)
    each = te.kron(te.identity(N_BLOCKS, like=J), W)  # a readout of every block
    K = each @ te.gram(Everything(J)) @ each.H
    assert (K.factor.n_blocks, K.factor.parameters) == (N_BLOCKS, ("a", "b"))
    assert_same(K.factor, np.kron(np.eye(N_BLOCKS), W) @ J, N_BLOCKS)
    assert (te.identity(N, like=J) @ Everything(J)).n_blocks == N_BLOCKS
    assert (2 * each @ Everything(J)).n_blocks == N_BLOCKS
    across = te.kron(te.identity(N_B, like=J), columns(N_BLOCKS, N_BLOCKS, complex_=complex_))
    assert (across @ Everything(J)).n_blocks is None
    mixing = te.kron(columns(N_BLOCKS, N_BLOCKS, complex_=complex_), te.identity(N_B, like=J))
    assert (mixing @ Everything(J)).n_blocks is None
    assert_same(across @ Everything(J), te.to_dense(across) @ J, 1)


@KINDS
def test_a_sum_of_jacobians_keeps_the_blocks_of_both(complex_: bool) -> None:
    J, L = (zoo.jacobian(N_BLOCKS, N_B, P, seed, complex_=complex_) for seed in (0, 1))
    a, b = te.DenseOperator(J, n_blocks=N_BLOCKS), te.DenseOperator(L, n_blocks=N_BLOCKS)
    assert_same(a - 2 * b, J - 2 * L, N_BLOCKS)
    assert (a + b).n_blocks == N_BLOCKS
    assert (a + te.DenseOperator(L, n_blocks=2)).n_blocks is None


STATE = (3, 2, 2)
KEPT = {
    "sum": lambda A, P: A + te.aslinearoperator(np.eye(N)),
    "sum from the right": lambda A, P: te.identity(N, like=A) + A,
    "multiple": lambda A, P: -3 * A,
    "power": lambda A, P: A**2,
    "self-adjoint part": lambda A, P: te.symmetric_part(A),
    "product": lambda A, P: A @ P,
    "congruent": lambda A, P: A @ te.gram(P) @ A.H,
    "congruent, of no Gram operator": lambda A, P: A @ P @ A.H,
    "gram": lambda A, P: te.gram(A @ P),
    "sum of gram operators": lambda A, P: 0.5 * te.gram(A) + te.gram(P),
    "metered": lambda A, P: Meter(te.gram(A)).op,
}


@pytest.mark.parametrize("name", KEPT)
def test_the_state_that_the_rows_are_of_is_kept(name: str) -> None:
    A, plain = state(zoo.nonsymmetric(N), STATE, feature_axis=1), te.aslinearoperator(zoo.nonsymmetric(N, 1))
    made = KEPT[name](A, plain)
    assert (made.state_shape, made.feature_axis) == (STATE, 1)


def test_states_that_contradict_each_other_are_not_kept() -> None:
    A, B = (state(zoo.nonsymmetric(N), shape) for shape in (STATE, (2, 6)))
    for made in (A + B, te.gram(A) + te.gram(B), A.H, B.H @ A.H):
        assert made.state_shape is None


@pytest.mark.parametrize("how", ["gram", "congruent"])
def test_a_partial_trace_of_a_composite_needs_no_shape(how: str) -> None:
    Q, J = state(zoo.nonsymmetric(N), STATE), te.aslinearoperator(zoo.jacobian(1, N, P))
    K = te.gram(Q @ J) if how == "gram" else Q @ te.gram(J) @ Q.T
    M = te.partial_trace(K, N, keep=1, rng=0)
    dense_K = te.to_dense(K).reshape(*STATE, *STATE)
    assert M.method == "exact"
    assert_close(M.matrix.value, np.einsum("aicajc->ij", dense_K), 1e-12)
    assert M.symmetric
    assert M.psd


# -- the source -----------------------------------------------------------------------------------------

SOURCE = Path(te.__file__).parent


def test_the_core_asks_what_is_declared() -> None:
    """Attributes are looked for where objects of users and of other libraries enter, and nowhere else."""
    ours = [*SOURCE.rglob("*.py"), *(SOURCE.parent / "traceest_adapters").rglob("*.py")]
    probes = [line for path in ours for line in path.read_text().splitlines() if re.search("hasattr|getattr", line)]
    assert len(probes) <= 40
    facts = "matmat|rmatmat|factor|symmetric|psd|n_blocks|state_shape|block_rmatmat|sketch_gram|gram_matmat"
    assert not [line for line in probes if re.search(rf'(?:has|get)attr\([^)]*"(?:{facts})"', line)]


def test_operators_import_each_other_in_no_circle() -> None:
    names = {path.stem for path in (SOURCE / "operators").glob("*.py")} - {"__init__"}
    imports = {
        name: set(
            re.findall(r"from traceest\.operators\.(\w+) import", (SOURCE / "operators" / f"{name}.py").read_text())
        )
        for name in names
    }
    assert len(list(TopologicalSorter(imports).static_order())) == len(names)
