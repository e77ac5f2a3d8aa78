"""Why an example's state is another one when it is computed by itself: the reason, and not what it looks like."""

from __future__ import annotations

from typing import Any

import jax

from traceest_adapters import _state as common


def shapes_alone(J: Any) -> None:
    """Raise if the shapes of one example's state tell that it is made of more than that example.

    Raises
    ------
    ValueError
        If the model fails on a batch of one, makes several examples of it, or a state of another size.
    """
    model, axis, B = J.model, J.model.batch_axis, J._B
    one = [jax.ShapeDtypeStruct((*x.shape[:a], 1, *x.shape[a:][1:]), x.dtype) for x, a in _with_axes(J)]
    try:
        arrays = jax.tree.leaves(jax.eval_shape(model.state, J.trained, J.fixed, one))
        n = sum(a.size for a in arrays)
        made = max((a.shape[axis] for a in arrays if -a.ndim <= axis < a.ndim), default=1)
    except (TypeError, ValueError, IndexError) as error:
        what = str(error).strip().splitlines()[0]
        if f"({B}," in what or f"{B})" in what:
            raise common.closes_over(axis, f"given one example, it fails ({what})") from error
        raise common.fails_alone(axis, what) from error
    if made != 1:
        shapes = " and ".join(str(a.shape) for a in arrays)
        raise common.closes_over(axis, f"given one example, it returns {made} of shape {shapes}")
    if n != J.shape[0] // B:
        raise common.other_size(axis, J.shape[0] // B, n, B)


def _with_axes(J: Any) -> list[tuple[Any, int]]:
    return [(x, a % x.ndim) for x, a in zip(J.inputs, J.model.axes, strict=True)]
