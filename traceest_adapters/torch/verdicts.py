"""What was verified of a module is remembered: a later kernel that runs through the same calls is not verified again.

A module that is trained has a new kernel at every step, and verification costs more than an estimate. It is the order,
kind and shapes of all calls that are compared, in the same mode of training and of the same part of the output; values
are not, and those that matter (inputs overwritten or out of range) are looked at each time.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch

from traceest_adapters.torch.model import Model
from traceest_adapters.torch.taps import Call, Layout, Use

REMEMBERED = 64


class Verdict(NamedTuple):
    """Where the examples are in each call, which calls and parameters the state depends on, and those understood."""

    layouts: list[Layout | None]
    reached: list[bool]
    understood: set[str]
    depended_on: set[str]


_of_modules: WeakKeyDictionary[torch.nn.Module, dict[Hashable, Verdict]] = WeakKeyDictionary()


def known(model: Model) -> dict[Hashable, Verdict]:
    """By structure; of a function, which may do anything else the next time, nothing is remembered."""
    found = {} if model.module is None else _of_modules.setdefault(model.module, {})
    if len(found) >= REMEMBERED:
        found.clear()
    return found


def structure(model: Model, state: torch.Tensor, calls: list[Call], uses: dict[str, list[Use]]) -> Hashable:
    """Of all that was recorded, but values."""
    mode = () if model.module is None else tuple(m.training for m in model.module.modules())
    order = {call: i for i, call in enumerate(calls)}
    of_calls = tuple((call.shape, call.dtype, call.rows) for call in calls)
    of_uses = tuple((name, tuple(_use(order, use) for use in some)) for name, some in uses.items())
    return model.path, model.batch_axis, model.autocast, mode, state.shape, state.dtype, of_calls, of_uses


def _use(order: dict[Call, int], use: Use) -> Hashable:
    x = None if use.x is None else (use.x.shape, use.x.dtype)
    return order[use.call], x, use.factor.__code__ if hasattr(use.factor, "__code__") else use.factor
