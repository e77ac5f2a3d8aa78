"""Hessian, Gauss–Newton matrix and empirical Fisher of a loss with respect to a JAX function's parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

import traceest as te
from traceest_adapters import _curvature as curvature
from traceest_adapters.jax import program
from traceest_adapters.jax.calls import jacobian
from traceest_adapters.jax.hessian import JaxHessian
from traceest_adapters.jax.model import Model, traced
from traceest_adapters.jax.operator import JaxJacobian
from traceest_adapters.jax.partition import Wrt
from traceest_adapters.jax.program import Program, registered

Loss = Callable[..., Any]


def hessian(
    fn: Callable[..., Any], params: Any, *args: Any, wrt: Wrt = None, chunk_size: int | None = None
) -> JaxHessian:
    """The Hessian ∂²f/∂θ² of the scalar ``fn(params, *args)`` by the parameters θ, (P, P), as an operator.

    Symmetric, not positive semidefinite in general. The gradient is linearised once for all products, which are mapped
    over columns: about two to three gradients a column. Choose it for sharpness and traces of the loss itself;
    `gauss_newton` where a positive semidefinite part of it will do, with far less variance.

    Parameters
    ----------
    fn : callable
        ``fn(params, *args)`` → scalar, traced when the operator is made; functions that do the same share steps.
    params : pytree
        Floating leaves are the parameters, in the pytree's order; other leaves are passed through.
    *args : pytrees of arrays
    wrt : paths, predicate or class, optional
        Which leaves to differentiate by, as in `jacobian`.
    chunk_size : int, optional
        Columns to a compiled step (4 if absent).

    Returns
    -------
    JaxHessian
        `parameters` are the names, in the order of rows and columns.

    Raises
    ------
    TypeError
        If there are no floating parameters, or the value is not real floating.
    ValueError
        If the value is not a scalar.

    References
    ----------
    Pearlmutter (1994), Fast exact multiplication by the Hessian.

    Examples
    --------
    >>> import jax.numpy as jnp, traceest as te
    >>> H = hessian(lambda w: jnp.sum(w**3), jnp.array([1.0, 2.0]))
    >>> float(te.trace(H))  # 6·1 + 6·2
    18.0
    """
    J = curvature.of_one_batch(
        jacobian(fn, params, *args, wrt=wrt, batch_axis=None, chunk_size=chunk_size, check=False), "hessian"
    )
    if J.shape[0] != 1:
        raise ValueError(
            f"hessian: fn must return one real number, got shape {J.state_shape}; take the mean or the sum of the loss."
        )
    return JaxHessian(J)


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
    J = curvature.of_one_batch(jacobian(fn, params, *_arguments(inputs), **options), "gauss_newton")
    z = _outputs(J, loss, targets, "gauss_newton")
    of_loss, consts = _gradient(loss, J.model.batch_axis, z, targets)
    jvp = _linearise(of_loss, consts, z, targets)

    def H(V: Any) -> Any:
        return _products(jvp, jnp.reshape(V.T, (V.shape[1], *z.shape)).astype(z.dtype))

    return curvature.gauss_newton(J, H, z, look=not traced((J.trained, J.fixed, J.inputs, targets)))


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

    Parameters
    ----------
    fn, loss, params, inputs, targets, **options
        As for `gauss_newton`; the loss need not be convex.
    reduction : {"mean", "sum"}
        What `loss` does with its examples' losses. Verified, except under `jax.jit`.

    Returns
    -------
    Gram

    Raises
    ------
    TypeError, ValueError
        As `gauss_newton`; if `reduction` is not what the loss does.

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
    J = curvature.of_one_batch(jacobian(fn, params, *_arguments(inputs), **options), "empirical_fisher")
    z, axis = _outputs(J, loss, targets, "empirical_fisher"), J.model.batch_axis
    if axis is None:
        raise ValueError("empirical_fisher: batch_axis=None names no examples, of whose gradients it is made; give it.")
    of_loss, consts = _gradient(loss, axis, z, targets)
    gradient = _run(of_loss, consts, z, targets)
    if options.get("check", True) and not traced((J.trained, J.fixed, J.inputs, targets)):
        twice = jax.tree.map(lambda t: jnp.concatenate([t, t], axis) if jnp.ndim(t) > axis else t, targets)
        z2 = jnp.concatenate([z, z])
        of_both, consts = _gradient(loss, axis, z2, twice)
        both = _run(of_both, consts, z2, twice)[: len(z)]
        share = float(jnp.vdot(both, gradient) / jnp.vdot(gradient, gradient)) if jnp.any(gradient) else None
        curvature.check_reduction(share, reduction, "empirical_fisher")
    return curvature.empirical_fisher(J, gradient, len(z) if reduction == "mean" else 1.0)


def _outputs(J: JaxJacobian, loss: Loss, targets: Any, caller: str) -> Any:
    """The outputs, example first and no coarser than float32, found to be what `loss` makes a scalar of."""
    if not callable(loss):
        raise TypeError(f"{caller}: loss must be a function of the output and the targets, got {loss!r}.")
    if J.state_shape is None:
        raise TypeError(f"{caller}: fn returns several arrays; select the one that loss takes with output=.")
    z = jnp.reshape(_rows(J.model, J.trained, J.fixed, J.inputs), J.state_shape)
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    value = jax.eval_shape(partial(_value, loss, J.model.batch_axis), z, targets)
    shape = getattr(value, "shape", None)
    if shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        what = f"shape {shape}" if shape is not None else type(value).__name__
        raise ValueError(f"{caller}: the loss must be one real number, got {what}; take its mean or its sum.")
    return z


def _value(loss: Loss, axis: int | None, z: Any, targets: Any) -> Any:
    output = z if axis is None else jnp.moveaxis(z, 0, axis)
    return loss(output) if targets is None else loss(output, targets)


@registered
@partial(jax.jit, static_argnums=0)
def _rows(model: Model, trained: Any, fixed: Any, inputs: Any) -> Any:
    return model.rows(trained, fixed, inputs)


def _gradient(loss: Loss, axis: int | None, z: Any, targets: Any) -> tuple[Program, list[Any]]:
    """The loss's gradient by the outputs, as a program of them and the targets, and what it closes over."""
    return program.trace(jax.grad(lambda z, targets: _value(loss, axis, z, targets)), z, targets)


@registered
@partial(jax.jit, static_argnums=0)
def _run(of_loss: Program, consts: list[Any], z: Any, targets: Any) -> Any:
    return of_loss(consts, z, *_arrays(targets))[0]


@registered
@partial(jax.jit, static_argnums=0)
def _linearise(of_loss: Program, consts: list[Any], z: Any, targets: Any) -> Any:
    """The pushforward of the loss's gradient by the outputs."""
    return jax.linearize(lambda z: of_loss(consts, z, *_arrays(targets))[0], z)[1]


def _arrays(targets: Any) -> list[Any]:
    return jax.tree.leaves(targets)


@registered
@jax.jit
def _products(jvp: Any, T: Any) -> Any:
    """(c, …) → (n, c)."""
    out = jax.vmap(jvp)(T)
    return jnp.reshape(out, (out.shape[0], -1)).T


def _arguments(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)
