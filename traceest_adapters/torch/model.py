"""A PyTorch module or function as one pure function: parameters and inputs in, state rows out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from threading import RLock
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from traceest._names import chosen, what_there_is
from traceest_adapters.torch.execution import Autocast, plainly, uncompiled
from traceest_adapters.torch.output_selection import select, steps
from traceest_adapters.torch.private import copied, left_as_it_was

Params = dict[str, torch.Tensor]


class Inputs(NamedTuple):
    """What a model is called with, besides what all examples share."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Model:
    """The model, which part of what passes through it is the state, and where the examples lie.

    `owner` is the user's module, None of a function; `module` the copy that parameters are put into, see `own`.
    """

    call: Callable[..., Any]
    owner: torch.nn.Module | None
    module: torch.nn.Module | None
    path: tuple[Any, ...]
    batch_axis: int | None
    shared: Mapping[str, Any]
    autocast: Autocast
    overwrites: bool = False
    """Whether a run changes its inputs, which are copied for each then."""

    @classmethod
    def of(
        cls, model: Any, wrt: Any, params: Any, output: Any, batch_axis: int | None, shared: Mapping[str, Any]
    ) -> tuple[Model, Params]:
        """The model, with the values that `params` gives, and the parameters that `wrt` chooses.

        Raises
        ------
        TypeError
            If a function comes without a mapping of parameters, or the model cannot be called.
        ValueError
            If `wrt` or `params` names what is not there.
        """
        if isinstance(model, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
            model = model.module  # what it spreads over devices; of the examples given here, on this one
        if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
            raise TypeError(
                "jacobian: a model compiled by torch.jit takes no parameters from outside; give the original."
            )
        if params is not None and not isinstance(params, Mapping):
            raise TypeError(
                f"params: expected a mapping from names to tensors, got a {type(params).__name__}; which parameters to "
                "differentiate by is said by wrt=."
            )
        module = model if isinstance(model, torch.nn.Module) else None
        if module is not None:
            if params is not None:
                model = module = _with_values(module, params)
            selected = {name: (params or {}).get(name, p) for name, p in _select(module, wrt).items()}
        elif not callable(model) or isinstance(model, type):
            what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
            raise TypeError(f"jacobian: expected an nn.Module or a function, got {what}.")
        elif params is None:
            raise TypeError(
                "jacobian: a function needs params=, a mapping from names to tensors that it is called with: "
                "jacobian(fn, *inputs, params=params)."
            )
        else:
            selected = _chosen(dict(params), wrt)
            if fixed := {name: p for name, p in params.items() if name not in selected}:
                fixed = pytree.tree_map_only(torch.Tensor, partial(kept, differentiable=False), fixed)
                model = _Partial(model, tuple(params), fixed)
        devices = [p.device.type for p in selected.values() if isinstance(p, torch.Tensor)]
        autocast = Autocast.current(devices[0] if devices else "cpu")
        return cls(model, module, None, steps(output), batch_axis, dict(shared), autocast), selected

    def own(self, chosen: Params, differentiable: bool) -> tuple[Model, Params]:
        """The same of values as they are now: on a copy of the module, with the copied parameters, the leaves.

        With `differentiable` a parameter's copy has a graph that leads to it.
        """
        leaves = {name: _leaf(p, differentiable) for name, p in chosen.items()}
        shared = pytree.tree_map_only(torch.Tensor, lambda x: kept(x, differentiable), self.shared)
        if self.owner is None:
            return replace(self, shared=shared), leaves
        tied = dict(self.owner.named_parameters(remove_duplicate=False))
        made = {id(p): leaves[name] for name, p in chosen.items()}
        made |= {id(tied[name]): leaves[name] for name in chosen if name in tied}
        for p in tied.values():
            made.setdefault(id(p), torch.nn.Parameter(p.detach().clone(), requires_grad=False))
        module = copied(self.owner, made)
        return replace(self, call=_functional(module, leaves), module=module, shared=shared), leaves

    def state(self, params: Params, inputs: Inputs) -> Any:
        """The part of what passes through the model that is the state."""
        with plainly(self.module), self.autocast():
            args, kwargs = self._arguments(inputs, self.overwrites)
            return select(self.module, self.path, lambda: self.call(params, *args, **kwargs))

    def as_its_owner_runs_it(self, params: Params, inputs: Inputs) -> tuple[list[torch.Tensor], bool]:
        """The state's tensors by the user's own module with its own parameters, and whether its inputs were changed.

        Of a function, by `params`.
        """
        args, kwargs = self._arguments(inputs, True)
        given = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        versions = [x._version for x in given]
        module = self.owner
        if module is None:
            with plainly(None), self.autocast():
                found = _tensors(select(None, self.path, lambda: self.call(params, *args, **kwargs)))
        else:
            with left_as_it_was(module), uncompiled(), self.autocast():
                found = _tensors(select(module, self.path, lambda: module(*args, **kwargs)))
        return found, versions != [x._version for x in given]

    def _arguments(self, inputs: Inputs, fresh: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = inputs.args, {**inputs.kwargs, **self.shared}
        if not fresh:
            return args, kwargs
        copied: tuple[Any, Any] = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
        return copied

    def tensors(self, params: Params, inputs: Inputs) -> list[torch.Tensor]:
        """The state's tensors as they are in the model."""
        return _tensors(self.state(params, inputs))

    def rows(self, params: Params, inputs: Inputs) -> torch.Tensor:
        """The state as (n_examples, n_b), whatever the model's layout."""
        return self.as_rows(self.tensors(params, inputs))

    def as_rows(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        """The state's tensors as (n_examples, n_b)."""
        axis = self.batch_axis
        if axis is None:
            return torch.cat([x.reshape(-1) for x in tensors])[None, :]
        tensors = [x.movedim(axis, 0) for x in tensors]
        return torch.cat([x.reshape(x.shape[0], -1) for x in tensors], dim=1)

    def row(self, params: Params, example: Any) -> torch.Tensor:
        """The state of one example, (n_b,), the model being given a batch of one.

        Raises
        ------
        ValueError
            If states of several examples come out, as where a parameter has a row for each of the whole batch's.
        """
        axis = self.batch_axis
        alone = example if axis is None else pytree.tree_map_only(torch.Tensor, lambda x: x.unsqueeze(axis), example)
        rows = self.rows(params, alone)
        if len(rows) != 1:
            raise ValueError(
                f"given one example, the model returns states of {len(rows)}; does a parameter, or a tensor that the "
                "model holds, have a row for each example of the batch?"
            )
        return rows[0]

    def eps(self, params: Params, state: torch.Tensor) -> float:
        """The coarsest rounding that goes on in the model, as far as dtypes tell."""
        cast_to = [] if self.autocast.dtype is None else [self.autocast.dtype]
        return max(torch.finfo(t).eps for t in (state.dtype, *(p.dtype for p in params.values()), *cast_to))

    def axes(self, inputs: Inputs) -> Any:
        """Which axis of each input to map over: the batch axis of tensors, none of all else."""
        return pytree.tree_map(lambda x: self.batch_axis if isinstance(x, torch.Tensor) else None, inputs)

    def examples(self, inputs: Any, some: slice) -> Any:
        """A run of examples of the inputs."""
        axis, n = self.batch_axis, some.stop - some.start
        return pytree.tree_map_only(torch.Tensor, lambda x: x.narrow(axis, some.start, n), inputs)

    def example(self, inputs: Any, b: int) -> Any:
        """Example b of the inputs."""
        axis = self.batch_axis
        return inputs if axis is None else pytree.tree_map_only(torch.Tensor, lambda x: x.select(axis, b), inputs)


def _functional(module: torch.nn.Module, leaves: Params) -> Callable[..., Any]:
    """A copied module as a function of its parameters, of which it holds `leaves`; by one thread at a time.

    Each run begins with the buffers that it was copied with: a batch norm in training mode would update them.
    """
    buffers, turn = {name: b.clone() for name, b in module.named_buffers()}, RLock()

    def call(params: Params, *args: Any, **kwargs: Any) -> Any:
        with turn:
            fresh = {name: b.clone() for name, b in buffers.items()}
            if not all(leaves.get(name) is p for name, p in params.items()):
                return torch.func.functional_call(module, {**fresh, **params}, args, kwargs)
            for name, b in fresh.items():  # no parameter is exchanged: a backward pass may run the module again
                path, _, last = name.rpartition(".")
                module.get_submodule(path)._buffers[last] = b
            return module(*args, **kwargs)

    return call


def _leaf(p: torch.Tensor, differentiable: bool) -> torch.Tensor:
    if differentiable and p.requires_grad:
        return p.clone()
    return torch.nn.Parameter(p.detach().clone())


def kept(x: torch.Tensor, differentiable: bool) -> torch.Tensor:
    """A tensor's values as they are now, which a later change does not reach."""
    if differentiable and x.requires_grad:
        return x.clone()
    return x.detach().clone().requires_grad_(x.requires_grad)


def _tensors(state: Any) -> list[torch.Tensor]:
    return [x for x in pytree.tree_leaves(state) if isinstance(x, torch.Tensor)]


class _Partial(NamedTuple):
    """A function of a mapping of parameters, of which some are fixed."""

    fn: Callable[..., Any]
    names: tuple[str, ...]
    fixed: Params

    def __call__(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        everything = {**self.fixed, **params}
        return self.fn({name: everything[name] for name in self.names}, *args, **kwargs)


def _select(module: torch.nn.Module, wrt: Any) -> Params:
    """The parameters to differentiate by, tied ones once."""
    if wrt is None:
        return {name: p for name, p in module.named_parameters() if p.requires_grad}
    first: dict[int, str] = {}
    named = _chosen(dict(module.named_parameters(remove_duplicate=False)), wrt)
    for name, p in named.items():
        first.setdefault(id(p), name)
    return {name: named[name] for name in first.values()}


def _chosen(named: Params, wrt: Any) -> Params:
    """Those that `wrt` chooses, in the order in which they are named."""
    if wrt is None:
        return named
    some = chosen(list(named), list(named.values()), wrt, "wrt")
    return {name: p for (name, p), mine in zip(named.items(), some, strict=True) if mine}


def _with_values(module: torch.nn.Module, params: Mapping[str, Any]) -> torch.nn.Module:
    """A copy of the module with other values of the parameters named."""
    named = dict(module.named_parameters(remove_duplicate=False))
    for name, p in params.items():
        if name not in named:
            raise ValueError(f"params: the module has no parameter {name!r}; {what_there_is(list(named), name)}")
        if isinstance(p, torch.Tensor) and p.shape != named[name].shape and not torch.nn.parameter.is_lazy(p):
            raise ValueError(
                f"params: {name!r} has the shape {tuple(p.shape)}, in the module it has {tuple(named[name].shape)}."
            )
    values = {id(p): p for p in named.values()} | {id(named[name]): p for name, p in params.items()}
    made = {
        id(p): torch.nn.Parameter(values[id(p)].detach().clone(), requires_grad=p.requires_grad)
        for p in named.values()
        if isinstance(values[id(p)], torch.Tensor) and not torch.nn.parameter.is_lazy(p)
    }
    return copied(module, made)
