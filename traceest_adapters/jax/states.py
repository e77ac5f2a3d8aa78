"""The shape of a JAX model's state, and what can be wrong with it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from traceest_adapters import _state as common

FAILS = "one by itself, the model fails"


def first_line(error: Exception) -> str:
    """What it says, in short."""
    said = str(error).strip().splitlines()
    return said[0].rstrip(":") if said else type(error).__name__


SHARED = "None for what all examples share (in_axes=(0, None))"


class ManyRowsError(ValueError):
    """The state of one example by itself has rows of several."""


def shapes(arrays: list[Any], batch_axis: int | None, B: int | None) -> list[tuple[int, ...]]:
    """The shapes of the state's arrays.

    Raises
    ------
    TypeError, ValueError
        Unless the state is real floating, and has the B examples that go in along its batch axis.
    """
    if not arrays:
        raise TypeError("jacobian: the state holds no array; fn must return arrays (see output=).")
    for a in arrays:
        if not jnp.issubdtype(jnp.result_type(a), jnp.floating):
            raise TypeError(
                f"jacobian: the state has dtype {jnp.result_type(a)}, derivatives are defined for real floating states "
                "only; select or convert a part of it with output=."
            )
    found = [jnp.shape(a) for a in arrays]
    if not sum(jnp.size(a) for a in arrays):
        raise ValueError(f"jacobian: the state is empty, of shape {' and '.join(map(str, found))}; give examples.")
    if batch_axis is None:
        return found
    B_out = common.batch_size(found, batch_axis, "the state")
    if B_out != B:
        raise ValueError(
            f"batch_axis={batch_axis}: {B} examples go in and {B_out} come out; give the right axis, select a "
            "part of the output with output=, or give batch_axis=None."
        )
    return found


def many_rows(n: int) -> ManyRowsError:
    """The error for a state that has `n` examples where one went in."""
    return ManyRowsError(
        f"of one example by itself the state has {n} rows, since a parameter, or an array that fn closes over, has a "
        "row for each example of this batch (a perturbation of each trial, a mask in output=, say); give such an array "
        "among the inputs, or batch_axis=None for one block of all"
    )


def batch_size(inputs: list[Any], axes: tuple[int, ...]) -> int:
    """The number of examples that the inputs agree on."""
    if not inputs:
        raise ValueError(
            "jacobian: there are no inputs with a batch axis, hence no batch; call it as jacobian(fn, params, "
            "*inputs), give batch_axis=None, or check in_axes=."
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
    if not lengths[0]:
        raise ValueError(
            f"jacobian: the batch is empty, inputs are of shape {' and '.join(str(x.shape) for x in inputs)}; give "
            "at least one example."
        )
    return int(lengths[0])
