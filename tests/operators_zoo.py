"""Operators whose spectrum, and so whose every statistic, is known beforehand."""

from __future__ import annotations

import numpy as np


def _steps(n: int, floor: float) -> np.ndarray:
    """One eigenvalue in twenty is 1, the others `floor`: fifty ones at n = 1000."""
    return np.where(np.arange(n) < max(1, n // 20), 1.0, floor)


SPECTRA = {
    "flat": lambda n: np.linspace(1.0, 3.0, n),
    "poly": lambda n: np.arange(1.0, n + 1) ** -2,
    "slowexp": lambda n: 0.9 ** np.arange(n),
    "fastexp": lambda n: 0.7 ** np.arange(n),
    "smallstep": lambda n: _steps(n, 1e-3),
    "bigstep": lambda n: _steps(n, 1e-8),
}
"""Six ways for eigenvalues to fall; the steps betray a dropped residual, which exponential decay hides."""


def haar(n: int, seed: int = 0, *, complex_: bool = False) -> np.ndarray:
    """A Haar-distributed orthogonal (unitary) matrix."""
    rng = np.random.default_rng([n, seed])
    Z = rng.standard_normal((n, n))
    if complex_:
        Z = Z + 1j * rng.standard_normal((n, n))
    Q, R = np.linalg.qr(Z)
    d = np.diag(R)
    return Q * (d / np.abs(d))


def with_spectrum(eigenvalues: np.ndarray, seed: int = 0, *, complex_: bool = False) -> np.ndarray:
    """U diag(λ) Uᴴ with U Haar."""
    U = haar(len(eigenvalues), seed, complex_=complex_)
    A = (U * eigenvalues) @ U.conj().T
    return (A + A.conj().T) / 2


def spectral(name: str, n: int, seed: int = 0) -> np.ndarray:
    """Symmetric positive definite with one of `SPECTRA`."""
    return with_spectrum(SPECTRA[name](n), seed)


def indefinite(n: int, seed: int = 0) -> np.ndarray:
    """Symmetric with eigenvalues of both signs, trace well away from zero."""
    return with_spectrum(np.linspace(-1.0, 3.0, n), seed)


def nonsymmetric(n: int, seed: int = 0) -> np.ndarray:
    """A general real matrix."""
    return np.eye(n) + np.random.default_rng(seed).standard_normal((n, n)) / n**0.5


def hermitian(n: int, seed: int = 0) -> np.ndarray:
    """Complex Hermitian, indefinite."""
    return with_spectrum(np.linspace(-1.0, 3.0, n), seed, complex_=True)


def complex_general(n: int, seed: int = 0) -> np.ndarray:
    """A general complex matrix."""
    rng = np.random.default_rng(seed)
    return (1 + 0.5j) * np.eye(n) + (rng.standard_normal((n, n)) + 1j * rng.standard_normal((n, n))) / n**0.5


def low_rank(n: int, rank: int, seed: int = 0) -> np.ndarray:
    """PSD of the given rank, its nonzero eigenvalues 1 … 2."""
    return with_spectrum(np.concatenate([np.linspace(1.0, 2.0, rank), np.zeros(n - rank)]), seed)


def jacobian(n_blocks: int, n_b: int, P: int, seed: int = 0, *, complex_: bool = False) -> np.ndarray:
    """Rows of unequal size whose blocks overlap, as gradients of different examples do: (n_blocks · n_b, P)."""
    rng = np.random.default_rng([n_blocks, n_b, P, seed])
    n = n_blocks * n_b

    def gaussian(*shape: int) -> np.ndarray:
        Z = rng.standard_normal(shape)
        return Z + 1j * rng.standard_normal(shape) if complex_ else Z

    shared = gaussian(n, 3) @ gaussian(3, P) / 3**0.5
    rows = np.repeat(rng.uniform(0.5, 2.0, n_blocks), n_b)[:, None]
    return rows * (0.4 * shared + gaussian(n, P)) / P**0.5


SQUARE = {
    **{name: lambda n, name=name: spectral(name, n) for name in SPECTRA},
    "indefinite": indefinite,
    "nonsymmetric": nonsymmetric,
    "hermitian": hermitian,
    "complex": complex_general,
    "low rank": lambda n: low_rank(n, max(1, n // 10)),
    "rank one": lambda n: low_rank(n, 1),
    "zero": lambda n: np.zeros((n, n)),
    "identity": np.eye,
}
"""Every square maker, by name: n ↦ (n, n)."""
