"""Probes or steps? A pilot of half the probes looks how many steps f needs, and is kept.

While what truncation leaves is more than a part of the error that sampling would have with all products in probes of
so many steps, the pilot goes on; then the rest of the budget is spent on further probes, of as many steps. So log of
eigenvalues that fall to 0 gets twice the steps that a fixed split would give, and a smooth f three times the probes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from traceest.spectrum import looks
from traceest.spectrum.lanczos import Lanczos, Tridiagonals
from traceest.spectrum.plan import Plan

FEWEST = 30
"""Products below which there is nothing to choose."""

FIRST, FURTHER = 6, 1.5
"""Steps at which the pilot is looked at first, and how many times as many it has at each further look."""

NEGLIGIBLE = 0.25
"""Part of the sampling error that truncation may have."""


def piloted(
    p: Plan,
    judged: Callable[[Tridiagonals], tuple[float, float] | None],
    begun: Callable[..., Lanczos],
    stream: Any,
    n: int,
) -> tuple[list[Lanczos], int, int]:
    """The pilot's runs, and how many probes of how many steps are to follow.

    `judged` gives the standard errors by sampling and by truncation of a tridiagonal T, or None where f has no values
    to look at (inside `jax.jit`): then the split is the plan's, and the pilot's first product is that of its probes.
    """
    m, width = p.free, max(1, p.probes // 2)
    V = stream.take(width)
    run = begun(V).advance(1)
    if looks.number(run.alpha[0][0]) is None or judged(run.T) is None:
        xp = run.xp
        everything = xp.concat([V, stream.take(p.probes - width)], axis=1) if p.probes > width else V
        return [begun(everything, run.first).advance(p.steps)], 0, p.steps
    most, t = min(m // width, n), FIRST
    while True:
        t = min(t, most)
        found = judged(run.advance(t).T)
        if t == most or found is None:
            break
        sampling, truncation = found
        if truncation <= NEGLIGIBLE * sampling * (width * t / m) ** 0.5:
            break
        t = round(t * FURTHER)
    return [run], (m - width * t) // t, t
