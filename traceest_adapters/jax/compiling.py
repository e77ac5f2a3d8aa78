"""Programs for a single run, or for little data, are compiled without optimising them: in half the time, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from traceest_adapters.jax.model import traced
from traceest_adapters.jax.program import registered


def run(f: Callable[..., Any], static: tuple[Any, ...], arrays: tuple[Any, ...], *, optimise: bool) -> Any:
    """``f(*static, *arrays)`` under `jax.jit`; inside of a trace as it is, for options are for whole programs."""
    if traced(arrays):
        return f(*static, *arrays)
    optimise = optimise or jax.default_backend() != "cpu"
    try:
        return _jitted(f, len(static), optimise)(*static, *arrays)
    except ValueError as error:  # a static function may close over what is traced, which nothing tells beforehand
        if optimise or "compiler_options" not in str(error):
            raise
        return _jitted(f, len(static), True)(*static, *arrays)


def few(arrays: Any, most: int) -> bool:
    """Whether they are at most so many numbers that working on them takes less time than a good program for it."""
    return sum(jnp.size(x) for x in jax.tree.leaves(arrays)) <= most


@registered
@lru_cache(maxsize=256)
def _jitted(f: Callable[..., Any], n_static: int, optimise: bool) -> Callable[..., Any]:
    options = None if optimise else {"xla_backend_optimization_level": 0}
    return jax.jit(f, static_argnums=tuple(range(n_static)), compiler_options=options)
