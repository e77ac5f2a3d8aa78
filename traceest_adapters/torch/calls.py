"""From a PyTorch model to its Jacobian and its kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.utils import _pytree as pytree

import traceest as te
from traceest_adapters import _state as common
from traceest_adapters._batches import Blocks, check_arguments
from traceest_adapters._calls import clear
from traceest_adapters.torch.batches import batched
from traceest_adapters.torch.constants import Source
from traceest_adapters.torch.execution import graphs_allowed
from traceest_adapters.torch.model import Inputs, Model, kept
from traceest_adapters.torch.operator import TorchJacobian
from traceest_adapters.torch.per_example.verify import Findings, reference


@clear("jacobian(model, *inputs, kwargs={…})")
def jacobian(
    model: torch.nn.Module | Callable[..., Any],
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    shared: Mapping[str, Any] | None = None,
    params: Mapping[str, torch.Tensor] | Iterable[str] | Callable[[str, torch.Tensor], bool] | None = None,
    output: Any = None,
    batch_axis: int | None = 0,
    feature_axis: int | None = None,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
    check: bool = True,
    differentiable: bool = False,
    batches: Iterable[Any] | None = None,
    input: int | str | Callable[[Any], Any] | None = None,
    blocks: Blocks = "example",
    progress: bool = False,
) -> TorchJacobian | te.Stack:
    """The Jacobian of ``model(*inputs, **kwargs)`` with respect to its parameters, as an operator (n, P).

    Nothing of its size is formed. One forward pass is kept and serves all vjps of the whole batch; one backward
    pass, differentiated in its cotangent, serves all jvps. Train or eval mode is respected, buffers stay untouched.

    Norms and inner products of per-example gradients (`block_sqnorms`, `sketch_gram`, `grouped_gram`) come from the
    inputs and output derivatives of the layers, at about one or two backward passes a probe, for the parameters of
    linear, convolutional, recurrent, embedding, normalisation and attention layers, of matrix products, scales and
    shifts. That the gradient is made of these is verified at first use, parameter by parameter; for all others (of
    transposed convolutions, for one) gradients are formed example by example, which gives the same result more slowly.

    Parameters
    ----------
    model : nn.Module, or callable
        A function is called as ``model(params, *inputs)`` and needs `params` as a mapping.
    *inputs : tensors, or pytrees of tensors
        All have the examples along `batch_axis`.
    kwargs : mapping, optional
        Inputs by keyword, such as ``attention_mask``; a tokeniser's whole batch as it is: ``ntk(model, kwargs=batch)``.
        Tensors have the examples along `batch_axis`, all else is passed through.
    shared : mapping, optional
        Inputs by keyword that all examples share and that have no batch axis, such as the edges of a graph.
    params : mapping, names, or predicate, optional
        For a module: which parameters to differentiate by; names, or a predicate of name and parameter. Default: all
        that require grad, tied ones once. For a function: its mapping from names to tensors.
    output : int, str, callable or tuple, optional
        Which part is the state: an index (0 for the outputs of `nn.GRU`), a key or attribute of what the model returns
        ("logits"), or a function of it; a module inside, by its dotted name ("encoder.layer.3"), for the hidden state
        that it gives out; or a tuple of such selections, one after the other: ("encoder.layer.3", 0). Where a name is
        both, it is that of the returned value. A module that is called several times gives the list of its outputs:
        "cell" is all of them, ("cell", -1) the last. Default: all tensors that the model returns.
    batch_axis : int or None
        Axis of independent examples in inputs and state. Rows of the operator are ordered example first, so that
        each example is one block. None: no such axis, one block.
    feature_axis : int, optional
        Axis of units or channels in the state; all others are positions (time, tokens, pixels), over which the signs of
        probes for traces are balanced (`te.probes.balanced`): with any axis they are unbiased, with the right one the
        variance may be a third or a tenth. Default: the last, and of images, with two axes or more
        behind, the channels' (which lead, next to the examples).
    chunk_size : int, optional
        Probes to a batched backward pass; absent: up to 32, as the largest value on the way and the memory budget
        allow.
    memory_budget : int, optional
        Bytes for what a product holds beside the model, its graph and the answer (512 MiB if absent). Where memory
        runs out all the same, both numbers are halved, with a warning, and the product is made again.
    check : bool
        Look before anything is believed: the module is run once as it is, with a plain backward pass, and every way in
        which products are made later is compared with a plain pass when it is first used. A way that gives other
        results (examples that influence each other's derivatives, a batched form of PyTorch's that is wrong) is left
        for a plainer one, with a warning; and examples have to be independent (outputs one by one against outputs
        together), evaluations to agree, and the state to depend on the parameters. Costs one forward pass and about two
        backward passes. False leaves all of this out: what PyTorch's batched forms give is then taken on trust.
    differentiable : bool
        Keep the graph, so that statistics can be differentiated by the parameters, as regularisers are:
        ``te.frobenius_norm(ntk(model, x, differentiable=True), n_probes=2, rng=…).value.backward()``, once a kernel.
        Costs about two backward passes more, and the memory of every product's graph. Jvps are there only where
        their own derivatives are right (those of PyTorch's layer norm are not); vjps suffice for the statistics of
        kernels with independent examples.
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
        If there is no trainable parameter, or the state is not real floating, devices are mixed, or the model or an
        input is of a kind that cannot be differentiated (quantised, scripted, packed, made in inference mode, …); if
        `batches` can be gone through only once.
    ValueError
        If dropout is active, examples are not independent, a tensor has no `batch_axis`, `output` names nothing, the
        state or its derivative is not finite, or the state does not depend on the parameters; if `batches` are none,
        or others in another pass (``shuffle=True``).

    Notes
    -----
    The operator is float32 at the least. Products with a model of lower precision, or under `torch.autocast` (which is
    remembered from the call), carry the model's own rounding: for bfloat16 some 0.05 % of a trace or a norm were
    measured. What `torch.compile` has compiled runs as it was written, and `nn.TransformerEncoder` without its fast
    path, which has no gradient.

    Examples
    --------
    >>> import torch, traceest as te
    >>> J = jacobian(torch.nn.Linear(3, 2, bias=False), torch.eye(4, 3))
    >>> J.shape, J.n_blocks
    ((8, 6), 4)
    >>> float(te.exact(te.gram(J)))
    6.0

    The kernel of a hidden state, by the name of the module that gives it out:

    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> ntk(model, torch.eye(4, 3), output="1").shape
    (32, 32)
    """
    from traceest_adapters.torch import checks

    check_arguments(inputs, batches, input, blocks, progress)
    if batches is not None and kwargs:
        raise TypeError("jacobian: kwargs= beside batches=; keyword inputs come in the batches, each a mapping.")
    checks.options(batch_axis, chunk_size)
    axis = None if blocks == "batch" else batch_axis
    wrapped, chosen = Model.of(model, params, output, axis, shared or {})
    checks.parameters(chosen, (inputs, kwargs, wrapped.shared))
    with graphs_allowed():
        own, leaves = wrapped.own(chosen, differentiable)
    source = Source.of_model(wrapped, chosen, (inputs, kwargs), differentiable)
    how = chunk_size, memory_budget, differentiable, check

    def of(batch: Inputs, look: bool, findings: Findings) -> TorchJacobian:
        """Of a batch; `look` asks the user's module, too, what it makes of it."""
        with graphs_allowed():
            shapes, first = partial(checks.state, wrapped, batch), None
            if look:
                first = reference(wrapped, chosen, batch, shapes)
                checks.finite(first, axis)
            model = own if first is None or not first.overwrites else replace(own, overwrites=True)
            J = TorchJacobian(model, leaves, batch, *how, shapes, first, findings)
            J.source = source
            J.state_shape = shape = common.example_first(J.shapes, axis)
            default = 1 if shape is not None and len(shape) > 3 else -1
            J.feature_axis = common.feature_axis(shape, feature_axis, axis, default)
            if first is not None:
                checks.same_state(J, first, lambda: reference(wrapped, chosen, batch, shapes))
                checks.depends(J)
                checks.independent(J)
        return J

    if batches is None:
        batch = Inputs(inputs, dict(kwargs or {}))
        checks.inputs(batch, wrapped)
        with graphs_allowed():
            batch = pytree.tree_map_only(torch.Tensor, partial(kept, differentiable=differentiable), batch)
        return of(batch, check, Findings())

    said: set[str] = set()

    def of_batch(batch: Inputs, p: int, seen: dict[int, Findings]) -> TorchJacobian:
        if p not in seen:
            checks.inputs(batch, wrapped)
            checks.parameters(chosen, batch)
        first = check and not seen
        J = of(batch, first, seen.setdefault(p, Findings(said=said)))
        if first:
            J.confirm()
        return J

    return batched(of_batch, next(iter(chosen.values())).device, batches, input, blocks, progress)


@clear("ntk(model, *inputs, kwargs={…})", jacobian)
def ntk(model: torch.nn.Module | Callable[..., Any], *inputs: Any, **options: Any) -> te.Gram:
    """The empirical Neural Tangent Kernel K = J Jᵀ, ``te.gram(jacobian(...))``; arguments as for `jacobian`."""
    return te.gram(jacobian(model, *inputs, **options))
