"""What can be wrong with a JAX model and its batch, said before any long work."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from traceest_adapters import _state as common
from traceest_adapters.jax import compiling, steps
from traceest_adapters.jax.model import Model

SMALL = 2**12
"""Numbers of a model and its batch for which no program is optimised."""

SHARED = "None for what all examples share (in_axes=(0, None))"
ALSO = "dropout that draws one mask for the whole batch (switch it off, or give each example a key of its own)"


def shapes(model: Model, trained: Any, fixed: Any, inputs: Any) -> list[tuple[int, ...]]:
    """The shapes of the state's arrays.

    Raises
    ------
    TypeError, ValueError
        Unless the state is real floating, and inputs and state share their batch axis.
    """
    B = None if model.batch_axis is None else _batch_size(inputs, model.axes)
    if B == 0:
        raise ValueError(
            f"jacobian: the batch is empty, of 0 examples along batch_axis={model.batch_axis} of its inputs; give at "
            "least one (in batches=, leave out those that have none)."
        )
    arrays = jax.tree.leaves(jax.eval_shape(model.state, trained, fixed, inputs))
    if not arrays:
        raise TypeError("jacobian: the state holds no array; fn must return arrays (see output=).")
    for a in arrays:
        if not jnp.issubdtype(a.dtype, jnp.floating):
            raise TypeError(
                f"jacobian: the state has dtype {a.dtype}, derivatives are defined for real floating states only; "
                "select or convert a part of it with output=."
            )
    found = [a.shape for a in arrays]
    if not sum(a.size for a in arrays):
        shown = " and ".join(map(str, found))
        raise ValueError(f"jacobian: the state is empty, of shape {shown}; give examples, or another output=.")
    if model.batch_axis is None:
        return found
    B_out = common.batch_size(found, model.batch_axis, "the state")
    if B_out != B:
        raise ValueError(
            f"batch_axis={model.batch_axis}: {B} examples go in and {B_out} come out; give the right axis, select a "
            "part of the output with output=, or give batch_axis=None."
        )
    return found


def _batch_size(inputs: list[Any], axes: tuple[int, ...]) -> int:
    """The number of examples that the inputs agree on."""
    if not inputs:
        raise ValueError(
            "jacobian: there are no inputs with a batch axis, hence no batch; give batch_axis=None, or check in_axes=."
        )
    for x, axis in zip(inputs, axes, strict=True):
        if not -x.ndim <= axis < x.ndim:
            raise ValueError(
                f"batch_axis={axis}: an input of shape {x.shape} has no such axis; give the axis of independent "
                f"examples, batch_axis=None if there is none, or in_axes= with {SHARED}."
            )
    lengths = sorted({x.shape[axis] for x, axis in zip(inputs, axes, strict=True)})
    if len(lengths) > 1:
        raise ValueError(
            f"jacobian: the lengths {lengths} of the inputs along their batch axes differ; give in_axes= with the axis "
            f"of each, and {SHARED}, or batch_axis=None."
        )
    return int(lengths[0])


def modes(J: Any) -> None:
    """Raise if the state can be differentiated in neither mode."""
    if (reverse := J.lacking("reverse")) and (forward := J.lacking("forward")):
        raise TypeError(
            f"jacobian: the state cannot be differentiated, neither in reverse mode ({reverse}) nor in forward mode "
            f"({forward}); give the step that is in the way a jax.custom_vjp or a jax.custom_jvp."
        )


def values(J: Any) -> None:
    """Raise unless examples are independent and the state depends on the parameters."""
    axis = J.model.batch_axis
    if axis is not None and J._B > 1:
        try:
            arrays = J.trained, J.fixed, J.inputs, J._examples
            optimise = not compiling.few(arrays, SMALL)
            both = compiling.run(_alone_and_together, (J.model, J._lanes), arrays, optimise=optimise)
        except (TypeError, ValueError) as error:
            raise common.not_independent(axis, f"one by itself, the model fails ({error})", ALSO) from error
        difference, scale = map(float, both)
        if not difference <= common.tolerance(float(jnp.finfo(J._state_dtype).eps)) * scale:
            why = f"computed one by one their states differ from those of the batch by up to {difference:.2g}"
            raise common.not_independent(axis, why, ALSO)
    # At random: a layer norm or a softmax at the end leaves nothing of ones. By NumPy, which has nothing to compile.
    forward = bool(J.lacking("reverse"))
    v = jnp.asarray(np.random.default_rng(0).standard_normal((J.shape[int(forward)], 1)), J.dtype)
    derivatives = J.matmat(v) if forward else J.block_sqnorms(v)
    if not np.any(np.asarray(derivatives) != 0):
        raise common.no_dependence()


def _alone_and_together(model: Model, lanes: int, trained: Any, fixed: Any, inputs: Any, examples: Any) -> Any:
    """Largest difference between states computed one by one and together, and the largest entry."""
    together = model.rows(trained, fixed, inputs)
    alone = steps.scanned(lambda example: model.row(trained, fixed, example), examples, lanes)
    both = jnp.isfinite(alone) & jnp.isfinite(together)  # NaN in both is for the first product to report
    alike = both | ~(jnp.isfinite(alone) | jnp.isfinite(together))
    difference = jnp.where(both, jnp.abs(alone - together), jnp.where(alike, 0, jnp.inf))
    return jnp.max(difference), jnp.max(jnp.where(both, jnp.abs(together), 0))
