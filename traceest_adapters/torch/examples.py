"""Per-example gradients in PyTorch: examples mapped outside, probes inside."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from traceest_adapters import _memory as memory
from traceest_adapters.torch.model import Model, Params
from traceest_adapters.torch.plain import math_attention
from traceest_adapters.torch.products import flat, looping_quietly, squares, vjp


class PerExample:
    """J_bᵀ v_b for every example b of a batch, by `vmap`; one by one where a model cannot be mapped."""

    def __init__(self, model: Model, params: Params, inputs: Any, n_examples: int, differentiable: bool) -> None:
        self.model, self.inputs, self.B, self.differentiable = model, inputs, n_examples, differentiable
        self.params = params if differentiable else {name: p.detach() for name, p in params.items()}

    def states(self) -> torch.Tensor:
        """The state of every example computed by itself, (B, n_b)."""

        def mapped(example: Any) -> torch.Tensor:  # inside vjp, where recurrent layers take the form that can be mapped
            return torch.func.vjp(lambda p: self.model.row(p, example), self.params)[0]

        return self._over_examples(mapped, lambda example: self.model.row(self.params, example), (), 0)

    def sqnorms(self, U: torch.Tensor, names: list[str]) -> torch.Tensor:
        """‖J_bᵀ u_{b,i}‖² over the parameters named, for U of shape (c, B, n_b): (B, c)."""
        return self._reduced(names, squares, U)

    def grads(self, U: torch.Tensor, names: list[str]) -> torch.Tensor:
        """J_bᵀ u_{b,i} with respect to the parameters named, (B, c, P_names)."""
        return self._reduced(names, flat, U)

    def _reduced(self, names: list[str], reduce: Callable[[list[torch.Tensor]], torch.Tensor], U: torch.Tensor) -> Any:
        """`reduce` of each example's gradients by `names`, which it is given as a list of (c, …)."""
        fixed = {name: p for name, p in self.params.items() if name not in names}
        chosen = {name: self.params[name] for name in names}

        def mapped(example: Any, u: torch.Tensor) -> torch.Tensor:
            pullback = torch.func.vjp(lambda p: self.model.row({**fixed, **p}, example), chosen)[1]
            return reduce(list(torch.func.vmap(lambda v: pullback(v)[0])(u).values()))

        def plain(example: Any, u: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                p = chosen if self.differentiable else {name: x.detach().requires_grad_() for name, x in chosen.items()}
                row = self.model.row({**fixed, **p}, example)
            return reduce(vjp([row], list(p.values()), [u], self.differentiable))

        size = len(U) * sum(p.numel() for p in chosen.values())
        return self._over_examples(mapped, plain, (U.transpose(0, 1),), size)

    def _over_examples(
        self, mapped: Callable[..., torch.Tensor], plain: Callable[..., torch.Tensor], extra: tuple[Any, ...], size: int
    ) -> torch.Tensor:
        """One function of every example, stacked: `mapped` by vmap, else `plain`; `size` numbers are held for each."""
        with math_attention(), torch.set_grad_enabled(self.differentiable):
            if self.model.batch_axis is None:
                return plain(self.inputs, *(x[0] for x in extra))[None]
            if self.model.known.get("maps", True):
                axes = (self.model.axes(self.inputs), *(0 for _ in extra))
                at_once = max(1, memory.budget() // (4 * size)) if size else None
                try:
                    with looping_quietly():
                        return torch.func.vmap(mapped, in_dims=axes, chunk_size=at_once)(self.inputs, *extra)
                except Exception as error:  # of any kind; what is wrong with the model itself is raised again below
                    if memory.ran_out(error):
                        raise
                    self._cannot_map(error)
            rows = range(self.B)
            return torch.stack([plain(self.model.example(self.inputs, b), *(x[b] for x in extra)) for b in rows])

    def _cannot_map(self, error: Exception) -> None:
        self.model.known["maps"] = False
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warnings.warn(
            f"this model cannot be mapped over examples by torch.func.vmap ({reason}); they are taken one by one, "
            "which gives the same result more slowly.",
            RuntimeWarning,
            stacklevel=2,
        )
