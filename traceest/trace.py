"""`trace`: the adaptive front door."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

from traceest import _progress
from traceest import _validation as check
from traceest.estimate import Estimate
from traceest.estimators._metering import chunk_columns
from traceest.estimators.adaptive import Deflating, Nystrom, Sampling, fhutch_sampling, rhutch_sampling
from traceest.estimators.exact import Route, cheapest, exact
from traceest.probes import Distribution

Method = Literal["auto", "exact", "hutchinson", "hutchpp", "xnystrace", "rhutch", "fhutch"]

FIRST_LOOK = 10
"""Samples before the first look: a standard error from fewer says too little to stop on."""

ALWAYS_EXACT = 16
"""Up to this many products the exact trace costs about what a first look does."""


def trace(
    A: Any,
    *,
    rtol: float = 1e-2,
    atol: float = 0.0,
    confidence: float = 0.95,
    max_matvecs: int | None = None,
    method: Method = "auto",
    rng: Any = None,
    distribution: Distribution | None = None,
    chunk_size: int | None = None,
    callback: Callable[[Estimate], Any] | None = None,
    progress: bool = False,
) -> Estimate:
    """Estimate tr A until the confidence interval is inside max(atol, rtol·|tr A|).

    It starts with a few probes and grows by what the spread of the samples asks for, never by more than
    double, keeping every product paid for, and never beyond `max_matvecs`. Where the tolerance asks for as
    many products as the exact trace costs, the exact trace is computed instead.

    With ``method="auto"``:

    * an exact trace that costs at most 16 products (a classifier with ten outputs, any operator with
      n ≤ 16) is computed at once;
    * a Gram operator K = JJᴴ whose J has blocks, or has `rmatmat` alone: ‖J_bᴴv_b‖² (`rhutch`);
    * one whose J has `matmat` alone: ‖Jw‖² (`fhutch`);
    * any other known to be positive semidefinite: XNysTrace, whose forms are Hutchinson's samples too, and
      the better of both answers;
    * any other: Hutchinson, whose products become the sketch of Hutch++ as soon as that is predicted to
      be cheaper, again and again while the samples' spread falls.

    Parameters
    ----------
    A : operator, (n, n), or one-sided Jacobian, (n, P), whose JJᴴ is then meant
        Anything that `aslinearoperator` takes.
    rtol, atol : float
        Relative and absolute tolerance on the half-width of the interval; the larger counts.
    confidence : float
        Nominal coverage of the interval that is to be inside the tolerance.
    max_matvecs : int, optional
        Most products on either side: neither matvecs nor rmatvecs go beyond. Default: room to end with the
        exact trace whatever was sampled before.
    method : {"auto", "exact", "hutchinson", "hutchpp", "xnystrace", "rhutch", "fhutch"}
        Force one of the ways.
    rng, chunk_size
        As in `hutchinson`.
    distribution : {"rademacher", "gaussian", "sphere", "orthogonal"}, optional
        Law of the probes; default: sphere for XNysTrace, Rademacher for all else.
    callback : callable, optional
        Called with the Estimate so far after each growth; returning True stops.
    progress : bool
        Show a bar (needs tqdm).

    Returns
    -------
    Estimate
        With ``converged`` False where the budget ended first; that is not an error.

    Raises
    ------
    ValueError
        If A is not square, a product holds NaN or infinity (which product, which column), or a tolerance
        is negative.
    TypeError
        If a product that `method` needs is missing.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = np.diag(1.0 / np.arange(1, 1001) ** 2)
    >>> e = te.trace(A, rtol=1e-3, rng=0)
    >>> e.converged, bool(abs(float(e) / np.trace(A) - 1) < 2e-3)
    (True, True)
    """
    A = check.operator(A, "trace")
    if method in ("rhutch", "fhutch") or A.shape[0] != A.shape[1]:
        A = _as_gram(A, method)
    check.tolerance(rtol, atol, confidence, "trace")
    if method not in get_args(Method):
        raise ValueError(f"trace: method must be one of {', '.join(get_args(Method))}, got {method!r}.")
    chunk = chunk_columns(getattr(A, "factor", A), chunk_size)
    best = cheapest(A)
    if best is None:
        check.require_side(A, "matmat", "trace")
    if max_matvecs is None and best is not None:
        max_matvecs = 2 * best.cost + FIRST_LOOK
    budget = check.budget(max_matvecs, None, 1, "max_matvecs", "trace")
    if method == "exact" or (method == "auto" and best and best.cost <= min(ALWAYS_EXACT, budget)):
        return _exact(A, best, budget, chunk)

    sampler = _sampler(A, method, rng, distribution, chunk)
    target = _Target(rtol, atol, confidence)
    with _progress.bar(progress, total=budget, unit="product") as bar:
        e = _grow(sampler, target, budget, best if method == "auto" else None, method, callback, bar)
    if e is None:  # the exact trace is cheaper than going on
        spent = sampler.meter
        e = exact(A, chunk_size=chunk)
        return replace(
            e, n_matvecs=e.n_matvecs + spent.n_matvecs, n_rmatvecs=e.n_rmatvecs + spent.n_rmatvecs, converged=True
        )
    return replace(e, converged=target.met_by(e))


class _Target:
    """The tolerance, and how many samples it is predicted to take."""

    def __init__(self, rtol: float, atol: float, confidence: float) -> None:
        self.rtol, self.atol, self.confidence = rtol, atol, confidence

    def width(self, e: Estimate) -> float:
        """Half-width allowed."""
        return max(self.atol, self.rtol * abs(complex(e)))

    def half(self, e: Estimate) -> float:
        """Half-width reached, at half the error probability.

        Stopping at the first look that suits errs about twice as often as one look does: at the plain quantile
        6–8 % of the runs missed a tolerance asked for with 95 %, on spectra where Hutch++ takes several looks.
        """
        return float(e.half_width(1 - (1 - self.confidence) / 2))

    def met_by(self, e: Estimate) -> bool:
        """Whether the interval is inside the tolerance."""
        return bool(self.half(e) <= self.width(e))

    def samples(self, e: Estimate, n_samples: int, rate: float) -> float:
        """Predicted number of samples, the half-width falling as their number to the power −`rate`."""
        half, width = self.half(e), self.width(e)
        if math.isnan(half):
            return 2 * n_samples
        return n_samples * (half / width) ** (1 / rate) if width > 0 else (math.inf if half > 0 else 0.0)


def _grow(
    sampler: Any,
    target: _Target,
    budget: int,
    best: Route | None,
    method: Method,
    callback: Callable[[Estimate], Any] | None,
    bar: Any,
) -> Estimate | None:
    """Grow `sampler` until the target is met or the budget spent; None where exact is the better way on."""
    worth, stderr_before = method in ("auto", "hutchpp"), math.inf
    sampler.grow(min(FIRST_LOOK, budget))
    while True:
        e = sampler.estimate()
        spent = max(e.n_matvecs, e.n_rmatvecs)
        bar.update(spent - bar.n)
        if (callback is not None and callback(e)) or target.met_by(e):
            return e
        left, k = budget - spent, sampler.n_samples
        needed = target.samples(e, k, sampler.rate) - k
        patient = k < sampler.patience
        exact_cost = best.cost if best is not None and not patient and best.cost <= min(needed, left) else 0
        deflation = sampler.deflation_cost()
        # A sketch is tried before the exact trace, and leaves room for it: a few columns may hold all of a low rank.
        ahead = exact_cost or min(needed, left)
        if worth and ahead > 3 * deflation and left - exact_cost >= deflation + k:
            per_sample = float(e.stderr) * math.sqrt(k)
            worth = not per_sample > 0.8 * stderr_before  # a flat spectrum: the last sketch took nothing out of it
            if worth:
                stderr_before = per_sample
                sampler.deflate()
                sampler.grow(min(k, left - int(deflation)))
                continue
        if exact_cost:
            return None
        if left < 1:
            return e
        sampler.grow(max(1, math.ceil(min(k, left, 1.1 * needed))))


def _sampler(
    A: Any, method: Method, rng: Any, distribution: Distribution | None, chunk: int
) -> Sampling | Deflating | Nystrom:
    law: Distribution = distribution or "rademacher"
    J = getattr(A, "factor", None)
    blocks = J is not None and (getattr(J, "n_blocks", None) or 1) > 1
    one_sided = J is not None and ((blocks and hasattr(J, "rmatmat")) or not hasattr(A, "matmat"))
    if J is not None and (method in ("rhutch", "hutchinson") or (method == "auto" and one_sided)):
        if hasattr(J, "rmatmat"):
            return rhutch_sampling(J, rng, law, chunk)
        check.require_side(J, "rmatmat" if method == "rhutch" else "matmat", "trace")
        return fhutch_sampling(J, rng, law, chunk)
    if method == "fhutch":
        check.require_side(J, "matmat", "trace")
        return fhutch_sampling(J, rng, law, chunk)
    check.require_side(A, "matmat", "trace")
    if method == "xnystrace" or (method == "auto" and getattr(A, "psd", False)):
        return Nystrom(A, rng, distribution, chunk)
    return Deflating(A, rng, law, chunk)


def _as_gram(A: Any, method: Method) -> Any:
    """K = JJᴴ of a Jacobian, or of a kernel's factor: a square operator without one is its own square root's."""
    from traceest.operators import gram

    if hasattr(A, "factor"):
        return A
    if A.shape[0] == A.shape[1]:
        raise TypeError(
            f"trace: method={method!r} works on a Gram operator; wrap the Jacobian, trace(gram(J)), or choose another."
        )
    if method == "auto" and hasattr(A, "matmat") and hasattr(A, "rmatmat"):
        check.square(A, "trace")
    return gram(A)


def _exact(A: Any, best: Route | None, budget: int, chunk: int) -> Estimate:
    if best is not None and best.cost > budget:
        raise ValueError(
            f"trace: the exact trace costs {best.cost} products, max_matvecs = {budget} allows fewer; raise it, "
            "or choose another method."
        )
    return replace(exact(A, chunk_size=chunk), converged=True)
