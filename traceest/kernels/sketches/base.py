"""`Sketch`: what the same products with one or several kernels tell of them all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from traceest.uncertainty.estimate import Estimate
from traceest.uncertainty.ustatistics import Statistic


class Sketch(ABC):
    """Unbiased traces and inner products of kernels K_a, all from the same products, with their common errors.

    Kernel a is measured in its own unit, so that the squares of large and small ones stay in range: `trace` is in
    units[a], what is of second degree in units[a]·units[b].

    Attributes
    ----------
    xp : namespace
    units : list of 0-d arrays
    fields : dict
        `method` and the counts, for the Estimates.
    targets : list of 0-d arrays
        ⟨K_a, YYᴴ⟩ / ‖YYᴴ‖, in units[a], where targets Y were asked for: it takes no sampling.
    groups : list of Sketch
        The same for the parts of the kernels that belong to groups of their factors' columns, where asked for; the
        whole kernels come behind the parts.
    """

    xp: Any
    units: list[Any]
    fields: dict[str, Any]
    targets: list[Any]
    groups: list[Sketch]

    @property
    def left_with_a_pair(self) -> bool:
        """Whether leaving one probe out leaves a single pair of them, whose cosine is ±1 whatever the kernels are."""
        return False

    @abstractmethod
    def trace(self, a: int) -> Statistic:
        """Tr K_a."""

    @abstractmethod
    def squared_trace(self, a: int) -> Statistic:
        """(tr K_a)²."""

    def product(self, a: int, b: int) -> Statistic:
        """⟨K_a, K_b⟩ = tr(K_aᴴK_b), its real part."""
        return self._once("product", self._product, a, b)

    def squared_distance(self, a: int, b: int) -> tuple[Statistic, Any]:
        """‖K_a − K_b‖² and the unit it is the square of."""
        return self._once("squared distance", self._squared_distance, a, b)

    @abstractmethod
    def _product(self, a: int, b: int) -> Statistic: ...

    @abstractmethod
    def _squared_distance(self, a: int, b: int) -> tuple[Statistic, Any]: ...

    def _once(self, what: str, of: Callable[[int, int], Any], a: int, b: int) -> Any:
        """What several statistics are made of is computed for one of them only; both are symmetric in a and b."""
        known = self.__dict__.setdefault("_known", {})
        key = (what, min(a, b), max(a, b))
        if key not in known:
            known[key] = of(min(a, b), max(a, b))
        return known[key]

    @abstractmethod
    def example_traces(self, a: int) -> Estimate | None:
        """The traces of the blocks on the diagonal, (B,), where there are any to tell apart."""

    @abstractmethod
    def estimate(self, statistic: Statistic, size: Any = 1.0, **fields: Any) -> Estimate:
        """`size` times the statistic, with the error bar that its left-out values give."""


def constant(value: Any) -> Statistic:
    """What no probe changes."""
    return Statistic(value, value)
