"""The same symmetric operator for NumPy, PyTorch and JAX: dense, without a matrix, and sparse with a million rows.

All have a known trace, and the Laplacian a known log-determinant. A product is the same work in each library, so that
times compare what is around it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from spectra import SPECTRA, haar


class Operand:
    """A = Aᵀ ≥ 0, (n, n): `apply(X, *arrays)` is AX in the namespace of X, of one column or of several."""

    def __init__(self, name: str, apply: Callable[..., Any], arrays: tuple[np.ndarray, ...], n: int, trace: float):
        self.name, self.apply, self.arrays, self.n, self.trace = name, apply, arrays, n, trace
        self._moved: dict[str, tuple[Any, ...]] = {}

    @cached_property
    def matrix(self) -> Any:
        """What NumPy multiplies by: a dense or sparse matrix, or None."""
        return self.arrays[0] if self.apply is _dense else None

    def arrays_in(self, library: str) -> tuple[Any, ...]:
        """The arrays in "numpy", "torch" or "jax", moved once."""
        if library not in self._moved:
            self._moved[library] = tuple(in_library(library, x) for x in self.arrays)
        return self._moved[library]

    def product(self, library: str) -> Callable[[Any], Any]:
        """X ↦ AX for one library."""
        if library == "numpy" and self.matrix is not None:
            return lambda X: self.matrix @ X
        arrays = self.arrays_in(library)
        return lambda X: self.apply(X, *arrays)


def in_library(library: str, x: np.ndarray) -> Any:
    """The array there."""
    if library == "torch":
        import torch

        return torch.from_numpy(x)
    if library == "jax":
        import jax.numpy as jnp

        return jnp.asarray(x)
    return x


# -- dense ----------------------------------------------------------------------------------------------------------
def _dense(X: Any, A: Any) -> Any:
    return A @ X


def from_matrix(name: str, A: np.ndarray) -> Operand:
    """A dense matrix."""
    return Operand(name, _dense, (A,), A.shape[0], float(np.trace(A)))


def dense(name: str, n: int) -> Operand:
    """U diag(λ) Uᵀ, U Haar, with one of the six spectra."""
    lam, U = SPECTRA[name](n), haar(n)
    A = (U * lam) @ U.T
    return Operand(name, _dense, ((A + A.T) / 2,), n, float(lam.sum()))


# -- without a matrix -----------------------------------------------------------------------------------------------
def _hartley(X: Any) -> Any:
    """HX, H the orthogonal, symmetric Hartley transform cas(2πij/n)/√n, from a real FFT."""
    xp, n = array_namespace(X), X.shape[0]
    F = xp.fft.rfft(X, axis=0)
    a, b = xp.real(F), xp.imag(F)
    return xp.concat([a - b, xp.flip((a + b)[1 : (n + 1) // 2, ...], axis=0)], axis=0) / n**0.5


def _rotated(X: Any, lam: Any, signs: Any) -> Any:
    """S H Λ H S X, S random signs."""
    if X.ndim == 2:
        lam, signs = lam[:, None], signs[:, None]
    return signs * _hartley(lam * _hartley(signs * X))


def rotated(name: str, n: int) -> Operand:
    """One of the six spectra in random order between two fast rotations: n log n operations a product, no matrix."""
    rng = np.random.default_rng(n)
    lam = rng.permutation(SPECTRA[name](n))
    return Operand(name, _rotated, (lam, rng.choice([-1.0, 1.0], n)), n, float(lam.sum()))


# -- sparse ---------------------------------------------------------------------------------------------------------
class Laplacian(Operand):
    """−Δ on a square of side × side points by five-point differences, zero around it: n = side²."""

    def __init__(self, side: int) -> None:
        super().__init__(f"Laplacian {side}²", self._stencil, (), side**2, 4.0 * side**2)
        self.side = side

    @cached_property
    def matrix(self) -> Any:
        """CSR."""
        from scipy import sparse

        T = sparse.diags([-1.0, 2.0, -1.0], [-1, 0, 1], shape=(self.side, self.side))
        eye = sparse.identity(self.side)
        return sparse.csr_matrix(sparse.kron(T, eye) + sparse.kron(eye, T))

    def _stencil(self, X: Any) -> Any:
        xp, s = array_namespace(X), self.side
        Y = xp.reshape(X, (s, s, -1))
        row, column = xp.zeros_like(Y[:1, ...]), xp.zeros_like(Y[:, :1, :])
        Z = 4 * Y - xp.concat([Y[1:, ...], row]) - xp.concat([row, Y[:-1, ...]])
        Z = Z - xp.concat([Y[:, 1:, :], column], axis=1) - xp.concat([column, Y[:, :-1, :]], axis=1)
        return xp.reshape(Z, X.shape)

    def product(self, library: str) -> Callable[[Any], Any]:
        """CSR in PyTorch, too."""
        if library != "torch":
            return super().product(library)
        import torch

        M = self.matrix
        A = torch.sparse_csr_tensor(*map(torch.from_numpy, (M.indptr, M.indices, M.data)), size=M.shape)
        return lambda X: A @ X

    @cached_property
    def logdet(self) -> float:
        """Σ log λ, λ = 4 − 2cos(iπ/(s+1)) − 2cos(jπ/(s+1))."""
        half = 2 - 2 * np.cos(np.arange(1, self.side + 1) * np.pi / (self.side + 1))
        return float(np.sum(np.log(half[:, None] + half)))
