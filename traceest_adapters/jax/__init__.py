"""Jacobians and Neural Tangent Kernels of JAX functions.

>>> import jax, jax.numpy as jnp, traceest as te
>>> from traceest_adapters.jax import ntk
>>> def apply(params, x):
...     return jnp.tanh(x @ params["w"]) @ params["v"]
>>> k1, k2, k3 = jax.random.split(jax.random.key(0), 3)
>>> params = {"w": jax.random.normal(k1, (5, 16)), "v": jax.random.normal(k2, (16, 3))}
>>> K = ntk(apply, params, jax.random.normal(k3, (20, 5)))
>>> K.shape
(60, 60)
>>> te.effective_rank(K, n_probes=2, rng=0).n_rmatvecs
2
"""

from traceest_adapters.jax import backend  # noqa: F401  (registers itself)
from traceest_adapters.jax.calculus import JaxHessian
from traceest_adapters.jax.calls import jacobian, ntk
from traceest_adapters.jax.curvature import empirical_fisher, gauss_newton, hessian
from traceest_adapters.jax.operator import JaxJacobian

__all__ = ["JaxHessian", "JaxJacobian", "empirical_fisher", "gauss_newton", "hessian", "jacobian", "ntk"]
