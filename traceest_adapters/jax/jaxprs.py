"""What a jaxpr tells about a function, loops and branches inside included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp


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
    sizes = [a.size * a.dtype.itemsize for a in made if hasattr(a, "size")]
    return max([0, *sizes, *map(largest, inner(jaxpr))])


def coarsest(jaxpr: Any) -> float:
    """The largest rounding, relative, of the floating values that are made in it."""
    made = [out.aval.dtype for eqn in jaxpr.eqns for out in eqn.outvars if hasattr(out.aval, "dtype")]
    rounded = [float(jnp.finfo(dtype).eps) for dtype in set(made) if jnp.issubdtype(dtype, jnp.floating)]
    return max([0.0, *rounded, *map(coarsest, inner(jaxpr))])


def inner(jaxpr: Any) -> Iterator[Any]:
    """The jaxprs that its equations call."""
    for eqn in jaxpr.eqns:
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield getattr(value, "jaxpr", value)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")
