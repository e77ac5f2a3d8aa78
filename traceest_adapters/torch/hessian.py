"""The Hessian of a PyTorch function as an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import traceest as te
from traceest._boundary import made_of
from traceest_adapters import _memory as memory
from traceest_adapters import _state as common
from traceest_adapters._symmetric import Symmetric
from traceest_adapters.torch.constants import Source
from traceest_adapters.torch.execution import math_attention
from traceest_adapters.torch.model import Params
from traceest_adapters.torch.products import MOST, flat, vjp

ONCE = getattr(torch.autograd.function.once_differentiable(lambda ctx: None), "__code__", None)
"""By which a backward function is known that must not be differentiated."""


class TorchHessian(te.Operator):
    """∂²f/∂θ² of a scalar function, (P, P), by backward passes through its gradient; see `hessian`."""

    source: Source = Source()
    """What products depend on outside of the graph."""

    def __init__(
        self,
        f: Callable[[Params], torch.Tensor],
        params: Params,
        chunk_size: int | None = None,
        memory_budget: int | None = None,
        check: bool = True,
    ) -> None:
        self.params = {name: p.detach().requires_grad_() for name, p in params.items()}
        leaves = list(self.params.values())
        with torch.enable_grad(), math_attention():
            value = f(self.params)
            if not value.requires_grad:
                raise common.no_dependence()
            _check_differentiable(value)
            grads = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
        self.value = value.detach()
        self._grads = {i: g for i, g in enumerate(grads) if g is not None and g.requires_grad}
        P = sum(p.numel() for p in leaves)
        dtype = torch.result_type(self.value, leaves[0])
        like = torch.empty(0, dtype=dtype, device=leaves[0].device)
        super().__init__((P, P), like=like, symmetric=True, parameters=self.params, name="TorchHessian")
        self.memory_budget = memory.given(memory_budget)
        with memory.within(self.memory_budget):
            affordable = max(1, min(MOST, memory.budget() // (P * dtype.itemsize)))
        self.chunk_size = affordable if chunk_size is None else chunk_size
        instead = "gauss_newton or empirical_fisher"
        self._checked = Symmetric(self._product, self._product, self, "hessian", instead) if check else self._product

    @memory.recovering
    def matmat(self, X: torch.Tensor) -> torch.Tensor:
        """H X: (P, k) → (P, k)."""
        made_of(self.source)
        return torch.cat([self._checked(part) for part in X.split(self.chunk_size, dim=1)], dim=1)

    rmatmat = matmat

    def _product(self, X: torch.Tensor) -> torch.Tensor:
        leaves = list(self.params.values())
        if not self._grads:  # f is linear in all parameters
            return torch.zeros_like(X)
        parts = X.split([p.numel() for p in leaves])
        tangents = [parts[i].T.reshape(X.shape[1], *leaves[i].shape).to(g.dtype) for i, g in self._grads.items()]
        try:
            with math_attention():
                return flat(vjp(list(self._grads.values()), leaves, tangents)).T.to(self.dtype)
        except RuntimeError as error:
            if memory.ran_out(error):
                raise
            raise _not_differentiable(str(error).strip().splitlines()[0]) from error


def _check_differentiable(value: torch.Tensor) -> None:
    """Raise if a function on the way to `value` is differentiable once: it would cut its share off without a word."""
    seen: set[Any] = set()
    left: list[Any] = [value.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        backward = getattr(getattr(node, "_forward_cls", None), "backward", None)
        if backward is not None and getattr(backward, "__code__", backward) is ONCE:
            raise _not_differentiable(f"{type(node).__name__} is marked once_differentiable")
        left += [parent for parent, _ in node.next_functions]


def _not_differentiable(why: str) -> TypeError:
    return TypeError(
        f"hessian: the gradient of this model cannot be differentiated ({why}). gauss_newton and empirical_fisher take "
        "vjps alone for traces and norms; or use operations that can be differentiated twice."
    )
