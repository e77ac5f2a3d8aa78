"""From a JAX function to its Jacobian and its kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import traceest as te
from traceest_adapters import _state as common
from traceest_adapters.jax import checks, partition, placement
from traceest_adapters.jax.model import Model, traced
from traceest_adapters.jax.operator import JaxJacobian


def jacobian(
    fn: Callable[..., Any],
    params: Any,
    *inputs: Any,
    wrt: partition.Wrt = None,
    output: Any = None,
    batch_axis: int | None = 0,
    in_axes: Any = "batch_axis",
    chunk_size: int | None = None,
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
        Floating arrays are the parameters, in the pytree's order. All else is passed through: integers, keys, and
        what is no array, as the functions and flags in an Equinox module. A Python float is a constant, unless `wrt`
        names it.
    *inputs : pytrees
        Their arrays have the examples along `batch_axis`, or as `in_axes` says; flags and strings are passed through.
    wrt : str, sequence of str, predicate or class, optional
        Which parameters to differentiate by: dotted paths of leaves or of whole subtrees ("params", "layers.0",
        "encoder.attention.query"), a predicate of dotted path and array, or a class that marks nodes of the pytree
        (``nnx.Param``, ``eqx.nn.Linear``). All others are held fixed. Default: all floating arrays, and hence the
        running averages of a batch norm too, where `params` holds them.
    output : int, str or callable, optional
        Which part of what `fn` returns is the state: an index, a key or attribute, or a function.
    batch_axis : int or None
        Axis of independent examples in inputs and state. Rows of the operator are ordered example first, so that
        each example is one block. None: no such axis, one block.
    in_axes : int, None, or a sequence or pytree of them, optional
        As in `jax.vmap`: where the inputs have their examples, if not at `batch_axis`; None for what all examples
        share, a key, a mask, a time grid. Arrays of no dimension are shared in any case.
    chunk_size : int, optional
        Probes to a compiled step (4 if absent); fewer take less memory.
    check : bool
        Verify on this batch that examples are independent (outputs one by one against outputs together) and that
        the state depends on the parameters. Under `jax.jit`, where there are no values, only shapes are checked.

    Returns
    -------
    JaxJacobian
        With `matmat` (jvps), `rmatmat` (vjps), `gram_matmat` and the per-block abilities, as far as the model has
        the modes of differentiation for them: a loop until convergence has forward mode alone, and an implicit layer
        with a `jax.custom_vjp` reverse mode alone. `parameters` are the dotted paths, in the order of the columns. Its
        dtype is float32 for models in half precision, whose own rounding is then in its products.

    Raises
    ------
    TypeError
        If there are no floating parameters, the state is not real floating or cannot be differentiated in either
        mode, or arrays were put on different devices.
    ValueError
        If `wrt` names what is not there, examples are not independent, an array has no `batch_axis`, or the state does
        not depend on the parameters.

    Notes
    -----
    Flax linen: ``jacobian(model.apply, variables, x, wrt="params")``. Flax nnx: a module is a pytree,
    ``jacobian(lambda m, x: m(x), model, x, wrt=nnx.Param)``; or split it,
    ``jacobian(lambda p, x: nnx.merge(graphdef, p, rest)(x), p, x)``. Equinox:
    ``jacobian(lambda m, x: jax.vmap(m)(x), model, x)``. Haiku: ``jacobian(f.apply, params, None, x)``, or with a key,
    ``jacobian(f.apply, params, key, x, in_axes=(None, 0))``.

    Examples
    --------
    >>> import jax.numpy as jnp, traceest as te
    >>> J = jacobian(lambda w, x: x @ w, jnp.ones((3, 2)), jnp.eye(4, 3))
    >>> J.shape, J.n_blocks
    ((8, 6), 4)
    >>> float(te.exact(te.gram(J)))
    6.0
    >>> layers = {"first": jnp.ones((3, 2)), "second": jnp.ones((2, 2))}
    >>> jacobian(lambda p, x: x @ p["first"] @ p["second"], layers, jnp.eye(4, 3), wrt="second").parameters
    ('second',)
    """
    parts, names, trained, fixed = partition.parameters(params, wrt)
    inputs_parts, axes, batched, shared = partition.batch(inputs, batch_axis, in_axes)
    model = Model(_hashable(fn), _hashable(output), batch_axis, parts, inputs_parts, axes)
    trained, fixed, batched = ([placement.automatic(x) for x in part] for part in (trained, fixed + shared, batched))
    state_shapes = checks.shapes(model, trained, fixed, batched)
    J = JaxJacobian(model, names, trained, fixed, batched, chunk_size)
    J.state_shape = common.example_first(state_shapes, batch_axis)
    if check:
        checks.modes(J)
        if not traced((trained, fixed, batched)):
            checks.values(J)
    return J


def _hashable(f: Any) -> Any:
    """`f` as part of a static argument: of a callable without a hash (a module that holds arrays), itself alone."""
    try:
        hash(f)
    except TypeError:
        return partition.Constant(f)
    return f


def ntk(fn: Callable[..., Any], params: Any, *inputs: Any, **options: Any) -> te.Gram:
    """The empirical Neural Tangent Kernel K = J Jᵀ, ``te.gram(jacobian(...))``; arguments as for `jacobian`."""
    return te.gram(jacobian(fn, params, *inputs, **options))
