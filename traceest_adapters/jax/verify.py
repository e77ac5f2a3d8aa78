"""Ghost norms are verified at first use: against gradients that are formed, on two examples and two probes.

The rules read a program; that they read it rightly is seen from its values. For each parameter, the inner products of
the gradients of two examples by two random cotangents are computed both ways; a parameter that fails is left to be
treated example by example, which is slower and right. It costs four backward passes of a single example, once for
each model. Under `jax.jit`, where there are no values, nothing is verified.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from traceest_adapters import _state as common
from traceest_adapters.jax import compiling, ghost, layers, pullback, steps
from traceest_adapters.jax.model import Model, traced
from traceest_adapters.jax.plan import Plan

ROUNDING = 1e-5
"""Least difference, relative to the gradients' norms, that tells: parts of a float64 model may be of float32."""
REMEMBERED = 64
_verified: dict[tuple[Model, Plan], Plan] = {}


def verified(plan: Plan, model: Model, trained: list[Any], fixed: list[Any], examples: list[Any], n_b: int) -> Plan:
    """The plan, with parameters whose gradients it does not reproduce moved to `rest`; of arrays with values."""
    key = model, plan
    if key not in _verified:
        arrays = trained, fixed, examples, _cotangents(examples, n_b)
        both = compiling.run(_both, (model, plan), arrays, optimise=False)
        if traced(both):  # the function has a tracer in it
            return plan
        both = _Both(*(np.asarray(x, np.float64) for x in both))
        norms = np.sqrt(np.einsum("lbibi->lbi", both.formed))
        right, wrong = _with_right_cells(plan, trained, both, norms), _wrong(plan, trained, both, norms)
        if len(_verified) >= REMEMBERED:
            _verified.clear()
        _verified[key] = right if not wrong else without(right, wrong)
    return _verified[key]


def without(plan: Plan, leaves: set[int]) -> Plan:
    """The plan with some parameters left to be treated example by example."""
    kept = plan.chosen({*plan.weights, *plan.small} - leaves)
    return kept._replace(rest=tuple(sorted({*plan.rest, *leaves})))


class _Both(NamedTuple):
    """The same in two ways."""

    found: Any  # ⟨g_{b,i}, g_{c,j}⟩ of every parameter that the plan understands, (leaves, B, 2, B, 2)
    squares: Any  # ‖g_{b,i}‖² of it, (leaves, B, 2)
    cells: Any  # of all parameters of a loop's units together, by their forms, (cells, B, 2)
    formed: Any  # as `found`, of gradients that are formed


def _wrong(plan: Plan, trained: list[Any], both: _Both, norms: Any) -> set[int]:
    found, squares, _, formed = both
    tiny = float(jnp.finfo(pullback.dtype_of(trained)).tiny)
    scale = norms[..., None, None] * norms[:, None, None] + tiny
    rtol = _rounding(plan, trained)
    off = (np.abs(found - formed) > rtol * scale) | (np.isfinite(formed) & ~np.isfinite(found))
    off |= (np.abs(squares - norms**2) > rtol * norms**2)[..., None, None]
    return {leaf for leaf, wrong in zip((*plan.weights, *plan.small), off, strict=True) if wrong.any()}


def _with_right_cells(plan: Plan, trained: list[Any], both: _Both, norms: Any) -> Plan:
    """The plan, its weights in units where their forms give the norms that they have."""
    of_leaf = dict(zip((*plan.weights, *plan.small), norms, strict=True))
    right: set[int] = set()
    for cell, found in zip(plan.cells, both.cells, strict=True):
        expected = sum(of_leaf[leaf] ** 2 for leaf in cell.leaves)
        if (np.abs(found - expected) <= _rounding(plan, trained) * expected).all():
            right.update(cell.leaves)
    return plan._replace(loops=tuple(loop.with_units(right) for loop in plan.loops))


def _rounding(plan: Plan, trained: list[Any]) -> float:
    """Relative, in norms and inner products; it adds up from use to use, to what the outputs themselves may be off."""
    eps = max(float(jnp.finfo(dtype).eps) for dtype in (*(p.dtype for p in trained), *_dtypes(plan)))
    deep = max(1, len(plan.uses)) ** 0.5
    return float(max(ROUNDING, min(eps ** (2 / 3) * deep, common.tolerance(eps))))


def _dtypes(plan: Plan) -> list[Any]:
    return [use.result[1] for use in plan.uses]


def _cotangents(examples: list[Any], n_b: int) -> Any:
    """Two for each example, at random: (2, B, n_b)."""
    B = min(2, examples[0].shape[0]) if examples else 1
    return np.random.default_rng(0).standard_normal((2, B, n_b)).astype(np.float32)  # where nothing is compiled for it


def _both(model: Model, plan: Plan, trained: Any, fixed: Any, examples: Any, U: Any) -> _Both:
    examples = [x[:: max(1, x.shape[0] - 1)][:2] for x in examples]  # the first and the last
    dtype = pullback.dtype_of(trained)
    state = jax.eval_shape(model.row, trained, fixed, [x[0] for x in examples])
    U = U.astype(state.dtype)
    leaves = (*plan.weights, *plan.small)
    pull, operands, forms = pullback.tapped(model, plan, trained, fixed, examples)
    taps, copies, states = pullback.pulled(pull, U)
    found, squares, formed = [], [], []
    g = steps.block_grads(model, leaves, 1, trained, fixed, examples, U).astype(dtype)
    start = 0
    for leaf in leaves:
        one = plan.chosen((leaf,))
        kept, deltas = plan.at(operands, one.weights), ghost.of_some(plan, one, taps, copies)
        found.append(ghost.gram(one, dtype, kept, deltas, deltas))
        squares.append(_squares(one, dtype, kept, deltas))
        part = g[:, :, start : start + trained[leaf].size]
        formed.append(steps.inner(part, part))
        start += trained[leaf].size
    cells = ghost.of_cells(plan, dtype, forms, states) if plan.cells else []
    return _Both(
        jnp.stack(found), jnp.stack(squares), jnp.stack(cells) if cells else jnp.zeros((0,)), jnp.stack(formed)
    )


def _squares(one: Plan, dtype: Any, operands: list[Any], deltas: Any) -> Any:
    """‖g_{b,i}‖² of a single parameter, as `ghost.sqnorms` has them: (B, 2)."""
    taps, copies = deltas
    if not one.weights:
        return jnp.sum(jnp.square(jnp.reshape(copies[0].astype(dtype), (*copies[0].shape[:2], -1))), -1)
    return jax.vmap(lambda x, d: layers.sqnorms(ghost.factors(list(one.uses), dtype, x, d)))(operands, taps)
