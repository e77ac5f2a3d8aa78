"""What samplers of sketches have in common: several metered kernels, the same probes through all, and a prediction."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from traceest import _array_api as aa
from traceest.adaptive import Target, known_to
from traceest.estimators.sampler import difference
from traceest.kernels.sketches.fused import fused
from traceest.kernels.sketches.request import Request
from traceest.operators.metering import Meter
from traceest.probes import Probes
from traceest.uncertainty.estimate import Estimate, _to_host

FIRST = 4
"""Probes before the first look; the jackknife needs three."""

FINER = 8
"""A growth adds at least this part of the probes there are: each look at an answer is a chance to be taken in."""


class Meters:
    """Those of several operators, whose counts are added up."""

    def __init__(self, operators: list[Any]) -> None:
        self.each = [Meter(A) for A in operators]

    @property
    def ops(self) -> list[Any]:
        """What is multiplied by."""
        return [meter.op for meter in self.each]

    @property
    def spent(self) -> dict[str, Any]:
        """The two counts, as fields of `Estimate`."""
        return {
            "n_matvecs": sum(meter.n_matvecs for meter in self.each),
            "n_rmatvecs": sum(meter.n_rmatvecs for meter in self.each),
        }


class SketchSampler(ABC):
    """`grow(k)` sends k more probes through every kernel; `estimate()` is the statistic of what came of them all.

    It has what `traceest.adaptive.Growth` asks of a sampler. `steady` as there; `rest` is without end, since probes
    whose products are paired are drawn with replacement.
    """

    COUNTS: ClassVar[tuple[str, ...]] = ("drawn", "verified", "n_matvecs", "n_rmatvecs")
    first, patience, asking, least = FIRST, 0, 0, 1
    rest = math.inf
    steady = False
    stride = 3.0  # how the error falls, by single probes or by pairs, is seen from look to look

    def __init__(self, Ks: list[Any], request: Request, operators: list[Any], stream: Probes) -> None:
        self.Ks, self.request, self.stream = Ks, request, stream
        self.xp, self.meter = aa.namespace(Ks[0]), Meters(operators)
        self.extra = request.extra_columns(self.xp, Ks[0])
        self.verified = 0
        self.witness: Any = None  # the first probe of all
        self.looks: list[tuple[int, float]] = []
        self.statistic: Callable[..., Estimate] | None = None
        self.options: tuple[Any, ...] = ()

    @property
    @abstractmethod
    def n_samples(self) -> int:
        """Probes so far."""

    @property
    def cost(self) -> int:
        """Products that one more probe takes."""
        return len(self.Ks)

    @property
    def spent(self) -> int:
        """Products on whichever side has more."""
        return int(max(self.meter.spent.values()))

    @abstractmethod
    def grow(self, k: int) -> None:
        """Send k more probes through the kernels."""

    @abstractmethod
    def sketch(self) -> Any:
        """What there is so far."""

    def estimate(self) -> Estimate:
        """The statistic so far."""
        if self.statistic is None:
            raise ValueError("a sampler of sketches without a statistic has nothing to estimate.")
        e: Estimate = fused(self.statistic, self.sketch(), *self.options)
        return e

    def ahead(self, e: Estimate, target: Target) -> float:
        """Products that `target` is predicted to take yet.

        What one block may reach shrinks far faster than what they all do, so that nothing is predicted by it.
        """
        k, stderr = self.n_samples, float(_to_host(e.stderr))
        self.looks.append((k, stderr))
        if not 0 < stderr < math.inf:
            return float(k * self.cost)
        m, df = float(k), known_to(e)
        for _ in range(4):  # with the quantile that there is going to be
            allowed = target.stderr(e, df * max(1.0, m / k))
            if not allowed > 0:
                return math.inf
            m = self.predicted(allowed)
        return max(m - k, k / FINER if m > k else k / 2) * self.cost

    @abstractmethod
    def predicted(self, stderr: float) -> float:
        """Probes with which the statistic is expected to have that standard error."""

    def worth_deflating(self, ahead: float, left: int) -> int:
        """Products that `deflate` would cost now; 0 where it does not pay."""
        return 0

    def deflate(self) -> None:  # noqa: B027 — not abstract: without `worth_deflating` there is nothing to do
        """Turn the probes' products into a basis; without `worth_deflating`, nothing."""

    # -- written down and taken up again ----------------------------------------------------------------
    @property
    def counts(self) -> tuple[str, ...]:
        """Names of the whole numbers of a state."""
        return self.COUNTS

    @property
    @abstractmethod
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays of a state; those that are empty are missing."""

    def fits(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> bool:
        """Whether the state's array of that name may have this shape and dtype."""
        if name == "looks":
            return len(shape) == 2 and shape[1] == 2 and dtype == np.float64
        of = {self.stream.dtype, aa.real_dtype(self.xp, self.stream.dtype)}
        if dtype.name not in {str(kind).rpartition(".")[2] for kind in of}:
            return False
        return shape == (self.stream.n, 1) if name == "witness" else len(shape) in (1, 2)

    def sound(self, name: str, x: np.ndarray) -> bool:
        """Whether a state's array of that name may hold these numbers."""
        return name == "looks" or bool(np.all(np.isfinite(x)))

    def state(self) -> dict[str, Any]:
        """All that the sampler knows, by name."""
        looks = np.asarray(self.looks, dtype=np.float64).reshape(-1, 2)
        own = {"witness": self.witness, "looks": looks, "verified": self.verified}
        return own | self.meter.spent | self.stream.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`; the probes that it has drawn are skipped, should the same generator draw them again."""
        if "witness" not in state or "looks" not in state:
            raise ValueError("its arrays and counts do not belong to one run")
        self.witness, self.verified = state["witness"], state["verified"]
        self.looks = [(int(k), float(stderr)) for k, stderr in _to_host(state["looks"])]
        self.stream.restore(state)
        self.meter.each[0].charge(state["n_matvecs"], state["n_rmatvecs"])

    def verify(self) -> None:
        """Multiply the first probe once more by every kernel, and compare.

        Raises
        ------
        ValueError
            If something else comes out than before: these are other kernels.
        """
        spent = self.spent
        for again, before in self.witnessed():
            off = difference(self.xp, again, before)
            allowed = float(self.xp.finfo(self.stream.dtype).eps) ** 0.5
            if not off <= allowed:
                raise ValueError(
                    f"{self.request.caller}: what was to be gone on from is of another operator: its first probe gives "
                    f"a product {off:.1e} off the one that was kept, relative to its size, where rounding excuses "
                    f"{allowed:.1e}. Has a training step been made, or other data been taken? Give checkpoint= another "
                    "path, or none."
                )
        self.verified += self.spent - spent

    @abstractmethod
    def witnessed(self) -> list[tuple[Any, Any]]:
        """What the first probe gives now, and what it gave, of every kernel."""
