"""Counting what is spent, where it is spent."""

from __future__ import annotations

from typing import Any

from traceest import _array_api as aa
from traceest.operators import Gram, Operator
from traceest.operators.base import ABILITIES

MEMORY = 2**28  # bytes that one chunk of columns, with its products, may take
COST = {"matmat": (1, 0), "gram_matmat": (1, 1)}  # (matvecs, rmatvecs) a column; all else is rmatvecs alone


class Meter:
    """`op` behaves as the operator given and counts the columns multiplied (of a Gram operator: on its factor)."""

    def __init__(self, A: Any) -> None:
        self.n_matvecs = self.n_rmatvecs = 0
        factor = getattr(A, "factor", None)
        self.op: Any = self._counted(A) if factor is None else Gram(self._counted(factor))

    def _counted(self, A: Any) -> Operator:
        products = {p: self._counting(p, getattr(A, p)) for p in ("matmat", "rmatmat", *ABILITIES) if hasattr(A, p)}
        return Operator(
            A.shape,
            like=A,
            n_blocks=getattr(A, "n_blocks", None),
            psd=getattr(A, "psd", False),
            name=repr(A),
            **products,
        )

    def _counting(self, name: str, product: Any) -> Any:
        forward, reverse = COST.get(name, (0, 1))

        def counted(X: Any) -> Any:
            self.n_matvecs += forward * X.shape[1]
            self.n_rmatvecs += reverse * X.shape[1]
            return product(X)

        return counted

    @property
    def spent(self) -> dict[str, Any]:
        """The two counts, as fields of `Estimate`."""
        return {"n_matvecs": self.n_matvecs, "n_rmatvecs": self.n_rmatvecs}


def chunk_columns(A: Any, chunk_size: int | None) -> int:
    """How many columns to multiply at a time: `chunk_size`, or what fits `MEMORY`."""
    if chunk_size is not None:
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")
        return chunk_size
    itemsize = aa.namespace(A).finfo(A.dtype).bits // 8
    return max(1, MEMORY // (itemsize * sum(A.shape)))
