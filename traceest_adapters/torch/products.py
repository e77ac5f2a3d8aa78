"""Vector–Jacobian products of a graph, with the probes leading, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def grads(
    outputs: list[torch.Tensor], inputs: list[Any], cotangents: list[torch.Tensor], create_graph: bool = False
) -> list[torch.Tensor | None]:
    """(c, …) of every input for (c, …) of every output; one at a time where a backward pass cannot be batched.

    Inputs are tensors or edges of the graph; those that no output depends on get None. With `create_graph` the results
    can be differentiated in turn.
    """
    options = {"retain_graph": True, "allow_unused": True, "create_graph": create_graph}

    def grad(v: list[torch.Tensor], batched: bool) -> tuple[torch.Tensor | None, ...]:
        return torch.autograd.grad(outputs, inputs, v, is_grads_batched=batched, **options)

    try:
        return list(grad(cotangents, True))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        rows = [grad([v[i] for v in cotangents], False) for i in range(len(cotangents[0]))]
        return [None if column[0] is None else torch.stack(column) for column in zip(*rows, strict=True)]


def vjp(
    outputs: list[torch.Tensor], inputs: list[torch.Tensor], cotangents: list[torch.Tensor], create_graph: bool = False
) -> list[torch.Tensor]:
    """The same, with zeros for inputs that no output depends on."""
    c, found = len(cotangents[0]), grads(outputs, inputs, cotangents, create_graph)
    return [x.new_zeros(c, *x.shape) if g is None else g for g, x in zip(found, inputs, strict=True)]


def pairs(U: torch.Tensor, chunk: int, compute: Callable[[torch.Tensor], T]) -> Iterator[tuple[slice, slice, T, T]]:
    """Every two chunks of U's rows, and what `compute` makes of them: two results are held at a time.

    With k rows, k/chunk results are computed (k/chunk + 1)/2 times: the price for not holding them all.
    """
    runs = [slice(i, min(i + chunk, len(U))) for i in range(0, len(U), chunk)]
    for a, first in enumerate(runs):
        one = compute(U[first])
        yield first, first, one, one
        for second in runs[a + 1 :]:
            other = compute(U[second])
            yield first, second, one, other
            del other


def flat(grads: list[torch.Tensor]) -> torch.Tensor:
    """(c, P) of a list of (c, …)."""
    return torch.cat([g.reshape(len(g), -1) for g in grads], dim=1)


def squares(grads: list[torch.Tensor]) -> torch.Tensor:
    """Σ over all parameters of the squares, (c,)."""
    return torch.stack([g.reshape(len(g), -1).square().sum(1) for g in grads]).sum(0)
