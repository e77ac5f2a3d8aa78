"""The same probes through the factors of one or several kernels: vjps alone, or jvps alone."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from traceest import _array_api as aa
from traceest import _validation as check
from traceest.kernels.sketches.base import Sketch
from traceest.kernels.sketches.request import Request
from traceest.operators.base import Derived
from traceest.operators.blocks import grouped_gram, n_blocks
from traceest.operators.layout import layout
from traceest.operators.metering import Meter
from traceest.probes import Probes, of_pairs
from traceest.uncertainty.block_spread import block_df, block_spread, spread_of_samples
from traceest.uncertainty.doubt import CERTAIN, Doubt, several_directions
from traceest.uncertainty.estimate import Estimate
from traceest.uncertainty.moments import degrees_of_freedom
from traceest.uncertainty.ustatistics import (
    Invariant,
    Statistic,
    block_sum,
    jackknife,
    pair_mean,
    squared_mean,
)


@dataclass
class OneSided(Sketch):
    """G_{(b,i),(c,j)} = ⟨J_bᴴs_{b,i}, J_cᴴs_{c,j}⟩ of each kernel, (B, m, B, m), in its unit."""

    xp: Any
    grams: list[Any]
    units: list[Any]
    fields: dict[str, Any]
    targets: list[Any]
    groups: list[Sketch] = field(default_factory=list)
    law: Invariant | None = None
    doubt: Doubt = CERTAIN

    @property
    def left_with_a_pair(self) -> bool:
        """With three probes of one block, where i = j tells nothing."""
        return self.law is None and self.grams[0].shape[:2] == (1, 3)

    def forms(self, a: int) -> Any:
        """‖J_bᴴs_{b,i}‖², (B, m)."""
        return self._diagonal(self.grams[a])

    def _diagonal(self, G: Any) -> Any:
        B, m = G.shape[:2]
        G = self.xp.reshape(G, (B * m, B * m))
        return aa.real(self.xp, self.xp.reshape(self.xp.linalg.diagonal(G), (B, m)))

    def trace(self, a: int) -> Statistic:
        """Σ_b mean_i ‖J_bᴴs_{b,i}‖²."""
        forms = self.forms(a)
        return spread_of_samples(self.xp, block_sum(self.xp, forms), forms)

    def squared_trace(self, a: int) -> Statistic:
        """The trace's square less its variance."""
        return self._spreading(squared_mean(self.xp, self.forms(a)), lambda: self.spread(a))

    def pairs(self, Ga: Any, Gb: Any) -> Statistic:
        """Tr K_aK_b from both Gram arrays."""
        xp = self.xp
        H = aa.abs2(xp, Ga) if Ga is Gb else aa.real(xp, aa.conj(xp, Ga) * Gb)
        forms = None if self.law is None else (self._diagonal(Ga), self._diagonal(Gb))
        found = pair_mean(xp, H, forms, self.law)
        size = xp.max(xp.abs(Ga)) * (xp.max(xp.abs(Gb)))
        return found.of_something(xp, size, Ga is Gb)

    def _product(self, a: int, b: int) -> Statistic:
        """The U-statistic of G_a∘G_b."""
        return self._spreading(self.pairs(self.grams[a], self.grams[b]), lambda: (self.spread(a) + self.spread(b)) / 2)

    def _squared_distance(self, a: int, b: int) -> tuple[Statistic, Any]:
        """The U-statistic of |G_a − G_b|², in the larger unit."""
        unit = self.xp.maximum(self.units[a], self.units[b])
        difference = self.grams[a] * (self.units[a] / unit) - self.grams[b] * (self.units[b] / unit)
        of = lambda: self.xp.maximum(self.spread(a), self.spread(b))  # noqa: E731
        return self._spreading(self.pairs(difference, difference), of), unit

    def spread(self, a: int) -> Any:
        """ρ², (B,), of the squared lengths of the blocks' sketches, as far as the norm is concerned."""
        return self._once("spread", lambda a, _: block_spread(self.xp, self.grams[a], self.forms(a)), a, a)

    def _spreading(self, s: Statistic, spread: Callable[[], Any]) -> Statistic:
        """With the blocks' ρ² and its degrees of freedom, where probes are enough for one to be left out."""
        if s.left_out is None:
            return s
        squares = spread()
        return s.spreading(squares, self.xp.ones_like(squares) * block_df(self.grams[0].shape[1]))

    def example_traces(self, a: int) -> Estimate | None:
        """mean_i ‖J_bᴴs_{b,i}‖² of every block."""
        xp, x = self.xp, self.forms(a)
        m = x.shape[1]
        mean = xp.sum(x, axis=1, keepdims=True) / m
        squares = aa.abs2(xp, x - mean)
        stderr = aa.root(xp, xp.sum(squares, axis=1) / (m * max(m - 1, 1)))
        stderr = stderr if m > 1 else stderr * math.nan
        df = degrees_of_freedom(xp, squares)
        return Estimate(
            mean[:, 0] * self.units[a], stderr * self.units[a], df, None, bounds=(0.0, math.inf), **self.fields
        )

    def estimate(self, statistic: Statistic, size: Any = 1.0, **fields: Any) -> Estimate:
        """With the delete-one jackknife."""
        proportional = self.doubt.alike and statistic.compares and self._once("directions", self._directions, 0, 0)
        return jackknife(self.xp, statistic, size, doubt=self.doubt, proportional=proportional, **self.fields, **fields)

    def _directions(self, *_: int) -> Any:
        """Whether the sketches of every kernel have several directions within a block."""
        xp = self.xp
        own = (xp.linalg.diagonal(xp.permute_dims(G, (1, 3, 0, 2))) for G in self.grams)  # (m, m, B)
        return functools.reduce(operator.and_, [several_directions(xp, xp.permute_dims(G, (2, 0, 1))) for G in own])


@dataclass
class Grams:
    """What the probes gave, before anything is computed from it: all that follows can be one program (`fused`).

    Gram arrays of all columns, (B, m + extra, B, m + extra), of every group of every kernel, the whole last; the means
    1ᵀs/n of the probes where K is to be centred, and ‖YYᴴ‖ where there are targets.
    """

    xp: Any
    grams: list[list[Any]]
    means: Any  # (B, m)
    target_norm: Any
    m: int
    fields: dict[str, Any]
    law: Invariant | None
    doubt: Doubt

    @property
    def like(self) -> Any:
        """An array of the framework."""
        return self.grams[0][0]

    def parts(self) -> tuple[Any, Any]:
        """The arrays, and the rest, which is hashable."""
        return (self.grams, self.means, self.target_norm), (self.m, tuple(self.fields.items()), self.law, self.doubt)

    @classmethod
    def of_parts(cls, arrays: Any, static: Any) -> OneSided:
        """The sketch of these parts."""
        (grams, means, target_norm), (m, fields, law, doubt) = arrays, static
        return cls(aa.namespace(grams[0][0]), grams, means, target_norm, m, dict(fields), law, doubt).sketch()

    def sketch(self) -> OneSided:
        """Units taken out, and the columns that were not drawn turned into what they are for."""
        whole, *parts = (self._of_group(g) for g in range(-1, len(self.grams[0]) - 1))
        for part in parts:
            whole.groups.append(replace(part, grams=part.grams + whole.grams, units=part.units + whole.units))
        return whole

    def _of_group(self, g: int) -> OneSided:
        xp, m, kept, units, targets = self.xp, self.m, [], [], []
        first_target = m if self.means is None else m + 1
        for G in (of_kernel[g] for of_kernel in self.grams):
            scale = aa.safe_scale(xp, G)
            G = G / scale
            kept.append(G[:, :m, :, :m] if self.means is None else _centred(xp, G, self.means, m))
            units.append(xp.sum(scale))
            if self.target_norm is not None:
                Y = xp.sum(G[:, first_target:, :, first_target:], axis=(0, 2))
                targets.append(aa.real(xp, xp.sum(xp.linalg.diagonal(Y))) / self.target_norm)
        return OneSided(xp, kept, units, self.fields, targets, law=self.law, doubt=self.doubt)


def one_sided(Ks: list[Any], request: Request) -> Grams:
    """Send the probes, and what else was asked for, through every factor.

    Centred, s is replaced by Hs: JᴴHs_{b,i} = g_{b,i} − (1ᵀs_{b,i}/n) Jᴴ1, so that one more column, the ones, gives the
    Gram matrix of the centred sketches without a difference of large numbers.
    """
    caller, Js, forward = request.caller, [K.factor for K in Ks], False
    if not all(hasattr(J, "rmatmat") for J in Js):
        if len(Js) > 1 or request.n_extra or request.groups:
            check.require_side(next(J for J in Js if not hasattr(J, "rmatmat")), "rmatmat", caller)
        J = Js[0]  # JᴴJ has the same trace and norm as JJᴴ, and its vjps are J's jvps
        Js, forward = [Derived((J.shape[1], J.shape[0]), like=J, rmatmat=J.matmat)], True
    counts = {n_blocks(J) for J in Js}
    # Kernels that tell different blocks apart share probes, not blocks: all of them are one block then.
    B, n = counts.pop() if len(counts) == 1 else 1, Js[0].shape[0]
    xp, meters, m = aa.namespace(Js[0]), [Meter(J) for J in Js], request.n_drawn(2)
    check.check_probes(request.probes, n, Js[0], caller)
    rows = layout(Js[0], B)
    distribution, probes = request.distribution or of_pairs(rows), request.probes
    stream = Probes(n, Js[0], rng=request.rng, distribution=distribution, n_blocks=B, layout=rows, probes=probes)
    V = stream.take(m)
    known = probes is None or request.distribution is not None
    law = Invariant.of(distribution, n // B, aa.is_complex(xp, V.dtype)) if known else None
    extra = request.extra_columns(xp, Js[0])
    columns = V if extra is None else aa.concat_columns(xp, [V, extra])
    per_kernel = [_grams(xp, meter.op, columns, B, request.groups) for meter in meters]
    spent = {"n_matvecs": sum(k.n_matvecs for k in meters), "n_rmatvecs": sum(k.n_rmatvecs for k in meters)}
    if forward:
        spent = {"n_matvecs": spent["n_rmatvecs"], "n_rmatvecs": spent["n_matvecs"]}
    fields: dict[str, Any] = {"method": "block U-statistic" if B > 1 else "U-statistic", **spent}
    means = xp.sum(xp.reshape(V, (B, n // B, m)), axis=1) / n if request.centred else None
    return Grams(xp, per_kernel, means, request.target_norm, m, fields, law, stream.doubt_of_pairs(known))


def _grams(xp: Any, J: Any, V: Any, B: int, groups: Any) -> list[Any]:
    """The Gram arrays of every group and, last, of all columns."""
    found = grouped_gram(J, V, groups)
    return [_as_blocks(xp, G, B) for G in found]


def _as_blocks(xp: Any, G: Any, B: int) -> Any:
    """G of more blocks than B = 1 summed over them: the Gram matrix of the sums of the blocks' sketches."""
    return G if G.shape[0] == B else xp.sum(G, axis=(0, 2))[None, :, None, :]


def _centred(xp: Any, G: Any, sigma: Any, m: int) -> Any:
    """⟨g_p − σ_p c, g_q − σ_q c⟩ with σ = 1ᵀs/n, (B, m), and c = Jᴴ1, whose blocks are G's column m."""
    w = xp.sum(G[:, :m, :, m], axis=2)  # ⟨g_p, c⟩
    square = xp.sum(G[:, m, :, m])  # ‖c‖², half of which goes with each of the two mixed terms
    mixed = (w - aa.conj(xp, sigma) * (square / 2))[:, :, None, None] * sigma[None, None, :, :]
    return G[:, :m, :, :m] - mixed - aa.conj(xp, xp.permute_dims(mixed, (2, 3, 0, 1)))
