"""What every sampler has: a metered operator, a stream of probes, and a state that can be saved."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol

import numpy as np

from traceest import _array_api as aa
from traceest import _validation as check
from traceest.operators.metering import Meter
from traceest.probes import Probes
from traceest.uncertainty.estimate import Estimate, told


class Target(Protocol):
    """A tolerance that tells how many samples it takes."""

    def samples(self, e: Estimate, n_samples: int, rate: float) -> float:
        """Predicted number of samples, the half-width falling as their number to the power −`rate`."""
        ...


class Sampler(ABC):
    """`grow(k)` spends k more samples; `estimate()` is the answer so far; a fixed budget is a sampler grown `once`.

    The error is taken to fall as the number of samples to the power −`rate`, and the exact trace is not taken
    before `patience` samples. `deflate()`, where `worth_deflating` says so, turns the products made into a sketch.
    """

    KEPT: ClassVar[tuple[str, ...]] = ()
    """Names of the lists of arrays, joined along their columns, that make up the state."""

    FORMS: ClassVar[tuple[str, ...]] = ()
    """The names of `KEPT` with a row for each block of the probes; the others have one for each row of the operator."""

    COUNTS: ClassVar[tuple[str, ...]] = ("drawn", "verified", "n_matvecs", "n_rmatvecs")
    """Names of the integers of the state."""

    statistic = "trace"
    """What it estimates, for `merge`."""

    side = "matmat"
    first = 10
    """Samples before the first look: a standard error from fewer is too noisy to stop on."""

    least = 1
    """Fewest samples that a growth may have."""

    stride = math.inf
    """How many times the samples there are a growth may add, where their spread is known well."""

    patience = 0
    steady = False
    """The error falls as 1/√m, so that a well-known standard error predicts the number of samples needed."""

    asking = 0
    """Products that `worth_deflating` may spend to decide."""

    caller: str | None = None
    """The call that grows it look by look: its products have to be finite, and its first probe is kept to verify a
    later run. None for a fixed budget, which stays pure: nothing looks at values, so that it can be transformed."""

    def __init__(self, A: Any, stream: Probes, chunk: int) -> None:
        self.meter, self.stream, self.chunk = Meter(A), stream, chunk
        self.xp, self.rows = stream.xp, A.shape[0]
        self.witness: tuple[Any, Any] | None = None  # the first probe multiplied, (n, 1), and its product
        self.verified = 0  # products spent on verifying earlier runs
        for name in self.KEPT:
            setattr(self, name, [])

    @property
    def rate(self) -> float:
        """The p of an error that falls as k^−p."""
        return 0.5

    @property
    def rest(self) -> float:
        """Samples still to be drawn; without replacement, all of them together are the exact trace."""
        return math.inf

    @property
    def cost(self) -> int:
        """Products per sample."""
        return 1

    @property
    def n_samples(self) -> int:
        """Samples that the estimate rests on."""
        return sum(x.shape[-1] for x in vars(self)[self.KEPT[0]])

    def ahead(self, e: Estimate, target: Target) -> float:
        """Predicted number of further products until `target` is met, given the estimate `e`."""
        return (target.samples(e, self.n_samples, self.rate) - self.n_samples) * self.cost

    @abstractmethod
    def grow(self, k: int) -> None:
        """Spend k more samples."""

    @abstractmethod
    def estimate(self) -> Estimate:
        """The answer so far."""

    def once(self, k: int) -> Estimate:
        """The answer to a fixed budget of k samples."""
        self.grow(k)
        return self.answer()

    def answer(self) -> Estimate:
        """The estimate, with what it is of."""
        return told(self.estimate(), self.statistic, self.meter.op, self.stream.marks)

    def worth_deflating(self, ahead: float, left: int) -> int:
        """Products that `deflate` would cost now; 0 where it does not pay, given those predicted and those left."""
        return 0

    def deflate(self) -> None:  # noqa: B027 — not abstract: without `worth_deflating` there is nothing to do
        """Turn the products of the samples into a sketch; the default does nothing."""

    def checked(self, x: Any, columns: int) -> Any:
        """`x`, the product of that many columns just made; under a `caller` it has to be finite."""
        if self.caller is not None:
            spent = self.meter.n_matvecs if self.side == "matmat" else self.meter.n_rmatvecs
            check.finite(x, self.side, spent - columns, self.caller)
        return x

    def multiply(self, V: Any) -> Any:
        """A V, a chunk at a time, each `checked`."""
        chunks = (V[:, i : min(i + self.chunk, V.shape[1])] for i in range(0, V.shape[1], self.chunk))
        return aa.concat_columns(self.xp, [self.checked(self.meter.op.matmat(C), C.shape[1]) for C in chunks])

    def joined(self, name: str) -> Any:
        """The arrays of the list `name` as one."""
        return aa.concat_columns(self.xp, vars(self)[name])

    def remember(self, V: Any, seen: Any) -> None:
        """Keep the very first probe and what was `seen` of its product, so that a later run can verify them."""
        if self.witness is None and self.caller is not None:
            self.witness = V[:, :1], seen[:, :1]

    def seen(self, V: Any) -> Any:
        """What `remember` is given for the probe V."""
        return self.multiply(V)

    def verify(self) -> None:
        """Multiply the first probe once more and compare.

        Raises
        ------
        ValueError
            If the product differs from the one kept: it is another operator.
        """
        if self.witness is None:
            return
        (V, before), spent = self.witness, self.spent
        self.compare(self.seen(V), before)
        self.verified += self.spent - spent

    def compare(self, again: Any, before: Any, size: Any = None) -> None:
        """Raise unless the products, or what was seen of them, agree to rounding, relative to `size`."""
        off = difference(self.xp, again, before, size)
        allowed = float(self.xp.finfo(self.meter.op.dtype).eps) ** 0.5
        if not off <= allowed:
            raise ValueError(
                f"{self.caller}: the earlier run is of another operator: its first probe gives a product {off:.1e} off "
                f"the one that was saved, relative to its size, where rounding excuses {allowed:.1e}. Was there a "
                "training step, or other data? Start anew: without start=, and with another path as checkpoint=, or "
                "none."
            )

    @property
    def spent(self) -> int:
        """Products on whichever side has more."""
        return max(self.meter.n_matvecs, self.meter.n_rmatvecs)

    # -- saving and resuming ----------------------------------------------------------------------
    @property
    def counts(self) -> tuple[str, ...]:
        """Names of the integers of a state."""
        return self.COUNTS

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays of a state; empty ones are missing."""
        return (*self.KEPT, "witness", "witnessed", *self.stream.shapes())

    def fits(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> bool:
        """Whether the state's array of that name may have this shape and dtype."""
        if name in self.stream.shapes():
            return shape == self.stream.shapes()[name] and dtype.kind == "i"
        kinds = {self.meter.op.dtype, aa.real_dtype(self.xp, self.meter.op.dtype)}
        if len(shape) != 2 or dtype.name not in {str(kind).rpartition(".")[2].rstrip("'>") for kind in kinds}:
            return False
        if name == "witness":
            return shape == (self.stream.n, 1)
        if name == "witnessed":
            return shape[1] == 1
        return shape[0] == (self.stream.n_blocks if name in self.FORMS else self.rows)

    def sound(self, name: str, x: np.ndarray) -> bool:
        """Whether a state's array of that name may hold these numbers."""
        return self.stream.sound(name, x) if name in self.stream.shapes() else bool(np.all(np.isfinite(x)))

    def state(self) -> dict[str, Any]:
        """Everything the sampler knows, by name."""
        kept = {name: self.joined(name) for name in self.KEPT if vars(self)[name]}
        seen = {} if self.witness is None else dict(zip(("witness", "witnessed"), self.witness, strict=True))
        return kept | seen | self.stream.state() | self.meter.spent | {"verified": self.verified}

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from `state`; probes already drawn are skipped, in case the same generator would draw them again.

        Raises
        ------
        ValueError
            If its parts do not fit together.
        """
        columns = {name: state[name].shape[1] if name in state else 0 for name in self.KEPT}
        seen = [name in state for name in ("witness", "witnessed")]
        # The probes of an adopted Estimate may be impossible to draw again.
        whole = all(seen) or (not any(seen) and state.get("adopted", 0) > 0 and not state["drawn"])
        whole = whole and (not state["drawn"] or all(name in state for name in self.stream.shapes()))
        whole = whole and self.consistent(columns, state)
        if not whole or max(columns.values()) > state["n_matvecs"] + state["n_rmatvecs"]:
            raise ValueError("its arrays and counts do not belong to one run")
        for name in self.KEPT:
            if name in state:
                setattr(self, name, [state[name]])
        self.witness = (state["witness"], state["witnessed"]) if all(seen) else None
        self.verified = state["verified"]
        self.stream.restore(state)
        self.meter.charge(state["n_matvecs"], state["n_rmatvecs"])

    def consistent(self, columns: dict[str, int], state: dict[str, Any]) -> bool:
        """Whether arrays with these numbers of columns, and the state's counts, can come from one run."""
        return state["drawn"] > 0 and set(columns.values()) == {state["drawn"]}


def difference(xp: Any, again: Any, before: Any, size: Any = None) -> float:
    """The distance between two products of one probe, relative to their size, or to `size`."""
    if again.shape != before.shape:
        return math.inf
    scale = aa.safe_scale(xp, before)
    a, b = again / scale, before / scale
    top = xp.sqrt(xp.sum(aa.abs2(xp, b))) if size is None else xp.sum(size / scale)
    return float(xp.sqrt(xp.sum(aa.abs2(xp, a - b))) / xp.where(top > 0, top, 1.0))
