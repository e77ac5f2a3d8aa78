"""Compiled steps, static in the model alone: Jacobians of one model share them, whatever the number of probes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from traceest_adapters.jax.model import Model
from traceest_adapters.jax.per_example import factors
from traceest_adapters.jax.program import registered


@registered
@partial(jax.jit, static_argnums=0)
def linearise_reverse(model: Model, trained: Any, fixed: Any, inputs: Any) -> Any:
    """The pullback of the whole batch's state, residuals included."""
    return jax.vjp(lambda p: model.rows(p, fixed, inputs), trained)[1]


@registered
@partial(jax.jit, static_argnums=0)
def linearise_forward(model: Model, trained: Any, fixed: Any, inputs: Any) -> Any:
    """The pushforward of the whole batch's state, residuals included."""
    return jax.linearize(lambda p: model.rows(p, fixed, inputs), trained)[1]


@registered
@partial(jax.jit, static_argnums=0)
def plain(model: Model, trained: Any, fixed: Any, inputs: Any, u: Any) -> tuple[Any, list[Any], Any]:
    """One pass of the model as it is, u of (B, n_b): the state, Jᵀu by each parameter, the largest entry of each."""
    state, vjp = jax.vjp(lambda p: model.rows(p, fixed, inputs), trained)
    grads = vjp(u)[0]
    return state, grads, jnp.stack([jnp.max(jnp.abs(g), initial=0).astype(jnp.float32) for g in grads])


@registered
@partial(jax.jit, static_argnums=2)
def vjps(vjp: Any, U: Any, mapped: bool = True) -> Any:
    """(c, B, n_b) → a (c, …) gradient for each parameter."""
    return over(mapped)(vjp, U)[0]


def over(mapped: bool) -> Callable[[Callable[..., Any], Any], Any]:
    """All probes at once, or, for what has no batching rule or a wrong one, one after another."""
    return (lambda f, xs: jax.vmap(f)(xs)) if mapped else jax.lax.map


@jax.jit
def columns(pieces: list[list[Any]]) -> Any:
    """Pieces of (c, …) for each parameter → (P, probes of all pieces), in one pass over what is large."""
    dtype = jnp.promote_types(jnp.result_type(*pieces[0]), jnp.float32)
    rows = lambda g: jnp.reshape(g, (len(g), -1)).astype(dtype)  # noqa: E731
    return jnp.concatenate([jnp.concatenate(list(map(rows, leaf))).T for leaf in zip(*pieces, strict=True)])


@registered
@partial(jax.jit, static_argnums=2)
def matmat(jvp: Any, T: Any, mapped: bool = True) -> Any:
    """A (c, …) tangent for each parameter → (n, c)."""
    out = over(mapped)(jvp, T)
    return jnp.reshape(out, (out.shape[0], -1)).T


@registered
@partial(jax.jit, static_argnums=3)
def gram_matmat(vjp: Any, jvp: Any, U: Any, mapped: bool = True) -> Any:
    """(c, B, n_b) → (n, c)."""
    out = over(mapped)(lambda u: jvp(*vjp(u)), U)
    return jnp.reshape(out, (out.shape[0], -1)).T


@registered
@partial(jax.jit, static_argnums=(0, 1, 2, 7))
def block_sqnorms(
    model: Model,
    group: tuple[int, ...],
    lanes: int,
    trained: Any,
    fixed: Any,
    examples: Any,
    U: Any,
    mapped: bool = True,
) -> Any:
    """(c, B, n_b) → (B, c), of the parameters in `group`: a scan over examples, the probes mapped inside."""
    passes = _of_one(model, group, trained, fixed, mapped)
    return scanned(lambda x: squares(passes(*x)[1]), (examples, jnp.swapaxes(U, 0, 1)), lanes)


@registered
@partial(jax.jit, static_argnums=(0, 1, 2, 7))
def block_grads(
    model: Model,
    group: tuple[int, ...],
    lanes: int,
    trained: Any,
    fixed: Any,
    examples: Any,
    U: Any,
    mapped: bool = True,
) -> Any:
    """Gradients of the parameters in `group`, (B, c, P_group)."""
    passes = _of_one(model, group, trained, fixed, mapped)
    return scanned(lambda x: flat(passes(*x)[1]), (examples, jnp.swapaxes(U, 0, 1)), lanes)


@registered
@partial(jax.jit, static_argnums=(0, 1, 2, 8))
def signed_grads(
    model: Model,
    group: tuple[int, ...],
    lanes: int,
    trained: Any,
    fixed: Any,
    examples: Any,
    U: Any,
    signs: Any,
    mapped: bool = True,
) -> tuple[Any, list[Any]]:
    """Every example's state, and Σ_b s_b J_bᵀu_b of one probe u, (1, B, n_b), of each parameter in `group`.

    By the passes that `block_grads` makes.
    """
    passes = _of_one(model, group, trained, fixed, mapped)

    def add(total: list[Any], x: Any) -> tuple[list[Any], Any]:
        example, u, s = x
        state, grads = passes(example, u)
        return [t + s.astype(t.dtype) * g[0] for t, g in zip(total, grads, strict=True)], state

    def run(xs: Any) -> tuple[list[Any], Any]:
        return jax.lax.scan(add, [jnp.zeros_like(trained[i]) for i in group], xs)

    xs = examples, jnp.swapaxes(U, 0, 1), signs
    runs = jax.tree.map(lambda x: jnp.reshape(x, (lanes, -1, *x.shape[1:])), xs)
    totals, states = jax.vmap(run)(runs) if lanes > 1 else jax.tree.map(lambda x: x[None], run(xs))
    return jnp.reshape(states, (-1, states.shape[-1])), [jnp.sum(g, 0) for g in totals]


def _of_one(
    model: Model, group: tuple[int, ...], trained: Any, fixed: Any, mapped: bool
) -> Callable[[Any, Any], tuple[Any, list[Any]]]:
    """An example's state, and its gradients for its probes, (c, n_b) → (c, …), by each parameter in `group`."""

    def one(example: Any, u: Any) -> tuple[Any, list[Any]]:
        def row(chosen: list[Any]) -> Any:
            everything = list(trained)
            for i, leaf in zip(group, chosen, strict=True):
                everything[i] = leaf
            return model.row(everything, fixed, example)

        state, vjp = jax.vjp(row, [trained[i] for i in group])
        return state, over(mapped)(vjp, u)[0]

    return one


@registered
@partial(jax.jit, static_argnums=(0, 1))
def states(model: Model, lanes: int, trained: Any, fixed: Any, examples: Any) -> Any:
    """Every example's state, computed by itself: (B, n_b)."""
    return scanned(lambda example: model.row(trained, fixed, example), examples, lanes)


@jax.jit
def apart(alone: Any, together: Any) -> Any:
    """How far states are from those of the batch: the largest difference, and the largest entry."""
    both = jnp.isfinite(alone) & jnp.isfinite(together)  # NaN in both is for the first product to report
    alike = both | ~(jnp.isfinite(alone) | jnp.isfinite(together))
    difference = jnp.where(both, jnp.abs(alone - together), jnp.where(alike, 0, jnp.inf))
    return jnp.stack([jnp.max(difference), jnp.max(jnp.where(both, jnp.abs(together), 0))])


def scanned(f: Callable[[Any], Any], xs: Any, lanes: int) -> Any:
    """`f` of one entry after another; in that many runs side by side, a run on each device that has a part of `xs`."""
    if lanes == 1:
        return jax.lax.map(f, xs)
    runs = jax.tree.map(lambda x: jnp.swapaxes(jnp.reshape(x, (lanes, -1, *x.shape[1:])), 0, 1), xs)
    out = jax.lax.map(jax.vmap(f), runs)
    return jax.tree.map(lambda y: jnp.reshape(jnp.swapaxes(y, 0, 1), (-1, *y.shape[2:])), out)


@partial(jax.jit, static_argnums=(1, 2, 3))
def leading(V: Any, shapes: tuple[tuple[int, ...], ...], dtypes: tuple[Any, ...], fill: int) -> list[Any]:
    """(rows, k) → arrays (k + fill, *shape), one behind the other along the rows, with so many zero columns added."""
    V, leaves, start = jnp.pad(V, ((0, 0), (0, fill))), [], 0
    for shape, dtype in zip(shapes, dtypes, strict=True):
        rows = V[start : start + prod(shape)]
        leaves.append(jnp.reshape(rows.T, (V.shape[1], *shape)).astype(dtype))
        start += len(rows)
    return leaves


def probes_first(V: Any, B: int) -> Any:
    """(n, c) → (c, B, n_b)."""
    return jnp.moveaxis(jnp.reshape(V, (B, -1, V.shape[1])), -1, 0)


@jax.jit
def inner(a: Any, b: Any) -> Any:
    """(B, c, P), (B, c, P) → (B, c, B, c)."""
    return factors.inner(a, b)


def inner_products(
    of: Callable[[Any], Any], inner: Callable[[Any, Any], Any], pieces: list[Any], at_once: bool
) -> list[list[Any]]:
    """``inner(of(a), of(b))``, (B, c, B, c), of each piece with itself and those after it.

    With what `of` gives for all pieces held at once, or for two at a time and computed again for each first one.
    """
    held = [of(piece) for piece in pieces] if at_once else None
    G: list[list[Any]] = []
    for i, piece in enumerate(pieces):
        g = of(piece) if held is None else held[i]
        later = map(of, pieces[i + 1 :]) if held is None else held[i + 1 :]
        G.append([inner(g, g), *(inner(g, h) for h in later)])
    return G


@partial(jax.jit, static_argnums=(0, 1))
def assembled(k: int, dtype: Any, pairs: list[list[Any]]) -> Any:
    """`inner_products` as one array, (B, k, B, k)."""
    n = len(pairs)
    pair = lambda i, j: pairs[i][j - i] if j >= i else jnp.transpose(pairs[j][i - j], (2, 3, 0, 1))  # noqa: E731
    rows = [jnp.concatenate([pair(i, j) for j in range(n)], 3) for i in range(n)]
    return jnp.concatenate(rows, 1)[:, :k, :, :k].astype(dtype)


def flat(grads: list[Any]) -> Any:
    """(c, P) of a list of (c, …)."""
    dtype = jnp.promote_types(jnp.result_type(*grads), jnp.float32)
    return jnp.concatenate([jnp.reshape(g, (g.shape[0], -1)).astype(dtype) for g in grads], axis=1)


def squares(grads: list[Any]) -> Any:
    """Σ over all parameters of the squares, (c,)."""
    wide = [g.astype(jnp.promote_types(g.dtype, jnp.float32)) for g in grads]
    return sum(jnp.sum(jnp.square(g), axis=tuple(range(1, g.ndim))) for g in wide)
