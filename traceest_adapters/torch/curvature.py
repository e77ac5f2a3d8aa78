"""Hessian, Gauss–Newton matrix and empirical Fisher of a loss with respect to a PyTorch model's parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch.utils import _pytree as pytree

import traceest as te
from traceest_adapters import _curvature as curvature
from traceest_adapters import _memory as memory
from traceest_adapters import _reduction
from traceest_adapters._calls import clear
from traceest_adapters._symmetric import Symmetric, check_finite
from traceest_adapters.torch import checks
from traceest_adapters.torch.calls import jacobian
from traceest_adapters.torch.constants import Source
from traceest_adapters.torch.hessian import TorchHessian
from traceest_adapters.torch.model import Inputs, Model
from traceest_adapters.torch.operator import TorchJacobian
from traceest_adapters.torch.products import vjp

Loss = Callable[..., torch.Tensor]
OF_A_FUNCTION = ", with params= if the model is a function (in PyTorch parameters are no argument by position)"


@clear("hessian(model, loss, inputs, targets)" + OF_A_FUNCTION)
def hessian(
    model: torch.nn.Module | Callable[..., Any],
    loss: Loss | Mapping[str, torch.Tensor] | None = None,
    inputs: Any = (),
    targets: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    wrt: Any = None,
    params: Any = None,
    output: Any = None,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
    check: bool = True,
) -> TorchHessian:
    """The Hessian ∂²ℓ/∂θ² of ``loss(model(inputs), targets)`` by the parameters θ, (P, P), as an operator.

    Symmetric, not positive semidefinite in general. The gradient is computed once with a graph; a product with it, for
    several columns at once, is a backward pass through that graph: about two to three gradients a column, and the
    memory of the graph. Choose it for sharpness and traces of the loss itself; `gauss_newton` where a positive
    semidefinite part of it will do, with far less variance.

    Parameters
    ----------
    model : nn.Module, or callable
        A function is called as ``model(params, *inputs)``, with `params` a mapping.
    loss : callable, optional
        ``loss(output, targets)`` → scalar, a mean or a sum as it says; ``loss(output)`` without targets. Without a loss
        the model itself returns the scalar: ``hessian(f, params)`` of a function of a mapping.
    inputs : tensor, or tuple of several arguments
    targets : optional
        Whatever `loss` takes.
    kwargs : mapping, optional
        Keyword arguments of the model.
    wrt, params, output, chunk_size, memory_budget
        As in `jacobian`.
    check : bool
        Verify that two evaluations agree and are finite, compare the first product with that of one column by itself,
        and look whether it is symmetric: one product more.

    Returns
    -------
    TorchHessian
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
    >>> H = hessian(lambda p: (p["w"] ** 3).sum(), {"w": torch.tensor([1.0, 2.0])})
    >>> float(te.trace(H))  # 6·1 + 6·2
    18.0
    """
    if isinstance(loss, Mapping):
        params, loss = loss, None
    elif loss is not None and not callable(loss):
        raise _no_function(loss, "hessian")
    batch = Inputs(_arguments(inputs), dict(kwargs or {}))
    wrapped, chosen = Model.of(model, wrt, params, output, None, {})
    checks.parameters(chosen, [batch, targets], "hessian")
    source = Source.of_model(wrapped, chosen, (batch, targets), differentiable=None)
    wrapped, chosen = wrapped.own(chosen, False)

    def scalar(p: Any) -> torch.Tensor:
        state = wrapped.state(p, batch)
        return _scalar(state if loss is None else loss(state, *_given(targets)), "hessian")

    H = TorchHessian(scalar, chosen, chunk_size, memory_budget, check)
    H.source = source
    if check:
        check_finite(bool(H.value.isfinite()), "hessian", "the loss")
        with torch.no_grad():
            checks.same(H.value, scalar(H.params), "hessian")
    return H


@clear("gauss_newton(model, loss, inputs, targets)" + OF_A_FUNCTION, jacobian)
def gauss_newton(
    model: torch.nn.Module | Callable[..., Any], loss: Loss, inputs: Any, targets: Any = None, **options: Any
) -> te.Operator:
    """The Gauss–Newton matrix G = JᵀHJ of ``loss(model(inputs), targets)``, (P, P), positive semidefinite.

    J is the Jacobian of the model's outputs by its parameters, H = ∂²ℓ/∂z² the curvature of the loss at the outputs; of
    cross-entropy, and of squared error as a Gaussian's likelihood, G is the Fisher information too. With H = L Lᵀ, G is
    ``gram(R.H)`` for R = LᵀJ, whose rows are independent from example to example: tr G = ‖R‖² is exact from as many
    vjps as an example has outputs, ‖G‖ and the effective rank come from vjps alone, at far less variance than by
    products with G. ``G.dual`` is R Rᵀ, (n, n): ``summary(G.dual, groups=True)`` tells the same for each parameter's
    own block of G.

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
    **options
        As for `jacobian`, but for `batches` and `differentiable`.

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
    _no_gradient(options, "gauss_newton")
    if not callable(loss):
        raise _no_function(loss, "gauss_newton")
    J = curvature.of_one_batch(jacobian(model, *_arguments(inputs), **options), "gauss_newton")
    z, of = _at_outputs(J, loss, targets, "gauss_newton")
    with torch.enable_grad():
        z.requires_grad_()
        (g,) = torch.autograd.grad(_of_outputs(of(z), "gauss_newton"), z, create_graph=True)
    check_finite(bool(g.isfinite().all()), "gauss_newton", "the loss's gradient at the outputs")

    def H(V: torch.Tensor) -> torch.Tensor:
        if not g.requires_grad:
            return torch.zeros_like(V, dtype=z.dtype)
        try:
            (found,) = vjp([g], [z], [V.T.reshape(V.shape[1], *z.shape).to(z.dtype)])
        except RuntimeError as error:
            if memory.ran_out(error):
                raise
            raise TypeError(
                f"gauss_newton: the loss cannot be differentiated twice ({str(error).strip().splitlines()[0]}); ask "
                "for empirical_fisher, or use operations that can."
            ) from error
        return found.reshape(V.shape[1], -1).T

    checked = Symmetric(H, H, J, "gauss_newton", "empirical_fisher") if options.get("check", True) else H
    return curvature.gauss_newton(J, checked, z.detach(), look=True)


@clear("empirical_fisher(model, loss, inputs, targets)" + OF_A_FUNCTION, jacobian)
def empirical_fisher(
    model: torch.nn.Module | Callable[..., Any],
    loss: Loss,
    inputs: Any,
    targets: Any = None,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Any,
) -> te.Gram:
    """The empirical Fisher matrix (1/N) Σ g_n g_nᵀ of the N examples' loss gradients g_n, (P, P).

    With ``reduction="sum"`` it is Σ g_n g_nᵀ. It is ``gram(R.H)`` for an R of one row an example: its trace, the mean
    of ‖g_n‖², its Frobenius norm and its effective rank are exact from one vjp with all examples, whose gradients are
    not formed. Choose it as a measure of gradient noise; as a curvature it is trustworthy near a minimum only.

    Where the loss is a mean with weights, Σ w_n ℓ_n/Σ w_n, so is the matrix, Σ w_n g_n g_nᵀ/Σ w_n: an example whose
    label is ignored, or whose mask is zero, is as if it were not there. The weights are found by taking the loss of
    each example by itself, which has to be possible: masks and weights belong into `targets`, a tuple then.

    Parameters
    ----------
    model, loss, inputs, targets, **options
        As for `gauss_newton`; the loss need not be convex.
    reduction : {"mean", "sum"}
        What `loss` does with its examples' losses. Verified, as is that it couples no examples. With
        ``check=False`` it is taken as given, and all examples weigh the same.

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
    caller = "empirical_fisher"
    _reduction.check_name(reduction, caller)
    _no_gradient(options, caller)
    J = curvature.of_one_batch(jacobian(model, *_arguments(inputs), **options), caller)
    z, of = _at_outputs(J, loss, targets, caller)
    axis = J.model.batch_axis
    if axis is None:
        raise ValueError("empirical_fisher: batch_axis=None names no examples, of whose gradients it is made; give it.")
    gradient, shares = _gradient(z, of), _reduction.uniform(reduction, len(z))
    if options.get("check", True):
        _reduction.check_gradient(bool(gradient.isfinite().all()), caller)
        shares = _shares(J, loss, z, targets, gradient, reduction)
    return curvature.empirical_fisher(J, gradient, shares)


def _shares(J: TorchJacobian, loss: Loss, z: torch.Tensor, targets: Any, gradient: torch.Tensor, reduction: str) -> Any:
    """What `loss` makes of its examples' own losses; see `_reduction`."""
    caller, axis, B = "empirical_fisher", J.model.batch_axis or 0, len(z)

    def of_examples(rows: list[int]) -> tuple[torch.Tensor, Loss]:
        """The outputs of some examples, and the loss of these."""
        at = torch.tensor(rows, device=z.device)
        chosen = pytree.tree_map_only(
            torch.Tensor, lambda t: t.index_select(axis, at) if t.ndim > axis and t.shape[axis] == B else t, targets
        )
        return z.detach()[at], _at_outputs(J, loss, chosen, caller)[1]

    try:
        both = _gradient(*of_examples([*range(B), *range(B)]))[:B]
        alone = [of_examples([b, b]) for b in range(B)]
        leaves = [pair.requires_grad_() for pair, _ in alone]
        with torch.enable_grad():
            total = torch.stack([of(pair) for pair, of in alone]).sum()
        q = torch.stack(torch.autograd.grad(total, leaves)).sum(1) * (1.0 if reduction == "mean" else 0.5)
    except Exception as error:  # whatever the loss says of another number of examples
        if memory.ran_out(error):
            raise
        raise _reduction.failed_alone(error, caller) from error
    _reduction.check(both, gradient, reduction, caller)
    others = torch.arange(B, device=z.device) % 2 == 1
    moved = torch.where(others.reshape(-1, *(1 for _ in z.shape[1:])), (z + z.roll(-1, 0)) / 2, z).detach()
    _reduction.check_uncoupled(gradient, _gradient(moved, _at_outputs(J, loss, targets, caller)[1]), caller)
    return _reduction.shares(gradient, q, reduction, caller)


def _at_outputs(J: TorchJacobian, loss: Loss, targets: Any, caller: str) -> tuple[torch.Tensor, Loss]:
    """The outputs, example first and no coarser than float32, and the loss as a function of them."""
    if not callable(loss):
        raise _no_function(loss, caller)
    if J.state_shape is None:
        raise TypeError(f"{caller}: the model returns several tensors; select the one that loss takes with output=.")
    checks.parameters(J.params, targets, caller)
    z = J._state.detach().reshape(J.state_shape)
    axis = J.model.batch_axis

    def of(z: torch.Tensor) -> torch.Tensor:
        return _scalar(loss(z if axis is None else z.movedim(0, axis), *_given(targets)), caller)

    return z.to(torch.promote_types(z.dtype, torch.float32)), of


def _no_function(loss: Any, caller: str) -> TypeError:
    return TypeError(
        f"{caller}: loss must be a function of the output and the targets, got a {type(loss).__name__}; call it as "
        f"{caller}(model, loss, inputs, targets)."
    )


def _no_gradient(options: Mapping[str, Any], caller: str) -> None:
    """Raise where statistics are to be differentiated: the loss's derivatives would be taken as fixed."""
    if options.get("differentiable"):
        raise TypeError(
            f"{caller}: differentiable=True is for jacobian and ntk; the curvature of a loss is taken as a constant in "
            "PyTorch. traceest_adapters.jax carries its gradient."
        )


def _gradient(z: torch.Tensor, of: Loss) -> torch.Tensor:
    with torch.enable_grad():
        z = z.requires_grad_()
        return torch.autograd.grad(_of_outputs(of(z), "empirical_fisher"), z)[0]


def _of_outputs(value: torch.Tensor, caller: str) -> torch.Tensor:
    if not value.requires_grad:
        raise ValueError(
            f"{caller}: the loss does not depend on the model's outputs, or is cut off from them (a detach, a no_grad, "
            "or a conversion to a number)."
        )
    return value


def _scalar(value: Any, caller: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.is_floating_point():
        what = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(
            f"{caller}: the loss must be one real number, got {what}; take its mean or its sum (reduction='mean')."
        )
    return value.reshape(())


def _arguments(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


def _given(targets: Any) -> tuple[Any, ...]:
    return () if targets is None else (targets,)
