"""A statistic from a fixed budget, or to a tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from traceest._growth import Target
from traceest.estimate import Estimate
from traceest.sketches import Request, Sketch, exact_cost, sketch

FIRST = 4
"""Probes of the first look beyond those that are not drawn; the jackknife needs three."""


def answer(Ks: list[Any], request: Request, statistic: Callable[[Sketch], Estimate]) -> Estimate:
    """`statistic` of a sketch of the kernels.

    With a tolerance: a first look with few probes predicts how many it takes, at least twice as many each time, until
    the interval is inside; at the exact answer's cost that is taken. A sketch pairs every probe with every other, so
    it is made anew, and what all looks have spent is counted.
    """
    request = request.checked()
    if request.rtol is None:
        return statistic(sketch(Ks, request))
    # As for traces: at half the error probability, since there may be several looks.
    target, exact = Target(request.rtol, 0.0, 0.95), exact_cost(Ks, request)
    request = request if request.limit is not None else replace(request, n_probes=_unlimited(exact))
    limit, n_matvecs, n_rmatvecs = request.limit or exact, 0, 0
    m = min(FIRST + request.n_extra, limit)
    while True:
        e = statistic(sketch(Ks, request.with_budget(m)))
        n_matvecs, n_rmatvecs = n_matvecs + e.n_matvecs, n_rmatvecs + e.n_rmatvecs
        e = replace(e, converged=e.exact or target.met_by(e), n_matvecs=n_matvecs, n_rmatvecs=n_rmatvecs)
        left = limit - max(n_matvecs, n_rmatvecs) // len(Ks)
        if e.converged or left < 1:
            return e
        needed = target.samples(e, m, 0.5)
        wanted = max(2 * m, math.ceil(1.1 * min(needed, 1e9)))
        if min(wanted, left) >= exact:
            m = exact
        elif left <= m:  # no more than what this answer rests on
            return e
        else:
            m = min(wanted, left)


def _unlimited(exact: int) -> int:
    """Room to end with the exact answer whatever was sampled before."""
    return 2 * exact + FIRST
