"""Vector–Jacobian products of a graph, with the probes leading, and what is made of them."""

from __future__ import annotations

import torch


def vjp(outputs: list[torch.Tensor], inputs: list[torch.Tensor], cotangents: list[torch.Tensor]) -> list[torch.Tensor]:
    """(c, …) of every input for (c, …) of every output; one at a time where a backward pass cannot be batched.

    Inputs that no output depends on get zeros.
    """

    def grad(v: list[torch.Tensor], batched: bool) -> tuple[torch.Tensor | None, ...]:
        return torch.autograd.grad(outputs, inputs, v, retain_graph=True, is_grads_batched=batched, allow_unused=True)

    c = len(cotangents[0])
    try:
        grads = grad(cotangents, True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        rows = [grad([v[i] for v in cotangents], False) for i in range(c)]
        grads = tuple(None if column[0] is None else torch.stack(column) for column in zip(*rows, strict=True))
    return [x.new_zeros(c, *x.shape) if g is None else g for g, x in zip(grads, inputs, strict=True)]


def flat(grads: list[torch.Tensor]) -> torch.Tensor:
    """(c, P) of a list of (c, …)."""
    return torch.cat([g.reshape(len(g), -1) for g in grads], dim=1)


def squares(grads: list[torch.Tensor]) -> torch.Tensor:
    """Σ over all parameters of the squares, (c,)."""
    return torch.stack([g.reshape(len(g), -1).square().sum(1) for g in grads]).sum(0)
