"""Statistics of kernels: Frobenius norm, effective rank, alignment.

Of K = JJᴴ they come from one-sided products alone, by the block U-statistic of
`traceest.estimators.ustatistics`: m probes through J give trace, norm and alignment together. Of any other
operator they come from two-sided products v ↦ Kv. Ratios carry jackknife errors.
"""

from __future__ import annotations

import math
from typing import Any

from traceest import _validation as check
from traceest.estimate import Estimate
from traceest.estimators.kernel_sketch import Budget, Method, sketch
from traceest.estimators.ustatistics import jackknife
from traceest.probes import Distribution


def frobenius_norm(
    K: Any,
    n_probes: int | None = None,
    *,
    n_matvecs: int | None = None,
    method: Method = "auto",
    rng: Any = None,
    distribution: Distribution = "rademacher",
    probes: Any = None,
) -> Estimate:
    """Estimate ‖K‖ = √(tr KᴴK).

    For K = JJᴴ by vjps alone (or jvps alone): √ of the U-statistic Σ_{b≠c} mean G² + Σ_b mean_{i≠j} G² over
    sketched Gram entries G, unbiased for ‖K‖². Otherwise √ of the mean of ‖Kv‖², one product a sample.

    Parameters
    ----------
    K : operator, (n, n)
        A Gram operator (`gram`, `ntk`), or anything square that `aslinearoperator` takes.
    n_probes : int
        Probes for the one-sided route, at least 2; an interval needs 3. Reaching n_b = n / n_blocks, the exact norm.
    n_matvecs : int
        The same budget for the two-sided route, where it counts products with K; give one of the two.
    method : {"auto", "one-sided", "two-sided", "exact"}
        "auto" takes the one-sided route wherever K has a factor.
    rng, distribution
        As in `hutchinson`.
    probes : array, (n, k), optional
        Explicit probes instead of `rng`.

    Returns
    -------
    Estimate
        Bounded below by 0, with jackknife error. One-sided memory: (n_blocks · n_probes)² for the Gram entries.

    Raises
    ------
    ValueError, TypeError
        If K is not square, the budget is too small, or a needed product is missing.

    References
    ----------
    Kong and Valiant (2017), Annals of Statistics 45(5), for one block; the block form is this library's own.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> J = np.random.default_rng(0).standard_normal((80, 30))
    >>> K = te.gram(J, n_blocks=8)
    >>> bool(abs(float(te.frobenius_norm(K, 6, rng=0)) / np.linalg.norm(J @ J.T) - 1) < 0.1)
    True
    """
    budget = Budget(n_probes, n_matvecs, method, probes)
    s = sketch([K], budget, rng, distribution, "frobenius_norm")
    norm = s.norm2(0).map(lambda f: _sqrt(s.xp, f) * s.units[0])
    return jackknife(s.xp, norm, bounds=(0.0, math.inf), **s.fields)


def effective_rank(
    K: Any,
    n_probes: int | None = None,
    *,
    n_matvecs: int | None = None,
    method: Method = "auto",
    rng: Any = None,
    distribution: Distribution = "rademacher",
    probes: Any = None,
) -> Estimate:
    """Estimate the effective rank (tr K)² / ‖K‖², the participation ratio of the eigenvalues.

    It is 1 for a kernel of rank one and n for a multiple of the identity. Numerator and denominator are
    unbiased and come from the same probes: (tr K)² as the squared mean less its estimated variance, ‖K‖² as in
    `frobenius_norm`. (The effective rank of the *sketch* is no estimate of it: at 16 probes and a true rank of 35
    it answers 11.)

    Parameters
    ----------
    K, n_probes, n_matvecs, method, rng, distribution, probes
        As in `frobenius_norm`.

    Returns
    -------
    Estimate
        Bounded by 1 and n, with jackknife error.

    Raises
    ------
    ValueError, TypeError
        As `frobenius_norm`.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> e = te.effective_rank(te.gram(np.eye(50, 20), n_blocks=5), 8, rng=0)
    >>> e.confidence_interval().low <= 20 <= e.confidence_interval().high
    True
    """
    budget = Budget(n_probes, n_matvecs, method, probes)
    s = sketch([K], budget, rng, distribution, "effective_rank")
    rank = s.squared_trace(0).map(lambda t, f: _ratio(s.xp, t, f), s.norm2(0))
    return jackknife(s.xp, rank, bounds=(1.0, float(K.shape[0])), **s.fields)


def alignment(
    K1: Any,
    K2: Any,
    n_probes: int | None = None,
    *,
    n_matvecs: int | None = None,
    method: Method = "auto",
    rng: Any = None,
    distribution: Distribution = "rademacher",
    probes: Any = None,
) -> Estimate:
    """Estimate the alignment tr(K₁K₂) / (‖K₁‖ ‖K₂‖) of two kernels on the same states.

    The same probes go through both, so that numerator and denominators err together. 1 means equal up to
    scale; for positive semidefinite kernels it lies between 0 and 1.

    Parameters
    ----------
    K1, K2 : operator, (n, n)
        Gram operators of Jacobians with equal rows (their columns may differ: two checkpoints, two models), or any
        two square operators.
    n_probes, n_matvecs, method, rng, distribution, probes
        As in `frobenius_norm`; the budget is spent on each kernel, and the counts are the sum.

    Returns
    -------
    Estimate
        With jackknife error, bounded by 0 (−1 unless both are known to be PSD) and 1.

    Raises
    ------
    ValueError
        If the shapes differ, as well as for what `frobenius_norm` raises.
    TypeError
        If both kernels have jvps alone: their columns are different spaces, so no common probes exist.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> J = np.random.default_rng(0).standard_normal((80, 30))
    >>> K = te.gram(J, n_blocks=8)
    >>> round(float(te.alignment(K, K, 4, rng=0)), 6)
    1.0
    """
    budget = Budget(n_probes, n_matvecs, method, probes)
    s = sketch([K1, K2], budget, rng, distribution, "alignment")
    xp = s.xp
    ratio = s.products(0, 1).map(lambda p, f, g: _ratio(xp, p, _sqrt(xp, f) * _sqrt(xp, g)), s.norm2(0), s.norm2(1))
    psd = all(getattr(check.square(K, "alignment"), "psd", False) for K in (K1, K2))
    return jackknife(xp, ratio, bounds=(0.0 if psd else -1.0, 1.0), **s.fields)


def _sqrt(xp: Any, x: Any) -> Any:
    """√max(x, 0), with gradient 0 where x ≤ 0: an unbiased estimate of a square may be negative."""
    positive = x > 0
    return xp.where(positive, xp.sqrt(xp.where(positive, x, xp.ones_like(x))), xp.zeros_like(x))


def _ratio(xp: Any, a: Any, b: Any) -> Any:
    """a/b, and NaN where b is not positive (the zero kernel has no rank and no direction)."""
    positive = b > 0
    return xp.where(positive, a / xp.where(positive, b, xp.ones_like(b)), xp.ones_like(b) * math.nan)
