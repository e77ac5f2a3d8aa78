"""Time to an accuracy: contenders run by turns over a ladder of budgets, and what each takes to be so exact.

The error of a contender at a budget is the root mean square over seeds, relative to the truth, its time the median over
the same runs: for each seed all contenders make one, in an order drawn anew. Between two budgets both are
interpolated, in logarithms. Seconds are those of the processor, which on one core is what a clock shows on a machine
that does nothing else.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

OURS = "traceest"
TARGETS = tuple(10.0**-i for i in range(1, 13))
ARRAYS = {"numpy", "torch", "jax"}
"""Whose arrays contenders may take; fewer for a quicker look."""
SLOW = 3.0
"""Seconds of one run from which a contender is not asked for more."""


class Contender(NamedTuple):
    """An estimator of a library: run(budget, seed) ↦ estimate and the products spent."""

    library: str
    method: str
    arrays: str
    budgets: tuple[float, ...]
    run: Callable[[Any, int], tuple[float, float]]


Row = dict[str, Any]


def measure(contenders: Iterable[Contender], truth: float, seeds: int) -> list[Row]:
    """A row for each budget of each contender with arrays of `ARRAYS`."""
    running: list[tuple[Row, Contender, float, list[tuple[float, float, float]]]] = []
    for c in (c for c in contenders if c.arrays in ARRAYS):
        for budget in c.budgets:
            row: Row = {"library": c.library, "method": c.method, "arrays": c.arrays, "budget": budget}
            try:
                first, again = (_timed(c, budget, -1 - i)[2] for i in range(2))
            except Exception as error:  # a library that raises is a result, not the end of the benchmark
                row |= {"seconds": None, "error": None, "failed": f"{type(error).__name__}: {error}"[:200]}
                running.append((row, c, budget, []))
                continue
            running.append((row | {"compile_seconds": max(0.0, first - again)}, c, budget, []))
            if again > SLOW:
                break
    for seed in range(seeds):
        # In an order drawn anew: after arrays of another library caches are cold, and the same one would always pay.
        for row, c, budget, found in random.Random(seed).sample(running, len(running)):
            if "failed" not in row:
                found.append(_timed(c, budget, seed))
    for row, *_, found in running:
        if found:
            values, products, seconds = zip(*found, strict=True)
            error = float(np.sqrt(np.mean((np.array(values) / truth - 1) ** 2)))
            row |= {
                "products": float(np.mean(products)),
                "seconds": statistics.median(seconds),
                "error": error if math.isfinite(error) else None,
            }
    return [row for row, *_ in running]


def _timed(c: Contender, budget: float, seed: int) -> tuple[float, float, float]:
    start = time.process_time()
    value, products = c.run(budget, seed % 10**6)
    return float(value), products, time.process_time() - start


def ladders(rows: list[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Rows of each (library, method, arrays), those that gave numbers."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for r in rows:
        if r["error"] is not None:
            found.setdefault((r["library"], r["method"], r["arrays"]), []).append(r)
    return found


def time_to(ladder: list[Row], target: float) -> float:
    """Least seconds to an rms error of `target`; infinite where no budget gives it."""
    best = math.inf
    for i, r in enumerate(ladder):
        if r["error"] > target:
            continue
        seconds = r["seconds"]
        if i and ladder[i - 1]["error"] > target:
            before = ladder[i - 1]
            gone = math.log(before["error"] / target) / math.log(before["error"] / max(r["error"], 1e-300))
            seconds = before["seconds"] * (r["seconds"] / before["seconds"]) ** gone
        best = min(best, seconds)
    return best


class Best(NamedTuple):
    """The fastest of some contenders to a target."""

    seconds: float
    library: str
    method: str
    arrays: str


def fastest(rows: list[Row], target: float, ours: bool, arrays: str | None = None) -> Best:
    """Of ours or of the others', with one library's arrays or with any."""
    found = [
        Best(time_to(ladder, target), *key)
        for key, ladder in ladders(rows).items()
        if (key[0] == OURS) == ours and arrays in (None, key[2])
    ]
    return min(found, default=Best(math.inf, "", "", ""))


def duels(rows: list[Row], arrays: str | None = None, floor: float = 0.0) -> list[tuple[float, Best, Best]]:
    """(target, ours, theirs) for each target from `floor` on that both reach, some not with their least budget."""
    found = []
    for target in (t for t in TARGETS if t >= floor):
        pair = tuple(fastest(rows, target, ours, arrays) for ours in (True, False))
        if all(math.isfinite(b.seconds) for b in pair) and not _trivial(rows, target, arrays):
            found.append((target, *pair))
    return found


def _trivial(rows: list[Row], target: float, arrays: str | None) -> bool:
    """Whether every contender is there with its smallest budget, so that there is nothing to choose."""
    return all(x[0]["error"] <= target for key, x in ladders(rows).items() if arrays in (None, key[2]))


def geometric_mean(x: Iterable[float]) -> float:
    """exp mean log."""
    logs = [math.log(value) for value in x]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def same_method(rows: list[Row]) -> list[Row]:
    """Ours and a peer's of one method with one library's arrays at one budget: ratios of seconds and of errors."""
    ours = {(r["method"], r["arrays"], r["budget"]): r for r in rows if r["library"] == OURS and r["error"] is not None}
    found = []
    for r in rows:
        mine = ours.get((r["method"], r["arrays"], r["budget"]))
        if r["library"] != OURS and r["error"] is not None and mine is not None:
            pair = {"seconds": mine["seconds"] / r["seconds"], "error": mine["error"] / max(r["error"], 1e-300)}
            found.append({key: r[key] for key in ("library", "method", "arrays", "budget")} | pair)
    return found
