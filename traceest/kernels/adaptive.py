"""A statistic from a fixed budget, or to a tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from traceest.adaptive import Target
from traceest.kernels.sketches import Request, by_blocks, by_columns, exact_cost, fused, route, sketch
from traceest.kernels.sketches.two_sided import LOW_RANK_FROM
from traceest.probes.sources import mark_of
from traceest.uncertainty.estimate import Estimate, told

FIRST = 4
"""Probes of the first look beyond those that are not drawn; the jackknife needs three."""

GROWTH = 4
"""Most that a two-sided look may ask for, in times of the last one's: a low-rank part may leave less by orders."""


def answer(Ks: list[Any], request: Request, statistic: Callable[..., Estimate], *options: Any) -> Estimate:
    """`statistic` of a sketch of the kernels, on whichever side of their factor takes fewer products.

    It is given the sketch and the options, which are hashable.
    """
    request = request.checked()
    K, Ks, marks = Ks[0], by_blocks(Ks, request), marks_of(request)
    if request.rtol is None:
        return told(fused(statistic, sketch(Ks, request), *options), request.caller, K, marks)
    narrow = by_columns(Ks, request)
    e = told(_grown(narrow, request, statistic, options), request.caller, K, marks)
    # The products of the dual are those of J with the sides exchanged.
    return e if narrow is Ks else replace(e, n_matvecs=e.n_rmatvecs, n_rmatvecs=e.n_matvecs)


def marks_of(request: Request) -> tuple[str, ...]:
    """The marks of the probes that are going to be drawn."""
    mark = mark_of(request.rng, request.probes)
    return () if mark is None else (f"{request.distribution}:{mark}",)


def _grown(Ks: list[Any], request: Request, statistic: Callable[..., Estimate], options: tuple[Any, ...]) -> Estimate:
    """To a tolerance.

    Each look predicts how many probes it takes from how the interval has shrunk since the one before, until it is
    inside; at the exact answer's cost that is taken. A sketch pairs every probe with every other, so it is made anew,
    and what all looks have spent is counted.
    """
    # As for traces: at half the error probability, since there may be several looks.
    target, exact = Target(request.rtol or 0.0, 0.0, 0.95), exact_cost(Ks, request)
    two_sided = route(Ks, request) == "two-sided"
    if request.limit is None:  # room to end with the exact answer whatever was sampled before
        most = 2 * exact + FIRST
        request = replace(request, n_matvecs=most) if two_sided else replace(request, n_probes=most)
    limit, n_matvecs, n_rmatvecs = request.limit or exact, 0, 0
    m = min((LOW_RANK_FROM if two_sided else FIRST) + request.n_extra, limit)
    looks: list[tuple[int, float]] = []
    while True:
        e = fused(statistic, sketch(Ks, request.with_budget(m)), *options)
        n_matvecs, n_rmatvecs = n_matvecs + e.n_matvecs, n_rmatvecs + e.n_rmatvecs
        e = replace(e, converged=target.met_by(e), n_matvecs=n_matvecs, n_rmatvecs=n_rmatvecs)
        left = limit - max(n_matvecs, n_rmatvecs) // len(Ks)
        if e.converged or e.exact or left < 1:
            return e
        students = replace(e, reach=None)  # what one block may reach shrinks far faster than what they all do
        looks.append((m, target.half(students)))
        needed = target.samples(students, m, _rate(looks, 1.0 if two_sided else 0.5))
        wanted = max(m + m // 2 + 1, math.ceil(1.1 * min(needed, 1e9)))
        wanted = min(wanted, GROWTH * m) if two_sided else wanted
        if exact <= left < wanted + exact:  # the last chance to end with it for certain
            m = exact
        elif left <= m:  # no more than what this answer rests on
            return e
        else:
            m = min(wanted, left)


def _rate(looks: list[tuple[int, float]], hoped_for: float) -> float:
    """The power of the number of probes by which the interval shrinks, as seen between the last two looks."""
    if len(looks) < 2:
        return hoped_for
    (k, before), (m, now) = looks[-2:]
    if not (0 < now < before and math.isfinite(before)):
        return 0.5
    return min(4.0, max(0.5, math.log(before / now) / math.log(m / k)))
