"""XTrace and XNysTrace: every probe serves the sketch and the residual, by leaving one out at a time.

The algebra, and why the error bars are unbiased, is in `traceest.uncertainty.leave_out`.
"""

from __future__ import annotations

import math
from typing import Any

from traceest import _array_api as aa
from traceest import _backends
from traceest import _validation as check
from traceest._boundary import public
from traceest.estimators.exact import cheapest, exact
from traceest.operators.metering import Meter, chunk_columns
from traceest.operators.products import orth, products
from traceest.probes import ORTHOGONAL, SIGNS, Distribution, Probes, directions
from traceest.uncertainty import leave_out
from traceest.uncertainty.estimate import Estimate, told, trace_bounds


@public
def xtrace(
    A: Any,
    n_matvecs: int | None = None,
    *,
    rng: Any = None,
    distribution: Distribution = "sphere",
    probes: Any = None,
    normalise: bool = True,
    chunk_size: int | None = None,
) -> Estimate:
    """Estimate tr A by XTrace: Hutch++ in which every probe plays both parts.

    With Y = AΩ, Q = orth(Y) and Q₍ᵢ₎ the basis without probe i, the estimate is the mean over i of
    tr(Q₍ᵢ₎ᴴAQ₍ᵢ₎) + ωᵢᴴ(I − Q₍ᵢ₎Q₍ᵢ₎ᴴ)A(I − Q₍ᵢ₎Q₍ᵢ₎ᴴ)ωᵢ. k probes cost 2k products; for a Gram operator
    K = JJᴴ, 2k vjps and k jvps.

    Choose it where the spectrum decays or has a step and A is not known to be PSD; if it is, `xnystrace` does
    with half the products. On flat spectra `hutchinson` is better.

    Parameters
    ----------
    A : operator, (n, n)
        Anything that `aslinearoperator` takes, with `matmat`; it need not be symmetric.
    n_matvecs : int
        At least 4; k = n_matvecs // 2. From the exact trace's cost on (n; less for a Gram operator), that is returned.
    rng, chunk_size
        As in `hutchinson`.
    distribution : {"sphere", "gaussian", "rademacher", "balanced"}
        Law of the probes; `normalise` asks for a rotation-invariant one, which Rademacher is not.
    probes : array, (n, k), optional
        Explicit probes; 2k products are spent.
    normalise : bool
        Rescale what is left of each probe to the length that it should have ("improved" probes): less variance.
        Switched off for Rademacher probes.

    Returns
    -------
    Estimate
        With the unbiased leave-two-out error of `traceest.uncertainty.leave_out`. Memory O(n k).

    Raises
    ------
    ValueError
        If A is not square, the budget is below 4, or probes are orthogonal.
    TypeError
        If A has no `matmat`.

    References
    ----------
    Epperly, Tropp, Webber (2024), XTrace: Making the most of every sample in stochastic trace estimation.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = np.diag(0.7 ** np.arange(200.0))
    >>> abs(float(te.xtrace(A, 60, rng=0)) * 0.3 - 1) < 1e-3
    True
    """
    sketch = _sketch(A, n_matvecs, 2, "xtrace", rng, distribution, probes, chunk_size)
    if isinstance(sketch, Estimate):
        return sketch
    meter, Omega, Y, chunk, marks = sketch
    xp = aa.namespace(Y)
    Q, R, QY, top = orth(Y, Omega)
    scale = xp.where(top > 0, top, 1.0)
    H, T = _compressed(xp, meter.op, Q, Omega, scale, chunk)
    unit, forms = top, None
    if _backends.differentiated(Y):  # an answer times 0 would have no derivative
        unit, forms = scale, aa.vdot(xp, Omega, Y / scale)
    found = _mean(leave_out.xtrace, (), normalise, distribution, (Omega, Q, R, QY, H, T, unit, forms))
    value, stderr, df = found
    stderr = stderr if forms is None else stderr * (top / scale)
    e = Estimate(value, stderr, df, None, method="xtrace", bounds=trace_bounds(meter.op), **meter.spent)
    return told(e, "trace", meter.op, marks)


@public
def xnystrace(
    A: Any,
    n_matvecs: int | None = None,
    *,
    rng: Any = None,
    distribution: Distribution = "sphere",
    probes: Any = None,
    normalise: bool = True,
    chunk_size: int | None = None,
) -> Estimate:
    """Estimate tr A of a positive semidefinite A by XNysTrace: a Nyström approximation, leaving one probe out.

    With Y = AΩ, H = ΩᴴY and the Nyström approximation Â = YH⁻¹Yᴴ, leaving probe i out takes uᵢuᵢᴴ/(H⁻¹)ᵢᵢ from Â,
    U = YH⁻¹, and the residual form ωᵢᴴ(A − Â₍ᵢ₎)ωᵢ is 1/(H⁻¹)ᵢᵢ. k probes cost k products. A tiny shift
    (of rounding size, taken off again) keeps H invertible for operators of any rank.

    The most accurate of all where the spectrum decays. Calling it declares A positive semidefinite.

    Parameters
    ----------
    A : operator, (n, n), positive semidefinite
        Anything that `aslinearoperator` takes, with `matmat`.
    n_matvecs : int
        At least 2; k = n_matvecs. From the exact trace's cost on, that is returned.
    rng, distribution, probes, normalise, chunk_size
        As in `xtrace`; with explicit probes k products are spent.

    Returns
    -------
    Estimate
        With the unbiased leave-two-out error of `traceest.uncertainty.leave_out`, bounded below by 0. Memory O(n k).

    Raises
    ------
    ValueError
        If A is not square, the budget is below 2, or probes are orthogonal.
    TypeError
        If A has no `matmat`.

    References
    ----------
    Epperly, Tropp, Webber (2024), XTrace: Making the most of every sample in stochastic trace estimation.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = np.diag(0.7 ** np.arange(200.0))
    >>> abs(float(te.xnystrace(A, 60, rng=0)) * 0.3 - 1) < 1e-7
    True
    """
    law = directions(distribution) if normalise else distribution
    sketch = _sketch(A, n_matvecs, 1, "xnystrace", rng, law, probes, chunk_size)
    if isinstance(sketch, Estimate):
        return sketch
    meter, Omega, Y, _, marks = sketch
    found = _mean(leave_out.xnystrace, (_backends.differentiated(Y),), normalise, distribution, (Omega, Y))
    e = Estimate(*found, None, method="xnystrace", bounds=(0.0, math.inf), **meter.spent)
    return told(e, "trace", meter.op, marks)


def _sketch(
    A: Any,
    m: int | None,
    each: int,
    caller: str,
    rng: Any,
    distribution: Distribution,
    probes: Any,
    chunk_size: int | None,
) -> Estimate | tuple[Meter, Any, Any, int, tuple[str, ...]]:
    """The meter, probes Ω, Y = AΩ, the chunk and the probes' marks; or the exact trace, if m affords it.

    A probe costs `each` products.
    """
    A = check.square(A, caller)
    check.require_side(A, "matmat", caller)
    check.check_probes(probes, A.shape[0], A, caller)
    if distribution in ORTHOGONAL:
        raise ValueError(f"{caller}: leaving one out needs independent probes; choose sphere, gaussian or rademacher.")
    if probes is not None:
        spent = each * probes.shape[-1]
        if m is not None and m != spent:
            raise ValueError(f"{caller}: {probes.shape[-1]} probes spend {spent} products, not n_matvecs = {m}.")
        m = spent
    k = check.budget(m, None, 2 * each, "n_matvecs", caller) // each
    chunk = chunk_columns(A, chunk_size)
    best = cheapest(A)
    if probes is None and best is not None and each * k >= best.cost:
        return exact(A, chunk_size=chunk)
    meter, xp = Meter(A), aa.namespace(A)
    stream = Probes(A.shape[0], A, rng=rng, distribution=distribution, probes=probes)
    Omega = stream.take(k)
    return meter, Omega, products(xp, meter.op, Omega, chunk), chunk, stream.marks


def _mean(
    of: Any, options: tuple[Any, ...], normalise: bool, distribution: Distribution, arrays: tuple[Any, ...]
) -> leave_out.Mean:
    """The arithmetic after the products, as one program where the framework compiles."""
    return _backends.compiled(of, (normalise and distribution not in SIGNS, *options), arrays, arrays[0])


def _compressed(xp: Any, A: Any, Q: Any, Omega: Any, scale: Any, chunk: int) -> tuple[Any, Any]:
    """H = QᴴAQ and T = (AQ)ᴴΩ, over `scale`; no T where A is self-adjoint, for it is QᴴY. Of K = JJᴴ H takes vjps."""
    if hasattr(A, "factor"):
        G = aa.concat_columns(
            xp, [A.factor.rmatmat(Q[:, i : min(i + chunk, Q.shape[1])]) for i in range(0, Q.shape[1], chunk)]
        )
        unit = xp.sqrt(scale)
        return aa.adjoint(xp, G / unit) @ (G / unit), None
    Z = products(xp, A, Q, chunk)
    return aa.adjoint(xp, Q) @ Z / scale, None if A.symmetric else aa.adjoint(xp, Z) @ Omega / scale
