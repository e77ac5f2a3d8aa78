"""Why an example's state is another one when it is computed by itself: the reason, and not what it looks like."""

from __future__ import annotations

from typing import Any

import torch

from traceest_adapters._memory import ran_out

WAY = (
    "Give such tensors to the model as inputs (kwargs=, with the examples along the batch axis), and if only output= "
    "uses them, wrap the model in a module whose forward takes them and returns the state."
)


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
        raise _closes_over(axis, f"given one example, it returns {made} of shape {' and '.join(map(str, found))}")


def other_size(J: Any, alone: int) -> ValueError:
    """The error for an example whose state has another size by itself."""
    B, n = J._state.shape
    return ValueError(
        f"batch_axis={J.model.batch_axis}: an example's state has {n} entries in the batch of {B}, and {alone} by "
        "itself: it is made with the other examples, as CLIP's logits_per_image are of every image with every text. "
        "Select what is of one example alone with output= (of CLIP, 'image_embeds' or 'text_embeds'), or give "
        "batch_axis=None to treat the whole state as one block."
    )


def fails_alone(J: Any, error: Exception) -> ValueError:
    """The error for a model that cannot be run on a batch of one."""
    closes_over_a_batch(J)
    axis, what = J.model.batch_axis, str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    B = len(J._state)
    if f"({B})" in what or f"size {B}" in what or f"[{B}," in what:
        return _closes_over(axis, f"given one example, it fails ({what})")
    return ValueError(
        f"batch_axis={axis}: the model cannot be run on one example by itself ({what}), so that its examples cannot be "
        "told apart. Of a batch norm in training mode call model.eval(); else give the right axis, make the model take "
        "batches of one, or give batch_axis=None to treat the whole state as one block."
    )


def _closes_over(axis: int, why: str) -> ValueError:
    return ValueError(
        f"batch_axis={axis}: the model, or output=, closes over a tensor of the whole batch (a mask, say): {why}. {WAY}"
    )
