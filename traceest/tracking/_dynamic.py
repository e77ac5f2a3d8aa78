"""Dynamic trace estimation: what is known of the last kernel's trace, moved on by how the kernel has changed."""

from __future__ import annotations

import math
from typing import Any

from traceest import _array_api as aa
from traceest.operators.abilities import can
from traceest.operators.blocks import block_sqnorms
from traceest.operators.metering import Meter
from traceest.operators.products import form
from traceest.probes import Probes
from traceest.uncertainty.estimate import Estimate, from_samples


class Shifted:
    """DeltaShift (Dharangutte and Musco 2021, Algorithm 1), its weight by what is known of the variances.

        t = w t₋ + h(K) − w h(K₋)

    with h the mean of m fresh probes' forms, the same in both kernels. Let P be the variance of one form and ρ the
    correlation of those of K and K₋; if t₋ has the variance κP₋, t has (ω²κ + (1 + ω² − 2ωρ)/m) P with ω = w √(P₋/P),
    least for ω = ρ/(mκ + 1). So the weights rest on ρ alone, which close kernels tell well from few probes; weights by
    the variances that m probes show would make the error bar too short. P is pooled over the run, forgotten as t₋ is.
    """

    def __init__(self, stream: Probes, m: int) -> None:
        self.stream, self.m = stream, m
        self.kernel: Any = None
        self.value: Any = None
        self.kappa: Any = 1 / m
        self.deviation: Any = None  # √P
        self.df: Any = 0.0

    def follow(self, K: Any) -> Estimate:
        """The trace of K, from fresh probes and from all that was known before."""
        V, meters = self.stream.take(self.m), [Meter(k) for k in (K, self.kernel) if k is not None]
        forms = [_forms(meter.op, V) for meter in meters]
        xp, self.kernel = aa.namespace(V), K
        now = from_samples(forms[0])
        if self.value is None:
            self.value, self.deviation, self.df = now.value, now.stderr * self.m**0.5, now.df
        else:
            self._move(xp, now, forms[0], forms[1])
        return Estimate(
            self.value,
            self.deviation * self.kappa**0.5,
            self.df,
            None,
            n_matvecs=sum(k.n_matvecs for k in meters),
            n_rmatvecs=sum(k.n_rmatvecs for k in meters),
            method="dynamic",
            bounds=(0.0 if K.psd else -math.inf, math.inf),
        )

    def _move(self, xp: Any, now: Estimate, a: Any, b: Any) -> None:
        """To the kernel whose forms are a, from the one whose forms by the same probes are b."""
        m = self.m
        da, db = (x - xp.sum(x, axis=1, keepdims=True) / m for x in (a, b))
        unit = aa.safe_scale(xp, da) + aa.safe_scale(xp, db)
        saa, sbb, sab = (
            xp.sum(x * y) for x, y in ((da / unit, da / unit), (db / unit, db / unit), (da / unit, db / unit))
        )
        ratio = xp.where(sbb > 0, saa / xp.where(sbb > 0, sbb, xp.ones_like(sbb)), xp.ones_like(sbb))  # P / P₋
        norm = xp.sqrt(saa * sbb)
        rho = xp.clip(
            xp.where(norm > 0, sab / xp.where(norm > 0, norm, xp.ones_like(norm)), xp.ones_like(norm)), 0.0, 1.0
        )
        omega = rho / (m * self.kappa + 1)
        w = omega * xp.sqrt(ratio)
        self.value = w * self.value + (xp.sum(a) - w * xp.sum(b)) / m
        self.kappa = omega**2 * self.kappa + (1 + omega**2 - 2 * omega * rho) / m
        kept = omega * self.df
        both = xp.stack([self.deviation * xp.sqrt(ratio), now.stderr * m**0.5])
        scale = aa.safe_scale(xp, both)
        squares = (both / scale) ** 2
        self.deviation = xp.sqrt((kept * squares[0] + now.df * squares[1]) / (kept + now.df)) * xp.sum(scale)
        self.df = kept + now.df


def _forms(K: Any, V: Any) -> Any:
    """Each block's ‖J_bᴴv_b‖² of a Gram operator, (B, m), else the forms vᴴKv, (1, m)."""
    xp, J = aa.namespace(V), K.factor
    if J is not None and can(J, "rmatmat"):
        return block_sqnorms(J, V)
    return aa.real(xp, form(xp, K, V, K.matmat(V)))[None, :]
