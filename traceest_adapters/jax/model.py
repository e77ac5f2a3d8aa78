"""A JAX function as one pure function: parameters and inputs in, state rows out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from traceest_adapters import _state as common
from traceest_adapters.jax import jaxprs
from traceest_adapters.jax.partition import Partition


class Model(NamedTuple):
    """The static part of a Jacobian: compiled steps are shared by all Jacobians with an equal one.

    What varies is passed beside it, as lists of arrays: `trained` parameters, `fixed` ones (all other arrays among
    the parameters, then the inputs that all examples share), and `inputs` with a batch axis each (`axes`).
    """

    fn: Callable[..., Any]
    output: Any
    batch_axis: int | None
    params: Partition
    inputs: Partition
    axes: tuple[int, ...]

    def state(self, trained: list[Any], fixed: list[Any], inputs: list[Any]) -> Any:
        """What `fn` returns, or the part of it that is the state."""
        n = self.params.n_others
        params = self.params.join(trained, fixed[:n])
        return common.selector(self.output)(self.fn(params, *self.inputs.join(inputs, fixed[n:])))

    def rows(self, trained: list[Any], fixed: list[Any], inputs: list[Any]) -> Any:
        """The state as (n_examples, n_b), whatever the model's layout."""
        arrays = jax.tree.leaves(self.state(trained, fixed, inputs))
        if self.batch_axis is None:
            return jnp.concatenate([jnp.ravel(a) for a in arrays])[None, :]
        arrays = [jnp.moveaxis(a, self.batch_axis, 0) for a in arrays]
        return jnp.concatenate([jnp.reshape(a, (a.shape[0], -1)) for a in arrays], axis=1)

    def example_first(self, inputs: list[Any]) -> list[Any]:
        """Inputs with the batch axis leading, to be scanned over; all of them are one example if there is none."""
        if self.batch_axis is None:
            return [x[None] for x in inputs]
        return [jnp.moveaxis(x, axis, 0) for x, axis in zip(inputs, self.axes, strict=True)]

    def row(self, trained: list[Any], fixed: list[Any], example: list[Any]) -> Any:
        """The state of one example, (n_b,)."""
        if self.batch_axis is not None:
            example = [jnp.expand_dims(x, axis) for x, axis in zip(example, self.axes, strict=True)]
        return self.rows(trained, fixed, example)[0]

    def largest(self, trained: list[Any], fixed: list[Any], inputs: Any) -> int:
        """Bytes of the largest value on the way from parameters to state."""
        return jaxprs.largest(jax.make_jaxpr(self.rows)(trained, fixed, inputs).jaxpr)


def traced(tree: Any) -> bool:
    """Whether there are no values to look at: tracers in `tree`, or a trace around, which takes up constants too."""
    return has_tracers((jnp.zeros(()), tree))


def has_tracers(tree: Any) -> bool:
    """Whether part of `tree` is known in shape alone."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
