"""XDiag: the diagonal by leaving one probe out, and its error by leaving out two."""

from __future__ import annotations

from typing import Any

from traceest import _array_api as aa
from traceest.estimate import Estimate
from traceest.estimators._products import products
from traceest.estimators.leave_out import LeftOut, left_out_directions, pair_weights

PAIRS = 2**22
"""Numbers that the pairs of left-out probes may take at a time, over as many rows as that allows."""


def xdiag(xp: Any, A: Any, Omega: Any, chunk: int) -> Estimate:
    """Value, stderr and df, (n,), from k probes and 2k products, AΩ and Z = AᴴQ.

    eᵢ = diag(Q₍ᵢ₎Q₍ᵢ₎ᴴA) + ω̄ᵢ∘(I − Q₍ᵢ₎Q₍ᵢ₎ᴴ)Aωᵢ. With Q₍ᵢ₎Q₍ᵢ₎ᴴ = Q(I − sᵢsᵢᴴ)Qᴴ and Aωᵢ = Qrᵢ, where sⱼᴴrᵢ = 0 for
    j ≠ i, what is left of Aωᵢ is Qsᵢρᵢ, ρᵢ = sᵢᴴrᵢ, and

        eᵢ = diag(QZᴴ) − Qsᵢ∘conj(Zsᵢ) + ω̄ᵢ∘Qsᵢρᵢ.

    Leaving j out as well takes b = (sⱼ − sᵢc)/√d away, c = sᵢᴴsⱼ, d = 1 − |c|², with bᴴrᵢ = −c̄ρᵢ/√d. The trace's
    argument for the error (`leave_out`) is made of independence and zero means alone and holds entry by entry.
    """
    Y = products(xp, A, Omega, chunk)
    scale = aa.safe_scale(xp, Y)
    Q, R = aa.orth(xp, Y, Omega, scale)
    Z = products(xp, A if A.symmetric else A.H, Q, chunk) / scale
    S = left_out_directions(xp, R)
    seen = xp.astype(aa.largest(xp, Y) > 0, R.dtype)  # where all of Y is zero, R is but the touch of Ω in it
    rho = aa.vdot(xp, S, R) * seen
    QS, ZS, whole = Q @ S, aa.conj(xp, Z @ S), xp.sum(Q * aa.conj(xp, Z), axis=1)
    C = aa.adjoint(xp, S) @ S
    weight = pair_weights(xp, C)
    back = aa.conj(xp, C) * rho[:, None]

    def rows(a: int, b: int) -> Estimate:
        P, N, W = QS[a:b, :], ZS[a:b, :], aa.conj(xp, Omega[a:b, :])
        one = whole[a:b, None] - P * N + W * P * rho
        Pb = P[:, None, :] - P[:, :, None] * C
        Nb = N[:, None, :] - N[:, :, None] * aa.conj(xp, C)
        two = one[:, :, None] - Pb * (Nb + W[:, :, None] * back) * xp.astype(weight, Pb.dtype)
        if A.symmetric:
            one, two = aa.real(xp, one), aa.real(xp, two)
        magnitude = xp.sum(xp.abs(Q[a:b, :] * aa.conj(xp, Z[a:b, :])), axis=1)
        return LeftOut(one, two, magnitude).estimate(xp, xp.sum(scale))

    step = max(1, PAIRS // Omega.shape[1] ** 2)
    parts = [rows(a, min(a + step, Omega.shape[0])) for a in range(0, Omega.shape[0], step)]
    value, stderr, df = (aa.concat_columns(xp, [getattr(e, f) for e in parts]) for f in ("value", "stderr", "df"))
    return Estimate(value, stderr, df)
