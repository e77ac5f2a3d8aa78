"""RHutch and FHutch: tr(JJᴴ) from products with one side of J alone, block by block where J has blocks."""

from __future__ import annotations

import math
from typing import Any

from traceest import _array_api as aa
from traceest import _validation as check
from traceest._boundary import public
from traceest.estimators.exact import exact
from traceest.operators.blocks import block_sqnorms, n_blocks
from traceest.operators.layout import layout
from traceest.operators.metering import Meter, chunk_columns
from traceest.probes import Distribution, Probes
from traceest.uncertainty.estimate import Estimate, from_samples, told


@public
def rhutch(
    J: Any,
    n_probes: int | None = None,
    *,
    rng: Any = None,
    distribution: Distribution | None = None,
    probes: Any = None,
    chunk_size: int | None = None,
) -> Estimate:
    """Estimate tr(JJᴴ) = ‖J‖² from vjps alone: E Σ_b ‖J_bᴴ v_b‖², b running over J's blocks.

    Without blocks this is the paper's RHutch, E‖Jᴴv‖², whose variance for Rademacher probes is
    2(‖K‖² − Σ kᵢᵢ²), K = JJᴴ. With blocks (rows of independent examples) every cross-example term of it
    is gone: 2 Σ_b (‖K_bb‖² − Σ diag²), at the same number of vjps. There the signs are also orthogonal to each other
    within every block, which leaves (N − m)/(N − 1) of the variance of independent ones, N ≥ n_b the next power of two.
    Where a state is known to have features at several positions (time, tokens, pixels; without blocks, examples), in
    one block or in blocks of more than 128 rows, the signs are balanced over these instead, for as little
    as a tenth of the variance (`te.probes.balanced`).

    Choose it where only reverse mode is available, where J has blocks, and where J has fewer rows than
    columns; `fhutch` probes the column side.

    Parameters
    ----------
    J : Jacobian, (n, P), or a Gram operator (whose factor is then taken)
        Anything rectangular with `rmatmat` that `aslinearoperator` takes.
    n_probes : int
        vjps to spend. From n_b = n / n_blocks on, the exact trace is returned.
    rng, chunk_size
        As in `hutchinson`.
    distribution : {"rademacher", "hadamard", "balanced", "gaussian", "sphere", "orthogonal"}, optional
        Law of the probes, drawn block by block; default: balanced or hadamard as said above (blocks of at most 2¹⁴
        rows), else rademacher.
    probes : array, (n, n_probes), optional
        Explicit probes instead of `rng`.

    Returns
    -------
    Estimate
        ``samples`` is (n_blocks, n_probes); each row's mean estimates that block's own trace.

    Raises
    ------
    TypeError
        If J has no `rmatmat`.
    ValueError
        If the budget is below 1 or `probes` do not fit.

    References
    ----------
    arXiv 2511.10796 (RHutch); the per-block form is this library's own.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> J = np.random.default_rng(0).standard_normal((60, 40))
    >>> e = te.rhutch(te.aslinearoperator(J, n_blocks=6), 4, rng=0)
    >>> e.n_rmatvecs, e.n_matvecs
    (4, 0)
    """
    J = check.operator(J, "rhutch")
    J = getattr(J, "factor", J)
    check.require_side(J, "rmatmat", "rhutch")
    B, n = n_blocks(J), J.shape[0]
    m = check.budget(n_probes, probes, 1, "n_probes", "rhutch")
    check.check_probes(probes, n, J, "rhutch")
    chunk = chunk_columns(J, chunk_size)
    if probes is None and m >= n // B:
        return exact(J, side="rmatmat", chunk_size=chunk)
    meter = Meter(J)
    stream = Probes(n, J, rng=rng, distribution=distribution, n_blocks=B, layout=layout(J, B), probes=probes)
    samples = [block_sqnorms(meter.op, V) for V in stream.chunks(m, chunk)]
    return _squared_norms(samples, stream, "rhutch" if B == 1 else "rhutch per block", meter)


@public
def fhutch(
    J: Any,
    n_probes: int | None = None,
    *,
    rng: Any = None,
    distribution: Distribution | None = None,
    probes: Any = None,
    chunk_size: int | None = None,
) -> Estimate:
    """Estimate tr(JJᴴ) = ‖J‖² from jvps alone: E‖Jw‖².

    Variance for Rademacher probes: 2(‖JᴴJ‖² − Σ diag²). Choose it where only forward mode is available
    or fast, and where J has far fewer columns than rows; with sphere or orthogonal probes the gain on
    the smaller side is largest.

    Parameters
    ----------
    J : Jacobian, (n, P), or a Gram operator (whose factor is then taken)
        Anything rectangular with `matmat`.
    n_probes : int
        jvps to spend. From P on, the exact trace is returned.
    rng, distribution, chunk_size
        As in `hutchinson`.
    probes : array, (P, n_probes), optional
        Explicit probes instead of `rng`.

    Returns
    -------
    Estimate

    Raises
    ------
    TypeError
        If J has no `matmat`.
    ValueError
        If the budget is below 1 or `probes` do not fit.

    References
    ----------
    arXiv 2511.10796 (FHutch).

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> J = np.random.default_rng(0).standard_normal((60, 40))
    >>> e = te.fhutch(J, 8, rng=0)
    >>> e.n_rmatvecs, e.n_matvecs
    (0, 8)
    """
    J = check.operator(J, "fhutch")
    J = getattr(J, "factor", J)
    check.require_side(J, "matmat", "fhutch")
    P = J.shape[1]
    m = check.budget(n_probes, probes, 1, "n_probes", "fhutch")
    check.check_probes(probes, P, J, "fhutch")
    chunk = chunk_columns(J, chunk_size)
    if probes is None and m >= P:
        return exact(J, side="matmat", chunk_size=chunk)
    meter, xp = Meter(J), aa.namespace(J)
    stream = Probes(P, J, rng=rng, distribution=distribution, probes=probes)
    samples = [xp.sum(aa.abs2(xp, meter.op.matmat(V)), axis=0)[None, :] for V in stream.chunks(m, chunk)]
    return _squared_norms(samples, stream, "fhutch", meter)


def _squared_norms(samples: list[Any], stream: Probes, method: str, meter: Meter) -> Estimate:
    """The estimate whose samples are squared norms, hence not negative."""
    x = aa.concat_columns(stream.xp, samples)
    fields = {"method": method, "bounds": (0.0, math.inf), **meter.spent}
    e = from_samples(x, population=stream.population, doubt=stream.doubt, **fields)
    return told(e, "trace", meter.op, stream.marks)
