"""The Jacobian of a PyTorch state by one plain backward pass a row, for `differential` to compare with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from differential import CLEAR, Dense, Framework


def _explains(error: Exception) -> bool:
    """Errors that are clear, and PyTorch's own of what was changed."""
    return isinstance(error, CLEAR) or "modified by an inplace operation" in str(error)


TORCH = Framework(torch.from_numpy, lambda x: torch.as_tensor(x).detach().numpy(), least=1e-10, explains=_explains)


def dense(state: torch.Tensor, params: Mapping[str, torch.Tensor]) -> Dense:
    """Of a state that was computed with a graph, examples first."""
    leaves = list(params.values())
    rows = [torch.autograd.grad(s, leaves, retain_graph=True, materialize_grads=True) for s in state.reshape(-1)]
    matrix = [torch.cat([(g.to_dense() if g.is_sparse else g).reshape(-1) for g in row]) for row in rows]
    return Dense(torch.stack(matrix).numpy(), len(state), tuple(p.numel() for p in leaves))


def stacked(parts: list[Dense]) -> Dense:
    """Of batches, one below the other."""
    return parts[0]._replace(matrix=np.concatenate([D.matrix for D in parts]), B=sum(D.B for D in parts))


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
