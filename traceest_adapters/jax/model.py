"""A JAX function as one pure function: parameters and inputs in, state rows out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from traceest_adapters import _state as common
from traceest_adapters.jax import jaxprs


class Model(NamedTuple):
    """The static part of a Jacobian: compiled steps are shared by all Jacobians with an equal one."""

    fn: Callable[..., Any]
    output: Any
    batch_axis: int | None
    trainable: tuple[bool, ...]
    treedef: Any

    def rows(self, trained: list[Any], fixed: list[Any], inputs: Any) -> Any:
        """The state as (n_examples, n_b), whatever the model's layout."""
        left, right = iter(trained), iter(fixed)
        leaves = [next(left) if t else next(right) for t in self.trainable]
        state = common.selector(self.output)(self.fn(jax.tree.unflatten(self.treedef, leaves), *inputs))
        arrays = jax.tree.leaves(state)
        if self.batch_axis is None:
            return jnp.concatenate([jnp.ravel(a) for a in arrays])[None, :]
        arrays = [jnp.moveaxis(a, self.batch_axis, 0) for a in arrays]
        return jnp.concatenate([jnp.reshape(a, (a.shape[0], -1)) for a in arrays], axis=1)

    def example_first(self, inputs: Any) -> Any:
        """Inputs with the batch axis leading, to be scanned over."""
        axis = self.batch_axis
        return inputs if axis is None else jax.tree.map(lambda x: jnp.moveaxis(x, axis, 0), inputs)

    def row(self, trained: list[Any], fixed: list[Any], example: Any) -> Any:
        """The state of one example, (n_b,)."""
        axis = self.batch_axis
        if axis is not None:
            example = jax.tree.map(lambda x: jnp.expand_dims(x, axis), example)
        return self.rows(trained, fixed, example)[0]

    def largest(self, trained: list[Any], fixed: list[Any], inputs: Any) -> int:
        """Bytes of the largest value on the way from parameters to state."""
        return jaxprs.largest(jax.make_jaxpr(self.rows)(trained, fixed, inputs).jaxpr)


def traced(tree: Any) -> bool:
    """Whether there are tracers in `tree` and hence no values to look at."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
