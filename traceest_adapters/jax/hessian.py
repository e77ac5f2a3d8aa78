"""The Hessian of a JAX function as an operator."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import jax

import traceest as te
from traceest_adapters._symmetric import Symmetric
from traceest_adapters.jax.model import Model, traced
from traceest_adapters.jax.operator import JaxJacobian
from traceest_adapters.jax.program import registered


class JaxHessian(te.Operator):
    """∂²f/∂θ² of a scalar function, (P, P), by one linearisation of its gradient; see `hessian`."""

    def __init__(self, J: JaxJacobian, check: bool = True) -> None:
        P = J.shape[1]
        super().__init__((P, P), like=J, symmetric=True, parameters=J.parameters, name="JaxHessian")
        self._of, self.chunk_size = J, J.chunk_size
        instead = "gauss_newton or empirical_fisher"
        self._checked = Symmetric(self._several, self._one, self, "hessian", instead) if check else self._several

    @cached_property
    def _jvp(self) -> Any:
        J = self._of
        return linearise_gradient(J.model, J.trained, J.fixed, J.inputs)

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
