"""Products v ↦ K_a v of one or several kernels: plain, or leaving one probe out of a low-rank part of all of them.

Every inner product ⟨K_a, K_b⟩ = tr C, C = K_aᴴK_b, is estimated like a trace by XTrace, tr(Q₍ᵢ₎ᴴCQ₍ᵢ₎) + uᵢᴴCuᵢ, since
K_aQ and K_bQ, which the traces need, give QᴴCQ as well, and K_aω and K_bω the rest: one basis, of the mixture
Σ K_aω/‖K_aΩ‖∞, serves them all. What leaving one or two out makes of a trace or product is kept divided by k, about the
mean; a smooth function of these values is linear there, and the error of the function is that of a mean.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from traceest import _array_api as aa
from traceest.kernels.sketches.base import Sketch
from traceest.uncertainty.block_spread import spread_of_samples
from traceest.uncertainty.doubt import CERTAIN, Doubt, several_directions
from traceest.uncertainty.estimate import Estimate
from traceest.uncertainty.leave_out import Basis, LeftOut
from traceest.uncertainty.ustatistics import Statistic, block_sum, jackknife, squared_mean


@dataclass
class Plain(Sketch):
    """V and K_aV, each in its unit: independent samples."""

    xp: Any
    V: Any
    KV: list[Any]
    units: list[Any]
    fields: dict[str, Any]
    targets: list[Any]
    groups: list[Sketch] = field(default_factory=list)
    doubt: Doubt = CERTAIN

    @property
    def like(self) -> Any:
        """An array of the framework."""
        return self.V

    def parts(self) -> tuple[Any, Any]:
        """The arrays, and the rest, which is hashable."""
        return (self.KV, self.V, self.units, self.targets), (tuple(self.fields.items()), self.doubt)

    @classmethod
    def of_parts(cls, arrays: Any, static: Any) -> Plain:
        """The sketch of these parts."""
        (KV, V, units, targets), (fields, doubt) = arrays, static
        return cls(aa.namespace(V), V, KV, units, dict(fields), targets, doubt=doubt)

    def forms(self, a: int) -> Any:
        """VᴴK_aV, (1, m)."""
        return aa.real(self.xp, aa.vdot(self.xp, self.V, self.KV[a]))[None, :]

    def trace(self, a: int) -> Statistic:
        """Mean vᴴK_av."""
        return block_sum(self.xp, self.forms(a))

    def squared_trace(self, a: int) -> Statistic:
        """The trace's square less its variance."""
        return squared_mean(self.xp, self.forms(a))

    def _product(self, a: int, b: int) -> Statistic:
        """Mean ⟨K_av, K_bv⟩."""
        samples = aa.real(self.xp, aa.vdot(self.xp, self.KV[a], self.KV[b]))[None, :]
        mean = block_sum(self.xp, samples)
        return spread_of_samples(self.xp, mean, samples) if a == b else mean

    def _squared_distance(self, a: int, b: int) -> tuple[Statistic, Any]:
        """Mean ‖K_av − K_bv‖², in the larger unit."""
        unit = self.xp.maximum(self.units[a], self.units[b])
        difference = self.KV[a] * (self.units[a] / unit) - self.KV[b] * (self.units[b] / unit)
        return block_sum(self.xp, self.xp.sum(aa.abs2(self.xp, difference), axis=0)[None, :]), unit

    def example_traces(self, a: int) -> Estimate | None:
        """None: products with K do not tell examples apart."""
        return None

    def estimate(self, statistic: Statistic, size: Any = 1.0, **fields: Any) -> Estimate:
        """With the error of a mean, by the jackknife."""
        proportional = self.doubt.alike and statistic.compares and self._once("directions", self._directions, 0, 0)
        return jackknife(self.xp, statistic, size, doubt=self.doubt, proportional=proportional, **self.fields, **fields)

    def _directions(self, *_: int) -> Any:
        """Whether the sketches of every kernel have several directions."""
        xp = self.xp
        return functools.reduce(operator.and_, [several_directions(xp, aa.adjoint(xp, X) @ X) for X in self.KV])


@dataclass
class LowRank(Sketch):
    """Ω, K_aΩ and K_aQ, each in its kernel's unit, and the basis Q of all, Q and R of their mixture."""

    xp: Any
    Omega: Any
    Y: list[Any]
    Z: list[Any]
    Q: Any
    R: Any
    normalise: bool
    units: list[Any]
    fields: dict[str, Any]
    targets: list[Any]
    groups: list[Sketch] = field(default_factory=list)

    @property
    def like(self) -> Any:
        """An array of the framework."""
        return self.Omega

    def parts(self) -> tuple[Any, Any]:
        """The arrays, and the rest, which is hashable."""
        arrays = self.Y, self.Z, self.Omega, self.Q, self.R, self.units, self.targets
        return arrays, (self.normalise, tuple(self.fields.items()))

    @classmethod
    def of_parts(cls, arrays: Any, static: Any) -> LowRank:
        """The sketch of these parts."""
        (Y, Z, Omega, Q, R, units, targets), (normalise, fields) = arrays, static
        return cls(aa.namespace(Omega), Omega, Y, Z, Q, R, normalise, units, dict(fields), targets)

    @cached_property
    def basis(self) -> Basis:
        """What leaving out makes of it."""
        return Basis.of(self.xp, self.Omega, self.Q, self.R)

    def trace(self, a: int) -> Statistic:
        """XTrace of C = K_a."""
        xp, Qh = self.xp, aa.adjoint(self.xp, self.Q)
        r, t, H = Qh @ self.Y[a], aa.adjoint(xp, self.Z[a]) @ self.Omega, Qh @ self.Z[a]
        return self._statistic(aa.vdot(xp, self.Omega, self.Y[a]), r, t, H)

    def squared_trace(self, a: int) -> Statistic:
        """The square less its bias, the variance of the trace."""
        t = self.trace(a)
        variance = self.estimate(t).stderr ** 2
        return t.map(lambda x: x**2 - variance)

    def _product(self, a: int, b: int) -> Statistic:
        """XTrace of C = K_aᴴK_b."""
        return self._inner(self.Y[a], self.Z[a], self.Y[b], self.Z[b])

    def _squared_distance(self, a: int, b: int) -> tuple[Statistic, Any]:
        """XTrace of C = DᴴD, D = K_a − K_b, in the larger unit."""
        unit = self.xp.maximum(self.units[a], self.units[b])
        s, t = self.units[a] / unit, self.units[b] / unit
        Y, Z = (X[a] * s - X[b] * t for X in (self.Y, self.Z))
        return self._inner(Y, Z, Y, Z), unit

    def example_traces(self, a: int) -> Estimate | None:
        """None: products with K do not tell examples apart."""
        return None

    def estimate(self, statistic: Statistic, size: Any = 1.0, **fields: Any) -> Estimate:
        """With the leave-two-out error of `traceest.uncertainty.leave_out`."""
        xp, value, k = self.xp, statistic.value, self.Omega.shape[1]
        d = (statistic.left_out - value) * k
        left_out = LeftOut(value + d[:, 0], value + d[:, 1:], xp.abs(value))
        e = left_out.estimate(xp, 1.0, **self.fields, **fields)
        return Estimate(value * size, e.stderr * size, e.df, None, **self.fields, **fields)

    def _inner(self, Ya: Any, Za: Any, Yb: Any, Zb: Any) -> Statistic:
        """Tr C of C = K_aᴴK_b: QᴴCΩ, QᴴCᴴΩ and QᴴCQ from the products with Q."""
        xp, Zah = self.xp, aa.adjoint(self.xp, Za)
        return self._statistic(aa.vdot(xp, Ya, Yb), Zah @ Yb, aa.adjoint(xp, Zb) @ Ya, Zah @ Zb)

    def _statistic(self, forms: Any, r: Any, t: Any, H: Any) -> Statistic:
        xp, k = self.xp, self.Omega.shape[1]
        left_out = self.basis.traces(xp, forms, r, t, H, self.normalise).real(xp)
        value = xp.sum(left_out.one) / k
        both = aa.concat_columns(xp, [left_out.one[:, None], left_out.two])
        return Statistic(value, value + (both - value) / k)
