"""The one loop that grows a statistic to a tolerance: looks, predictions, and what is done about them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Protocol

from traceest import _progress
from traceest import _validation as check
from traceest.checkpoint import Checkpoint
from traceest.estimators.sampler import Sampler
from traceest.uncertainty.estimate import Estimate, _to_host

FIRST_LOOK = Sampler.first
"""Samples before the first look, of a sampler without blocks."""

KNOWN = 40
"""Degrees of freedom from which on a standard error, known to a ninth, predicts how many samples it takes."""

WORTH_ALL = 0.8
"""Where so many of the samples that are left are predicted to be needed, all are taken, which leaves no error."""


EARLY, LATE = 1 / 3, 1 / 2
"""Parts of the error probability that a look may take, below `KNOWN` degrees of freedom and from there on."""

UNSURE = 0.05
"""Chance that a spread is taken to be larger than it is, where the exact answer is resorted to for it."""

AT_LEAST = 8
"""After this part of what the exact answer costs has been spent, it is resorted to by what is predicted, be that so."""


class Grows(Protocol):
    """What the loop asks of a sampler; `traceest.estimators.sampler.Sampler` says what each is."""

    first: int
    patience: int
    asking: int
    stride: float
    steady: bool
    verified: int
    meter: Any

    @property
    def least(self) -> int:
        """Fewest samples that a growth may have."""

    @property
    def rest(self) -> float:
        """Samples that there are yet."""

    @property
    def cost(self) -> int:
        """Products that one more sample takes."""

    @property
    def n_samples(self) -> int:
        """Samples that the estimate rests on."""

    @property
    def spent(self) -> int:
        """Products on whichever side has more."""

    def grow(self, k: int) -> None:
        """Spend k more samples."""

    def estimate(self) -> Estimate:
        """The answer so far."""

    def ahead(self, e: Estimate, target: Target) -> float:
        """Products that `target` is predicted to take yet."""

    def worth_deflating(self, ahead: float, left: int) -> int:
        """Products that `deflate` would cost now; 0 where it does not pay."""

    def deflate(self) -> None:
        """Turn the products of the samples into a sketch."""

    def state(self) -> dict[str, Any]:
        """All that the sampler knows, by name."""


def known_to(e: Estimate) -> float:
    """Degrees of freedom of the standard error, out of any graph that it may have."""
    return float(_to_host(e.df))


@dataclass(frozen=True)
class Target:
    """The tolerance, and how many samples it is predicted to take."""

    rtol: float
    atol: float
    confidence: float

    def width(self, e: Estimate) -> float:
        """Half-width allowed."""
        return max(self.atol, self.rtol * abs(complex(_to_host(e.value))))

    def half(self, e: Estimate) -> float:
        """Half-width reached."""
        return float(e.half_width(self.confidence))

    @staticmethod
    def looked_at(e: Estimate) -> Estimate:
        """The estimate as one that may be stopped at: with the part of the error probability that this look may take.

        Stopping at the first look that suits errs more often than one look does, and the more so the fewer samples tell
        the spread: where it happens to be small. At the whole of it 6–8 % of the runs missed a tolerance asked for with
        95 % where there are several looks, and the intervals held in 90–97 %.
        """
        return e if e.exact else replace(e, share=min(e.share, LATE if known_to(e) >= KNOWN else EARLY))

    def met_by(self, e: Estimate) -> bool:
        """Whether the interval is inside the tolerance."""
        return bool(self.half(e) <= self.width(e))

    def samples(self, e: Estimate, n_samples: int, rate: float) -> float:
        """Predicted number of samples, the half-width falling as their number to the power −`rate`.

        Student's quantile falls too, as the degrees of freedom grow in proportion: of four samples it says far more
        about how badly the spread is known than about how many samples there have to be.
        """
        half, width, df = self.half(e), self.width(e), known_to(e)
        if math.isnan(half) or not n_samples:
            return 2 * n_samples
        if not width > 0:
            return math.inf if half > 0 else 0.0
        found = float(n_samples)
        for _ in range(4):
            grown = self.quantile(df * max(1.0, found / n_samples)) / self.quantile(df) if half > width else 1.0
            found = n_samples * (half * grown / width) ** (1 / rate)
        return found

    def quantile(self, df: float) -> float:
        """Student's, for the part of the error probability that so many degrees of freedom may take."""
        from scipy import special  # not paid for where nothing grows

        share = LATE if df >= KNOWN else EARLY
        return float(special.stdtrit(df, 1 - share * (1 - self.confidence) / 2))

    def stderr(self, e: Estimate, df: float) -> float:
        """The standard error that the tolerance allows, of so many degrees of freedom."""
        return self.width(e) / self.quantile(df)


@dataclass(frozen=True)
class Stop:
    """When a run is to end, and who is told on the way: the arguments that all calls to a tolerance share."""

    rtol: float = 0.0
    atol: float = 0.0
    confidence: float = 0.95
    max_matvecs: int | None = None
    callback: Callable[[Estimate], Any] | None = None
    progress: bool = False
    explain: bool | Callable[[str], Any] = False
    checkpoint: str | PathLike[str] | None = None

    @classmethod
    def asked(cls, caller: str, rtol: float | None, atol: float, *rest: Any) -> Stop | None:
        """What is asked for beside a fixed budget; None where no tolerance is.

        Raises
        ------
        ValueError, TypeError
            If the tolerance can't be met by any interval, or there is none for the other arguments to belong to.
        """
        if rtol is None and atol == 0:
            found = cls(0.0, 0.0, *rest)
            idle = [
                name
                for name in ("max_matvecs", "callback", "progress", "explain", "checkpoint")
                if vars(found)[name] not in (None, False)
            ]
            if idle:
                raise TypeError(
                    f"{caller}: {', '.join(idle)} belong to a run that grows to a tolerance, and none is given; give "
                    "rtol= or atol=, or leave them out."
                )
            return None
        found = cls(0.0 if rtol is None else rtol, atol, *rest)
        check.tolerance(found.rtol, atol, found.confidence, caller)
        return found

    @property
    def target(self) -> Target:
        """The tolerance."""
        return Target(self.rtol, self.atol, self.confidence)

    def say(self, line: str) -> None:
        """Tell of a decision whoever wants to know."""
        if self.explain:
            (self.explain if callable(self.explain) else print)(line)

    def run(
        self, sampler: Grows, budget: int, exact: int | None = None, checkpoint: Checkpoint | None = None
    ) -> Estimate | None:
        """The sampler's answer; None where the exact one, for `exact` products, is the better way on."""
        with _progress.bar(self.progress, total=budget, unit="product") as bar:

            def look(e: Estimate) -> Any:
                bar.update(max(e.n_matvecs, e.n_rmatvecs) - bar.n)
                return self.callback is not None and self.callback(e)

            return Growth(self.target, budget, exact, look, self.say, checkpoint).run(sampler)


@dataclass(frozen=True)
class Growth:
    """Grow a sampler until the target is met or the budget spent.

    `exact` is what the exact answer costs, where it may be taken instead; `look` is called with each estimate and stops
    the run by returning True, `say` with a line on each decision. Products that verified what an earlier run had left
    are beyond the budget, so that a run that goes on decides as if it had never been stopped.
    """

    target: Target
    budget: int
    exact: int | None
    look: Callable[[Estimate], Any]
    say: Callable[[str], Any]
    checkpoint: Checkpoint | None = None

    def run(self, sampler: Grows) -> Estimate | None:
        """The answer; None where the exact one is the better way on."""
        if not sampler.n_samples:
            sampler.grow(min(sampler.first, self.budget // sampler.cost))
        while True:
            if self.checkpoint is not None:
                self.checkpoint.save(sampler.state())
            e = self.target.looked_at(sampler.estimate())
            self.say(self._line(e))
            spent = max(e.n_matvecs, e.n_rmatvecs) - sampler.verified
            if self.look(e):
                return e
            if self.target.met_by(e):
                self.say("the interval is inside the tolerance")
                return e
            needed = sampler.ahead(e, self.target)
            left, k = self.budget - spent, sampler.n_samples
            exact_cost = self._exact_cost(sampler, e, left, needed) if k >= sampler.patience else 0
            # A sketch is tried before the exact answer, and leaves room for it: few columns may hold all of a low rank.
            deflation = sampler.worth_deflating(exact_cost or min(needed, left), left - exact_cost)
            spent = sampler.spent - sampler.verified  # it may have cost something to find out
            left = self.budget - spent
            if deflation:
                self.say(f"about {needed:.0f} more predicted: {deflation} turn the products made into a sketch")
                sampler.deflate()
            elif exact_cost:
                self.say(f"about {needed:.0f} more predicted: the exact answer costs {exact_cost}")
                return None
            elif left < sampler.least * sampler.cost:
                self.say("the budget is spent")
                return replace(e, **sampler.meter.spent)
            elif self._last_chance(left, spent, more := self._more(sampler, e, needed, left) * sampler.cost):
                self.say(f"about {needed:.0f} more predicted, after which the exact answer would be out of reach")
                return None
            else:
                self.say(f"about {needed:.0f} more predicted: {more} now")
                sampler.grow(more // sampler.cost)

    def _more(self, sampler: Grows, e: Estimate, needed: float, left: int) -> int:
        """Samples to take now, of `needed` products predicted and `left` in the budget."""
        spent = self.budget - left
        early = self.exact is not None and sampler.steady and needed >= self.exact > AT_LEAST * spent
        if sampler.rest <= min(left, needed / WORTH_ALL) and not early:
            return int(sampler.rest)
        trusted = sampler.steady and known_to(e) >= KNOWN and not early
        stride = sampler.stride if trusted else 1.0
        most = int(min(left, stride * max(sampler.n_samples, FIRST_LOOK) * sampler.cost))
        more = max(sampler.cost, min(most, math.ceil(1.1 * min(needed, left))))
        if self.exact is not None and early:  # what is spent before the exact answer is to be a small part of it
            more = min(more, max(sampler.cost, self.exact // AT_LEAST - spent))
        last = self.budget // 2 - sampler.asking
        if not sampler.steady and sampler.cost == 1 and spent < last < spent + more:
            more = last - spent  # as long as what is left can turn it all into a sketch
        return int(min(max(sampler.least, more // sampler.cost), sampler.rest))

    def _last_chance(self, left: int, spent: int, more: int) -> bool:
        """Whether so many more products would leave no room for the exact answer, half of whose cost has not helped."""
        return self.exact is not None and self.exact <= left < self.exact + more and 2 * spent >= self.exact

    def _exact_cost(self, sampler: Grows, e: Estimate, left: int, needed: float) -> int:
        """What the exact answer costs, 0 where it is no way on.

        Few samples of a heavy tail may say a hundred times too much. Until so much has been spent that it makes little
        difference, it has to be clear from them that going on costs more.
        """
        from scipy import special

        if self.exact is None or self.exact > left:
            return 0
        if sampler.steady and AT_LEAST * (sampler.spent - sampler.verified) < self.exact:
            needed *= float(2 * special.gammaincinv(df / 2, UNSURE) / df) if (df := known_to(e)) > 0 else 0.0
        return self.exact if self.exact <= needed else 0

    def _line(self, e: Estimate) -> str:
        kind, half, width = e.method, self.target.half(e), self.target.width(e)
        counts = " + ".join(f"{n} {s}" for n, s in ((e.n_matvecs, "matvecs"), (e.n_rmatvecs, "rmatvecs")) if n)
        value = complex(_to_host(e.value))
        shown = f"{value:.6g}" if value.imag else f"{value.real:.6g}"
        return f"{counts}: {shown} by {kind}, half-width {half:.2g}, {width:.2g} allowed"
