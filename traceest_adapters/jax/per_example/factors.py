"""Per-example gradients of one weight, kept as the factors that they are made of, and their inner products.

The gradient of a weight for example b and probe i is a sum of outer products over positions, g = Σ_t l_t r_tᵀ: l is the
derivative by the result of the equation, r the other operand. So ⟨g, g′⟩ = Σ_{t,t′} ⟨l_t, l′_{t′}⟩⟨r_t, r′_{t′}⟩ (the
ghost form), or g is formed, some examples or rows at a time (the direct form); whichever costs less is taken.

References: Goodfellow (2015), arXiv 1510.01799, for one position; Li et al. (2022), arXiv 2110.05679, §4, for several.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from traceest_adapters import _memory as memory
from traceest_adapters.jax.per_example.rules import Use, channels_last, patches


class Outer(NamedTuple):
    """g = Σ_t l_t r_tᵀ of one example, in each of G groups; a factor that all probes share has 1 for c.

    Of a table that is looked up, r_t is a unit vector, and `right` the number of its row, (1, T), or −1 for none.
    """

    left: Any  # (c or 1, T, G, o)
    right: Any  # (c or 1, T, G, i)
    table: int | None = None

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """(c_left, c_right, T, G, o, i)."""
        i = self.right.shape[-1] if self.table is None else self.table
        return (*_probes(self), *self.left.shape[-3:], i)


def _probes(f: Outer) -> tuple[int, int]:
    return f.left.shape[-4], 1 if f.table is not None else f.right.shape[-4]


# -- factors from what was kept -----------------------------------------------------------------------------
def outer(use: Use, x: Any, d: Any, dtype: Any) -> Outer:
    """The factors of one example, from the operand (*outer, *x) and the derivatives by the result (c, *outer, *z)."""
    n = len(use.outer)
    if use.conv is not None:
        x, d = (_mapped(f, use, lead)(a) for f, a, lead in ((patches, x, n), (channels_last, d, n + 1)))
    groups = sorted(use.groups)
    out, into = sorted(use.out, key=_last_if_none), sorted(use.into, key=_last_if_none)
    left = _arranged(d, 1, use.alone[1], [z for _, z in use.rows], [z for *_, z in groups], [z for _, z in out])
    left = left.astype(dtype)
    if use.table is not None:
        words = jnp.transpose(x, [i for i, _ in use.rows]).reshape(1, -1)
        return Outer(left * (words >= 0)[..., None, None], words, use.table)
    right = _arranged(x, 0, use.alone[0], [i for i, _ in use.rows], [i for _, i, _ in groups], [i for _, i in into])
    return Outer(left, right[None].astype(dtype))


def _last_if_none(pair: tuple[int | None, int]) -> tuple[bool, int]:
    axis, _ = pair
    return axis is None, axis or 0


def _mapped(f: Callable[..., Any], use: Use, lead: int) -> Callable[[Any], Any]:
    one = partial(f, conv=use.conv)
    for _ in range(lead):
        one = jax.vmap(one)
    return one


def _arranged(a: Any, lead: int, alone: Any, rows: list[int], groups: list[int], last: list[int]) -> Any:
    """(…, positions, groups, entries), once the axes in `alone` are summed over."""
    a = jnp.sum(a, axis=tuple(lead + i for i in alone), keepdims=True)
    parts = ([*rows, *alone], groups, last)
    a = jnp.transpose(a, (*range(lead), *(lead + i for part in parts for i in part)))
    shape, start = list(a.shape[:lead]), lead
    for part in parts:
        shape.append(reduce(int.__mul__, a.shape[start : start + len(part)], 1))
        start += len(part)
    return jnp.reshape(a, shape)


def merged(uses: list[Use], factors: list[Outer]) -> Outer:
    """The sum of a parameter's gradients over all its uses: more positions."""
    if len(factors) == 1:
        return _balanced(factors[0])
    if all(f.table is not None for f in factors):
        return Outer(
            _joined([f.left for f in factors]), jnp.concatenate([f.right for f in factors], -1), factors[0].table
        )
    dense = [_balanced(_dense(f)) for f in factors]
    sides = [
        (f.left, f.right) if use.layout == uses[0].layout else (f.right, f.left)
        for use, f in zip(uses, dense, strict=True)
    ]
    return Outer(*(_joined(list(side)) for side in zip(*sides, strict=True)))


def _dense(f: Outer) -> Outer:
    if f.table is None:
        return f
    return Outer(f.left, jax.nn.one_hot(f.right, f.table, dtype=f.left.dtype)[:, :, None, :])


def _joined(parts: list[Any]) -> Any:
    c = max(len(x) for x in parts)
    return jnp.concatenate([jnp.broadcast_to(x, (c, *x.shape[1:])) for x in parts], axis=1)


def _balanced(f: Outer) -> Outer:
    """The same with its right factor of size one, so that neither's square leaves the range of numbers by itself."""
    if f.table is not None:
        return f
    s = largest(f.right)
    return Outer(f.left * s, f.right / s)


def largest(x: Any) -> Any:
    """max|x|, or one for lack of any other: no square of what is divided by it leaves the range of numbers."""
    s = jax.lax.stop_gradient(jnp.max(jnp.abs(x), initial=0.0))
    return jnp.where((s > 0) & (s < jnp.inf), s, 1.0).astype(x.dtype)


# -- norms ----------------------------------------------------------------------------------------------------
def sqnorms(f: Outer, ghost: bool | None = None) -> Any:
    """‖g_i‖² of one example, (c,); by the form that costs less, or as `ghost` says."""
    if f.table is None and f.sizes[2] == 1:
        return jnp.sum(jnp.sum(jnp.square(f.left), -1) * jnp.sum(jnp.square(f.right), -1), (1, 2))
    if ghost_is_cheaper(f) if ghost is None else ghost:
        squares = jnp.sum(_pairs(f.left) * _pairs_of_right(f), (1, 2, 3))
        return jnp.maximum(squares, 0)  # where everything cancels, rounding may leave less
    return jnp.sum(jnp.square(formed(f)), (1, 2, 3))


def numbers(f: Outer) -> int:
    """How many numbers the norms of one example take at a time."""
    cl, cr, T, G, o, i = f.sizes
    c = max(cl, cr)
    held = T * G * (cl * o + (cr * i if f.table is None else 1))
    if f.table is None and T == 1:
        return held
    return held + (2 * c * G * T * T if ghost_is_cheaper(f) else c * G * o * i)


def ghost_is_cheaper(f: Outer) -> bool:
    """Whether norms cost less where no gradient is formed."""
    cl, cr, T, _, o, i = f.sizes
    c = max(cl, cr)
    right, product = (cr * i, c * T * o * i) if f.table is None else (0, c * T * o)
    return T * T * (cl * o + right + 4 * c) <= product + 4 * c * o * i


def _pairs(x: Any) -> Any:
    return jnp.einsum("ctgo,csgo->cgts", x, x)


def _pairs_of_right(f: Outer) -> Any:
    if f.table is None:
        return _pairs(f.right)
    return (f.right[0][:, None] == f.right[0][None, :]).astype(f.left.dtype)


def formed(f: Outer) -> Any:
    """g: (c, G, o, i)."""
    if f.table is not None:
        at = jnp.where(f.right[0] < 0, f.table, f.right[0])
        zeros = jnp.zeros((len(f.left), f.table, f.left.shape[-1]), f.left.dtype)
        return zeros.at[:, at].add(f.left[:, :, 0], mode="drop")[:, None].swapaxes(2, 3)
    c_left, c_right, T, _, o, i = f.sizes
    left, right, c = f.left, f.right, max(c_left, c_right)
    # Of a factor that all probes share XLA makes g the other way around, and turns it; a copy for each probe is less.
    if (o if c_right < c else i) >= T:
        left, right = (jnp.broadcast_to(x, (c, *x.shape[1:])) for x in (left, right))
    left, right = (x[0] if len(x) == 1 else x for x in (left, right))
    names = [("c" if x.ndim == 4 else "") + "tg" for x in (left, right)]
    both = "c" if "c" in names[0] + names[1] else ""
    g = jnp.einsum(f"{names[0]}o,{names[1]}i->{both}goi", left, right)
    return g if both else g[None]


def signed(f: Outer, signs: Any, y: Any) -> Any:
    """Σ_b s_b g_b y of all examples' factors, for one probe: (G, o)."""
    if f.table is None:
        along = f.right[:, 0] @ y
    else:  # of an example's factors, a row that is not there has zeros on the left
        along = y.at[f.right[:, 0]].get(mode="clip")[..., None]
    return jnp.einsum("btgo,btg->go", f.left[:, 0], along * signs.astype(y.dtype)[:, None, None])


def along(use: Use, g: Any, y: Any) -> Any:
    """G y of a gradient in the shape of its weight, as `signed` has it: (G, o)."""
    g = jnp.reshape(g, use.shape)
    n = 1 if use.conv is None else use.conv.groups
    if n > 1:  # a convolution in groups has them among its channels, before those of one group
        axis: int = next(a for a, _ in use.out if a is not None)
        g = jnp.moveaxis(jnp.reshape(g, (*g.shape[:axis], n, -1, *g.shape[axis + 1 :])), axis, 0)
    shift = int(n > 1)
    groups = [*range(shift), *sorted(shift + axis for axis, *_ in use.groups if axis >= 0)]
    out, into = (sorted(shift + a for a, _ in pairs if a is not None) for pairs in (use.out, use.into))
    y = jnp.reshape(y, [g.shape[a] for a in into])
    found = jnp.tensordot(g, y, (into, list(range(len(into)))))  # with no copy of g in another order
    left = sorted((*groups, *out))
    order = [left.index(a) for a in (*groups, *out)]
    return jnp.reshape(jnp.transpose(found, order), (prod(g.shape[a] for a in groups), -1))


# -- Gram matrices ------------------------------------------------------------------------------------------------
def gram(P: Outer, Q: Outer) -> Any:
    """⟨g_{b,i}, g_{c,j}⟩ for the probes i of P and j of Q, each of all examples of a batch: (B, c, C, d)."""
    held = _ghost_gram(P, Q)
    if held is None:
        numbers = sum(max(f.sizes[:2]) * len(f.left) * prod(f.sizes[3:]) for f in (P, Q))
        return _direct(P, Q, numbers * P.left.dtype.itemsize)
    if P.table is None and P.sizes[2:4] == Q.sizes[2:4] == (1, 1):  # one position, one group
        return inner(P.left, Q.left) * inner(P.right, Q.right)
    one_by_one = None if P.table is None else 1  # XLA turns a batch of these into one product that is too large
    return over_examples(partial(_ghost_row, Q), P, held, one_by_one)


def _ghost_gram(P: Outer, Q: Outer) -> int | None:
    """Bytes that the ghost form holds for an example, where it costs less than the direct one; else None."""
    B, C, (cl, cr, T, G, o, i) = len(P.left), len(Q.left), P.sizes
    (dl, dr, S, *_), itemsize = Q.sizes, P.left.dtype.itemsize
    c, d = max(cl, cr), max(dl, dr)
    if P.table is None:
        ghost, held = T * B * S * C * (cl * dl * o + cr * dr * i + 4 * c * d), 2 * c * d * G * T * S * C
        direct = c * d * B * C * o * i + (c * B * T + d * C * S) * o * i
    else:
        ghost, held = c * B * C * S * o * (T + d), (T + c * o) * C * S
        direct = c * d * B * C * o * i + (c * B * T + d * C * S) * o
    return held * itemsize if ghost <= direct and held * itemsize <= memory.budget() else None


def better_formed(f: Outer) -> bool:
    """Whether Gram matrices of these with others of their kind take less work from the gradients."""
    return _ghost_gram(f, f) is None


def _ghost_row(Q: Outer, f: Outer) -> Any:
    """One example against all: (c, B, d)."""
    if f.table is not None:  # the rows of g at the words of all examples, and these with their own derivatives
        same = (f.right[0][:, None, None] == Q.right[:, 0]).astype(f.left.dtype)  # (T, B, T′)
        rows = jnp.einsum("cto,tCs->cCso", f.left[:, :, 0], same)
        return jnp.einsum("cCso,Cdso->cCd", rows, Q.left[:, :, :, 0])
    left, right = (jnp.einsum("ctgo,Cdsgo->gctCds", x, y) for x, y in ((f.left, Q.left), (f.right, Q.right)))
    return jnp.sum(left * right, (0, 2, 5))


def _direct(P: Outer, Q: Outer, size: int) -> Any:
    """Sum of the inner products of rows of g, as many rows at a time as may be held."""
    tiles = parts(P.left.shape[-1], -(-size // max(1, memory.budget() // 2)))

    def add(G: Any, tile: Any) -> Any:
        return G + inner(rows(P, tiles, tile), rows(Q, tiles, tile)), None

    probes = [max(f.sizes[:2]) for f in (P, Q)]
    start = jnp.zeros((len(P.left), probes[0], len(Q.left), probes[1]), P.left.dtype)
    return jax.lax.scan(add, start, jnp.arange(tiles))[0]


def parts(o: int, least: int) -> int:
    """Into how many equal parts o rows go: `least`, or a few more; each by itself, if these are too many."""
    return next(n for n in range(1, o + 1) if n == o or (o % n == 0 and n >= least))


def rows(f: Outer, tiles: int, tile: Any) -> Any:
    """One of `tiles` parts of the gradients' rows o, of every example: (B, c, G, o / tiles, i), of a table turned."""
    o = f.left.shape[-1]
    left = f.left if tiles == 1 else jax.lax.dynamic_slice_in_dim(f.left, tile * (o // tiles), o // tiles, axis=-1)
    if f.table is None:
        return jax.vmap(formed)(f._replace(left=left))
    return jax.vmap(lambda left, right: formed(Outer(left, right, f.table)))(left, f.right)


def inner(p: Any, q: Any) -> Any:
    """⟨p_{b,c}, q_{B,d}⟩ of whatever follows: (b, c, …), (B, d, …) → (b, c, B, d).

    As one product of two matrices: XLA takes up to five times as long where it is told of several axes.
    """
    (b, c), (B, d) = p.shape[:2], q.shape[:2]
    return jnp.reshape(jnp.reshape(p, (b * c, -1)) @ jnp.reshape(q, (B * d, -1)).T, (b, c, B, d))


def over_examples(f: Callable[[Any], Any], xs: Any, size: int, most: int | None = None) -> Any:
    """`f` of every example, as many at a time as take `most` bytes, at `size` bytes each."""
    table = xs.table if isinstance(xs, Outer) else None
    arrays = (xs.left, xs.right) if isinstance(xs, Outer) else xs
    one = (lambda a: f(Outer(a[0], a[1], table))) if isinstance(xs, Outer) else f
    B = jax.tree.leaves(arrays)[0].shape[0]
    at_once = max(1, (memory.budget() // 4 if most is None else most) // max(1, size))
    return jax.vmap(one)(arrays) if at_once >= B else jax.lax.map(one, arrays, batch_size=at_once)
