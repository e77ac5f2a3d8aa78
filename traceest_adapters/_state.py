"""What both model adapters share: naming axes, cutting columns into chunks, and saying what is wrong."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from traceest import _array_api as aa
from traceest_adapters._memory import budget


def selector(output: Any, name: str = "output") -> Callable[[Any], Any]:
    """A function of the model's output (or of a batch): `output` itself, an index, a key, an attribute, or none.

    Raises
    ------
    TypeError
        If `output` is none of these.
    """
    if output is None:
        return lambda state: state
    if callable(output):
        return output
    if isinstance(output, (int, str)) and not isinstance(output, bool):

        def select(state: Any) -> Any:
            by_attribute = isinstance(output, str) and hasattr(state, output)
            try:
                return getattr(state, str(output)) if by_attribute else operator.getitem(state, output)
            except (TypeError, KeyError, IndexError) as error:
                there = f" with {', '.join(map(str, state))}" if isinstance(state, Mapping) else ""
                there += f" of {len(state)}" if isinstance(state, (tuple, list)) else ""
                kind = type(state).__name__
                raise ValueError(
                    f"{name}={output!r}: there is no such part in {'the output' if name == 'output' else 'a batch'}, a "
                    f"{kind}{there}; give an index, a key, an attribute's name or a function of it."
                ) from error

        return select
    of = "the model's output" if name == "output" else "a batch"
    raise TypeError(f"{name} must be an index, a key, an attribute's name or a function of {of}, got {output!r}.")


def chunks(k: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the pieces that `k` columns fall into."""
    yield from ((i, min(i + size, k)) for i in range(0, k, size))


def groups(sizes: list[int], rows: int, itemsize: int) -> list[list[int]]:
    """Indices of parameter arrays in runs whose per-row gradients fit the memory budget (one array at the least)."""
    limit = budget() // max(1, rows * itemsize)
    found: list[list[int]] = []
    room = 0
    for i, size in enumerate(sizes):
        if not found or size > room:
            found.append([])
            room = limit
        found[-1].append(i)
        room -= size
    return found


def batch_size(shapes: list[tuple[int, ...]], axis: int, what: str) -> int:
    """The common length of `axis`.

    Raises
    ------
    ValueError
        If an array has no such axis, or lengths differ.
    """
    lengths = set()
    for shape in shapes:
        if not -len(shape) <= axis < len(shape):
            raise ValueError(
                f"batch_axis={axis}: {what} of shape {tuple(shape)} has no such axis; give the axis of independent "
                "examples, or batch_axis=None if there is none. Inputs that all examples share are given by keyword, "
                "as shared=."
            )
        lengths.add(shape[axis])
    if len(lengths) != 1:
        raise ValueError(
            f"batch_axis={axis}: the lengths {sorted(lengths)} of {what} along it differ; every array needs one "
            "entry an example there. Select a part of the output with output=, give inputs that all examples share "
            "as shared=, or give batch_axis=None."
        )
    return lengths.pop()


def length(arrays: list[Any], axis: int) -> int:
    """How many examples there are: the length of the first array that has such an axis.

    Raises
    ------
    ValueError
        If none has.
    """
    for x in arrays:
        n = aa.n_axes(x) or 0
        if -n <= axis < n:
            return int(x.shape[axis])
    raise ValueError(f"batch_axis={axis}: no input has such an axis, along which examples could be counted; give it.")


def example_first(shapes: list[tuple[int, ...]], axis: int | None) -> tuple[int, ...] | None:
    """The shape of a state that is one array, its examples leading as the rows' order has them; None of several."""
    if len(shapes) != 1:
        return None
    (shape,) = shapes
    if axis is None:
        return tuple(shape)
    axis %= len(shape)
    return (shape[axis], *shape[:axis], *shape[axis + 1 :])


def feature_axis(shape: tuple[int, ...] | None, asked: int | None, batch_axis: int | None, default: int) -> int:
    """The axis of features of a state that is one array, its examples leading; `asked` for among the output's own axes.

    Raises
    ------
    ValueError
        If `asked` is no axis of it, or that of the examples.
    """
    if shape is None or asked is None:
        return default
    n, batch = len(shape), None if batch_axis is None else batch_axis % len(shape)
    if not -n <= asked < n or asked % n == batch:
        raise ValueError(
            f"feature_axis={asked} of an output with {n} axes and batch_axis={batch_axis}: give another of its axes, "
            "that of units or channels."
        )
    axis = asked % n
    return axis + 1 if batch is not None and axis < batch else axis


def not_independent(axis: int, why: str, also: str = "") -> ValueError:
    """The error for examples that influence each other; `also`: one more likely cause."""
    return ValueError(
        f"batch_axis={axis}: the examples are not independent: {why}. Likely causes: batch norm in training mode "
        "(call model.eval(), or use running statistics), a time-major layout (batch_axis=1), or a layer that mixes "
        f"examples{also and ', or ' + also}. Give the right axis, or batch_axis=None to treat the whole state as one "
        "block."
    )


def closes_over(axis: int, why: str) -> ValueError:
    """The error for a model that holds a tensor of the whole batch, and needs all of it."""
    return ValueError(
        f"batch_axis={axis}: the model, or output=, closes over an array of the whole batch (a mask, say), or has a "
        f"parameter with a row for each example: {why}. Give an array to the model as an input with the examples along "
        "the batch axis (by position or in kwargs=); where only output= uses it, wrap the model in a function "
        "or module that takes it and returns the state. With such a parameter, batch_axis=None makes one block of all."
    )


def other_size(axis: int, n: int, alone: int, B: int) -> ValueError:
    """The error for an example whose state has another size by itself."""
    return ValueError(
        f"batch_axis={axis}: an example's state has {n} entries in the batch of {B}, and {alone} by itself: it is made "
        "with the other examples, as CLIP's logits_per_image are of every image with every text. Select what is of one "
        "example alone with output= (of CLIP, 'image_embeds' or 'text_embeds'), or give batch_axis=None to treat the "
        "whole state as one block."
    )


def fails_alone(axis: int | None, why: str) -> ValueError:
    """The error for a model that cannot be run on a batch of one."""
    return ValueError(
        f"batch_axis={axis}: the model cannot be run on one example by itself ({why}), so that its examples cannot be "
        "told apart. Of a batch norm in training mode call model.eval(); else give the right axis, make the model take "
        "batches of one, or give batch_axis=None to treat the whole state as one block."
    )


def no_dependence() -> ValueError:
    """The error for a state whose every derivative is zero."""
    return ValueError(
        "the state does not depend on the parameters: every derivative is exactly zero. Look for a detached output, "
        "a no_grad or a stop_gradient, for parameters other than those the model uses, or for units that are all dead; "
        "check=False lets a zero kernel pass."
    )


def tolerance(eps: float) -> float:
    """How far the same output may differ, relative to its largest entry, computed alone and in a batch."""
    return eps**0.5
