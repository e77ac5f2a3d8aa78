"""An operator written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from traceest import _array_api as aa
from traceest._boundary import public
from traceest.operators.abilities import can
from traceest.operators.blocks import n_blocks, unit_probes
from traceest.operators.convert import aslinearoperator
from traceest.operators.dense import DenseOperator
from traceest.operators.metering import MEMORY

COLUMNS = 256
"""Unit vectors multiplied at a time."""


@public
def to_dense(A: Any, *, max_bytes: int = 2**30) -> Any:
    """The matrix of A, from unit vectors on the side that takes fewer.

    Of a Gram operator K = JJᴴ with B independent blocks by n/B vjps, all examples at once, or by P jvps. For checks and
    for small operators; statistics need no matrix.

    Parameters
    ----------
    A : operator, (n_rows, n_cols)
        Anything that `aslinearoperator` takes. An array comes back as it is.
    max_bytes : int
        Refuse to make a larger array.

    Returns
    -------
    array, (n_rows, n_cols)

    Raises
    ------
    ValueError
        If the array would take more than `max_bytes`.
    TypeError
        If A has no product.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> te.to_dense(2 * te.aslinearoperator(np.eye(2)))
    array([[2., 0.],
           [0., 2.]])
    """
    A = aslinearoperator(A)
    if isinstance(A, DenseOperator):
        return A.array
    if (size := dense_bytes(A)) > max_bytes:
        raise ValueError(
            f"to_dense: {A.shape[0]}×{A.shape[1]} of {A.dtype} would take {size:,} bytes, max_bytes = {max_bytes:,}; "
            "raise it, or estimate what you need of the operator."
        )
    cost, side = dense_cost(A)
    xp, J = aa.namespace(A), A.factor
    if not side:
        raise TypeError(f"to_dense: {A!r} has no product; it needs matmat or rmatmat.")
    if J is None:
        forward = side == "matmat"
        D = _columns(xp, A, cost, A.matmat if forward else A.rmatmat)
        return D if forward else aa.adjoint(xp, D)
    if side == "rmatmat":
        n, G = A.shape[0], J.sketch_gram(unit_probes(J, 0, cost))
        return xp.reshape(G, (n, n))
    D = _columns(xp, J, cost, J.matmat)
    return D @ aa.adjoint(xp, D)


def dense_bytes(A: Any) -> int:
    """What the matrix of A would take."""
    itemsize: int = aa.namespace(A).finfo(A.dtype).bits // 8
    return A.shape[0] * A.shape[1] * itemsize * (2 if aa.is_complex(aa.namespace(A), A.dtype) else 1)


def dense_cost(A: Any) -> tuple[int, str]:
    """The products that `to_dense` takes, and on which side ("" where there is none)."""
    J = A.inner
    rows = J.shape[0] // (n_blocks(J) if J is not A else 1)
    sides = sorted([(J.shape[1], "matmat"), (rows, "rmatmat")])
    return next((found for found in sides if can(J, found[1])), (0, ""))


def cost_of_all(A: Any) -> int | None:
    """Products, on either side, that the matrix of a square A takes; None where A has no product for it.

    A kernel's matrix can be had for fewer products than it has columns; that is believed to be the cheaper way only
    where the matrix is not larger than what a chunk of products may take.
    """
    cost, side = dense_cost(A)
    if not side:
        return None
    return cost if dense_bytes(A) <= MEMORY else max(cost, int(A.shape[0]))


def _columns(xp: Any, A: Any, n: int, product: Callable[[Any], Any]) -> Any:
    E = xp.eye(n, dtype=A.dtype, device=aa.device(A))
    return aa.concat_columns(xp, [product(E[:, i : min(i + COLUMNS, n)]) for i in range(0, n, COLUMNS)])
