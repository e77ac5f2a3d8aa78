"""Signs that are balanced over positions: those of a feature at all T positions add up to ±√T, or nearly.

A state often has one axis of features and others of positions: time, tokens, pixels, examples. Its kernel then has
entries of one sign between the positions of a feature (all of them move alike with its bias, say), and of either sign
between features. Fair signs v pay for that: of the form vᵀAv, what A has in common on the T positions of a feature, a
constant c off the diagonal, contributes c(S² − T), S = Σ v, whose standard deviation is √2 cT. Here S is not left to
chance. The signs are uniform on all with S² = s² where s is one of the two integers around √T that have T's parity,
drawn so that E S² = T, and so E v_i v_j = 0: isotropic like any others. For symmetric A of a feature, without its
diagonal,

    Var vᵀAv = 2‖A‖² + κ((1ᵀA1)² − 4‖A1‖² + 2‖A‖²),   κ = (E S⁴ − 3T² + 2T) / (T(T − 1)(T − 2)(T − 3)) ≈ −2/T².

So a constant is all but gone; and nothing that A may be costs more than 4/T of the variance of fair signs.
"""

from __future__ import annotations

import math
from typing import Any

from traceest import _array_api as aa
from traceest.operators.layout import Layout


def sums(T: int) -> tuple[int, int, float]:
    """Two integers of T's parity around √T, and the probability of the larger with which E S² = T."""
    low = math.isqrt(T)
    low -= (low - T) % 2
    return low, low + 2, (T - low**2) / (4 * low + 4)


def signs(source: Any, k: int, n_blocks: int, layout: Layout) -> Any:
    """(k, n) signs, a probe a row, int8: per feature those of the h smallest of T random numbers, or of the others."""
    B, (L, F, R), T = n_blocks, layout, layout.positions
    low, high, larger = sums(T)
    drawn = source.integers(k, B * F * (T + 1))
    xp = aa.namespace(drawn)
    keys = xp.reshape(drawn[:, : B * F * T], (k, B, F, T))
    coin = xp.reshape(drawn[:, B * F * T :], (k, B, F, 1))
    ordered = xp.sort(keys, axis=-1, stable=False)
    last = [(T + s) // 2 - 1 for s in (low, min(high, T))]  # of the h = (T + s)/2 smallest
    sign, which = coin % 2 == 0, coin // 2 + 2**30 < int(larger * 2**31)
    plus = (keys <= xp.where(which, *(ordered[..., i : i + 1] for i in reversed(last)))) == sign
    v = 2 * xp.astype(plus, xp.int8) - 1
    return xp.reshape(xp.permute_dims(xp.reshape(v, (k, B, F, L, R)), (0, 1, 3, 2, 4)), (k, B * L * F * R))
