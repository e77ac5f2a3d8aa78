"""From a JAX function to its Jacobian and its kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr

import traceest as te
from traceest_adapters import _state as common
from traceest_adapters._batches import Blocks, check_arguments
from traceest_adapters.jax import (
    checks,
)
from traceest_adapters.jax.batches import batched
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
    batches: Iterable[Any] | None = None,
    input: int | str | Callable[[Any], Any] | None = None,
    blocks: Blocks = "example",
    progress: bool = False,
) -> JaxJacobian | te.Stack:
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
    batches : iterable, optional
        In place of `inputs`: a list of arrays, a data loader, anything that can be gone through again and again and
        yields the same batches each time; all of their examples make up one Jacobian (`te.vstack`), of which one batch
        is linearised at a time. A batch is an array or a mapping, which is one input, or a tuple or list of inputs.
        Checks are made on the first; batches of equal shape share all compiled steps.
    input : int, str or callable, optional
        Which part of a batch is the model's input: an index (0 where a loader yields inputs and targets), a key, or
        a function. Default: all of it.
    blocks : {"example", "batch"}
        Of batches: each example is a block, or each batch, all of one size then (its examples need not be independent).
        Norms and ranks of B blocks by k probes take (Bk)² numbers: choose "batch" for many thousands of examples.
        Traces take B k numbers; leave "example" for them.
    progress : bool
        Of batches: show a bar over them (needs tqdm).

    Returns
    -------
    JaxJacobian, or of batches a `te.Stack` of them
        With `matmat` (jvps), `rmatmat` (vjps), `gram_matmat` and the per-block abilities.

    Raises
    ------
    TypeError
        If there are no floating parameters, or the state is not real floating; if `batches` can be gone through only
        once.
    ValueError
        If examples are not independent, an array has no `batch_axis`, or the state does not depend on `params`; if
        `batches` are none, or others in another pass (shuffled, or augmented at random).

    Examples
    --------
    >>> import jax.numpy as jnp, traceest as te
    >>> J = jacobian(lambda w, x: x @ w, jnp.ones((3, 2)), jnp.eye(4, 3))
    >>> J.shape, J.n_blocks
    ((8, 6), 4)
    >>> float(te.exact(te.gram(J)))
    6.0
    """
    check_arguments(inputs, batches, input, blocks, progress)
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
    model = Model(fn, output, None if blocks == "batch" else batch_axis, trainable, treedef)
    names = [keystr(path, simple=True, separator=".") or "params" for path, _ in paths]
    names = [name for name, t in zip(names, trainable, strict=True) if t]

    def of(inputs: Any, check: bool, seen: bool = False) -> JaxJacobian:
        inputs = jax.tree.map(jnp.asarray, inputs)
        if seen:
            return JaxJacobian(model, names, trained, fixed, inputs, chunk_size, memory_budget)
        state_shapes = checks.shapes(model, params, inputs)
        J = JaxJacobian(model, names, trained, fixed, inputs, chunk_size, memory_budget)
        J.state_shape = common.example_first(state_shapes, model.batch_axis)
        if check and not traced((trained, fixed, inputs)):
            checks.values(J)
        return J

    if batches is None:
        return of(inputs, check)
    make = lambda inputs, first, seen: of(inputs, check and first, seen)  # noqa: E731
    return batched(make, batches, input, blocks, progress)


def ntk(fn: Callable[..., Any], params: Any, *inputs: Any, **options: Any) -> te.Gram:
    """The empirical Neural Tangent Kernel K = J Jᵀ, ``te.gram(jacobian(...))``; arguments as for `jacobian`."""
    return te.gram(jacobian(fn, params, *inputs, **options))
