"""The same probes through the factors of one or several kernels: vjps alone, or jvps alone."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from traceest import _array_api as aa
from traceest.kernels.sketches.base import Sketch
from traceest.uncertainty.block_spread import block_df, block_spread, spread_of_samples
from traceest.uncertainty.doubt import CERTAIN, Doubt, several_directions
from traceest.uncertainty.estimate import Estimate
from traceest.uncertainty.moments import degrees_of_freedom
from traceest.uncertainty.ustatistics import (
    Invariant,
    Statistic,
    block_sum,
    jackknife,
    joined,
    pair_mean,
    squared_mean,
)


@dataclass
class OneSided(Sketch):
    """G_{(b,i),(c,j)} = ⟨J_bᴴs_{b,i}, J_cᴴs_{c,j}⟩ of each kernel, (B, m, B, m), in its unit.

    Of each kernel there is one such array, or several of separate runs of probes, whose products with each other are
    not known: see `OneSidedSampler`.
    """

    xp: Any
    grams: list[tuple[Any, ...]]  # of each kernel the runs'
    units: list[Any]
    fields: dict[str, Any]
    targets: list[Any]
    groups: list[Sketch] = field(default_factory=list)
    law: Invariant | None = None
    doubt: Doubt = CERTAIN

    @property
    def sizes(self) -> list[int]:
        """Probes of each run."""
        return [G.shape[1] for G in self.grams[0]]

    @property
    def left_with_a_pair(self) -> bool:
        """With three probes of one block, where i = j tells nothing."""
        return self.law is None and self.sizes == [3] and self.grams[0][0].shape[0] == 1

    def forms(self, a: int) -> Any:
        """‖J_bᴴs_{b,i}‖², (B, m)."""
        return aa.concat_columns(self.xp, [self._diagonal(G) for G in self.grams[a]])

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
        """Tr K_aK_b from both Gram arrays of one run."""
        xp = self.xp
        H = aa.abs2(xp, Ga) if Ga is Gb else aa.real(xp, aa.conj(xp, Ga) * Gb)
        forms = None if self.law is None else (self._diagonal(Ga), self._diagonal(Gb))
        found = pair_mean(xp, H, forms, self.law)
        size = xp.max(xp.abs(Ga)) * (xp.max(xp.abs(Gb)))
        return found.of_something(xp, size, Ga is Gb)

    def _pairs(self, of_a: tuple[Any, ...], of_b: tuple[Any, ...]) -> Statistic:
        """Tr K_aK_b from all runs."""
        return joined(self.xp, [self.pairs(Ga, Gb) for Ga, Gb in zip(of_a, of_b, strict=True)], self.sizes)

    def _product(self, a: int, b: int) -> Statistic:
        """The U-statistic of G_a∘G_b."""
        return self._spreading(self._pairs(self.grams[a], self.grams[b]), lambda: (self.spread(a) + self.spread(b)) / 2)

    def _squared_distance(self, a: int, b: int) -> tuple[Statistic, Any]:
        """The U-statistic of |G_a − G_b|², in the larger unit."""
        unit = self.xp.maximum(self.units[a], self.units[b])
        s, t = self.units[a] / unit, self.units[b] / unit
        difference = tuple(Ga * s - Gb * t for Ga, Gb in zip(self.grams[a], self.grams[b], strict=True))
        of = lambda: self.xp.maximum(self.spread(a), self.spread(b))  # noqa: E731
        return self._spreading(self._pairs(difference, difference), of), unit

    def spread(self, a: int) -> Any:
        """ρ², (B,), of the squared lengths of the blocks' sketches, as far as the norm is concerned."""
        return self._once("spread", lambda a, _: self._spread(a), a, a)

    def _spread(self, a: int) -> Any:
        """Of a mean over all probes: each run's share in it, squared, times its own."""
        total = sum(self.sizes)
        of_runs = [(G.shape[1] / total) ** 2 * block_spread(self.xp, G, self._diagonal(G)) for G in self.grams[a]]
        return sum(of_runs[1:], start=of_runs[0])

    def _spreading(self, s: Statistic, spread: Callable[[], Any]) -> Statistic:
        """With the blocks' ρ² and its degrees of freedom, where probes are enough for one to be left out."""
        if s.left_out is None:
            return s
        squares = spread()
        return s.spreading(squares, self.xp.ones_like(squares) * block_df(sum(self.sizes)))

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
        """Whether the sketches of every kernel have several directions within a block, in some run."""
        of_kernels = [functools.reduce(operator.or_, map(self._several, of_runs)) for of_runs in self.grams]
        return functools.reduce(operator.and_, of_kernels)

    def _several(self, G: Any) -> Any:
        own = self.xp.linalg.diagonal(self.xp.permute_dims(G, (1, 3, 0, 2)))  # (m, m, B)
        return several_directions(self.xp, self.xp.permute_dims(own, (2, 0, 1)))


class Run(NamedTuple):
    """What one run of probes gave: Gram arrays, (B, m + extra, B, m + extra), and the means 1ᵀs/n of the probes.

    `grams[a][g]` is of kernel a and group g, the whole kernel last; `means`, (B, m), is None where K is not centred.
    """

    grams: list[list[Any]]
    means: Any


@dataclass
class Grams:
    """What the probes gave, before anything is computed from it: all that follows can be one program (`fused`).

    ‖YYᴴ‖ is there where there are targets.
    """

    xp: Any
    runs: list[Run]
    target_norm: Any
    sizes: tuple[int, ...]
    fields: dict[str, Any]
    law: Invariant | None
    doubt: Doubt

    @property
    def like(self) -> Any:
        """An array of the framework."""
        return self.runs[0].grams[0][0]

    def parts(self) -> tuple[Any, Any]:
        """The arrays, and the rest, which is hashable."""
        runs = [tuple(run) for run in self.runs]
        return (runs, self.target_norm), (self.sizes, tuple(self.fields.items()), self.law, self.doubt)

    @classmethod
    def of_parts(cls, arrays: Any, static: Any) -> OneSided:
        """The sketch of these parts."""
        (runs, target_norm), (sizes, fields, law, doubt) = arrays, static
        runs = [Run(*run) for run in runs]
        xp = aa.namespace(runs[0].grams[0][0])
        return cls(xp, runs, target_norm, sizes, dict(fields), law, doubt).sketch()

    def sketch(self) -> OneSided:
        """Units taken out, and the columns that were not drawn turned into what they are for."""
        whole, *parts = (self._of_group(g) for g in range(-1, len(self.runs[0].grams[0]) - 1))
        for part in parts:
            whole.groups.append(replace(part, grams=part.grams + whole.grams, units=part.units + whole.units))
        return whole

    def _of_group(self, g: int) -> OneSided:
        xp, kept, units, targets = self.xp, [], [], []
        for a in range(len(self.runs[0].grams)):
            arrays = [run.grams[a][g] for run in self.runs]
            scale = aa.safe_scale(xp, arrays[0])
            for G in arrays[1:]:
                scale = xp.maximum(scale, aa.safe_scale(xp, G))
            arrays = [G / scale for G in arrays]
            of_runs = zip(arrays, self.runs, self.sizes, strict=True)
            kept.append(
                tuple(G[:, :m, :, :m] if r.means is None else _centred(xp, G, r.means, m) for G, r, m in of_runs)
            )
            units.append(xp.sum(scale))
            if self.target_norm is not None:
                first = self.sizes[0] + int(self.runs[0].means is not None)
                Y = xp.sum(arrays[0][:, first:, :, first:], axis=(0, 2))
                targets.append(aa.real(xp, xp.sum(xp.linalg.diagonal(Y))) / self.target_norm)
        return OneSided(xp, kept, units, self.fields, targets, law=self.law, doubt=self.doubt)


def _centred(xp: Any, G: Any, sigma: Any, m: int) -> Any:
    """⟨g_p − σ_p c, g_q − σ_q c⟩ with σ = 1ᵀs/n, (B, m), and c = Jᴴ1, whose blocks are G's column m."""
    w = xp.sum(G[:, :m, :, m], axis=2)  # ⟨g_p, c⟩
    square = xp.sum(G[:, m, :, m])  # ‖c‖², half of which goes with each of the two mixed terms
    mixed = (w - aa.conj(xp, sigma) * (square / 2))[:, :, None, None] * sigma[None, None, :, :]
    return G[:, :m, :, :m] - mixed - aa.conj(xp, xp.permute_dims(mixed, (2, 3, 0, 1)))
