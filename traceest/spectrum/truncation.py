"""What Lanczos quadrature has not yet seen of f: the rest that further steps would add, from those made.

Let M(t) be the answer of t steps and d₁ = M(t) − M(t/2), d₂ = M(t/2) − M(t/4) what the last doublings have changed. An
error that falls as t^{−p} falls by r = 2^{−p} a doubling, and a geometric one faster and faster. There are
D = log₂(n/t) doublings left before the quadrature is exact, so what is to come is at most |d₁|(r + r² + … + r^D) with
r = |d₁|/|d₂|. Where the changes grow (r ≥ 1, all in one direction: the log of eigenvalues that fall by orders below
what has been resolved) nothing is known about it, and the error is infinite.
"""

from __future__ import annotations

import math
from typing import Any

from traceest import _array_api as aa

KNOWN = 1.5
"""Growth of f at the edge, a doubling, up to which it may be continued."""


def depths(t: int) -> tuple[int, ...]:
    """Steps at which the answer is compared: all, two thirds, a half, a quarter and an eighth of them."""
    return (t, max(1, 2 * t // 3), max(1, t // 2), max(1, t // 4), max(1, t // 8))


def rest(xp: Any, means: list[Any], size: Any, sampling: Any, steps: int, n: int) -> Any:
    """A standard error for it, from the answers M of `depths`.

    `size` is that of the summands, for rounding; growth that would not reach a tenth of the error by `sampling` is no
    concern. Half of it, for the 95 % interval reaches twice as far, and all where it falls so slowly that r is a guess;
    not less than what the last third of the steps has changed.
    """
    last, d1, d2, d3 = (means[0] - means[1], means[0] - means[2], means[2] - means[3], means[3] - means[4])
    left = max(0.0, math.log2(n / steps))
    a0, a1, a2, a3 = (xp.abs(d) for d in (last, d1, d2, d3))
    tiny = 16 * xp.finfo(a0.dtype).eps * size
    one_way = _along(xp, d1, d2) & ((steps < 8) | _along(xp, d2, d3))
    ratio = a1 / xp.where(a2 > 0, a2, xp.ones_like(a2))
    falls = (a2 > 0) & (ratio < 1)
    r = xp.where(falls, ratio, 0.5 * xp.ones_like(ratio))
    to_come = xp.where(falls, a1 * (r - r ** (left + 1)) / (1 - r), xp.maximum(a1, a2))
    most = xp.where(ratio < 1e3, ratio, 1e3 * xp.ones_like(ratio)) ** max(1.0, min(left, 16.0)) * a1
    grows = one_way & ~falls & (a1 > tiny) & ((a2 >= a3) | (steps < 8)) & (most > 0.1 * sampling)
    settled = (a1 <= tiny) | (steps < 4) | (left == 0)
    slow = 2 * r - 0.5
    slow = xp.where(slow > 1, xp.ones_like(r), xp.where(slow < 0.5, 0.5 * xp.ones_like(r), slow))
    found = xp.where(settled, a0, xp.maximum(a0, slow * to_come))
    return xp.where(grows & (steps >= 4) & (left > 0), xp.ones_like(found) * math.inf, found)


def at_edge(xp: Any, values: list[Any], sampling: Any, steps: int, n: int) -> Any:
    """What one eigenvalue beyond the outermost node may add: `values` are f there, at the same depths.

    A node at the edge is never beyond the eigenvalue, and so f of eigenvalues that fall towards a singularity is known
    by its growth alone. Up to `KNOWN` times as much a doubling (the log of an edge that falls as t⁻²) it goes on like
    that; beyond (1/x, 1/√x), nothing is known. An edge that has been found does not move.
    """
    d1, d2, d3 = values[0] - values[2], values[2] - values[3], values[3] - values[4]
    a1, a2 = xp.abs(d1), xp.abs(d2)
    left = max(0.0, math.log2(n / steps))
    if steps < 4 or left == 0:
        return xp.zeros_like(a1)
    moves = a1 > 8 * steps * xp.finfo(a1.dtype).eps ** 0.5 * xp.abs(values[0])
    one_way = _along(xp, d1, d2)
    ratio = a1 / xp.where(a2 > 0, a2, xp.ones_like(a2))
    ratio = xp.where((a2 > 0) & (ratio < 1e3), ratio, 1e3 * xp.ones_like(ratio))
    ratio = xp.where(one_way, ratio, xp.ones_like(ratio))
    most = a1 * left * xp.where(ratio > 1, ratio ** max(1.0, min(left, 16.0)), ratio)
    matters = moves & (most > 0.1 * sampling)
    unknown = matters & (ratio > KNOWN) & _along(xp, d2, d3)
    return xp.where(unknown, xp.ones_like(most) * math.inf, xp.where(matters, most, xp.zeros_like(most)))


def _along(xp: Any, a: Any, b: Any) -> Any:
    """Whether two changes have one direction."""
    return aa.real(xp, aa.conj(xp, a) * b) > 0
