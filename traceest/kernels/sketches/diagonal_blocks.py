"""Blocks A_gg on the diagonal of a square operator A, one a group of its columns, from the products with all of A.

With probes v_i and h_ij = v_i,gᵀ(A v_j)_g, E h_ii = tr A_gg, and for i ≠ j

    E h_ij h_ji = E v_i,gᵀ A_g: v_j v_j,gᵀ A_g: v_i = E v_i,gᵀ A_gg A_g: v_i = tr A_gg² = ‖A_gg‖²

of a symmetric A: one mean over pairs, as of a Gram matrix of sketches. So the products that tell of A tell of all its
blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from traceest import _array_api as aa
from traceest.kernels.sketches.base import Sketch
from traceest.kernels.sketches.one_sided import OneSided
from traceest.uncertainty.estimate import Estimate
from traceest.uncertainty.ustatistics import Statistic, block_sum, pair_mean

Groups = tuple[tuple[int, ...], ...]


class DiagonalBlocks(OneSided):
    """h of the block of every operator, (1, m, 1, m), in the operator's unit; behind them, h of all columns."""

    def trace(self, a: int) -> Statistic:
        """Mean h_ii."""
        return block_sum(self.xp, self.forms(a))

    def pairs(self, Ga: Any, Gb: Any) -> Statistic:
        """The mean over pairs of h_ij h_ji."""
        xp = self.xp
        H = aa.real(xp, Ga * xp.permute_dims(Gb, (2, 3, 0, 1)))
        found = pair_mean(xp, (H + xp.permute_dims(H, (2, 3, 0, 1))) / 2)
        return found.of_something(xp, xp.max(xp.abs(Ga)) * xp.max(xp.abs(Gb)), Ga is Gb)

    def _product(self, a: int, b: int) -> Statistic:
        """⟨A_gg, B_gg⟩, which is ⟨A_gg, B⟩ too."""
        k = len(self.grams) // 2
        if a < k <= b:
            b -= k
        return self._pairs(self.grams[a], self.grams[b])

    def _spreading(self, s: Statistic, spread: Callable[[], Any]) -> Statistic:
        return s

    def example_traces(self, a: int) -> Estimate | None:
        """None: products do not tell examples apart."""
        return None


def diagonal_blocks(xp: Any, V: Any, AV: list[Any], units: list[Any], masks: list[Any], **fields: Any) -> list[Sketch]:
    """The sketches of all groups, whose columns `masks` tell, from the products AV of every operator."""
    whole = [_forms(xp, V, X) for X in AV]
    return [
        DiagonalBlocks(xp, [_forms(xp, mask * V, X) for X in AV] + whole, units + units, targets=[], **fields)
        for mask in masks
    ]


def column_masks(K: Any, groups: Groups | None) -> list[Any]:
    """Of each group of an operator's parameters 1 at its columns and 0 at all others, (n, 1).

    Raises
    ------
    TypeError
        If it is a Gram operator, whose groups are of its factor's columns.
    """
    if groups is None:
        return []
    if not K.parameters:
        raise TypeError("summary: groups= of a Gram operator come from its factor; leave method='two-sided' out.")
    xp, sizes = aa.namespace(K), [prod(x.shape) for x in K.parameters.arrays]

    def mask(members: tuple[int, ...]) -> Any:
        runs = [
            xp.ones((size, 1), dtype=K.dtype, device=aa.device(K)) * float(i in members) for i, size in enumerate(sizes)
        ]
        return xp.concat(runs, axis=0)

    return [mask(members) for members in groups]


def _forms(xp: Any, V: Any, X: Any) -> tuple[Any, ...]:
    return ((aa.adjoint(xp, V) @ X)[None, :, None, :],)
