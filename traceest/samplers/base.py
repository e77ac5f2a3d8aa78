"""What every sampler has: a metered operator, a stream of probes, and a state that can be written down."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol

from traceest import _array_api as aa
from traceest import _validation as check
from traceest.estimate import Estimate
from traceest.estimators._metering import Meter
from traceest.probes import Probes


class Target(Protocol):
    """A tolerance that tells how many samples it takes."""

    def samples(self, e: Estimate, n_samples: int, rate: float) -> float:
        """Predicted number of samples, the half-width falling as their number to the power −`rate`."""
        ...


class Sampler(ABC):
    """`grow(k)` spends k more samples; `estimate()` is the answer so far.

    The error is taken to fall as the number of samples to the power −`rate`, and the exact trace is not resorted to
    before `patience` samples. `deflate()`, where `worth_deflating` says so, turns what was paid for into a sketch.
    """

    KEPT: ClassVar[tuple[str, ...]] = ()
    """Names of the lists of arrays, joined along their columns, that make up the state."""

    side = "matmat"
    first = 10
    """Samples before the first look: a standard error from fewer says too little to stop on."""

    patience = 0
    steady = False
    """Whether the error falls as 1/√m whatever is done, so that one known well tells how many samples it takes."""

    asking = 0
    """Products that `worth_deflating` may spend on finding out."""

    def __init__(self, A: Any, stream: Probes, chunk: int) -> None:
        self.meter, self.stream, self.chunk = Meter(A), stream, chunk
        self.xp = stream.xp
        for name in self.KEPT:
            setattr(self, name, [])

    @property
    def rate(self) -> float:
        """P of an error that falls as k^−p."""
        return 0.5

    @property
    def rest(self) -> float:
        """Samples that there are yet: where they are drawn without replacement, all of them are the exact trace."""
        return math.inf

    @property
    def cost(self) -> int:
        """Products that one more sample takes."""
        return 1

    @property
    def n_samples(self) -> int:
        """Samples that the estimate rests on."""
        return sum(x.shape[-1] for x in getattr(self, self.KEPT[0]))

    def ahead(self, e: Estimate, target: Target) -> float:
        """Products that `target` is predicted to take yet, after the answer `e`."""
        return (target.samples(e, self.n_samples, self.rate) - self.n_samples) * self.cost

    @abstractmethod
    def grow(self, k: int) -> None:
        """Spend k more samples."""

    @abstractmethod
    def estimate(self) -> Estimate:
        """The answer so far."""

    def worth_deflating(self, ahead: float, left: int) -> int:
        """Products that `deflate` would cost now; 0 where it does not pay, with so many predicted, so many left."""
        return 0

    def deflate(self) -> None:  # noqa: B027 — not abstract: without `worth_deflating` there is nothing to do
        """Turn the products of the samples into a sketch; without `worth_deflating`, nothing."""

    def checked(self, x: Any, columns: int) -> Any:
        """`x`, the product of so many columns just made, if it is finite."""
        spent = self.meter.n_matvecs if self.side == "matmat" else self.meter.n_rmatvecs
        check.finite(x, self.side, spent - columns, "trace")
        return x

    def multiply(self, V: Any) -> Any:
        """A V, a chunk at a time, each found to be finite."""
        chunks = (V[:, i : min(i + self.chunk, V.shape[1])] for i in range(0, V.shape[1], self.chunk))
        return aa.concat_columns(self.xp, [self.checked(self.meter.op.matmat(C), C.shape[1]) for C in chunks])

    def joined(self, name: str) -> Any:
        """The arrays of the list `name` as one."""
        return aa.concat_columns(self.xp, getattr(self, name))

    # -- written down and taken up again ----------------------------------------------------------
    def state(self) -> dict[str, Any]:
        """All that the sampler knows, by name."""
        kept = {name: self.joined(name) for name in self.KEPT if getattr(self, name)}
        return kept | self.stream.state() | self.meter.spent

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`; the probes that it has drawn are skipped, should the same generator draw them again."""
        for name in self.KEPT:
            if name in state:
                setattr(self, name, [state[name]])
        self.stream.restore(state)
        self.meter.charge(int(state["n_matvecs"]), int(state["n_rmatvecs"]))
