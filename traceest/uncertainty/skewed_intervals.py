"""How far a statistic would be off if the probes of one block had been unlucky: intervals that are not symmetric.

A quadratic form of few large eigenvalues is skewed to the right, so that most of its means are too small, and the
smaller they are the smaller is the standard error that their spread tells. What does not depend on how lucky the probes
were is the *relative* spread ρ of a block, and of ‖J_bᴴs‖² the logarithm is nearly symmetric: the interval of a block
by itself is its mean times φ = exp(±tρ), with Student's t. Where one block holds most of a statistic that is the
statistic's interval too; where none does, one block moves it by less than all of them together do. So the interval
reaches to whatever a single block, rescaled so, would make of the statistic, and no less far than the standard error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from traceest import _array_api as aa

LEVELS = (0.0, 0.5, 0.68, 0.8, 0.9, 0.95, 0.975, 0.99, 0.995, 0.999)
"""Confidences for which the reach is kept; others are interpolated."""

SCORES = tuple(NormalDist().inv_cdf(0.5 + c / 2) for c in LEVELS)

FURTHEST = 8.0
"""Largest tρ: with one or two degrees of freedom t is of no use any more."""


class Rescaling(NamedTuple):
    """What a statistic is with the squared lengths of one block's sketches times φ, and how uncertain these are."""

    at: Callable[[Any], Any]  # (…, B) factors φ to (…, B) values, each with its own block rescaled and no other
    spread: Any = None  # ρ², (B,), or None where it is not known
    df: Any = None  # of ρ, (B,)

    def larger(self, other: Rescaling) -> Rescaling:
        """Itself, with the larger spread of the two for each block."""
        if self.spread is None:
            return self._replace(spread=other.spread, df=other.df)
        if other.spread is None:
            return self
        xp, more = aa.namespace(self.spread), other.spread > self.spread
        spread = xp.where(more, other.spread, self.spread)
        return self._replace(spread=spread, df=xp.where(more, other.df, self.df))


def reach(xp: Any, value: Any, rescaling: Rescaling | None, size: Any = 1.0) -> Any:
    """`size` times the least and the greatest value with one block rescaled by exp(±tρ), (2, levels)."""
    if rescaling is None or rescaling.spread is None:
        return None
    log_factors = student(xp, rescaling.df) * aa.root(xp, rescaling.spread)
    log_factors = xp.where(log_factors < FURTHEST, log_factors, FURTHEST)
    ends = xp.stack([rescaling.at(xp.exp(log_factors)), rescaling.at(xp.exp(-log_factors))])
    ends = xp.where(xp.isnan(ends), value, ends)
    ends = xp.stack([xp.min(ends, axis=(0, 2)), xp.max(ends, axis=(0, 2))])
    return xp.concat([xp.zeros_like(ends[:, :1]) + value, ends], axis=1) * size


def student(xp: Any, df: Any) -> Any:
    """Student's quantiles from the normal ones (Wallace 1959) at all levels but the first, which is 0: (levels − 1, B).

    Within 7 % up to 97.5 % for df ≥ 2, and short of it below.
    """
    z2 = xp.asarray([[z * z] for z in SCORES[1:]], dtype=df.dtype, device=aa.device(df))
    c = (df - 5 / 6) / (df - 2 / 3 + 0.1 / df) ** 2
    return xp.sqrt(df) * aa.root(xp, xp.exp(z2 * xp.where(c > 0, c, 0.0)) - 1)


def relative_spread(xp: Any, mean: Any, variance: Any) -> Any:
    """ρ² of a mean that cannot be negative, and 0 where there is nothing."""
    positive = mean > 0
    return xp.where(positive, variance / xp.where(positive, mean, 1.0) ** 2, 0.0)


def at_level(reach: np.ndarray, confidence: float) -> np.ndarray:
    """The reach at one confidence, its last axis gone: linear in the normal score between two levels."""
    z = min(NormalDist().inv_cdf(0.5 + confidence / 2), SCORES[-1])
    i = next(i for i in range(1, len(SCORES)) if z <= SCORES[i] + 1e-12)
    w = (z - SCORES[i - 1]) / (SCORES[i] - SCORES[i - 1])
    w = 1.0 if math.isclose(w, 1.0) else w
    return (1 - w) * reach[..., i - 1] + w * reach[..., i]


def joined(xp: Any, weights: list[float], values: list[Any], reaches: list[Any]) -> Any:
    """The reach of a weighted mean of independent estimates: what each may be off, added in quadrature."""
    if all(r is None for r in reaches):
        return None
    value = sum(w * v for w, v in zip(weights, values, strict=True))
    off = [w * (r - v[..., None, None]) for w, v, r in zip(weights, values, reaches, strict=True) if r is not None]
    stacked = xp.stack(off)
    scale = aa.safe_scale(xp, stacked)
    total = aa.root(xp, xp.sum((stacked / scale) ** 2, axis=0)) * xp.sum(scale)
    low, high = value[..., None] - total[..., 0, :], value[..., None] + total[..., 1, :]
    return xp.stack([low, high], axis=-2)
