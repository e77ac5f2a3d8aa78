"""`trace`: the adaptive front door."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from typing import Any, Literal, get_args

from traceest import _array_api as aa
from traceest import _validation as check
from traceest._boundary import public
from traceest._files import as_path
from traceest.adaptive import FIRST_LOOK, Stop
from traceest.checkpoint import Checkpoint, taken_up
from traceest.estimators.exact import Route, cheapest, finite_exact
from traceest.estimators.exchangeable import Exchangeable
from traceest.estimators.hutchpp import Deflating
from traceest.estimators.sampler import Sampler
from traceest.estimators.sampling import Sampling, fhutch_sampling, hutchinson_sampling, rhutch_sampling
from traceest.kernels.inner_product import inner_product, one_sided_pair
from traceest.operators.abilities import can
from traceest.operators.gram import shorter
from traceest.operators.metering import chunk_columns
from traceest.probes import Distribution
from traceest.uncertainty.estimate import Estimate, same_probes, told

Method = Literal["auto", "exact", "hutchinson", "hutchpp", "xtrace", "xnystrace", "rhutch", "fhutch"]

ROOM_FOR_VJPS = 16 * FIRST_LOOK
"""Budgets from which on a Gram operator is first looked at by vjps alone."""

ALWAYS_EXACT = 16
"""Up to this many products the exact trace costs about what a first look does."""

CHEAP, CLEAR, OF_FLAT = 128, 1e-3, 0.4
"""An exact trace that costs no more than `CHEAP` is taken without a look where samples, whose error falls as 1/√m,
would have to have a relative standard deviation below `CLEAR`, or `OF_FLAT` of a flat spectrum's √(2/n), to reach the
tolerance sooner: some products saved would not pay for several looks, each a pass through the model of its own."""


@public
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
    explain: bool | Callable[[str], Any] = False,
    start: Estimate | None = None,
    checkpoint: str | PathLike[str] | None = None,
) -> Estimate:
    """Estimate tr A until the confidence interval is inside max(atol, rtol·|tr A|).

    It starts with a few probes and grows by what the spread of the samples asks for, by no more than double
    unless that spread is known well, keeping every product paid for, and never beyond `max_matvecs`. Where the
    tolerance asks for as many products as the exact trace costs, the exact trace is computed instead; where
    samples are drawn without replacement, all of them are the exact trace.

    With ``method="auto"``:

    * an exact trace that costs at most 16 products (a classifier with ten outputs, any operator with
      n ≤ 16) is computed at once;
    * a Gram operator K = JJᴴ whose J has blocks, or has `rmatmat` alone: ‖J_bᴴv_b‖² (`rhutch`); JᴴJ, `gram(J.H)`, of a
      J with blocks has the same trace and goes the same way; where the exact trace costs at most 128 products, and
      `rtol` is so small that the samples would have to have a relative standard deviation below 0.1 %, or below
      0.4 √(2/n), where that is more (a flat spectrum's samples have √(2/n)), for fewer to do, it is computed at once;
    * one whose J has `matmat` alone: ‖Jw‖² (`fhutch`);
    * a product K₁ @ K₂ of such Gram operators: `inner_product`, by vjps alone, with each of the two at most half of
      `max_matvecs` (an absolute tolerance, another confidence, and runs that are watched or continued are for the
      other ways, by products with K₁ @ K₂);
    * a Gram operator of one block with both sides: ‖Jᴴv‖² by vjps alone while few of them are predicted to be enough,
      as on a flat spectrum, and else as the next;
    * any other known to be positive semidefinite: XNysTrace, or Hutchinson of the same probes where the spectrum is
      flat, or XTrace, which takes as many products again, where a floor is left that more probes would not sketch away;
    * any other: Hutchinson, and XTrace of the same probes where that is found to pay.

    What XTrace would leave is asked by pilots of four products; whichever of the answers to be had from the products
    made has the smallest standard error is given. ``explain=True`` prints all of this as it happens.

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
    method : {"auto", "exact", "hutchinson", "hutchpp", "xtrace", "xnystrace", "rhutch", "fhutch"}
        Force one of the ways.
    rng, chunk_size
        As in `hutchinson`.
    distribution : {"rademacher", "hadamard", "balanced", "gaussian", "sphere", "orthogonal"}, optional
        Law of the probes; default: balanced or Hadamard for samples by vjps (see `rhutch`), sphere for XNysTrace,
        Rademacher for all else.
        Where probes have to be independent of each other, as for XTrace, orthogonal and Hadamard ones are drawn
        as sphere and Rademacher ones are.
    callback : callable, optional
        Called with the Estimate so far after each growth; returning True stops.
    progress : bool
        Show a bar (needs tqdm).
    explain : bool or callable
        Print which rule chose the method and every decision after it, or hand each line to the callable.
    start : Estimate, optional
        Go on from this estimate of the same operator, of `hutchinson`, `rhutch` or `fhutch` (or of `trace` by one of
        them) with other probes: give another `rng`. Its products count towards `max_matvecs`. Where its first probe can
        be drawn again (it came from an int or a NumPy generator), it is multiplied once more, as with `checkpoint`.
    checkpoint : path, optional
        An ``.npz`` file that all that was paid for is written to at each look, in one step and never through a link. If
        it exists, the run goes on from it, with the same operator and method; an int as `rng` may stay the same. The
        first probe is then multiplied once more, whose product has to be what it was: one product, which is counted
        and comes on top of `max_matvecs`.

    Returns
    -------
    Estimate
        With ``converged`` False where the budget ended first; that is not an error.

    Raises
    ------
    ValueError
        If A is not square, a product holds NaN or infinity (which product, which column), a tolerance
        is negative, or `start` or `checkpoint` belong to another kind of run or to another operator, or the file of
        `checkpoint` is broken.
    OSError
        If no file can be written where `checkpoint` says: before any product is made.
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
    saved = None if checkpoint is None else as_path(checkpoint, "trace")  # before anything is paid for
    if method in ("rhutch", "fhutch") or A.shape[0] != A.shape[1]:
        A = _as_gram(A, method)
    check.tolerance(rtol, atol, confidence, "trace")
    if method not in get_args(Method):
        raise ValueError(f"trace: method must be one of {', '.join(get_args(Method))}, got {method!r}.")
    A = shorter(A) if method in ("auto", "exact") else A
    stop = Stop(rtol, atol, confidence, max_matvecs, callback, progress, explain, checkpoint)
    say = stop.say
    plain = rtol > 0 and confidence == 0.95 and not (atol or callback or progress or start or checkpoint)
    pair = one_sided_pair(A) if method == "auto" and plain else None
    if pair is not None and (max_matvecs is None or max_matvecs >= 4):
        say(f"trace of {A!r}\nby the inner product of two Gram operators, vjps alone")
        most = None if max_matvecs is None else check.budget(max_matvecs, None, 4, "max_matvecs", "trace") // 2
        found = inner_product(*pair, rtol=rtol, max_matvecs=most, rng=rng, distribution=distribution)
        if not bool(aa.namespace(found.value).isfinite(found.value)):
            raise ValueError(f"trace: NaN or infinity in the products with {pair[0]!r} or {pair[1]!r}; look at both.")
        return found
    chunk = chunk_columns(A.inner, chunk_size)
    best = cheapest(A)
    if best is None:
        check.require_side(A, "matmat", "trace")
    if max_matvecs is None and best is not None:
        max_matvecs = 2 * best.cost + FIRST_LOOK
    budget = check.budget(max_matvecs, None, 1, "max_matvecs", "trace")
    say(f"trace of {A!r}, at most {budget} products" + (f"; exactly by {best.cost}" if best else ""))
    if method == "exact" or (method == "auto" and best and best.cost <= min(ALWAYS_EXACT, budget)):
        say("exactly (" + ("asked for)" if method == "exact" else f"at most {ALWAYS_EXACT} products)"))
        return _exact(A, best, budget, chunk)

    sampler, rule = _sampler(A, method, rng, distribution, chunk, budget)
    sampler.caller = "trace"
    check.budget(budget, None, sampler.cost, "max_matvecs", "trace")
    alone = method == "auto" and atol == 0 and not (start or checkpoint or callback) and isinstance(sampler, Sampling)
    clear = max(CLEAR, OF_FLAT * math.sqrt(2 / max(A.shape[0], 1)))
    if alone and best and best.cost <= min(CHEAP, budget) and rtol * math.sqrt(best.cost) < clear:
        say(f"exactly (samples are not expected to reach the tolerance by {best.cost} products)")
        return _exact(A, best, budget, chunk)
    say(f"by {rule}")
    kept = None
    if saved is not None:
        kind = {"method": type(sampler).__name__, "law": sampler.stream.distribution}
        kept = Checkpoint(saved, kind | {"shape": list(A.shape), "dtype": str(A.dtype)}, "trace")
    own = sampler.stream.marks
    _take_up(sampler, start, kept, say)
    e = stop.run(sampler, budget, best.cost if best is not None and method == "auto" else None, kept)
    if e is None:  # the exact trace is cheaper than going on
        spent = sampler.meter
        e = finite_exact(A, chunk, "trace")
        return replace(e, n_matvecs=e.n_matvecs + spent.n_matvecs, n_rmatvecs=e.n_rmatvecs + spent.n_rmatvecs)
    return told(replace(e, converged=stop.target.met_by(e)), "trace", A, (() if start is None else start.probes) + own)


def _take_up(sampler: Sampler, start: Estimate | None, saved: Checkpoint | None, say: Callable[[str], Any]) -> None:
    """Give the sampler what an earlier run has paid for, once a product of it has been made anew and compared."""
    if saved is not None and taken_up(sampler, saved, say):
        return
    if start is not None:
        if not isinstance(sampler, Sampling) or start.method != sampler.method or start.samples is None:
            raise ValueError(
                f"trace: start= is an estimate by {start.method!r}, which this run cannot go on from; only hutchinson, "
                "rhutch and fhutch go on from an Estimate with samples (choose method=), all others from checkpoint=."
            )
        if same_probes(start.probes + sampler.stream.marks):
            raise ValueError("trace: start= rests on the probes that rng= would draw again; give another rng.")
        sampler.adopt(start)
        sampler.verify()
        say(f"goes on from {start!r}")


def _sampler(
    A: Any, method: Method, rng: Any, distribution: Distribution | None, chunk: int, budget: int
) -> tuple[Sampler, str]:
    """The sampler of the documented rules, and which of them chose it."""
    J = A.factor
    blocks = J is not None and (J.n_blocks or 1) > 1
    one_sided = J is not None and ((blocks and can(J, "rmatmat")) or not can(A, "matmat"))
    why = "asked for" if method != "auto" else "independent blocks of rows" if blocks else "J has one side alone"
    if J is not None and (method in ("rhutch", "hutchinson") or (method == "auto" and one_sided)):
        if can(J, "rmatmat"):
            return rhutch_sampling(J, rng, distribution, chunk), f"vjps alone, ‖J_bᴴv_b‖² ({why})"
        check.require_side(J, "rmatmat" if method == "rhutch" else "matmat", "trace")
        return fhutch_sampling(J, rng, distribution, chunk), f"jvps alone, ‖Jw‖² ({why})"
    if method == "fhutch":
        check.require_side(J, "matmat", "trace")
        return fhutch_sampling(J, rng, distribution, chunk), "jvps alone, ‖Jw‖² (asked for)"
    check.require_side(A, "matmat", "trace")
    if method == "hutchinson":
        return hutchinson_sampling(A, rng, distribution, chunk), "Hutchinson (asked for)"
    if method == "hutchpp":
        return Deflating(A, rng, distribution or "rademacher", chunk), "Hutch++ with a sketch that grows (asked for)"
    ways: tuple[str, ...] = (method,)
    if method == "auto":
        ways = ("hutchinson", "xnystrace", "xtrace") if A.psd else ("hutchinson", "xtrace")
    elif method == "xnystrace":
        ways = ("hutchinson", "xnystrace")
    known = "asked for" if method != "auto" else "" if A.psd else "not "
    known = known if method != "auto" else f"{known}known to be positive semidefinite"
    rule = f"the best of {', '.join(ways)} ({known})"
    # What vjps alone tell is lost on a spectrum that falls: a budget has to have room for it.
    one_sided = method == "auto" and J is not None and budget >= ROOM_FOR_VJPS and can(J, "rmatmat")
    rule += ", vjps alone where they are cheaper" if one_sided else ""
    return Exchangeable(A, rng, distribution, chunk, ways, one_sided), rule


def _as_gram(A: Any, method: Method) -> Any:
    """K = JJᴴ of a Jacobian, or of a kernel's factor: a square operator without one is its own square root's."""
    from traceest.operators import gram

    if A.factor is not None:
        return A
    if A.shape[0] == A.shape[1]:
        raise TypeError(
            f"trace: method={method!r} works on a Gram operator; wrap the Jacobian, trace(gram(J)), or choose another."
        )
    if method == "auto" and can(A, "matmat") and can(A, "rmatmat"):
        check.square(A, "trace")
    return gram(A)


def _exact(A: Any, best: Route | None, budget: int, chunk: int) -> Estimate:
    if best is not None and best.cost > budget:
        raise ValueError(
            f"trace: the exact trace costs {best.cost} products, max_matvecs = {budget} allows fewer; raise it, "
            "or choose another method."
        )
    return finite_exact(A, chunk, "trace")
