"""Hessian, Gauss–Newton matrix and empirical Fisher of a loss with respect to a JAX function's parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

import traceest as te
from traceest_adapters import _curvature as curvature
from traceest_adapters import _reduction
from traceest_adapters._calls import clear, in_order
from traceest_adapters._state import selector
from traceest_adapters._symmetric import Symmetric, check_finite
from traceest_adapters.jax import program, settings
from traceest_adapters.jax.calls import jacobian
from traceest_adapters.jax.hessian import JaxHessian
from traceest_adapters.jax.model import Model, traced
from traceest_adapters.jax.operator import JaxJacobian
from traceest_adapters.jax.partition import Wrt
from traceest_adapters.jax.program import Program, registered

Loss = Callable[..., Any]
HESSIAN = (
    "hessian(fn, loss, params, inputs, targets), or hessian(fn, params, *inputs) of a function that is the loss itself"
)


@clear(HESSIAN)
@settings.usual
def hessian(
    fn: Callable[..., Any],
    *args: Any,
    wrt: Wrt = None,
    output: Any = None,
    chunk_size: int | None = None,
    check: bool = True,
) -> JaxHessian:
    """The Hessian ∂²ℓ/∂θ² of ``loss(fn(params, inputs), targets)`` by the parameters θ, (P, P), as an operator.

    Called as ``hessian(fn, loss, params, inputs, targets)``, in the order of `gauss_newton`; or, where `fn` returns the
    loss itself, as ``hessian(fn, params, *args)`` of the scalar ``fn(params, *args)``.

    Symmetric, not positive semidefinite in general. The gradient is linearised once for all products, which are mapped
    over columns: about two to three gradients a column. Choose it for sharpness and traces of the loss itself;
    `gauss_newton` where a positive semidefinite part of it will do, with far less variance.

    Parameters
    ----------
    fn : callable
        ``fn(params, *inputs)``, traced when the operator is made; functions that do the same share steps.
    loss : callable, optional
        ``loss(output, targets)`` → scalar, a mean or a sum as it says; ``loss(output)`` without targets.
    params : pytree
        Floating leaves are the parameters, in the pytree's order; other leaves are passed through.
    inputs : pytree of arrays, or tuple of several arguments
    targets : pytree, optional
        Whatever `loss` takes.
    wrt, output
        As in `jacobian`.
    chunk_size : int, optional
        Columns to a compiled step (4 if absent).
    check : bool
        Compare the first product with that of one column by itself, and look whether it is symmetric; not under
        `jax.jit`.

    Returns
    -------
    JaxHessian
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
    if not args:
        raise TypeError(f"hessian: there are no parameters; call it as {HESSIAN}.")
    if _is_loss(args[0]) and len(args) == 1:
        raise TypeError(f"hessian: there are no parameters behind the loss; call it as {HESSIAN}.")
    if _is_loss(args[0]):
        return _of_loss(fn, *args, wrt=wrt, output=output, chunk_size=chunk_size, check=check)
    return _hessian(fn, args[0], args[1:], wrt, output, chunk_size, check)


def _is_loss(x: Any) -> bool:
    """Whether `x` is a function, and not parameters that can be called, as a module with arrays in it is."""
    return callable(x) and not any(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(x))


def _of_loss(
    fn: Any, loss: Loss, params: Any = None, inputs: Any = (), targets: Any = None, *more: Any, **options: Any
) -> JaxHessian:
    if more:
        raise TypeError(
            f"hessian: {5 + len(more)} arguments; give several inputs as one tuple, and call it as {HESSIAN}."
        )
    of_loss = _OfLoss(fn, loss, options.pop("output"), targets is not None)
    args = (*_arguments(inputs), *(() if targets is None else (targets,)))
    return _hessian(of_loss, params, args, output=None, **options)


class _OfLoss(NamedTuple):
    """``loss(fn(params, *inputs), targets)`` as one function, equal to another of the same parts."""

    fn: Callable[..., Any]
    loss: Loss
    output: Any
    targets: bool

    def __call__(self, params: Any, *args: Any) -> Any:
        """The loss; targets come last."""
        inputs, targets = (args[:-1], args[-1:]) if self.targets else (args, ())
        return self.loss(selector(self.output)(self.fn(params, *inputs)), *targets)


def _hessian(
    fn: Any, params: Any, args: tuple[Any, ...], wrt: Wrt, output: Any, chunk_size: int | None, check: bool
) -> JaxHessian:
    with in_order("hessian", HESSIAN):
        J: Any = jacobian(
            fn, params, *args, wrt=wrt, output=output, batch_axis=None, chunk_size=chunk_size, check=False
        )
    if J.shape[0] != 1:
        raise ValueError(
            f"hessian: the loss must be one real number, got shape {J.state_shape}; take its mean or its sum, or give "
            f"one: {HESSIAN}."
        )
    return JaxHessian(J, check)


@clear("gauss_newton(fn, loss, params, inputs, targets)", jacobian)
@settings.usual
def gauss_newton(
    fn: Callable[..., Any], loss: Loss, params: Any, inputs: Any, targets: Any = None, **options: Any
) -> te.Operator:
    """The Gauss–Newton matrix G = JᵀHJ of ``loss(fn(params, inputs), targets)``, (P, P), positive semidefinite.

    J is the Jacobian of the function's outputs by its parameters, H = ∂²ℓ/∂z² the curvature of the loss at the outputs;
    of cross-entropy, and of squared error as a Gaussian's likelihood, G is the Fisher information too. With H = L Lᵀ, G
    is ``gram(R.H)`` for R = LᵀJ, whose rows are independent from example to example: tr G = ‖R‖² is exact from as many
    vjps as an example has outputs, ‖G‖ and the effective rank come from vjps alone, at far less variance than by
    products with G. ``G.dual`` is R Rᵀ, (n, n): ``summary(G.dual, groups=True)`` tells the same for each parameter's
    own block of G.

    H is found by products with it: diagonal, softmax cross-entropy, or one matrix an example, each verified; for other
    losses (they couple examples, or are of very many outputs each) G is an operator of products with both sides. Under
    `jax.jit`, where there are no values, one matrix an example is taken, and that the loss is convex, and a sum over
    examples, is not verified.

    Parameters
    ----------
    fn, params, **options
        As in `jacobian`; what `fn` returns, or `output` selects of it, must be one array.
    loss : callable
        ``loss(output, targets)`` → scalar, convex in the output; ``loss(output)`` without targets.
    inputs : pytree of arrays, or tuple of several arguments
    targets : pytree, optional
        Whatever `loss` takes.

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
    J = _jacobian(fn, loss, params, inputs, options, "gauss_newton")
    z = _outputs(J, loss, targets, "gauss_newton")
    g, jvp = _linearise(*_traced(loss, J.model.batch_axis, z, targets), z, targets)

    def H(V: Any) -> Any:
        return _products(jvp, jnp.reshape(V.T, (V.shape[1], *z.shape)).astype(z.dtype))

    def one(v: Any) -> Any:
        return _product(jvp, jnp.reshape(v, z.shape).astype(z.dtype))

    look = not traced((J.trained, J.fixed, J.inputs, targets))
    if look:
        check_finite(bool(jnp.all(jnp.isfinite(g))), "gauss_newton", "the loss's gradient at the outputs")
    checked = Symmetric(H, one, J, "gauss_newton", "empirical_fisher") if look and options.get("check", True) else H
    return curvature.gauss_newton(J, checked, z, look=look)


@clear("empirical_fisher(fn, loss, params, inputs, targets)", jacobian)
@settings.usual
def empirical_fisher(
    fn: Callable[..., Any],
    loss: Loss,
    params: Any,
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
    fn, loss, params, inputs, targets, **options
        As for `gauss_newton`; the loss need not be convex.
    reduction : {"mean", "sum"}
        What `loss` does with its examples' losses. Verified, as is that it couples no examples, except under `jax.jit`.
        With
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
    >>> import jax.numpy as jnp, traceest as te
    >>> F = empirical_fisher(lambda w, x: x @ w, lambda z: jnp.mean(z**2), jnp.ones(3), jnp.eye(3))
    >>> round(float(te.trace(F)), 5)  # the mean of (2 wᵢ)²
    4.0
    """
    caller = "empirical_fisher"
    _reduction.check_name(reduction, caller)
    J = _jacobian(fn, loss, params, inputs, options, caller)
    z, axis = _outputs(J, loss, targets, caller), J.model.batch_axis
    if axis is None:
        raise ValueError("empirical_fisher: batch_axis=None names no examples, of whose gradients it is made; give it.")
    gradient, shares = _gradient(loss, axis, z, targets), _reduction.uniform(reduction, len(z))
    if options.get("check", True):
        look = not traced((J.trained, J.fixed, J.inputs, targets))
        fixed, ts, r = jax.lax.stop_gradient((z, targets, gradient))
        shares = _shares(loss, axis, fixed, ts, r, reduction, look)
    return curvature.empirical_fisher(J, gradient, shares)


def _shares(loss: Loss, axis: int, z: Any, targets: Any, gradient: Any, reduction: str, look: bool) -> Any:
    """What `loss` makes of its examples' own losses; see `_reduction`."""
    caller, B = "empirical_fisher", len(z)
    if look:
        _reduction.check_gradient(bool(jnp.all(jnp.isfinite(gradient))), caller)
    try:
        q = _alone(loss, axis, z, targets) * (1.0 if reduction == "mean" else 0.5)
        both = _gradient(loss, axis, *_examples(axis, z, targets, jnp.arange(2 * B) % B))[:B]
    except (TypeError, ValueError, IndexError) as error:  # whatever the loss says of another number of examples
        raise _reduction.failed_alone(error, caller) from error
    if look:
        _reduction.check(both, gradient, reduction, caller)
        others = jnp.reshape(jnp.arange(B) % 2 == 1, (B, *(1 for _ in z.shape[1:])))
        moved = jnp.where(others, (z + jnp.roll(z, -1, 0)) / 2, z)
        _reduction.check_uncoupled(gradient, _gradient(loss, axis, moved, targets), caller)
    return _reduction.shares(gradient, q, reduction, caller, look)


def _examples(axis: int, z: Any, targets: Any, rows: Any) -> tuple[Any, Any]:
    """The outputs and the targets of some examples."""

    def chosen(t: Any) -> Any:
        return jnp.take(t, rows, axis) if jnp.ndim(t) > axis and jnp.shape(t)[axis] == len(z) else t

    return z[rows], jax.tree.map(chosen, targets)


def _alone(loss: Loss, axis: int, z: Any, targets: Any) -> Any:
    """The gradient of each example's loss by itself, the example being given twice; one by one, without batching."""
    of_pair, consts = _traced(loss, axis, *_examples(axis, z, targets, jnp.array([0, 0])))
    return _run_alone(of_pair, axis, consts, z, targets)


@registered
@partial(jax.jit, static_argnums=(0, 1))
def _run_alone(of_pair: Program, axis: int, consts: list[Any], z: Any, targets: Any) -> Any:
    def of(b: Any) -> Any:
        pair, chosen = _examples(axis, z, targets, jnp.stack([b, b]))
        return jnp.sum(of_pair(consts, pair, *_arrays(chosen))[0], axis=0)

    return jax.lax.map(of, jnp.arange(len(z)))


def _jacobian(fn: Any, loss: Any, params: Any, inputs: Any, options: dict[str, Any], caller: str) -> JaxJacobian:
    order = f"{caller}(fn, loss, params, inputs, targets)"
    if not callable(loss):
        raise TypeError(
            f"{caller}: loss must be a function of the output and the targets, got a {type(loss).__name__}; call it as "
            f"{order}."
        )
    with in_order(caller, order):
        return curvature.of_one_batch(jacobian(fn, params, *_arguments(inputs), **options), caller)


def _outputs(J: JaxJacobian, loss: Loss, targets: Any, caller: str) -> Any:
    """The outputs, example first and no coarser than float32, found to be what `loss` makes a scalar of."""
    if J.state_shape is None:
        raise TypeError(f"{caller}: fn returns several arrays; select the one that loss takes with output=.")
    z = jnp.reshape(_rows(J.model, J.trained, J.fixed, J.inputs), J.state_shape)
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    value = jax.eval_shape(partial(_value, loss, J.model.batch_axis), z, targets)
    shape = getattr(value, "shape", None)
    if shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        what = f"shape {shape} and dtype {value.dtype}" if shape is not None else type(value).__name__
        raise ValueError(f"{caller}: the loss must be one real number, got {what}; take its mean or its sum.")
    return z


def _value(loss: Loss, axis: int | None, z: Any, targets: Any) -> Any:
    output = z if axis is None else jnp.moveaxis(z, 0, axis)
    return loss(output) if targets is None else loss(output, targets)


@registered
@partial(jax.jit, static_argnums=0)
def _rows(model: Model, trained: Any, fixed: Any, inputs: Any) -> Any:
    return model.rows(trained, fixed, inputs)


def _traced(loss: Loss, axis: int | None, z: Any, targets: Any) -> tuple[Program, list[Any]]:
    """The loss's gradient by the outputs, as a program of them and the targets, and what it closes over."""
    return program.trace(jax.grad(lambda z, targets: _value(loss, axis, z, targets)), z, targets)


def _gradient(loss: Loss, axis: int | None, z: Any, targets: Any) -> Any:
    return _run(*_traced(loss, axis, z, targets), z, targets)


@registered
@partial(jax.jit, static_argnums=0)
def _run(of_loss: Program, consts: list[Any], z: Any, targets: Any) -> Any:
    return of_loss(consts, z, *_arrays(targets))[0]


@registered
@partial(jax.jit, static_argnums=0)
def _linearise(of_loss: Program, consts: list[Any], z: Any, targets: Any) -> Any:
    """The loss's gradient by the outputs, and its pushforward."""
    return jax.linearize(lambda z: of_loss(consts, z, *_arrays(targets))[0], z)


def _arrays(targets: Any) -> list[Any]:
    return jax.tree.leaves(targets)


@registered
@jax.jit
def _products(jvp: Any, T: Any) -> Any:
    """(c, …) → (n, c)."""
    out = jax.vmap(jvp)(T)
    return jnp.reshape(out, (out.shape[0], -1)).T


@registered
@jax.jit
def _product(jvp: Any, t: Any) -> Any:
    """One tangent → (n, 1), without `jax.vmap`."""
    return jnp.reshape(jvp(t), (-1, 1))


def _arguments(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)
