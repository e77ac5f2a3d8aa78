"""Numbers that were computed outside of PyTorch's graph, and say so when their gradient is asked for.

To PyTorch they are constants: added to a loss, a statistic of a model would have a gradient of exactly zero by the
model's parameters. A `Constant` is a tensor like any other; where it meets one that requires a gradient, what comes out
depends on the parameters too, by a step whose backward pass raises. Nothing of the graph is kept for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch.utils import _pytree as pytree

CURES = {
    False: "Make the kernel or Jacobian with differentiable=True.",
    True: "Ask for one that is made of products alone, with a fixed budget, such as te.rhutch or te.frobenius_norm.",
    None: "Hessians have no derivative here; traceest_adapters.jax carries it.",
}
"""What to do for a gradient, by whether the operator is differentiable, or cannot be (None)."""


@dataclass(frozen=True, eq=False)
class Source:
    """What a number depends on outside of the graph, and what to do for a gradient."""

    tensors: tuple[ref[torch.Tensor], ...] = ()
    key: tuple[int, ...] = ()
    cure: str = ""

    @classmethod
    def of(cls, tree: Any, cure: str) -> Source:
        """Of the tensors in `tree` that require gradients."""
        given = [x for x in pytree.tree_leaves(tree) if isinstance(x, torch.Tensor) and x.requires_grad]
        found = {id(x): x for x in [*given, *_leaves(given)]}
        return cls(tuple(map(ref, found.values())), tuple(found), cure)

    @classmethod
    def of_model(cls, model: Any, params: Any, inputs: Any, differentiable: bool | None) -> Source:
        """Of a Jacobian, or, where it can't be `differentiable`, of a Hessian.

        That is the parameters asked about, all others of the module, and the inputs.
        """
        others = () if model.owner is None else (*model.owner.parameters(), *model.owner.buffers())
        return cls.of((params, dict(model.shared), inputs, others), CURES[differentiable])

    @property
    def alive(self) -> Iterator[torch.Tensor]:
        """Those that are still there, and still require gradients."""
        found = (x() for x in self.tensors)
        return (x for x in found if x is not None and x.requires_grad)


class Constant(torch.Tensor):  # type: ignore[misc]
    """A tensor outside of the graph that knows what it was made of."""

    sources: list[Source]

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """`func`, of which the result is a `Constant` too, or cannot be differentiated."""
        del types
        given = args, kwargs or {}
        leaves = [x for x in pytree.tree_leaves(given) if isinstance(x, torch.Tensor)]
        sources = list({id(s): s for x in leaves if isinstance(x, Constant) for s in x.sources}.values())
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.Tensor.backward:
                raise RuntimeError(_why(sources))
            if torch.is_grad_enabled() and any(x.requires_grad for x in leaves) and not _in_transform():
                args, kwargs = pytree.tree_map_only(Constant, _refusing, given)
                return func(*args, **kwargs)
            found = func(*given[0], **given[1])
        if func is torch.Tensor.detach or func is torch.detach:
            return found.as_subclass(torch.Tensor)
        return pytree.tree_map_only(torch.Tensor, lambda x: marked(x, sources), found) if _tensors(found) else found

    def __repr__(self, **options: Any) -> str:
        return self.detach().__repr__(**options)

    def __format__(self, spec: str) -> str:
        return self.detach().__format__(spec)

    def __deepcopy__(self, memo: Any) -> torch.Tensor:
        return self.detach().clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().__reduce_ex__(protocol)


def marked(x: Any, sources: Iterable[Source]) -> Any:
    """`x` as a `Constant`, if it is a floating tensor without a graph, made of what requires gradients now."""
    if not (isinstance(x, torch.Tensor) and x.is_floating_point()) or x.requires_grad or not torch.is_grad_enabled():
        return x
    live = [s for s in sources if next(s.alive, None) is not None]
    if not live or _in_transform():
        return x
    constant = x.as_subclass(Constant)
    constant.sources = live
    return constant


class _Refusal(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, why: str, value: torch.Tensor, *made_of: torch.Tensor) -> torch.Tensor:
        ctx.why = why
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(ctx.why)


def _refusing(x: Constant) -> torch.Tensor:
    """`x` in the graph, its backward pass an error."""
    made_of = list({id(p): p for s in x.sources for p in s.alive}.values())
    plain = x.as_subclass(torch.Tensor)
    if not made_of:
        return plain
    return _Refusal.apply(_why(x.sources), plain, *made_of)


def _why(sources: list[Source]) -> str:
    cures = " Or: ".join(dict.fromkeys(s.cure for s in sources))
    return (
        "a gradient was asked for through a statistic that carries none: it was computed outside of PyTorch's graph, "
        f"and its share of the gradient would have been zero without a word. {cures} If it is meant as a constant, "
        "add .detach() to it, or take float() of it."
    )


def _leaves(tensors: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """What tensors were computed from, which may be there for longer than they are."""
    seen: set[Any] = set()
    left = [x.grad_fn for x in tensors if x.grad_fn is not None]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            yield leaf
        left += [parent for parent, _ in node.next_functions]


def _in_transform() -> bool:
    """Whether `torch.func` is at work, which differentiates by its own arguments alone."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _tensors(found: Any) -> bool:
    return isinstance(found, torch.Tensor) or (isinstance(found, (tuple, list)) and not isinstance(found, torch.Size))
