"""Models of one function each, made of the samples in PyTorch's own database of its functions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree
from torch_reference import normal

EXAMPLES = 3
LARGEST = 3000
"""Numbers in a sample's tensors; there are a few with millions."""
OUTPUTS = 6
"""Numbers in an example's state, of which there are four random combinations where a function gives more."""


@cache
def database() -> dict[str, Any]:
    """Every function that has derivatives, by name."""
    from torch.testing._internal.common_methods_invocations import op_db

    # Importing it forbids to set torch.backends' flags one by one, for the whole process.
    setattr(torch.backends, "__allow_nonbracketed_mutation_flag", True)
    return {op.formatted_name: op for op in op_db if op.supports_autograd and torch.float64 in op.dtypes}


@dataclass
class OneFunction:
    """A model, the parameters it is called with, and its batch."""

    form: str
    call: Callable[..., torch.Tensor]
    params: dict[str, torch.Tensor]
    inputs: tuple[torch.Tensor, ...]


class Varied(Exception):
    """A sample is of another kind each time it is drawn."""


def samples(op: Any, most: int) -> Iterator[tuple[int, list[Any]]]:
    """Some of a function's samples, evenly spaced, each drawn once an example."""
    drawn = []
    for seed in range(EXAMPLES):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (which the samples are drawn by)
        random.seed(seed)
        drawn.append(list(op.sample_inputs("cpu", torch.float64, requires_grad=True)))
    small = [i for i in range(min(map(len, drawn))) if _size(drawn[0][i]) <= LARGEST]
    steps = [(2 * j + 1) * len(small) // (2 * most) for j in range(most)] if len(small) > most else range(len(small))
    for i in (small[j] for j in steps):
        yield i, [some[i] for some in drawn]


def _size(sample: Any) -> int:
    tensors = pytree.tree_leaves((sample.input, sample.args, sample.kwargs))
    return sum(x.numel() for x in tensors if isinstance(x, torch.Tensor))


class _Sample:
    """The tensors of a sample that are batched, and the call of the function with others in their places."""

    def __init__(self, op: Any, function: Callable[..., Any], drawn: list[Any]) -> None:
        self.op, self.function, self.process = op, function, drawn[0].output_process_fn_grad
        flat = [pytree.tree_flatten((s.input, s.args, s.kwargs)) for s in drawn]
        self.leaves, self.spec = flat[0]
        if any(spec != self.spec for _, spec in flat):
            raise Varied
        self.floats: list[int] = []
        self.others: list[int] = []
        self.stacked: dict[int, torch.Tensor] = {}
        for i, of_each in enumerate(zip(*(leaves for leaves, _ in flat), strict=True)):
            x = of_each[0]
            if not isinstance(x, torch.Tensor):
                continue
            if any(y.shape != x.shape for y in of_each) or x.layout != torch.strided or x.is_complex():
                raise Varied
            self.stacked[i] = torch.stack([y.detach() for y in of_each])
            (self.floats if x.dtype == torch.float64 else self.others).append(i)

    def __call__(self, tensors: dict[int, torch.Tensor], batch: tuple[int, ...] = ()) -> torch.Tensor:
        """(…, n) of all numbers that the function gives."""
        leaves = [tensors.get(i, leaf) for i, leaf in enumerate(self.leaves)]
        x, args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        z = self.op.gradcheck_wrapper(self.function, x, *args, **kwargs)
        found = [y for y in pytree.tree_leaves(self.process(z)) if isinstance(y, torch.Tensor)]
        parts = [torch.view_as_real(y.resolve_conj()) if y.is_complex() else y for y in found]
        parts = [y.reshape(*batch, -1) for y in parts if y.is_floating_point()]
        state = torch.cat(parts, -1)
        return state if state.shape[-1] <= OUTPUTS else state @ normal(0, state.shape[-1], 4)


def models(op: Any, drawn: list[Any]) -> Iterator[OneFunction]:
    """y_b = f(x_b ∘ w), and where f has several arguments f(x_b, w) and f(w, x_b): by a loop, and for all b at once.

    Raises
    ------
    Varied
        If the sample's structure is not the same for every example.
    """
    sample = _Sample(op, op.op, drawn)
    scaled = {i: torch.ones_like(sample.stacked[i][0]) for i in sample.floats}
    yield from _both(sample, "f(x ∘ w)", sample.floats, scaled, lambda x, w: x * w)
    yield from _both(
        sample, "f(x ∘ w²)", sample.floats, scaled, lambda x, w: x * w.square()
    )  # no use that is understood
    if op.inplace_variant is not None:
        in_place = _Sample(op, op.inplace_variant, drawn)
        yield from _both(in_place, "f_(x ∘ w)", sample.floats, scaled, lambda x, w: x * w)
    if len(sample.floats) > 1:
        first, rest = sample.floats[0], sample.floats[1:]
        values = {i: sample.stacked[i][0].clone() for i in sample.floats}
        yield from _both(sample, "f(x, w)", [first], {i: values[i] for i in rest}, None)
        yield from _both(sample, "f(w, x)", rest, {first: values[first]}, None)


def _both(
    sample: _Sample,
    name: str,
    batched: list[int],
    values: dict[int, torch.Tensor],
    join: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None,
) -> Iterator[OneFunction]:
    given = [*batched, *sample.others]
    inputs = tuple(sample.stacked[i] for i in given)
    params = {f"w{i}": v.requires_grad_() for i, v in values.items()}

    def joined(p: dict[str, torch.Tensor], x: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        own = {i: p[f"w{i}"] for i in values}
        return {**own, **x} if join is None else {**x, **{i: join(x[i], w) for i, w in own.items()}}

    def by_loop(p: dict[str, torch.Tensor], *xs: torch.Tensor) -> torch.Tensor:
        examples = [dict(zip(given, (x[b] for x in xs), strict=True)) for b in range(len(xs[0]))]
        return torch.stack([sample(joined(p, x)) for x in examples])

    def at_once(p: dict[str, torch.Tensor], *xs: torch.Tensor) -> torch.Tensor:
        return sample(joined(p, dict(zip(given, xs, strict=True))), (len(xs[0]),))

    yield OneFunction(f"{name}, by a loop", by_loop, params, inputs)
    with torch.no_grad():
        try:
            y, z = by_loop(params, *inputs), at_once(params, *inputs)
            batches = y.shape == z.shape and torch.allclose(y, z, rtol=1e-10, atol=1e-12, equal_nan=True)
        except Exception:  # whatever a function says of one axis more
            batches = False
    if batches:
        yield OneFunction(f"{name}, at once", at_once, params, inputs)
