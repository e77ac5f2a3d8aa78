"""A PyTorch module or function as one pure function: parameters and inputs in, state rows out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from traceest_adapters import _state as common

Params = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Model:
    """The model, which part of its output is the state, and where the examples lie."""

    call: Callable[..., Any]
    module: torch.nn.Module | None
    output: Any
    batch_axis: int | None
    known: dict[str, bool] = field(default_factory=dict, compare=False)
    """What was found out about it on one batch, and holds for all: whether it `maps`, and has a `forward` side."""

    @classmethod
    def of(cls, model: Any, params: Any, output: Any, batch_axis: int | None) -> tuple[Model, Params]:
        """The model and the parameters chosen.

        Raises
        ------
        TypeError
            If a function comes without a mapping of parameters, or the model cannot be called.
        """
        if isinstance(model, torch.nn.Module):
            chosen = _select(model, params)
            return cls(_functional(model), model, output, batch_axis), chosen
        if not callable(model):
            raise TypeError(f"jacobian: expected an nn.Module or a function, got {type(model).__name__}.")
        if not isinstance(params, Mapping):
            raise TypeError(
                "jacobian: a function needs params=, a mapping from names to tensors that it is called with."
            )
        return cls(model, None, output, batch_axis), dict(params)

    def tensors(self, params: Params, inputs: Any) -> list[torch.Tensor]:
        """The state's tensors as the model returns them."""
        with plain_recurrence(self.module):
            state = common.selector(self.output)(self.call(params, *inputs))
        return [x for x in pytree.tree_leaves(state) if isinstance(x, torch.Tensor)]

    def rows(self, params: Params, inputs: Any) -> torch.Tensor:
        """The state as (n_examples, n_b), whatever the model's layout."""
        tensors, axis = self.tensors(params, inputs), self.batch_axis
        if axis is None:
            return torch.cat([x.reshape(-1) for x in tensors])[None, :]
        tensors = [x.movedim(axis, 0) for x in tensors]
        return torch.cat([x.reshape(x.shape[0], -1) for x in tensors], dim=1)

    def row(self, params: Params, example: Any) -> torch.Tensor:
        """The state of one example, (n_b,), the model being given a batch of one."""
        axis = self.batch_axis
        alone = example if axis is None else pytree.tree_map_only(torch.Tensor, lambda x: x.unsqueeze(axis), example)
        return self.rows(params, alone)[0]

    def axes(self, inputs: Any) -> Any:
        """Which axis of each input to map over: the batch axis of tensors, none of all else."""
        return pytree.tree_map(lambda x: self.batch_axis if isinstance(x, torch.Tensor) else None, inputs)

    def example(self, inputs: Any, b: int) -> Any:
        """Example b of the inputs."""
        axis = self.batch_axis
        return inputs if axis is None else pytree.tree_map_only(torch.Tensor, lambda x: x.select(axis, b), inputs)


def _functional(module: torch.nn.Module) -> Callable[..., Any]:
    def call(params: Params, *inputs: Any, **named: Any) -> Any:
        # Copies of the buffers take the updates that a batch norm in training mode would make.
        buffers = {name: b.clone() for name, b in module.named_buffers()}
        return torch.func.functional_call(module, {**buffers, **params}, inputs, named)

    return call


def _select(module: torch.nn.Module, params: Any) -> Params:
    """The parameters to differentiate by, tied ones once."""
    everything = dict(module.named_parameters())
    if params is None:
        return {name: p for name, p in everything.items() if p.requires_grad}
    if isinstance(params, Mapping):
        return dict(params)
    if callable(params):
        return {name: p for name, p in everything.items() if params(name, p)}
    names = [params] if isinstance(params, str) else list(_strings(params))
    unknown = [name for name in names if name not in everything]
    if unknown:
        raise ValueError(f"params: the module has no parameter {', '.join(unknown)}; it has {', '.join(everything)}.")
    return {name: everything[name] for name in names}


def _strings(names: Iterable[Any]) -> Iterator[str]:
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"params: expected names, a predicate or a mapping, got an item of {type(name).__name__}.")
        yield name


def math_attention() -> Any:
    """Attention in its plain form, which can be differentiated twice and mapped over."""
    return sdpa_kernel(SDPBackend.MATH)


@contextmanager
def plain_recurrence(module: torch.nn.Module | None) -> Iterator[None]:
    """Run recurrent layers in a form that can be mapped over examples and differentiated twice.

    Left to themselves they create a zero initial state that `vmap` takes for shared by all examples, and fail to
    write the examples' states into it; zeros made *like the input* are mapped as the input is. And the fused
    libraries' cells (oneDNN's LSTM, cuDNN's) have no batched or second derivative, PyTorch's own have.
    """
    fused: list[tuple[bool, bool]] = []

    def before(layer: Any, args: Any, kwargs: Any = None) -> Any:
        if not isinstance(layer, torch.nn.RNNBase):
            return None
        fused.append((torch.backends.mkldnn.set_flags(False)[0], torch.backends.cudnn.set_flags(False)[0]))
        if len(args) != 1 or "hx" in (kwargs or {}) or not isinstance(args[0], torch.Tensor):
            return None  # a state was given, or a packed sequence, which brings its own batch sizes
        new = (args[0], initial_state(layer, args[0]))
        return new if kwargs is None else (new, kwargs)

    def after(layer: Any, *_: Any) -> None:
        if isinstance(layer, torch.nn.RNNBase):
            mkldnn, cudnn = fused.pop()
            torch.backends.mkldnn.set_flags(mkldnn)
            torch.backends.cudnn.set_flags(cudnn)

    if module is None:  # a function may call any layer
        every = torch.nn.modules.module
        handles = [
            every.register_module_forward_pre_hook(before),
            every.register_module_forward_hook(after, always_call=True),
        ]
    else:
        layers = [m for m in module.modules() if isinstance(m, torch.nn.RNNBase)]
        handles = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
        handles += [layer.register_forward_hook(after, always_call=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def initial_state(layer: torch.nn.RNNBase, x: torch.Tensor) -> Any:
    """The zero state that `layer` would start from on the input `x`, made like `x`."""
    depth = layer.num_layers * (2 if layer.bidirectional else 1)
    time = 1 if x.ndim == 3 and layer.batch_first else 0
    first = x.select(time, 0)[..., :1]  # (batch, 1), or (1,) of an input without batch

    def zeros(width: int) -> torch.Tensor:
        return torch.zeros_like(first).expand(depth, *first.shape[:-1], width)

    h = zeros(layer.proj_size or layer.hidden_size)
    return (h, zeros(layer.hidden_size)) if isinstance(layer, torch.nn.LSTM) else h
