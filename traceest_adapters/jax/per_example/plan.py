"""How each parameter of a JAX model is treated, from what a walk through it found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, NamedTuple

from traceest_adapters.jax.per_example import recurrent_norms
from traceest_adapters.jax.per_example.records import Loop, Tape
from traceest_adapters.jax.per_example.rules import Use

SMALL = 2**12
"""Parameters of up to this size, or the size of the largest tapped result, are tapped themselves."""


class Plan(NamedTuple):
    """How each parameter is treated: by its number, those with understood uses, those tapped themselves, all others."""

    uses: tuple[Use, ...]
    weights: tuple[int, ...]
    small: tuple[int, ...]
    rest: tuple[int, ...]
    loops: tuple[Loop, ...] = ()
    budget: int = 0  # bytes; steps are compiled for it

    @property
    def cells(self) -> tuple[recurrent_norms.Cell, ...]:
        """Those of the loops that have units."""
        return tuple(loop.unrolled.cell for loop in self.loops if loop.unrolled is not None)

    @property
    def stepwise(self) -> Plan:
        """The same with loops gone through as they are, and biases in them tapped themselves: fewer taps a step."""
        biases = {leaf for leaf in self.weights if all(self.uses[i].bias for i in self.of(leaf))}
        uses = tuple(use for use in self.uses if use.leaf not in biases)
        weights = tuple(leaf for leaf in self.weights if leaf not in biases)
        loops = tuple(Loop(loop.leaves) for loop in self.loops if set(loop.leaves) & set(weights))
        return self._replace(uses=uses, weights=weights, small=tuple(sorted({*self.small, *biases})), loops=loops)

    def of(self, leaf: int) -> list[int]:
        """The taps at the uses of a weight."""
        return [i for i, use in enumerate(self.uses) if use.leaf == leaf]

    def at(self, arrays: Sequence[Any], leaves: Iterable[int]) -> list[Any]:
        """Those of `arrays`, one a tap, that are at uses of these weights."""
        among = set(leaves)
        return [x for x, use in zip(arrays, self.uses, strict=True) if use.leaf in among]

    def chosen(self, leaves: Iterable[int]) -> Plan:
        """The plan for some parameters only."""
        among = set(leaves)
        pick = lambda part: tuple(leaf for leaf in part if leaf in among)  # noqa: E731
        uses = tuple(use for use in self.uses if use.leaf in among)
        loops = tuple(loop.chosen(among) for loop in self.loops if among & set(loop.leaves))
        return Plan(uses, pick(self.weights), pick(self.small), pick(self.rest), loops, self.budget)

    def without(self, leaves: set[int]) -> Plan:
        """The plan with some parameters left to be treated example by example."""
        kept = self.chosen({*self.weights, *self.small} - leaves)
        return kept._replace(rest=tuple(sorted({*self.rest, *leaves})))

    @property
    def without_units(self) -> Plan:
        """The same with all loops gone through step by step."""
        return self._replace(loops=tuple(loop.with_units(set()) for loop in self.loops))


def sorted_out(tape: Tape, sizes: list[int]) -> Plan:
    """The plan that a walk's tape amounts to, for parameters of these sizes."""
    uses: dict[int, list[Use]] = {}
    for use in tape.uses:
        uses.setdefault(use.leaf, []).append(use)
    weights = [leaf for leaf, some in uses.items() if leaf not in tape.spoiled and _addable(some)]
    left = sorted({*uses, *tape.spoiled} - set(weights))
    kept = tuple(use for use in tape.uses if use.leaf in weights)
    limit = max([SMALL, *(prod(use.result[0]) for use in kept)])
    small = tuple(leaf for leaf in left if max(sizes[leaf], tape.made.get(leaf, 0)) <= limit)
    rest = tuple(leaf for leaf in left if leaf not in small)
    found = tuple(loop.chosen(set(weights)) for loop in tape.loops if set(weights) & set(loop.leaves))
    return Plan(kept, tuple(weights), small, rest, _alone(found, kept))


def _alone(loops: tuple[Loop, ...], uses: tuple[Use, ...]) -> tuple[Loop, ...]:
    """The loops, with those leaves out of their cells that are used elsewhere too."""
    used = [use.leaf for use in uses]
    once = {leaf for leaf in used if used.count(leaf) == 1}
    return tuple(loop.with_units(once) for loop in loops)


def _addable(uses: list[Use]) -> bool:
    """Whether the gradients of all uses have the same rows and columns, or these exchanged."""
    tables = [use.table is not None for use in uses]
    plain = [use for use in uses if use.table is None]
    return all(use.layout in (uses[0].layout, uses[0].turned) for use in uses) and (
        all(tables) or not any(tables) or not any(use.groups for use in plain)
    )
