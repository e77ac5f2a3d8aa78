"""Statistics of kernels as functions of a sketch's unbiased ingredients."""

from __future__ import annotations

import math
from typing import Any

from traceest import _array_api as aa
from traceest.kernels.sketches import Sketch
from traceest.uncertainty.estimate import Estimate


def trace(s: Sketch, a: int, psd: bool = True) -> Estimate:
    """Tr K_a, which is not negative of a positive semidefinite one."""
    return s.estimate(s.trace(a), s.units[a], bounds=(0.0 if psd else -math.inf, math.inf))


def frobenius_norm(s: Sketch, a: int) -> Estimate:
    """‖K_a‖."""
    return s.estimate(s.product(a, a).map(lambda f: aa.root(s.xp, f)), s.units[a], bounds=(0.0, math.inf))


def effective_rank(s: Sketch, a: int, largest: float, psd: bool = True) -> Estimate:
    """(tr K_a)² / ‖K_a‖², which is between 1 (0 of an indefinite one) and `largest`."""
    rank = s.squared_trace(a).map(lambda t, f: _ratio(s.xp, t, f), s.product(a, a))
    return s.estimate(rank, bounds=(1.0 if psd else 0.0, largest))


def inner_product(s: Sketch, a: int, b: int, low: float) -> Estimate:
    """⟨K_a, K_b⟩."""
    return s.estimate(s.product(a, b), s.units[a] * s.units[b], bounds=(low, math.inf))


def alignment(s: Sketch, a: int, b: int, psd: bool) -> Estimate:
    """⟨K_a, K_b⟩ / (‖K_a‖ ‖K_b‖)."""
    xp = s.xp

    def cosine(p: Any, f: Any, g: Any) -> Any:
        return _ratio(xp, p, aa.root(xp, f) * aa.root(xp, g))

    found = s.product(a, b).map(cosine, s.product(a, a), s.product(b, b))
    if s.left_with_a_pair and a != b:
        found = found._replace(left_out=None)
    return s.estimate(found._replace(compares=True), bounds=(0.0 if psd else -1.0, 1.0))


def relative_distance(s: Sketch, a: int, b: int) -> Estimate:
    """‖K_a − K_b‖ / ‖K_b‖."""
    xp, (squared, unit) = s.xp, s.squared_distance(a, b)
    ratio = squared.map(lambda d, f: _ratio(xp, aa.root(xp, d), aa.root(xp, f)), s.product(b, b))
    return s.estimate(ratio._replace(compares=True), unit / s.units[b], bounds=(0.0, math.inf))


def target_alignment(s: Sketch, a: int, psd: bool) -> Estimate:
    """⟨K_a, YYᴴ⟩ / (‖K_a‖ ‖YYᴴ‖), its numerator exact."""
    xp = s.xp
    cosine = s.product(a, a).map(lambda f: _ratio(xp, s.targets[a], aa.root(xp, f)))
    return s.estimate(cosine, bounds=(0.0 if psd else -1.0, 1.0))


def trace_change(s: Sketch, a: int, b: int) -> Estimate:
    """Tr K_a − tr K_b."""
    x, y, unit = _shares(s, a, b)
    change = s.trace(a).map(lambda t, u: t * x - u * y, s.trace(b))
    return s.estimate(change._replace(compares=True), unit)


def frobenius_norm_change(s: Sketch, a: int, b: int) -> Estimate:
    """‖K_a‖ − ‖K_b‖."""
    x, y, unit = _shares(s, a, b)
    change = s.product(a, a).map(lambda f, g: aa.root(s.xp, f) * x - aa.root(s.xp, g) * y, s.product(b, b))
    return s.estimate(change._replace(compares=True), unit)


def effective_rank_change(s: Sketch, a: int, b: int) -> Estimate:
    """The difference of (tr K)² / ‖K‖²."""

    def change(t: Any, f: Any, u: Any, g: Any) -> Any:
        return _ratio(s.xp, t, f) - _ratio(s.xp, u, g)

    found = s.squared_trace(a).map(change, s.product(a, a), s.squared_trace(b), s.product(b, b))
    return s.estimate(found._replace(compares=True))


def _shares(s: Sketch, a: int, b: int) -> tuple[Any, Any, Any]:
    """The units of both in the larger one, and that."""
    unit = s.xp.maximum(s.units[a], s.units[b])
    return s.units[a] / unit, s.units[b] / unit, unit


def _ratio(xp: Any, a: Any, b: Any) -> Any:
    """a/b, and NaN where b is not positive (the zero kernel has no rank and no direction)."""
    positive = b > 0
    return xp.where(positive, a / xp.where(positive, b, xp.ones_like(b)), xp.ones_like(b) * math.nan)
