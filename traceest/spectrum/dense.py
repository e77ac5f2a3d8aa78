"""A whole self-adjoint operator as an array, for spectra that are cheaper to have exactly."""

from __future__ import annotations

from typing import Any

from traceest import _array_api as aa
from traceest.operators import densify
from traceest.operators.metering import MEMORY
from traceest.spectrum import looks


def dense_cost(A: Any) -> int | None:
    """Products, on either side, that `to_dense` takes; None where A has no product for it.

    A kernel's matrix can be had for fewer products than it has columns; that is believed to be the cheaper way only
    where the matrix is not larger than what a chunk of products may take.
    """
    cost, side = densify.dense_cost(A)
    if not side:
        return None
    return cost if densify.dense_bytes(A) <= MEMORY else max(cost, int(A.shape[0]))


def to_dense(xp: Any, A: Any, caller: str) -> Any:
    """A, (n, n), made Hermitian to the last bit; a ValueError if it is not Hermitian but for rounding."""
    D = densify.to_dense(A, max_bytes=densify.dense_bytes(A))
    looks.symmetric(looks.asymmetry(xp, D), A, caller)
    return (D + aa.adjoint(xp, D)) / 2
