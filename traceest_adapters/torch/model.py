"""A PyTorch module or function as one pure function: parameters and inputs in, state rows out."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from traceest_adapters._calls import chosen_by
from traceest_adapters.torch.outputs import listed, select, steps
from traceest_adapters.torch.plain import Autocast, plainly

Params = dict[str, torch.Tensor]


class Inputs(NamedTuple):
    """What a model is called with, besides what all examples share."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Model:
    """The model, which part of what passes through it is the state, and where the examples lie."""

    call: Callable[..., Any]
    module: torch.nn.Module | None
    path: tuple[Any, ...]
    batch_axis: int | None
    shared: Mapping[str, Any]
    autocast: Autocast
    known: dict[str, bool] = field(default_factory=dict, compare=False)
    """What was found out about it on one batch, and holds for all: whether it `maps`, and has a `forward` side."""

    @classmethod
    def of(
        cls, model: Any, params: Any, output: Any, batch_axis: int | None, shared: Mapping[str, Any]
    ) -> tuple[Model, Params]:
        """The model and the parameters chosen.

        Raises
        ------
        TypeError
            If a function comes without a mapping of parameters, or the model cannot be called.
        """
        if isinstance(model, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
            raise TypeError(
                f"jacobian: a {type(model).__name__} spreads each batch over devices and cannot be differentiated as "
                "one function; give model.module."
            )
        if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
            raise TypeError(
                "jacobian: a model compiled by torch.jit takes no parameters from outside; give the original."
            )
        module = model if isinstance(model, torch.nn.Module) else None
        if module is not None:
            chosen = _select(module, params)
        elif not callable(model) or isinstance(model, type):
            what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
            raise TypeError(f"jacobian: expected an nn.Module or a function, got {what}.")
        elif not isinstance(params, Mapping):
            raise TypeError(
                "jacobian: a function needs params=, a mapping from names to tensors that it is called with: "
                "jacobian(fn, *inputs, params=params)."
            )
        else:
            chosen = dict(params)
        devices = [p.device.type for p in chosen.values() if isinstance(p, torch.Tensor)]
        autocast = Autocast.current(devices[0] if devices else "cpu")
        call = model if module is None else _functional(module)
        return cls(call, module, steps(output), batch_axis, dict(shared), autocast), chosen

    def state(self, params: Params, inputs: Inputs) -> Any:
        """The part of what passes through the model that is the state."""
        with plainly(self.module), self.autocast():
            kwargs = {**inputs.kwargs, **self.shared}
            return select(self.module, self.path, lambda: self.call(params, *inputs.args, **kwargs))

    def tensors(self, params: Params, inputs: Inputs) -> list[torch.Tensor]:
        """The state's tensors as they are in the model."""
        return [x for x in pytree.tree_leaves(self.state(params, inputs)) if isinstance(x, torch.Tensor)]

    def rows(self, params: Params, inputs: Inputs) -> torch.Tensor:
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

    def eps(self, params: Params, state: torch.Tensor) -> float:
        """The coarsest rounding that goes on in the model, as far as dtypes tell."""
        cast_to = [] if self.autocast.dtype is None else [self.autocast.dtype]
        return max(torch.finfo(t).eps for t in (state.dtype, *(p.dtype for p in params.values()), *cast_to))

    def axes(self, inputs: Inputs) -> Any:
        """Which axis of each input to map over: the batch axis of tensors, none of all else."""
        return pytree.tree_map(lambda x: self.batch_axis if isinstance(x, torch.Tensor) else None, inputs)

    def example(self, inputs: Any, b: int) -> Any:
        """Example b of the inputs."""
        axis = self.batch_axis
        return inputs if axis is None else pytree.tree_map_only(torch.Tensor, lambda x: x.select(axis, b), inputs)


def _functional(module: torch.nn.Module) -> Callable[..., Any]:
    def call(params: Params, *args: Any, **kwargs: Any) -> Any:
        # Copies of the buffers take the updates that a batch norm in training mode would make.
        buffers = {name: b.clone() for name, b in module.named_buffers()}
        return torch.func.functional_call(module, {**buffers, **params}, args, kwargs)

    return call


def _select(module: torch.nn.Module, params: Any) -> Params:
    """The parameters to differentiate by, tied ones once."""
    everything = dict(module.named_parameters())
    if params is None:
        return {name: p for name, p in everything.items() if p.requires_grad}
    if not isinstance(params, Mapping) and callable(params):
        return {name: p for name, p in everything.items() if chosen_by(params, "params", name, p)}
    if not isinstance(params, Iterable):
        raise TypeError(f"params: expected names, a predicate or a mapping, got {params!r}.")
    names = [params] if isinstance(params, str) else list(_strings(params))
    tied = dict(module.named_parameters(remove_duplicate=False))
    if unknown := [name for name in names if name not in tied]:
        close = difflib.get_close_matches(unknown[0], tied)
        hint = f"; did you mean {' or '.join(close)}?" if close else "."
        if any(name.startswith(f"{unknown[0]}.") for name in tied):
            hint = f"; for all of {unknown[0]!r} give params=lambda name, p: name.startswith('{unknown[0]}.')."
        raise ValueError(
            f"params: the module has no parameter {', '.join(unknown)}; it has {listed(list(everything))}{hint}"
        )
    if isinstance(params, Mapping):
        for name, p in params.items():
            if isinstance(p, torch.Tensor) and p.shape != tied[name].shape and not torch.nn.parameter.is_lazy(p):
                raise ValueError(
                    f"params: {name!r} has the shape {tuple(p.shape)}, in the module it has {tuple(tied[name].shape)}."
                )
        return dict(params)
    return {name: tied[name] for name in names}


def _strings(names: Iterable[Any]) -> Iterator[str]:
    for name in names:
        if not isinstance(name, str):
            raise TypeError(
                f"params: expected names, a predicate or a mapping, got an item of {type(name).__name__}; names are "
                "those of model.named_parameters()."
            )
        yield name
