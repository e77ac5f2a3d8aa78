"""Pytrees taken apart: the arrays that matter, all other arrays, and leaves that are no arrays but part of the program.

What is no array (an activation function, a flag, a string, a number of steps) keeps its place in the static part, so
that compiled steps are shared by models whose constants are equal, and by no others.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from inspect import isclass, isfunction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey, keystr

from traceest._names import Names, Pattern, chosen
from traceest_adapters.jax import averages

Wrt = Pattern | type | None


class Constant:
    """A leaf or a function as part of a static argument: equal by type and value, or by identity if it has no hash."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.key: tuple[Any, Any] = (type(value), value) if isinstance(value, Hashable) else (type(value), id(value))
        try:
            self.hash = hash(self.key)
        except TypeError:  # a tuple, say, that holds something without a hash
            self.key = (type(value), id(value))
            self.hash = hash(self.key)

    def __call__(self, *args: Any) -> Any:
        """What the function that this stands for returns."""
        return self.value(*args)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and bool(self.key == other.key)


class Partition(NamedTuple):
    """The static part of a pytree. Of each leaf: True, it is an array chosen; False, another one; None, no array."""

    treedef: Any
    kinds: tuple[bool | None, ...]
    constants: tuple[Constant, ...]

    @classmethod
    def of(cls, leaves: list[Any], treedef: Any, kinds: list[bool | None]) -> tuple[Partition, list[Any], list[Any]]:
        """The static part, the leaves chosen and the others."""
        parts: dict[bool | None, list[Any]] = {True: [], False: [], None: []}
        for leaf, kind in zip(leaves, kinds, strict=True):
            parts[kind].append(leaf)
        return cls(treedef, tuple(kinds), tuple(map(Constant, parts[None]))), parts[True], parts[False]

    @property
    def n_others(self) -> int:
        """How many arrays there are beside those chosen."""
        return self.kinds.count(False)

    def join(self, chosen: list[Any], others: list[Any]) -> Any:
        """The pytree again."""
        parts = {True: iter(chosen), False: iter(others), None: (constant.value for constant in self.constants)}
        return jax.tree.unflatten(self.treedef, [next(parts[kind]) for kind in self.kinds])


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of numbers (or of random keys)."""
    if isinstance(leaf, (np.ndarray, np.generic)):
        return leaf.dtype.kind not in "OUSMmV"
    return isinstance(leaf, jax.Array)


# -- parameters ---------------------------------------------------------------------------------------------
def parameters(params: Any, wrt: Wrt) -> tuple[Partition, Names, list[Any], list[Any]]:
    """The static part of `params`; of the leaves to differentiate by, the names and they; and all other arrays.

    Raises
    ------
    TypeError
        If there is no such leaf, one is complex, or `wrt` is of another kind.
    ValueError
        If `wrt` names what is not there.
    """
    paths, treedef = jax.tree.flatten_with_path(params)
    names, leaves = [dotted(path) for path, _ in paths], [leaf for _, leaf in paths]
    mine = _chosen(params, names, leaves, wrt)
    leaves = [_own(x) if is_array(x) or (c and type(x) is float) else x for x, c in zip(leaves, mine, strict=True)]
    kinds = [_kind(leaf, c) for leaf, c in zip(leaves, mine, strict=True)]
    partition, trained, fixed = Partition.of(leaves, treedef, kinds)
    if not trained:
        some = "" if wrt is None else f" among those that wrt={_shown(wrt)} selects"
        raise TypeError(
            f"jacobian: params has no floating array{some}, so there is no trainable parameter to differentiate by. "
            "(Python numbers are constants unless wrt names them.)"
        )
    if any(jnp.issubdtype(p.dtype, jnp.complexfloating) for p in trained):
        raise TypeError("jacobian: complex parameters; give real and imaginary parts as two real arrays.")
    if wrt is None:
        averages.warn(params, names, [bool(kind) for kind in kinds])
    return partition, Names((name for name, kind in zip(names, kinds, strict=True) if kind), trained), trained, fixed


def _kind(leaf: Any, chosen: bool) -> bool | None:
    if not is_array(leaf):
        return None
    return bool(chosen and jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.size)


def dotted(path: tuple[Any, ...]) -> str:
    """``layers.0.weight``; a variable of Flax's nnx stands for its value."""
    if len(path) > 1 and path[-1] == GetAttrKey("value"):
        path = path[:-1]
    return keystr(path, simple=True, separator=".") or "params"


def _chosen(params: Any, names: list[str], leaves: list[Any], wrt: Wrt) -> list[bool]:
    if wrt is None:
        return [is_array(leaf) for leaf in leaves]
    if isinstance(wrt, type):
        inside: list[bool] = []
        for node in jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, wrt)):
            inside += [isinstance(node, wrt) and is_array(leaf) for leaf in jax.tree.leaves(node)]
        return inside
    asked = [wrt] if isinstance(wrt, str) or callable(wrt) or not isinstance(wrt, Iterable) else list(wrt)
    numbers = {name for name in asked if isinstance(name, str)}  # a Python float is a parameter where it is named
    able = [i for i, leaf in enumerate(leaves) if is_array(leaf) or names[i] in numbers]
    some = chosen([names[i] for i in able], [leaves[i] for i in able], asked, "wrt")
    found = dict(zip(able, some, strict=True))
    return [found.get(i, False) for i in range(len(leaves))]


def _shown(wrt: Any) -> str:
    return wrt.__name__ if isfunction(wrt) or isclass(wrt) else repr(wrt)


# -- inputs -------------------------------------------------------------------------------------------------
def batch(
    inputs: tuple[Any, ...], kwargs: dict[str, Any], shared: dict[str, Any], batch_axis: int | None, in_axes: Any
) -> tuple[Partition, tuple[int, ...], list[Any], list[Any]]:
    """The static part of the inputs, the batch axes of the arrays that have one, these, and those that are shared.

    Arrays of no dimension are shared by all examples whatever `in_axes` says.

    Raises
    ------
    ValueError
        If `in_axes` does not fit the inputs, or names axes where there is no batch axis; if a name is in both of
        `kwargs` and `shared`.
    """
    if twice := sorted(kwargs.keys() & shared.keys()):
        raise ValueError(f"jacobian: {', '.join(twice)} came both in kwargs= and in shared=; give each once.")
    leaves, treedef = jax.tree.flatten((inputs, kwargs, shared))
    leaves = [_own(x) if is_array(x) else x for x in leaves]
    if batch_axis is None:
        if in_axes not in ("batch_axis", None):
            raise ValueError(f"jacobian: in_axes={in_axes!r} with batch_axis=None; give the state's batch_axis too.")
        partition, whole, rest = Partition.of(leaves, treedef, [True if is_array(x) else None for x in leaves])
        return partition, (), whole, rest
    given = isinstance(in_axes, (tuple, list)) and bool(kwargs)
    if given and len(in_axes) == len(inputs) + 1:  # the last is for the keywords
        axes = _axes(inputs, in_axes[:-1]) + _axes((kwargs,), (in_axes[-1],))
    elif given:
        axes = _axes(inputs, in_axes) + _axes((kwargs,), batch_axis)
    else:
        several = (*inputs, kwargs) if kwargs else inputs
        axes = _axes(several, batch_axis if in_axes == "batch_axis" else in_axes)
    axes += _axes((shared,), None)
    kinds = [(a is not None and x.ndim > 0) if is_array(x) else None for x, a in zip(leaves, axes, strict=True)]
    partition, batched, rest = Partition.of(leaves, treedef, kinds)
    return partition, tuple(a for a, kind in zip(axes, kinds, strict=True) if kind and a is not None), batched, rest


def _own(x: Any) -> Any:
    """As an array that nobody changes: those of NumPy are copied, for JAX may go on using their memory."""
    return jnp.array(x) if isinstance(x, np.ndarray) else jnp.asarray(x)


def _axes(inputs: tuple[Any, ...], in_axes: Any) -> list[int | None]:
    """An axis, or None, for every leaf of the inputs, of which `in_axes` is a prefix, as in `jax.vmap`."""
    axes: list[int | None] = []
    prefix = tuple(in_axes) if isinstance(in_axes, list) else in_axes
    try:
        jax.tree.map(
            lambda a, part: axes.extend([a] * len(jax.tree.leaves(part))), prefix, inputs, is_leaf=lambda a: a is None
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"jacobian: in_axes={in_axes!r} does not fit the {len(inputs)} inputs; give an axis for all, or one an "
            "input (or a pytree of them that the input begins with), None for what all examples share."
        ) from error
    return axes
