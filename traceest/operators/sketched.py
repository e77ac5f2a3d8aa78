"""Sketches J_bᴴ v_{b,i} of blocks of rows, and their inner products within and between the parts of a stack.

A part of the stack gives its sketches in the form that suits it (`block_sketch`): formed, (B, k, n_cols), or as factors
that are far smaller. Held at a time are `HELD` bytes of them and one more, whatever the number of parts; where all take
more, later parts are gone through again for every run that is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, NamedTuple, Protocol

from traceest import _array_api as aa

Groups = tuple[tuple[int, ...], ...]

PIECE = 2**28
"""Bytes that the sketches of one part may take at a time: its probes are cut into pieces that fit, one at the least."""

HELD = 2**30
"""Bytes of sketches that are held while all later ones pass by."""


class BlockSketch(Protocol):
    """What `block_sketch(V)` of a part gives: J_bᴴ v_{b,i} of its B blocks and k probes, without the part itself."""

    @property
    def nbytes(self) -> int:
        """What is held."""

    def gram(self, other: Any, groups: Groups | None) -> Any:
        """(n_groups, B, k, B′, k′): ⟨J_bᴴ v_{b,i}, J_cᴴ v_{c,j}⟩ over each group's columns, or over all for None.

        `other` is this sketch, or one of another part of the same stack.
        """


class Formed(NamedTuple):
    """The sketches themselves, and the runs that the columns fall into."""

    xp: Any
    g: Any  # (B, k, n_cols)
    ends: tuple[tuple[int, int], ...] = ()

    @property
    def nbytes(self) -> int:
        """What is held."""
        B, k, P = self.g.shape
        return B * k * P * itemsize(self.xp, self.g.dtype)

    def gram(self, other: Formed, groups: Groups | None) -> Any:
        """Of each group's columns, (n_groups, B, k, B′, k′)."""
        if groups is None:
            return self._gram(self.g, other.g)[None, ...]
        return self.xp.stack([self._gram(*(f.columns(group) for f in (self, other))) for group in groups])

    def columns(self, group: tuple[int, ...]) -> Any:
        """Those of a group, (B, k, ·)."""
        return aa.concat_columns(self.xp, [self.g[:, :, slice(*self.ends[i])] for i in group])

    def _gram(self, g: Any, h: Any) -> Any:
        xp, shape = self.xp, (*g.shape[:2], *h.shape[:2])
        g, h = (xp.reshape(x, (-1, x.shape[2])) for x in (g, h))
        return xp.reshape(aa.conj(xp, g) @ xp.matrix_transpose(h), shape)


class At(NamedTuple):
    """A piece of the sketches: of part p, probes i … j−1."""

    p: int
    i: int
    j: int


Pairs = dict[tuple[At, At], Any]


def stacked_gram(
    xp: Any, parts_from: Callable[[int], Iterator[Any]], rows: list[tuple[int, int]], V: Any, groups: Groups | None
) -> Any:
    """The inner products of all blocks' sketches, (n_groups, B, k, B, k).

    `parts_from(p)` makes the parts from p on, one after the other, and `rows` says where theirs are in V.
    """
    found: Pairs = {}
    start: At | None = At(0, 0, 0)
    while start is not None:
        held: list[tuple[At, BlockSketch]] = []
        start = _one_pass(_pieces(parts_from, rows, V, start), held, found, groups)
    return _assembled(xp, found)


def _one_pass(
    pieces: Iterator[tuple[At, BlockSketch]], held: list[tuple[At, BlockSketch]], found: Pairs, groups: Groups | None
) -> At | None:
    """Hold as many pieces as may be, and pair them with each other and with all behind; the first that is not held."""
    room, following = HELD, None
    for at, sketch in pieces:
        for before, other in held:
            found[before, at] = other.gram(sketch, groups)
        if following is None and (not held or sketch.nbytes <= room):
            found[at, at] = sketch.gram(sketch, groups)
            held.append((at, sketch))
            room -= sketch.nbytes
        elif following is None:
            following = at
        del sketch  # before the next one is made
    return following


def _pieces(
    parts_from: Callable[[int], Iterator[Any]], rows: list[tuple[int, int]], V: Any, start: At
) -> Iterator[tuple[At, BlockSketch]]:
    p, i, k = start.p, start.i, V.shape[1]
    for J in parts_from(p):
        step = max(1, PIECE // max(1, J.sketch_bytes))
        while i < k:
            j = min(i + step, k)
            yield At(p, i, j), J.block_sketch(V[slice(*rows[p]), i:j])
            i = j
        p, i = p + 1, 0
        del J  # before the next one is made


def _assembled(xp: Any, found: Pairs) -> Any:
    """The pieces side by side: probes within parts, then parts."""

    def of(a: At, b: At) -> Any:
        if (a, b) in found:
            return found[a, b]
        return aa.conj(xp, xp.permute_dims(found[b, a], (0, 3, 4, 1, 2)))

    everything = sorted({at for at, _ in found})
    parts = [list(pieces) for _, pieces in groupby(everything, lambda at: at.p)]
    across = {(a, q): _concat(xp, [of(a, b) for b in pieces], 4) for a in everything for q, pieces in enumerate(parts)}
    found.clear()
    by_rows = []
    for pieces in parts:
        wide = [_concat(xp, [across.pop((a, q)) for q in range(len(parts))], 3) for a in pieces]
        by_rows.append(_concat(xp, wide, 2))
    return _concat(xp, by_rows, 1)


def _concat(xp: Any, arrays: list[Any], axis: int) -> Any:
    return arrays[0] if len(arrays) == 1 else xp.concat(arrays, axis=axis)


def itemsize(xp: Any, dtype: Any) -> int:
    """Bytes of a number."""
    size: int = xp.finfo(dtype).bits // 8
    return 2 * size if aa.is_complex(xp, dtype) else size
