"""An array as an operator."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any

from traceest import _array_api as aa
from traceest.operators.base import Operator
from traceest.operators.sketched import Formed


class DenseOperator(Operator):
    """The operator of a 2-D array.

    The array is only ever multiplied by: its entries are not looked at, so that costs are counted as
    for any operator.

    Parameters
    ----------
    array : array, (n_rows, n_cols)
        Any Array-API array of floating dtype.
    symmetric, psd : bool
        What is known of it.
    n_blocks : int, optional
        Rows fall into this many contiguous runs of equal length.
    parameters : mapping from names to sizes, optional
        Columns fall into these contiguous runs, in order, for statistics by group (`summary`).
    """

    def __init__(
        self,
        array: Any,
        *,
        symmetric: bool = False,
        psd: bool = False,
        n_blocks: int | None = None,
        parameters: Mapping[str, int] | None = None,
    ) -> None:
        names = parameters or {}
        super().__init__(
            array.shape,
            like=array,
            symmetric=symmetric,
            psd=psd,
            n_blocks=n_blocks,
            parameters=names,
            name=type(self).__name__,
        )
        if names and sum(names.values()) != array.shape[1]:
            raise ValueError(
                f"DenseOperator: parameters have {sum(names.values())} columns in all, the array has {array.shape[1]}."
            )
        self.array, self._ends = array, tuple(pairwise(accumulate(names.values(), initial=0)))

    def matmat(self, X: Any) -> Any:
        """A X."""
        return self.array @ X

    def rmatmat(self, X: Any) -> Any:
        """Aᴴ X."""
        return aa.adjoint(self._xp, self.array) @ X

    def block_rmatmat(self, V: Any) -> Any:
        """(n_blocks, k, n_cols): v_bᵀ conj(A_b), which is (A_bᴴ v_b)ᵀ."""
        xp, B = self._xp, self.n_blocks or 1
        A = xp.reshape(self.array, (B, -1, self.shape[1]))
        V = xp.reshape(V, (B, -1, V.shape[1]))
        return xp.matrix_transpose(V) @ aa.conj(xp, A)

    def block_sketch(self, V: Any) -> Formed:
        """The blocks' sketches, of which a stack of operators takes inner products."""
        return Formed(self._xp, self.block_rmatmat(V), self._ends)

    def grouped_gram(self, V: Any, groups: tuple[tuple[int, ...], ...]) -> Any:
        """(n_groups, n_blocks, k, n_blocks, k): inner products of the blocks' sketches over each group's columns."""
        sketch = self.block_sketch(V)
        return sketch.gram(sketch, groups)
