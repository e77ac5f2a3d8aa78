"""What PyTorch differentiates for the curvature of a loss: at the outputs of a model, and by its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

import traceest as te
from traceest._boundary import made_of
from traceest._names import Names
from traceest_adapters import _memory as memory
from traceest_adapters import _state as common
from traceest_adapters._curvature.matrices import AtOutputs
from traceest_adapters._curvature.symmetric import Found, Symmetric
from traceest_adapters.torch import checks
from traceest_adapters.torch.constants import Source
from traceest_adapters.torch.execution import math_attention
from traceest_adapters.torch.model import Params
from traceest_adapters.torch.operator import TorchJacobian
from traceest_adapters.torch.products import MOST, flat, vjp

LOOKED = 16
"""Examples whose losses are taken one by one, too, where all are mapped over."""

ONCE = torch.autograd.function.once_differentiable(lambda ctx: None).__code__
"""By which a backward function is known that must not be differentiated."""


class TorchCalculus:
    """See `traceest_adapters._curvature.matrices.Calculus`."""

    def outputs(self, J: TorchJacobian, targets: Any, caller: str) -> torch.Tensor:
        """The model's outputs as a tensor of `J.state_shape`, no coarser than float32."""
        checks.parameters(J.params, targets, caller)
        z = J._state.detach().reshape(J.state_shape)
        return z.to(torch.promote_types(z.dtype, torch.float32))

    def scalar(self, value: Any, caller: str) -> torch.Tensor:
        """The value of a loss. Raises ValueError unless it is one real number."""
        if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.is_floating_point():
            what = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(
                f"{caller}: the loss must be one real number, got {what}; take its mean or its sum (reduction='mean')."
            )
        return value.reshape(())

    def gradient(
        self, f: Callable[..., torch.Tensor], z: torch.Tensor, targets: Any, caller: str, create_graph: bool = False
    ) -> torch.Tensor:
        """∂f/∂z, of which z becomes a leaf."""
        with torch.enable_grad():
            value = f(z.requires_grad_(), targets)
            if not value.requires_grad:
                raise ValueError(
                    f"{caller}: the loss does not depend on the model's outputs, or is cut off from them (a detach, a "
                    "no_grad, or a conversion to a number)."
                )
            return torch.autograd.grad(value, z, create_graph=create_graph)[0]

    def second(
        self, f: Callable[..., torch.Tensor], z: torch.Tensor, targets: Any, caller: str
    ) -> tuple[torch.Tensor, Any, Any]:
        """∂f/∂z, and twice V ↦ ∂²f/∂z² V: one column goes through a plain backward pass as it is."""
        z = z.detach()
        g = self.gradient(f, z, targets, caller, create_graph=True)

        def H(V: torch.Tensor) -> torch.Tensor:
            if not g.requires_grad:
                return torch.zeros_like(V, dtype=z.dtype)
            try:
                (found,) = vjp([g], [z], [V.T.reshape(V.shape[1], *z.shape).to(z.dtype)])
            except RuntimeError as error:
                if memory.ran_out(error):
                    raise
                raise TypeError(
                    f"{caller}: the loss cannot be differentiated twice ({str(error).strip().splitlines()[0]}); ask "
                    "for empirical_fisher, or use operations that can."
                ) from error
            return found.reshape(V.shape[1], -1).T

        return g, H, H

    def alone(self, at: AtOutputs, r: torch.Tensor) -> torch.Tensor:
        """The gradient of each example's loss by itself, given twice: mapped, with a look at it, or one by one."""
        try:
            q = _mapped(at)
        except Exception as error:  # a loss that looks at values, or has no batching rule
            if memory.ran_out(error):
                raise
            q = None
        if q is not None:
            some = _one_of_each(r, q)
            if torch.allclose(_singly(at, some), q[some], rtol=_tolerance(q), atol=0.0, equal_nan=True):
                return q
        return _singly(at, self.indices(len(at.z), at.z))

    def examples(self, tree: Any, rows: torch.Tensor, axis: int, B: int) -> Any:
        """The rows of all tensors in `tree` that have B of them along the axis."""

        def chosen(t: torch.Tensor) -> torch.Tensor:
            return t.index_select(axis, rows) if t.ndim > axis and t.shape[axis] == B else t

        return pytree.tree_map_only(torch.Tensor, chosen, tree)

    def indices(self, n: int, z: Any) -> torch.Tensor:
        """0, …, n − 1, on the device of z."""
        return torch.arange(n, device=z.device)

    def constant(self, tree: Any) -> Any:
        """The same without derivatives."""
        return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, tree)

    def has_values(self, tree: Any) -> bool:
        """True: PyTorch computes as it goes."""
        return True


CALCULUS = TorchCalculus()


def _singly(at: AtOutputs, some: torch.Tensor) -> torch.Tensor:
    """The gradients of some examples' losses by themselves, by a plain pass through all of them."""
    pairs = [at.examples(b.expand(2)) for b in some]
    leaves = [z.detach().requires_grad_() for z, _ in pairs]
    with torch.enable_grad():
        total = torch.stack([at.f(z, t) for z, (_, t) in zip(leaves, pairs, strict=True)]).sum()
    return torch.stack(torch.autograd.grad(total, leaves)).sum(1)


def _mapped(at: AtOutputs) -> torch.Tensor:
    """The same of all examples, mapped over them."""
    axis, B = at.axis, len(at.z)
    leaves, treedef = pytree.tree_flatten(at.targets)
    mine = [i for i, t in enumerate(leaves) if isinstance(t, torch.Tensor) and t.ndim > axis and t.shape[axis] == B]
    twice = [torch.stack([leaves[i].movedim(axis, 0)] * 2, 1).movedim(1, axis + 1) for i in mine]
    z = torch.stack([at.z, at.z], 1).detach().requires_grad_()

    def of_pair(z: torch.Tensor, *own: torch.Tensor) -> torch.Tensor:
        given = list(leaves)
        for i, t in zip(mine, own, strict=True):
            given[i] = t
        return at.f(z, pytree.tree_unflatten(given, treedef))

    with torch.enable_grad():
        total = torch.func.vmap(of_pair)(z, *twice).sum()
    return torch.autograd.grad(total, z)[0].sum(1)


def _one_of_each(r: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Examples of every share of q that r has, as far as `LOOKED` of them go, and of others up to that number."""
    r, q = r.flatten(1), q.flatten(1).nan_to_num()
    shares = (r * q).sum(1) / q.square().sum(1)
    rounded = (shares / shares.nan_to_num().abs().max() * 2**20).nan_to_num(-1.0).round()
    order = rounded.argsort(stable=True)
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = rounded[order][1:] != rounded[order][:-1]
    of_each = order[first]
    of_each = of_each[torch.linspace(0, len(of_each) - 1, min(LOOKED, len(of_each))).round().long()]
    others = torch.linspace(0, len(r) - 1, min(LOOKED, len(r))).round().long().to(of_each.device)
    return torch.cat([of_each, others[: max(0, LOOKED - len(of_each))]]).unique()


def _tolerance(q: torch.Tensor) -> float:
    return float(torch.finfo(q.dtype).eps ** 0.5)


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
        found: Found | None = None,
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
        super().__init__((P, P), like=like, symmetric=True, parameters=Names(self.params, leaves), name="TorchHessian")
        self.memory_budget = memory.given(memory_budget)
        with memory.within(self.memory_budget):
            affordable = max(1, min(MOST, memory.budget() // (P * dtype.itemsize)))
        self.chunk_size = affordable if chunk_size is None else chunk_size
        instead = "gauss_newton or empirical_fisher"
        self._checked = (
            Symmetric(self._product, self._product, self, "hessian", instead, found) if check else self._product
        )

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
