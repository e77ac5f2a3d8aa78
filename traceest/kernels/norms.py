"""Frobenius norm and effective rank."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any

from traceest._boundary import public
from traceest.adaptive import Stop
from traceest.kernels import statistics
from traceest.kernels.adaptive import answer
from traceest.kernels.sketches import Method, Request, kernels_of_one_state
from traceest.probes import Distribution
from traceest.uncertainty.estimate import Estimate


@public
def frobenius_norm(
    K: Any,
    n_probes: int | None = None,
    *,
    n_matvecs: int | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    confidence: float = 0.95,
    max_matvecs: int | None = None,
    callback: Callable[[Estimate], Any] | None = None,
    progress: bool = False,
    explain: bool | Callable[[str], Any] = False,
    checkpoint: str | PathLike[str] | None = None,
    method: Method = "auto",
    rng: Any = None,
    distribution: Distribution | None = None,
    probes: Any = None,
) -> Estimate:
    """Estimate ‖K‖ = √(tr KᴴK).

    * For K = JJᴴ by vjps alone (or jvps alone): √ of the U-statistic Σ_{b≠c} mean G² + Σ_b mean_{i≠j} G² over sketched
      Gram entries G, unbiased for ‖K‖², b and c running over J's blocks (independent examples).
    * Otherwise by products with K: √ of the mean over i of ‖KQ₍ᵢ₎‖² + ‖Ku₍ᵢ₎‖², a low-rank part and what it leaves,
      one probe left out of the sketch at a time as in `xtrace`; below 8 products, √ of the mean of ‖Kv‖².

    "auto" takes the one-sided route where J has blocks or one side only, and where the budget is given as `n_probes` or
    `probes`; without blocks and with both sides two-sided products are better, and `n_matvecs` or `rtol` takes them
    (`rtol` with JᴴJ, which has the same norm and rank, where J has fewer columns than rows).

    Parameters
    ----------
    K : operator, (n, n)
        A Gram operator (`gram`, `ntk`), or anything square that `aslinearoperator` takes.
    n_probes : int
        Probes for the one-sided route, at least 2; an interval needs 3. Reaching n_b = n / n_blocks, the exact norm.
    n_matvecs : int
        The budget in products with K; give one of the two. Half of them go to the probes, half to what they span.
    rtol, atol, confidence, max_matvecs, callback, progress, explain, checkpoint
        As in `trace`: grow until the interval is within max(atol, rtol·‖K‖), keeping every product. Give a fixed
        budget or a tolerance, not both. `max_matvecs` is the most products on either side, of all kernels together.
    method : {"auto", "one-sided", "two-sided", "hutchinson", "exact"}
        Force a route; "hutchinson" is the two-sided one without a low-rank part, better on flat spectra.
    rng
        As in `hutchinson`.
    distribution : {"balanced", "rademacher", "gaussian", "sphere"}, optional
        Law of the probes; default: balanced where positions of the state are known, else Rademacher, and sphere for
        the low-rank route, which then gives what is left of a probe the length that it should have. One-sided, signs
        make no error in what the blocks' diagonals hold; sphere and Gaussian probes use the terms i = j too.
    probes : array, (n, k), optional
        Explicit probes instead of `rng`; the two-sided route then makes no low-rank part.

    Returns
    -------
    Estimate
        Bounded below by 0, with jackknife (low-rank: leave-two-out) error. One-sided, the interval also reaches as far
        as the norm would be had the probes of one block been unlucky: further up than down where one block dominates.
        One-sided memory: (n_blocks · n_probes)² for the Gram entries.

    Raises
    ------
    ValueError, TypeError
        If K is not square, the budget is too small, or a needed product is missing. (Of a rectangular J, ‖J‖² = tr JJᴴ
        is what `rhutch`, `fhutch` and ``trace(gram(J))`` estimate; ``frobenius_norm(gram(J))`` is ‖JJᴴ‖.)

    References
    ----------
    Kong and Valiant (2017), Annals of Statistics 45(5), for one block; Epperly, Tropp, Webber (2024) for leaving one
    out; the block form, and the low-rank form with its error bars, are this library's own.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> J = np.random.default_rng(0).standard_normal((80, 30))
    >>> K = te.gram(J, n_blocks=8)
    >>> bool(abs(float(te.frobenius_norm(K, 6, rng=0)) / np.linalg.norm(J @ J.T) - 1) < 0.1)
    True
    """
    stop = Stop.asked("frobenius_norm", rtol, atol, confidence, max_matvecs, callback, progress, explain, checkpoint)
    request = Request("frobenius_norm", n_probes, n_matvecs, stop, method, rng, distribution, probes)
    return answer(kernels_of_one_state([K], request.caller), request, statistics.frobenius_norm, 0)


@public
def effective_rank(
    K: Any,
    n_probes: int | None = None,
    *,
    n_matvecs: int | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    confidence: float = 0.95,
    max_matvecs: int | None = None,
    callback: Callable[[Estimate], Any] | None = None,
    progress: bool = False,
    explain: bool | Callable[[str], Any] = False,
    checkpoint: str | PathLike[str] | None = None,
    method: Method = "auto",
    rng: Any = None,
    distribution: Distribution | None = None,
    probes: Any = None,
) -> Estimate:
    """Estimate the effective rank (tr K)² / ‖K‖², the participation ratio of the eigenvalues.

    It is 1 for a kernel of rank one and n for a multiple of the identity. Numerator and denominator are
    unbiased and come from the same probes: (tr K)² as the squared mean less its estimated variance, ‖K‖² as in
    `frobenius_norm`. (The effective rank of the *sketch* is no estimate of it: at 16 probes and a true rank of 35
    it answers 11.) The other effective rank, the exponential of the eigenvalues' entropy, is `entropy_rank`.

    Parameters
    ----------
    K, n_probes, n_matvecs, method, rng, distribution, probes
        As in `frobenius_norm`.
    rtol, atol, confidence, max_matvecs, callback, progress, explain, checkpoint
        As in `frobenius_norm`.

    Returns
    -------
    Estimate
        Bounded by 1 and n (of a Gram operator also by its factor's columns). NaN where the sketch is too small to tell
        ‖K‖² from nothing; the interval is the whole range then.

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
    stop = Stop.asked("effective_rank", rtol, atol, confidence, max_matvecs, callback, progress, explain, checkpoint)
    request = Request("effective_rank", n_probes, n_matvecs, stop, method, rng, distribution, probes)
    Ks = kernels_of_one_state([K], request.caller)
    return answer(Ks, request, statistics.effective_rank, 0, largest_rank(Ks[0]))


def largest_rank(K: Any) -> float:
    """The smaller of K's rows and its factor's columns."""
    return float(min(K.inner.shape))
