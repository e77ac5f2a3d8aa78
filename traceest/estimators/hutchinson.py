"""Hutchinson's estimator: the mean of vᴴAv."""

from __future__ import annotations

from typing import Any

from traceest import _array_api as aa
from traceest import _validation as check
from traceest._boundary import public
from traceest.estimators.exact import exact
from traceest.estimators.one_sided import fhutch, rhutch
from traceest.operators.metering import Meter, chunk_columns
from traceest.operators.products import form
from traceest.probes import Distribution, Probes
from traceest.uncertainty.estimate import Estimate, from_samples, told, trace_bounds


@public
def hutchinson(
    A: Any,
    n_matvecs: int | None = None,
    *,
    rng: Any = None,
    distribution: Distribution | None = None,
    probes: Any = None,
    chunk_size: int | None = None,
) -> Estimate:
    """Estimate tr A as the mean of vᴴAv over `n_matvecs` isotropic probes v.

    Unbiased for every square A. Variance of one probe, real symmetric A: 2(‖A‖² − Σ aᵢᵢ²) with
    Rademacher, 2‖A‖² with Gaussian probes; see `traceest.probes`.

    Choose it for slowly decaying spectra, for one or two digits, and where memory for a sketch is short;
    where the spectrum decays, `hutchpp` is better.

    Parameters
    ----------
    A : operator, (n, n)
        Anything that `aslinearoperator` takes. A Gram operator K = JJᴴ needs one side only:
        vᴴKv = ‖Jᴴv‖², by vjps (`rhutch`, block by block where J has blocks) or else by jvps (`fhutch`).
    n_matvecs : int
        Columns to multiply. From n on (with blocks of n_b rows: n_b), the exact trace is returned.
    rng : int, numpy.random.Generator, JAX key, torch.Generator or None
        See `traceest.probes`.
    distribution : {"rademacher", "gaussian", "sphere", "orthogonal", "hadamard", "balanced"}, optional
        Law of the probes; default: Rademacher, or as in `rhutch`.
    probes : array, (n, n_matvecs), optional
        Explicit probes instead of `rng`; they are to be isotropic, E[vvᴴ] = I.
    chunk_size : int, optional
        Columns multiplied at a time; chosen from memory if absent. Results do not depend on it.

    Returns
    -------
    Estimate
        With Student-t error from the samples; of A's dtype. Memory O(n · chunk_size).

    Raises
    ------
    ValueError
        If A is not square, the budget is below 1, or `probes` do not fit.
    TypeError
        If dtypes or devices do not fit, or a needed product is missing.

    References
    ----------
    Girard (1989); Hutchinson (1990), Communications in Statistics 19(2).

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = np.diag(np.arange(1.0, 101.0)) + 0.1
    >>> e = te.hutchinson(A, 20, rng=0)
    >>> e.confidence_interval().low < 5060 < e.confidence_interval().high
    True
    """
    A = check.square(A, "hutchinson")
    J = getattr(A, "factor", None)
    if J is not None:
        one_sided = rhutch if hasattr(J, "rmatmat") else fhutch
        return one_sided(J, n_matvecs, rng=rng, distribution=distribution, probes=probes, chunk_size=chunk_size)
    check.require_side(A, "matmat", "hutchinson")
    n = A.shape[0]
    m = check.budget(n_matvecs, probes, 1, "n_matvecs", "hutchinson")
    check.check_probes(probes, n, A, "hutchinson")
    chunk = chunk_columns(A, chunk_size)
    if probes is None and m >= n:
        return exact(A, chunk_size=chunk)
    meter, xp = Meter(A), aa.namespace(A)
    stream = Probes(n, A, rng=rng, distribution=distribution, probes=probes)
    samples = [form(xp, meter.op, V, meter.op.matmat(V)) for V in stream.chunks(m, chunk)]
    e = from_samples(
        aa.concat_columns(xp, samples)[None, :],
        population=stream.population,
        doubt=stream.doubt,
        method="hutchinson",
        bounds=trace_bounds(A),
        **meter.spent,
    )
    return told(e, "trace", A, stream.marks)
