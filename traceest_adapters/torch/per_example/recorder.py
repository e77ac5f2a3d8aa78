"""What a forward pass does with each parameter: the calls of functions whose derivative by it is known.

Functions are watched, not layers: `F.linear(x, layer.weight)` and ``x @ p["w"]`` are seen as `nn.Linear` is, and so are
the projections inside `nn.MultiheadAttention`. A parameter is told by identity, so that one that reaches a function
changed (normalised, masked, cast) is none that is understood.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from traceest_adapters.torch.execution import uncompiled
from traceest_adapters.torch.model import Params
from traceest_adapters.torch.per_example.factors import Factor
from traceest_adapters.torch.per_example.rnn import Unrolled, recurrent
from traceest_adapters.torch.per_example.rules import UNDERSTOOD, Term, swapped


class BatchLayout(NamedTuple):
    """Which of the leading axes is the examples': `axis`, once the first is split in two."""

    split: tuple[int, int] | None
    axis: int

    def arrange(self, x: torch.Tensor, rows: int, lead: int, examples: slice) -> torch.Tensor:
        """(…, *rows, …) with `lead` axes before and any number behind → (…, B, M, …)."""
        if self.split is not None:
            x, rows = x.unflatten(lead, self.split), rows + 1
        x = x.movedim(lead + self.axis, lead)[(slice(None),) * lead + (examples,)]
        others = prod(x.shape[lead + 1 : lead + rows])
        return x.reshape(*x.shape[: lead + 1], others, *x.shape[lead + rows :])


def layouts(shape: tuple[int, ...], B: int) -> list[BatchLayout]:
    """Where B examples may lie among leading axes of that shape."""
    found = [BatchLayout(None, axis) for axis, size in enumerate(shape) if size == B]
    if shape[0] % B == 0 and shape[0] > B:
        m = shape[0] // B
        found += [BatchLayout((B, m), 0), BatchLayout((m, B), 1)]
    return found


@dataclass(eq=False)
class Call:
    """One call of an understood function: its output's place in the graph, and its shape, of which `rows` axes lead."""

    edge: Any
    shape: torch.Size
    dtype: torch.dtype
    rows: int
    layout: BatchLayout | None = None
    at: int = -1
    """Its place among the calls of the forward pass."""


class Use(NamedTuple):
    """A term of a parameter's gradient, see `Term`; `version` tells whether `x` was overwritten since."""

    call: Call
    x: torch.Tensor | None
    version: int
    factor: Callable[[Any, torch.Tensor], Factor]


class Read(NamedTuple):
    """Rows that were read from a table, and the use that this is of the table."""

    rows: torch.Tensor
    version: int
    name: str
    use: Use


class Recorder(TorchFunctionMode):  # type: ignore[misc]
    """While active, notes in `uses` every use of the parameters that is understood.

    And the bytes of the `largest` value, and in `eps` the worst precision: many models take their softmax or their
    norms in float32, whatever they are in themselves. And the recurrent `layers` whose weights are parameters, with
    their names and the calls that give s. If asked, the inputs of uses keep their graphs.
    """

    def __init__(self, params: Params, with_graph: bool) -> None:
        super().__init__()
        self.with_graph = with_graph
        self.uses: dict[str, list[Use]] = {name: [] for name in params}
        self.layers: list[tuple[Unrolled, list[str], list[Call]]] = []
        self.largest = 0
        self._names = {id(p): name for name, p in params.items()}
        self.eps = 0.0
        self._reads: dict[int, Read] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return _seen_through(func)(*args, **kwargs)
        replaced = recurrent(func, self.with_graph, self._note_layer)
        if replaced is not None and not kwargs:
            with self:
                found = replaced(*args)
            if found is not None:
                return found
        z = func(*args, **kwargs)
        if isinstance(z, torch.Tensor) and z.requires_grad:
            self.largest = max(self.largest, z.numel() * z.itemsize)
        if isinstance(z, torch.Tensor) and z.is_floating_point():
            self.eps = max(self.eps, torch.finfo(z.dtype).eps)
        describe = UNDERSTOOD.get(func)
        if describe is not None and isinstance(z, torch.Tensor) and z.grad_fn is not None and _is_plain(z):
            try:
                bound = inspect.signature(describe).bind(z, *args, **kwargs)
            except TypeError:  # a form of the call that is not known here, such as one with out=
                return z
            self._note(z, list(describe(*bound.args, **bound.kwargs)))
        return z

    def _note(self, z: torch.Tensor, terms: list[Term]) -> None:
        call = None
        for p, rows, x, factor in terms:
            name, transposed = self._owner(p)
            if name is None and x is None:
                self._note_shared(z, p)
            turned = swapped(factor) if transposed else factor
            if name is None or turned is None or rows <= 0 or (x is not None and x.is_inference()):
                continue
            if call is None or call.rows != rows:
                call = Call(torch.autograd.graph.get_gradient_edge(z), z.shape, z.dtype, rows)
            version = 0 if x is None else x._version
            use = Use(call, x if x is None or self.with_graph else x.detach(), version, turned)
            self.uses[name].append(use)
            if x is not None and not x.is_floating_point():
                self._reads[id(z)] = Read(z, z._version, name, use)

    def _note_layer(self, layer: Unrolled) -> None:
        weights = [id(p) for p in layer.weights if p is not None]
        if self._names.keys() >= set(weights) and all(s.grad_fn is not None and _is_plain(s) for s in layer.s):
            calls = [Call(torch.autograd.graph.get_gradient_edge(s), s.shape, s.dtype, 2) for s in layer.s]
            self.layers.append((layer, [self._names[p] for p in weights], calls))

    def _note_shared(self, z: torch.Tensor, p: Any) -> None:
        """What `z` makes of rows of a table that all examples share, such as those of positions, broadcast into it.

        The rows have no example axis, so that nothing can be told at their place in the graph; behind the sum it can.
        """
        read = self._reads.get(id(p)) or self._reads.get(id(getattr(p, "_base", None)))
        if read is None or z.shape[-1:] != p.shape[-1:] or p.numel() == z.numel():
            return
        name, use = read.name, read.use
        if read.rows._version != read.version or _without_ones(p) != _without_ones(read.rows):
            return
        assert use.x is not None, "what was read is known by its indices"
        call = Call(torch.autograd.graph.get_gradient_edge(z), z.shape, z.dtype, z.ndim - 1)
        self.uses[name] = [other for other in self.uses[name] if other is not use]
        self.uses[name].append(use._replace(call=call, x=use.x.reshape(p.shape[:-1]).expand(z.shape[:-1])))

    def _owner(self, p: Any) -> tuple[str | None, bool]:
        """Which parameter `p` is, and whether it is that one's transpose."""
        if id(p) in self._names:
            return self._names[id(p)], False
        base = p._base if isinstance(p, torch.Tensor) else None
        if base is None or p.ndim != 2 or base.ndim != 2 or p.storage_offset() != base.storage_offset():
            return None, False
        turned = (p.shape[::-1], p.stride()[::-1]) == (base.shape, base.stride())
        return (self._names.get(id(base)), True) if turned else (None, False)


@contextmanager
def recording(params: Params, with_graph: bool) -> Iterator[Recorder]:
    """A `Recorder`, active; what is compiled runs uncompiled meanwhile, so that its calls are seen."""
    with uncompiled(), Recorder(params, with_graph) as recorder:
        yield recorder


def _seen_through(func: Any) -> Any:
    """A Python function of PyTorch's whose inner calls are watched: the same code, less its own dispatch."""
    seen = {**func.__globals__, "has_torch_function": lambda _: False}
    copy = types.FunctionType(func.__code__, seen, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _without_ones(x: torch.Tensor) -> list[int]:
    return [n for n in x.shape if n != 1]


def _is_plain(z: torch.Tensor) -> bool:
    """Whether `z` is an ordinary tensor of the outer graph: not ragged, not inside `torch.func.vmap` or `grad`."""
    return not z.is_nested and not torch._C._functorch.is_functorch_wrapped_tensor(z)
