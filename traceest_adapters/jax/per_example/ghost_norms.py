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
import numpy as np

from traceest_adapters import _memory as memory
from traceest_adapters.jax.model import Model
from traceest_adapters.jax.per_example import compiled, factors, recurrent_norms
from traceest_adapters.jax.per_example.plan import Plan, sorted_out
from traceest_adapters.jax.per_example.pullback import BranchError, count, pulled, row, tapped
from traceest_adapters.jax.per_example.records import Tape
from traceest_adapters.jax.per_example.rules import Use
from traceest_adapters.jax.program import registered

ROWS = 16
"""Of a weight's gradients, at most so many rows are formed to hold norms and inner products against."""


# -- what is understood -----------------------------------------------------------------------------------------
def plan(model: Model, trained: list[Any], fixed: list[Any], examples: Any) -> Plan:
    """The plan for a model, from shapes alone."""
    leaves, treedef = jax.tree.flatten(jax.eval_shape(lambda *args: args, trained, fixed, examples))
    return _plan(model, tuple(leaves), treedef, memory.budget())


@registered
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
@registered
@partial(jax.jit, static_argnums=(0, 1))
def sqnorms(
    plan: Plan, dtype: Any, pullback: Any, operands: list[Any], forms: list[recurrent_norms.Forms], U: Any
) -> Any:
    """Σ over the parameters understood of ‖g_{b,i}‖²: (B, c), of (c, B, n_b), or where cells have forms of (n, c)."""
    if U.ndim == 2:  # what goes through the loop one step at a time need not be turned around before
        U = compiled.probes_first(U, len(forms[0].N))
    cells, of_leaves = _apart(plan, dtype, pullback, operands, forms, U)
    total: Any = jnp.zeros((U.shape[1], U.shape[0]), dtype)
    for found in (*cells, *of_leaves.values()):
        total = total + found
    return total


@registered
@partial(jax.jit, static_argnums=(0, 1))
def gaps(plan: Plan, dtype: Any, pullback: Any, operands: list[Any], U: Any, signs: Any, expected: list[Any]) -> Any:
    """How far every parameter's gradients are from what they are known to be: (leaves, 3, 2).

    Of the largest entries, the difference and what it is to be compared with: for Σ_b s_b J_bᵀu_b of one probe u,
    (1, B, n_b), times a random vector y, which leaves no gradient to be formed, `expected` in the parameters' own
    shapes; and for norms and inner products of two examples, as they are found from factors, those of gradients that
    are formed.
    """
    taps, copies, _ = pulled(pullback, U)
    found = []
    for leaf in plan.weights:
        at = plan.of(leaf)
        uses, arrays = [plan.uses[i] for i in at], ([operands[i] for i in at], [taps[i] for i in at])
        f = _all_factors(uses, dtype, *arrays)
        y = _random(f.sizes[-1], dtype)
        right = factors.along(uses[0], expected[leaf].astype(dtype), y)
        found.append(jnp.stack([_gap(factors.signed(f, signs, y), right), *_gaps_of_two(uses, dtype, *arrays)]))
    for leaf, g in zip(plan.small, copies, strict=True):
        total = jnp.tensordot(signs.astype(dtype), g[:, 0].astype(dtype), 1)
        gap = _gap(total, jnp.reshape(expected[leaf], total.shape).astype(dtype))
        found.append(jnp.stack([gap, *[jnp.zeros_like(gap).at[1].set(1)] * 2]))
    return jnp.stack(found)


def _random(n: int, dtype: Any) -> Any:
    """A unit vector, no entry of which is near zero, lest it hide what is wrong there."""
    rng = np.random.default_rng(n)
    y = rng.uniform(1, 2, n) * rng.choice([-1, 1], n)
    return jnp.asarray(y / np.linalg.norm(y), dtype)


def _gap(found: Any, expected: Any) -> Any:
    return jnp.stack([jnp.max(jnp.abs(found - expected)), jnp.max(jnp.abs(expected))])


def _gaps_of_two(uses: list[Use], dtype: Any, operands: list[Any], taps: list[Any]) -> list[Any]:
    """Of some rows of a weight's gradients by the first and the last example."""
    operands, taps = jax.tree.map(lambda x: x[:: max(1, len(x) - 1)][:2], (operands, taps))
    f = _all_factors(uses, dtype, operands, taps)
    ghost = factors.ghost_is_cheaper(factors.Outer(f.left[0], f.right[0], f.table))
    left = f.left[..., :: -(-f.left.shape[-1] // ROWS)]
    two = factors.Outer(left / factors.largest(left), f.right, f.table)  # no square leaves the range of numbers
    g = jax.vmap(lambda a, b: factors.formed(factors.Outer(a, b, f.table)))(two.left, two.right)
    g = jnp.reshape(g, (*g.shape[:2], -1))
    squares = jax.vmap(lambda a, b: factors.sqnorms(factors.Outer(a, b, f.table), ghost))(two.left, two.right)
    return [_gap(squares, jnp.sum(jnp.square(g), -1)), _gap(factors.gram(two, two), factors.inner(g, g))]


@registered
@partial(jax.jit, static_argnums=(0, 1))
def squares_apart(
    plan: Plan, dtype: Any, pullback: Any, operands: list[Any], forms: list[recurrent_norms.Forms], U: Any
) -> tuple[list[Any], dict[int, Any]]:
    """‖g_{b,i}‖² of each cell's parameters together, and of each other parameter understood: (B, c) each."""
    return _apart(plan, dtype, pullback, operands, forms, U)


def _apart(
    plan: Plan, dtype: Any, pullback: Any, operands: list[Any], forms: list[recurrent_norms.Forms], U: Any
) -> tuple[list[Any], dict[int, Any]]:
    taps, copies, states = pulled(pullback, U)
    of_leaves = {}
    for leaf in plan.weights:
        if any(leaf in cell.leaves for cell in plan.cells):
            continue
        at = plan.of(leaf)
        uses, arrays = [plan.uses[i] for i in at], ([operands[i] for i in at], [taps[i] for i in at])
        size = _held(uses, dtype, arrays)
        of_leaves[leaf] = factors.over_examples(partial(_squares, uses, dtype), arrays, size)
    for leaf, g in zip(plan.small, copies, strict=True):
        of_leaves[leaf] = jnp.sum(jnp.square(jnp.reshape(g.astype(dtype), (*g.shape[:2], -1))), -1)
    return of_cells(plan, dtype, forms, states), of_leaves


def _squares(uses: list[Use], dtype: Any, arrays: Any) -> Any:
    return factors.sqnorms(of_example(uses, dtype, *arrays))


def of_cells(plan: Plan, dtype: Any, forms: list[recurrent_norms.Forms], states: list[Any]) -> list[Any]:
    """The part of it that loops' units give, (B, c) each."""
    return [recurrent_norms.sqnorms(c, f, d.astype(dtype)) for c, f, d in zip(plan.cells, forms, states, strict=True)]


def _held(uses: list[Use], dtype: Any, arrays: Any) -> int:
    """Bytes that the norms of one example take."""
    found: list[int] = []

    def one(arrays: Any) -> None:
        found.append(factors.numbers(of_example(uses, dtype, *arrays)))

    jax.eval_shape(one, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), arrays))
    return found[0] * jnp.dtype(dtype).itemsize


@registered
@partial(jax.jit, static_argnums=(0, 1))
def deltas(plan: Plan, some: Plan, pullback: Any, U: Any) -> Any:
    """What the probes U, (c, B, n_b), give at the taps of `some` parameters: (B, c, …) each."""
    taps, copies, _ = pulled(pullback, U)
    return of_some(plan, some, taps, copies)


def of_some(plan: Plan, some: Plan, taps: list[Any], copies: list[Any]) -> tuple[list[Any], list[Any]]:
    """Of what is at all taps, and all copies, that of some parameters."""
    return plan.at(taps, some.weights), [g for g, leaf in zip(copies, plan.small, strict=True) if leaf in some.small]


@registered
@partial(jax.jit, static_argnums=(0, 1))
def gram(some: Plan, dtype: Any, operands: list[Any], P: Any, Q: Any) -> Any:
    """⟨g_{b,i}, g_{c,j}⟩, summed over some parameters, from two pieces' `deltas`: (B, c, B, c)."""
    return _gram((some, some), dtype, (operands, operands), (P, Q))


@registered
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
        total = total + factors.gram(*found)
    for g, h in zip(deltas[0][1], deltas[1][1], strict=True):
        total = total + factors.inner(g.astype(dtype), h.astype(dtype))
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


@registered
@lru_cache(maxsize=256)
def _better_formed(uses: tuple[Use, ...], dtype: Any, xs: Any, ds: Any, budget: int) -> int | None:
    found = []

    def look(xs: Any, ds: Any) -> None:
        f = _all_factors(list(uses), dtype, xs, ds)
        found.append(f.left.shape[-1] if factors.better_formed(f) else None)

    jax.eval_shape(look, *([jax.ShapeDtypeStruct(*s) for s in of] for of in (xs, ds)))
    return found[0]


@registered
@partial(jax.jit, static_argnums=(0, 1, 2))
def formed(some: Plan, dtype: Any, tiles: int, operands: list[Any], tile: Any, taps: list[Any]) -> Any:
    """One of `tiles` parts of the gradients of some weights, from a piece's `deltas`: (B, c, P / tiles)."""
    parts = []
    for leaf in some.weights:
        g = factors.rows(_of_leaf(some, leaf, dtype, operands, taps), tiles, tile)
        parts.append(jnp.reshape(g, (*g.shape[:2], -1)))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def of_example(uses: list[Use], dtype: Any, operands: Any, taps: Any) -> factors.Outer:
    """Of one example."""
    return factors.merged(uses, [factors.outer(u, x, d, dtype) for u, x, d in zip(uses, operands, taps, strict=True)])


def _of_leaf(plan: Plan, leaf: int, dtype: Any, operands: list[Any], taps: list[Any]) -> factors.Outer:
    """Of one weight, for all examples."""
    at = plan.of(leaf)
    return _all_factors([plan.uses[i] for i in at], dtype, [operands[i] for i in at], [taps[i] for i in at])


def _all_factors(uses: list[Use], dtype: Any, operands: Any, taps: Any) -> factors.Outer:
    tables: list[int | None] = []

    def one(x: Any, d: Any) -> Any:
        f = of_example(uses, dtype, x, d)
        tables.append(f.table)
        return f.left, f.right

    left, right = jax.vmap(one)(operands, taps)
    return factors.Outer(left, right, tables[-1])


def size(plan: Plan, leaf: int, parameter: Any) -> int:
    """How many numbers a probe gives at the taps of a parameter, for one example."""
    return sum(prod(plan.uses[i].result[0]) for i in plan.of(leaf)) or parameter.size
