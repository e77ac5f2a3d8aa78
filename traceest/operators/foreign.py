"""Operators of users' own classes: with all that they can do, behind the boundary of products."""

from __future__ import annotations

from typing import Any

from traceest.operators.base import ABILITIES, Operator
from traceest.operators.boundary import Guarded, Promise, is_ours


class Foreign(Operator):
    """A conforming operator of a class that is not ours. What else it has is found on it."""

    def __init__(self, of: Any) -> None:
        super().__init__(
            of.shape,
            like=of,
            symmetric=getattr(of, "symmetric", False) in (True,),
            psd=getattr(of, "psd", False) in (True,),
            n_blocks=getattr(of, "n_blocks", None),
            parameters=getattr(of, "parameters", ()),
            name=getattr(of, "name", type(of).__name__),
        )
        self.of = of
        self._promise = Promise(self.shape, self.dtype, self.n_blocks, self.name)

    def __getattr__(self, name: str) -> Any:
        # Found when asked for: some operators pay for finding out whether they have a side.
        found = getattr(self.__dict__.get("of"), name)
        if name == "factor":
            return found if is_ours(found) else Foreign(found)
        if name not in ("matmat", "rmatmat", *ABILITIES):
            return found
        self.__dict__[name] = guarded = Guarded(found, name, self._promise)
        return guarded

    def __repr__(self) -> str:
        return repr(self.of)
