"""Counting what is spent, where it is spent."""

from __future__ import annotations

from typing import Any, SupportsIndex

from traceest import _array_api as aa
from traceest.operators.base import Delegating
from traceest.operators.boundary import answered
from traceest.operators.gram import Gram

MEMORY = 2**28  # bytes that one chunk of columns, with its products, may take
COST = {"matmat": (1, 0), "gram_matmat": (1, 1)}  # (matvecs, rmatvecs) a column; all else is rmatvecs alone


class Metered(Delegating):
    """An operator that counts the columns it is multiplied by, and has what the one inside has.

    Every product is held against what was asked for; see `traceest.operators.boundary`.
    """

    def __init__(self, of: Any) -> None:
        super().__init__(of)
        self.n_matvecs, self.n_rmatvecs = 0, 0

    def __repr__(self) -> str:  # the default would ask for both sides, and finding out about one may be dear
        return repr(self.of)

    def _product(self, name: str, X: Any, *groups: Any) -> Any:
        forward, reverse = COST.get(name, (0, 1))
        self.n_matvecs += forward * X.shape[1]
        self.n_rmatvecs += reverse * X.shape[1]
        return answered(self, name, X, super()._product(name, X, *groups), groups)


class Meter:
    """`op` behaves as the operator given; what it is multiplied by is counted, of a Gram operator on its factor."""

    def __init__(self, A: Any) -> None:
        self._counting = Metered(A.inner)
        self.op: Any = self._counting if A.factor is None else Gram(self._counting)

    @property
    def n_matvecs(self) -> int:
        """Columns multiplied by the operator."""
        return self._counting.n_matvecs

    @property
    def n_rmatvecs(self) -> int:
        """Columns multiplied by the adjoint."""
        return self._counting.n_rmatvecs

    def charge(self, n_matvecs: int, n_rmatvecs: int) -> None:
        """Add products that were made elsewhere, or in an earlier run."""
        self._counting.n_matvecs += n_matvecs
        self._counting.n_rmatvecs += n_rmatvecs

    @property
    def spent(self) -> dict[str, Any]:
        """The two counts, as fields of `Estimate`."""
        return {"n_matvecs": self.n_matvecs, "n_rmatvecs": self.n_rmatvecs}


def chunk_columns(A: Any, chunk_size: int | None) -> int:
    """How many columns to multiply at a time: `chunk_size`, or what A says is best for it and fits `MEMORY`."""
    if chunk_size is not None:
        if isinstance(chunk_size, bool) or not isinstance(chunk_size, (int, SupportsIndex)):
            raise TypeError(f"chunk_size must be an integer, got {chunk_size!r}.")
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")
        return chunk_size
    itemsize = aa.namespace(A).finfo(A.dtype).bits // 8
    fits = max(1, MEMORY // (itemsize * sum(A.shape)))
    best = A.inner.chunk_columns
    return fits if best is None else min(fits, best)
