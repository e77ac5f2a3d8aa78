"""Why an example's state is another one when it is computed by itself: the reason, and not what it looks like."""

from __future__ import annotations

from typing import Any

import torch

from traceest_adapters import _state as common
from traceest_adapters._memory import ran_out


def closes_over_a_batch(J: Any) -> None:
    """Raise if the model, or `output`, makes several examples' states of one, by a tensor that it holds of them all."""
    model, axis = J.model, J.model.batch_axis
    example = model.example(J.inputs, 0)
    alone = torch.utils._pytree.tree_map_only(torch.Tensor, lambda x: x.unsqueeze(axis), example)
    try:
        with torch.no_grad():
            found = [tuple(x.shape) for x in model.tensors(J.params, alone)]
    except Exception as error:  # it is for the caller to say that it fails
        if ran_out(error):
            raise
        return
    made = max((shape[axis] for shape in found if -len(shape) <= axis < len(shape)), default=1)
    if made != 1:
        raise common.closes_over(axis, f"given one example, it returns {made} of shape {' and '.join(map(str, found))}")


def other_size(J: Any, alone: int) -> ValueError:
    """The error for an example whose state has another size by itself."""
    return common.other_size(J.model.batch_axis, J._state.shape[1], alone, len(J._state))


def fails_alone(J: Any, error: Exception) -> ValueError:
    """The error for a model that cannot be run on a batch of one."""
    closes_over_a_batch(J)
    axis, what = J.model.batch_axis, str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    B = len(J._state)
    if f"({B})" in what or f"size {B}" in what or f"[{B}," in what:
        return common.closes_over(axis, f"given one example, it fails ({what})")
    return common.fails_alone(axis, what)
