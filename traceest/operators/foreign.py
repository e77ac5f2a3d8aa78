"""Operators of users' own classes: with all that they can do, behind the boundary of products."""

from __future__ import annotations

from typing import Any

from traceest.operators.abilities import PRODUCTS
from traceest.operators.base import Delegating, Operator
from traceest.operators.boundary import Guarded, Promise, is_ours


class Foreign(Delegating):
    """A conforming operator of a class that is not ours. What it has is read once, here.

    Where it has `lacks`, it is asked for each product when that is to be known: to find out may be dear.
    """

    def __init__(self, of: Any) -> None:
        has = {name: getattr(of, name, default) for name, default in _KNOWN.items()}
        self._lacks, factor, self._chunk_columns = has.pop("lacks"), has.pop("factor"), has.pop("chunk_columns")
        known = has | {flag: has[flag] in (True,) for flag in ("symmetric", "psd")}
        Operator.__init__(self, of.shape, like=of, **known | {"name": has["name"] or type(of).__name__})
        self.of, self._guarded = of, dict[str, Guarded]()
        self._promise = Promise(self.shape, self.dtype, self.n_blocks, self.name)
        self._has = frozenset(PRODUCTS if self._lacks else (name for name in PRODUCTS if hasattr(of, name)))
        if factor is not None:
            self.factor = factor if is_ours(factor) else Foreign(factor)

    def lacks(self, product: str) -> str | None:
        """As the object says, or what it has no attribute for."""
        return self._lacks(product) if self._lacks else None if product in self._has else ""

    @property
    def chunk_columns(self) -> int | None:
        """As many as the object prefers."""
        return self._chunk_columns

    def _product(self, name: str, X: Any, *groups: Any) -> Any:
        if name not in self._guarded:
            self._guarded[name] = Guarded(getattr(self.of, name), name, self._promise)
        return self._guarded[name](X, *groups)

    def __repr__(self) -> str:
        return repr(self.of)


_KNOWN = dict.fromkeys(("symmetric", "psd", "n_blocks", "state_shape", "name", "factor", "chunk_columns", "lacks")) | {
    "parameters": (),
    "feature_axis": -1,
}
