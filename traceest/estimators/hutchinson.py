"""Hutchinson's estimator, the mean of vᴴAv; of A = JJᴴ also ‖Jᴴv‖² by vjps alone (RHutch), ‖Jw‖² by jvps (FHutch)."""

from __future__ import annotations

from typing import Any

from traceest import _validation as check
from traceest._boundary import public
from traceest.estimators.exact import exact
from traceest.estimators.sampling import fhutch_sampling, hutchinson_sampling, rhutch_sampling
from traceest.operators.abilities import can
from traceest.operators.blocks import n_blocks
from traceest.operators.metering import chunk_columns
from traceest.probes import Distribution
from traceest.uncertainty.estimate import Estimate


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
        Explicit probes instead of `rng`; they must be isotropic, E[vvᴴ] = I.
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
    J = A.factor
    if J is not None:
        one_sided = rhutch if can(J, "rmatmat") else fhutch
        return one_sided(J, n_matvecs, rng=rng, distribution=distribution, probes=probes, chunk_size=chunk_size)
    check.require_side(A, "matmat", "hutchinson")
    n = A.shape[0]
    m = check.budget(n_matvecs, probes, 1, "n_matvecs", "hutchinson")
    check.check_probes(probes, n, A, "hutchinson")
    chunk = chunk_columns(A, chunk_size)
    if probes is None and m >= n:
        return exact(A, chunk_size=chunk)
    return hutchinson_sampling(A, rng, distribution, chunk, probes).once(m)


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
        Law of the probes, drawn block by block; default: balanced or hadamard as described above (blocks of at most
        2¹⁴ rows), else rademacher.
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
    J = J.inner
    check.require_side(J, "rmatmat", "rhutch")
    B, n = n_blocks(J), J.shape[0]
    m = check.budget(n_probes, probes, 1, "n_probes", "rhutch")
    check.check_probes(probes, n, J, "rhutch")
    chunk = chunk_columns(J, chunk_size)
    if probes is None and m >= n // B:
        return exact(J, side="rmatmat", chunk_size=chunk)
    return rhutch_sampling(J, rng, distribution, chunk, probes).once(m)


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
    J = J.inner
    check.require_side(J, "matmat", "fhutch")
    P = J.shape[1]
    m = check.budget(n_probes, probes, 1, "n_probes", "fhutch")
    check.check_probes(probes, P, J, "fhutch")
    chunk = chunk_columns(J, chunk_size)
    if probes is None and m >= P:
        return exact(J, side="matmat", chunk_size=chunk)
    return fhutch_sampling(J, rng, distribution, chunk, probes).once(m)
