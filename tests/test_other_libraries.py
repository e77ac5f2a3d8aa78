"""Operators of other libraries come in and go out, and take what is known of them along."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import operators_zoo as zoo
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from assertions import Counter, assert_close
from models import as_jax, jax_mlp, torch_mlp

import traceest as te
from traceest_adapters.interop.scipy import to_scipy
from traceest_adapters.jax import ntk as jax_ntk
from traceest_adapters.torch import jacobian as torch_jacobian
from traceest_adapters.torch import ntk as torch_ntk

NAMES = "scipy", "pylops", "lineax", "cola", "linear_operator", "curvlinops"
rng = np.random.default_rng(0)
J = rng.standard_normal((6, 4))
Z = J + 1j * rng.standard_normal((6, 4))
K = zoo.spectral("poly", 30)


def library(name: str) -> Any:
    """The library itself, and its adapter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they do while they are imported is theirs
        return pytest.importorskip(name), import_module(f"traceest_adapters.interop.{name}")


def tensor(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.copy())


def lineax_product(op, X, adjoint=False):
    op = op.T if adjoint else op
    x = jnp.asarray(X.conj() if adjoint else X)
    y = jnp.stack([op.mv(column) for column in x.T], axis=1)
    return y.conj() if adjoint else y


def curvlinops_operator(A, psd):
    from curvlinops.examples import TensorLinearOperator

    op = TensorLinearOperator(tensor(A)) if A.shape[0] == A.shape[1] else curvlinops_oblong(A)
    return library("curvlinops")[1].CurvlinopsOperator(te.aslinearoperator(op, psd=True)) if psd else op


def curvlinops_oblong(A):
    from curvlinops.examples import TensorLinearOperator

    class Oblong(TensorLinearOperator):
        def __init__(self, A):
            super(TensorLinearOperator, self).__init__([(A.shape[1],)], [(A.shape[0],)])
            self._A, self.SELF_ADJOINT = A, False

        def _adjoint(self):
            return Oblong(self._A.conj().T)

    return Oblong(tensor(A))


def make(name: str, A: np.ndarray, psd: bool = False) -> Any:
    """The matrix A as an operator of the library, said to be positive semidefinite in the way that it has."""
    lib, _ = library(name)
    if name == "scipy":
        op = scipy.sparse.linalg.aslinearoperator(A)
        op.psd = psd
        return op
    if name == "pylops":
        op = lib.MatrixMult(A, dtype=A.dtype)
        op.psd = psd
        return op
    if name == "lineax":
        return lib.MatrixLinearOperator(jnp.asarray(A), lib.positive_semidefinite_tag if psd else ())
    if name == "cola":
        op = lib.ops.Dense(tensor(A))
        return lib.PSD(op) if psd else op
    if name == "linear_operator":
        dense = lib.operators.DenseLinearOperator(tensor(A))
        return lib.operators.PsdSumLinearOperator(dense, 0 * dense) if psd else dense
    return curvlinops_operator(A, psd)


@dataclass(frozen=True)
class Way:
    """How a library's operators are multiplied by NumPy arrays, from either side."""

    matmat: Callable[[Any, np.ndarray], Any]
    rmatmat: Callable[[Any, np.ndarray], Any]
    asarray: Callable[[np.ndarray], Any]


MULTIPLY = {
    "scipy": Way(lambda op, X: op @ X, lambda op, V: op.H @ V, np.asarray),
    "pylops": Way(lambda op, X: op @ X, lambda op, V: op.H @ V, np.asarray),
    "lineax": Way(lineax_product, lambda op, V: lineax_product(op, V, adjoint=True), jnp.asarray),
    "cola": Way(lambda op, X: op @ tensor(X), lambda op, V: op.H @ tensor(V), tensor),
    "linear_operator": Way(
        lambda op, X: op @ tensor(X), lambda op, V: (op.mT @ tensor(V.conj())).conj().resolve_conj(), tensor
    ),
    "curvlinops": Way(lambda op, X: op @ tensor(X), lambda op, V: op.adjoint() @ tensor(V), tensor),
}


def sent_out(name: str, A: Any, **known: Any) -> Any:
    """A matrix sent out of traceest, on the arrays that the library takes."""
    _, adapter = library(name)
    return getattr(adapter, f"to_{name}")(te.aslinearoperator(MULTIPLY[name].asarray(A), **known))


def probes(A, k=3, seed=1):
    X = np.random.default_rng(seed).standard_normal((A.shape[1], k))
    return X.astype(A.dtype)


def host(x):
    return te.uncertainty.estimate._to_host(x)


# -- in ---------------------------------------------------------------------------------------------
def check_products(op, A, rtol):
    """`op` multiplies as A does, from both sides, with A's dtype."""
    assert op.shape == A.shape
    xp, device = op.__array_namespace__(), op.device
    for product, matrix in ((op.matmat, A), (op.rmatmat, A.conj().T)):
        X = probes(matrix)
        Y = product(xp.asarray(X, device=device))
        assert_close(host(Y), matrix @ X, rtol)
        assert host(Y).dtype == A.dtype


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("A", [J, J.T, J.astype(np.float32), Z], ids=["real", "wide", "float32", "complex"])
def test_what_comes_in_multiplies_as_its_matrix_does(name, A):
    rtol = 1e-6 if A.dtype == np.float32 else 1e-13
    check_products(te.aslinearoperator(make(name, A)), A, rtol)


@pytest.mark.parametrize("name", NAMES)
def test_estimators_take_it_as_it_is(name):
    op = make(name, K, psd=True)
    assert float(te.exact(op)) == pytest.approx(np.trace(K), rel=1e-12)
    e = te.trace(op, rtol=0.05, max_matvecs=20, rng=0)
    assert e.method != "exact"
    assert abs(float(e) - np.trace(K)) <= 4 * float(e.stderr)
    same = te.hutchinson(K, 10, rng=0)
    assert float(te.hutchinson(op, 10, rng=0)) == pytest.approx(float(same), rel=1e-12)
    assert float(te.rhutch(op, 8, rng=0)) == pytest.approx(float(te.rhutch(K, 8, rng=0)), rel=1e-12)


def check_known_inside(name):
    for psd in (False, True):
        op = te.aslinearoperator(make(name, K + (not psd) * np.triu(K), psd=psd))
        assert (op.psd, op.symmetric) == (psd, psd)


@pytest.mark.parametrize("name", NAMES)
def test_what_its_library_knows_of_it_is_known(name):
    check_known_inside(name)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_declared_of_it_is_known_too(name):
    op = te.aslinearoperator(make(name, K + np.triu(K)), symmetric=True)
    assert (op.psd, op.symmetric) == (False, True)
    assert te.aslinearoperator(make(name, K, psd=True), symmetric=True).psd


@pytest.mark.parametrize("name", [n for n in NAMES if n != "scipy"])
def test_it_can_be_added_and_multiplied(name):
    A = te.aslinearoperator(MULTIPLY[name].asarray(K))
    xp = A.__array_namespace__()
    mixed = A + 2 * te.aslinearoperator(make(name, K)) @ make(name, K)
    assert_close(host(mixed.matmat(xp.asarray(np.eye(30)))), K + 2 * K @ K, 1e-12)


def test_what_is_derived_from_a_librarys_operator_elsewhere_is_known_too():
    lib, _ = library("pylops")

    class Mine(lib.LinearOperator):
        def _matvec(self, x):
            return 3 * x

        def _rmatvec(self, x):
            return 3 * x

    assert Mine.__module__ == __name__
    assert float(te.exact(Mine(dtype="float64", shape=(5, 5)))) == pytest.approx(15)


# -- lineax -----------------------------------------------------------------------------------------
def test_structures_are_laid_out_as_lineax_does():
    lx, _ = library("lineax")

    def f(x, args):
        return {"p": jnp.sin(x["a"]) * jnp.sum(x["b"]), "q": (x["b"] ** 2 @ jnp.ones(3), x["a"][:2])}

    A = lx.JacobianLinearOperator(f, {"a": jnp.arange(4.0), "b": jnp.arange(6.0).reshape(2, 3)})
    check_products(te.aslinearoperator(A), np.asarray(A.as_matrix()), 1e-13)


def test_a_function_of_lineax_is_evaluated_once_for_all_products():
    lx, _ = library("lineax")
    calls = []

    def f(x, args):
        calls.append(1)
        return jnp.sin(x)

    with jax.disable_jit():
        A = lx.JacobianLinearOperator(f, jnp.arange(4.0), closure_convert=False)
        op = te.aslinearoperator(A)
        before = len(calls)
        for _ in range(3):
            op.matmat(jnp.ones((4, 5)))
    assert len(calls) == before


def test_lineax_operators_are_made_inside_compiled_functions():
    lx, _ = library("lineax")

    @jax.jit
    def f(a):
        op = lx.MatrixLinearOperator(a, lx.positive_semidefinite_tag)
        return te.hutchinson(op, 6, rng=0)

    assert float(f(jnp.asarray(K))) == pytest.approx(float(te.hutchinson(K, 6, rng=0)), rel=1e-12)


@pytest.mark.parametrize(
    ("tag", "dtype", "symmetric"),
    [
        ("symmetric_tag", "float64", True),
        ("symmetric_tag", "complex128", False),  # Lineax means A = Aᵀ
        ("negative_semidefinite_tag", "complex128", True),
        ("diagonal_tag", "float64", True),
    ],
)
def test_symmetric_means_self_adjoint(tag, dtype, symmetric):
    lx, _ = library("lineax")
    op = te.aslinearoperator(lx.MatrixLinearOperator(jnp.eye(3, dtype=dtype), getattr(lx, tag)))
    assert (op.symmetric, op.psd) == (symmetric, False)


def test_what_jax_cannot_transpose_has_no_adjoint():
    lx, _ = library("lineax")

    def through_the_host(x):
        return jax.pure_callback(lambda x: 2 * x, x, x, vmap_method="expand_dims")

    op = te.aslinearoperator(lx.FunctionLinearOperator(through_the_host, jax.ShapeDtypeStruct((3,), jnp.float64)))
    assert not hasattr(op, "rmatmat")
    assert float(te.exact(op)) == 6


# -- linear_operator --------------------------------------------------------------------------------
GPYTORCH = {
    "root": (lambda lo, a: lo.RootLinearOperator(a), True, True),
    "cholesky": (lambda lo, a: lo.CholLinearOperator(lo.TriangularLinearOperator(torch.tril(a.T @ a))), True, True),
    "identity": (lambda lo, a: lo.IdentityLinearOperator(4, dtype=a.dtype), True, True),
    "sum of roots": (lambda lo, a: lo.SumLinearOperator(*2 * [lo.RootLinearOperator(a)]), True, True),
    "kronecker of roots": (
        lambda lo, a: lo.KroneckerProductLinearOperator(*2 * [lo.RootLinearOperator(a)]),
        True,
        True,
    ),
    "diagonal": (lambda lo, a: lo.DiagLinearOperator(a[:, 0]), True, False),
    "toeplitz": (lambda lo, a: lo.ToeplitzLinearOperator(a[:, 0]), True, False),
    "root and diagonal": (lambda lo, a: lo.RootLinearOperator(a).add_diagonal(a[:, 0]), True, False),
    "root and dense": (
        lambda lo, a: lo.SumLinearOperator(lo.RootLinearOperator(a), lo.DenseLinearOperator(a @ a.T)),
        False,
        False,
    ),
    "triangular": (lambda lo, a: lo.TriangularLinearOperator(torch.tril(a.T @ a)), False, False),
}


@pytest.mark.parametrize("kind", GPYTORCH)
def test_gpytorch_operators_are_known_by_their_class(kind):
    library("linear_operator")
    import linear_operator.operators as lo

    build, symmetric, psd = GPYTORCH[kind]
    op = build(lo, tensor(J))
    found = te.aslinearoperator(op)
    assert (found.symmetric, found.psd) == (symmetric, psd)
    check_products(found, op.to_dense().numpy(), 1e-12)


def test_derivatives_pass_to_the_tensors_of_gpytorch():
    library("linear_operator")
    import linear_operator.operators as lo

    a = tensor(J).requires_grad_()
    te.exact(lo.RootLinearOperator(a)).value.backward()
    assert_close(a.grad, 2 * J, 1e-12)


# -- curvlinops -------------------------------------------------------------------------------------
# of PyTorch's own making, at its first jvp
TORCH_JVP = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def a_model():
    model = torch_mlp((5, 4, 3))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    return model, x, y


@TORCH_JVP
@pytest.mark.parametrize(
    "kind", ["Hessian", "GGN", "EF", "FisherMC", "KFAC", "EKFAC", "Jacobian", "TransposedJacobian"]
)
def test_curvature_of_models(kind):
    lib, _ = library("curvlinops")
    model, x, y = a_model()
    cls, params = getattr(lib, f"{kind}LinearOperator"), list(model.parameters())
    rectangular = "Jacobian" in kind
    loss = () if rectangular else (torch.nn.MSELoss(),)
    A = cls(model, *loss, params, [(x[:4], y[:4]), (x[4:], y[4:])])
    dense = (A @ torch.eye(A.shape[1], dtype=torch.float64)).detach().numpy()
    op = te.aslinearoperator(A)
    assert (op.symmetric, op.psd) == (not rectangular, kind in ("GGN", "EF", "FisherMC", "KFAC", "EKFAC"))
    check_products(op, dense, 1e-10)
    if op.psd:
        assert np.linalg.eigvalsh(dense).min() >= -1e-12
    if rectangular:
        J_ = torch_jacobian(model, x)
        assert float(te.exact(te.gram(op))) == pytest.approx(float(te.exact(te.gram(J_))), rel=1e-10)


@TORCH_JVP
def test_a_gauss_newton_matrix_of_another_loss_is_not_taken_for_positive():
    lib, _ = library("curvlinops")
    model, x, y = a_model()

    class Mine(torch.nn.Module):
        reduction = "mean"

        def forward(self, p, y):
            return -((p - y) ** 2).mean()

    op = te.aslinearoperator(lib.GGNLinearOperator(model, Mine(), list(model.parameters()), [(x, y)]))
    assert (op.symmetric, op.psd) == (True, False)


# -- out --------------------------------------------------------------------------------------------
def check_sent_out(name, A, rtol):
    """Sent out, A multiplies as before, from both sides, columns together and one by one."""
    op, way = sent_out(name, A), MULTIPLY[name]
    assert tuple(A.shape) == (tuple(op.shape) if hasattr(op, "shape") else (op.out_size(), op.in_size()))
    for product, matrix in ((way.matmat, A), (way.rmatmat, A.conj().T)):
        X = probes(matrix)
        assert_close(host(product(op, X)), matrix @ X, rtol)
        assert host(product(op, X)).dtype == A.dtype
    if name != "lineax":
        x = probes(A)[:, 0]
        assert_close(host(way.matmat(op, x)), A @ x, rtol)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("A", [J, J.T, J.astype(np.float32), Z], ids=["real", "wide", "float32", "complex"])
def test_what_goes_out_multiplies_as_before(name, A):
    check_sent_out(name, A, 1e-6 if A.dtype == np.float32 else 1e-13)


def check_round_trip(name, **known):
    back = te.aslinearoperator(sent_out(name, K, **known))
    assert (back.psd, back.symmetric) == (known.get("psd", False), bool(known))
    check_products(back, K, 1e-13)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("known", [{}, {"symmetric": True}, {"psd": True}], ids=["nothing", "symmetric", "psd"])
def test_what_is_known_comes_back(name, known):
    check_round_trip(name, **known)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "lineax"])
def test_columns_go_out_together(name):
    _, adapter = library(name)
    counter = Counter(te.aslinearoperator(MULTIPLY[name].asarray(J)))
    op, way = getattr(adapter, f"to_{name}")(counter), MULTIPLY[name]
    way.matmat(op, probes(J, k=5))
    way.rmatmat(op, probes(J.T, k=5))
    assert counter.columns["matmat"] == counter.columns["rmatmat"] == counter.widest == 5


@pytest.mark.parametrize("name", [n for n in NAMES if n != "lineax"])
def test_a_side_that_is_missing_stays_missing(name):
    _, adapter = library(name)
    A = te.aslinearoperator(MULTIPLY[name].asarray(J))
    forward = te.Operator(A.shape, like=A, matmat=A.matmat)
    op = getattr(adapter, f"to_{name}")(forward)
    assert_close(host(MULTIPLY[name].matmat(op, probes(J))), J @ probes(J), 1e-13)
    if name in ("scipy", "linear_operator", "curvlinops"):
        assert not hasattr(te.aslinearoperator(op), "rmatmat")
    reverse = te.Operator(A.shape, like=A, rmatmat=A.rmatmat)
    with pytest.raises(TypeError, match="needs matmat"):
        getattr(adapter, f"to_{name}")(reverse)


@pytest.mark.parametrize("name", NAMES)
def test_a_declared_operator_is_its_own_adjoint(name):
    _, adapter = library(name)
    A = te.aslinearoperator(MULTIPLY[name].asarray(K))
    op = getattr(adapter, f"to_{name}")(te.Operator(A.shape, like=A, matmat=A.matmat, psd=True))
    assert_close(host(MULTIPLY[name].rmatmat(op, probes(K))), K @ probes(K), 1e-13)


@pytest.mark.parametrize("library_of_arrays", ["numpy", "jax", "torch"])
def test_cola_takes_all_three(library_of_arrays):
    cola, adapter = library("cola")
    a = {"numpy": np.asarray, "jax": jnp.asarray, "torch": tensor}[library_of_arrays](K)
    op = adapter.to_cola(te.aslinearoperator(a, psd=True))
    assert type(op @ a) is type(a)
    assert_close(host(op @ a), K @ K, 1e-13)
    assert_close(host(a @ op), K @ K, 1e-13)
    check_products(te.aslinearoperator(op), K, 1e-13)
    if library_of_arrays != "numpy":  # CoLA's own algorithms ask the dtype
        assert float(cola.eigmax(op, cola.PowerIteration(max_iter=500, tol=1e-10))) == pytest.approx(1.0, rel=1e-6)


# -- kernels and the solvers of others ----------------------------------------------------------------
def kernel_of(framework: str) -> tuple[Any, np.ndarray]:
    """A kernel of a model, and its matrix."""
    model, x, _ = a_model()
    k = torch_ntk(model, x) if framework == "torch" else jax_ntk(jax_mlp, as_jax(model), jnp.asarray(x.numpy()))
    return k, host(te.to_dense(k))


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_scipys_solvers_run_on_kernels_of_models(framework):
    k, dense = kernel_of(framework)
    true = np.linalg.eigvalsh(dense)
    assert_close(scipy.sparse.linalg.eigsh(to_scipy(k), k=4, return_eigenvectors=False), true[-4:], 1e-10)
    s = scipy.sparse.linalg.svds(to_scipy(k.factor), k=3, return_singular_vectors=False)
    assert_close(np.sort(s) ** 2, true[-3:], 1e-10)
    y = np.arange(21.0)
    ridge = to_scipy(k + 0.1 * te.identity(21, like=k))
    x, failed = scipy.sparse.linalg.cg(ridge, y, rtol=1e-12)
    assert not failed
    assert_close(x, np.linalg.solve(dense + 0.1 * np.eye(21), y), 1e-8)
    w = scipy.sparse.linalg.lsqr(to_scipy(k.factor), y, atol=1e-13, btol=1e-13)[0]
    assert_close(to_scipy(k.factor) @ w, y, 1e-6)


def test_scipys_eigenvalues_of_a_kernel_are_ours():
    k, _ = kernel_of("torch")
    theirs = scipy.sparse.linalg.eigsh(to_scipy(k), k=4, return_eigenvectors=False)
    assert_close(np.sort(host(te.eigenvalues(k, 4, rng=0).values))[-4:], theirs, 1e-8)


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_half_precision_is_sent_to_scipy_in_single(framework):
    a = tensor(K).to(torch.bfloat16) if framework == "torch" else jnp.asarray(K, dtype=jnp.bfloat16)
    op = to_scipy(te.aslinearoperator(a, psd=True))
    assert op.dtype == np.float32
    assert scipy.sparse.linalg.eigsh(op, k=1, return_eigenvectors=False)[0] == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("send", ["scipy", "pylops"])
def test_complex_vectors_meet_a_real_operator_in_one_product(send):
    counter = Counter(te.aslinearoperator(tensor(J)))
    op = getattr(library(send)[1], f"to_{send}")(counter)
    X = probes(J) + 1j * probes(J, seed=2)
    assert_close(op.matmat(X), J @ X, 1e-13)
    assert counter.widest == 6


def test_products_do_not_alias_the_vectors_of_the_solver():
    op = to_scipy(te.identity(3, like=torch.empty(0, dtype=torch.float64)))
    X = np.ones((3, 2))
    Y = op.matmat(X)
    Y += 1
    assert_close(X, np.ones((3, 2)), 0)


def test_lineax_solves_with_a_kernel_inside_a_compiled_function():
    lx, adapter = library("lineax")
    k, dense = kernel_of("jax")
    y = jnp.arange(21.0)

    @jax.jit
    def solve(ridge, y):
        op = adapter.to_lineax(k + ridge * te.identity(21, like=k))
        return lx.linear_solve(op, y, lx.CG(rtol=1e-10, atol=1e-10)).value

    # a traced ridge has no sign, so that CG has to be told
    with pytest.raises(ValueError, match="positive"):
        solve(0.1, y)
    op = adapter.to_lineax(k + 0.1 * te.identity(21, like=k))
    x = jax.jit(lambda y: lx.linear_solve(op, y, lx.CG(rtol=1e-10, atol=1e-10)).value)(y)
    assert_close(x, np.linalg.solve(dense + 0.1 * np.eye(21), np.arange(21.0)), 1e-7)
    assert_close(k.matmat(jnp.eye(21)), dense, 1e-12)  # nothing of the traced function has stayed in the kernel


def test_derivatives_pass_through_lineax_solves():
    lx, adapter = library("lineax")
    model, x, _ = a_model()
    inputs, y = jnp.asarray(x.numpy()), jnp.arange(21.0)

    def f(params):
        k = jax_ntk(jax_mlp, params, inputs)
        op = adapter.to_lineax(k + 0.1 * te.identity(21, like=k))
        return y @ lx.linear_solve(op, y, lx.CG(rtol=1e-12, atol=1e-12)).value

    def dense(params):
        k = jax_ntk(jax_mlp, params, inputs)
        return y @ jnp.linalg.solve(k.matmat(jnp.eye(21)) + 0.1 * jnp.eye(21), y)

    got, expected = jax.jit(jax.grad(f))(as_jax(model)), jax.jit(jax.grad(dense))(as_jax(model))
    for name in got:
        assert_close(got[name], expected[name], 1e-5)


def test_others_solve_with_a_kernel():
    (pylops, to_pylops), (_, to_lo), (curvlinops, to_cl) = map(library, ("pylops", "linear_operator", "curvlinops"))
    k, dense = kernel_of("torch")
    ridge = k + te.identity(21, like=k)
    y = np.arange(21.0)
    true = np.linalg.solve(dense + np.eye(21), y)
    x = pylops.optimization.basic.cg(to_pylops.to_pylops(ridge), y, np.zeros(21), niter=200, tol=1e-12)[0]
    assert_close(x, true, 1e-6)
    A = to_lo.to_linear_operator(ridge)
    assert_close(A.solve(tensor(y)[:, None])[:, 0].detach(), true, 1e-6)
    assert float(A.logdet()) == pytest.approx(np.linalg.slogdet(dense + np.eye(21))[1], rel=1e-8)
    x = curvlinops.CGInverseLinearOperator(to_cl.to_curvlinops(ridge), tolerance=1e-8, eps=1e-30) @ tensor(y)
    assert_close(x, true, 1e-6)


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_cola_solves_with_a_kernel(framework):
    cola, adapter = library("cola")
    k, dense = kernel_of(framework)
    op = adapter.to_cola(k + te.identity(21, like=k))
    y = np.arange(21.0)
    x = cola.inv(op, cola.CG(tol=1e-10, max_iters=300)) @ (tensor(y) if framework == "torch" else jnp.asarray(y))
    assert_close(host(x), np.linalg.solve(dense + np.eye(21), y), 1e-7)


def test_lineax_finds_least_squares_of_a_models_jacobian_by_either_side():
    lx, adapter = library("lineax")
    k, dense = kernel_of("jax")
    op, y = adapter.to_lineax(k.factor), jnp.arange(21.0)
    assert_close(op.mv(lx.linear_solve(op, y, lx.LSMR(1e-10, 1e-10)).value), y, 1e-6)
    matrix = op.as_matrix()
    assert_close(matrix @ matrix.T, dense, 1e-12)


@pytest.mark.parametrize("shape", [(4, 2), (3, 4, 2), (2, 3, 4, 5)])
def test_gpytorch_multiplies_batches_of_matrices(shape):
    _, adapter = library("linear_operator")
    X = np.random.default_rng(0).standard_normal(shape)
    assert_close(adapter.to_linear_operator(tensor(J)) @ tensor(X), J @ X, 1e-13)


# -- errors -----------------------------------------------------------------------------------------
def test_structures_of_several_dtypes_are_refused():
    lx, _ = library("lineax")
    A = lx.DiagonalLinearOperator({"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2, jnp.float64)})
    with pytest.raises(TypeError, match=r"float32, float64 dtype, expected one.*convert"):
        te.trace(A)


def test_operators_that_are_linear_over_the_reals_alone_are_refused():
    pylops, _ = library("pylops")
    with pytest.raises(TypeError, match="clinear=False"):
        te.aslinearoperator(pylops.Real((4,), dtype="complex128"))
    assert float(te.exact(pylops.Real((4,), dtype="float64"))) == 4


def test_a_pylops_function_without_adjoint_has_none():
    pylops, _ = library("pylops")
    op = te.aslinearoperator(pylops.FunctionOperator(lambda x: 2 * x, 4, dtype="float64"))
    assert float(te.exact(op)) == 8
    with pytest.raises(TypeError, match="rmatmat"):
        te.rhutch(op, 2, rng=0)


def test_batches_of_gpytorch_operators_are_refused():
    lib, _ = library("linear_operator")
    with pytest.raises(ValueError, match=r"batch of operators, shape \(2, 3, 3\)"):
        te.trace(lib.operators.DenseLinearOperator(torch.ones(2, 3, 3)))


def test_parameters_on_several_devices_are_refused():
    library("curvlinops")
    A = curvlinops_operator(K, psd=False)

    class Apart(type(A)):
        @property
        def device(self):
            raise RuntimeError("Could not infer device. Parameters live on {cpu, cuda:0}.")

    A.__class__ = Apart
    with pytest.raises(TypeError, match=r"one device and dtype.*cuda:0.*move"):
        te.trace(A)


@pytest.mark.parametrize("name", ["lineax", "linear_operator", "curvlinops", "cola"])
def test_other_arrays_are_refused_with_a_way_out(name):
    import array_api_strict

    _, adapter = library(name)
    with pytest.raises(TypeError, match=rf"to_{name}: .*array_api_strict.*to_scipy"):
        getattr(adapter, f"to_{name}")(array_api_strict.asarray(K))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "scipy"])
def test_what_is_no_operator_is_refused(name):
    _, adapter = library(name)
    with pytest.raises(TypeError, match=rf"from_{name}: expected .*got dict"):
        getattr(adapter, f"from_{name}")({})


# -- the door ---------------------------------------------------------------------------------------
def test_the_doors_are_installed_as_the_project_says():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    for group in ("traceest.backends", "traceest.operators"):
        installed = {point.name: point.value for point in metadata.entry_points(group=group)}
        assert installed == project["entry-points"][group], "install the package again: pip install -e ."


def test_no_other_library_is_imported_before_its_operators_are_seen():
    libraries = [n for n in NAMES if n != "scipy"] + ["jax", "torch"]
    code = (
        "import sys, numpy as np, traceest as te, traceest_adapters.interop.scipy;"
        "te.trace(np.eye(40), rng=0); te.aslinearoperator(np.eye(3)) + np.eye(3);"
        f"print([m for m in {libraries} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


# -- that the tests bite ------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["pylops", "lineax", "cola", "linear_operator", "curvlinops"])
def test_a_wrong_adjoint_is_caught(name):
    wrong = te.aslinearoperator(make(name, Z))
    forward = wrong.rmatmat
    xp = wrong.__array_namespace__()
    wrong.rmatmat = lambda V: xp.conj(forward(xp.conj(V)))  # the transpose
    with pytest.raises(AssertionError):
        check_products(wrong, Z, 1e-13)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "lineax"])
def test_a_wrong_adjoint_that_goes_out_is_caught(monkeypatch, name):
    library(name)
    monkeypatch.setattr(te.DenseOperator, "rmatmat", lambda self, X: 2 * (self.array.conj().T @ X))
    with pytest.raises(AssertionError):
        check_sent_out(name, Z, 1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_a_dropped_flag_is_caught(monkeypatch, name):
    _, adapter = library(name)
    monkeypatch.setattr(adapter, "known_of", lambda A: {"symmetric": False, "psd": False})
    with pytest.raises(AssertionError):
        check_round_trip(name, psd=True)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "scipy"])
def test_a_flag_that_is_dropped_on_the_way_in_is_caught(monkeypatch, name):
    _, adapter = library(name)
    honest = getattr(adapter, f"from_{name}")

    def forgetful(A):
        op = honest(A)
        op.psd = op.symmetric = False
        return op

    monkeypatch.setitem(te._backends.operators._known, name, forgetful)
    with pytest.raises(AssertionError):
        check_known_inside(name)
