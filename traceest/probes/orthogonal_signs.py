"""Signs that are orthogonal to each other: columns of a scrambled Hadamard matrix, drawn without replacement.

A block of d rows is cut out of an N × N matrix H of signs with HHᵀ = N·I, N the next power of two, its rows multiplied
by fair signs of their own. Each column then has the law of a Rademacher probe, and over all N of them Σ vvᵀ = N·I
whatever the signs: their forms vᴴAv are a finite population with mean tr A, of which the first m in random order are
a sample without replacement. So s²/m·(1 − m/N) is the variance of their mean, and all N are the exact trace.

With the plain (Sylvester) H the entries of A whose row and column numbers differ in the same bits would go in step
through all columns; a tridiagonal A has half of its mass in one such class. H is therefore a twisted product of two of
order about √N: H[(s, l), (i, j)] = H₁[s, i] H₂[l, π_s(j)], each run s of rows with a permutation π_s of its own, which
leaves it a Hadamard matrix. Blocks go through the columns in different orders.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from traceest import _array_api as aa

DRAWN = ("signs", "shuffled", "turns", "twists")
"""The random parts of a set."""


def order(d: int) -> int:
    """N, the number of columns for blocks of d rows: the next power of two."""
    return 1 << (d - 1).bit_length()


@lru_cache(maxsize=16)
def sylvester(n: int) -> Any:
    """H_n of ±1, int8, for n a power of two: H_2n = [[H, H], [H, −H]]."""
    H = np.ones((1, 1), np.int8)
    while H.shape[0] < n:
        H = np.block([[H, H], [H, -H]])
    return H


class HadamardSet:
    """N columns for each of the blocks, in random order: `rows(i, j)` gives those from i to j.

    Parameters
    ----------
    n, n_blocks : int
        Rows in all, and the number of equal runs that they fall into.
    n_signs : int
        Kinds of signs that each row has: two for what becomes real and imaginary parts.
    source : Source, optional
        Draws the signs of the rows and the order of the columns.
    drawn : list of arrays, optional
        What a source has drawn before, in the order of `DRAWN`, instead.
    """

    def __init__(self, n: int, n_blocks: int, n_signs: int = 1, source: Any = None, drawn: Any = None) -> None:
        self.n, self.B, self.d, self.n_signs = n, n_blocks, n // n_blocks, n_signs
        self.N = order(self.d)
        self.p = self.N.bit_length() - 1
        self.n_2 = 1 << (self.p - self.p // 2)
        self.signs, self.shuffled, self.turns, self.twists = self._draw(source) if drawn is None else drawn
        self.xp = aa.namespace(self.signs)

    def _draw(self, source: Any) -> tuple[Any, Any, Any, Any]:
        """Signs of the rows, (n_signs, n); π, (N,), and each block's (a, c), (2, B); π_s, (N / n_2, n_2)."""
        n = self.n_signs * self.n
        signs, places = source.signs(1, n + 2 * self.p * self.B)[0, :], source.normal(1, 2 * self.N)[0, :]
        xp = aa.namespace(signs)
        shuffled = xp.argsort(places[: self.N], stable=False)
        twists = xp.argsort(xp.reshape(places[self.N :], (self.N // self.n_2, self.n_2)), axis=1, stable=False)
        bits = xp.reshape(xp.astype(signs[n:] > 0, shuffled.dtype), (2, self.B, self.p))
        powers = xp.asarray([1 << i for i in range(self.p)], dtype=shuffled.dtype, device=aa.device(signs))
        turns = xp.sum(bits * powers, axis=2)
        return xp.reshape(signs[:n], (self.n_signs, self.n)), shuffled, turns, twists

    def columns(self, start: int, stop: int) -> Any:
        """Which columns those are in each block, (stop − start, B): (2a + 1)·π(i) + c mod N.

        So N numbers are shuffled once, whatever the number of blocks.
        """
        xp, shuffled = self.xp, self.shuffled[start:stop, None]
        mask = xp.asarray(self.N - 1, dtype=shuffled.dtype, device=aa.device(shuffled))
        return xp.bitwise_and((2 * self.turns[0, :] + 1) * shuffled + self.turns[1, :], mask)

    def rows(self, start: int, stop: int) -> Any:
        """Columns from `start` to `stop`, a probe a row, with each kind of signs: (n_signs, stop − start, n), int8."""
        xp, k, n_2 = self.xp, stop - start, self.n_2
        at = self.columns(start, stop)
        i, j = at // n_2, at % n_2
        H_1, H_2 = (xp.asarray(sylvester(n), device=aa.device(self.signs)) for n in (self.N // n_2, n_2))
        runs = -(-self.d // n_2)  # of rows, that are not cut off
        taken = _rows_of(xp, self.twists[:runs, :].T, j)  # π_s(j), (k, B, runs)
        taken = xp.where(_rows_of(xp, H_1[:, :runs], i) < 0, taken + n_2, taken)
        H = xp.reshape(_rows_of(xp, xp.concat([H_2, -H_2]), taken), (k, self.B, runs * n_2))
        return xp.reshape(H[:, :, : self.d], (k, self.n)) * self.signs[:, None, :]

    def state(self) -> dict[str, Any]:
        """What was drawn, by name."""
        return {name: vars(self)[name] for name in DRAWN}

    @staticmethod
    def shapes(n: int, n_blocks: int, n_signs: int) -> dict[str, tuple[int, ...]]:
        """Of the arrays in `state`, by name."""
        N = order(n // n_blocks)
        p = N.bit_length() - 1
        n_2 = 1 << (p - p // 2)
        return dict(zip(DRAWN, ((n_signs, n), (N,), (2, n_blocks), (N // n_2, n_2)), strict=True))

    @staticmethod
    def sound(d: int, name: str, x: np.ndarray) -> bool:
        """Whether the array of that name in a state, of blocks of d rows, may hold these integers."""
        return bool(np.all(np.abs(x) == 1) if name == "signs" else np.all((x >= 0) & (x < order(d))))

    @classmethod
    def of_state(cls, n: int, n_blocks: int, state: dict[str, Any]) -> HadamardSet | None:
        """The set that was drawn, if `state` holds one."""
        if not all(name in state for name in DRAWN):
            return None
        drawn = [state[name] for name in DRAWN]
        return cls(n, n_blocks, drawn[0].shape[0], drawn=drawn)


def _rows_of(xp: Any, table: Any, index: Any) -> Any:
    """table[index], index of any shape."""
    taken = xp.take(table, xp.reshape(index, (-1,)), axis=0)
    return xp.reshape(taken, (*index.shape, table.shape[1]))
