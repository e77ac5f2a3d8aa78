"""The Jacobian of a JAX function by one plain backward pass a row, for `differential` to compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from differential import Dense, Framework

JAX = Framework(jnp.asarray, np.asarray, least=1e-12)


def dense(rows: Callable[[list[Any]], Any], leaves: list[Any]) -> Dense:
    """Of ``rows(leaves)``, the state as (B, n_b), by one backward pass after another, none of them batched.

    By forward passes, where a loop until convergence has no backward pass.
    """
    try:
        matrix, B = _backward(rows, leaves)
    except ValueError as error:
        if "while_loop" not in str(error):
            raise
        columns = [_forward(rows, leaves, i) for i in range(len(leaves))]
        matrix, B = np.concatenate(columns).T, len(jax.eval_shape(rows, leaves))
    return Dense(matrix, B, tuple(leaf.size for leaf in leaves))


def _backward(rows: Callable[[list[Any]], Any], leaves: list[Any]) -> tuple[np.ndarray, int]:
    """The Jacobian, and the number of examples."""
    state, pull = jax.vjp(rows, leaves)
    units = jnp.eye(state.size, dtype=state.dtype).reshape(-1, *state.shape)
    found = jax.jit(lambda pull, units: jax.lax.map(lambda u: pull(u)[0], units))(pull, units)
    return np.concatenate([np.asarray(g, np.float64).reshape(len(units), -1) for g in found], 1), len(state)


def _forward(rows: Callable[[list[Any]], Any], leaves: list[Any], i: int) -> np.ndarray:
    """The derivatives by the numbers of one parameter, (size, n)."""
    one = lambda leaf: rows([*leaves[:i], leaf, *leaves[i + 1 :]])  # noqa: E731
    units = jnp.eye(leaves[i].size).reshape(-1, *leaves[i].shape)
    found = jax.lax.map(lambda t: jax.jvp(one, (leaves[i],), (t,))[1], units)
    return np.asarray(found).reshape(len(units), -1)
