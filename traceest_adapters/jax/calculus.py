"""What JAX differentiates for the curvature of a loss: at the outputs of a model, and by its parameters.

Losses are traced into programs, so that steps compiled for one serve all that do the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import traceest as te
from traceest_adapters._curvature.matrices import AtOutputs
from traceest_adapters._curvature.symmetric import Found, Symmetric
from traceest_adapters._state import selector
from traceest_adapters.jax import program, settings
from traceest_adapters.jax.model import Model, traced
from traceest_adapters.jax.operator import JaxJacobian
from traceest_adapters.jax.program import Program, registered


class JaxCalculus:
    """See `traceest_adapters._curvature.matrices.Calculus`."""

    def outputs(self, J: JaxJacobian, targets: Any, caller: str) -> Any:
        """The model's outputs as an array of `J.state_shape`, no coarser than float32."""
        z = jnp.reshape(rows(J.model, J.trained, J.fixed, J.inputs), J.state_shape)
        return z.astype(jnp.promote_types(z.dtype, jnp.float32))

    def scalar(self, value: Any, caller: str) -> Any:
        """The value of a loss. Raises ValueError unless it is one real number."""
        shape = getattr(value, "shape", None)
        if shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            what = f"shape {shape} and dtype {value.dtype}" if shape is not None else type(value).__name__
            raise ValueError(f"{caller}: the loss must be one real number, got {what}; take its mean or its sum.")
        return value

    def gradient(self, f: Callable[..., Any], z: Any, targets: Any, caller: str) -> Any:
        """∂f/∂z."""
        return _run(*program.trace(jax.grad(f), z, targets), z, targets)

    def second(self, f: Callable[..., Any], z: Any, targets: Any, caller: str) -> tuple[Any, Any, Any]:
        """∂f/∂z, and V ↦ ∂²f/∂z² V by several columns at once, and by one without `jax.vmap`."""
        g, jvp = _linearise(*program.trace(jax.grad(f), z, targets), z, targets)

        def several(V: Any) -> Any:
            return _columns(jvp, jnp.reshape(V.T, (V.shape[1], *z.shape)).astype(z.dtype))

        def one(v: Any) -> Any:
            return _column(jvp, jnp.reshape(v, z.shape).astype(z.dtype))

        return g, several, one

    def alone(self, at: AtOutputs, r: Any) -> Any:
        """The gradient of each example's loss by itself, given twice; one by one, without batching."""
        of_pair, consts = program.trace(jax.grad(at.f), *at.examples(jnp.array([0, 0])))
        return _run_alone(of_pair, at.axis, consts, at.z, at.targets)

    def examples(self, tree: Any, rows: Any, axis: int, B: int) -> Any:
        """The rows of all arrays in `tree` that have B of them along the axis."""

        def chosen(t: Any) -> Any:
            return jnp.take(t, rows, axis) if jnp.ndim(t) > axis and jnp.shape(t)[axis] == B else t

        return jax.tree.map(chosen, tree)

    def indices(self, n: int, z: Any) -> Any:
        """0, …, n − 1."""
        return jnp.arange(n)

    def constant(self, tree: Any) -> Any:
        """The same without derivatives."""
        return jax.lax.stop_gradient(tree)

    def has_values(self, tree: Any) -> bool:
        """Whether there are values to look at."""
        return not traced(tree)


CALCULUS = JaxCalculus()


@registered
@partial(jax.jit, static_argnums=0)
def rows(model: Model, trained: Any, fixed: Any, inputs: Any) -> Any:
    """The state as (n_examples, n_b)."""
    return model.rows(trained, fixed, inputs)


def value(J: JaxJacobian) -> Any:
    """The state where it is one number."""
    return rows(J.model, J.trained, J.fixed, J.inputs)[0, 0]


@registered
@partial(jax.jit, static_argnums=0)
def _run(of_loss: Program, consts: list[Any], z: Any, targets: Any) -> Any:
    return of_loss(consts, z, *jax.tree.leaves(targets))[0]


@registered
@partial(jax.jit, static_argnums=(0, 1))
def _run_alone(of_pair: Program, axis: int, consts: list[Any], z: Any, targets: Any) -> Any:
    def of(b: Any) -> Any:
        both = jnp.stack([b, b])
        chosen = CALCULUS.examples(targets, both, axis, len(z))
        return jnp.sum(of_pair(consts, z[both], *jax.tree.leaves(chosen))[0], axis=0)

    return jax.lax.map(of, jnp.arange(len(z)))


@registered
@partial(jax.jit, static_argnums=0)
def _linearise(of_loss: Program, consts: list[Any], z: Any, targets: Any) -> Any:
    """The loss's gradient by the outputs, and its pushforward."""
    return jax.linearize(lambda z: of_loss(consts, z, *jax.tree.leaves(targets))[0], z)


@registered
@jax.jit
def _columns(jvp: Any, T: Any) -> Any:
    """(c, …) → (n, c)."""
    out = jax.vmap(jvp)(T)
    return jnp.reshape(out, (out.shape[0], -1)).T


@registered
@jax.jit
def _column(jvp: Any, t: Any) -> Any:
    """One tangent → (n, 1), without `jax.vmap`."""
    return jnp.reshape(jvp(t), (-1, 1))


def is_loss(x: Any) -> bool:
    """Whether `x` is a function, and not parameters that can be called, as a module with arrays in it is."""
    return callable(x) and not any(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(x))


class OfLoss(NamedTuple):
    """``loss(fn(params, *inputs), targets)`` as one function, equal to another of the same parts."""

    fn: Callable[..., Any]
    loss: Callable[..., Any]
    output: Any
    targets: bool

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss; targets come last."""
        inputs, targets = (args[:-1], args[-1:]) if self.targets else (args, ())
        return self.loss(selector(self.output)(self.fn(params, *inputs, **kwargs)), *targets)


class JaxHessian(te.Operator):
    """∂²f/∂θ² of a scalar function, (P, P), by one linearisation of its gradient; see `hessian`."""

    def __init__(self, J: JaxJacobian, check: bool = True, found: Found | None = None) -> None:
        P = J.shape[1]
        super().__init__((P, P), like=J, symmetric=True, parameters=J.parameters, name="JaxHessian")
        self._of, self.chunk_size = J, J.chunk_size
        instead = "gauss_newton or empirical_fisher"
        self._checked = Symmetric(self._several, self._one, self, "hessian", instead, found) if check else self._several

    @cached_property
    def _jvp(self) -> Any:
        J = self._of
        return linearise_gradient(J.model, J.trained, J.fixed, J.inputs)

    @settings.usual
    def matmat(self, X: Any) -> Any:
        """H X: (P, k) → (P, k)."""
        J = self._of
        return (self._several if traced((J.trained, J.fixed, J.inputs, X)) else self._checked)(X)

    rmatmat = matmat

    def _several(self, X: Any) -> Any:
        return self._of._columns(lambda T: products(self._jvp, T), self._of._tangents(X), X.shape[1])

    def _one(self, X: Any) -> Any:
        return self._of._columns(lambda T: product(self._jvp, T), self._of._tangents(X), 1)


@registered
@partial(jax.jit, static_argnums=0)
def linearise_gradient(model: Model, trained: Any, fixed: Any, inputs: Any) -> Any:
    """The pushforward of the gradient, residuals included."""
    return jax.linearize(jax.grad(lambda p: model.rows(p, fixed, inputs)[0, 0]), trained)[1]


@registered
@jax.jit
def products(jvp: Any, T: Any) -> Any:
    """A (c, …) tangent for each parameter → the same of H times it."""
    return jax.vmap(jvp)(T)


@registered
@jax.jit
def product(jvp: Any, T: Any) -> Any:
    """The same of one tangent, (1, …) for each parameter, without `jax.vmap`."""
    return jax.tree.map(lambda h: h[None], jvp(jax.tree.map(lambda t: t[0], T)))
