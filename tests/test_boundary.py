# ruff: noqa: E501 — tables have a case a line
"""The boundary of products: what operators of users' may do wrong is borne, or is an error that says what it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import array_api_strict
import jax.numpy as jnp
import numpy as np
import operators_zoo as zoo
import pytest
import scipy.sparse as sparse
import torch
from jax.experimental import sparse as jax_sparse
from scipy.sparse.linalg import LinearOperator

import traceest as te
from traceest import _array_api as aa

N = 24
K = zoo.spectral("poly", N)
LIKE = np.zeros((N, 1))

ESTIMATORS: dict[str, Callable[[Any], Any]] = {
    "exact": te.exact,
    "trace": lambda A: te.trace(A, rtol=0.1, rng=0),
    "trace, exactly": lambda A: te.trace(A, method="exact"),
    "hutchinson": lambda A: te.hutchinson(A, 6, rng=0),
    "hutchpp": lambda A: te.hutchpp(A, 9, rng=0),
    "xtrace": lambda A: te.xtrace(A, 8, rng=0),
    "xnystrace": lambda A: te.xnystrace(A, 6, rng=0),
    "nystrompp": lambda A: te.nystrompp(A, 6, rng=0),
    "na_hutchpp": lambda A: te.na_hutchpp(A, 10, rng=0),
    "norm": lambda A: te.frobenius_norm(A, n_matvecs=10, rng=0),
    "norm, exactly": lambda A: te.frobenius_norm(A, n_matvecs=2, method="exact"),
    "inner product": lambda A: te.inner_product(A, A, n_matvecs=8, rng=0),
    "alignment": lambda A: te.alignment(A, A + te.identity(N, like=A), n_matvecs=8, rng=0),
    "diagonal": lambda A: te.diagonal(A, 8, rng=0),
    "diagonal, exactly": lambda A: te.diagonal(A, method="exact"),
    "spectral norm": lambda A: te.spectral_norm(A, rng=0),
    "eigenvalues": lambda A: te.eigenvalues(A, 2, rng=0, method="krylov"),
    "logdet": lambda A: te.logdet(A, 12, rng=0),
    "partial trace": lambda A: te.partial_trace(A, 6, shape=(4, 6), keep=1, rng=0).matrix,
    "polynomial": lambda A: te.trace_of_polynomial(A, [0.0, 1.0, 1.0], 6, rng=0),
    "of a sum": lambda A: te.hutchinson(A + te.identity(N, like=A), 6, rng=0),
    "of a power": lambda A: te.hutchinson(A**2, 6, rng=0),
    "of a product": lambda A: te.exact(A @ A),
    "of a Kronecker product": lambda A: te.hutchinson(te.kron(A, te.identity(2, like=A)), 6, rng=0),
    "of a stack": lambda A: te.rhutch(te.vstack([A, A]), 4, rng=0),
    "dense": te.to_dense,
}


def answer(e: Any) -> Any:
    """The numbers of an answer."""
    return np.asarray(getattr(e, "values", None) if hasattr(e, "residuals") else getattr(e, "value", e))


# -- what is borne -----------------------------------------------------------------------------------------
def one_buffer(a):
    """A function that writes into the same array again and again."""
    out = a * 0

    def matmat(X):
        out[:, : X.shape[1]] = a @ X
        return out[:, : X.shape[1]]

    return matmat


def one_vector(a):
    out = a[:, 0] * 0

    def matvec(v):
        out[:] = a @ v
        return out

    return matvec


def in_place(a):
    """A function that changes what it is given."""

    def matmat(X):
        X *= 2
        return a @ X / 2

    return matmat


def argument_returned(a):
    """A function whose answer is its argument."""

    def matmat(X):
        X[...] = a @ X
        return X

    return matmat


def scipy_of(matvec):
    return LinearOperator((N, N), matvec=matvec, rmatvec=matvec, dtype=np.float64)


class Solver:
    """An operator of a user's own class."""

    shape, dtype, device, symmetric, psd = (N, N), np.dtype(np.float64), "cpu", True, True

    def __init__(self, a):
        self.matmat = self.rmatmat = one_buffer(a)

    def __array_namespace__(self, *, api_version=None):
        return np


class OfVectors:
    shape, dtype, symmetric, psd = (N, N), np.dtype(np.float64), True, True

    def __init__(self, a):
        self.matvec = self.rmatvec = one_vector(a)


class Derived(te.Operator):
    """A user's subclass, with a method for its product."""

    def __init__(self, a):
        super().__init__(a.shape, like=a, psd=True)
        self.product = one_buffer(a)

    def matmat(self, X):
        return self.product(X)

    rmatmat = matmat


BORNE = {
    "one buffer": lambda a: te.aslinearoperator(one_buffer(a), like=a, psd=True),
    "one vector": lambda a: te.aslinearoperator(one_vector(a), like=a[:, 0], psd=True),
    "an Operator": lambda a: te.Operator((N, N), like=a, matmat=one_buffer(a), rmatmat=one_buffer(a), psd=True),
    "argument changed": lambda a: te.aslinearoperator(in_place(a), like=a, psd=True),
    "argument changed, vectors": lambda a: te.aslinearoperator(in_place(a), like=a[:, 0], psd=True),
    "argument returned": lambda a: te.aslinearoperator(argument_returned(a), like=a, psd=True),
    "SciPy": lambda a: te.aslinearoperator(scipy_of(one_vector(a)), psd=True),
    "SciPy, changed": lambda a: te.aslinearoperator(scipy_of(in_place(a)), psd=True),
    "SciPy, a multiple": lambda a: te.aslinearoperator(1.0 * scipy_of(one_vector(a)), psd=True),
    "own class": Solver,
    "own class of vectors": OfVectors,
    "own subclass": Derived,
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", BORNE)
def test_operators_may_write_where_they_like(name, estimator):
    A, right = te.aslinearoperator(BORNE[name](K)), te.aslinearoperator(lambda X: K @ X, like=LIKE, psd=True)
    expected = answer(ESTIMATORS[estimator](right))
    np.testing.assert_allclose(answer(ESTIMATORS[estimator](A)), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["one buffer", "one vector", "an Operator", "argument changed", "argument returned"])
def test_in_pytorch_too(name):
    A, right = BORNE[name](torch.from_numpy(K)), te.aslinearoperator(torch.from_numpy(K), psd=True)
    for estimator in ("exact", "xtrace", "norm", "logdet", "of a power"):
        expected = answer(ESTIMATORS[estimator](right))
        np.testing.assert_allclose(answer(ESTIMATORS[estimator](A)), expected, rtol=1e-9)


def test_explicit_probes_are_the_callers():
    V = np.random.default_rng(0).standard_normal((N, 4))
    before = V.copy()
    te.hutchinson(te.aslinearoperator(in_place(K), like=LIKE), probes=V)
    assert np.array_equal(V, before)


def test_copies_keep_the_graph():
    """What is copied of PyTorch's tensors is still differentiated."""
    w = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    A = te.aslinearoperator(lambda X: w * X, like=torch.zeros(N, 1, dtype=torch.float64))
    te.exact(A).value.backward()
    assert float(w.grad) == N


# -- what is refused ---------------------------------------------------------------------------------------
def of(f, like=LIKE, **known):
    return te.aslinearoperator(f, like=like, **known)


REFUSED = {
    "first column alone": (lambda X: (K @ X)[:, :1], ValueError, r"answered with one of \(24, 1\).*only one column"),
    "a vector": (lambda X: (K @ X)[:, 0], ValueError, r"answered with one of \(24,\).*1-D like="),
    "transposed": (lambda X: (K @ X).T, ValueError, "transposed"),
    "too few rows": (lambda X: (K @ X)[:-1], ValueError, r"said to be 24×24; give its true shape="),
    "too many axes": (lambda X: (K @ X)[:, :, None], ValueError, "one column for each"),
    "sums": (lambda X: X.sum(0), ValueError, "a vector came back"),
    "nothing": (lambda X: None, TypeError, r"returned None.*has to return that"),
    "a number": (lambda X: 2.0, TypeError, r"returned 2\.0, a float"),
    "a list": (lambda X: (K @ X).tolist(), TypeError, "returned list"),
    "a sparse matrix": (lambda X: sparse.csr_matrix(K @ X), TypeError, "returned csr_matrix"),
    "integers": (lambda X: (K @ X).astype(int), TypeError, "dtype int64.*do not round"),
    "truth": (lambda X: K @ X > 0, TypeError, "dtype bool"),
    "half the digits": (lambda X: (K @ X).astype(np.float32), TypeError, "dtype float32.*digits promised"),
    "complex": (lambda X: K @ X + 0j, TypeError, "dtype complex128.*said to be real"),
    "PyTorch": (
        lambda X: torch.from_numpy(K @ X),
        TypeError,
        "given an array of NumPy and answered with one of PyTorch",
    ),
    "JAX": (lambda X: jnp.asarray(K @ X), TypeError, "one of JAX"),
    "masked": (lambda X: np.ma.masked_greater(K @ X, 0.0), TypeError, "masked entries"),
}


@pytest.mark.parametrize("estimator", [e for e in ESTIMATORS if e not in ("dense",)])
@pytest.mark.parametrize("name", REFUSED)
def test_another_answer_is_an_error_that_names_it(name, estimator):
    f, kind, message = REFUSED[name]
    if name == "first column alone" and estimator in ("spectral norm", "logdet"):
        pytest.skip("of one column at a time it is the right answer")
    with pytest.raises(kind, match=f"(?s)matmat of <lambda>.*{message}"):
        ESTIMATORS[estimator](of(f, psd=True))


@pytest.mark.parametrize("name", REFUSED)
def test_check_names_it(name):
    f, _, message = REFUSED[name]
    report = te.check(of(f))
    assert {f.name for f in report.failures} <= {"shape", "dtype"}
    assert not report
    if name != "a vector":  # of one column alone, the message is another
        assert re.search(f"(?s){message}", report.failures[0].reason)


def test_a_transposed_answer_is_found_where_it_is_square():
    """With as many columns as rows its shape is the right one."""
    A = zoo.nonsymmetric(N)
    with pytest.raises(ValueError, match="transposed"):
        te.to_dense(of(lambda X: (A @ X).T))


@pytest.mark.parametrize("answer", [lambda v: (K @ v)[:, None], lambda v: v[:-1], lambda v: v.sum(), lambda v: None])
def test_functions_of_vectors_return_vectors(answer):
    with pytest.raises((ValueError, TypeError), match="matmat of"):
        te.hutchinson(of(answer, like=LIKE[:, 0]), 3, rng=0)


def test_answers_of_a_real_operator_are_real_and_of_a_complex_one_complex():
    H = zoo.hermitian(N)
    with pytest.raises(TypeError, match=r"keep its imaginary part"):
        te.exact(of(lambda X: (H @ X).real, like=H))


def test_a_real_operator_takes_complex_vectors_of_its_caller():
    X = zoo.hermitian(N)[:, :2]
    np.testing.assert_allclose(of(lambda X: K @ X) @ X, K @ X)


def test_more_digits_than_asked_for_are_taken_away():
    e = te.exact(of(lambda X: K @ X, like=LIKE.astype(np.float32)))
    assert e.value.dtype == np.float32
    assert float(e) == pytest.approx(np.trace(K), rel=1e-6)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_subclasses_of_arrays_are_taken_as_arrays():
    e = te.hutchinson(of(lambda X: np.matrix(K) @ X), 6, rng=0)
    assert float(e) == float(te.hutchinson(K, 6, rng=0))


ABILITIES = {
    "block_sqnorms": (lambda V: np.ones((3, V.shape[1])), r"answered with one of \(3, 4\), not \(4, 4\)"),
    "block_rmatmat": (lambda V: np.ones((4, 30, V.shape[1])), r"\(4, 30, 4\), not \(4, 4, 30\)"),
    "sketch_gram": (lambda V: np.ones((4, 4)), r"\(4, 4\), not \(4, 4, 4, 4\)"),
    "gram_matmat": (lambda V: V[:, :1], r"\(24, 1\), not \(24, 4\)"),
}


@pytest.mark.parametrize("ability", ABILITIES)
def test_abilities_are_held_to_their_shapes(ability):
    J = zoo.jacobian(4, 6, 30)
    f, message = ABILITIES[ability]
    wrong = te.Operator(J.shape, like=J, matmat=lambda X: J @ X, rmatmat=lambda V: J.T @ V, n_blocks=4, **{ability: f})
    with pytest.raises(ValueError, match=f"{ability} of Operator.*{message}"):
        getattr(te.operators.metering.Meter(wrong).op, ability)(np.ones((24, 4)))


def test_operators_of_ours_are_held_to_it_too(monkeypatch):
    monkeypatch.setattr(te.DenseOperator, "matmat", lambda self, X: (self.array @ X)[:, :1])
    with pytest.raises(ValueError, match=r"matmat of DenseOperator.*only one column"):
        te.hutchinson(K, 4, rng=0)


def test_answers_come_back_to_the_device():
    a = array_api_strict.asarray(K)
    there = array_api_strict.Device("device1")
    moved = te.aslinearoperator(lambda X: array_api_strict.asarray(a @ X, device=there), like=a)
    with pytest.raises(TypeError, match=r"given an array on device .*device1"):
        te.hutchinson(moved, 3, rng=0)


# -- what check finds --------------------------------------------------------------------------------------
def remembering(a):
    last = [0.0]

    def matmat(X):
        Y = a @ X + last[0]
        last[0] = float(X[0, 0])
        return Y

    return matmat


FOUND = {
    "buffer": one_buffer,
    "argument": in_place,
    "history": remembering,
    "deterministic": lambda a: lambda X: a @ X + np.random.default_rng().standard_normal(X.shape),
}


@pytest.mark.parametrize("name", FOUND)
def test_check_says_what_is_wrong(name):
    report = te.check(of(FOUND[name](K)))
    assert not report[name]
    others = {f.name for f in report.failures} - {name}
    assert others <= ({"columns", "linear"} if name == "deterministic" else set())


def test_check_finds_a_reused_vector_and_looks_into_composites():
    assert not te.check(of(one_vector(K), like=LIKE[:, 0]))["buffer"]
    assert not te.check(2.0 * te.aslinearoperator(Solver(K)))["buffer"]
    assert not te.check(of(one_buffer(torch.from_numpy(K)), like=torch.from_numpy(K)))["buffer"]


def test_an_error_of_the_operators_own_is_its_own():
    def matmat(X):
        raise ValueError("no licence")

    with pytest.raises(ValueError, match="no licence"):
        te.check(of(matmat))


# -- like=, and what becomes an operator -------------------------------------------------------------------
LIKES = {
    "a field": (np.zeros((4, 3, 2)), ValueError, r"shape \(4, 3, 2\).*f\(v\.reshape\(shape\)\)"),
    "a number": (np.zeros(()), ValueError, r"shape \(\)"),
    "integers": (np.zeros((4, 1), dtype=int), TypeError, "like= has dtype int64"),
    "a list": ([0.0] * 4, TypeError, "like= must be an array, got list"),
}


@pytest.mark.parametrize("name", LIKES)
def test_what_like_cannot_be(name):
    like, kind, message = LIKES[name]
    with pytest.raises(kind, match=message):
        te.aslinearoperator(lambda X: X, like=like)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("make", [np.matrix, np.ma.masked_array, lambda a: sparse.csr_matrix(a).todense()])
def test_plain_arrays_of_subclasses(make):
    assert float(te.xtrace(make(K), 8, rng=0)) == float(te.xtrace(K, 8, rng=0))


def test_missing_entries_are_no_operator():
    with pytest.raises(TypeError, match=r"masked entries.*filled"):
        te.trace(np.ma.masked_greater(K, 0.0))


@pytest.mark.parametrize("like", [None, jnp.zeros((N, 1))])
def test_sparse_arrays_of_jax(like):
    A = jax_sparse.BCOO.fromdense(jnp.asarray(zoo.nonsymmetric(N)))
    op = te.aslinearoperator(A, like=like)
    assert op.__array_namespace__() is jnp
    X = jnp.ones((N, 2), A.dtype)
    np.testing.assert_allclose(op.rmatmat(X), A.T @ X, rtol=1e-5)
    assert float(te.exact(op)) == pytest.approx(np.trace(zoo.nonsymmetric(N)), rel=1e-5)


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_array, sparse.coo_matrix])
def test_sparse_operands_are_operators(make):
    S = make(np.triu(zoo.nonsymmetric(N)))
    A, dense = te.aslinearoperator(K, psd=True), S.toarray()
    for product, expected in ((A @ S, K @ dense), (S @ A, dense @ K), (A + S, K + dense), (A - S, K - dense)):
        assert isinstance(product, te.Operator)
        np.testing.assert_allclose(te.to_dense(product), expected, atol=1e-12)


# -- NaN -----------------------------------------------------------------------------------------------------
def hurt(bad, framework="numpy"):
    a = zoo.spectral("poly", N).copy()
    a[3, 5] = a[5, 3] = bad
    J = zoo.jacobian(4, 6, 30).copy()
    J[2, 7] = bad
    move = {"numpy": np.asarray, "torch": torch.from_numpy, "jax": jnp.asarray}[framework]
    return te.aslinearoperator(move(a), psd=True), te.gram(move(J)), te.gram(move(J), n_blocks=4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
def test_nothing_is_certain_of_nan(framework, bad):
    for A in hurt(bad, framework):
        for name in CALLS if framework == "numpy" else ["exact", "hutchinson", "logdet", "all of logdet"]:
            try:
                with np.errstate(all="ignore"):
                    e = CALLS[name](A)
            except ValueError as error:
                assert "NaN or infinity" in str(error), name  # noqa: PT017 — what may raise need not
                continue
            value, stderr = answer(e), np.asarray(getattr(e, "stderr", np.nan))
            assert not np.any((stderr == 0) & ~np.isfinite(value)), name
            assert not e.converged, name
            if value.ndim == 0:
                assert not np.isfinite(value), name
                assert e.confidence_interval() == e.bounds, name


CALLS_OF_KERNELS = {
    "norm to a tolerance": lambda A: te.frobenius_norm(A, rtol=0.1, rng=0),
    "rank, exactly": lambda A: te.effective_rank(A, n_matvecs=3, method="exact"),
    "summary": lambda A: te.summary(A, n_matvecs=3, method="exact").effective_rank,
    "alignment, exactly": lambda A: te.centred_alignment(A, A, n_matvecs=3, method="exact"),
    "nuclear norm": lambda A: te.schatten_norm(A, 1, 12, rng=0),
    "entropy": lambda A: te.entropy_rank(A, 12, rng=0),
    "all of logdet": lambda A: te.logdet(A, N, rng=0),
    "all eigenvalues": lambda A: te.eigenvalues(A, 2, method="exact"),
    "partial trace's rank": lambda A: te.partial_trace(A, 6, shape=(4, 6), keep=1).effective_rank,
    "partial trace's eigenvalues": lambda A: te.partial_trace(A, 6, shape=(4, 6), keep=1).eigenvalues,
    "all of hutchinson": lambda A: te.hutchinson(A, N, rng=0),
}


CALLS = {name: f for name, f in (ESTIMATORS | CALLS_OF_KERNELS).items() if name != "dense"}


def test_eigenvectors_of_nan_are_nan_and_those_beside_it_are_not():
    stack = np.stack([K, hurt(np.nan)[0].array])
    theta, U = aa.eigh(np, stack)
    np.testing.assert_allclose(theta[0], np.linalg.eigvalsh(K))
    assert np.isfinite(U[0]).all()
    assert np.isnan(theta[1]).all()
    assert np.isnan(U[1]).all()


@pytest.mark.parametrize("method", ["auto", "exact"])
def test_trace_raises_in_every_route(method):
    for A in hurt(np.nan):
        for rtol in (0.3, 1e-6):
            with pytest.raises(ValueError, match=r"trace: NaN or infinity in the product r?matmat, column \d+"):
                te.trace(A, rtol=rtol, method=method, rng=0)


def test_trace_says_which_column_late_in_the_exact_route():
    made = [0]

    def matmat(X):
        Y = K @ X
        for i in range(X.shape[1]):
            made[0] += 1
            if made[0] == 20:
                Y[3, i] = np.nan
        return Y

    with pytest.raises(ValueError, match="trace: NaN or infinity in the product matmat, column 19"):
        te.trace(of(matmat), method="exact")


# -- precision ---------------------------------------------------------------------------------------------
PRECISIONS = {
    "half": (K.astype(np.float16), "float16.*Convert the array to float32"),
    "long": (K.astype(np.longdouble), "Convert the array to float64"),
    "torch half": (torch.from_numpy(K).half(), "float16.*Convert the array to float32"),
    "torch bfloat16": (torch.from_numpy(K).bfloat16(), "bfloat16.*Convert the array to float32"),
    "jax bfloat16": (jnp.asarray(K, jnp.bfloat16), "bfloat16.*Convert the array to float32"),
}


@pytest.mark.parametrize("estimator", ["exact", "trace", "hutchinson", "norm", "logdet", "eigenvalues", "diagonal"])
@pytest.mark.parametrize("name", PRECISIONS)
def test_precisions_that_are_not_computed_in(name, estimator):
    A, message = PRECISIONS[name]
    with pytest.raises(TypeError, match=f"(?s)dtype is .*{message}"):
        ESTIMATORS[estimator](A)


def test_half_precision_by_a_function_that_takes_single():
    a = torch.from_numpy(K).bfloat16()
    A = of(lambda X: (a @ X.bfloat16()).float(), like=torch.zeros(N, 1))
    assert float(te.exact(A)) == pytest.approx(float(a.float().trace()), rel=1e-2)


def test_meta_tensors_have_no_numbers():
    with pytest.raises(TypeError, match="meta device"):
        te.trace(torch.empty(5, 5, device="meta"))


# -- numbers -----------------------------------------------------------------------------------------------
NUMBERS = {
    "a generator of PyTorch's": (lambda: te.hutchinson(K, 5, rng=torch.Generator()), TypeError, "arrays of PyTorch.*NumPy"),
    "probes of PyTorch": (lambda: te.hutchinson(K, probes=torch.ones(N, 2)), TypeError, "probes are of torch.*NumPy"),
    "probes of a subclass": (lambda: te.hutchinson(K, probes=np.matrix(np.ones((N, 2)))), TypeError, "probes must be an array.*got matrix"),
    "a negative seed": (lambda: te.hutchinson(K, 5, rng=-1), ValueError, "non-negative integer, got -1"),
    "columns in halves": (lambda: te.hutchinson(K, 5, chunk_size=2.5), TypeError, r"chunk_size must be an integer, got 2\.5"),
    "a word for rtol": (lambda: te.trace(K, rtol="x"), TypeError, "rtol must be a number, got 'x'"),
    "a word for atol": (lambda: te.trace(K, atol="x"), TypeError, "atol must be a number"),
    "a word for confidence": (lambda: te.trace(K, confidence="95%"), TypeError, "confidence must be a number"),
    "a word for a norm's rtol": (lambda: te.frobenius_norm(K, rtol="x"), TypeError, "rtol must be a number"),
    "an oblong norm": (lambda: te.frobenius_norm(np.ones((4, 3)), 2), ValueError, r"‖J‖² = tr JJᴴ is what rhutch"),
    "an oblong product": (lambda: te.inner_product(np.ones((4, 3)), np.ones((4, 3)), 2), ValueError, r"tr AᴴB is trace"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("name", NUMBERS)
def test_the_true_reason_is_given(name):
    call, kind, message = NUMBERS[name]
    with pytest.raises(kind, match=f"(?s){message}"):
        call()
