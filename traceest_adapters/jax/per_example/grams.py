"""Gram arrays of per-example gradients, from pieces of the probes, within the memory budget.

Held at a time are the derivatives at the taps of some parameters, for all pieces, or where a single parameter's are too
many, for two. Of what is held, gradients that take less work than the ghost form are formed once, for all pairs of
pieces, and as many of them, or of their rows, at a time as may be held beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from traceest_adapters import _memory as memory
from traceest_adapters import _state as common
from traceest_adapters.jax.per_example import compiled, factors, ghost_norms
from traceest_adapters.jax.per_example.plan import Plan

Pairs = list[list[Any]]
"""Inner products of each piece with itself and those after it."""


class Grams(NamedTuple):
    """What the Gram arrays of a batch are made from."""

    plan: Plan
    pullback: Any
    operands: list[Any]
    trained: list[Any]
    rows: int  # examples × probes to a piece
    dtype: Any
    grads: Callable[[tuple[int, ...], Any], Any]  # of parameters that nothing is understood of, from a piece

    def over(self, group: tuple[int, ...], pieces: list[Any]) -> Pairs | None:
        """Summed over the parameters of a group; None if the state depends on none of them."""
        found: Pairs | None = None
        for pairs in self._parts(self.plan.chosen(group), pieces):
            found = pairs if found is None else jax.tree.map(jnp.add, found, pairs)
        return found

    def _parts(self, plan: Plan, pieces: list[Any]) -> Iterator[Pairs]:
        n, known = len(pieces), (*plan.weights, *plan.small)
        for run, times in self._runs(known, [ghost_norms.size(plan, i, self.trained[i]) for i in known], n):
            some = plan.chosen(run)
            deltas = partial(ghost_norms.deltas, self.plan, some, self.pullback)
            if times == 1:
                yield from self._of_held(some, [deltas(piece) for piece in pieces])
            else:
                of_pair = partial(ghost_norms.gram, some, self.dtype, self.plan.at(self.operands, some.weights))
                yield compiled.inner_products(deltas, of_pair, pieces, at_once=False)
        for run, times in self._runs(plan.rest, [self.trained[i].size for i in plan.rest], n):
            yield compiled.inner_products(partial(self.grads, run), compiled.inner, pieces, at_once=times == 1)

    def _of_held(self, some: Plan, held: list[Any]) -> Iterator[Pairs]:
        """Over some parameters, whose `deltas` are held for all pieces."""
        operands = self.plan.at(self.operands, some.weights)
        rows_of = ghost_norms.better_formed(some, self.dtype, operands, held[0][0])
        leaves = tuple(rows_of)
        with memory.within(memory.budget() // 2):  # the other half is for what is held already
            runs = list(self._runs(leaves, [self.trained[i].size for i in leaves], len(held)))
        for run, times in runs:
            o, taps = rows_of[run[0]], [some.at(deltas, run) for deltas, _ in held]
            tiles = factors.parts(o, times)
            for tile in range(tiles):
                of = partial(ghost_norms.formed, some.chosen(run), self.dtype, tiles, some.at(operands, run), tile)
                yield compiled.inner_products(of, compiled.inner, taps, at_once=True)
        rest = some.chosen([i for i in (*some.weights, *some.small) if i not in rows_of])
        if rest.weights or rest.small:
            left = [(some.at(deltas, rest.weights), copies) for deltas, copies in held]
            of_pair = partial(ghost_norms.gram, rest, self.dtype, some.at(operands, rest.weights))
            yield compiled.inner_products(lambda deltas: deltas, of_pair, left, at_once=True)

    def _runs(self, leaves: tuple[int, ...], sizes: list[int], n: int) -> Iterator[tuple[tuple[int, ...], int]]:
        """Runs of parameters, of which an example and probe give `sizes` numbers, and how many budgets n pieces' take.

        That is one, except for a single parameter.
        """
        rows, itemsize = self.rows * n, int(self.dtype.itemsize)
        for run in common.groups(sizes, rows, itemsize):
            held = rows * sum(sizes[i] for i in run) * itemsize
            yield tuple(leaves[i] for i in run), max(1, -(-held // memory.budget()))
