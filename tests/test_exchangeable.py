"""XTrace and XNysTrace: the fast leave-one-out formulas against the textbook's loop over probes."""

from __future__ import annotations

import numpy as np
import operators_zoo as zoo
import pytest

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


def jackknifed(naive, A: np.ndarray, Omega: np.ndarray, normalise: bool) -> tuple[complex, float]:
    """The mean over i, and the jackknife over runs without probe j, by recomputation."""
    k = Omega.shape[1]
    value = np.mean([naive(A, Omega, i, [i], normalise) for i in range(k)])
    without = [np.mean([naive(A, Omega, i, [i, j], normalise) for i in range(k) if i != j]) for j in range(k)]
    return value, np.sqrt((k - 1) / k * np.sum(np.abs(without - np.mean(without)) ** 2))


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
    value, stderr = jackknifed(naive_xtrace, A, Omega, normalise)
    np.testing.assert_allclose(complex(e.value), value, rtol=1e-10)
    np.testing.assert_allclose(float(e.stderr), stderr, rtol=1e-8)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("name", MATRICES)
def test_xnystrace_is_the_textbooks(name: str, normalise: bool) -> None:
    A = MATRICES[name]
    Omega = te.probes.gaussian(N, K, rng=1, like=A)
    e = te.xnystrace(A, probes=Omega, distribution="gaussian", normalise=normalise)
    value, stderr = jackknifed(naive_xnystrace, A, Omega, normalise)
    np.testing.assert_allclose(float(e.value), value, rtol=1e-10)
    np.testing.assert_allclose(float(e.stderr), stderr, rtol=1e-7)


def test_a_gram_operator_gives_the_same_for_fewer_products() -> None:
    J = np.random.default_rng(0).standard_normal((60, 50)) / np.arange(1, 51)
    dense, lazy = te.xtrace(J @ J.T, 20, rng=0), te.xtrace(te.gram(J), 20, rng=0)
    np.testing.assert_allclose(float(lazy), float(dense), rtol=1e-10)
    np.testing.assert_allclose(float(lazy.stderr), float(dense.stderr), rtol=1e-8)
    assert (lazy.n_matvecs, lazy.n_rmatvecs) == (10, 20)
    assert dense.n_matvecs == 20
