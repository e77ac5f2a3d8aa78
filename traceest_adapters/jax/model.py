"""A JAX function as one pure function: parameters and inputs in, state rows out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from traceest_adapters import _state as common
from traceest_adapters.jax import jaxprs, program, states
from traceest_adapters.jax.partition import Partition
from traceest_adapters.jax.program import Program


class Function(NamedTuple):
    """What the user gave: a function of pytrees, what of its output is the state, and where the examples are."""

    fn: Callable[..., Any]
    output: Any
    batch_axis: int | None
    params: Partition
    inputs: Partition
    axes: tuple[int, ...]

    def state(self, trained: list[Any], fixed: list[Any], inputs: list[Any]) -> list[Any]:
        """The arrays in what `fn` returns, or in the part of it that is the state."""
        n = self.params.n_others
        params = self.params.join(trained, fixed[:n])
        args, kwargs, shared = self.inputs.join(inputs, fixed[n:])
        return jax.tree.leaves(common.selector(self.output)(self.fn(params, *args, **kwargs, **shared)))

    def rows(self, arrays: list[Any]) -> Any:
        """The state as (n_examples, n_b), whatever the model's layout."""
        if self.batch_axis is None:
            return jnp.concatenate([jnp.ravel(a) for a in arrays])[None, :]
        arrays = [jnp.moveaxis(a, self.batch_axis, 0) for a in arrays]
        return jnp.concatenate([jnp.reshape(a, (a.shape[0], -1)) for a in arrays], axis=1)


class Traced(NamedTuple):
    """A function as it was when its kernel was made: programs, the arrays it closes over, and what they say."""

    model: Model
    consts: list[Any]
    shapes: list[tuple[int, ...]]  # of the state's arrays
    alone: str | None  # why there is no state of one example by itself


class Model(NamedTuple):
    """The static part of a Jacobian: compiled steps are shared by all Jacobians with an equal one.

    What varies is passed beside it, as lists of arrays: `trained` parameters, `fixed` ones (all other arrays among
    the parameters, the inputs that all examples share, and those that the function closes over), and `inputs` with a
    batch axis each (`axes`).
    """

    batch_axis: int | None
    axes: tuple[int, ...]
    together: Program
    alone: Program | None
    consts: tuple[int, int]  # how many of the last fixed arrays are those of either program

    @classmethod
    def of(cls, f: Function, trained: list[Any], fixed: list[Any], inputs: list[Any]) -> Traced:
        """The function traced: for the whole batch, and for an example by itself.

        Raises
        ------
        TypeError, ValueError
            If the state is not real floating, or does not have the examples that go in.
        """
        B = None if f.batch_axis is None else states.batch_size(inputs, f.axes)
        shapes: list[tuple[int, ...]] = []

        def together(trained: Any, fixed: Any, inputs: Any) -> Any:
            arrays = f.state(trained, fixed, inputs)
            shapes[:] = states.shapes(arrays, f.batch_axis, B)
            return f.rows(arrays)

        def alone(trained: Any, fixed: Any, example: Any) -> Any:
            rows = f.rows(f.state(trained, fixed, example))
            if len(rows) != 1:
                raise states.many_rows(len(rows))
            return rows

        whole, consts = program.trace(together, trained, fixed, inputs)
        if B is None or B == 1:
            return Traced(cls(f.batch_axis, f.axes, whole, whole, (len(consts), 0)), consts, shapes, None)
        one = [jax.ShapeDtypeStruct(_with_one(x.shape, axis), x.dtype) for x, axis in zip(inputs, f.axes, strict=True)]
        try:
            single, more = program.trace(alone, trained, fixed, one)
        except Exception as error:  # a model of whole batches, of which there are products with all examples
            why = (
                str(error)
                if isinstance(error, states.ManyRowsError)
                else f"{states.FAILS} ({states.first_line(error)})"
            )
            return Traced(cls(f.batch_axis, f.axes, whole, None, (len(consts), 0)), consts, shapes, why)
        model = cls(f.batch_axis, f.axes, whole, single, (len(consts), len(more)))
        return Traced(model, [*consts, *more], shapes, None)

    def rows(self, trained: list[Any], fixed: list[Any], inputs: list[Any]) -> Any:
        """The state as (n_examples, n_b), whatever the model's layout."""
        n, m = len(fixed) - sum(self.consts), self.consts[0]
        return self.together(fixed[n : n + m], *trained, *fixed[:n], *inputs)[0]

    def example_first(self, inputs: list[Any]) -> list[Any]:
        """Inputs with the batch axis leading, to be scanned over; all of them are one example if there is none."""
        if self.batch_axis is None:
            return [x[None] for x in inputs]
        return [jnp.moveaxis(x, axis, 0) for x, axis in zip(inputs, self.axes, strict=True)]

    def row(self, trained: list[Any], fixed: list[Any], example: list[Any]) -> Any:
        """The state of one example, (n_b,)."""
        if self.batch_axis is not None:
            example = [jnp.expand_dims(x, axis) for x, axis in zip(example, self.axes, strict=True)]
        if self.alone is self.together:
            return self.rows(trained, fixed, example)[0]
        if self.alone is None:
            raise ValueError(f"batch_axis={self.batch_axis}: there is no state of one example by itself.")
        n, (m, _) = len(fixed) - sum(self.consts), self.consts
        return self.alone(fixed[n + m :], *trained, *fixed[:n], *example)[0][0]

    @property
    def state(self) -> Any:
        """The shape and dtype of `rows`."""
        return self.together.jaxpr.outvars[0].aval

    @property
    def largest(self) -> int:
        """Bytes of the largest value on the way from parameters to state."""
        return jaxprs.largest(self.together.jaxpr)


def _with_one(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    found = list(shape)
    found[axis] = 1
    return tuple(found)


def traced(tree: Any) -> bool:
    """Whether there are no values to look at: tracers in `tree`, or a trace around, which takes up constants too."""
    return has_tracers((jnp.zeros(()), tree))


def has_tracers(tree: Any) -> bool:
    """Whether part of `tree` is known in shape alone."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
