"""What is known in a walk through a function of one example, and what is found on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp

from traceest_adapters.jax.per_example import bptt, recurrent_norms
from traceest_adapters.jax.per_example.rules import Use, View


class Known(NamedTuple):
    """A value, whether it may differ between examples, and which parameter it is."""

    value: Any
    varies: bool
    view: View | None = None
    sources: frozenset[int] = frozenset()  # the parameters that a value common to all examples is made from


def sources_of(inputs: list[Known]) -> frozenset[int]:
    """All parameters that they are made from."""
    return frozenset().union(*(known.sources for known in inputs))


class Unrolled(NamedTuple):
    """How a scan whose transitions are made is gone through: its units, its carry, and all steps' as a shape."""

    cell: recurrent_norms.Cell
    carry: bptt.Carry
    states: Any


class Loop(NamedTuple):
    """An outermost scan that some weights enter; step by step, unless it says how it is unrolled."""

    leaves: tuple[int, ...]
    unrolled: Unrolled | None = None

    def chosen(self, among: set[int]) -> Loop:
        """The same where some leaves only are followed."""
        return self._replace(leaves=tuple(leaf for leaf in self.leaves if leaf in among)).with_units(among)

    def with_units(self, among: set[int]) -> Loop:
        """The same where some leaves only are taken unit by unit."""
        cell = None if self.unrolled is None else self.unrolled.cell.chosen(among)
        return Loop(self.leaves, None if cell is None or self.unrolled is None else self.unrolled._replace(cell=cell))


class Ready(NamedTuple):
    """Of such a scan, for all steps, the carry before, and the transitions."""

    before: list[Any]
    A: Any


class Prepared(NamedTuple):
    """What is ready, and derivatives by uses, told apart by their numbers, where those by states are ones."""

    ready: Ready
    slopes: dict[int, Any]


class Tape:
    """The uses met in a walk, in order, with the operand kept for each; `taps`, if given, are added on the way.

    `made` says how large the largest value is that is made from a parameter and is common to all examples. The
    outermost scans are met in order, too: with `examples`, how many there are, what is to be done with each is found
    out. A second walk is given these `loops`, and prepares them; the last one is given what is `ready`, and has a tap
    for the states of each loop with units.
    """

    def __init__(
        self,
        taps: Iterator[Any] | None = None,
        examples: int = 0,
        loops: Iterator[Loop] | None = None,
        ready: Iterator[Ready] | None = None,
        states: Iterator[Any] | None = None,
    ) -> None:
        self.taps, self.examples, self.given, self.ready = taps, examples, loops, ready
        self.states = iter(()) if states is None else states
        self.uses: list[Use] = []
        self.operands: list[Any] = []
        self.loops: list[Loop] = []
        self.prepared: list[Prepared] = []
        self.spoiled: set[int] = set()
        self.made: dict[int, int] = {}

    def use(self, use: Use, operand: Any, z: Any) -> Any:
        """Note a product of a parameter's view with `operand`, and put a tap on its result `z`."""
        self.uses.append(use)
        self.operands.append(operand)
        return z if self.taps is None else z + next(self.taps)

    def common(self, values: list[Any], sources: frozenset[int]) -> frozenset[int]:
        """Note that all examples have these values in common."""
        for leaf in sources:
            self.made[leaf] = max(self.made.get(leaf, 0), *(jnp.size(value) for value in values))
        return sources

    def include(self, inner: Tape, uses: list[Use]) -> None:
        """Take over what was found inside a loop."""
        self.uses += uses
        self.spoiled |= inner.spoiled
        self.made = {a: max(self.made.get(a, 0), inner.made.get(a, 0)) for a in {*self.made, *inner.made}}

    def spoil(self, *inputs: Known) -> None:
        """Leave the parameters that reach an equation which is not understood to be treated example by example."""
        self.spoiled.update(known.view.leaf for known in inputs if known.view is not None)


def known_of(out: list[Any], inputs: list[Known], tape: Tape, view: View | None = None) -> list[Known]:
    """What is known of values that are made from those inputs."""
    varies = any(known.varies for known in inputs)
    sources = frozenset() if varies or not out else tape.common(out, sources_of(inputs))
    return [Known(value, varies, view, sources) for value in out]
