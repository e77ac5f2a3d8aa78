"""What can be wrong with a JAX model and its batch, said before any long work."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from traceest_adapters import _state as common
from traceest_adapters.jax import diagnosis
from traceest_adapters.jax.per_example import compiled, verify


def modes(J: Any) -> None:
    """Raise if the state can be differentiated in neither mode."""
    if (reverse := J.lacking("reverse")) and (forward := J.lacking("forward")):
        raise TypeError(
            f"jacobian: the state cannot be differentiated, neither in reverse mode ({reverse}) nor in forward mode "
            f"({forward}); give the step that is in the way a jax.custom_vjp or a jax.custom_jvp."
        )


def values(J: Any) -> None:
    """Raise unless examples are independent and the state depends on the parameters; look at what is known of them."""
    if J.not_alone is not None:
        raise diagnosis.not_alone(J.model.batch_axis, J.not_alone)
    diagnosis.same_size(J)
    if not J.lacking("reverse"):
        look(J)
        return
    alone = compiled.states(J.model, J._lanes, J.trained, J.fixed, J._examples)
    verify.raise_unless_alike(J, compiled.apart(alone, J.model.rows(J.trained, J.fixed, J.inputs)))
    # At random: a layer norm or a softmax at the end leaves nothing of ones. By NumPy, which has nothing to compile.
    w = jnp.asarray(np.random.default_rng(0).standard_normal((J.shape[1], 1)), J.dtype)
    if not np.any(np.asarray(J.matmat(w)) != 0):
        raise common.no_dependence()


def look(J: Any) -> None:
    """What is known of the model's parameters, compared with a plain pass (`verify`)."""
    J._understood  # noqa: B018 — found out when it is asked for
