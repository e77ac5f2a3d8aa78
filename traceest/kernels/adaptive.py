"""A statistic from a fixed budget, or to a tolerance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from traceest import _validation as check
from traceest._files import as_path
from traceest.adaptive import Stop
from traceest.checkpoint import Checkpoint, taken_up
from traceest.kernels.sketches import Request, by_blocks, by_columns, exact, exact_cost, fused, route, sketch
from traceest.kernels.sketches.one_sided_sampler import OneSidedSampler
from traceest.kernels.sketches.sampler import FIRST, SketchSampler
from traceest.kernels.sketches.two_sided_sampler import TwoSidedSampler
from traceest.probes.sources import mark_of
from traceest.uncertainty.estimate import Estimate, told


def answer(Ks: list[Any], request: Request, statistic: Callable[..., Estimate], *options: Any) -> Estimate:
    """`statistic` of a sketch of the kernels, on whichever side of their factor takes fewer products.

    It is given the sketch and the options, which are hashable.
    """
    request = request.checked()
    K, Ks, marks = Ks[0], by_blocks(Ks, request), marks_of(request)
    if request.stop is None:
        return told(fused(statistic, sketch(Ks, request), *options), request.caller, K, marks)
    narrow = by_columns(Ks, request)
    e = told(_grown(narrow, request, request.stop, statistic, options), request.caller, K, marks)
    # The products of the dual are those of J with the sides exchanged.
    return e if narrow is Ks else replace(e, n_matvecs=e.n_rmatvecs, n_rmatvecs=e.n_matvecs)


def marks_of(request: Request) -> tuple[str, ...]:
    """The marks of the probes that are going to be drawn."""
    mark = mark_of(request.rng, request.probes)
    return () if mark is None else (f"{request.distribution}:{mark}",)


def _grown(
    Ks: list[Any], request: Request, stop: Stop, statistic: Callable[..., Estimate], options: tuple[Any, ...]
) -> Estimate:
    """To a tolerance, by the one loop; at the exact answer's cost that is taken."""
    saved = None if stop.checkpoint is None else as_path(stop.checkpoint, request.caller)
    cost, caller = len(Ks) * exact_cost(Ks, request), request.caller
    budget = 2 * cost + len(Ks) * FIRST if stop.max_matvecs is None else stop.max_matvecs
    budget = check.budget(budget, None, len(Ks) * (2 + request.n_extra), "max_matvecs", caller)
    first = min(FIRST, budget // len(Ks) - request.n_extra)
    if request.method == "exact" or len(Ks) * (first + request.n_extra) >= cost <= budget:
        stop.say("exactly")
        e = fused(statistic, exact(Ks, request), *options)
        return replace(e, converged=stop.target.met_by(e))
    sampler = _sampler(Ks, request)
    sampler.statistic, sampler.options = statistic, options
    stop.say(f"{caller} of {Ks!r}, {route(Ks, request)}, at most {budget} products; exactly by {cost}")
    kept = None
    if saved is not None:
        run = {"statistic": caller, "centred": request.centred, "kernels": len(Ks), "shape": list(Ks[0].shape)}
        kind = {"method": type(sampler).__name__, "law": sampler.stream.distribution, "dtype": str(Ks[0].dtype)}
        kept = Checkpoint(saved, run | kind, caller)
        taken_up(sampler, kept, stop.say)
    if not sampler.n_samples:
        sampler.grow(first)
    e = stop.run(sampler, budget, cost, kept)
    if e is not None:
        return replace(e, converged=stop.target.met_by(e))
    found, spent = fused(statistic, exact(Ks, request), *options), sampler.sketch().fields
    return replace(
        found,
        converged=stop.target.met_by(found),
        n_matvecs=found.n_matvecs + spent["n_matvecs"],
        n_rmatvecs=found.n_rmatvecs + spent["n_rmatvecs"],
    )


def _sampler(Ks: list[Any], request: Request) -> SketchSampler:
    if route(Ks, request) == "one-sided":
        return OneSidedSampler(Ks, request)
    return TwoSidedSampler(Ks, request, low_rank=request.method != "hutchinson")
