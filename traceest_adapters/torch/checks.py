"""What can be wrong with a PyTorch model and its batch, said before any long work."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.utils import _pytree as pytree

from traceest_adapters import _state as common
from traceest_adapters.torch.model import Model, Params


def parameters(params: Params, inputs: Any, caller: str = "jacobian") -> None:
    """Raise unless there are real floating parameters, on the inputs' device."""
    if not params:
        raise TypeError(
            f"{caller}: no trainable parameter; none requires grad (frozen?), or params= selects none of them."
        )
    for name, p in params.items():
        if not p.dtype.is_floating_point:
            raise TypeError(f"{caller}: parameter {name!r} has dtype {p.dtype}; only real floating ones can be used.")
    devices = {str(x.device) for x in [*params.values(), *pytree.tree_leaves(inputs)] if isinstance(x, torch.Tensor)}
    if len(devices) > 1:
        raise TypeError(
            f"{caller}: parameters and inputs are on different devices, {', '.join(sorted(devices))}; move the "
            "model or the inputs with .to(device)."
        )


def state(model: Model, params: Params, inputs: Any) -> list[tuple[int, ...]]:
    """The shapes of the state's tensors.

    Raises
    ------
    TypeError, ValueError
        Unless the state is real floating and shares the inputs' batch axis.
    """
    tensors = model.tensors(params, inputs)
    if not tensors:
        raise TypeError("jacobian: the model returned no tensor; select one with output=.")
    for x in tensors:
        if not x.dtype.is_floating_point:
            raise TypeError(
                f"jacobian: the state has dtype {x.dtype}, derivatives are defined for real floating states only; "
                "select or convert a part of it with output=."
            )
    found = [tuple(x.shape) for x in tensors]
    if model.batch_axis is None:
        return found
    shapes = [tuple(x.shape) for x in pytree.tree_leaves(inputs) if isinstance(x, torch.Tensor)]
    if not shapes:
        raise ValueError("jacobian: there are no input tensors, hence no batch; give batch_axis=None.")
    B = common.batch_size(shapes, model.batch_axis, "the inputs")
    B_out = common.batch_size(found, model.batch_axis, "the state")
    if B_out != B:
        raise ValueError(
            f"batch_axis={model.batch_axis}: {B} examples go in and {B_out} come out; give the right axis, select a "
            "part of the output with output= (output=0 for the outputs of nn.GRU), or give batch_axis=None."
        )
    return found


def deterministic(model: Model, params: Params, inputs: Any) -> None:
    """Raise if two evaluations differ."""
    same(model.rows(params, inputs), model.rows(params, inputs), "jacobian")


def same(first: torch.Tensor, second: torch.Tensor, caller: str) -> None:
    """Raise if what two evaluations gave differs."""
    if not torch.allclose(first, second, rtol=_rtol(first), atol=_rtol(first) * _scale(first), equal_nan=True):
        raise ValueError(
            f"{caller}: two evaluations of the model differ, so it is random: dropout is active, or noise is drawn. "
            "Call model.eval(), or fix the randomness."
        )


def independent(J: Any) -> None:
    """Raise unless every example's state is the same computed alone and in the batch."""
    axis = J.model.batch_axis
    if axis is None or len(J._state) == 1:
        return
    together = J._state.detach()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            alone = J._examples.states().detach()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise common.not_independent(axis, f"one by itself, the model fails ({error})") from error
    difference = float((alone - together).abs().max()) if alone.shape == together.shape else float("inf")
    if not difference <= _rtol(together) * _scale(together):
        raise common.not_independent(
            axis, f"computed one by one their states differ from those of the batch by up to {difference:.2g}"
        )
    for warning in caught:  # the examples are independent, so what was said on the way there stands
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def depends(J: Any) -> None:
    """Raise if the state has no derivative that differs from zero."""
    if not J._state.requires_grad:
        raise common.no_dependence()
    (*grads,) = torch.autograd.grad(
        J._state, list(J.params.values()), torch.ones_like(J._state), retain_graph=True, allow_unused=True
    )
    if not any(g is not None and bool((g != 0).any()) for g in grads):
        raise common.no_dependence()


def _rtol(x: torch.Tensor) -> float:
    return common.tolerance(torch.finfo(x.dtype).eps)


def _scale(x: torch.Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0
