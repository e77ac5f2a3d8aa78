"""The diagonal of an operator: sampled, deflated by XDiag, or exact.

A Gram operator's diagonal holds the squared row norms of its factor, (JJᴴ)ᵢᵢ = ‖Jᵢ‖²: of a model's kernel, how
strongly each state depends on the parameters.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any, Literal, get_args

from traceest import _array_api as aa
from traceest import _backends
from traceest import _validation as check
from traceest._boundary import public
from traceest.estimators.exact import Route, cheapest
from traceest.estimators.xdiag import spreads, xdiag
from traceest.operators.blocks import block_sqnorms, unit_probes
from traceest.operators.metering import Meter, chunk_columns
from traceest.operators.products import orth, products
from traceest.probes import ORTHOGONAL, Distribution, Probes
from traceest.spectrum.looks import number
from traceest.uncertainty.estimate import Estimate, certain, told, trace_bounds
from traceest.uncertainty.moments import degrees_of_freedom

Method = Literal["auto", "hutchinson", "xdiag", "exact"]

ENOUGH = 8
"""Products from which XDiag tells its error."""


@public
def diagonal(
    A: Any,
    n_matvecs: int | None = None,
    method: Method = "auto",
    *,
    rng: Any = None,
    distribution: Distribution = "rademacher",
    probes: Any = None,
    chunk_size: int | None = None,
) -> Estimate:
    """Estimate the diagonal of A, entry by entry, each with its error.

    * ``"hutchinson"``: the mean of v̄∘Av / mean of |v|² over the probes v. Variance of one Rademacher probe, real
      symmetric A: Σ_{j≠i} aᵢⱼ²; a diagonal A is exact. Of a Gram operator K = JJᴴ whose J has `matmat` alone: the
      mean of |Jw|², with variance 2(‖Jᵢ‖⁴ − Σⱼ Jᵢⱼ⁴), which no other row of J adds to.
    * ``"xdiag"``: with Y = AΩ and Q₍ᵢ₎ = orth of Y without column i, the mean over i of
      diag(Q₍ᵢ₎Q₍ᵢ₎ᴴA) + ω̄ᵢ∘(I − Q₍ᵢ₎Q₍ᵢ₎ᴴ)Aωᵢ. k probes cost 2k products, AΩ and AᴴQ.
    * ``"exact"``: n products; of a Gram operator n/B vjps with B independent blocks of rows, or P jvps.
    * ``"auto"``: exact where the budget affords it; else, from 8 products on and where A has the sides for XDiag (it is
      known to be symmetric, or has `rmatmat`), the better of the two; else Hutchinson. The first half of the products,
      AΩ, is the same for both: it is XDiag's sketch, and half of Hutchinson's samples. It tells the variance of each,
      and the other half is spent for the one with the smaller. Inside `jax.jit` there are no values to look at: XDiag.

    XDiag is better where the spectrum decays, Hutchinson where A is flat or nearly diagonal: there XDiag spends half
    its products on a sketch that tells nothing.

    Parameters
    ----------
    A : operator, (n, n)
        Anything that `aslinearoperator` takes.
    n_matvecs : int
        Products to spend, of a Gram operator K = JJᴴ on either side of J; not needed for "exact". At least 1, for
        XDiag 4. From the exact diagonal's cost on, that is returned.
    method : {"auto", "hutchinson", "xdiag", "exact"}
        See above.
    rng, distribution
        As in `hutchinson`; XDiag needs independent probes, not orthogonal ones.
    probes : array, (n, k), optional
        Explicit probes; (P, k) for |Jw|². XDiag spends 2k products.
    chunk_size : int, optional
        Columns multiplied at a time. Memory is O(n · chunk_size), for XDiag O(n · (k + chunk_size)).

    Returns
    -------
    Estimate
        ``value``, ``stderr`` and ``df`` of shape (n,), and so is what `confidence_interval` gives. Real for operators
        known to be Hermitian. XDiag's error comes from leaving two probes out, as in `traceest.uncertainty.leave_out`.

    Raises
    ------
    ValueError
        If A is not square, the budget is below the method's minimum, or probes do not fit.
    TypeError
        If a product that the method needs is missing. A Jacobian with vjps alone gives the exact diagonal only.

    References
    ----------
    Bekas, Kokiopoulou, Saad (2007), An estimator for the diagonal of a matrix;
    Epperly, Tropp, Webber (2024), XTrace: Making the most of every sample in stochastic trace estimation, section 2.4.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> u = np.cos(np.arange(200.0))
    >>> e = te.diagonal(te.aslinearoperator(np.outer(u, u), psd=True), 20, rng=0)
    >>> bool(np.allclose(e.value, u**2)), e.method, e.n_matvecs
    (True, 'xdiag', 20)
    """
    A = check.operator(A, "diagonal")
    if A.shape[0] != A.shape[1]:
        raise ValueError(
            f"diagonal: expected a square operator, got shape {tuple(A.shape)}; for the squared row norms of a "
            "rectangular J ask for diagonal(gram(J))."
        )
    if method not in get_args(Method):
        raise ValueError(f"diagonal: method must be one of {', '.join(get_args(Method))}, got {method!r}.")
    best = cheapest(A)
    if best is not None and method == "exact":
        return _exact(A, best, chunk_columns(best.operator, chunk_size))
    looks = method == "auto"
    k, spent, method = _plan(A, n_matvecs, method, distribution, probes)
    if best is not None and probes is None and spent >= best.cost:
        return _exact(A, best, chunk_columns(best.operator, chunk_size))
    J = getattr(A, "factor", None)
    target = J if J is not None and hasattr(J, "matmat") and not hasattr(A, "matmat") else A
    if not hasattr(target, "matmat"):
        exactly = f"; the exact diagonal takes {best.cost} vjps" if best is not None else ""
        raise TypeError(f"diagonal: needs matmat (forward mode, jvp), which {target!r} has not got{exactly}.")
    check.check_probes(probes, target.shape[1], A, "diagonal")
    stream = Probes(target.shape[1], A, rng=rng, distribution=distribution, probes=probes)
    chunk = chunk_columns(target, chunk_size)
    meter = Meter(target)
    if method == "hutchinson":
        return _sampled(A, target, meter, stream, k, chunk)
    xp, Omega = stream.xp, stream.take(k)
    if not looks:
        e = xdiag(xp, meter.op, Omega, chunk)
        return told(replace(e, method="xdiag", bounds=trace_bounds(A), **meter.spent), "diagonal", A, stream.marks)
    Y = products(xp, meter.op, Omega, chunk)
    sketch = orth(Y, Omega)
    samples = spent if probes is None else k
    sampled, left_out = (number(x) for x in _backends.compiled(spreads, (), (Omega, Y, *sketch), Y))
    if sampled is not None and left_out is not None and sampled / samples < left_out / k:
        return _sampled(A, target, meter, stream, samples, chunk, (Omega, Y))
    e = xdiag(xp, meter.op, Omega, chunk, sketch)
    return told(replace(e, method="xdiag", bounds=trace_bounds(A), **meter.spent), "diagonal", A, stream.marks)


def _plan(A: Any, m: int | None, method: Method, distribution: Distribution, probes: Any) -> tuple[int, int, Method]:
    """The number of probes, the products that they cost, and the method."""
    two_sided = hasattr(A, "matmat") and (getattr(A, "symmetric", False) or hasattr(A, "rmatmat"))
    if method == "auto":
        given = m if m is not None else 0 if probes is None else 2 * probes.shape[-1]
        able = two_sided and distribution not in ORTHOGONAL
        method = "xdiag" if able and not isinstance(given, bool) and given >= ENOUGH else "hutchinson"
    if method == "hutchinson":
        k = check.budget(m, probes, 1, "n_matvecs", "diagonal")
        return k, k, method
    if distribution in ORTHOGONAL:
        raise ValueError("diagonal: XDiag needs independent probes; choose rademacher, gaussian or sphere.")
    if not two_sided:
        check.require_side(A, "matmat" if not hasattr(A, "matmat") else "rmatmat", "diagonal")
    if probes is not None:
        k = check.budget(None, probes, 2, "probes", "diagonal")
        if m is not None and m != 2 * k:
            raise ValueError(f"diagonal: {k} probes spend {2 * k} products, not n_matvecs = {m}.")
        return k, 2 * k, method
    m = check.budget(m, None, 4, "n_matvecs", "diagonal")
    return m // 2, m, method


def _sampled(
    A: Any, target: Any, meter: Meter, stream: Probes, k: int, chunk: int, first: tuple[Any, Any] | None = None
) -> Estimate:
    """Mean of v̄∘Av over that of |v|², or of |Jw|² where `target` is J, with Student-t errors entry by entry.

    `first` are the first probes and their products, where these have been made.
    """
    xp = stream.xp
    of_rows = target is not A
    samples, weights = [], []
    made = 0 if first is None else first[0].shape[1]
    following = ((V, meter.op.matmat(V)) for V in stream.chunks(k - made, chunk))
    for V, AV in following if first is None else itertools.chain([first], following):
        samples.append(aa.abs2(xp, AV) if of_rows else aa.conj(xp, V) * AV)
        weights.append(aa.abs2(xp, V))
    x = aa.concat_columns(xp, samples)
    x = aa.real(xp, x) if getattr(A, "symmetric", False) else x
    fields: dict[str, Any] = {"bounds": trace_bounds(A), **meter.spent}
    fields["method"] = "squared jvps" if of_rows else "hutchinson"
    weight = xp.ones_like(aa.real(xp, x)) if of_rows else aa.concat_columns(xp, weights)
    mean_weight = xp.sum(weight, axis=1) / k
    value = xp.sum(x, axis=1) / (k * xp.where(mean_weight > 0, mean_weight, xp.ones_like(mean_weight)))
    if k < 2:
        nothing = math.nan * aa.real(xp, value)
        return told(Estimate(value, nothing, nothing, None, **fields), "diagonal", A, stream.marks)
    # A ratio's error is that of its residuals x − value·|v|²; for Rademacher probes |v|² = 1 and it is the mean's.
    residual = (x - value[:, None] * weight) / mean_weight[:, None]
    scale = aa.safe_scale(xp, residual, 1)
    squares = aa.abs2(xp, residual / scale)
    correction = 1.0 if stream.population is None else 1 - k / stream.population
    stderr = xp.sqrt(xp.sum(squares, axis=1) * (correction / (k * (k - 1)))) * scale[:, 0]
    e = Estimate(value, stderr, degrees_of_freedom(xp, squares), None, **fields)
    return told(e, "diagonal", A, stream.marks)


def _exact(A: Any, best: Route, chunk: int) -> Estimate:
    """Entry by entry from unit vectors, on the cheapest side."""
    xp, meter, parts = aa.namespace(A), Meter(best.operator), []
    total: Any = 0.0
    for i in range(0, best.cost, chunk):
        E = unit_probes(best.operator, i, min(i + chunk, best.cost), best.side)
        if best.side == "rmatmat":
            parts.append(block_sqnorms(meter.op, E))  # (B, k): row i of each block
        elif best.operator is A:
            parts.append(xp.sum(E * meter.op.matmat(E), axis=0)[None, :])
        else:
            total = total + xp.sum(aa.abs2(xp, meter.op.matmat(E)), axis=1)
    value = xp.reshape(aa.concat_columns(xp, parts), (-1,)) if parts else total
    value = aa.real(xp, value) if getattr(A, "symmetric", False) else value
    return told(certain(value, bounds=trace_bounds(A), **meter.spent), "diagonal", A)
