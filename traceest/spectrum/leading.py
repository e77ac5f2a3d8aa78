"""Directions that lead, taken out before the rest is sampled.

A block Krylov space of B blocks of q columns; X are the Ritz vectors of its first blocks, of largest modulus, and the
blocks behind them give xᵢᴴf(A)xᵢ: with V the whole space, T = VᴴAV and xᵢ = V yᵢ it is yᵢᴴf(T)yᵢ, exact for polynomials
whose degree is twice the number of those blocks, and one. No Ritz vector is taken for an eigenvector, so nothing is
biased where they are poor; where they have converged, what is left holds nothing of them.
"""

from __future__ import annotations

from typing import Any

from traceest import _array_api as aa
from traceest import _backends
from traceest.spectrum import looks
from traceest.spectrum.krylov import KrylovSpace

Rule = tuple[Any, Any]


def leading(xp: Any, A: Any, Omega: Any, blocks: int, caller: str) -> tuple[Any, tuple[Rule, Rule]]:
    """X, (n, q), and the quadratures of xᵢᴴf(A)xᵢ, of all blocks and of fewer."""
    q = Omega.shape[1]
    space = KrylovSpace(xp, A, Omega)
    for _ in range(blocks - 1):
        space.grow(q)
    behind = min(2 + blocks // 8, blocks - 1)
    sizes = (q * (blocks - behind), q * (blocks - behind // 2))
    X, fine, coarse, off = _backends.compiled(_ritz, (q, *sizes), (space.V, space.AV), space.V)
    looks.symmetric(off, A, caller)
    return X, (fine, coarse)


def _ritz(q: int, size: int, middle: int, arrays: tuple[Any, Any]) -> tuple[Any, Rule, Rule, Any]:
    V, AV = arrays
    xp = aa.namespace(V)
    unit = xp.max(xp.abs(AV))
    unit = xp.where(unit > 0, unit, xp.ones_like(unit))
    T = aa.adjoint(xp, V) @ (AV / xp.astype(unit, AV.dtype))
    off = looks.asymmetry(xp, T)
    T = (T + aa.adjoint(xp, T)) / 2
    theta, Y = aa.eigh(xp, T[:size, :size])
    Y = xp.take(Y, xp.argsort(-xp.abs(theta))[:q], axis=1)

    def rule(depth: int) -> Rule:
        nodes, U = aa.eigh(xp, T[:depth, :depth])
        weights = aa.abs2(xp, aa.adjoint(xp, Y) @ U[:size, :])
        return nodes[None, :] * unit + xp.zeros_like(weights), weights

    return V[:, :size] @ Y, rule(T.shape[0]), rule(middle), off
