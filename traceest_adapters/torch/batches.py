"""The Jacobian of a PyTorch model over all batches of a loader."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

import traceest as te
from traceest_adapters import _batches as common
from traceest_adapters.torch.model import Inputs, Model, Params
from traceest_adapters.torch.operator import TorchJacobian

Make = Callable[[Model, Inputs, bool, bool], TorchJacobian]
"""From the model and a batch's inputs, whether these are the first, and whether they were seen, to its Jacobian."""


def batched(
    make: Make, model: Model, params: Params, batches: Any, input: Any, blocks: common.Blocks, progress: bool
) -> te.Stack:
    """One Jacobian over all batches. See `traceest_adapters.torch.jacobian`."""
    device = next(iter(params.values())).device if params else None
    convert = lambda batch: pytree.tree_map_only(torch.Tensor, lambda x: x.to(device), _inputs(batch))  # noqa: E731
    if blocks == "batch":
        model = replace(model, batch_axis=None)
    parts = common.Parts(common.Batches(batches, input, convert, _digest), _Maker(make, model, params))
    return common.stacked(parts, blocks, progress)


class _Maker:
    """`make`, with the model found unchanged."""

    def __init__(self, make: Make, model: Model, params: Params) -> None:
        self.make, self.model = make, model
        module = () if model.module is None else (*model.module.parameters(), *model.module.buffers())
        self.tensors = [x for x in (*params.values(), *module) if not x.is_inference()]
        self.versions = [x._version for x in self.tensors]

    def __call__(self, inputs: Inputs, first: bool, seen: bool) -> TorchJacobian:
        if [x._version for x in self.tensors] != self.versions:
            raise ValueError(
                "jacobian: the model's parameters or buffers were changed since this Jacobian was made, and every "
                "product goes through the batches again; make it anew, or of a copy of the model (copy.deepcopy)."
            )
        return self.make(self.model, inputs, first, seen)


def _inputs(batch: Any) -> Inputs:
    """A mapping holds keyword inputs, a tuple or list positional ones."""
    if isinstance(batch, Mapping):
        return Inputs((), dict(batch))
    return Inputs(tuple(batch) if isinstance(batch, (tuple, list)) else (batch,), {})


def _digest(inputs: Inputs) -> bytes:
    """Of all tensors, their shapes and dtypes."""
    found = hashlib.blake2b(digest_size=16)
    for x in pytree.tree_leaves(inputs):
        if isinstance(x, torch.Tensor):
            found.update(f"{x.dtype}{tuple(x.shape)}".encode())
            found.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.digest()
