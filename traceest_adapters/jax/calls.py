"""From a JAX function to its Jacobian and its kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import traceest as te
from traceest_adapters import _state as common
from traceest_adapters._batches import Blocks, check_arguments
from traceest_adapters._calls import clear
from traceest_adapters.jax import arguments, checks, jaxprs, partition, placement, settings
from traceest_adapters.jax.batches import batched
from traceest_adapters.jax.model import Function, Model, Traced, traced
from traceest_adapters.jax.operator import JaxJacobian
from traceest_adapters.jax.per_example.routes import Routes


@clear("jacobian(fn, params, *inputs)")
@settings.usual
def jacobian(
    fn: Callable[..., Any],
    params: Any,
    *inputs: Any,
    wrt: partition.Wrt = None,
    output: Any = None,
    batch_axis: int | None = 0,
    feature_axis: int | None = None,
    in_axes: Any = "batch_axis",
    kwargs: Mapping[str, Any] | None = None,
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
        ``fn(params, *inputs) → state``, any pytree of real floating arrays. It is traced when the kernel is made: what
        it closes over, attributes and globals included, is read then and kept. Kernels whose functions do the same,
        whatever their names, share compiled steps, and no function is held on to.
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
        running averages of a batch norm too, where `params` holds them; of Flax's there is a warning.
    output : int, str or callable, optional
        Which part of what `fn` returns is the state: an index, a key or attribute, or a function.
    batch_axis : int or None
        Axis of independent examples in inputs and state. Rows of the operator are ordered example first, so that
        each example is one block. None: no such axis, one block.
    feature_axis : int, optional
        Axis of units or channels in the state; all others are positions (time, tokens, pixels), over which the signs of
        probes for traces are balanced (`te.probes.balanced`): with any axis they are unbiased, with the right one the
        variance may be a third or a tenth. Default: the last.
    in_axes : int, None, or a sequence or pytree of them, optional
        As in `jax.vmap`: where the inputs have their examples, if not at `batch_axis`; None for what all examples
        share, a key, a mask, a time grid. Arrays of no dimension are shared in any case.
    chunk_size : int, optional
        Probes to a compiled step; absent: up to 4, as the memory budget allows.
    memory_budget : int, optional
        Bytes for what a product holds beside the model, its linearisation and the answer (512 MiB if absent).
        Where memory runs out all the same, both numbers are halved, with a warning, and the product is made again.
    kwargs : mapping, optional
        Keyword inputs of `fn`. Arrays among them have the examples along `batch_axis`, or as the last of `in_axes`
        says where that has one more than there are inputs; all else is passed through.
    check : bool
        Look, on this batch and for this kernel: that examples are independent (outputs one by one against outputs
        together), that the state depends on the parameters, and that every route gives what a plain backward pass
        gives, Σ_b s_b J_bᵀv_b for random v and for signs s that are −1 for a random half of the examples. What fails is
        replaced by the next plainer route, down to one pass an example and probe, with a warning. It takes a forward
        and a backward pass more; products of all examples are looked at when the first is made. False leaves all this
        out: examples that influence each other, in derivatives alone too, batching rules that are wrong, and rules that
        do not fit this model then give wrong numbers without a word. Under `jax.jit`, where there are no values,
        nothing is looked at.
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
        With `matmat` (jvps), `rmatmat` (vjps), `gram_matmat` and the per-block abilities, as far as the model has
        the modes of differentiation for them: a loop until convergence has forward mode alone, and an implicit layer
        with a `jax.custom_vjp` reverse mode alone. `parameters` are the dotted paths, in the order of the columns. Its
        dtype is float32 for models in half precision, whose own rounding is then in its products.

    Raises
    ------
    TypeError
        If there are no floating parameters, the state is not real floating or cannot be differentiated in either
        mode, or arrays were put on different devices; if `batches`
        can be gone through only once.
    ValueError
        If `wrt` names what is not there, the batch is empty, examples are not independent, in values or in derivatives
        (a parameter with a row for each example, say), an array has no `batch_axis`, or the state does not depend on
        the parameters; if `batches` are none, or others in another pass (shuffled, or augmented at random).

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
    check_arguments(inputs, batches, input, blocks, progress)
    arguments.check(fn, params, inputs, batch_axis, in_axes, chunk_size)
    if batches is not None and kwargs:
        raise TypeError(
            "jacobian: kwargs= beside batches=; keyword inputs come in the batches, flags are bound into fn."
        )
    parts, names, trained, fixed = partition.parameters(params, wrt)
    trained, fixed = ([placement.automatic(x) for x in part] for part in (trained, fixed))
    axis = None if blocks == "batch" else batch_axis
    programs: dict[Any, Traced] = {}  # read once for all batches of a shape
    routes: dict[Model, Routes] = {}

    def of(inputs: Any, check: bool, look: bool) -> JaxJacobian:
        inputs_parts, axes, split, shared = partition.batch(inputs, dict(kwargs or {}), axis, in_axes)
        split, shared = ([placement.automatic(x) for x in part] for part in (split, shared))
        key = inputs_parts, axes, tuple((x.shape, x.dtype) for x in (*split, *shared))
        if key not in programs:
            function = Function(fn, output, axis, parts, inputs_parts, axes)
            programs[key] = Model.of(function, trained, fixed + shared, split)
        model, consts, shapes, not_alone = programs[key]
        mesh = jaxprs.mesh(model.together.jaxpr)
        put = partial(placement.over, mesh)
        arrays = put(trained), put(fixed + shared + consts), put(split)
        J = JaxJacobian(model, names, *arrays, chunk_size, memory_budget, not_alone)
        J.routes = routes.setdefault(model, J.routes).of(J, check, look)
        J.state_shape = common.example_first(shapes, axis)
        J.feature_axis = common.feature_axis(J.state_shape, feature_axis, axis, -1)
        if check:
            checks.modes(J)
        if look and not traced(arrays):
            (checks.values if check else checks.look)(J)
        return J

    if batches is None:
        return of(inputs, check, check)
    make = lambda inputs, first, seen: of(inputs, check and first, check and not seen)  # noqa: E731
    return batched(make, batches, input, blocks, progress)


@clear("ntk(fn, params, *inputs)", jacobian)
def ntk(fn: Callable[..., Any], params: Any, *inputs: Any, **options: Any) -> te.Gram:
    """The empirical Neural Tangent Kernel K = J Jᵀ, ``te.gram(jacobian(...))``; arguments as for `jacobian`."""
    return te.gram(jacobian(fn, params, *inputs, **options))
