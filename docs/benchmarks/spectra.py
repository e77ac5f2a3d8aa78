"""Test operators whose trace is known: six ways for eigenvalues to fall, and families that nobody tunes on.

The six spectra are those of the XTrace paper with n = 1000. Exponential decay alone does not show whether an estimator
drops the residual term; the two steps do. Each is rotated by a Haar-random U, so that no coordinate is special.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

import traceest as te

N = 1000
BLOCKS = 5


def _steps(n: int, floor: float) -> np.ndarray:
    return np.where(np.arange(n) < 50, 1.0, floor)


def _random_signs(n: int) -> np.ndarray:
    signs = np.where(np.random.default_rng(7).random(n) < 0.3, -1.0, 1.0)
    return signs * np.arange(1.0, n + 1) ** -0.5


SPECTRA = {
    "flat": lambda n: np.linspace(1.0, 3.0, n),
    "poly": lambda n: np.arange(1.0, n + 1) ** -2,
    "slowexp": lambda n: 0.9 ** np.arange(n),
    "fastexp": lambda n: 0.7 ** np.arange(n),
    "smallstep": lambda n: _steps(n, 1e-3),
    "bigstep": lambda n: _steps(n, 1e-8),
}
"""Eigenvalues for n = 1000, all positive, largest first (but for "flat")."""

UNTUNED = {
    "i^-0.5": lambda n: np.arange(1.0, n + 1) ** -0.5,
    "i^-1": lambda n: np.arange(1.0, n + 1) ** -1,
    "i^-2": lambda n: np.arange(1.0, n + 1) ** -2,
    "signs": _random_signs,
}
"""Eigenvalues for n = 200; "signs" is i^-0.5 with 30 % of the signs turned, hence indefinite."""


def haar(n: int, seed: int = 0) -> np.ndarray:
    """A Haar-distributed orthogonal matrix."""
    Q, R = np.linalg.qr(np.random.default_rng([n, seed]).standard_normal((n, n)))
    return Q * np.sign(np.diag(R))


@dataclass(frozen=True)
class Problem:
    """An operator A = JJᵀ with everything that the estimators may want to see of it.

    `dense` is A, (n, n); `eigenvalues` are A's, or None where a rotated diagonal will not do; `factor` is J, or None
    where A is indefinite.
    """

    name: str
    dense: np.ndarray
    eigenvalues: np.ndarray | None
    factor: np.ndarray | None

    @property
    def n(self) -> int:
        """Rows of A."""
        return self.dense.shape[0]

    @property
    def psd(self) -> bool:
        """Whether A is positive semidefinite."""
        return self.factor is not None

    @property
    def truth(self) -> float:
        """tr A."""
        return float(np.trace(self.dense) if self.eigenvalues is None else self.eigenvalues.sum())

    @cached_property
    def scale(self) -> float:
        """Σ|λ|, which errors are relative to; tr A itself where A is positive semidefinite."""
        return self.truth if self.psd else float(np.abs(self.eigenvalues).sum())

    @cached_property
    def A(self) -> Any:
        """The operator."""
        return te.aslinearoperator(self.dense, symmetric=True, psd=self.psd)

    @cached_property
    def diagonal(self) -> Any:
        """The same without the rotation: as good, and faster, for probes whose law no rotation changes."""
        if self.eigenvalues is None:
            return self.A
        column = self.eigenvalues[:, None]
        return te.aslinearoperator(lambda X: column * X, like=np.zeros((self.n, 1)), symmetric=True, psd=self.psd)

    @cached_property
    def J(self) -> Any:
        """The factor as one block."""
        return te.aslinearoperator(self.factor)

    @cached_property
    def J_blocks(self) -> Any:
        """The factor as a batch of `BLOCKS` independent examples."""
        return te.aslinearoperator(self.factor, n_blocks=BLOCKS)


def from_eigenvalues(name: str, eigenvalues: np.ndarray) -> Problem:
    """A = U diag(λ) Uᵀ and, where λ ≥ 0, J = U diag(√λ) Vᵀ with U and V Haar."""
    n = len(eigenvalues)
    U = haar(n)
    A = (U * eigenvalues) @ U.T
    J = (U * np.sqrt(eigenvalues)) @ haar(n, seed=1).T if eigenvalues.min() >= 0 else None
    return Problem(name, (A + A.T) / 2, eigenvalues, J)


def mlp_jacobian(batch: int = 20, widths: tuple[int, ...] = (6, 24, 24, 10), seed: int = 0) -> np.ndarray:
    """Jacobian (batch · outputs, P) of a tanh MLP in NTK scaling, at initialisation, by back-propagation."""
    rng = np.random.default_rng(seed)
    pairs = list(pairwise(widths))
    W = [rng.standard_normal((b, a)) / a**0.5 for a, b in pairs]
    rows = []
    for x in rng.standard_normal((batch, widths[0])):
        activations = [x]
        for weights in W[:-1]:
            activations.append(np.tanh(weights @ activations[-1]))
        delta = np.eye(widths[-1])  # (outputs, units of this layer)
        leaves: list[np.ndarray] = []
        for i in reversed(range(len(W))):
            leaves = [(delta[:, :, None] * activations[i] / pairs[i][0] ** 0.5).reshape(len(delta), -1), delta, *leaves]
            delta = (delta @ W[i]) * (1 - activations[i] ** 2)
        rows.append(np.concatenate(leaves, axis=1))
    return np.concatenate(rows)


def problem(name: str) -> Problem:
    """One of `SPECTRA` (n = 1000), of `UNTUNED` (n = 200), or "ntk"."""
    if name == "ntk":
        J = mlp_jacobian()
        K = J @ J.T
        return Problem(name, (K + K.T) / 2, None, J)
    if name in SPECTRA:
        return from_eigenvalues(name, SPECTRA[name](N))
    return from_eigenvalues(name, UNTUNED[name](200))
