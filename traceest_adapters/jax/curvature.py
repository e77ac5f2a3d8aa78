"""Hessian, Gauss–Newton matrix and empirical Fisher of a loss with respect to a JAX function's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import traceest as te
from traceest_adapters import _state as common
from traceest_adapters._batches import Batches
from traceest_adapters._calls import clear, in_order
from traceest_adapters._curvature import matrices
from traceest_adapters._curvature.matrices import Reduction
from traceest_adapters._curvature.symmetric import Found
from traceest_adapters.jax import settings
from traceest_adapters.jax.calculus import CALCULUS, JaxHessian, OfLoss, is_loss, value
from traceest_adapters.jax.calls import Jacobians, digest, jacobian, positional
from traceest_adapters.jax.model import traced
from traceest_adapters.jax.operator import JaxJacobian

Loss = Callable[..., Any]
ORDER = "{}(fn, loss, params, inputs, targets)"
HESSIAN = f"{ORDER.format('hessian')}, or hessian(fn, params, *inputs) of a function that is the loss itself"
NOT = {"blocks": "examples are the blocks of a curvature's rows"}
NO_STATE = dict.fromkeys(("feature_axis", "in_axes"), "a Hessian is of one number, not of a state with examples")


@clear(HESSIAN, jacobian, without=NOT | NO_STATE)
@settings.usual
def hessian(
    fn: Any,
    *args: Any,
    targets: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    output: Any = None,
    batches: Iterable[Any] | None = None,
    input: Any = None,
    reduction: Reduction = "mean",
    batch_axis: int = 0,
    check: bool = True,
    progress: bool = False,
    **options: Any,
) -> te.Operator:
    """The Hessian ∂²ℓ/∂θ² of ``loss(fn(params, inputs), targets)`` by the parameters θ, (P, P), as an operator.

    Called as ``hessian(fn, loss, params, inputs, targets)``, in the order of `gauss_newton`; or, where `fn` returns the
    loss itself, as ``hessian(fn, params, *inputs)`` of the scalar ``fn(params, *inputs)``.

    Symmetric, not positive semidefinite in general. The gradient is linearised once for all products, which are mapped
    over columns: about two to three gradients a column. Choose it for sharpness and traces of the loss itself;
    `gauss_newton` where a positive semidefinite part of it will do, with far less variance.

    Parameters
    ----------
    fn : callable
        ``fn(params, *inputs)``, traced when the operator is made; functions that do the same share steps.
    *args, targets
        The loss, ``loss(output, targets)`` → scalar, a mean or a sum as it says (``loss(output)`` without targets), or
        nothing; the parameters; the inputs, a tuple if there are several; and the targets, whatever the loss takes.
    batches, input, reduction
        As in `gauss_newton`. Without a loss all of a batch is given to `fn`, or what `input` picks of it.
    batch_axis : int
        Axis of the examples, of which a mean over batches needs their number.
    kwargs, shared, wrt, output, chunk_size, memory_budget, progress
        As in `jacobian`.
    check : bool
        Compare the first product with that of one column by itself, and look whether it is symmetric; not under
        `jax.jit`. Of batches, also whether the loss of the first one is a mean or a sum.

    Returns
    -------
    JaxHessian, or of batches an Operator
        `parameters` are the names, in the order of rows and columns.

    Raises
    ------
    TypeError
        If there are no floating parameters, the value is not real floating, or the arguments come in another order.
    ValueError
        If the value is not a scalar, or the second derivative that JAX gives is not symmetric.

    References
    ----------
    Pearlmutter (1994), Fast exact multiplication by the Hessian.

    Examples
    --------
    >>> import jax.numpy as jnp, traceest as te
    >>> H = hessian(lambda w, x: x @ w, lambda z, y: jnp.sum((z - y) ** 2), jnp.ones(3), jnp.eye(3), jnp.zeros(3))
    >>> float(te.trace(H))
    6.0
    >>> H = hessian(lambda w: jnp.sum(w**3), jnp.array([1.0, 2.0]))
    >>> float(te.trace(H))  # 6·1 + 6·2
    18.0
    """
    loss = args[0] if args and is_loss(args[0]) else None
    params, *data = args[loss is not None :] or (None,)
    if len(args) <= (loss is not None):
        raise TypeError(f"hessian: there are no parameters{' behind the loss' if args else ''}; call it as {HESSIAN}.")
    if loss is not None and len(data) > (2 if targets is None else 1):
        raise TypeError(
            f"hessian: {len(args) + 1} arguments; give several inputs as one tuple, and call it as {HESSIAN}."
        )
    given = bool(data) or (loss is None and batches is None)
    matrices.check_arguments("hessian", loss or fn, HESSIAN, batches, given, reduction, input, progress)
    if loss is None:
        whole, pick, inputs = fn, matrices.inputs_alone(input), tuple(data)
    else:
        inputs, targets = _several(data[0]) if data else (), data[1] if len(data) > 1 else targets
        pick = matrices.pair(input, None if batches is None else targets, "hessian")
        has_targets = targets is not None or (batches is not None and input is None)
        whole, output = OfLoss(fn, loss, output, has_targets), None
        inputs += () if targets is None or batches is not None else (targets,)
    with in_order("hessian", HESSIAN):
        of = Jacobians(whole, params, output=output, batch_axis=None, check=False, **options)

    def at(inputs: tuple[Any, ...]) -> JaxJacobian:
        with in_order("hessian", HESSIAN):
            J = of(inputs, dict(kwargs or {}))
        if J.shape[0] != 1:
            raise ValueError(
                f"hessian: the loss must be one real number, got shape {J.state_shape}; take its mean or its sum, or "
                f"give one: {HESSIAN}."
            )
        return J

    if batches is None:
        return JaxHessian(at(inputs), check)
    seen: list[int] = []
    found = Found()

    def make(inputs: tuple[Any, ...], p: int) -> tuple[JaxHessian, int]:
        J, B = at(inputs), common.length(jax.tree.leaves(inputs), batch_axis)
        if check and not seen and not traced((J.trained, inputs)):
            twice = CALCULUS.examples(inputs, jnp.arange(2 * B) % B, batch_axis, B)
            matrices.check_value(value(J), lambda: value(at(twice)), reduction, "hessian")
        seen[:] = [p]
        return JaxHessian(J, check, found), B if reduction == "mean" else 1

    def convert(data: tuple[Any, Any]) -> tuple[Any, ...]:
        inputs, targets = _converted(data)
        return inputs if targets is None else (*inputs, targets)

    return matrices.of_batches(make, Batches(batches, pick, convert, digest), reduction, progress)


def _matrix(
    caller: str,
    fn: Any,
    loss: Any,
    params: Any,
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
    order = ORDER.format(caller)
    given = inputs is not None or bool(kwargs) or (targets is not None and batches is None)
    matrices.check_arguments(caller, loss, order, batches, given, reduction, input, progress)
    matrix = matrices.Matrix(caller, CALCULUS, loss, reduction, check)
    with in_order(caller, order):
        of = Jacobians(fn, params, check=check, **options)
        J = of(_several(inputs), dict(kwargs or {})) if batches is None else None
    if J is not None:
        return matrix.of(J, targets)
    pairs = Batches(batches, matrices.pair(input, targets, caller), _converted, digest)
    return matrix.of_batches(lambda inputs, p: of.next(inputs, pairs.complete), pairs, progress)


@clear(ORDER.format("gauss_newton"), _matrix, jacobian, without=NOT)
@settings.usual
def gauss_newton(
    fn: Callable[..., Any], loss: Loss, params: Any, inputs: Any = None, targets: Any = None, **options: Any
) -> te.Operator:
    """The Gauss–Newton matrix G = JᵀHJ of ``loss(fn(params, inputs), targets)``, (P, P), positive semidefinite.

    J is the Jacobian of the function's outputs by its parameters, H = ∂²ℓ/∂z² the curvature of the loss at the outputs;
    of cross-entropy, and of squared error as a Gaussian's likelihood, G is the Fisher information too. With H = L Lᵀ, G
    is ``gram(R.H)`` for R = LᵀJ, whose rows are independent from example to example: tr G = ‖R‖² is exact from as many
    vjps as an example has outputs, ‖G‖ and the effective rank come from vjps alone, at far less variance than by
    products with G. ``summary(G, groups=…)`` tells the same for each layer's own block of G.

    H is found by products with it: diagonal, softmax cross-entropy, or one matrix an example, each verified; for other
    losses (they couple examples, or are of very many outputs each) G is an operator of products with both sides. Under
    `jax.jit`, where there are no values, one matrix an example is taken, and that the loss is convex, and a sum over
    examples, is not verified.

    Parameters
    ----------
    fn, params
        As in `jacobian`; what `fn` returns, or `output` selects of it, must be one array.
    loss : callable
        ``loss(output, targets)`` → scalar, convex in the output; ``loss(output)`` without targets.
    inputs : pytree of arrays, or tuple of several arguments
    targets : pytree, optional
        Whatever `loss` takes.
    batches : iterable, optional
        In place of `inputs` and `targets`: a list or a data loader that yields pairs of them, the same in each pass.
        One batch is there at a time. With the mean, a batch counts by its number of examples.
    input : int, str or callable, optional
        Which part of a batch is the inputs, if it is no pair: an index, a key, or a function of it. Which part are the
        targets is said by `targets` then; without, the loss takes the output alone.
    reduction : {"mean", "sum"}
        Of batches: whether `loss`, and so the loss of all data, is a mean or a sum over examples. Looked at on the
        first.
    kwargs, shared, wrt, output, batch_axis, feature_axis, in_axes, chunk_size, memory_budget, check, progress
        As in `jacobian`.

    Returns
    -------
    Gram
        Products W ↦ JᵀHJ W take a jvp and a vjp a column.

    Raises
    ------
    TypeError
        As `jacobian`; if the loss is no function, or the output is not one array.
    ValueError
        As `jacobian`; if the loss is not a scalar, not convex, or has no curvature.

    References
    ----------
    Schraudolph (2002), Fast curvature matrix-vector products; Martens (2020), arXiv 1412.1193.

    Examples
    --------
    >>> import jax.numpy as jnp, traceest as te
    >>> G = gauss_newton(lambda w, x: x @ w, lambda z, y: jnp.mean((z - y) ** 2), jnp.ones(3), jnp.eye(3), jnp.ones(3))
    >>> float(te.trace(G)), te.trace(G).n_rmatvecs  # 2/3 · tr I
    (2.0, 1)
    """
    return _matrix("gauss_newton", fn, loss, params, inputs, targets, **options)


@clear(ORDER.format("empirical_fisher"), _matrix, jacobian, without=NOT)
@settings.usual
def empirical_fisher(
    fn: Callable[..., Any], loss: Loss, params: Any, inputs: Any = None, targets: Any = None, **options: Any
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
    fn, loss, params, inputs, targets, batches, input
        As for `gauss_newton`; the loss need not be convex.
    reduction : {"mean", "sum"}
        What `loss` does with its examples' losses. Verified, as is that it couples no examples, except under `jax.jit`.
        With ``check=False`` it is taken as given, and all examples weigh the same.
    kwargs, shared, wrt, output, batch_axis, feature_axis, in_axes, chunk_size, memory_budget, check, progress
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
    >>> import jax.numpy as jnp, traceest as te
    >>> F = empirical_fisher(lambda w, x: x @ w, lambda z: jnp.mean(z**2), jnp.ones(3), jnp.eye(3))
    >>> round(float(te.trace(F)), 5)  # the mean of (2 wᵢ)²
    4.0
    """
    return _matrix("empirical_fisher", fn, loss, params, inputs, targets, **options)


def _several(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else () if inputs is None else (inputs,)


def _converted(data: tuple[Any, Any]) -> tuple[tuple[Any, ...], Any]:
    """The inputs and the targets of a batch, as JAX's arrays."""
    return positional(data[0]), jax.tree.map(jnp.asarray, data[1])
