"""Hessian, Gauss–Newton matrix and empirical Fisher of a loss with respect to a PyTorch model's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

import traceest as te
from traceest._names import Pattern
from traceest_adapters import _state as common
from traceest_adapters._batches import Batches
from traceest_adapters._calls import clear
from traceest_adapters._curvature import matrices
from traceest_adapters._curvature.matrices import Reduction
from traceest_adapters._curvature.symmetric import Found, check_finite
from traceest_adapters.torch import checks
from traceest_adapters.torch.calculus import CALCULUS, TorchHessian
from traceest_adapters.torch.calls import Jacobians, as_inputs, digest, jacobian, on
from traceest_adapters.torch.constants import Source
from traceest_adapters.torch.model import Inputs, Model

Loss = Callable[..., torch.Tensor]
ORDER = (
    "{}(model, loss, inputs, targets), with params= if the model is a function (in PyTorch parameters are no argument "
    "by position)"
)
NOT = {
    "blocks": "examples are the blocks of a curvature's rows",
    "differentiable": "the curvature of a loss is a constant in PyTorch, traceest_adapters.jax carries its gradient",
}


@clear(
    ORDER.format("hessian"), jacobian, without=NOT | {"feature_axis": "no probes of a state are drawn for a Hessian"}
)
def hessian(
    model: torch.nn.Module | Callable[..., Any],
    loss: Loss | None = None,
    inputs: Any = None,
    targets: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    shared: Mapping[str, Any] | None = None,
    wrt: Pattern | None = None,
    params: Mapping[str, torch.Tensor] | None = None,
    output: Any = None,
    batches: Iterable[Any] | None = None,
    input: Any = None,
    reduction: Reduction = "mean",
    batch_axis: int = 0,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
    check: bool = True,
    progress: bool = False,
) -> te.Operator:
    """The Hessian ∂²ℓ/∂θ² of ``loss(model(inputs), targets)`` by the parameters θ, (P, P), as an operator.

    Symmetric, indefinite in general. The gradient is computed once with a graph; a product, for several columns at
    once, is a backward pass through that graph: about two to three gradients a column, and the memory of the graph.
    Choose it for sharpness and traces of the loss itself; `gauss_newton` where its positive semidefinite part will do,
    with far less variance.

    Parameters
    ----------
    model : nn.Module, or callable
        A function is called as ``model(params, *inputs)``, with `params` a mapping.
    loss : callable, optional
        ``loss(output, targets)`` → scalar, a mean or a sum as it says; ``loss(output)`` without targets. Without a loss
        the model itself returns the scalar: ``hessian(f, params={…})`` of a function of a mapping.
    inputs : tensor, or tuple of several arguments
    targets : optional
        Whatever `loss` takes.
    batches, input, reduction
        As in `gauss_newton`. Without a loss all of a batch is given to the model, or what `input` picks of it.
    kwargs, shared, wrt, params, output, batch_axis, chunk_size, memory_budget, progress
        As in `jacobian`; a mean over batches counts the examples along `batch_axis`.
    check : bool
        Verify that two evaluations agree and are finite, compare the first product with that of one column by itself,
        and look whether it is symmetric: one product more. Of batches, also whether the loss of the first one is a mean
        or a sum.

    Returns
    -------
    TorchHessian, or of batches an Operator
        `parameters` are the names, in the order of rows and columns.

    Raises
    ------
    TypeError
        If there is no trainable parameter, devices are mixed, or the gradient cannot be differentiated.
    ValueError
        If the loss is not a scalar, not finite, or random (dropout), or the second derivative that PyTorch gives is
        not symmetric.

    References
    ----------
    Pearlmutter (1994), Fast exact multiplication by the Hessian.

    Examples
    --------
    >>> import torch, traceest as te
    >>> H = hessian(lambda p: (p["w"] ** 3).sum(), params={"w": torch.tensor([1.0, 2.0])})
    >>> float(te.trace(H))  # 6·1 + 6·2
    18.0
    """
    order, given = ORDER.format("hessian"), inputs is not None or bool(kwargs)
    of_loss, nothing = (model, batches is None) if loss is None else (loss, False)
    matrices.check_arguments("hessian", of_loss, order, batches, given or nothing, reduction, input, progress)
    first = Inputs(_several(inputs), dict(kwargs or {})), targets
    wrapped, chosen = Model.of(model, wrt, params, output, None, shared or {})
    checks.parameters(chosen, [first, wrapped.shared], "hessian")
    source = Source.of_model(wrapped, chosen, first, differentiable=None)
    wrapped, leaves = wrapped.own(chosen, False)
    found = Found()

    def at(data: tuple[Inputs, Any], p: Any) -> torch.Tensor:
        batch, targets = data
        state = wrapped.state(p, batch)
        return CALCULUS.scalar(state if loss is None else loss(state, *_given(targets)), "hessian")

    def of(data: tuple[Inputs, Any], look: bool) -> TorchHessian:
        H = TorchHessian(lambda p: at(data, p), leaves, chunk_size, memory_budget, check, found)
        H.source = source
        if look:
            check_finite(bool(H.value.isfinite()), "hessian", "the loss")
            with torch.no_grad():
                checks.same(H.value, at(data, H.params), "hessian")
        return H

    if batches is None:
        return of(first, check)
    begun: list[int] = []
    device = next(iter(leaves.values())).device

    def make(data: tuple[Inputs, Any], p: int) -> tuple[TorchHessian, int]:
        B = common.length(pytree.tree_leaves(data[0]), batch_axis)
        H = of(data, check and not begun)
        if check and not begun:
            rows = CALCULUS.indices(2 * B, H) % B
            twice = lambda: at(CALCULUS.examples(data, rows, batch_axis, B), leaves).detach()  # noqa: E731
            matrices.check_value(H.value, twice, reduction, "hessian")
        begun[:] = [p]
        return H, B if reduction == "mean" else 1

    pick = matrices.inputs_alone(input) if loss is None else matrices.pair(input, targets, "hessian")
    return matrices.of_batches(make, _pairs(batches, pick, device), reduction, progress)


def _matrix(
    caller: str,
    model: Any,
    loss: Any,
    inputs: Any,
    targets: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    batches: Iterable[Any] | None = None,
    input: Any = None,
    reduction: Reduction = "mean",
    check: bool = True,
    progress: bool = False,
    **options: Any,
) -> Any:
    order, given = ORDER.format(caller), inputs is not None or bool(kwargs)
    matrices.check_arguments(caller, loss, order, batches, given, reduction, input, progress)
    matrix = matrices.Matrix(caller, CALCULUS, loss, reduction, check)
    first = Inputs(_several(inputs), dict(kwargs or {}))
    of = Jacobians(model, first, check=check, **options)
    if batches is None:
        return matrix.of(of(first), targets)
    return matrix.of_batches(of.next, _pairs(batches, matrices.pair(input, targets, caller), of.device), progress)


@clear(ORDER.format("gauss_newton"), _matrix, jacobian, without=NOT)
def gauss_newton(
    model: torch.nn.Module | Callable[..., Any], loss: Loss, inputs: Any = None, targets: Any = None, **options: Any
) -> te.Operator:
    """The Gauss–Newton matrix G = JᵀHJ of ``loss(model(inputs), targets)``, (P, P), positive semidefinite.

    J is the Jacobian of the model's outputs by its parameters, H = ∂²ℓ/∂z² the curvature of the loss at the outputs; of
    cross-entropy, and of squared error as a Gaussian's likelihood, G is the Fisher information too. With H = L Lᵀ, G is
    ``gram(R.H)`` for R = LᵀJ, whose rows are independent from example to example: tr G = ‖R‖² is exact from as many
    vjps as an example has outputs, ‖G‖ and the effective rank come from vjps alone, at far less variance than by
    products with G. ``summary(G, groups=…)`` tells the same for each layer's own block of G.

    H is found by products with it, which have to be symmetric: diagonal, softmax cross-entropy, or one matrix an
    example, each verified; for other losses (they couple examples, or are of very many outputs each) G is an operator
    of products with both sides.

    Parameters
    ----------
    model : nn.Module, or callable
        As in `jacobian`; what it returns, or `output` selects of it, must be one tensor.
    loss : callable
        ``loss(output, targets)`` → scalar, convex in the output; ``loss(output)`` without targets.
    inputs : tensor, or tuple of several arguments
    targets : optional
        Whatever `loss` takes.
    batches : iterable, optional
        In place of `inputs` and `targets`: a `DataLoader`, or a list, that yields pairs of them, the same in each pass.
        One batch is there at a time. With the mean, a batch counts by its number of examples.
    input : int, str or callable, optional
        Which part of a batch is the inputs, if it is no pair: an index, a key, or a function of it. Which part are the
        targets is said by `targets` then; without, the loss takes the output alone.
    reduction : {"mean", "sum"}
        Of batches: whether `loss`, and so the loss of all data, is a mean or a sum over examples. Looked at on the
        first.
    kwargs, shared, wrt, params, output, batch_axis, feature_axis, chunk_size, memory_budget, check, progress
        As in `jacobian`.

    Returns
    -------
    Gram
        Products W ↦ JᵀHJ W take a jvp and a vjp a column.

    Raises
    ------
    TypeError
        As `jacobian`; if the loss is no function, or the output is not one tensor.
    ValueError
        As `jacobian`; if the loss is not a scalar, not convex, or has no curvature.

    References
    ----------
    Schraudolph (2002), Fast curvature matrix-vector products; Martens (2020), arXiv 1412.1193.

    Examples
    --------
    >>> import torch, traceest as te
    >>> G = gauss_newton(torch.nn.Linear(3, 1, bias=False), torch.nn.MSELoss(), torch.eye(3), torch.ones(3, 1))
    >>> float(te.trace(G)), te.trace(G).n_rmatvecs  # 2/3 · tr I
    (2.0, 1)
    """
    return _matrix("gauss_newton", model, loss, inputs, targets, **options)


@clear(ORDER.format("empirical_fisher"), _matrix, jacobian, without=NOT)
def empirical_fisher(
    model: torch.nn.Module | Callable[..., Any], loss: Loss, inputs: Any = None, targets: Any = None, **options: Any
) -> te.Gram:
    """The empirical Fisher matrix (1/N) Σ g_n g_nᵀ of the N examples' loss gradients g_n, (P, P).

    With ``reduction="sum"`` it is Σ g_n g_nᵀ. It is ``gram(R.H)`` for an R of one row an example: its trace, the mean
    of ‖g_n‖², its Frobenius norm and its effective rank are exact from one vjp with all examples, whose gradients are
    not formed. Choose it as a measure of gradient noise; as a curvature it is trustworthy near a minimum only.

    Where the loss is a mean with weights, Σ w_n ℓ_n/Σ w_n, so is the matrix, Σ w_n g_n g_nᵀ/Σ w_n: an example whose
    label is ignored, or whose mask is zero, is as if it were not there. The weights are found from the loss of
    each example alone, so masks and weights have to be in `targets`, a tuple then.

    Parameters
    ----------
    model, loss, inputs, targets, batches, input
        As for `gauss_newton`; the loss need not be convex.
    reduction : {"mean", "sum"}
        What `loss` does with its examples' losses. Verified, as is that it couples no examples. With ``check=False`` it
        is taken as given, and all examples weigh the same.
    kwargs, shared, wrt, params, output, batch_axis, feature_axis, chunk_size, memory_budget, check, progress
        As in `jacobian`.

    Returns
    -------
    Gram

    Raises
    ------
    TypeError, ValueError
        As `gauss_newton`; if `reduction` is not what the loss does, the loss couples examples, or it cannot be taken of
        single ones.

    References
    ----------
    Kunstner, Balles, Hennig (2019), arXiv 1905.12558.

    Examples
    --------
    >>> import torch, traceest as te
    >>> x, y = torch.eye(3), torch.zeros(3, 1)
    >>> model = torch.nn.Linear(3, 1, bias=False)
    >>> F = empirical_fisher(model, torch.nn.MSELoss(), x, y)
    >>> bool(torch.isclose(te.trace(F).value, 4 / 3 * (model.weight**2).sum()))
    True
    """
    return _matrix("empirical_fisher", model, loss, inputs, targets, **options)


def _pairs(batches: Any, pick: Callable[[Any], tuple[Any, Any]], device: torch.device) -> Batches:
    """Batches of inputs and targets."""

    def convert(data: tuple[Any, Any]) -> tuple[Inputs, Any]:
        found: tuple[Inputs, Any] = on(device, (as_inputs(data[0]), data[1]))
        return found

    return Batches(batches, pick, convert, digest)


def _several(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else () if inputs is None else (inputs,)


def _given(targets: Any) -> tuple[Any, ...]:
    return () if targets is None else (targets,)
