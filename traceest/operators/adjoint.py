"""The adjoint, which remembers what it is the adjoint of."""

from __future__ import annotations

from typing import Any

from traceest.operators.base import Operator


class Adjoint(Operator):
    """Jᴴ: the two sides of `of` = J change places, found when asked for, since some pay for finding out."""

    def __init__(self, of: Any) -> None:
        super().__init__(
            (of.shape[1], of.shape[0]),
            like=of,
            symmetric=getattr(of, "symmetric", False),
            psd=getattr(of, "psd", False),
            name=f"{getattr(of, 'name', type(of).__name__)}ᴴ",
        )
        self.of = of

    def __getattr__(self, name: str) -> Any:
        other = {"matmat": "rmatmat", "rmatmat": "matmat"}.get(name)
        if other is None:
            raise AttributeError(name)
        return getattr(self.__dict__.get("of"), other)

    @property
    def H(self) -> Any:
        """What it is the adjoint of, with all that can do."""
        return self.of
