"""What a jaxpr tells about a function, loops and branches inside included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax


def has(jaxpr: Any, primitive: str) -> bool:
    """Whether there is such an equation in it."""
    return any(eqn.primitive.name == primitive or any(has(j, primitive) for j in inner_of(eqn)) for eqn in jaxpr.eqns)


def branches(jaxpr: Any) -> bool:
    """Whether something in it is chosen by value."""
    return has(jaxpr, "cond")


def largest(jaxpr: Any) -> int:
    """Bytes of the largest value that is made in it."""
    made = [out.aval for eqn in jaxpr.eqns for out in eqn.outvars]
    sizes = [a.size * a.dtype.itemsize for a in made if hasattr(a, "size")]
    return max([0, *sizes, *(largest(j) for eqn in jaxpr.eqns for j in inner_of(eqn))])


def inner_of(eqn: Any) -> Iterator[Any]:
    """The jaxprs that an equation calls."""
    for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
        if _is_jaxpr(value):
            yield getattr(value, "jaxpr", value)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")
