"""A module of the operator's own: parameters are put into a copy, and what happens in it does not reach the user's.

The copy holds the values that parameters and buffers have when it is made, so that a kernel is that of one moment,
whatever becomes of the module. It stays as it is for as long as the operator lives: a backward pass that calls the
model again, such as that of an adjoint method, finds the parameters that are differentiated by.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from threading import RLock
from types import MethodType
from typing import Any

import numpy as np
import torch

CONTAINERS = (dict, OrderedDict, list, tuple, set, deque)
COMPILED = ("_compiled_call_impl", "dynamo_ctx", "forward")
"""Attributes by which a module runs a compiled form of itself; PyTorch finds the others in the class."""

LOOKED_THROUGH = 4096
"""Entries of a container in which modules and tensors are looked for."""

_owners_turn = RLock()


def copied(module: torch.nn.Module, tensors: dict[int, torch.Tensor]) -> torch.nn.Module:
    """The module and all inside it, with other tensors in place of those whose id is in `tensors`."""
    with _owners_turn:
        return _copied(module, tensors)


def _copied(module: torch.nn.Module, tensors: dict[int, torch.Tensor]) -> torch.nn.Module:
    made: dict[int, torch.nn.Module] = {}
    for m in module.modules():
        kind: Any = _AsWritten if "_orig_mod" in m._modules else type(m)
        made[id(m)] = kind.__new__(kind)

    def own(value: Any) -> Any:
        if id(value) in tensors:
            return tensors[id(value)]
        if isinstance(value, torch.nn.Module):
            return made.get(id(value), value)
        if isinstance(value, torch.Tensor):
            return value.detach().clone() if type(value) is torch.Tensor else value
        if isinstance(value, np.ndarray):
            return value.copy()
        if type(value) in CONTAINERS:
            return _rebuilt(value, own)
        if isinstance(value, MethodType) and id(value.__self__) in made:
            return MethodType(value.__func__, made[id(value.__self__)])
        if type(value) is partial:
            return partial(own(value.func), *map(own, value.args), **{k: own(v) for k, v in value.keywords.items()})
        return value

    for m in module.modules():
        attributes = {name: own(value) for name, value in m.__dict__.items() if name not in COMPILED}
        made[id(m)].__dict__.update(attributes)
    return made[id(module)]


class _AsWritten(torch.nn.Module):  # type: ignore[misc]
    """In place of what `torch.compile` has made of a module, and which would call the user's."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._orig_mod(*args, **kwargs)


def _rebuilt(container: Any, own: Any) -> Any:
    if not container:
        return container.copy() if not isinstance(container, tuple) else container
    if len(container) > LOOKED_THROUGH:
        return container if isinstance(container, tuple) else container.copy()
    if isinstance(container, dict):
        return type(container)((key, own(value)) for key, value in container.items())
    if isinstance(container, deque):
        return deque(map(own, container), container.maxlen)
    return type(container)(map(own, container))


@contextmanager
def left_as_it_was(module: torch.nn.Module) -> Iterator[None]:
    """Run the user's module, by one thread at a time; its attributes and buffers are afterwards what they were."""
    with _owners_turn:
        attributes = [(m.__dict__, dict(m.__dict__), _contents(m)) for m in module.modules()]
        buffers = [(b, b.detach().clone()) for b in module.buffers() if not b.is_inference()]
        try:
            yield
        finally:
            for now, before, contents in attributes:
                if now.keys() != before.keys() or any(now[name] is not before[name] for name in before):
                    now.clear()
                    now.update(before)
                for container, held in contents:
                    _refill(container, held)
            for b, values in buffers:  # graphs that hold them are not to take them for changed
                if not torch.equal(b, values):
                    b.data.copy_(values)


def _contents(m: torch.nn.Module) -> list[tuple[Any, list[Any]]]:
    """What lists, mappings and the like among the attributes hold."""
    return [
        (v, list(v.items() if isinstance(v, dict) else v) if v else [])
        for v in m.__dict__.values()
        if type(v) in CONTAINERS and type(v) is not tuple
    ]


def _refill(container: Any, held: list[Any]) -> None:
    if not container and not held:
        return
    is_mapping = isinstance(container, dict)
    now = list(container.items() if is_mapping else container)
    flat = lambda entries: [part for entry in entries for part in entry] if is_mapping else entries  # noqa: E731
    if len(now) == len(held) and all(x is y for x, y in zip(flat(now), flat(held), strict=True)):
        return
    container.clear()
    if isinstance(container, (list, deque)):
        container.extend(held)
    else:
        container.update(held)
