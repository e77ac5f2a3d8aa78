"""From a JAX function to its Jacobian and its kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr

import traceest as te
from traceest_adapters import _state as common
from traceest_adapters.jax import (
    checks,
)
from traceest_adapters.jax.model import Model, traced
from traceest_adapters.jax.operator import JaxJacobian


def jacobian(
    fn: Callable[..., Any],
    params: Any,
    *inputs: Any,
    batch_axis: int | None = 0,
    output: Any = None,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
    check: bool = True,
) -> JaxJacobian:
    """The Jacobian of ``fn(params, *inputs)`` with respect to `params`, as an operator (n, P).

    Nothing of its size is formed. The model is linearised once for all products with the whole batch; steps
    are compiled once for each model and shape, whatever the number of probes.

    Parameters
    ----------
    fn : callable
        ``fn(params, *inputs) → state``, any pytree of real floating arrays. Pass the same function object again
        (not a new lambda) and compiled steps are used again.
    params : pytree
        Floating leaves are the parameters, in the pytree's order; other leaves are passed through.
    *inputs : pytrees of arrays
        Their leaves all have the examples along `batch_axis`.
    batch_axis : int or None
        Axis of independent examples in inputs and state. Rows of the operator are ordered example first, so that
        each example is one block. None: no such axis, one block.
    output : int, str or callable, optional
        Which part of what `fn` returns is the state: an index, a key or attribute, or a function.
    chunk_size : int, optional
        Probes to a compiled step; absent: up to 4, as the memory budget allows.
    memory_budget : int, optional
        Bytes for what a product holds beside the model, its linearisation and the answer (512 MiB if absent).
        Where memory runs out all the same, both numbers are halved, with a warning, and the product is made again.
    check : bool
        Verify on this batch that examples are independent (outputs one by one against outputs together) and that
        the state depends on the parameters. Under `jax.jit`, where there are no values, only shapes are checked.

    Returns
    -------
    JaxJacobian
        With `matmat` (jvps), `rmatmat` (vjps), `gram_matmat` and the per-block abilities.

    Raises
    ------
    TypeError
        If there are no floating parameters, or the state is not real floating.
    ValueError
        If examples are not independent, an array has no `batch_axis`, or the state does not depend on `params`.

    Examples
    --------
    >>> import jax.numpy as jnp, traceest as te
    >>> J = jacobian(lambda w, x: x @ w, jnp.ones((3, 2)), jnp.eye(4, 3))
    >>> J.shape, J.n_blocks
    ((8, 6), 4)
    >>> float(te.exact(te.gram(J)))
    6.0
    """
    paths, treedef = jax.tree.flatten_with_path(params)
    leaves = [leaf for _, leaf in paths]
    leaves = [jnp.asarray(p) for p in leaves]
    trainable = tuple(bool(jnp.issubdtype(p.dtype, jnp.inexact)) for p in leaves)
    trained = [p for p, t in zip(leaves, trainable, strict=True) if t and p.size]
    trainable = tuple(t and p.size > 0 for p, t in zip(leaves, trainable, strict=True))
    fixed = [p for p, t in zip(leaves, trainable, strict=True) if not t]
    if not trained:
        raise TypeError(
            "jacobian: params has no floating leaf, so there is no trainable parameter to differentiate by."
        )
    if any(jnp.issubdtype(p.dtype, jnp.complexfloating) for p in trained):
        raise TypeError("jacobian: complex parameters; give real and imaginary parts as two real arrays.")
    inputs = jax.tree.map(jnp.asarray, inputs)
    model = Model(fn, output, batch_axis, trainable, treedef)
    state_shapes = checks.shapes(model, params, inputs)
    names = [keystr(path, simple=True, separator=".") or "params" for path, _ in paths]
    names = [name for name, t in zip(names, trainable, strict=True) if t]
    J = JaxJacobian(model, names, trained, fixed, inputs, chunk_size, memory_budget)
    J.state_shape = common.example_first(state_shapes, batch_axis)
    if check and not traced((trained, fixed, inputs)):
        checks.values(J)
    return J


def ntk(fn: Callable[..., Any], params: Any, *inputs: Any, **options: Any) -> te.Gram:
    """The empirical Neural Tangent Kernel K = J Jᵀ, ``te.gram(jacobian(...))``; arguments as for `jacobian`."""
    return te.gram(jacobian(fn, params, *inputs, **options))
