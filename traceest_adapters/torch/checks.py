"""What can be wrong with a PyTorch model and its batch, said before any long work."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from traceest_adapters import _foreign
from traceest_adapters import _state as common
from traceest_adapters._memory import ran_out
from traceest_adapters.torch import diagnosis
from traceest_adapters.torch.model import Inputs, Model, Params
from traceest_adapters.torch.per_example.verify import Reference


def options(batch_axis: Any, chunk_size: Any) -> None:
    """Raise unless both are integers, or None."""
    for name, value, least in (("batch_axis", batch_axis, None), ("chunk_size", chunk_size, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"jacobian: {name} must be an integer or None, got {value!r}.")
        if value is not None and least is not None and value < least:
            raise ValueError(f"jacobian: {name} must be at least {least}, got {value}.")


def parameters(params: Params, inputs: Any, caller: str = "jacobian") -> None:
    """Raise unless there are real floating parameters, with values, on the inputs' device."""
    if not params:
        raise TypeError(
            f"{caller}: no trainable parameter; none requires grad (frozen, or quantised?), or wrt= selects none of "
            "them."
        )
    for name, p in params.items():
        if not isinstance(p, torch.Tensor):
            _foreign.check(p, f"parameter {name!r}", "torch", caller)
            raise TypeError(f"{caller}: parameter {name!r} must be a tensor, got a {type(p).__name__}.")
        if torch.nn.parameter.is_lazy(p):
            raise TypeError(
                f"{caller}: parameter {name!r} of a lazy module has no shape yet; call the model once before."
            )
        if not p.dtype.is_floating_point:
            raise TypeError(f"{caller}: parameter {name!r} has dtype {p.dtype}; only real floating ones can be used.")
        if p.is_inference():
            raise TypeError(f"{caller}: parameter {name!r} {INFERENCE}")
    devices = {str(x.device) for x in [*params.values(), *pytree.tree_leaves(inputs)] if isinstance(x, torch.Tensor)}
    if len(devices) > 1:
        raise TypeError(
            f"{caller}: parameters and inputs are on different devices, {', '.join(sorted(devices))}; move the "
            "model or the inputs with .to(device)."
        )
    if devices == {"meta"}:
        raise TypeError(
            f"{caller}: the model is on the device meta and has shapes but no values; load it on another one."
        )


INFERENCE = "was made in torch.inference_mode() and has no graph; give a .clone() of it that is made outside."


def inputs(batch: Inputs, model: Model) -> None:
    """Raise unless every tensor of the batch can be found, can be differentiated behind, and has one meaning."""
    if twice := sorted(batch.kwargs.keys() & model.shared.keys()):
        raise ValueError(f"jacobian: {', '.join(twice)} came both in kwargs= and in shared=; give each once.")
    for x in pytree.tree_leaves((batch, model.shared), is_leaf=lambda x: isinstance(x, PackedSequence)):
        if isinstance(x, Mapping):
            raise TypeError(
                f"jacobian: tensors inside a {type(x).__name__} cannot be told apart by example; if it holds the "
                "model's inputs by name, give it as kwargs=, else make it a dict."
            )
        if isinstance(x, PackedSequence) and model.batch_axis is not None:
            raise TypeError(
                "jacobian: the examples of a packed sequence have no axis of their own; give the padded tensor and the "
                "lengths to a model that packs them itself, or batch_axis=None."
            )
        if isinstance(x, np.ndarray) and not isinstance(x, np.ma.MaskedArray):
            raise TypeError("jacobian: an input is a NumPy array; make it a tensor with torch.as_tensor.")
        if isinstance(x, torch.Tensor) and x.is_nested:
            raise TypeError("jacobian: an input is a nested tensor, whose examples differ in shape; pad it, and mask.")
        if isinstance(x, torch.Tensor) and x.layout != torch.strided and not _shared(x, model):
            raise TypeError(
                f"jacobian: an input is sparse ({x.layout}), and examples cannot be taken out of it; give "
                "x.to_dense(), or shared= if all examples share it, as the edges of a graph, or batch_axis=None."
            )
        _foreign.check(x, "an input", "torch")
        if isinstance(x, torch.Tensor) and x.is_inference():
            raise TypeError(f"jacobian: an input {INFERENCE}")


def _shared(x: torch.Tensor, model: Model) -> bool:
    return model.batch_axis is None or any(x is leaf for leaf in pytree.tree_leaves(dict(model.shared)))


def state(model: Model, inputs: Inputs, tensors: list[torch.Tensor]) -> list[tuple[int, ...]]:
    """The shapes of the state's tensors.

    Raises
    ------
    TypeError, ValueError
        Unless the state is real floating and shares the inputs' batch axis.
    """
    if not tensors:
        raise TypeError("jacobian: the model returned no tensor; select one with output=.")
    for x in tensors:
        if not x.dtype.is_floating_point:
            raise TypeError(
                f"jacobian: the state has dtype {x.dtype}, derivatives are defined for real floating states only; "
                "select or convert a part of it with output=."
            )
    found = [tuple(x.shape) for x in tensors]
    if not sum(x.numel() for x in tensors):
        raise ValueError(f"jacobian: the state is empty, of shape {' and '.join(map(str, found))}; give examples.")
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


def finite(first: Reference, axis: int | None) -> None:
    """Raise unless the state is finite."""
    bad = (~first.state.isfinite()).any(1).nonzero()[:, 0]
    if len(bad):
        where = "the state" if axis is None else f"the state of example {int(bad[0])}"
        raise ValueError(
            f"jacobian: there is NaN or infinity in {where}; look at its inputs and at the parameters, or select a "
            "part that is finite with output=."
        )


def same_state(J: Any, first: Reference, again: Callable[[], Reference]) -> None:
    """Raise unless the copy of the model gives the state that the model gives as it is, and gives `again`."""
    state = J._state.detach()
    if agree(first.state, state, J.eps):
        return
    same(first.state, again().state, "jacobian", J.eps)
    raise ValueError(
        "jacobian: a copy of the model gives another state than the model as it is. Probably it uses modules or "
        "tensors that are not inside of it (in a closure, a hook, or a global variable); register these as submodules, "
        "or give a function with params=."
    )


def same(first: torch.Tensor, second: torch.Tensor, caller: str, eps: float | None = None) -> None:
    """Raise if what two evaluations gave differs."""
    if not agree(first, second, torch.finfo(first.dtype).eps if eps is None else eps):
        raise ValueError(
            f"{caller}: two evaluations of the model differ, so it is random: dropout is active, or noise is drawn. "
            "Call model.eval(), or fix the randomness."
        )


def agree(first: torch.Tensor, second: torch.Tensor, eps: float) -> bool:
    """Whether two evaluations are the same to rounding."""
    rtol = common.tolerance(eps)
    return torch.allclose(first, second, rtol=rtol, atol=rtol * _scale(first), equal_nan=True)


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
        except Exception as error:  # whatever the model says of a batch of one
            if ran_out(error):
                raise
            raise diagnosis.fails_alone(J, error) from error
    if alone.shape != together.shape:
        raise diagnosis.other_size(J, alone.shape[1])
    difference = float((alone - together).abs().max())
    if not difference <= common.tolerance(J.eps) * _scale(together):
        diagnosis.closes_over_a_batch(J)
        raise common.not_independent(
            axis, f"computed one by one their states differ from those of the batch by up to {difference:.2g}"
        )
    for warning in caught:  # the examples are independent, so what was said on the way there stands
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def depends(J: Any) -> None:
    """Raise if the state has no derivative that differs from zero, or none that is finite."""
    grads = J._look.first()
    for name, g in grads.items():
        if g is not None and not bool(g.isfinite().all()):
            raise ValueError(
                f"jacobian: NaN or infinity in a product Jᵀv, by parameter {name!r}; look for a square root, a norm "
                "or a logarithm at zero, for overflow, or try float64. check=False lets it pass."
            )
    if not any(g is not None and bool((g != 0).any()) for g in grads.values()):
        raise common.no_dependence()


def _scale(x: torch.Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0
