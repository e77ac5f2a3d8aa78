"""What can be wrong with a JAX model and its batch, said before any long work."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from traceest_adapters import _state as common
from traceest_adapters.jax import compiling, diagnosis
from traceest_adapters.jax.model import Model
from traceest_adapters.jax.per_example import compiled, verify

SMALL = 2**12
"""Numbers of a model and its batch for which no program is optimised."""


def modes(J: Any) -> None:
    """Raise if the state can be differentiated in neither mode."""
    if (reverse := J.lacking("reverse")) and (forward := J.lacking("forward")):
        raise TypeError(
            f"jacobian: the state cannot be differentiated, neither in reverse mode ({reverse}) nor in forward mode "
            f"({forward}); give the step that is in the way a jax.custom_vjp or a jax.custom_jvp."
        )


def values(J: Any) -> None:
    """Raise unless examples are independent and the state depends on the parameters; look at what is known of them."""
    axis = J.model.batch_axis
    if J.not_alone is not None:
        raise diagnosis.not_alone(axis, J.not_alone)
    if axis is not None and J._B > 1:
        diagnosis.same_size(J)
        arrays = J.trained, J.fixed, J.inputs, J._examples
        optimise = not compiling.few(arrays, SMALL)
        both = compiling.run(_alone_and_together, (J.model, J._lanes), arrays, optimise=optimise)
        difference, scale = map(float, both)
        if not difference <= common.tolerance(float(jnp.finfo(J._state_dtype).eps)) * scale:
            why = f"computed one by one their states differ from those of the batch by up to {difference:.2g}"
            raise common.not_independent(axis, why, verify.ALSO)
    if not J.lacking("reverse"):
        look(J)
        return
    # At random: a layer norm or a softmax at the end leaves nothing of ones. By NumPy, which has nothing to compile.
    w = jnp.asarray(np.random.default_rng(0).standard_normal((J.shape[1], 1)), J.dtype)
    if not np.any(np.asarray(J.matmat(w)) != 0):
        raise common.no_dependence()


def look(J: Any) -> None:
    """What is known of the model's parameters, compared with a plain pass (`verify`)."""
    J._understood  # noqa: B018 — found out when it is asked for


def _alone_and_together(model: Model, lanes: int, trained: Any, fixed: Any, inputs: Any, examples: Any) -> Any:
    """Largest difference between states computed one by one and together, and the largest entry."""
    together = model.rows(trained, fixed, inputs)
    alone = compiled.scanned(lambda example: model.row(trained, fixed, example), examples, lanes)
    both = jnp.isfinite(alone) & jnp.isfinite(together)  # NaN in both is for the first product to report
    alike = both | ~(jnp.isfinite(alone) | jnp.isfinite(together))
    difference = jnp.where(both, jnp.abs(alone - together), jnp.where(alike, 0, jnp.inf))
    return jnp.max(difference), jnp.max(jnp.where(both, jnp.abs(together), 0))
