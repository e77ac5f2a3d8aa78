"""Errors that the spread of samples does not tell: signs take few values, and may meet a kernel alike each time.

A form vᵀKv of signs is one of finitely many numbers, and m samples of it may all be the same and wrong. Two kinds of
that are known beforehand, and the standard error is then not left at 0:

* balanced signs add up to one of two integers over a feature's positions, and a constant kernel may have met one of
  them alone (`Probes.doubt`);
* a few signs may look alike to a kernel. Of one with a single pair of entries off the diagonal, all m forms are the
  same with probability 2^{1−m}, and none is the trace.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from traceest import _array_api as aa

AGREEING = 0.05
"""Samples whose stderr is less than this part of what it may not see are taken to have met the same constant."""

FEW_SAMPLES, FEW_PAIRS = 4, 6
"""Signs that may look alike by chance. Samples are mostly of kernels of many entries, of which four rarely do; products
of two look alike wherever a kernel has few directions."""


class Doubt(NamedTuple):
    """What may be wrong with an estimate, relative to it, without the spread of samples telling of it."""

    constant: float = 0.0
    alike: bool = False  # whether probes are few and may be signs

    def of_squares(self) -> Doubt:
        """The same for what is of the second degree in forms."""
        return self._replace(constant=(1 + self.constant) ** 2 - 1)


CERTAIN = Doubt()


def doubted(xp: Any, doubt: Doubt, value: Any, stderr: Any, proportional: Any = False) -> Any:
    """The standard error, or what part of the value may be unseen where it is far smaller; NaN where all is unseen.

    Of sketches of several kernels that are `proportional` in many directions likeness is no accident.
    """
    size = xp.abs(value)
    if doubt.constant:
        unseen = doubt.constant * size
        stderr = xp.where(stderr < AGREEING * unseen, unseen, stderr)
    if doubt.alike:
        certain = stderr <= xp.finfo(stderr.dtype).eps ** 0.5 * size
        certain = certain if proportional is False else certain & ~proportional
        unseen = xp.where(size > 0, size, xp.ones_like(size) * math.nan)
        stderr = xp.where(certain, unseen, stderr)
    return stderr


def several_directions(xp: Any, G: Any) -> Any:
    """Whether one of some Gram matrices, (…, m, m), is not of rank one: |G_ij|² < G_ii G_jj."""
    lengths = aa.real(xp, xp.linalg.diagonal(G))
    most = lengths[..., :, None] * lengths[..., None, :]
    off = xp.max(xp.abs(most - aa.abs2(xp, G)))
    return off > xp.finfo(most.dtype).eps ** 0.5 * xp.max(most)
