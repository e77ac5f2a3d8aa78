"""Randomised block Krylov spaces, and Rayleigh–Ritz on them with error bounds."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from traceest import _array_api as aa
from traceest import _backends
from traceest.operators.products import deflate
from traceest.spectrum import looks
from traceest.spectrum.lanczos import norms

Which = Literal["largest", "smallest", "magnitude"]


class KrylovSpace:
    """Orthonormal V of [Ω, AΩ, A²Ω, …], (n, m), with AV; it grows a block at a time.

    Every block is orthogonalised twice against all before it. One that has no new directions (the space is invariant
    under A: low rank, few distinct eigenvalues) is filled up with random ones, which is how further copies of repeated
    eigenvalues are found. AV is kept, so that no residual relies on the recurrence. Memory 2n·m.
    """

    def __init__(self, xp: Any, A: Any, Omega: Any) -> None:
        self.xp, self.A, self.Omega = xp, A, Omega
        self.blocks = 0
        self.V = _backends.compiled(_first, (), Omega, Omega)
        self.AV = A.matmat(self.V)

    @property
    def columns(self) -> int:
        """m: the dimension, and the products spent."""
        return self.V.shape[1]

    def grow(self, width: int) -> None:
        """Add a block of `width` columns, at most as many as Ω has."""
        last = self.AV[:, self.columns - min(width, self.Omega.shape[1]) :]
        self.blocks += 1
        Q = _backends.compiled(_next, (self.blocks,), (self.V, last, self.Omega), self.V)
        self.V = self.xp.concat([self.V, Q], axis=1)
        self.AV = self.xp.concat([self.AV, self.A.matmat(Q)], axis=1)


def _first(Omega: Any) -> Any:
    """An orthonormal basis of Ω."""
    return aa.orth(aa.namespace(Omega), Omega)[0]


def _next(shift: int, arrays: tuple[Any, Any, Any]) -> Any:
    """An orthonormal basis of what is new in the last columns of AV, filled up with Ω's, its rows shifted."""
    V, last, Omega = arrays
    xp = aa.namespace(V)
    fresh = xp.roll(Omega, shift, axis=0)[:, : last.shape[1]]
    Q, _ = aa.orth(xp, deflate(xp, V, last / aa.safe_scale(xp, last)), fresh)
    for _ in range(2):
        Q, _ = xp.linalg.qr(deflate(xp, V, Q))[:2]
    return Q


class Ritz(NamedTuple):
    """k Ritz values, vectors, residual norms ‖Ax − θx‖ and error bounds, the wanted end of the spectrum first."""

    values: Any
    vectors: Any
    residuals: Any
    bounds: Any
    size: Any  # the largest |Ritz value|
    asymmetry: Any  # ‖T − Tᴴ‖/‖T‖ of T = VᴴAV


def rayleigh_ritz(V: Any, AV: Any, k: int, spare: int, which: Which) -> Ritz:
    """The k Ritz pairs wanted, with bounds that see `spare` more.

    An eigenvalue lies within r = ‖Ax − θx‖ of θ, whatever the rest of the spectrum. If the s first Ritz vectors, with
    residuals R_s, are split from the rest of the spectrum, which is η away from θ, the error is at most
    2‖R_s‖²/(η + √(η² + 4‖R_s‖²)) (Mathias 1998; Li and Li 2005), which is ‖R_s‖²/η for a wide gap. The rest is known
    by its Ritz values less their residuals; the bound given is the least over all s, so that a cluster is bounded by
    the gap behind it.
    """
    found: Ritz = _backends.compiled(_rayleigh_ritz, (k, spare, which), (V, AV), V)
    return found


def _rayleigh_ritz(k: int, spare: int, which: Which, arrays: tuple[Any, Any]) -> Ritz:
    V, AV = arrays
    xp = aa.namespace(V)
    unit = xp.max(xp.abs(AV))
    unit = xp.where(unit > 0, unit, xp.ones_like(unit))
    AV = AV / xp.astype(unit, AV.dtype)
    T = aa.adjoint(xp, V) @ AV
    asymmetry = looks.asymmetry(xp, T)
    theta, Y = aa.eigh(xp, (T + aa.adjoint(xp, T)) / 2)
    size = xp.max(xp.abs(theta))
    p = min(k + spare, theta.shape[0])
    order = xp.argsort(-_key(xp, theta, which))[:p]
    theta, Y = xp.take(theta, order), xp.take(Y, order, axis=1)
    X = V @ Y
    r = norms(xp, AV @ Y - X * xp.astype(theta, X.dtype))
    rounding = size * (4 * xp.finfo(theta.dtype).eps * V.shape[0] ** 0.5)
    bounds = _bounds(xp, _key(xp, theta, which), r, k) + rounding
    return Ritz(theta[:k] * unit, X[:, :k], r[:k] * unit, bounds * unit, size * unit, asymmetry)


def _key(xp: Any, theta: Any, which: Which) -> Any:
    """What is largest for the eigenvalue wanted most."""
    return {"largest": lambda: theta, "smallest": lambda: -theta, "magnitude": lambda: xp.abs(theta)}[which]()


def _bounds(xp: Any, key: Any, r: Any, k: int) -> Any:
    """Of the k first; row s of the table splits the spectrum after the s-th Ritz value."""
    p = key.shape[0]
    if p < 2:
        return r[:k]
    index = xp.arange(p, device=aa.device(key))
    behind = index[None, :] > index[: p - 1, None]
    beyond = xp.where(behind, (key + r)[None, :], xp.ones_like(key)[None, :] * xp.min(key - r))
    eta = key[None, :k] - xp.max(beyond, axis=1, keepdims=True)  # nothing of the rest is believed to come nearer
    eta = xp.where((index[None, :k] <= index[: p - 1, None]) & (eta > 0), eta, xp.zeros_like(eta))
    squares = xp.sum(xp.where(behind, xp.zeros_like(r)[None, :], (r * r)[None, :]), axis=1, keepdims=True)
    root = xp.sqrt(xp.where(squares > 0, eta * eta + 4 * squares, xp.ones_like(eta)))
    split = xp.where(squares > 0, 2 * squares / (eta + root), xp.zeros_like(eta))
    split = xp.where(eta > 0, split, xp.ones_like(eta) * xp.max(r) + r[:k])
    return xp.minimum(r[:k], xp.min(split, axis=0))
