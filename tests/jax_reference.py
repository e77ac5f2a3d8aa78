"""Every product of a JAX Jacobian, against one plain backward pass a row."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import traceest as te

RTOL = 1e-5
"""Of a product's largest number. What is wrong is wrong by much more, float64's own error is much less."""

CLEAR = (TypeError, ValueError, NotImplementedError, AttributeError)


class Outcome(NamedTuple):
    """Of one route: a number that is right, or an error."""

    route: str
    wrong: str | None = None
    refused: str | None = None


class Dense(NamedTuple):
    """The Jacobian as a matrix (n, P), of B blocks, and how many columns each parameter has."""

    matrix: np.ndarray
    B: int
    sizes: tuple[int, ...]


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


def normal(seed: int, *shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


Route = tuple[str, Callable[[Any], Any], np.ndarray]


def routes(D: Dense, ks: tuple[int, ...] = (1, 2, 3), statistics: bool = False) -> Iterator[Route]:
    """Names, products, and what these should be, with so many probes each."""
    A, B = D.matrix, D.B
    n, P = A.shape
    for k in ks:
        V, W = normal(k, n, k), normal(k + 1, P, k)
        v = np.asarray(V)
        G = np.einsum("bnp,bnk->bkp", A.reshape(B, -1, P), v.reshape(B, -1, k))
        yield f"block_sqnorms, {k}", lambda J, V=V: J.block_sqnorms(V), np.square(G).sum(2)
        yield f"rmatmat, {k}", lambda J, V=V: J.rmatmat(V), A.T @ v
        yield f"sketch_gram, {k}", lambda J, V=V: J.sketch_gram(V), np.einsum("bip,cjp->bicj", G, G)
        yield f"grouped_gram, {k}", lambda J, V=V: J.grouped_gram(V, groups(D)), _by_group(D, G)
        yield f"block_rmatmat, {k}", lambda J, V=V: J.block_rmatmat(V), G
        yield f"gram_matmat, {k}", lambda J, V=V: J.gram_matmat(V), A @ (A.T @ v)
        yield f"matmat, {k}", lambda J, W=W: J.matmat(W), A @ np.asarray(W)
    if statistics:
        yield "exact", lambda J: te.exact(te.gram(J)).value, np.square(A).sum()
        norm = np.linalg.norm(A @ A.T)
        yield "norm", lambda J: te.frobenius_norm(te.gram(J), n_probes=n // B, rng=0).value, norm


def groups(D: Dense) -> tuple[tuple[int, ...], ...]:
    """Every second parameter, and the others."""
    both = tuple(tuple(range(start, len(D.sizes), 2)) for start in (0, 1))
    return tuple(group for group in both if group)


def _by_group(D: Dense, G: np.ndarray) -> np.ndarray:
    parts = np.split(G, np.cumsum(D.sizes)[:-1], axis=2)
    return np.stack([sum(np.einsum("bip,cjp->bicj", parts[i], parts[i]) for i in group) for group in groups(D)])


def compare(make: Callable[[], Any], D: Dense, every: Iterator[Route]) -> list[Outcome]:
    """What every route of ``make()`` gives; errors raised are outcomes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            J = make()
        except CLEAR as error:
            return [Outcome("make", refused=reason(error))]
        except Exception as error:  # from deep inside, which explains nothing
            return [Outcome("make", wrong=reason(error))]
        if J.shape != D.matrix.shape:
            return [Outcome("make", wrong=f"shape {J.shape}, not {D.matrix.shape}")]
        return [_outcome(J, *route) for route in every]


def _outcome(J: Any, name: str, product: Callable[[Any], Any], expected: np.ndarray) -> Outcome:
    try:
        got = np.asarray(product(J))
    except CLEAR as error:
        return Outcome(name, refused=reason(error))
    except Exception as error:
        return Outcome(name, wrong=reason(error))
    if got.shape != expected.shape:
        return Outcome(name, wrong=f"shape {got.shape}, not {expected.shape}")
    error, scale = float(np.max(np.abs(got - expected), initial=0.0)), float(np.max(np.abs(expected), initial=0.0))
    return Outcome(name, wrong=None if error <= RTOL * scale + 1e-12 else f"off by {error:.2g} of {scale:.2g}")


def reason(error: Exception) -> str:
    """The kind of an error and the first words of what it says."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:70]}"
