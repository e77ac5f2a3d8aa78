"""What a jaxpr tells about a function, loops and branches inside included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr


def has(jaxpr: Any, name: str) -> bool:
    """Whether there is an equation of this primitive in it."""
    return any(eqn.primitive.name == name for eqn in jaxpr.eqns) or any(has(inside, name) for inside in inner(jaxpr))


def branches(jaxpr: Any) -> bool:
    """Whether something in it is chosen by value."""
    return has(jaxpr, "cond")


def mesh(jaxpr: Any) -> Any:
    """The devices that a `shard_map` in it names, or None."""
    named = (eqn.params["mesh"] for eqn in jaxpr.eqns if eqn.primitive.name == "shard_map")
    inside = (found for jaxpr in inner(jaxpr) if (found := mesh(jaxpr)) is not None)
    return next((m for m in named if isinstance(m, jax.sharding.Mesh)), None) or next(inside, None)


def largest(jaxpr: Any) -> int:
    """Bytes of the largest value that is made in it."""
    made = [out.aval for eqn in jaxpr.eqns for out in eqn.outvars]
    sizes = [a.size * a.dtype.itemsize for a in made if isinstance(a, ShapedArray)]
    return max([0, *sizes, *map(largest, inner(jaxpr))])


def coarsest(jaxpr: Any) -> float:
    """The largest rounding, relative, of the floating values that are made in it."""
    made = [out.aval.dtype for eqn in jaxpr.eqns for out in eqn.outvars if isinstance(out.aval, ShapedArray)]
    rounded = [float(jnp.finfo(dtype).eps) for dtype in set(made) if jnp.issubdtype(dtype, jnp.floating)]
    return max([0.0, *rounded, *map(coarsest, inner(jaxpr))])


def inner(jaxpr: Any) -> Iterator[Any]:
    """The jaxprs that its equations call."""
    for eqn in jaxpr.eqns:
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield value.jaxpr if isinstance(value, ClosedJaxpr) else value


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, (ClosedJaxpr, Jaxpr))
