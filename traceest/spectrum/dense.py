"""A whole self-adjoint operator as an array, for spectra that are cheaper to have exactly."""

from __future__ import annotations

from typing import Any

from traceest import _array_api as aa
from traceest.estimators._metering import MEMORY
from traceest.operators.blocks import n_blocks, sketch_gram, unit_probes


def dense_cost(A: Any) -> int | None:
    """Products, on either side, that `to_dense` takes; None where A has no product for it.

    Of K = JJᴴ with B independent blocks of rows: n/B vjps, where the (n, n) array is not larger than what a chunk of
    products may take. Of any other A: n products, whose results are that array.
    """
    n, J = A.shape[0], getattr(A, "factor", None)
    if J is not None and hasattr(J, "rmatmat"):
        B = n_blocks(J)
        itemsize = aa.namespace(A).finfo(A.dtype).bits // 8
        return n if n * n * itemsize > MEMORY else n // B
    return n if hasattr(A, "matmat") else None


def to_dense(xp: Any, A: Any) -> Any:
    """A, (n, n), made Hermitian to the last bit; of a Gram operator by vjps alone."""
    n, J = A.shape[0], getattr(A, "factor", None)
    if J is not None and hasattr(J, "rmatmat"):
        D = xp.reshape(sketch_gram(J, unit_probes(J, 0, n // n_blocks(J))), (n, n))
    else:
        D = A.matmat(xp.eye(n, dtype=A.dtype, device=aa.device(A)))
    return (D + aa.adjoint(xp, D)) / 2
