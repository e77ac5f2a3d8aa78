"""XDiag: the diagonal by leaving one probe out, and its error by leaving out two."""

from __future__ import annotations

from typing import Any

from traceest import _array_api as aa
from traceest import _backends
from traceest.operators.products import orth, products
from traceest.uncertainty.estimate import Estimate
from traceest.uncertainty.leave_out import LeftOut, left_out_directions, pair_weights

PAIRS = 2**22
"""Numbers that the pairs of left-out probes may take at a time, over as many rows as that allows."""


def xdiag(xp: Any, A: Any, Omega: Any, chunk: int, sketch: tuple[Any, Any, Any, Any] | None = None) -> Estimate:
    """Value, stderr and df, (n,), from k probes and 2k products, AΩ and Z = AᴴQ.

    eᵢ = diag(Q₍ᵢ₎Q₍ᵢ₎ᴴA) + ω̄ᵢ∘(I − Q₍ᵢ₎Q₍ᵢ₎ᴴ)Aωᵢ. With Q₍ᵢ₎Q₍ᵢ₎ᴴ = Q(I − sᵢsᵢᴴ)Qᴴ and Aωᵢ = Qrᵢ, where sⱼᴴrᵢ = 0 for
    j ≠ i, what is left of Aωᵢ is Qsᵢρᵢ, ρᵢ = sᵢᴴrᵢ, and

        eᵢ = diag(QZᴴ) − Qsᵢ∘conj(Zsᵢ) + ω̄ᵢ∘Qsᵢρᵢ.

    Leaving j out as well takes b = (sⱼ − sᵢc)/√d away, c = sᵢᴴsⱼ, d = 1 − |c|², with bᴴrᵢ = −c̄ρᵢ/√d. The trace's
    argument for the error (`leave_out`) is made of independence and zero means alone and holds entry by entry.

    `sketch` is Q, R, QᴴY and the unit of Y, where that has been made already.
    """
    Q, R, QY, top = orth(products(xp, A, Omega, chunk), Omega) if sketch is None else sketch
    Z = products(xp, A if A.symmetric else A.H, Q, chunk)
    left_out = _backends.compiled(_left_out, (), (R, QY, top), Q)
    step = max(1, PAIRS // Omega.shape[1] ** 2)
    ends = [(a, min(a + step, Omega.shape[0])) for a in range(0, Omega.shape[0], step)]
    parts = [
        _backends.compiled(_rows, (A.symmetric,), (Omega[a:b, :], Q[a:b, :], Z[a:b, :], *left_out), Q) for a, b in ends
    ]
    value, stderr, df = (aa.concat_columns(xp, [getattr(e, f) for e in parts]) for f in ("value", "stderr", "df"))
    return Estimate(value, stderr, df)


def spreads(arrays: tuple[Any, ...]) -> tuple[Any, Any]:
    """What one probe's variance is, summed over all entries, of v̄∘Av and of XDiag's, in squares of the unit of Y.

    The first is that of a ratio to |v|²; the second that of ω̄ᵢ∘(I − Q₍ᵢ₎Q₍ᵢ₎ᴴ)Aωᵢ, from the sketch AΩ alone.
    """
    Omega, Y, Q, R, QY, top = arrays
    xp = aa.namespace(Q)
    S, rho, *_ = _left_out((R, QY, top))
    W, k = aa.conj(xp, Omega), Omega.shape[1]
    sampled, weight = W * (Y / xp.where(top > 0, top, xp.ones_like(top))), aa.abs2(xp, Omega)
    total = xp.sum(weight, axis=1, keepdims=True)
    ratio = xp.sum(sampled, axis=1, keepdims=True) / xp.where(total > 0, total, xp.ones_like(total))
    left = W * (Q @ S) * rho
    left = left - xp.sum(left, axis=1, keepdims=True) / k
    of = [xp.sum(aa.abs2(xp, x)) / (k - 1) for x in (sampled - ratio * xp.astype(weight, ratio.dtype), left)]
    return of[0], of[1]


def _left_out(arrays: tuple[Any, Any, Any]) -> tuple[Any, ...]:
    """What all rows share: S, ρ, C = SᴴS, the weights of pairs, C̄ρ, and the unit of Y."""
    R, QY, top = arrays
    xp = aa.namespace(R)
    S = left_out_directions(xp, R)
    seen = xp.astype(top > 0, R.dtype)  # where all of Y is zero, R is but the touch of Ω in it
    rho = aa.vdot(xp, S, QY) * seen
    C = aa.adjoint(xp, S) @ S
    return S, rho, C, pair_weights(xp, C), aa.conj(xp, C) * rho[:, None], xp.where(top > 0, top, xp.ones_like(top))


def _rows(symmetric: bool, arrays: tuple[Any, ...]) -> Estimate:
    """Those entries of the diagonal that the rows of Ω, Q and Z are given of."""
    Omega, Q, Z, S, rho, C, weight, back, unit = arrays
    xp = aa.namespace(Q)
    Z = Z / unit
    P, N, W = Q @ S, aa.conj(xp, Z @ S), aa.conj(xp, Omega)
    one = xp.sum(Q * aa.conj(xp, Z), axis=1)[:, None] - P * N + W * P * rho
    Pb = P[:, None, :] - P[:, :, None] * C
    Nb = N[:, None, :] - N[:, :, None] * aa.conj(xp, C)
    two = one[:, :, None] - Pb * (Nb + W[:, :, None] * back) * xp.astype(weight, Pb.dtype)
    if symmetric:
        one, two = aa.real(xp, one), aa.real(xp, two)
    return LeftOut(one, two, xp.sum(xp.abs(Q * aa.conj(xp, Z)), axis=1)).estimate(xp, xp.sum(unit))
