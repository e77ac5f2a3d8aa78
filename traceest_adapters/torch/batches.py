"""The Jacobian of a PyTorch model over all batches of a loader."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

import traceest as te
from traceest_adapters import _batches as common
from traceest_adapters.torch.model import Inputs
from traceest_adapters.torch.operator import TorchJacobian
from traceest_adapters.torch.per_example.verify import Findings

Make = Callable[[Inputs, int, dict[int, Findings]], TorchJacobian]
"""From a batch's inputs, its place among the batches and what was found of those seen before, to its Jacobian."""


def batched(
    make: Make, device: torch.device, batches: Any, input: Any, blocks: common.Blocks, progress: bool
) -> te.Stack:
    """One Jacobian over all batches. See `traceest_adapters.torch.jacobian`."""
    convert = lambda batch: pytree.tree_map_only(torch.Tensor, lambda x: x.to(device), _inputs(batch))  # noqa: E731
    seen: dict[int, Findings] = {}
    parts = common.Parts(common.Batches(batches, input, convert, _digest), lambda inputs, p: make(inputs, p, seen))
    return common.stacked(parts, blocks, progress)


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
