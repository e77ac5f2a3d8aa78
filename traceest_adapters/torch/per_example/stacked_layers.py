"""Parameters whose gradients' norms are had together.

A bias is a column of its layer's weight whose input is 1, so that derivatives by the layer's outputs are squared once
for both. And small layers that are alike are taken as one with more examples: there a call costs more than its
arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch

from traceest_adapters.torch.per_example.factors import Factor, sqnorms
from traceest_adapters.torch.per_example.recorder import Call, Use
from traceest_adapters.torch.per_example.rules import joined

SMALL = 2**15
"""Numbers in a layer's derivatives, of all probes, up to which layers are put together."""


class Alike:
    """L parameters, each used once, by calls of one kind and shape."""

    def __init__(self, uses: list[Use], dtype: torch.dtype) -> None:
        self.uses, self.dtype = uses, dtype

    def fits(self, c: int) -> bool:
        """Whether they are small enough, with c probes."""
        use = self.uses[0]
        return max(c * use.call.shape.numel(), 0 if use.x is None else use.x.numel()) <= SMALL

    @cached_property
    def _x(self) -> torch.Tensor | None:
        """(L·B, M, …), the same for all probes."""
        if self.uses[0].x is None:
            return None
        x = self._arranged([use.x for use in self.uses], 1).flatten(0, 1)
        return x.to(self.dtype) if x.is_floating_point() else x

    def sqnorms(self, deltas: dict[Call, torch.Tensor], B: int) -> torch.Tensor:
        """The squared norms of the gradients by all of them, added up: (B, c)."""
        d, x = self._arranged([deltas[use.call] for use in self.uses], 2).flatten(1, 2), self._x

        def factors(examples: slice) -> Factor:
            return self.uses[0].factor(None if x is None else x[examples], d[:, examples])

        return sqnorms(factors, len(self.uses) * B).unflatten(0, (-1, B)).sum(0)

    def _arranged(self, of_each: list[Any], lead: int) -> torch.Tensor:
        """As `BatchLayout.arrange` has one, with the axis of layers in front of the examples'."""
        call = self.uses[0].call
        assert call.layout is not None, "only calls whose layout was found are used"
        return call.layout.arrange(torch.stack(of_each, dim=lead - 1), call.rows, lead, slice(None))


def with_biases(uses: Iterable[list[Use]], B: int) -> list[list[Use]]:
    """Weights and biases of a layer as one parameter, where it has one row an example: with more, products rule."""
    found: list[list[Use]] = []
    weights: dict[Call, int] = {}  # of calls whose first parameter is in `found` at that place
    for some in uses:
        use, call, factor = some[0], some[0].call, None
        if len(some) == 1 and call.shape[: call.rows].numel() == B:
            at = weights.setdefault(call, len(found))
            factor = None if at == len(found) else joined(found[at][0].factor, use.factor, call.shape[-1])
        if factor is None:
            found.append(some)
        else:
            found[at] = [found[at][0]._replace(factor=factor)]
    return found


def alike(uses: Iterable[list[Use]], dtype: torch.dtype) -> tuple[list[Alike], list[list[Use]]]:
    """Parameters with others that are like them, and those that are not."""
    kinds: dict[Any, list[list[Use]]] = {}
    for some in uses:
        kind = _kind(some[0]) if len(some) == 1 else id(some)
        kinds.setdefault(kind, []).append(some)
    together = [Alike([use for (use,) in found], dtype) for found in kinds.values() if len(found) > 1]
    return together, [found[0] for found in kinds.values() if len(found) == 1]


def _kind(use: Use) -> tuple[Any, ...]:
    call, x = use.call, use.x
    return use.factor, call.shape, call.rows, call.layout, call.dtype, None if x is None else (x.shape, x.dtype)
