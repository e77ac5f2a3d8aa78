"""From a PyTorch model to its Jacobian and its kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

import traceest as te
from traceest_adapters import _state as common
from traceest_adapters._batches import Blocks, check_arguments
from traceest_adapters.torch.batches import batched
from traceest_adapters.torch.model import Model
from traceest_adapters.torch.operator import TorchJacobian


def jacobian(
    model: torch.nn.Module | Callable[..., Any],
    *inputs: Any,
    params: Mapping[str, torch.Tensor] | Iterable[str] | Callable[[str, torch.Tensor], bool] | None = None,
    output: Any = None,
    batch_axis: int | None = 0,
    chunk_size: int | None = None,
    check: bool = True,
    batches: Iterable[Any] | None = None,
    input: int | str | Callable[[Any], Any] | None = None,
    blocks: Blocks = "example",
    progress: bool = False,
) -> TorchJacobian | te.Stack:
    """The Jacobian of ``model(*inputs)`` with respect to its parameters, as an operator (n, P).

    Nothing of its size is formed. One forward pass is kept and serves all vjps of the whole batch; one backward
    pass, differentiated in its cotangent, serves all jvps. Train or eval mode is respected, buffers stay untouched.

    Norms and inner products of per-example gradients (`block_sqnorms`, `sketch_gram`, `grouped_gram`) come from the
    inputs and output derivatives of the layers, at about one or two backward passes a probe, for the parameters of
    linear, convolutional, embedding, normalisation and attention layers, of matrix products, scales and shifts. That
    the gradient is made of these is verified at first use, parameter by parameter; for all others (recurrent layers,
    for one) gradients are formed example by example, which gives the same result more slowly.

    Parameters
    ----------
    model : nn.Module, or callable
        A function is called as ``model(params, *inputs)`` and needs `params` as a mapping.
    *inputs : tensors, or pytrees of tensors
        All have the examples along `batch_axis`.
    params : mapping, names, or predicate, optional
        For a module: which parameters to differentiate by; names, or a predicate of name and parameter. Default: all
        that require grad, tied ones once. For a function: its mapping from names to tensors.
    output : int, str or callable, optional
        Which part of what the model returns is the state: an index (0 for the outputs of `nn.GRU`), a key or
        attribute, or a function. Default: all tensors it returns.
    batch_axis : int or None
        Axis of independent examples in inputs and state. Rows of the operator are ordered example first, so that
        each example is one block. None: no such axis, one block.
    chunk_size : int, optional
        Probes to a batched backward pass (8 if absent, fewer for large models).
    check : bool
        Verify on this batch that two evaluations agree, that examples are independent (outputs one by one against
        outputs together), and that the state depends on the parameters.
    batches : iterable, optional
        In place of `inputs`: a `DataLoader`, a list of tensors, anything that can be gone through again and again and
        yields the same batches each time; all of their examples make up one Jacobian (`te.vstack`), of which one batch
        is linearised at a time. A batch is a tensor, a tuple or list of inputs, or a mapping of keyword inputs, and is
        moved to the parameters' device. Checks are made on the first.
    input : int, str or callable, optional
        Which part of a batch is the model's input: an index (0 where a loader yields inputs and targets), a key, or
        a function. Default: all of it.
    blocks : {"example", "batch"}
        Of batches: each example is a block, or each batch, all of one size then (its examples need not be independent).
        Norms and ranks of B blocks by k probes take (Bk)² numbers: choose "batch" for many thousands of examples.
        Traces take B k numbers; leave "example" for them.
    progress : bool
        Of batches: show a bar over them (needs tqdm).

    Returns
    -------
    TorchJacobian, or of batches a `te.Stack` of them
        With `rmatmat` (vjps), the per-block abilities, and `matmat` (jvps) where the model can be differentiated
        twice. `parameters` are the names, in the order of the columns.

    Raises
    ------
    TypeError
        If there is no trainable parameter, or the state is not real floating, or devices are mixed; if `batches` can
        be gone through only once.
    ValueError
        If dropout is active, examples are not independent, a tensor has no `batch_axis`, or the state does not
        depend on the parameters; if `batches` are none, or others in another pass (``shuffle=True``).

    Examples
    --------
    >>> import torch, traceest as te
    >>> J = jacobian(torch.nn.Linear(3, 2, bias=False), torch.eye(4, 3))
    >>> J.shape, J.n_blocks
    ((8, 6), 4)
    >>> float(te.exact(te.gram(J)))
    6.0
    """
    from traceest_adapters.torch import checks

    check_arguments(inputs, batches, input, blocks, progress)
    wrapped, chosen = Model.of(model, params, output, batch_axis)

    def of(wrapped: Model, inputs: Any, check: bool, seen: bool = False) -> TorchJacobian:
        if seen:
            return TorchJacobian(wrapped, chosen, inputs, chunk_size)
        checks.parameters(chosen, inputs)
        with torch.no_grad():
            shapes = checks.state(wrapped, chosen, inputs)
        if check:
            with torch.no_grad():
                checks.deterministic(wrapped, chosen, inputs)
        J = TorchJacobian(wrapped, chosen, inputs, chunk_size)
        J.state_shape = common.example_first(shapes, wrapped.batch_axis)
        if check:
            checks.independent(J)
            checks.depends(J)
        return J

    if batches is None:
        return of(wrapped, inputs, check)
    make = lambda wrapped, inputs, first, seen: of(wrapped, inputs, check and first, seen)  # noqa: E731
    return batched(make, wrapped, chosen, batches, input, blocks, progress)


def ntk(model: torch.nn.Module | Callable[..., Any], *inputs: Any, **options: Any) -> te.Gram:
    """The empirical Neural Tangent Kernel K = J Jᵀ, ``te.gram(jacobian(...))``; arguments as for `jacobian`."""
    return te.gram(jacobian(model, *inputs, **options))
