"""The pullback of a model's state to taps, for all examples at once, and what is kept beside it."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from traceest_adapters.jax.jaxprs import branches
from traceest_adapters.jax.model import Model
from traceest_adapters.jax.per_example import factors, recurrent_norms
from traceest_adapters.jax.per_example.interpreter import walk
from traceest_adapters.jax.per_example.plan import Plan
from traceest_adapters.jax.per_example.records import Known, Prepared, Ready, Tape
from traceest_adapters.jax.per_example.rules import View
from traceest_adapters.jax.program import registered


class BranchError(Exception):
    """A branch taken by value would, mapped over examples, become a choice between both results."""


def row(model: Model, trained: Any, fixed: Any, example: Any, followed: tuple[int, ...], tape: Tape) -> Any:
    """The state of one example, with every use of the parameters `followed` on the tape."""
    closed = jax.make_jaxpr(model.row)(trained, fixed, example)
    if branches(closed.jaxpr):
        raise BranchError
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


@registered
@partial(jax.jit, static_argnums=(0, 1))
def prepare(
    model: Model, plan: Plan, trained: Any, fixed: Any, examples: Any
) -> tuple[list[Ready], list[recurrent_norms.Forms]]:
    """What is needed of the loops whose transitions are made, before there are taps, and the forms of their cells."""
    if not plan.cells:
        return [], []
    taps, dtype = _zeros(plan, trained, examples), dtype_of(trained)
    _, operands, prepared = _walked(model, plan, trained, fixed, examples, taps, None)
    both = zip(plan.cells, prepared, strict=True)
    return [made.ready for made in prepared], [_forms(plan, dtype, cell, made, operands) for cell, made in both]


@registered
@partial(jax.jit, static_argnums=(0, 1))
def linearise(
    model: Model, plan: Plan, trained: Any, fixed: Any, examples: Any, ready: list[Ready]
) -> tuple[Any, list[Any], Any]:
    """The pullback from the state to all taps, the operands, and the state.

    Taps are at the results of uses, copies of small parameters, and states of cells. The transitions among what is
    `ready` are residuals of the pullback, and held once.
    """

    def of_batch(*taps: Any) -> Any:
        state, operands, _ = _walked(model, plan, trained, fixed, examples, taps, ready)
        return state, operands

    state, pullback, operands = jax.vjp(of_batch, *_zeros(plan, trained, examples), has_aux=True)
    return pullback, operands, state


class Tapped(NamedTuple):
    """A batch linearised with taps."""

    pullback: Any
    operands: list[Any]
    forms: list[recurrent_norms.Forms]


def tapped(model: Model, plan: Plan, *arrays: Any) -> tuple[Tapped, Any]:
    """The pullback, the operands, the forms of cells, and the state."""
    ready, forms = prepare(model, plan, *arrays)
    pullback, operands, state = linearise(model, plan, *arrays, ready)
    return Tapped(pullback, operands, forms), state


def _zeros(plan: Plan, trained: Any, examples: Any) -> Any:
    """At all taps of every example."""
    B = count(examples)
    taps = [jnp.zeros((B, *shape), dtype) for shape, dtype in (use.result for use in plan.uses)]
    copies = [jnp.zeros((B, *trained[i].shape), trained[i].dtype) for i in plan.small]
    carries = [loop.unrolled.states for loop in plan.loops if loop.unrolled is not None]
    states = [jnp.zeros((B, *like.shape), like.dtype) for like in carries]
    return taps, copies, states


def _walked(model: Model, plan: Plan, trained: Any, fixed: Any, examples: Any, taps: Any, ready: Any) -> Any:
    """State, operands, and what was prepared, of every example."""

    def one(taps: Any, ready: Any, example: Any) -> Any:
        leaves, (at_uses, copies, states) = list(trained), taps
        tape = Tape(iter(at_uses), 0, iter(plan.loops), None if ready is None else iter(ready), iter(states))
        for i, copy in zip(plan.small, copies, strict=True):
            leaves[i] = leaves[i] + copy
        state = row(model, leaves, fixed, example, plan.weights, tape)
        assert tuple(tape.uses) == plan.uses, "both walks see the same uses"
        return state, tape.operands, tape.prepared

    return jax.vmap(one, axis_size=count(examples))(taps, ready, examples)


def _forms(
    plan: Plan, dtype: Any, cell: recurrent_norms.Cell, made: Prepared, operands: list[Any]
) -> recurrent_norms.Forms:
    at = [i for leaf in cell.leaves for i in plan.of(leaf)]

    def one(kept: list[Any], slopes: list[Any]) -> tuple[Any, Any]:
        found = [factors.outer(plan.uses[i], x, d[None], dtype) for i, x, d in zip(at, kept, slopes, strict=True)]
        return recurrent_norms.forms(cell, found)

    N, scale = jax.vmap(one)([operands[i] for i in at], [made.slopes[i] for i in at])
    return recurrent_norms.Forms(N, scale, made.ready.A)


def dtype_of(trained: list[Any]) -> Any:
    """That of norms and inner products: float32 at the least."""
    return jnp.promote_types(jnp.result_type(*trained), jnp.float32)


def pulled(pullback: Any, U: Any) -> Any:
    """Derivatives by taps and by copies, (B, c, …) each, and by states past their loops, (c, B, …)."""
    return jax.vmap(pullback, out_axes=(1, 1, 0))(U)


def count(examples: Any) -> int:
    """B."""
    leaves = jax.tree.leaves(examples)
    return int(leaves[0].shape[0]) if leaves else 1
