"""Vector–Jacobian products of a graph, with the probes leading, and what is made of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from traceest_adapters._memory import ran_out

T = TypeVar("T")

MOST = 32
"""Probes to a batched backward pass, at the most."""

CACHE = 15 * 2**19
"""Bytes of one value, for all probes of a pass, that are no burden: a parameter's gradient or a layer's output."""

CACHE_TO_LAYERS = 18 * 2**20
"""The same of a pass that ends at the outputs of layers, and makes no gradient of a parameter."""


def grads(
    outputs: list[torch.Tensor], inputs: list[Any], cotangents: list[torch.Tensor], create_graph: bool = False
) -> list[torch.Tensor | None]:
    """(c, …) of every input for (c, …) of every output; one at a time where a backward pass cannot be batched.

    Inputs are tensors or edges of the graph; those that no output depends on get None. With `create_graph` the results
    can be differentiated in turn.
    """
    if len(cotangents[0]) == 1:
        return one_by_one(outputs, inputs, cotangents, create_graph)
    reached: list[int] = []  # by `torch.func.vmap` only tensors come out, so that None has to be remembered

    def some(*v: torch.Tensor) -> list[torch.Tensor]:
        found = _plain(outputs, inputs, v, create_graph)
        reached[:] = [i for i, g in enumerate(found) if g is not None]
        return [g for g in found if g is not None]

    try:  # unlike `is_grads_batched`, it asks functions with a backward pass of their own how they are batched
        with looping_quietly():
            found = torch.func.vmap(some)(*cotangents)
    except Exception as error:  # also of a backward pass by hand; what is wrong apart from batching is raised below
        if ran_out(error):
            raise
        return one_by_one(outputs, inputs, cotangents, create_graph)
    at, c = dict(zip(reached, found, strict=True)), len(cotangents[0])
    if any(isinstance(x := inputs[i], torch.Tensor) and g.shape != (c, *x.shape) for i, g in at.items()):
        return one_by_one(outputs, inputs, cotangents, create_graph)
    return [at.get(i) for i in range(len(inputs))]


def one_by_one(
    outputs: list[torch.Tensor], inputs: list[Any], cotangents: list[torch.Tensor], create_graph: bool = False
) -> list[torch.Tensor | None]:
    """The same by a plain backward pass for each probe."""
    rows = [_plain(outputs, inputs, tuple(v[i] for v in cotangents), create_graph) for i in range(len(cotangents[0]))]
    return [None if column[0] is None else torch.stack(column) for column in zip(*rows, strict=True)]


def _plain(
    outputs: list[torch.Tensor], inputs: list[Any], v: tuple[torch.Tensor, ...], create_graph: bool
) -> list[torch.Tensor | None]:
    options = {"retain_graph": True, "allow_unused": True, "create_graph": create_graph}
    found = torch.autograd.grad(outputs, inputs, v, **options)
    return [None if g is None else as_dense(g) for g in found]


@contextmanager
def looping_quietly() -> Iterator[None]:
    """Without PyTorch's warning of functions with no batched form, such as fused attention's: it loops over them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        yield


def vjp(
    outputs: list[torch.Tensor], inputs: list[torch.Tensor], cotangents: list[torch.Tensor], create_graph: bool = False
) -> list[torch.Tensor]:
    """The same, with zeros for inputs that no output depends on."""
    c, found = len(cotangents[0]), grads(outputs, inputs, cotangents, create_graph)
    return [x.new_zeros(c, *x.shape) if g is None else g for g, x in zip(found, inputs, strict=True)]


def as_dense(g: torch.Tensor) -> torch.Tensor:
    """A gradient of which a layer gives only the entries that differ from zero, as `nn.Embedding(sparse=True)` does."""
    return g.to_dense() if g.layout != torch.strided else g


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
    """Σ over all parameters of the squares, (c,), in float32 at the least."""
    wide = [g.to(torch.promote_types(g.dtype, torch.float32)).reshape(len(g), -1) for g in grads]
    return torch.stack([g.square().sum(1) for g in wide]).sum(0)
