"""The mean of independent samples: of forms of the operator, or of squared norms through one side of a factor."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from traceest import _array_api as aa
from traceest.estimators.sampler import Sampler, Target
from traceest.operators.blocks import block_sqnorms, n_blocks
from traceest.operators.layout import layout
from traceest.operators.products import form
from traceest.probes import Distribution, Probes
from traceest.uncertainty.estimate import Estimate, certain, from_samples, trace_bounds

LEAST = 4
"""Fewest samples before the first look, however many blocks: a block that outweighs all others has to show it."""


class Sampling(Sampler):
    """Samples of one kind: `sample(A, V)` gives (n_blocks, k) for the (n, k) probes V, and the products behind them."""

    KEPT = FORMS = ("samples",)
    COUNTS = (*Sampler.COUNTS, "adopted")
    steady = True
    samples: list[Any]

    def __init__(
        self,
        A: Any,
        stream: Probes,
        chunk: int,
        *,
        side: str,
        method: str,
        sample: Callable[[Any, Any], tuple[Any, Any]],
        bounds: tuple[float, float] = (0.0, math.inf),
    ) -> None:
        super().__init__(A, stream, chunk)
        self.side, self.method, self.sample, self.bounds = side, method, sample, bounds
        self.adopted = 0
        self.of_start: tuple[Any, Any] = (None, None)  # the first probe of the Estimate continued, and its sample

    @property
    def population(self) -> int | None:
        """Number of samples that exist, where all are drawn without replacement."""
        one_set = self.stream.goes_on or self.caller is None  # what is grown once is drawn at once
        return self.stream.population if one_set and not self.adopted else None

    @property
    def rest(self) -> float:
        """Samples still to be drawn; without replacement, all of them together are the exact trace."""
        return math.inf if self.population is None else self.population - self.n_samples

    def ahead(self, e: Estimate, target: Target) -> float:
        """Predicted number of further products; without replacement, the variance falls as 1/m − 1/N."""
        m = super().ahead(e, target) + self.n_samples
        N, k = self.population, self.n_samples
        return (m if N is None else 1 / (1 / N + (1 - k / N) / m)) - k

    def grow(self, k: int) -> None:
        """Spend k more samples."""
        self.samples += [self._sampled(V) for V in self.stream.chunks(k, self.chunk)]

    def _sampled(self, V: Any) -> Any:
        x, seen = self.sample(self.meter.op, V)
        self.remember(V, seen)
        return self.checked(x, V.shape[1])

    def seen(self, V: Any) -> Any:
        """What `remember` is given for the probe V."""
        return self.checked(self.sample(self.meter.op, V)[1], V.shape[1])

    def adopt(self, e: Estimate) -> None:
        """Continue from the samples of `e`, which come from other probes."""
        self.samples.append(e.samples)
        self.adopted += e.samples.shape[1]
        self.meter.charge(e.n_matvecs, e.n_rmatvecs)
        self.of_start = self.stream.again(e.probes), e.samples[:, :1]

    def verify(self) -> None:
        """Multiply the first probe once more and compare; also that of an adopted Estimate, where it can be redrawn."""
        super().verify()
        V, before = self.of_start
        if V is None:
            return
        spent = self.spent
        x, seen = self.sample(self.meter.op, V)
        self.checked(x, 1)
        # A form of either sign may be small although its terms are not.
        size = self.xp.sqrt(self.xp.sum(aa.abs2(self.xp, V)) * self.xp.sum(aa.abs2(self.xp, seen)))
        self.compare(x, before, None if self.bounds[0] == 0 else size)
        self.remember(V, seen)
        self.verified += self.spent - spent

    def estimate(self) -> Estimate:
        """The answer so far; the exact trace once every sample has been drawn."""
        x, fields = self.joined("samples"), {"bounds": self.bounds, **self.meter.spent}
        if self.rest == 0:
            return certain(self.xp.sum(x) / x.shape[1], **fields)
        return from_samples(x, population=self.population, doubt=self.stream.doubt, method=self.method, **fields)

    def state(self) -> dict[str, Any]:
        """Everything the sampler knows, by name."""
        return super().state() | {"adopted": self.adopted}

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from `state`."""
        super().restore(state)
        self.adopted = state["adopted"]

    def consistent(self, columns: dict[str, int], state: dict[str, Any]) -> bool:
        """Whether arrays with these numbers of columns, and the state's counts, can come from one run."""
        return 0 < columns["samples"] == state["drawn"] + state["adopted"]


def hutchinson_sampling(
    A: Any, rng: Any, distribution: Distribution | None, chunk: int, probes: Any = None
) -> Sampling:
    """VᴴAv."""
    stream = Probes(A.shape[0], A, rng=rng, distribution=distribution, probes=probes)
    xp = stream.xp

    def sample(A: Any, V: Any) -> tuple[Any, Any]:
        AV = A.matmat(V)
        return form(xp, A, V, AV)[None, :], AV

    return Sampling(A, stream, chunk, side="matmat", method="hutchinson", sample=sample, bounds=trace_bounds(A))


def rhutch_sampling(J: Any, rng: Any, distribution: Distribution | None, chunk: int, probes: Any = None) -> Sampling:
    """‖J_bᴴ v_b‖² for each block: vjps alone.

    Each block has an error of its own, together (m − 1)B degrees of freedom, so that the first look may come early.
    """
    B = n_blocks(J)
    stream = Probes(J.shape[0], J, rng=rng, distribution=distribution, n_blocks=B, layout=layout(J, B), probes=probes)
    method = "rhutch" if B == 1 else "rhutch per block"

    def sample(J: Any, V: Any) -> tuple[Any, Any]:
        x = block_sqnorms(J, V)
        return x, x

    found = Sampling(J, stream, chunk, side="rmatmat", method=method, sample=sample)
    found.first = max(LEAST, math.ceil(1 + (Sampler.first - 1) / B))
    return found


def fhutch_sampling(J: Any, rng: Any, distribution: Distribution | None, chunk: int, probes: Any = None) -> Sampling:
    """‖Jw‖²: jvps alone."""
    stream = Probes(J.shape[1], J, rng=rng, distribution=distribution, probes=probes)
    xp = stream.xp

    def sample(J: Any, W: Any) -> tuple[Any, Any]:
        JW = J.matmat(W)
        return xp.sum(aa.abs2(xp, JW), axis=0)[None, :], JW

    return Sampling(J, stream, chunk, side="matmat", method="fhutch", sample=sample)
