"""The entropy rank: how many directions a kernel's trace is spread over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from traceest import _validation as check
from traceest._boundary import public
from traceest.probes import Distribution
from traceest.spectrum import looks
from traceest.spectrum.quadrature import Quadrature, finished, quadrature
from traceest.uncertainty.estimate import Estimate


@public
def entropy_rank(
    K: Any,
    n_matvecs: int | None = None,
    *,
    n_probes: int | None = None,
    steps: int | None = None,
    n_deflate: int | None = None,
    rng: Any = None,
    distribution: Distribution = "sphere",
    probes: Any = None,
    chunk_size: int | None = None,
) -> Estimate:
    """Estimate exp(−Σ pᵢ log pᵢ), pᵢ = λᵢ / tr K: the exponential of the spectrum's entropy, between 1 and n.

    From T = tr K and S = tr K log K of one quadrature: the entropy is H = log T − S/T. Its error is to first order that
    of the trace of g(K), g(λ) = (λ (1 + S/T) − λ log λ)/T, which the same nodes give (delta method).

    Choose it over `effective_rank`, (tr K)²/‖K‖², where the many small eigenvalues are to count; that one is dominated
    by the largest, and cheaper.

    Parameters
    ----------
    K : operator, (n, n), positive semidefinite
        Calling it declares K so. Eigenvalues that rounding makes negative count as 0.
    n_matvecs, n_probes, steps, rng, distribution, probes, chunk_size
        As in `trace_of_function`.
    n_deflate : int, optional
        As there; a sixteenth of the products if absent (none with explicit probes), since the largest eigenvalues rule
        T and S.

    Returns
    -------
    Estimate
        Bounded by 1 and n; NaN for K = 0. Memory n · steps · chunk_size.

    Raises
    ------
    ValueError
        If K has a negative eigenvalue beyond rounding, or as `trace_of_function`.
    TypeError
        As `trace_of_function`.

    References
    ----------
    Roy, Vetterli (2007), The effective rank: a measure of effective dimensionality. EUSIPCO.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> e = te.entropy_rank(np.diag(np.linspace(0.0, 1.0, 300)), 90, rng=0)
    >>> p = np.linspace(0.0, 1.0, 300)[1:] / np.linspace(0.0, 1.0, 300).sum()
    >>> bool(abs(float(e) - np.exp(-np.sum(p * np.log(p)))) < 3 * float(e.stderr))
    True
    """
    K = check.square(K, "entropy_rank")
    q = quadrature(
        K, n_matvecs, caller="entropy_rank", n_probes=n_probes, steps=steps, n_deflate=n_deflate, rng=rng,
        distribution=distribution, probes=probes, chunk_size=chunk_size,
    )  # fmt: skip
    looks.positive(q.least, q.largest, K, "K", "entropy_rank")
    return finished(q, "entropy_rank", K, *q.asked(_entropy_rank, (K.shape[0],)))


def _entropy_rank(q: Quadrature, n: int) -> tuple[Estimate, Any]:
    """exp(log T − S/T), T = Σ λ and S = Σ λ log λ, whose error is that of the trace of its derivative."""
    xp = q.xp
    _, q = q.clipped(0.0).scaled()

    def xlogx(x: Any) -> Any:
        return x * xp.log(xp.where(x > 0, x, xp.ones_like(x)))

    T, S = q.mean(lambda x: x), q.mean(xlogx)
    positive = T > 0
    T = xp.where(positive, T, xp.ones_like(T))
    e, truncated = q.judged(lambda x: (x * (1 + S / T) - xlogx(x)) / T)
    rank = xp.where(positive, xp.exp(xp.log(T) - S / T), xp.ones_like(T) * float("nan"))
    return replace(e, value=rank, stderr=rank * e.stderr, bounds=(1.0, float(n)), reach=None), truncated
