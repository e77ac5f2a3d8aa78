"""Per-example gradients in PyTorch: examples mapped outside, probes inside."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from traceest_adapters import _state as common
from traceest_adapters._torch_model import Model, Params, math_attention


class PerExample:
    """J_bᵀ v_b for every example b of a batch, by `vmap`; one by one where a model cannot be mapped."""

    def __init__(self, model: Model, params: Params, inputs: Any, n_examples: int) -> None:
        self.model, self.inputs, self.B = model, inputs, n_examples
        self.params = {name: p.detach() for name, p in params.items()}
        self._maps = True

    def states(self) -> torch.Tensor:
        """The state of every example computed by itself, (B, n_b)."""

        def one(example: Any) -> torch.Tensor:  # inside vjp, where recurrent layers take the form that can be mapped
            return torch.func.vjp(lambda p: self.model.row(p, example), self.params)[0]

        return self._over_examples(one, (), None)

    def sqnorms(self, U: torch.Tensor) -> torch.Tensor:
        """‖J_bᵀ u_{b,i}‖² for U of shape (c, B, n_b): (B, c)."""

        def squares(grads: Params) -> torch.Tensor:
            return torch.stack([g.reshape(len(g), -1).square().sum(1) for g in grads.values()]).sum(0)

        size = sum(p.numel() for p in self.params.values())
        return self._over_examples(self._gradients(list(self.params), squares), (U.transpose(0, 1),), len(U) * size)

    def grads(self, U: torch.Tensor, names: list[str]) -> torch.Tensor:
        """J_bᵀ u_{b,i} with respect to the parameters named, (B, c, P_names)."""

        def flat(grads: Params) -> torch.Tensor:
            return torch.cat([g.reshape(len(g), -1) for g in grads.values()], dim=1)

        size = sum(self.params[name].numel() for name in names)
        return self._over_examples(self._gradients(names, flat), (U.transpose(0, 1),), len(U) * size)

    def _gradients(self, names: list[str], reduce: Callable[[Params], torch.Tensor]) -> Callable[..., torch.Tensor]:
        """One example and its probes (c, n_b) to `reduce` of the gradients, each (c, …)."""
        fixed = {name: p for name, p in self.params.items() if name not in names}
        chosen = {name: self.params[name] for name in names}

        def one(example: Any, u: torch.Tensor) -> torch.Tensor:
            _, vjp = torch.func.vjp(lambda p: self.model.row({**fixed, **p}, example), chosen)
            return reduce(torch.func.vmap(lambda v: vjp(v)[0])(u))

        return one

    def _over_examples(self, one: Callable[..., torch.Tensor], extra: tuple[Any, ...], size: int | None) -> Any:
        """`one` of every example, stacked; `size` numbers are held for each."""
        at_once = None if size is None else max(1, common.GROUP_BYTES // (4 * size))
        with math_attention(), torch.no_grad():
            if self.model.batch_axis is None:
                return one(self.inputs, *(x[0] for x in extra))[None]
            if self._maps:
                try:
                    axes = (self.model.axes(self.inputs), *(0 for _ in extra))
                    mapped = torch.func.vmap(one, in_dims=axes, chunk_size=at_once, randomness="error")
                    return mapped(self.inputs, *extra)
                except torch.OutOfMemoryError:
                    raise
                except (RuntimeError, NotImplementedError, ValueError) as error:
                    self._cannot_map(error)
            return torch.stack([one(self.model.example(self.inputs, b), *(x[b] for x in extra)) for b in range(self.B)])

    def _cannot_map(self, error: Exception) -> None:
        self._maps = False
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warnings.warn(
            f"this model cannot be mapped over examples by torch.func.vmap ({reason}); they are taken one by one, "
            "which gives the same result more slowly.",
            RuntimeWarning,
            stacklevel=2,
        )
