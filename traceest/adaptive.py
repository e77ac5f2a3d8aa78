"""How `trace` spends: looks, predictions, and what is done about them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from traceest.checkpoint import Checkpoint
from traceest.estimators.exact import Route
from traceest.estimators.sampler import Sampler
from traceest.uncertainty.estimate import Estimate

FIRST_LOOK = Sampler.first
"""Samples before the first look, of a sampler without blocks."""

KNOWN = 40
"""Degrees of freedom from which on a standard error, known to a ninth, predicts how many samples it takes."""

WORTH_ALL = 0.8
"""Where so many of the samples that are left are predicted to be needed, all are taken, which leaves no error."""


@dataclass(frozen=True)
class Target:
    """The tolerance, and how many samples it is predicted to take."""

    rtol: float
    atol: float
    confidence: float

    def width(self, e: Estimate) -> float:
        """Half-width allowed."""
        return max(self.atol, self.rtol * abs(complex(e)))

    def half(self, e: Estimate) -> float:
        """Half-width reached, at half the error probability.

        Stopping at the first look that suits errs about twice as often as one look does: at the plain quantile
        6–8 % of the runs missed a tolerance asked for with 95 %, on spectra where Hutch++ takes several looks.
        """
        return float(e.half_width(1 - (1 - self.confidence) / 2))

    def met_by(self, e: Estimate) -> bool:
        """Whether the interval is inside the tolerance."""
        return bool(self.half(e) <= self.width(e))

    def samples(self, e: Estimate, n_samples: int, rate: float) -> float:
        """Predicted number of samples, the half-width falling as their number to the power −`rate`."""
        half, width = self.half(e), self.width(e)
        if math.isnan(half):
            return 2 * n_samples
        return n_samples * (half / width) ** (1 / rate) if width > 0 else (math.inf if half > 0 else 0.0)


@dataclass(frozen=True)
class Growth:
    """Grow a sampler until the target is met or the budget spent.

    `best` is the exact way that may be taken instead; `look` is called with each estimate and stops the run by
    returning True, `say` with a line on each decision. Products that verified what an earlier run had left are beyond
    the budget, so that a run that goes on decides as if it had never been stopped.
    """

    target: Target
    budget: int
    best: Route | None
    look: Callable[[Estimate], Any]
    say: Callable[[str], Any]
    checkpoint: Checkpoint | None = None

    def run(self, sampler: Sampler) -> Estimate | None:
        """The answer; None where the exact trace is the better way on."""
        if not sampler.n_samples:
            sampler.grow(min(sampler.first, self.budget // sampler.cost))
        while True:
            if self.checkpoint is not None:
                self.checkpoint.save(sampler.state())
            e = sampler.estimate()
            self.say(self._line(e))
            spent = max(e.n_matvecs, e.n_rmatvecs) - sampler.verified
            if self.look(e):
                return e
            if self.target.met_by(e):
                self.say("the interval is inside the tolerance")
                return e
            needed = sampler.ahead(e, self.target)
            left, k = self.budget - spent, sampler.n_samples
            exact_cost = self._exact_cost(left, needed) if k >= sampler.patience else 0
            # A sketch is tried before the exact trace, and leaves room for it: few columns may hold all of a low rank.
            deflation = sampler.worth_deflating(exact_cost or min(needed, left), left - exact_cost)
            spent = sampler.spent - sampler.verified  # it may have cost something to find out
            left = self.budget - spent
            if deflation:
                self.say(f"about {needed:.0f} more predicted: {deflation} turn the products made into a sketch")
                sampler.deflate()
            elif exact_cost:
                self.say(f"about {needed:.0f} more predicted: the exact trace costs {exact_cost}")
                return None
            elif left < sampler.cost:
                self.say("the budget is spent")
                return replace(e, **sampler.meter.spent)
            else:
                more = self._more(sampler, e, needed, left)
                self.say(f"about {needed:.0f} more predicted: {more * sampler.cost} now")
                sampler.grow(more)

    def _more(self, sampler: Sampler, e: Estimate, needed: float, left: int) -> int:
        """Samples to take now, of `needed` products predicted and `left` in the budget."""
        if sampler.rest <= min(left, needed / WORTH_ALL):
            return int(sampler.rest)
        trusted = sampler.steady and float(e.df) >= KNOWN
        most = left if trusted else min(left, max(sampler.n_samples, FIRST_LOOK) * sampler.cost)
        more = max(sampler.cost, min(most, math.ceil(1.1 * min(needed, left))))
        spent, last = self.budget - left, self.budget // 2 - sampler.asking
        if not sampler.steady and sampler.cost == 1 and spent < last < spent + more:
            more = last - spent  # as long as what is left can turn it all into a sketch
        return int(min(max(1, more // sampler.cost), sampler.rest))

    def _exact_cost(self, left: int, needed: float) -> int:
        """What the exact trace costs, 0 where it is no way on."""
        return self.best.cost if self.best is not None and self.best.cost <= min(needed, left) else 0

    def _line(self, e: Estimate) -> str:
        kind, half, width = e.method, self.target.half(e), self.target.width(e)
        counts = " + ".join(f"{n} {s}" for n, s in ((e.n_matvecs, "matvecs"), (e.n_rmatvecs, "rmatvecs")) if n)
        value = complex(e)
        shown = f"{value:.6g}" if value.imag else f"{value.real:.6g}"
        return f"{counts}: {shown} by {kind}, half-width {half:.2g}, {width:.2g} allowed"
