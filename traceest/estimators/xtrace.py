"""XTrace and XNysTrace: every probe serves the sketch and the residual, by leaving one out at a time.

The algebra, and why the error bars are unbiased, is in `traceest.uncertainty.leave_out`.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from traceest import _array_api as aa
from traceest import _backends
from traceest import _validation as check
from traceest._boundary import public
from traceest.estimators.exact import cheapest, exact
from traceest.estimators.sampler import Sampler
from traceest.operators.metering import chunk_columns
from traceest.operators.products import orth, products
from traceest.probes import Distribution, Probes, named
from traceest.uncertainty import leave_out
from traceest.uncertainty.estimate import Estimate, trace_bounds


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
    return _once(XTrace, "xtrace", A, n_matvecs, rng, distribution, probes, normalise, chunk_size)


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
    law = named(distribution).directions.name if normalise else distribution
    return _once(XNysTrace, "xnystrace", A, n_matvecs, rng, law, probes, normalise, chunk_size)


def _once(
    kind: type[XNysTrace],
    caller: str,
    A: Any,
    m: int | None,
    rng: Any,
    distribution: Distribution,
    probes: Any,
    normalise: bool,
    chunk_size: int | None,
) -> Estimate:
    """The answer from m products, or the exact trace where m products suffice for it."""
    A, each = check.square(A, caller), kind.each
    check.require_side(A, "matmat", caller)
    check.check_probes(probes, A.shape[0], A, caller)
    if not named(distribution).independent:
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
    stream = Probes(A.shape[0], A, rng=rng, distribution=distribution, probes=probes)
    return kind(A, stream, chunk, normalise).once(k)


class XNysTrace(Sampler):
    """Probes Ω, products Y = AΩ, and the Nyström approximation that they give."""

    KEPT: ClassVar[tuple[str, ...]] = ("products", "probes")
    products: list[Any]
    probes: list[Any]

    each = 1
    """Products per probe."""

    def __init__(self, A: Any, stream: Probes, chunk: int, normalise: bool = True) -> None:
        super().__init__(A, stream, chunk)
        self.normalise = normalise and not stream.law.unit_modulus

    @property
    def cost(self) -> int:
        """Products that one more sample takes."""
        return self.each

    @property
    def n_probes(self) -> int:
        """Columns of Ω."""
        return sum(Y.shape[1] for Y in self.products)

    def grow(self, k: int) -> None:
        """Spend k more samples."""
        Omega = self.stream.take(k)
        self.probes.append(Omega)
        self.products.append(self.multiply(Omega))
        self.remember(Omega, self.products[-1])

    def estimate(self) -> Estimate:
        """The answer so far."""
        Omega, Y = self.joined("probes"), self.joined("products")
        static = self.normalise, _backends.differentiated(Y)
        found: leave_out.Mean = _backends.compiled(leave_out.xnystrace, static, (Omega, Y), Y)
        return Estimate(*found, None, method="xnystrace", bounds=(0.0, math.inf), **self.meter.spent)


class XTrace(XNysTrace):
    """With as many products again by Q = orth(Y): for QᴴAQ, and (AQ)ᴴΩ where A is not self-adjoint.

    Q is made of all probes at once, so that QᴴAQ of a Gram operator K = JJᴴ takes vjps alone. `Exchangeable` keeps AQ
    instead, and grows.
    """

    each = 2

    def grow(self, k: int) -> None:
        """Spend k more samples."""
        super().grow(k)
        Omega = self.joined("probes")
        self.sketch = orth(self.joined("products"), Omega)
        self.H, self.T = self._compressed(self.sketch[0], Omega, self.sketch[3])

    def _compressed(self, Q: Any, Omega: Any, top: Any) -> tuple[Any, Any]:
        """H = QᴴAQ and T = (AQ)ᴴΩ, in units of Y; no T where A is self-adjoint, for it is QᴴY."""
        xp, A = self.xp, self.meter.op
        scale = xp.where(top > 0, top, 1.0)
        if A.factor is not None:
            pieces = (Q[:, i : min(i + self.chunk, Q.shape[1])] for i in range(0, Q.shape[1], self.chunk))
            G = aa.concat_columns(xp, [A.factor.rmatmat(X) for X in pieces]) / xp.sqrt(scale)
            return aa.adjoint(xp, G) @ G, None
        Z = products(xp, A, Q, self.chunk)
        return aa.adjoint(xp, Q) @ Z / scale, None if A.symmetric else aa.adjoint(xp, Z) @ Omega / scale

    def estimate(self) -> Estimate:
        """The answer so far."""
        xp, Omega, Y, (Q, R, QY, top) = self.xp, self.joined("probes"), self.joined("products"), self.sketch
        unit, forms, share = top, None, 1.0
        if _backends.differentiated(Y):  # an answer times 0 would have no derivative
            unit = xp.where(top > 0, top, 1.0)
            forms, share = aa.vdot(xp, Omega, Y / unit), top / unit
        arrays = Omega, Q, R, QY, self.H, self.T, unit, forms
        value, stderr, df = _backends.compiled(leave_out.xtrace, (self.normalise,), arrays, Omega)
        fields = {"method": "xtrace", "bounds": trace_bounds(self.meter.op), **self.meter.spent}
        return Estimate(value, stderr * share, df, None, **fields)
