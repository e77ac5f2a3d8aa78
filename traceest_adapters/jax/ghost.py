"""Norms and Gram matrices of per-example gradients from one pass over the whole batch: ghost norms.

The function of one example is walked through with taps at its weights' products (`taps`) and mapped over examples:
one pullback then gives, for every example and probe, δ at every tap, and with the operands kept on the way forward
these make up the gradients of weights, which are never formed as a whole. A parameter that is small is tapped itself,
whatever is done with it: each example has a copy of its own. What is large and not understood is left in `rest`, to
be treated example by example.

What a model does with its parameters is known from its jaxpr alone; hence all this works without values, under
`jax.jit` and the other transformations.
"""

from __future__ import annotations

from functools import lru_cache, partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from traceest_adapters import _memory as memory
from traceest_adapters.jax import layers, steps, units
from traceest_adapters.jax.model import Model
from traceest_adapters.jax.plan import Plan, sorted_out
from traceest_adapters.jax.pullback import BranchError, count, pulled, row, tapped
from traceest_adapters.jax.rules import Use
from traceest_adapters.jax.tape import Tape


# -- what is understood -----------------------------------------------------------------------------------------
def plan(model: Model, trained: list[Any], fixed: list[Any], examples: Any) -> Plan:
    """The plan for a model, from shapes alone."""
    leaves, treedef = jax.tree.flatten(jax.eval_shape(lambda *args: args, trained, fixed, examples))
    return _plan(model, tuple(leaves), treedef, memory.budget())


@lru_cache(maxsize=64)
def _plan(model: Model, leaves: tuple[Any, ...], treedef: Any, budget: int) -> Plan:
    """For this budget, which what is worth holding depends on."""
    trained, fixed, examples = jax.tree.unflatten(treedef, leaves)
    everything = tuple(range(len(trained)))
    tapes: list[Tape] = []

    try:
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), examples)
        B = count(examples)
        jax.eval_shape(lambda p, f, example: row(model, p, f, example, everything, _new(tapes, B)), trained, fixed, one)
        found = sorted_out(tapes[-1], [prod(p.shape) for p in trained])
        arrays = trained, fixed, examples
        jax.eval_shape(partial(tapped, model, found), *arrays)
    except (NotImplementedError, BranchError):
        return Plan((), (), (), everything)
    return found


def _new(tapes: list[Tape], examples: int) -> Tape:
    tapes.append(Tape(examples=examples))
    return tapes[-1]


# -- compiled steps ---------------------------------------------------------------------------------------------
@partial(jax.jit, static_argnums=(0, 1))
def sqnorms(plan: Plan, dtype: Any, pullback: Any, operands: list[Any], forms: list[units.Forms], U: Any) -> Any:
    """Σ over the parameters understood of ‖g_{b,i}‖²: (B, c), of (c, B, n_b), or where cells have forms of (n, c)."""
    if U.ndim == 2:  # what goes through the loop one step at a time need not be turned around before
        U = steps.probes_first(U, len(forms[0].N))
    taps, copies, states = pulled(pullback, U)
    total: Any = jnp.zeros((U.shape[1], U.shape[0]), dtype)
    for squares in of_cells(plan, dtype, forms, states):
        total = total + squares
    for leaf in plan.weights:
        if any(leaf in cell.leaves for cell in plan.cells):
            continue
        at = plan.of(leaf)
        uses, arrays = [plan.uses[i] for i in at], ([operands[i] for i in at], [taps[i] for i in at])

        def norms(arrays: Any, uses: list[Use] = uses) -> Any:
            return layers.sqnorms(factors(uses, dtype, *arrays))

        size = _held(uses, dtype, arrays)
        total = total + layers.over_examples(norms, arrays, size)
    for g in copies:
        total = total + jnp.sum(jnp.square(jnp.reshape(g.astype(dtype), (*g.shape[:2], -1))), -1)
    return total


def of_cells(plan: Plan, dtype: Any, forms: list[units.Forms], states: list[Any]) -> list[Any]:
    """The part of it that loops' units give, (B, c) each."""
    return [units.sqnorms(c, f, d.astype(dtype)) for c, f, d in zip(plan.cells, forms, states, strict=True)]


def _held(uses: list[Use], dtype: Any, arrays: Any) -> int:
    """Bytes that the norms of one example take."""
    found: list[int] = []

    def one(arrays: Any) -> None:
        found.append(layers.numbers(factors(uses, dtype, *arrays)))

    jax.eval_shape(one, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), arrays))
    return found[0] * jnp.dtype(dtype).itemsize


@partial(jax.jit, static_argnums=(0, 1))
def deltas(plan: Plan, some: Plan, pullback: Any, U: Any) -> Any:
    """What the probes U, (c, B, n_b), give at the taps of `some` parameters: (B, c, …) each."""
    taps, copies, _ = pulled(pullback, U)
    return of_some(plan, some, taps, copies)


def of_some(plan: Plan, some: Plan, taps: list[Any], copies: list[Any]) -> tuple[list[Any], list[Any]]:
    """Of what is at all taps, and all copies, that of some parameters."""
    return plan.at(taps, some.weights), [g for g, leaf in zip(copies, plan.small, strict=True) if leaf in some.small]


@partial(jax.jit, static_argnums=(0, 1))
def gram(some: Plan, dtype: Any, operands: list[Any], P: Any, Q: Any) -> Any:
    """⟨g_{b,i}, g_{c,j}⟩, summed over some parameters, from two pieces' `deltas`: (B, c, B, c)."""
    return _gram((some, some), dtype, (operands, operands), (P, Q))


@partial(jax.jit, static_argnums=(0, 1))
def cross_gram(both: tuple[Plan, Plan], dtype: Any, operands: tuple[Any, Any], deltas: tuple[Any, Any]) -> Any:
    """The same of two batches, each with a plan for the same parameters, operands and `deltas`: (B, c, B′, c)."""
    return _gram(both, dtype, operands, deltas)


def _gram(plans: tuple[Plan, Plan], dtype: Any, operands: tuple[Any, Any], deltas: tuple[Any, Any]) -> Any:
    total: Any = 0.0
    for leaf in plans[0].weights:
        found = []
        for plan, kept, (taps, _) in zip(plans, operands, deltas, strict=True):
            found.append(_of_leaf(plan, leaf, dtype, kept, taps))
        total = total + layers.gram(*found)
    for g, h in zip(deltas[0][1], deltas[1][1], strict=True):
        total = total + layers.inner(g.astype(dtype), h.astype(dtype))
    return total


def better_formed(some: Plan, dtype: Any, operands: list[Any], taps: list[Any]) -> dict[int, int]:
    """The weights whose Gram matrices take less work from gradients, formed once for all pairs of pieces.

    With each, into how many parts its gradients' rows may be divided.
    """
    shapes = [[(x.shape, x.dtype) for x in arrays] for arrays in (operands, taps)]
    found = {}
    for leaf in some.weights:
        at = some.of(leaf)
        uses, (xs, ds) = tuple(some.uses[i] for i in at), (tuple(s[i] for i in at) for s in shapes)
        o = _better_formed(uses, dtype, xs, ds, some.budget)
        if o is not None:
            found[leaf] = o
    return found


@lru_cache(maxsize=256)
def _better_formed(uses: tuple[Use, ...], dtype: Any, xs: Any, ds: Any, budget: int) -> int | None:
    found = []

    def look(xs: Any, ds: Any) -> None:
        f = _all_factors(list(uses), dtype, xs, ds)
        found.append(f.left.shape[-1] if layers.better_formed(f) else None)

    jax.eval_shape(look, *([jax.ShapeDtypeStruct(*s) for s in of] for of in (xs, ds)))
    return found[0]


@partial(jax.jit, static_argnums=(0, 1, 2))
def formed(some: Plan, dtype: Any, tiles: int, operands: list[Any], tile: Any, taps: list[Any]) -> Any:
    """One of `tiles` parts of the gradients of some weights, from a piece's `deltas`: (B, c, P / tiles)."""
    parts = []
    for leaf in some.weights:
        g = layers.rows(_of_leaf(some, leaf, dtype, operands, taps), tiles, tile)
        parts.append(jnp.reshape(g, (*g.shape[:2], -1)))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def factors(uses: list[Use], dtype: Any, operands: Any, taps: Any) -> layers.Outer:
    """Of one example."""
    return layers.merged(uses, [layers.outer(u, x, d, dtype) for u, x, d in zip(uses, operands, taps, strict=True)])


def _of_leaf(plan: Plan, leaf: int, dtype: Any, operands: list[Any], taps: list[Any]) -> layers.Outer:
    """Of one weight, for all examples."""
    at = plan.of(leaf)
    return _all_factors([plan.uses[i] for i in at], dtype, [operands[i] for i in at], [taps[i] for i in at])


def _all_factors(uses: list[Use], dtype: Any, operands: Any, taps: Any) -> layers.Outer:
    tables: list[int | None] = []

    def one(x: Any, d: Any) -> Any:
        f = factors(uses, dtype, x, d)
        tables.append(f.table)
        return f.left, f.right

    left, right = jax.vmap(one)(operands, taps)
    return layers.Outer(left, right, tables[-1])


def size(plan: Plan, leaf: int, parameter: Any) -> int:
    """How many numbers a probe gives at the taps of a parameter, for one example."""
    return sum(prod(plan.uses[i].result[0]) for i in plan.of(leaf)) or parameter.size
