"""From a PyTorch model to its Jacobian and its kernel."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.utils import _pytree as pytree

import traceest as te
from traceest._names import Pattern
from traceest_adapters import _state as common
from traceest_adapters._batches import Blocks, Parts, check_arguments, of_inputs, stacked
from traceest_adapters._calls import clear
from traceest_adapters.torch import checks
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
    wrt: Pattern | None = None,
    params: Mapping[str, torch.Tensor] | None = None,
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

    Nothing of its size is formed. One forward pass is kept for all vjps of the whole batch; one backward pass,
    differentiated in its cotangent, serves all jvps. Train or eval mode is respected, buffers stay untouched.

    Norms and inner products of per-example gradients come from the inputs and output derivatives of the layers, at one
    or two backward passes a probe, for linear, convolutional, recurrent, embedding, normalisation and attention layers,
    matrix products, scales and shifts. This is verified at first use, parameter by parameter; for all others (of
    transposed convolutions, say) gradients are formed example by example, with the same result and more slowly.

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
    wrt : str, callable, or sequence of these, optional
        Which parameters to differentiate by; all others are held fixed. Give the name of a parameter or of a module
        ("layers.0", all below it), or a glob, in which ``*`` stands for any characters ("*.attn.*", "layers.*.bias"); a
        predicate of name and parameter; or several of these, of which one has to fit. The order is that of the model.
        Default: all that require grad, tied ones once.
    params : mapping, optional
        Values of parameters by name. A function needs them: it is called with this mapping, and differentiated by all
        of it but for `wrt`. A module is taken with these in place of its own.
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
        Costs about two backward passes more, and the memory of every product's graph. There are jvps only where their
        own derivatives are right (PyTorch's layer norm has wrong ones); vjps suffice for kernels' statistics.
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
    check_arguments(inputs, batches, input, blocks, progress)
    if batches is not None and kwargs:
        raise TypeError("jacobian: kwargs= beside batches=; keyword inputs come in the batches, each a mapping.")
    of = Jacobians(
        model,
        (inputs, kwargs),
        shared=shared,
        wrt=wrt,
        params=params,
        output=output,
        batch_axis=None if blocks == "batch" else batch_axis,
        feature_axis=feature_axis,
        chunk_size=chunk_size,
        memory_budget=memory_budget,
        check=check,
        differentiable=differentiable,
    )
    if batches is None:
        return of(Inputs(inputs, dict(kwargs or {})))
    data = of_inputs(batches, input, lambda batch: on(of.device, as_inputs(batch)), digest)
    return stacked(Parts(data, of.next), blocks, progress)


@clear("ntk(model, *inputs, kwargs={…})", jacobian)
def ntk(model: torch.nn.Module | Callable[..., Any], *inputs: Any, **options: Any) -> te.Gram:
    """The empirical Neural Tangent Kernel K = J Jᵀ, ``te.gram(jacobian(...))``.

    Parameters
    ----------
    model, *inputs, **options
        As in `jacobian`.

    Returns
    -------
    Gram, (n, n)

    Raises
    ------
    TypeError, ValueError
        As `jacobian`.
    """
    return te.gram(jacobian(model, *inputs, **options))


class Jacobians:
    """The Jacobians of one model at batch after batch, which share its copy and what was found out of it.

    `data` are inputs that are known already, and whose gradients are asked about too.
    """

    def __init__(
        self,
        model: torch.nn.Module | Callable[..., Any],
        data: Any,
        *,
        shared: Mapping[str, Any] | None = None,
        wrt: Pattern | None = None,
        params: Mapping[str, torch.Tensor] | None = None,
        output: Any = None,
        batch_axis: int | None = 0,
        feature_axis: int | None = None,
        chunk_size: int | None = None,
        memory_budget: int | None = None,
        check: bool = True,
        differentiable: bool = False,
    ) -> None:
        checks.options(batch_axis, chunk_size)
        self.axis, self.feature_axis, self.check, self.differentiable = batch_axis, feature_axis, check, differentiable
        self.how = chunk_size, memory_budget, differentiable, check
        self.model, self.chosen = Model.of(model, wrt, params, output, batch_axis, shared or {})
        checks.parameters(self.chosen, (data, self.model.shared))
        with graphs_allowed():
            self.own, self.leaves = self.model.own(self.chosen, differentiable)
        self.source = Source.of_model(self.model, self.chosen, data, differentiable)
        self._found: dict[int, Findings] = {}
        self._said: set[str] = set()

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return next(iter(self.chosen.values())).device

    def next(self, batch: Inputs, p: int) -> TorchJacobian:
        """The Jacobian at the p-th of several batches; what was found of one is kept for its next turn."""
        if p not in self._found:
            checks.inputs(batch, self.model)
            checks.parameters(self.chosen, batch)
        first = self.check and not self._found
        J = self._at(batch, first, self._found.setdefault(p, Findings(said=self._said)))
        if first:
            J.confirm()
        return J

    def __call__(self, batch: Inputs) -> TorchJacobian:
        """The Jacobian at these inputs, as they are now."""
        checks.inputs(batch, self.model)
        with graphs_allowed():
            batch = pytree.tree_map_only(torch.Tensor, partial(kept, differentiable=self.differentiable), batch)
        return self._at(batch, self.check, Findings())

    def _at(self, batch: Inputs, look: bool, findings: Findings) -> TorchJacobian:
        """Of a batch; `look` asks the user's module, too, what it makes of it."""
        with graphs_allowed():
            shapes, first = partial(checks.state, self.model, batch), None
            if look:
                first = reference(self.model, self.chosen, batch, shapes)
                checks.finite(first, self.axis)
            own = self.own if first is None or not first.overwrites else replace(self.own, overwrites=True)
            J = TorchJacobian(own, self.leaves, batch, *self.how, shapes, first, findings)
            J.source = self.source
            J.state_shape = shape = common.example_first(J.shapes, self.axis)
            default = 1 if shape is not None and len(shape) > 3 else -1
            J.feature_axis = common.feature_axis(shape, self.feature_axis, self.axis, default)
            if first is not None:
                checks.same_state(J, first, lambda: reference(self.model, self.chosen, batch, shapes))
                checks.depends(J)
                checks.independent(J)
        return J


def as_inputs(batch: Any) -> Inputs:
    """The inputs in a batch: a mapping holds keyword inputs, a tuple or list positional ones."""
    if isinstance(batch, Mapping):
        return Inputs((), dict(batch))
    return Inputs(tuple(batch) if isinstance(batch, (tuple, list)) else (batch,), {})


def on(device: torch.device, data: Any) -> Any:
    """All tensors on one device."""
    return pytree.tree_map_only(torch.Tensor, lambda x: x.to(device), data)


def digest(data: Any) -> bytes:
    """Of all tensors, their shapes and dtypes."""
    found = hashlib.blake2b(digest_size=16)
    for x in pytree.tree_leaves(data):
        if isinstance(x, torch.Tensor):
            found.update(f"{x.dtype}{tuple(x.shape)}".encode())
            found.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.digest()
