"""What every sampler has: a metered operator, a stream of probes, and a state that can be written down."""

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

    The error is taken to fall as the number of samples to the power −`rate`, and the exact trace is not resorted to
    before `patience` samples. `deflate()`, where `worth_deflating` says so, turns what was paid for into a sketch.
    """

    KEPT: ClassVar[tuple[str, ...]] = ()
    """Names of the lists of arrays, joined along their columns, that make up the state."""

    FORMS: ClassVar[tuple[str, ...]] = ()
    """Those of `KEPT` with a row for each block of the probes; the others have one for each of the operator."""

    COUNTS: ClassVar[tuple[str, ...]] = ("drawn", "verified", "n_matvecs", "n_rmatvecs")
    """Whole numbers of the state."""

    statistic = "trace"
    """What it estimates, for `merge`."""

    side = "matmat"
    first = 10
    """Samples before the first look: a standard error from fewer says too little to stop on."""

    least = 1
    """Fewest samples that a growth may have."""

    stride = math.inf
    """How many times the samples there are a growth may add, where their spread is known well."""

    patience = 0
    steady = False
    """Whether the error falls as 1/√m whatever is done, so that one known well tells how many samples it takes."""

    asking = 0
    """Products that `worth_deflating` may spend on finding out."""

    caller: str | None = None
    """The call that grows it look by look: its products have to be finite, and its first probe is kept to verify a
    later run. None for a fixed budget, which stays pure: nothing looks at values, so that it can be transformed."""

    def __init__(self, A: Any, stream: Probes, chunk: int) -> None:
        self.meter, self.stream, self.chunk = Meter(A), stream, chunk
        self.xp, self.rows = stream.xp, A.shape[0]
        self.witness: tuple[Any, Any] | None = None  # the first probe multiplied, (n, 1), and what came of it
        self.verified = 0  # products that went into verifying what earlier runs have left
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
        return sum(x.shape[-1] for x in vars(self)[self.KEPT[0]])

    def ahead(self, e: Estimate, target: Target) -> float:
        """Products that `target` is predicted to take yet, after the answer `e`."""
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
        """Products that `deflate` would cost now; 0 where it does not pay, with so many predicted, so many left."""
        return 0

    def deflate(self) -> None:  # noqa: B027 — not abstract: without `worth_deflating` there is nothing to do
        """Turn the products of the samples into a sketch; without `worth_deflating`, nothing."""

    def checked(self, x: Any, columns: int) -> Any:
        """`x`, the product of so many columns just made, if it is finite."""
        if self.caller is not None:
            spent = self.meter.n_matvecs if self.side == "matmat" else self.meter.n_rmatvecs
            check.finite(x, self.side, spent - columns, self.caller)
        return x

    def multiply(self, V: Any) -> Any:
        """A V, a chunk at a time, each found to be finite."""
        chunks = (V[:, i : min(i + self.chunk, V.shape[1])] for i in range(0, V.shape[1], self.chunk))
        return aa.concat_columns(self.xp, [self.checked(self.meter.op.matmat(C), C.shape[1]) for C in chunks])

    def joined(self, name: str) -> Any:
        """The arrays of the list `name` as one."""
        return aa.concat_columns(self.xp, vars(self)[name])

    def remember(self, V: Any, seen: Any) -> None:
        """Keep the first probe of all, and what was `seen` of its product, for a later run to look whether it is so."""
        if self.witness is None and self.caller is not None:
            self.witness = V[:, :1], seen[:, :1]

    def seen(self, V: Any) -> Any:
        """What `remember` is given for the probe V."""
        return self.multiply(V)

    def verify(self) -> None:
        """Multiply the first probe once more, and compare.

        Raises
        ------
        ValueError
            If something else comes out than before: it is another operator.
        """
        if self.witness is None:
            return
        (V, before), spent = self.witness, self.spent
        self.compare(self.seen(V), before)
        self.verified += self.spent - spent

    def compare(self, again: Any, before: Any, size: Any = None) -> None:
        """Raise unless the products, or what was seen of them, are the same to rounding, relative to `size`."""
        off = difference(self.xp, again, before, size)
        allowed = float(self.xp.finfo(self.meter.op.dtype).eps) ** 0.5
        if not off <= allowed:
            raise ValueError(
                f"trace: what was to be gone on from is of another operator: its first probe gives a product {off:.1e} "
                f"off the one that was kept, relative to its size, where rounding excuses {allowed:.1e}. Has a "
                "training step been made, or other data been taken? Start anew: without start=, and with another path "
                "as checkpoint=, or none."
            )

    @property
    def spent(self) -> int:
        """Products on whichever side has more."""
        return max(self.meter.n_matvecs, self.meter.n_rmatvecs)

    # -- written down and taken up again ----------------------------------------------------------
    @property
    def counts(self) -> tuple[str, ...]:
        """Names of the whole numbers of a state."""
        return self.COUNTS

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays of a state; those that are empty are missing."""
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
        """All that the sampler knows, by name."""
        kept = {name: self.joined(name) for name in self.KEPT if vars(self)[name]}
        seen = {} if self.witness is None else dict(zip(("witness", "witnessed"), self.witness, strict=True))
        return kept | seen | self.stream.state() | self.meter.spent | {"verified": self.verified}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`; the probes that it has drawn are skipped, should the same generator draw them again.

        Raises
        ------
        ValueError
            If its parts do not fit together.
        """
        columns = {name: state[name].shape[1] if name in state else 0 for name in self.KEPT}
        seen = [name in state for name in ("witness", "witnessed")]
        # What an Estimate has brought may have had no probe that could be drawn again.
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
        """Whether arrays with so many columns, and the state's counts, can be of one run."""
        return state["drawn"] > 0 and set(columns.values()) == {state["drawn"]}


def difference(xp: Any, again: Any, before: Any, size: Any = None) -> float:
    """How far two products of one probe are apart, relative to their size, or to `size`."""
    if again.shape != before.shape:
        return math.inf
    scale = aa.safe_scale(xp, before)
    a, b = again / scale, before / scale
    top = xp.sqrt(xp.sum(aa.abs2(xp, b))) if size is None else xp.sum(size / scale)
    return float(xp.sqrt(xp.sum(aa.abs2(xp, a - b))) / xp.where(top > 0, top, 1.0))
