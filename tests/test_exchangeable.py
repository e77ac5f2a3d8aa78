"""XTrace and XNysTrace: the fast leave-one-out formulas against the textbook's loop over probes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import operators_zoo as zoo
import pytest
import torch
from assertions import Counter, assert_counts

import traceest as te

N, K = 40, 7


def project_out(Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    Q = np.linalg.qr(Y)[0]
    return Q, np.eye(len(Y)) - Q @ Q.conj().T


def naive_xtrace(A: np.ndarray, Omega: np.ndarray, i: int, out: list[int], normalise: bool) -> complex:
    """One estimate: probes `out` left out of the sketch, probe i in the residual."""
    n = len(A)
    Q, P = project_out(np.delete(A @ Omega, out, axis=1))
    w = P @ Omega[:, i]
    c = (n - Q.shape[1]) / np.linalg.norm(w) ** 2 if normalise else 1.0
    return np.trace(Q.conj().T @ A @ Q) + c * (w.conj() @ A @ w)


def naive_xnystrace(A: np.ndarray, Omega: np.ndarray, i: int, out: list[int], normalise: bool) -> float:
    n = len(A)
    kept = np.delete(Omega, out, axis=1)
    Y = A @ kept
    nystrom = Y @ np.linalg.solve(kept.conj().T @ Y, Y.conj().T)
    w = Omega[:, i]
    _, P = project_out(kept)
    c = (n - kept.shape[1]) / np.linalg.norm(P @ w) ** 2 if normalise else 1.0
    return (np.trace(nystrom) + c * (w.conj() @ (A - nystrom) @ w)).real


def by_the_loop(naive, A: np.ndarray, Omega: np.ndarray, normalise: bool) -> tuple[complex, float]:
    """The mean of the estimates and its standard error, every one recomputed."""
    k = Omega.shape[1]
    one = np.array([naive(A, Omega, i, [i], normalise) for i in range(k)])
    two = np.array([[naive(A, Omega, i, [i, j], normalise) if i != j else 0 for j in range(k)] for i in range(k)])
    off = ~np.eye(k, dtype=bool)
    delta = np.where(off, one[:, None] - two, 0)
    variance = np.var(one, ddof=1) / k + np.sum(delta * delta.T.conj()).real / (k * (k - 1))
    independent = np.sum(np.where(off, np.abs(two - two.T) ** 2, 0)) / (2 * k * k * (k - 1))
    return np.mean(one), np.sqrt(max(variance, independent / 2))


MATRICES = {
    "poly": zoo.spectral("poly", N),
    "flat": zoo.spectral("flat", N),
    "step": zoo.spectral("smallstep", N),
    "hermitian": zoo.hermitian(N) @ zoo.hermitian(N).conj().T,
}


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("name", [*MATRICES, "nonsymmetric"])
def test_xtrace_is_the_textbooks(name: str, normalise: bool) -> None:
    A = np.random.default_rng(0).standard_normal((N, N)) if name == "nonsymmetric" else MATRICES[name]
    Omega = te.probes.gaussian(N, K, rng=1, like=A)
    e = te.xtrace(A, probes=Omega, distribution="gaussian", normalise=normalise)
    value, stderr = by_the_loop(naive_xtrace, A, Omega, normalise)
    np.testing.assert_allclose(complex(e.value), value, rtol=1e-10)
    np.testing.assert_allclose(float(e.stderr), stderr, rtol=1e-8)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("name", MATRICES)
def test_xnystrace_is_the_textbooks(name: str, normalise: bool) -> None:
    A = MATRICES[name]
    Omega = te.probes.gaussian(N, K, rng=1, like=A)
    e = te.xnystrace(A, probes=Omega, distribution="gaussian", normalise=normalise)
    value, stderr = by_the_loop(naive_xnystrace, A, Omega, normalise)
    np.testing.assert_allclose(float(e.value), value, rtol=1e-10)
    np.testing.assert_allclose(float(e.stderr), stderr, rtol=1e-7)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("spectrum", "m"), [("fastexp", 120), ("fastexp", 300), ("bigstep", 300)])
def test_what_is_left_is_rounding_and_its_error_bar_says_so(dtype: str, spectrum: str, m: int) -> None:
    """Columns of Q along the probes themselves, as a touch of Ω in Y brings them, would make it a hundredfold."""
    lam = zoo.SPECTRA[spectrum](1000)
    column = lam.astype(dtype)[:, None]
    A = te.aslinearoperator(lambda X: column * X, like=column, symmetric=True)
    runs = [te.xtrace(A, m, rng=seed) for seed in range(30)]
    truth, eps = float(np.sum(column, dtype=np.float64)), float(np.finfo(dtype).eps)
    sketched = 1e-10 * truth if spectrum == "fastexp" and m == 120 else 0.0  # what 60 probes leave of 0.7^i
    errors = np.array([abs(float(e) - truth) for e in runs])
    assert errors.max() <= 4 * sketched + 30 * eps * truth
    held = [low <= truth <= high for low, high in (e.confidence_interval() for e in runs)]
    assert np.mean(held) >= 0.9
    assert max(float(e.stderr) for e in runs) <= 10 * sketched + 30 * eps * truth


@pytest.mark.parametrize("f", [te.xtrace, te.xnystrace])
@pytest.mark.parametrize("c", [0.5, 1.0, 2.0])
def test_the_error_bars_have_the_size_of_the_errors(f, c: float) -> None:
    """Where the plain spread of the estimates is 0.7 to 0.9 of it and a jackknife 1.2 to 2.3."""
    lam = np.arange(1, 201.0) ** -c
    A = te.aslinearoperator(lambda X: lam[:, None] * X, like=np.empty((200, 1)), psd=True)
    runs = [f(A, 40, rng=seed) for seed in range(300)]
    errors = np.array([float(e) for e in runs]) - lam.sum()
    ratio = np.sqrt(np.mean([float(e.stderr) ** 2 for e in runs]) / np.mean(errors**2))
    assert 0.85 < ratio < 1.2
    assert abs(errors.mean()) < 4 * errors.std() / 300**0.5
    held = np.mean([e.confidence_interval().low <= lam.sum() <= e.confidence_interval().high for e in runs])
    assert 0.92 <= held <= 0.99


def test_a_gram_operator_gives_the_same_for_fewer_products() -> None:
    J = np.random.default_rng(0).standard_normal((60, 50)) / np.arange(1, 51)
    dense, lazy = te.xtrace(J @ J.T, 20, rng=0), te.xtrace(te.gram(J), 20, rng=0)
    np.testing.assert_allclose(float(lazy), float(dense), rtol=1e-10)
    np.testing.assert_allclose(float(lazy.stderr), float(dense.stderr), rtol=1e-8)
    assert (lazy.n_matvecs, lazy.n_rmatvecs) == (10, 20)
    assert dense.n_matvecs == 20


GRADIENTS = {
    "hutchpp": (lambda A, m: te.hutchpp(A, m, rng=0), 2),
    "xtrace": (lambda A, m: te.xtrace(A, m, rng=0), 2),
    "xnystrace": (lambda A, m: te.xnystrace(A, m, rng=0), 1),
}
ESTIMATORS = {
    "xtrace": (lambda A, m: te.xtrace(A, m, rng=0), 2),
    "xnystrace": (lambda A, m: te.xnystrace(A, m, rng=0), 1),
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("m", [4, 5, 12, 39])
def test_a_budget_is_kept_and_counted(name: str, m: int) -> None:
    f, each = ESTIMATORS[name]
    counter = Counter(te.aslinearoperator(MATRICES["poly"], psd=True))
    e = f(counter, m)
    assert_counts(e, counter, budget=m)
    assert e.n_matvecs == m - m % each
    assert f(counter, 40).exact


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rank", [1, 5, 15])
def test_a_rank_below_the_sketch_is_exact(backend: Any, name: str, dtype: str, rank: int) -> None:
    """Leaving a probe out of a sketch that holds all leaves all in it."""
    f, each = ESTIMATORS[name]
    for A in (zoo.low_rank(60, rank), np.diag(np.arange(60) < rank).astype(float)):
        e = backend.call(lambda A: f(A, 20 * each), A.astype(dtype))
        eps = float(np.finfo(dtype).eps)
        assert float(e.value) == pytest.approx(np.trace(A), rel=300 * eps)
        assert float(e.stderr) < 1000 * eps * np.trace(A)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_identity_is_known_for_certain(backend: Any, name: str, dtype: str) -> None:
    """Probes of the right length see all of it: the rescaled residual is exact."""
    f, each = ESTIMATORS[name]
    e = backend.call(lambda A: f(A, 10 * each), np.eye(60).astype(dtype))
    assert float(e.value) == pytest.approx(60, rel=100 * float(np.finfo(dtype).eps))
    assert float(e.stderr) < 60 * 100 * float(np.finfo(dtype).eps)


def test_a_skew_symmetric_operator_has_trace_zero(backend: Any) -> None:
    A = np.random.default_rng(0).standard_normal((60, 60))
    e = backend.call(lambda A: te.xtrace(A, 20, rng=0), A - A.T)
    assert abs(float(e.value)) < 4 * float(e.stderr) + 1e-9


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("operator", ["poly", "rank 3", "three ones", "zero"])
def test_gradients_are_those_of_differences_and_stay_finite(name: str, operator: str) -> None:
    f, each = GRADIENTS[name]
    ones = np.diag(np.arange(N) < 3).astype(float)
    A = {"poly": MATRICES["poly"], "rank 3": zoo.low_rank(N, 3), "three ones": ones, "zero": 0 * ones}[operator]
    g = np.asarray(jax.grad(lambda A: f(A, 6 * each).value)(jnp.asarray(A)))
    assert np.abs(g).max() < 1e4  # Nyström is not smooth where the rank may grow: finite is all there is to ask
    T = torch.tensor(A, requires_grad=True)
    f(T, 6 * each).value.backward()
    assert np.abs(T.grad.numpy()).max() < 1e4
    if operator == "poly":
        E = np.random.default_rng(0).standard_normal((N, N))
        E = E @ E.T / np.linalg.norm(E @ E.T)
        h = 1e-6
        difference = (float(f(A + h * E, 6 * each)) - float(f(A - h * E, 6 * each))) / (2 * h)
        assert np.sum(g * E) == pytest.approx(difference, rel=1e-5)


def test_orthogonal_probes_are_refused() -> None:
    with pytest.raises(ValueError, match="needs independent probes; choose sphere"):
        te.xtrace(MATRICES["poly"], 10, distribution="orthogonal")


def test_probes_and_budget_must_agree() -> None:
    with pytest.raises(ValueError, match="7 probes spend 14 products, not n_matvecs = 7"):
        te.xtrace(MATRICES["poly"], 7, probes=te.probes.sphere(N, 7, rng=0))


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("factored", [False, True])
def test_chunks_change_nothing_and_are_kept(name: str, factored: bool) -> None:
    f = {"xtrace": te.xtrace, "xnystrace": te.xnystrace}[name]
    J = np.random.default_rng(0).standard_normal((60, 50)) / np.arange(1, 51)
    A = te.gram(J) if factored else te.aslinearoperator(J @ J.T, psd=True)
    counter = A if factored else Counter(A)
    e = f(counter, 24, rng=0, chunk_size=5)
    assert float(e) == pytest.approx(float(f(A, 24, rng=0)), rel=1e-12)
    assert factored or counter.widest == 5
