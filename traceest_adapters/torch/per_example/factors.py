"""Per-example gradients of one weight, kept as the factors that they are made of, and their inner products.

The gradient of a weight matrix for example b and probe i is a sum of outer products over the positions t that the
example has in the layer, g = Σ_t l_t r_tᵀ: l is the derivative by the layer's output, r its input. So
⟨g, g′⟩ = Σ_{t,t′} ⟨l_t, l′_{t′}⟩⟨r_t, r′_{t′}⟩ (the ghost form), or g is formed, a tile at a time (the direct form);
whichever costs less is taken.

References: Goodfellow (2015), arXiv 1510.01799, for one position; Li et al. (2022), arXiv 2110.05679, §4, for several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from traceest_adapters import _memory as memory
from traceest_adapters.torch.per_example.lookup import Lookup, lookup_cross_gram, lookup_gram, lookup_sqnorms


class Outer(NamedTuple):
    """g = Σ_t l_t r_tᵀ in each of G groups of channels; a factor that all probes share has 1 for c."""

    left: torch.Tensor  # (c or 1, B, T, G, o)
    right: torch.Tensor  # (c or 1, B, T, G, i)


class Vector(NamedTuple):
    """g itself, of a parameter that is no larger than the layer's output."""

    g: torch.Tensor  # (c, B, F)


Factor = Outer | Lookup | Vector
Factors = Callable[[slice], Any]
"""The factor of a run of examples, always of the same kind."""


def merge(factors: list[Any]) -> Factor:
    """The sum of a parameter's gradients over all its uses: more positions.

    Raises
    ------
    ValueError
        If they are of kinds that cannot be added here.
    """
    if len(factors) == 1:
        return factors[0]
    if all(isinstance(f, Vector) for f in factors):
        return Vector(torch.stack([f.g for f in factors]).sum(0))
    if all(isinstance(f, Lookup) for f in factors):
        words, right = zip(*((f.words, f.right) for f in factors), strict=True)
        return Lookup(torch.cat(words, 1), torch.cat(right, 2), factors[0].size)
    outer = [_dense(f) if isinstance(f, Lookup) else f for f in factors]
    if not all(isinstance(f, Outer) for f in outer):
        raise ValueError("a weight is used as a matrix and as a vector")
    left, right = zip(*outer, strict=True)
    return Outer(_along_positions(left), _along_positions(right))


def total(factors: Factors, B: int) -> torch.Tensor:
    """Σ_b g_b of the first probe, flat."""
    first = factors(slice(0, 1))
    if isinstance(first, Vector):
        return _whole(factors).g[0].sum(0)
    if isinstance(first, Lookup):
        return _whole(factors).total().reshape(-1)
    step = max(1, limit(first) // _Sizes.of(first).numbers)
    parts = (factors(slice(b, b + step)) for b in range(0, B, step))
    sums = [torch.einsum("btgo,btgi->goi", f.left[0], f.right[0]) for f in parts]
    return torch.stack(sums).sum(0).reshape(-1)


def sqnorms(factors: Factors, B: int) -> torch.Tensor:
    """‖g_{b,i}‖²: (B, c)."""
    first = factors(slice(0, 1))
    if isinstance(first, Vector):
        return _whole(factors).g.square().sum(-1).T
    if isinstance(first, Lookup):
        return lookup_sqnorms(_whole(factors))
    s = _Sizes.of(first)
    c = max(s.c_left, s.c_right)
    pairs = c * s.G * s.T**2
    ghost = s.T**2 * (s.c_left * s.o + s.c_right * s.i) <= c * s.T * s.o * s.i and pairs <= limit(first)
    step = max(1, limit(first) // max(s.numbers, pairs if ghost else 0))
    parts = (factors(slice(b, b + step)) for b in range(0, B, step))
    return torch.cat([_sqnorms(part, ghost) for part in parts])


def gram(P: Factors, Q: Factors, B: int, C: int | None = None) -> torch.Tensor:
    """⟨g_{b,i}, g_{c,j}⟩ for the probes i of one set of factors and j of another: (B, c_I, C, c_J).

    Both are of the same B examples, unless the number C of the other's is given.
    """
    one_batch, C = C is None, B if C is None else C
    first, second = P(slice(0, 1)), Q(slice(0, 1))
    if isinstance(first, Vector):
        g, h = (_whole(f).g.transpose(0, 1) for f in (P, Q))
        return torch.einsum("bif,cjf->bicj", g, h)
    if isinstance(first, Lookup):
        return (lookup_gram if one_batch else lookup_cross_gram)(_whole(P), _whole(Q), limit(first))
    s, t = _Sizes.of(first), _Sizes.of(second)
    c, d = max(s.c_left, s.c_right), max(t.c_left, t.c_right)
    pairs = c * d * s.G * s.T * t.T
    ghost = s.T * B * t.T * C * (s.c_left * t.c_left * s.o + s.c_right * t.c_right * s.i + 4 * c * d)
    direct = (c * d * B * C + c * B * s.T + d * C * t.T) * s.o * s.i
    if ghost <= direct and pairs <= limit(first):
        step = max(1, min(limit(first) // max(s.numbers, t.numbers), math.isqrt(limit(first) // pairs)))
        return _ghost_gram(P, Q, (B, C), step)
    step = max(1, limit(first) // max(s.numbers, t.numbers))
    return _direct_gram(P, Q, (B, C), step, s, B * c + C * d, limit(first))


def better_formed(factors: Factors) -> bool:
    """Whether gradients that are multiplied with many others had better be formed once: they take no more room."""
    first = factors(slice(0, 1))
    if not isinstance(first, Outer):
        return isinstance(first, Vector)
    s = _Sizes.of(first)
    return s.T > 1 and max(s.c_left, s.c_right) * s.G * s.o * s.i <= 4 * s.numbers


def formed(factors: Factors, B: int) -> torch.Tensor:
    """The gradients themselves, flat: (B, c, P)."""
    first = factors(slice(0, 1))
    if isinstance(first, Vector):
        return _whole(factors).g.transpose(0, 1)
    numbers = first.words.numel() * first.size if isinstance(first, Lookup) else _Sizes.of(first).numbers
    step = max(1, limit(first) // numbers)
    parts = (factors(slice(b, b + step)) for b in range(0, B, step))
    return torch.cat([_formed(_dense(f) if isinstance(f, Lookup) else f).flatten(2) for f in parts])


def limit(factor: Factor) -> int:
    """How many numbers an intermediate result may have."""
    x = factor.g if isinstance(factor, Vector) else factor.right
    return memory.budget() // (4 * x.dtype.itemsize)


class _Sizes(NamedTuple):
    """Of an `Outer` with one example."""

    c_left: int
    c_right: int
    T: int
    G: int
    o: int
    i: int

    @classmethod
    def of(cls, f: Outer) -> _Sizes:
        _, _, T, G, o = f.left.shape
        return cls(len(f.left), len(f.right), T, G, o, f.right.shape[-1])

    @property
    def numbers(self) -> int:
        """In both factors of an example."""
        return self.T * self.G * (self.c_left * self.o + self.c_right * self.i)


def _whole(factors: Factors) -> Any:
    return factors(slice(None))


def _dense(f: Lookup) -> Outer:
    """A table's gradient beside that of a layer tied to it, whose outputs are as wide."""
    words = F.one_hot(f.words, f.size).to(f.right.dtype)
    return Outer(words[None, :, :, None, :], f.right[:, :, :, None, :])


def _along_positions(parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    c = max(len(x) for x in parts)
    if any(len(x) < c for x in parts):
        parts = tuple(x.expand(c, *x.shape[1:]) for x in parts)
    return torch.cat(parts, dim=2)


def _formed(f: Outer) -> torch.Tensor:
    """g: (B, c, G, o, i)."""
    left, right = (x[0] if len(x) == 1 else x for x in f)
    if left.ndim == right.ndim == 4:
        left = left[None]
    names = [("c" if x.ndim == 5 else "") + "btg" for x in (left, right)]
    return torch.einsum(f"{names[0]}o,{names[1]}i->bcgoi", left, right)


def _tiles(rows: int, s: _Sizes, most: int) -> Iterator[tuple[slice, slice]]:
    """Runs of g's rows and columns small enough for `rows` gradients to be held."""
    room = max(1, most // (rows * s.G))
    height, width = max(1, room // s.i), min(s.i, room)
    for o in range(0, s.o, height):
        for i in range(0, s.i, width):
            yield slice(o, o + height), slice(i, i + width)


def _tile(f: Outer, tile: tuple[slice, slice]) -> Outer:
    return Outer(f.left[..., tile[0]], f.right[..., tile[1]])


def _sqnorms(f: Outer, ghost: bool) -> torch.Tensor:
    """(B, c) of a run of examples."""
    s = _Sizes.of(f)
    if s.T == 1:
        return (f.left.square().sum(-1) * f.right.square().sum(-1)).sum((2, 3)).T
    if ghost:
        left, right = (x.transpose(2, 3) for x in f)  # (c, B, G, T, ·)
        return ((left @ left.mT) * (right @ right.mT)).sum((2, 3, 4)).T
    rows = f.left.shape[1] * max(s.c_left, s.c_right)
    tiles = (_formed(_tile(f, tile)) for tile in _tiles(rows, s, limit(f)))
    return torch.stack([g.square().sum((2, 3, 4)) for g in tiles]).sum(0)


def _ghost_gram(P: Factors, Q: Factors, sizes: tuple[int, int], step: int) -> torch.Tensor:
    runs, others = ([slice(b, min(b + step, B)) for b in range(0, B, step)] for B in sizes)
    rows = []
    for run in runs:
        f = P(run)
        rows.append(torch.cat([_ghost(f, f if P is Q and other == run else Q(other)) for other in others], dim=2))
    return torch.cat(rows)


def _ghost(f: Outer, h: Outer) -> torch.Tensor:
    """Σ_{t,t′} ⟨l_t, l′_{t′}⟩⟨r_t, r′_{t′}⟩: (B, c, B′, c′) of two runs of examples."""
    left, right = (_products(x, y) for x, y in zip(f, h, strict=True))
    products = left * right  # (G, B, c, T, B′, c′, T′)
    one = products.shape[0] == products.shape[3] == products.shape[6] == 1
    return products[0, :, :, 0, :, :, 0] if one else products.sum((0, 3, 6))


def _products(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """⟨x_{i,b,t}, y_{j,c,t′}⟩: (G, B, c, T, B′, c′, T′)."""
    sizes = [(z.shape[1], z.shape[0], z.shape[2]) for z in (x, y)]
    x, y = (z.permute(3, 1, 0, 2, 4).reshape(z.shape[3], -1, z.shape[4]) for z in (x, y))
    return (x @ y.mT).reshape(len(x), *sizes[0], *sizes[1])


def _direct_gram(
    P: Factors,
    Q: Factors,
    sizes: tuple[int, int],
    step: int,
    s: _Sizes,
    rows: int,
    most: int,
) -> torch.Tensor:
    def formed(factors: Factors, B: int, tile: tuple[slice, slice]) -> torch.Tensor:
        runs = (factors(slice(b, b + step)) for b in range(0, B, step))
        return torch.cat([_formed(_tile(f, tile)).flatten(2) for f in runs])

    B, C = sizes
    total: torch.Tensor | float = 0.0
    for tile in _tiles(rows, s, most):
        g = formed(P, B, tile)
        h = g if P is Q else formed(Q, C, tile)
        total = total + (g.flatten(0, 1) @ h.flatten(0, 1).T).reshape(B, g.shape[1], C, h.shape[1])
    return total
