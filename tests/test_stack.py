"""Operators one below the other are the whole operator, part by part."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import operators_zoo as zoo
import pytest
from assertions import Counter, assert_close, assert_counts
from conftest import BACKENDS, Backend

import traceest as te
from traceest.operators import blocks

STACK = sys.modules["traceest.operators.stack"]
SKETCHED = sys.modules["traceest.operators.sketched"]

N_B, P = 4, 9
SIZES = (3, 3, 1)
"""Blocks in each part: batches, of which the last is smaller."""

J = zoo.jacobian(sum(SIZES), N_B, P)
NAMES = {"w": 6, "b": 3}


def parts(J: Any, sizes: tuple[int, ...] = SIZES) -> list[te.DenseOperator]:
    """Runs of rows of an array."""
    starts = np.cumsum((0, *sizes)) * N_B
    return [
        te.DenseOperator(J[int(a) : int(b), :], n_blocks=n, parameters=NAMES)
        for a, b, n in zip(starts, starts[1:], sizes, strict=False)
    ]


def whole(J: Any) -> te.DenseOperator:
    return te.DenseOperator(J, n_blocks=sum(SIZES), parameters=NAMES)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


PRODUCTS: dict[str, tuple[Callable[..., Any], np.ndarray]] = {
    "matmat": (lambda J, X: J.matmat(X), normal(P, 3)),
    "rmatmat": (lambda J, V: J.rmatmat(V), normal(len(J), 3)),
    "gram_matmat": (lambda J, V: te.gram(J).matmat(V), normal(len(J), 3)),
    "block_rmatmat": (lambda J, V: J.block_rmatmat(V), normal(len(J), 3)),
    "block_sqnorms": (blocks.block_sqnorms, normal(len(J), 3)),
    "sketch_gram": (blocks.sketch_gram, normal(len(J), 3)),
    "grouped_gram": (lambda J, V: J.grouped_gram(V, ((1,), (0, 1))), normal(len(J), 3)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_those_of_the_whole(backend: Backend, name: str) -> None:
    product, X = PRODUCTS[name]
    got = backend.host(backend.call(lambda J, X: product(te.vstack(parts(J)), X), J, X))
    assert_close(got, product(whole(J), X), 1e-12)


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_those_of_a_complex_whole(name: str) -> None:
    product, X = PRODUCTS[name]
    Z, X = zoo.jacobian(sum(SIZES), N_B, P, complex_=True), X + 1j * normal(*X.shape, seed=1)
    assert_close(product(te.vstack(parts(Z)), X), product(whole(Z), X), 1e-12)


TARGET = normal(len(J), seed=3)
OTHER = zoo.jacobian(sum(SIZES), N_B, P, seed=1)

STATISTICS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "exact": lambda K, L, y: te.exact(K),
    "rhutch": lambda K, L, y: te.rhutch(K, 3, rng=0),
    "fhutch": lambda K, L, y: te.fhutch(K, 3, rng=0),
    "sphere": lambda K, L, y: te.rhutch(K, 3, rng=0, distribution="sphere"),
    "frobenius_norm": lambda K, L, y: te.frobenius_norm(K, 3, rng=0),
    "exact norm": lambda K, L, y: te.frobenius_norm(K, method="exact"),
    "two-sided": lambda K, L, y: te.frobenius_norm(K, n_matvecs=10, rng=0, method="two-sided"),
    "effective_rank": lambda K, L, y: te.effective_rank(K, 3, rng=0),
    "alignment": lambda K, L, y: te.alignment(K, L, 3, rng=0),
    "centred_alignment": lambda K, L, y: te.centred_alignment(K, L, 3, rng=0),
    "target_alignment": lambda K, L, y: te.target_alignment(K, y, 3, rng=0),
    "diagonal": lambda K, L, y: te.diagonal(K, method="exact"),
    "hutchpp": lambda K, L, y: te.hutchpp(K, 9, rng=0),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_are_those_of_the_whole(backend: Backend, name: str) -> None:
    def of(make: Callable[[Any], Any]) -> Any:
        def f(J: Any, other: Any, y: Any) -> Any:
            e = STATISTICS[name](te.gram(make(J)), te.gram(make(other)), y)
            return e.value, e.stderr

        return f

    got = backend.call(of(lambda J: te.vstack(parts(J))), J, OTHER, TARGET)
    for x, expected in zip(got, of(whole)(J, OTHER, TARGET), strict=True):
        np.testing.assert_allclose(backend.host(x), expected, rtol=1e-8, atol=1e-8)


def test_adaptive_statistics_are_those_of_the_whole() -> None:
    K, L = te.gram(te.vstack(parts(J))), te.gram(whole(J))
    for f in (
        lambda K: te.trace(K, rng=0),
        lambda K: te.effective_rank(K, rtol=0.1, rng=0),
        lambda K: te.eigenvalues(K, 3, rng=0).values,
        lambda K: te.logdet(K + te.identity(len(J), like=K), 6, rng=0),
    ):
        np.testing.assert_allclose(np.asarray(getattr(f(K), "value", f(K))), getattr(f(L), "value", f(L)), rtol=1e-6)


def test_a_summary_with_groups_is_that_of_the_whole() -> None:
    s, t = (te.summary(te.gram(J), n_probes=3, groups=True, rng=0) for J in (te.vstack(parts(J)), whole(J)))
    for label in t.groups:
        for name, e in t.groups[label].estimates.items():
            np.testing.assert_allclose(s.groups[label].estimates[name].value, e.value, rtol=1e-9)
    np.testing.assert_allclose(s.example_traces.value, t.example_traces.value, rtol=1e-9)


def test_a_tracker_follows_stacks() -> None:
    trackers = te.Tracker(n_probes=3, n_fresh=2, rng=0), te.Tracker(n_probes=3, n_fresh=2, rng=0)
    for t in range(3):
        now = J + 0.1 * t * OTHER
        for tracker, K in zip(trackers, (te.gram(te.vstack(parts(now))), te.gram(whole(now))), strict=True):
            tracker.update(K)
    for name, e in trackers[1][2].estimates.items():
        np.testing.assert_allclose(getattr(trackers[0][2], name).value, e.value, rtol=1e-8, atol=1e-9)


def test_sums_and_multiples_of_stacked_kernels_are_those_of_the_whole() -> None:
    def f(make: Callable[[Any], Any]) -> float:
        return float(te.effective_rank(te.gram(make(J)) + 2.0 * te.gram(make(OTHER)), 3, rng=0))

    np.testing.assert_allclose(f(lambda J: te.vstack(parts(J))), f(whole), rtol=1e-9)


def test_a_part_without_blocks_is_one() -> None:
    S = te.vstack([J[:8], J[8:16], J[16:24]])
    assert S.n_blocks == 3
    np.testing.assert_allclose(float(te.frobenius_norm(te.gram(S), 8)), np.linalg.norm(J[:24] @ J[:24].T))


def test_blocks_of_unequal_length_are_one_block() -> None:
    S = te.vstack([te.DenseOperator(J[:8], n_blocks=2), te.DenseOperator(J[8:], n_blocks=5 * N_B)])
    assert S.n_blocks is None
    for name in ("block_sqnorms", "sketch_gram"):
        assert not te.can(S, name)
    e, f = (te.effective_rank(te.gram(A), 4, rng=0) for A in (S, te.DenseOperator(J)))
    np.testing.assert_allclose(float(e), float(f), rtol=1e-9)
    np.testing.assert_allclose(float(te.exact(te.gram(S))), np.sum(J**2))


def test_a_side_that_a_part_lacks_the_stack_lacks() -> None:
    one_sided = te.Operator((4, P), like=J, matmat=lambda X: J[:4] @ X)
    S = te.vstack([J[:4], one_sided])
    assert not any(te.can(S, name) for name in ("rmatmat", "gram_matmat", "block_sqnorms", "sketch_gram"))
    with pytest.raises(TypeError, match="needs rmatmat"):
        te.rhutch(S, 2)
    assert te.fhutch(S, 2, rng=0).n_matvecs == 2


@pytest.mark.parametrize("bytes_", [1, 1500, 10**9])
def test_the_gram_does_not_depend_on_what_is_held(monkeypatch: pytest.MonkeyPatch, bytes_: int) -> None:
    monkeypatch.setattr(SKETCHED, "PIECE", bytes_)
    monkeypatch.setattr(SKETCHED, "HELD", bytes_)
    V = normal(len(J), 5)
    assert_close(te.vstack(parts(J)).sketch_gram(V), dense_gram(V), 1e-12)


def dense_gram(V: np.ndarray) -> np.ndarray:
    g = whole(J).block_rmatmat(V)
    return np.einsum("bip,cjp->bicj", g, g)


class Made:
    """Parts made on demand, with a count of those that are there."""

    def __init__(self) -> None:
        self.there: weakref.WeakSet[Any] = weakref.WeakSet()
        self.made, self.most = 0, 0

    def __len__(self) -> int:
        return len(SIZES)

    def __getitem__(self, p: int) -> te.DenseOperator:
        part = parts(J)[p]
        self.there.add(part)
        self.made += 1
        self.most = max(self.most, len(self.there))
        return part


@pytest.mark.parametrize("name", PRODUCTS)
def test_one_part_is_there_at_a_time(name: str) -> None:
    product, X = PRODUCTS[name]
    made = Made()
    product(te.vstack(made), X)
    assert made.most == 1
    assert made.made <= 5 * len(SIZES)  # shapes, both sides' presence, and two passes


def test_sketches_that_do_not_fit_are_made_again_and_are_two_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SKETCHED, "HELD", 1)
    there: weakref.WeakSet[Any] = weakref.WeakSet()
    most = []

    class Watched:
        def __init__(self, sketch: Any) -> None:
            self.sketch, self.nbytes = sketch, sketch.nbytes
            there.add(self)
            most.append(len(there))

        def gram(self, other: Any, groups: Any) -> Any:
            return self.sketch.gram(other.sketch, groups)

    honest = te.DenseOperator.block_sketch
    monkeypatch.setattr(te.DenseOperator, "block_sketch", lambda self, V: Watched(honest(self, V)))
    V = normal(len(J), 5)
    assert_close(te.vstack(parts(J)).sketch_gram(V), dense_gram(V), 1e-12)
    assert len(most) == 3 + 2 + 1
    assert max(most) == 2


def test_a_probe_is_one_product_with_every_part() -> None:
    counters = [Counter(part) for part in parts(J)]
    K = te.gram(te.vstack(counters))
    e = te.rhutch(K, 3, rng=0)
    assert e.n_rmatvecs == 3
    for counter in counters:
        assert_counts(e, counter, budget=3)
    outer = Counter(te.vstack(parts(J)))
    assert_counts(te.effective_rank(te.gram(outer), 3, rng=0), outer, budget=3)


def test_a_product_with_its_kernel_is_one_of_either_side() -> None:
    J = np.random.default_rng(0).standard_normal((24, 15))
    of_stack, of_whole = (te.xtrace(te.gram(x), 8, rng=0) for x in (te.vstack([J[:9], J[9:]]), te.aslinearoperator(J)))
    assert hasattr(te.vstack([J[:9], J[9:]]), "gram_matmat")
    assert (of_stack.n_matvecs, of_stack.n_rmatvecs) == (of_whole.n_matvecs, of_whole.n_rmatvecs) == (4, 8)


def test_a_generator_of_operators_is_told_to_become_a_list() -> None:
    with pytest.raises(TypeError, match=r"list\(\.\.\.\)"):
        te.vstack(part for part in parts(J))


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "nothing": ([], ValueError, "nothing to stack"),
    "a number": (3, TypeError, "a sequence of operators"),
    "other columns": ([J, J[:, :5]], ValueError, "part 1 has 5 columns"),
    "another dtype": ([J, J.astype(np.float32)], TypeError, "dtypes"),
    "no operator": ([J, "J"], TypeError, "cannot multiply"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_parts_are_named(case: str) -> None:
    operators, error, message = BAD[case]
    with pytest.raises(error, match=message):
        te.vstack(operators)


def test_a_gram_array_of_hundreds_of_gibibytes_is_not_begun() -> None:
    one = te.Operator((50_000, 10), like=J, rmatmat=lambda V: V, n_blocks=5_000, block_rmatmat=lambda V: V)
    K = te.gram(te.vstack([one] * 10))
    with pytest.raises(ValueError, match="298 GiB; tell fewer blocks apart"):
        te.frobenius_norm(K, 4, rng=0)


def test_the_bar_moves_over_the_parts(capsys: pytest.CaptureFixture[str]) -> None:
    te.rhutch(te.vstack(parts(J), progress=True), 2, rng=0)
    assert "3/3" in capsys.readouterr().err


# -- the tests bite -----------------------------------------------------------------------------------------
def pass_without(what: str) -> Callable[..., Any]:
    """`_one_pass` with some pairs forgotten."""
    honest = SKETCHED._one_pass

    def broken(pieces: Iterator[Any], held: list[Any], found: dict[Any, Any], groups: Any) -> Any:
        following = honest(pieces, held, found, groups)
        for a, b in found:
            if what == "cross pairs" and a != b:
                found[a, b] = 0 * found[a, b]
        return following

    return broken


def test_pairs_between_parts_that_are_forgotten_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SKETCHED, "_one_pass", pass_without("cross pairs"))
    with pytest.raises(AssertionError):
        test_products_are_those_of_the_whole(BACKENDS[0], "sketch_gram")
    with pytest.raises(AssertionError):
        test_statistics_are_those_of_the_whole(BACKENDS[0], "frobenius_norm")


def test_a_conjugate_that_is_forgotten_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    without = SimpleNamespace(**{**vars(SKETCHED.aa), "conj": lambda xp, x: x})
    monkeypatch.setattr(SKETCHED, "aa", without)
    with pytest.raises(AssertionError):
        test_products_are_those_of_a_complex_whole("sketch_gram")


def test_rows_of_another_part_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = STACK.pairwise
    monkeypatch.setattr(STACK, "pairwise", lambda ends: [(a - a % 8, b - a % 8) for a, b in honest(ends)])
    with pytest.raises(AssertionError):
        test_products_are_those_of_the_whole(BACKENDS[0], "block_rmatmat")


def test_a_part_that_is_kept_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    honest = STACK.Stack._each

    def each(self: Any, start: int = 0) -> Iterator[Any]:
        for J in honest(self, start):
            kept.append(J)
            yield J

    monkeypatch.setattr(STACK.Stack, "_each", each)
    with pytest.raises(AssertionError):
        test_one_part_is_there_at_a_time("sketch_gram")
