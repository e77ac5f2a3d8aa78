"""The relative spread ρ of the squared lengths of a block's sketches: how unlucky its probes may have been.

The samples' own spread is noisy with a handful of probes, and a block whose samples happen to agree seems certain.
Their Gram matrix tells more: were the samples Gaussian, the relative variance of a block's share of the trace would be
κ/m · tr K_b²/(tr K_b)², and a fourth of that of its share of the squared norm κ/m · tr K_b⁴/(tr K_b²)², with κ = 2
(real) or 1 (complex): κ/m for one eigenvalue, next to nothing for many. Signs make less error than that, by what the
diagonals hold, but how much less a block by itself tells badly: half is believed.
"""

from __future__ import annotations

from typing import Any

from traceest import _array_api as aa
from traceest.uncertainty.moments import degrees_of_freedom
from traceest.uncertainty.skewed_intervals import relative_spread
from traceest.uncertainty.ustatistics import Statistic


def block_df(m: int) -> float:
    """Degrees of freedom with which exp(±tρ) meets the lower quantiles of χ²_m/m, one eigenvalue's law, within 7 %."""
    return (m + 3) / 2


def block_spread(xp: Any, G: Any, forms: Any) -> Any:
    """ρ², (B,), for the norm: the mean of what m samples show and of what their Gram matrix tells."""
    m = forms.shape[1]
    own = xp.permute_dims(xp.linalg.diagonal(xp.permute_dims(G, (1, 3, 0, 2))), (2, 0, 1))
    own = own / aa.safe_scale(xp, own, (1, 2))
    x, kappa = aa.real(xp, xp.linalg.diagonal(own)), 1 if aa.is_complex(xp, G.dtype) else 2
    norm2 = xp.sum(aa.abs2(xp, own), axis=(1, 2))
    unequal = (norm2 - xp.sum(x * x, axis=1)) / (m * (m - 1))
    of_trace = kappa / m * relative_spread(xp, xp.sum(x, axis=1) / m, unequal)
    # The Gram matrix of m samples has at least 1/m, however many eigenvalues there are.
    concentration = (m * relative_spread(xp, norm2, xp.sum(aa.abs2(xp, own @ own), axis=(1, 2))) - 1) / (m - 1)
    of_norm = kappa / m * xp.where(concentration > 0, concentration, 0 * concentration)
    shown = _of_mean(xp, forms)
    less = of_trace > shown
    law = xp.where(less, shown / xp.where(less, of_trace, xp.ones_like(shown)), xp.ones_like(shown))
    return (shown + (1 + law) / 2 * of_norm) / 2


def spread_of_samples(xp: Any, s: Statistic, samples: Any) -> Statistic:
    """`s` with the spread that its own samples (B, m), none of them negative, show."""
    m = samples.shape[1]
    if m < 2:
        return s
    deviations = samples - xp.sum(samples, axis=1, keepdims=True) / m
    squares = aa.abs2(xp, deviations / aa.safe_scale(xp, deviations))
    return s.spreading(_of_mean(xp, samples), degrees_of_freedom(xp, squares))


def _of_mean(xp: Any, samples: Any) -> Any:
    """ρ² of the mean over the last axis."""
    m = samples.shape[1]
    samples = samples / aa.safe_scale(xp, samples)
    mean = xp.sum(samples, axis=1) / m
    return relative_spread(xp, mean, xp.sum(aa.abs2(xp, samples - mean[:, None]), axis=1) / (m * (m - 1)))
