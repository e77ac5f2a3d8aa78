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

from collections.abc import Iterable
from functools import lru_cache, partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from traceest_adapters.jax import layers
from traceest_adapters.jax.jaxprs import branches
from traceest_adapters.jax.model import Model
from traceest_adapters.jax.rules import Use, View
from traceest_adapters.jax.taps import Known, Tape, walk

SMALL = 2**12
"""Parameters of up to this size, or the size of the largest tapped result, are tapped themselves."""


class Plan(NamedTuple):
    """How each parameter is treated: by its number, those with understood uses, those tapped themselves, all others."""

    uses: tuple[Use, ...]
    weights: tuple[int, ...]
    small: tuple[int, ...]
    rest: tuple[int, ...]
    budget: int = 0  # bytes; steps are compiled for it

    def of(self, leaf: int) -> list[int]:
        """The taps at the uses of a weight."""
        return [i for i, use in enumerate(self.uses) if use.leaf == leaf]

    def chosen(self, leaves: Iterable[int]) -> Plan:
        """The plan for some parameters only."""
        among = set(leaves)
        pick = lambda part: tuple(leaf for leaf in part if leaf in among)  # noqa: E731
        uses = tuple(use for use in self.uses if use.leaf in among)
        return Plan(uses, pick(self.weights), pick(self.small), pick(self.rest), self.budget)


# -- what is understood -----------------------------------------------------------------------------------------
def plan(model: Model, trained: list[Any], fixed: list[Any], examples: Any) -> Plan:
    """The plan for a model, from shapes alone."""
    leaves, treedef = jax.tree.flatten(jax.eval_shape(lambda *args: args, trained, fixed, examples))
    return _plan(model, tuple(leaves), treedef)


@lru_cache(maxsize=64)
def _plan(model: Model, leaves: tuple[Any, ...], treedef: Any) -> Plan:
    trained, fixed, examples = jax.tree.unflatten(treedef, leaves)
    everything = tuple(range(len(trained)))
    tapes: list[Tape] = []

    try:
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), examples)
        jax.eval_shape(lambda p, f, example: _row(model, p, f, example, everything, _new(tapes)), trained, fixed, one)
        found = _sorted_out(tapes[-1], [prod(p.shape) for p in trained])
        jax.eval_shape(partial(linearise, model, found), trained, fixed, examples)
    except (NotImplementedError, _BranchError):
        return Plan((), (), (), everything)
    return found


def _new(tapes: list[Tape]) -> Tape:
    tapes.append(Tape())
    return tapes[-1]


class _BranchError(Exception):
    """A branch taken by value would, mapped over examples, become a choice between both results."""


def _sorted_out(tape: Tape, sizes: list[int]) -> Plan:
    uses: dict[int, list[Use]] = {}
    for use in tape.uses:
        uses.setdefault(use.leaf, []).append(use)
    weights = [leaf for leaf, some in uses.items() if leaf not in tape.spoiled and _addable(some)]
    left = sorted({*uses, *tape.spoiled} - set(weights))
    kept = tuple(use for use in tape.uses if use.leaf in weights)
    limit = max([SMALL, *(prod(use.result[0]) for use in kept)])
    small = tuple(leaf for leaf in left if max(sizes[leaf], tape.made.get(leaf, 0)) <= limit)
    return Plan(kept, tuple(weights), small, tuple(leaf for leaf in left if leaf not in small))


def _addable(uses: list[Use]) -> bool:
    """Whether the gradients of all uses have the same rows and columns, or these exchanged."""
    tables = [use.table is not None for use in uses]
    plain = [use for use in uses if use.table is None]
    return all(use.layout in (uses[0].layout, uses[0].turned) for use in uses) and (
        all(tables) or not any(tables) or not any(use.groups for use in plain)
    )


def _row(model: Model, trained: Any, fixed: Any, example: Any, followed: tuple[int, ...], tape: Tape) -> Any:
    """The state of one example, with every use of the parameters `followed` on the tape."""
    closed = jax.make_jaxpr(model.row)(trained, fixed, example)
    if branches(closed.jaxpr):
        raise _BranchError
    alone = model.batch_axis is None
    inputs = [Known(p, alone, _view(i, p) if i in followed else None, frozenset([i])) for i, p in enumerate(trained)]
    inputs += [Known(x, alone) for x in fixed]
    inputs += [Known(x, True) for x in jax.tree.leaves(example)]
    (state,) = walk(closed.jaxpr, closed.consts, inputs, tape)
    tape.spoil(state)
    return state.value


def _view(leaf: int, p: Any) -> View:
    shape = tuple(n for n in p.shape if n != 1)
    axes = iter(range(len(shape)))
    return View(leaf, shape, tuple(None if n == 1 else next(axes) for n in p.shape))


# -- compiled steps ---------------------------------------------------------------------------------------------
@partial(jax.jit, static_argnums=(0, 1))
def linearise(model: Model, plan: Plan, trained: Any, fixed: Any, examples: Any) -> tuple[Any, list[Any]]:
    """The pullback from the state to all taps, (results of uses, copies of small parameters), and the operands."""
    B = jax.tree.leaves(examples)[0].shape[0] if jax.tree.leaves(examples) else 1

    def one(taps: list[Any], copies: list[Any], example: Any) -> Any:
        leaves, tape = list(trained), Tape(iter(taps))
        for i, copy in zip(plan.small, copies, strict=True):
            leaves[i] = leaves[i] + copy
        state = _row(model, leaves, fixed, example, plan.weights, tape)
        assert tuple(tape.uses) == plan.uses, "both walks see the same uses"
        return state, tape.operands

    taps = [jnp.zeros((B, *shape), dtype) for shape, dtype in (use.result for use in plan.uses)]
    copies = [jnp.zeros((B, *trained[i].shape), trained[i].dtype) for i in plan.small]
    batch = jax.vmap(one, axis_size=B)
    _, pullback, operands = jax.vjp(lambda taps, copies: batch(taps, copies, examples), taps, copies, has_aux=True)
    return pullback, operands


@partial(jax.jit, static_argnums=(0, 1))
def sqnorms(plan: Plan, dtype: Any, pullback: Any, operands: list[Any], U: Any) -> Any:
    """Σ over the parameters understood of ‖g_{b,i}‖², for (c, B, n_b): (B, c)."""
    taps, copies = _deltas(pullback, U)
    total: Any = jnp.zeros((U.shape[1], U.shape[0]), dtype)
    for leaf in plan.weights:
        at = plan.of(leaf)
        uses, arrays = [plan.uses[i] for i in at], ([operands[i] for i in at], [taps[i] for i in at])

        def norms(arrays: Any, uses: list[Use] = uses) -> Any:
            return layers.sqnorms(factors(uses, dtype, *arrays))

        size = _held(uses, dtype, arrays)
        total = total + layers.over_examples(norms, arrays, size)
    for g in copies:
        total = total + jnp.sum(jnp.square(jnp.reshape(g.astype(dtype), (*g.shape[:2], -1))), -1)
    return total


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
    taps, copies = _deltas(pullback, U)
    taps = [d for d, use in zip(taps, plan.uses, strict=True) if use.leaf in some.weights]
    return taps, [g for g, leaf in zip(copies, plan.small, strict=True) if leaf in some.small]


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
            at = plan.of(leaf)
            found.append(_all_factors([plan.uses[i] for i in at], dtype, [kept[i] for i in at], [taps[i] for i in at]))
        total = total + layers.gram(*found)
    for g, h in zip(deltas[0][1], deltas[1][1], strict=True):
        flat = (jnp.reshape(x.astype(dtype), (*x.shape[:2], -1)) for x in (g, h))
        total = total + jnp.einsum("bcp,Bdp->bcBd", *flat)
    return total


def _deltas(pullback: Any, U: Any) -> Any:
    return jax.vmap(pullback, out_axes=1)(U)


def factors(uses: list[Use], dtype: Any, operands: Any, taps: Any) -> layers.Outer:
    """Of one example."""
    return layers.merged(uses, [layers.outer(u, x, d, dtype) for u, x, d in zip(uses, operands, taps, strict=True)])


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
