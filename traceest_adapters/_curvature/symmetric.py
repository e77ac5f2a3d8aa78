"""Products with a second derivative, several columns at a time, looked at before they are believed.

A framework's rule for several columns at once may be wrong, and so may its second derivative. Both show in one product
with a random vector v by itself: ⟨v, H x⟩ has to be ⟨H v, x⟩ for every column x. Where it is not, columns are taken one
by one, if that is what mends it; a second derivative that is not symmetric is none, and there is an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from traceest import _array_api as aa
from traceest.probes import Probes
from traceest_adapters import _state as common

Product = Callable[[Any], Any]
CLEAR = 30.0
"""So many times the tolerance is no rounding."""


@dataclass
class Found:
    """What was found of products that are made in one way, for this matrix and for those of other batches."""

    believed: set[int] = field(default_factory=set)
    """Numbers of columns of which a product was looked at."""
    singly: bool = False
    """Whether columns are to be taken one by one."""


class Symmetric:
    """X ↦ H X, (n, k) → (n, k), by `several` columns at once where they agree with `one` at a time, (n, 1) → (n, 1)."""

    def __init__(
        self, several: Product, one: Product, like: Any, caller: str, instead: str, found: Found | None = None
    ) -> None:
        self.several, self.one, self.like, self.caller, self.instead = several, one, like, caller, instead
        self.found = Found() if found is None else found
        self._seen: tuple[Any, Any] | None = None

    def __call__(self, X: Any) -> Any:
        Y = self._singly(X) if self.found.singly else self.several(X)
        if X.shape[1] in self.found.believed:
            return Y
        return self._looked_at(X, Y)

    def _singly(self, X: Any) -> Any:
        xp = aa.namespace(X)
        return xp.concat([self.one(X[:, i : i + 1]) for i in range(X.shape[1])], axis=1)

    def _looked_at(self, X: Any, Y: Any) -> Any:
        off, shown = self._asymmetry(X, Y)
        if off > 1 and not self.found.singly and X.shape[1] > 1:
            one_by_one = self._singly(X)
            if _differ(one_by_one, Y):
                self.found.singly, Y = True, one_by_one
                warnings.warn(
                    f"{self.caller}: products with several columns at once differ from those with one at a time, by a "
                    "rule of the framework (its vmap) that is wrong for this model; they are taken one by one, which "
                    "is right and slower.",
                    RuntimeWarning,
                    stacklevel=2,
                )
                off, shown = self._asymmetry(X, Y)
        if off > CLEAR:
            raise ValueError(
                f"{self.caller}: the second derivative that the framework gives is not symmetric (⟨v, Hx⟩ and ⟨Hv, x⟩ "
                "differ), so that it is wrong: a function in the model or the loss has a backward pass that cannot be "
                f"differentiated rightly. Replace it, or ask for {self.instead}."
            )
        if shown:
            self.found.believed.add(X.shape[1])
        return Y

    def _asymmetry(self, X: Any, Y: Any) -> tuple[float, bool]:
        """The largest difference of ⟨v, H x⟩ and ⟨H v, x⟩, over what rounding makes; and whether they differ from 0."""
        if self._seen is None:
            v = Probes(self.like.shape[0], self.like, rng=0, distribution="gaussian").take(1)
            self._seen = v, self.one(v)
            check_finite(bool(aa.namespace(Y).all(aa.namespace(Y).isfinite(self._seen[1]))), self.caller)
        xp, (v, Hv) = aa.namespace(Y), self._seen
        v, X = xp.astype(v, Y.dtype), xp.astype(X, Y.dtype)
        unit = aa.safe_scale(xp, Hv)
        a, b = xp.sum(v * (Y / unit), axis=0), xp.sum(Hv / unit * X, axis=0)
        root = float(X.shape[0]) ** -0.5
        scale = (_norms(xp, v) * _norms(xp, Y / unit) + _norms(xp, Hv / unit) * _norms(xp, X)) * root
        tolerance = common.tolerance(float(xp.finfo(Y.dtype).eps))
        off = xp.where(scale > 0, xp.abs(a - b) / xp.where(scale > 0, scale, xp.ones_like(scale)), scale)
        return float(xp.max(off)) / tolerance, bool(xp.any(a != 0))


def check_finite(finite: bool, caller: str, what: str = "a product with a random vector") -> None:
    """Raise unless what was looked at is finite."""
    if not finite:
        raise ValueError(
            f"{caller}: there is NaN or infinity in {what}; look for a logarithm, a root, a norm or a division at zero "
            "in the model and the loss, at inputs and parameters, or try float64."
        )


def _norms(xp: Any, X: Any) -> Any:
    return xp.sqrt(xp.sum(X * X, axis=0))


def _differ(one_by_one: Any, Y: Any) -> bool:
    xp = aa.namespace(Y)
    size = float(xp.max(xp.abs(one_by_one)))
    return not float(xp.max(xp.abs(one_by_one - Y))) <= common.tolerance(float(xp.finfo(Y.dtype).eps)) * size
