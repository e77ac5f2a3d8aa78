"""The spectral norm."""

from __future__ import annotations

import math
from typing import Any

from traceest import _array_api as aa
from traceest import _validation as check
from traceest._boundary import public
from traceest.probes.sources import mark_of
from traceest.spectrum.eigenvalues import make_plan, solve
from traceest.spectrum.functions import self_adjoint
from traceest.uncertainty.estimate import Estimate, told

FEWEST = 8
"""Products below which the Ritz value may be far from the norm, and its residual not show it."""

ALWAYS_EXACT = 16
"""Up to this many rows all eigenvalues cost about what a first look does."""

QUANTILE = 1.96


@public
def spectral_norm(A: Any, n_matvecs: int | None = None, *, rtol: float | None = 1e-3, rng: Any = None) -> Estimate:
    """Estimate ‖A‖₂, the largest singular value, by Krylov iteration from a random vector.

    Of an A known to be self-adjoint, the largest |Ritz value|; of any other, the root of the largest one of AAᴴ, whose
    products take one with A and one with Aᴴ. The value is never above ‖A‖₂ but for rounding. Its standard error is the
    bound on the Ritz value's error (see `eigenvalues`), and the 95 % interval twice as wide as that, for the vector
    found may not yet be the one that counts.

    Parameters
    ----------
    A : operator, (m, n)
        With `matmat`, and `rmatmat` unless A is known to be self-adjoint (`symmetric=True`, or a Gram operator).
    n_matvecs : int, optional
        Most products, at least 8; default m, where the answer is exact.
    rtol : float or None
        Half-width of the 95 % interval, relative to the norm, at which to stop. None: spend all of `n_matvecs` without
        looking at values, which can be traced by `jax.jit`.
    rng
        As in `hutchinson`.

    Returns
    -------
    Estimate
        Bounded below by 0, with ``converged`` False where the budget ended first. Memory 2m · n_matvecs.

    Raises
    ------
    ValueError
        If the budget is below 8.
    TypeError
        If A lacks a side.

    References
    ----------
    Kuczyński, Woźniakowski (1992), SIAM J. Matrix Anal. 13(4), for what a random start guarantees.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> e = te.spectral_norm(np.diag(1.0 / np.arange(1, 501)), rng=0)
    >>> abs(float(e) - 1) < 1e-3, e.converged, e.n_products < 50
    (True, True, True)
    """
    A = check.operator(A, "spectral_norm")
    A, power = self_adjoint(A, "spectral_norm")
    rows = A.shape[0]
    if n_matvecs is not None:
        n_matvecs = check.budget(n_matvecs, None, min(FEWEST, rows), "n_matvecs", "spectral_norm")
    small = rows <= ALWAYS_EXACT and n_matvecs in (None, *range(rows, ALWAYS_EXACT + 1))
    inner = None if rtol is None else rtol / (QUANTILE * power)
    plan = make_plan(A, 1, n_matvecs, inner, "magnitude", None, "exact" if small else "auto", "spectral_norm")
    marks = mark_of(rng)
    ritz, meter, converged = solve(A, plan._replace(first_look=FEWEST), rng, "spectral_norm")
    xp = aa.namespace(A)
    value, stderr = xp.abs(ritz.values[0]), ritz.bounds[0]
    if power == 0.5:  # √(θ + δ) − √θ ≤ δ/(2√θ)
        positive = value > 0
        value = xp.where(positive, xp.sqrt(xp.where(positive, value, xp.ones_like(value))), xp.zeros_like(value))
        stderr = xp.where(positive, stderr / (2 * xp.where(positive, value, xp.ones_like(value))), stderr)
    stderr = 0 * stderr if plan.exact else stderr
    method = "exact" if plan.exact else "Krylov"
    df = xp.ones_like(stderr) * math.inf  # a bound, not a spread of samples
    e = Estimate(value, stderr, df, None, **meter.spent, converged=converged, method=method, bounds=(0.0, math.inf))
    return told(e, "spectral_norm", A, () if marks is None else (f"gaussian:{marks}",))
