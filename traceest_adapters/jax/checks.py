"""What can be wrong with a JAX model and its batch, said before any long work."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from traceest_adapters import _state as common
from traceest_adapters.jax.model import Model


def shapes(model: Model, params: Any, inputs: Any) -> list[tuple[int, ...]]:
    """The shapes of the state's arrays.

    Raises
    ------
    TypeError, ValueError
        Unless the state is real floating, and inputs and state share their batch axis.
    """
    state = jax.eval_shape(lambda p, x: common.selector(model.output)(model.fn(p, *x)), params, inputs)
    arrays = jax.tree.leaves(state)
    if not arrays:
        raise TypeError("jacobian: the state holds no array; fn must return arrays (see output=).")
    for a in arrays:
        if not jnp.issubdtype(a.dtype, jnp.floating):
            raise TypeError(
                f"jacobian: the state has dtype {a.dtype}, derivatives are defined for real floating states only; "
                "select or convert a part of it with output=."
            )
    found = [a.shape for a in arrays]
    if model.batch_axis is None:
        return found
    if not jax.tree.leaves(inputs):
        raise ValueError("jacobian: there are no inputs, hence no batch; give batch_axis=None.")
    B = common.batch_size([x.shape for x in jax.tree.leaves(inputs)], model.batch_axis, "the inputs")
    B_out = common.batch_size(found, model.batch_axis, "the state")
    if B_out != B:
        raise ValueError(
            f"batch_axis={model.batch_axis}: {B} examples go in and {B_out} come out; give the right axis, select a "
            "part of the output with output=, or give batch_axis=None."
        )
    return found


def values(J: Any) -> None:
    """Raise unless examples are independent and the state depends on the parameters."""
    axis = J.model.batch_axis
    if axis is not None and J._B > 1:
        try:
            difference, scale = _alone_and_together(J.model, J.trained, J.fixed, J.inputs, J._examples)
        except (TypeError, ValueError) as error:
            raise common.not_independent(axis, f"one by itself, the model fails ({error})") from error
        if not difference <= common.tolerance(float(jnp.finfo(J._state_dtype).eps)) * scale:
            why = f"computed one by one their states differ from those of the batch by up to {float(difference):.2g}"
            raise common.not_independent(axis, why)
    ones = jnp.ones((J.shape[0], 1), J.dtype)
    if not jnp.any(J.block_sqnorms(ones) != 0):
        raise common.no_dependence()


@partial(jax.jit, static_argnums=0)
def _alone_and_together(model: Model, trained: Any, fixed: Any, inputs: Any, examples: Any) -> Any:
    """Largest difference between states computed one by one and together, and the largest entry."""
    together = model.rows(trained, fixed, inputs)
    alone = jax.lax.map(lambda example: model.row(trained, fixed, example), examples)
    return jnp.max(jnp.abs(alone - together)), jnp.max(jnp.abs(together))
