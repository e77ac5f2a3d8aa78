"""The diagonal of an operator: sampled, deflated by XDiag, or exact.

A Gram operator's diagonal holds the squared row norms of its factor, (JJᴴ)ᵢᵢ = ‖Jᵢ‖²: of a model's kernel, how
strongly each state depends on the parameters.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from traceest import _array_api as aa
from traceest import _backends
from traceest import _validation as check
from traceest._boundary import public
from traceest.estimators.exact import Route, cheapest
from traceest.estimators.sampler import Sampler
from traceest.estimators.xtrace import XNysTrace
from traceest.operators.abilities import can
from traceest.operators.blocks import block_sqnorms, unit_probes
from traceest.operators.metering import Meter, chunk_columns
from traceest.operators.products import orth, products
from traceest.probes import Distribution, Probes, named
from traceest.spectrum.looks import number
from traceest.uncertainty.estimate import Estimate, certain, told, trace_bounds
from traceest.uncertainty.leave_out import LeftOut, left_out_directions, pair_weights
from traceest.uncertainty.moments import degrees_of_freedom

Method = Literal["auto", "hutchinson", "xdiag", "exact"]

ENOUGH = 8
"""Products from which on XDiag has a standard error."""

PAIRS = 2**22
"""Most numbers that the pairs of left-out probes take at a time; rows are treated in groups of that size."""


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
    its products on a sketch that captures nothing.

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
    J = A.factor
    target = J if J is not None and can(J, "matmat") and not can(A, "matmat") else A
    if not can(target, "matmat"):
        exactly = f"; the exact diagonal takes {best.cost} vjps" if best is not None else ""
        raise TypeError(f"diagonal: needs matmat (forward mode, jvp), which {target!r} lacks{exactly}.")
    check.check_probes(probes, target.shape[1], A, "diagonal")
    stream = Probes(target.shape[1], A, rng=rng, distribution=distribution, probes=probes)
    chunk = chunk_columns(target, chunk_size)
    if method == "hutchinson":
        return Entries(A, target, stream, chunk).once(k)
    sketch = XDiag(A, stream, chunk)
    sketch.grow(k)
    m = spent if probes is None else k
    if looks and sketch.worse_than_samples(m):
        return Entries(A, A, stream, chunk).going_on_from(sketch).once(m - k)
    return sketch.answer()


def _plan(A: Any, m: int | None, method: Method, distribution: Distribution, probes: Any) -> tuple[int, int, Method]:
    """The number of probes, the products that they cost, and the method."""
    two_sided = can(A, "matmat") and (A.symmetric or can(A, "rmatmat"))
    if method == "auto":
        given = m if m is not None else 0 if probes is None else 2 * probes.shape[-1]
        able = two_sided and named(distribution).independent
        method = "xdiag" if able and not isinstance(given, bool) and given >= ENOUGH else "hutchinson"
    if method == "hutchinson":
        k = check.budget(m, probes, 1, "n_matvecs", "diagonal")
        return k, k, method
    if not named(distribution).independent:
        raise ValueError("diagonal: XDiag needs independent probes; choose rademacher, gaussian or sphere.")
    if not two_sided:
        check.require_side(A, "matmat" if not can(A, "matmat") else "rmatmat", "diagonal")
    if probes is not None:
        k = check.budget(None, probes, 2, "probes", "diagonal")
        if m is not None and m != 2 * k:
            raise ValueError(f"diagonal: {k} probes spend {2 * k} products, not n_matvecs = {m}.")
        return k, 2 * k, method
    m = check.budget(m, None, 4, "n_matvecs", "diagonal")
    return m // 2, m, method


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
    value = aa.real(xp, value) if A.symmetric else value
    return told(certain(value, bounds=trace_bounds(A), **meter.spent), "diagonal", A)


class Entries(Sampler):
    """The mean of v̄∘Av over that of |v|², or of |Jw|² where `target` is J, with Student-t errors entry by entry."""

    KEPT = ("samples", "weights")
    statistic = "diagonal"
    samples: list[Any]
    weights: list[Any]

    def __init__(self, A: Any, target: Any, stream: Probes, chunk: int) -> None:
        super().__init__(target, stream, chunk)
        self.of_rows, self.real = target is not A, A.symmetric
        self.bounds = trace_bounds(A)

    def grow(self, k: int) -> None:
        """Spend k more samples."""
        for V in self.stream.chunks(k, self.chunk):
            self.take(V, self.meter.op.matmat(V))

    def take(self, V: Any, AV: Any) -> None:
        """The samples of the probes V, from their products."""
        xp = self.xp
        self.samples.append(aa.abs2(xp, AV) if self.of_rows else aa.conj(xp, V) * AV)
        if not self.of_rows:
            self.weights.append(aa.abs2(xp, V))

    def going_on_from(self, other: XDiag) -> Entries:
        """The sampler itself, with the probes and products of `other`."""
        self.meter.charge(**other.meter.spent)
        self.take(other.joined("probes"), other.joined("products"))
        return self

    def estimate(self) -> Estimate:
        """The answer so far."""
        xp, k, x = self.xp, self.n_samples, self.joined("samples")
        x = aa.real(xp, x) if self.real else x
        method = "squared jvps" if self.of_rows else "hutchinson"
        fields: dict[str, Any] = {"method": method, "bounds": self.bounds, **self.meter.spent}
        weight = xp.ones_like(aa.real(xp, x)) if self.of_rows else self.joined("weights")
        mean_weight = xp.sum(weight, axis=1) / k
        value = xp.sum(x, axis=1) / (k * xp.where(mean_weight > 0, mean_weight, xp.ones_like(mean_weight)))
        if k < 2:
            return Estimate(value, math.nan * aa.real(xp, value), math.nan * aa.real(xp, value), None, **fields)
        # A ratio's error is that of its residuals x − value·|v|²; for Rademacher probes |v|² = 1 and it is the mean's.
        residual = (x - value[:, None] * weight) / mean_weight[:, None]
        scale = aa.safe_scale(xp, residual, 1)
        squares = aa.abs2(xp, residual / scale)
        population = self.stream.population
        correction = 1.0 if population is None else 1 - k / population
        stderr = xp.sqrt(xp.sum(squares, axis=1) * (correction / (k * (k - 1)))) * scale[:, 0]
        return Estimate(value, stderr, degrees_of_freedom(xp, squares), None, **fields)


class XDiag(XNysTrace):
    """Value, stderr and df, (n,), from k probes and 2k products, Y = AΩ when it grows and then Z = AᴴQ, Q = orth(Y).

    eᵢ = diag(Q₍ᵢ₎Q₍ᵢ₎ᴴA) + ω̄ᵢ∘(I − Q₍ᵢ₎Q₍ᵢ₎ᴴ)Aωᵢ. With Q₍ᵢ₎Q₍ᵢ₎ᴴ = Q(I − sᵢsᵢᴴ)Qᴴ and Aωᵢ = Qrᵢ, where sⱼᴴrᵢ = 0 for
    j ≠ i, what is left of Aωᵢ is Qsᵢρᵢ, ρᵢ = sᵢᴴrᵢ, and

        eᵢ = diag(QZᴴ) − Qsᵢ∘conj(Zsᵢ) + ω̄ᵢ∘Qsᵢρᵢ.

    Leaving j out as well takes b = (sⱼ − sᵢc)/√d away, c = sᵢᴴsⱼ, d = 1 − |c|², with bᴴrᵢ = −c̄ρᵢ/√d. The trace's
    argument for the error (`leave_out`) is made of independence and zero means alone and holds entry by entry.
    """

    each = 2
    statistic = "diagonal"

    def grow(self, k: int) -> None:
        """Spend k more samples: the products AΩ of them."""
        super().grow(k)
        self.sketch = orth(self.joined("products"), self.joined("probes"))

    def worse_than_samples(self, m: int) -> bool:
        """Whether the mean of m samples v̄∘Av is predicted to have less variance; False inside a transformation."""
        arrays = self.joined("probes"), self.joined("products"), *self.sketch
        sampled, left_out = (number(x) for x in _backends.compiled(spreads, (), arrays, arrays[1]))
        return sampled is not None and left_out is not None and sampled / m < left_out / self.n_samples

    def estimate(self) -> Estimate:
        """The answer so far; it makes the products AᴴQ."""
        xp, A, Omega, (Q, R, QY, top) = self.xp, self.meter.op, self.joined("probes"), self.sketch
        Z = products(xp, A if A.symmetric else A.H, Q, self.chunk)
        left_out = _backends.compiled(_left_out, (), (R, QY, top), Q)
        step = max(1, PAIRS // Omega.shape[1] ** 2)
        ends = [(a, min(a + step, Omega.shape[0])) for a in range(0, Omega.shape[0], step)]
        parts = [
            _backends.compiled(_rows, (A.symmetric,), (Omega[a:b, :], Q[a:b, :], Z[a:b, :], *left_out), Q)
            for a, b in ends
        ]
        value, stderr, df = (aa.concat_columns(xp, [vars(e)[f] for e in parts]) for f in ("value", "stderr", "df"))
        return Estimate(value, stderr, df, method="xdiag", bounds=trace_bounds(A), **self.meter.spent)


def spreads(arrays: tuple[Any, ...]) -> tuple[Any, Any]:
    """What one probe's variance is, summed over all entries, of v̄∘Av and of XDiag's, in squares of the unit of Y.

    The first is that of a ratio to |v|²; the second that of ω̄ᵢ∘(I − Q₍ᵢ₎Q₍ᵢ₎ᴴ)Aωᵢ, from the sketch AΩ alone.
    """
    Omega, Y, Q, R, QY, top = arrays
    xp = aa.namespace(Q)
    S, rho, *_ = _left_out((R, QY, top))
    W, k = aa.conj(xp, Omega), Omega.shape[1]
    sampled, weight = W * (Y / xp.where(top > 0, top, xp.ones_like(top))), aa.abs2(xp, Omega)
    total = xp.sum(weight, axis=1, keepdims=True)
    ratio = xp.sum(sampled, axis=1, keepdims=True) / xp.where(total > 0, total, xp.ones_like(total))
    left = W * (Q @ S) * rho
    left = left - xp.sum(left, axis=1, keepdims=True) / k
    of = [xp.sum(aa.abs2(xp, x)) / (k - 1) for x in (sampled - ratio * xp.astype(weight, ratio.dtype), left)]
    return of[0], of[1]


def _left_out(arrays: tuple[Any, Any, Any]) -> tuple[Any, ...]:
    """What all rows share: S, ρ, C = SᴴS, the weights of pairs, C̄ρ, and the unit of Y."""
    R, QY, top = arrays
    xp = aa.namespace(R)
    S = left_out_directions(xp, R)
    seen = xp.astype(top > 0, R.dtype)  # where all of Y is zero, R is but the touch of Ω in it
    rho = aa.vdot(xp, S, QY) * seen
    C = aa.adjoint(xp, S) @ S
    return S, rho, C, pair_weights(xp, C), aa.conj(xp, C) * rho[:, None], xp.where(top > 0, top, xp.ones_like(top))


def _rows(symmetric: bool, arrays: tuple[Any, ...]) -> Estimate:
    """Those entries of the diagonal that the rows of Ω, Q and Z are given of."""
    Omega, Q, Z, S, rho, C, weight, back, unit = arrays
    xp = aa.namespace(Q)
    Z = Z / unit
    P, N, W = Q @ S, aa.conj(xp, Z @ S), aa.conj(xp, Omega)
    one = xp.sum(Q * aa.conj(xp, Z), axis=1)[:, None] - P * N + W * P * rho
    Pb = P[:, None, :] - P[:, :, None] * C
    Nb = N[:, None, :] - N[:, :, None] * aa.conj(xp, C)
    two = one[:, :, None] - Pb * (Nb + W[:, :, None] * back) * xp.astype(weight, Pb.dtype)
    if symmetric:
        one, two = aa.real(xp, one), aa.real(xp, two)
    return LeftOut(one, two, xp.sum(xp.abs(Q * aa.conj(xp, Z)), axis=1)).estimate(xp, xp.sum(unit))
