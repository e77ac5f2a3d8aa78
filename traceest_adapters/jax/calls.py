"""From a JAX function to its Jacobian and its kernel."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import traceest as te
from traceest import _array_api as aa
from traceest_adapters import _state as common
from traceest_adapters._batches import Blocks, Parts, check_arguments, of_inputs, stacked
from traceest_adapters._calls import clear
from traceest_adapters.jax import arguments, checks, jaxprs, partition, placement, settings
from traceest_adapters.jax.model import Function, Model, Traced, traced
from traceest_adapters.jax.operator import JaxJacobian
from traceest_adapters.jax.per_example.routes import Routes


@clear("jacobian(fn, params, *inputs)")
@settings.usual
def jacobian(
    fn: Callable[..., Any],
    params: Any,
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    shared: Mapping[str, Any] | None = None,
    wrt: partition.Wrt = None,
    output: Any = None,
    batch_axis: int | None = 0,
    feature_axis: int | None = None,
    in_axes: Any = "batch_axis",
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
    kwargs : mapping, optional
        Keyword inputs of `fn`. Arrays among them have the examples along `batch_axis`, or as the last of `in_axes`
        says where that has one more than there are inputs; all else is passed through.
    shared : mapping, optional
        Keyword inputs that all examples share and that have no batch axis, such as the edges of a graph.
    wrt : str, callable, sequence of these, or class, optional
        Which parameters to differentiate by; all others are held fixed. The name of an array is its path in `params`,
        joined by dots: "encoder.layers.0.attn.query". Give such a name, or that of a subtree ("layers.0"), or a glob,
        in which ``*`` stands for any characters ("*.attn.*", "layers.*.bias"); a predicate of name and array; several
        of these, of which one has to fit; or a class that marks nodes of the pytree (``nnx.Param``,
        ``eqx.nn.Linear``). The order is that of `params`. Default: all floating arrays, and hence the running averages
        of a batch norm too, where `params` holds them; of Flax's there is a warning.
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
    if batches is not None and kwargs:
        raise TypeError(
            "jacobian: kwargs= beside batches=; keyword inputs come in the batches, flags are bound into fn."
        )
    of = Jacobians(
        fn,
        params,
        shared=shared,
        wrt=wrt,
        output=output,
        batch_axis=None if blocks == "batch" else batch_axis,
        feature_axis=feature_axis,
        in_axes=in_axes,
        chunk_size=chunk_size,
        memory_budget=memory_budget,
        check=check,
    )
    if batches is None:
        return of(inputs, dict(kwargs or {}))
    data = of_inputs(batches, input, positional, digest)
    return stacked(Parts(data, lambda inputs, p: of.next(inputs, data.complete)), blocks, progress)


@clear("ntk(fn, params, *inputs)", jacobian)
def ntk(fn: Callable[..., Any], params: Any, *inputs: Any, **options: Any) -> te.Gram:
    """The empirical Neural Tangent Kernel K = J Jᵀ, ``te.gram(jacobian(...))``.

    Parameters
    ----------
    fn, params, *inputs, **options
        As in `jacobian`.

    Returns
    -------
    Gram, (n, n)

    Raises
    ------
    TypeError, ValueError
        As `jacobian`.
    """
    return te.gram(jacobian(fn, params, *inputs, **options))


class Jacobians:
    """The Jacobians of one function at batch after batch, which share its programs and what was found out of it."""

    def __init__(
        self,
        fn: Callable[..., Any],
        params: Any,
        *,
        shared: Mapping[str, Any] | None = None,
        wrt: partition.Wrt = None,
        output: Any = None,
        batch_axis: int | None = 0,
        feature_axis: int | None = None,
        in_axes: Any = "batch_axis",
        chunk_size: int | None = None,
        memory_budget: int | None = None,
        check: bool = True,
    ) -> None:
        arguments.check(fn, params, shared, batch_axis, chunk_size)
        self.fn, self.output, self.axis, self.feature_axis, self.in_axes = fn, output, batch_axis, feature_axis, in_axes
        self.shared, self.check, self.how = dict(shared or {}), check, (chunk_size, memory_budget)
        self.params, self.names, trained, fixed = partition.parameters(params, wrt)
        self.trained, self.fixed = ([placement.automatic(x) for x in part] for part in (trained, fixed))
        self._programs: dict[Any, Traced] = {}  # read once for all batches of a shape
        self._routes: dict[Model, Routes] = {}
        self._begun = False

    def next(self, inputs: tuple[Any, ...], seen: bool) -> JaxJacobian:
        """The Jacobian at the next of several batches; those seen before are not looked at again."""
        first, self._begun = not self._begun, True
        return self(inputs, {}, self.check and first, self.check and not seen)

    def __call__(
        self, inputs: tuple[Any, ...], kwargs: dict[str, Any], check: bool | None = None, look: bool | None = None
    ) -> JaxJacobian:
        """The Jacobian at these inputs."""
        check, look = self.check if check is None else check, self.check if look is None else look
        arguments.check_inputs((inputs, kwargs), self.axis, self.in_axes)
        parts, axes, split, shared = partition.batch(inputs, kwargs, self.shared, self.axis, self.in_axes)
        split, shared = ([placement.automatic(x) for x in part] for part in (split, shared))
        key = parts, axes, tuple((x.shape, x.dtype) for x in (*split, *shared))
        if key not in self._programs:
            function = Function(self.fn, self.output, self.axis, self.params, parts, axes)
            self._programs[key] = Model.of(function, self.trained, self.fixed + shared, split)
        model, consts, shapes, not_alone = self._programs[key]
        put = partial(placement.over, jaxprs.mesh(model.together.jaxpr))
        arrays = put(self.trained), put(self.fixed + shared + consts), put(split)
        J = JaxJacobian(model, self.names, *arrays, *self.how, not_alone)
        J.routes = self._routes.setdefault(model, J.routes).of(J, check, look)
        J.state_shape = common.example_first(shapes, self.axis)
        J.feature_axis = common.feature_axis(J.state_shape, self.feature_axis, self.axis, -1)
        if check:
            checks.modes(J)
        if look and not traced(arrays):
            (checks.values if check else checks.look)(J)
        return J


def positional(batch: Any) -> tuple[Any, ...]:
    """The inputs in a batch: a mapping is one of them, as any pytree."""
    inputs = tuple(batch) if aa.is_plain_sequence(batch) else (dict(batch) if isinstance(batch, Mapping) else batch,)
    return jax.tree.map(jnp.asarray, inputs)


def digest(inputs: Any) -> bytes | None:
    """Of all arrays, their shapes and dtypes; nothing is to be told of those without values."""
    if traced(inputs):
        return None
    found = hashlib.blake2b(digest_size=16)
    for x in jax.tree.leaves(inputs):
        found.update(f"{x.dtype}{x.shape}".encode())
        found.update(np.ascontiguousarray(x).tobytes())
    return found.digest()
