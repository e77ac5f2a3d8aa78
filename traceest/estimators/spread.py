"""The relative spread of the squared lengths of a block's sketches, which tells how unlucky its probes may have been.

The samples' own spread is noisy with a handful of probes, and a block whose samples happen to agree seems certain. Their
Gram matrix tells more: were the samples Gaussian, the relative variance of a block's share of the trace would be
κ/m · tr K_b²/(tr K_b)², and a fourth of that of its share of the squared norm κ/m · tr K_b⁴/(tr K_b²)², with κ = 2 (real) or
1 (complex): κ/m for one eigenvalue, next to nothing for many. Signs make less error than that, by what the diagonals
hold; how much less all blocks tell together.
"""

from __future__ import annotations

from typing import Any

from traceest import _array_api as aa
from traceest._tails import relative_spread
from traceest.estimate import degrees_of_freedom
from traceest.estimators.ustatistics import Statistic

PRIOR = 2
"""Blocks' worth of belief that the samples are Gaussian."""

WEIGHT = 0.25
"""Of the samples' own spread: with more of it intervals hold less often, with none of it not where signs are far off."""


def block_df(m: int) -> float:
    """Degrees of freedom of ρ: for one eigenvalue Student's t meets the quantiles of χ²_m/m, on its logarithm, with these."""
    return (m + 2) / 2


def block_spread(xp: Any, G: Any, forms: Any) -> Any:
    """ρ², (B,), for the norm, from Gram array and forms of m probes: three parts of what all of it tells and one of what shows."""
    m = forms.shape[1]
    own = xp.permute_dims(xp.linalg.diagonal(xp.permute_dims(G, (1, 3, 0, 2))), (2, 0, 1))
    own = own / aa.safe_scale(xp, own, (1, 2))
    x = aa.real(xp, xp.linalg.diagonal(own))
    kappa, norm2 = 1 if aa.is_complex(xp, G.dtype) else 2, xp.sum(aa.abs2(xp, own), axis=(1, 2))
    of_trace = relative_spread(xp, xp.sum(x, axis=1) / m, (norm2 - xp.sum(x * x, axis=1)) / (m * (m - 1))) * (kappa / m)
    concentration = (m * relative_spread(xp, norm2, xp.sum(aa.abs2(xp, own @ own), axis=(1, 2))) - 1) / (m - 1)
    of_norm = xp.where(concentration > 0, concentration, 0 * concentration) * (kappa / m)
    shown = _of_mean(xp, forms)
    prior = xp.sum(of_trace) * (PRIOR / of_trace.shape[0])
    total = xp.sum(of_trace) + prior
    law = (xp.sum(shown) + prior) / xp.where(total > 0, total, xp.ones_like(total))
    return WEIGHT * shown + (1 - WEIGHT) * xp.where(law < 1, law, xp.ones_like(law)) * of_norm


def spread_of_samples(xp: Any, s: Statistic, samples: Any) -> Statistic:
    """`s` with the spread that its own samples (B, m), none of them negative, show."""
    m = samples.shape[1]
    if m < 2:
        return s
    squares = aa.abs2(xp, samples - xp.sum(samples, axis=1, keepdims=True) / m)
    return s.spreading(_of_mean(xp, samples), degrees_of_freedom(xp, squares / aa.safe_scale(xp, squares)))


def _of_mean(xp: Any, samples: Any) -> Any:
    """ρ² of the mean over the last axis."""
    m = samples.shape[1]
    mean = xp.sum(samples, axis=1) / m
    return relative_spread(xp, mean, xp.sum(aa.abs2(xp, samples - mean[:, None]), axis=1) / (m * (m - 1)))

