"""Hutch++: the trace on a sketched subspace, plus Hutchinson on what is left.

`HutchPP` sketches once, by a number of columns given in advance; `Deflating` makes a sketch of its samples' products,
and more of one while that pays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

from traceest import _array_api as aa
from traceest import _backends
from traceest import _validation as check
from traceest._boundary import public
from traceest.estimators.exact import cheapest, exact
from traceest.estimators.sampler import Sampler
from traceest.operators.metering import chunk_columns
from traceest.operators.products import deflate, form, orth, quadratic_forms
from traceest.probes import Distribution, Probes, named
from traceest.uncertainty.estimate import Estimate, from_samples, trace_bounds


@public
def hutchpp(
    A: Any,
    n_matvecs: int | None = None,
    *,
    rng: Any = None,
    distribution: Distribution = "sphere",
    probes: Any = None,
    normalise: bool = True,
    n_sketch: int | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    """Estimate tr A as tr(QᴴAQ) + mean of gᴴ(I − QQᴴ)A(I − QQᴴ)g, with Q = orth(AS).

    With q sketch columns S and s residual probes g the cost is 2q + s = `n_matvecs`. For a Gram operator
    K = JJᴴ the last two terms are ‖JᴴQ‖² and ‖Jᴴ(I − QQᴴ)g‖², so only the sketch needs jvps: 2q + s vjps
    and q jvps. The error falls as 1/n_matvecs for PSD operators, and much faster where the spectrum decays.

    Choose it where a few eigenvalues hold most of the trace; on flat spectra `hutchinson` is better.

    Parameters
    ----------
    A : operator, (n, n)
        Anything that `aslinearoperator` takes, with `matmat`; it need not be symmetric.
    n_matvecs : int
        At least 3. From the exact trace's cost on (n; less for a Gram operator), that is returned.
    rng
        As in `hutchinson`.
    distribution : {"sphere", "gaussian", "rademacher", "orthogonal", "hadamard", "balanced"}
        Law of the probes. Rademacher is better where what the sketch leaves is nearly diagonal.
    probes : array, (n, q + s), optional
        Explicit probes of that law: the first q = `n_sketch` are the sketch S, the others the residual's g. The
        budget spent is 2q + s.
    normalise : bool
        Give (I − QQᴴ)g the length √(n − q) that it should have ("improved" probes): only its direction is random then,
        and the variance of a residual B about 2(‖B‖² − (tr B)²/(n − q)), which is nothing for the identity. For laws
        that no rotation changes, sphere and Gaussian.
    n_sketch : int, optional
        q; default n_matvecs // 3 (with explicit probes: half of them).
    chunk_size : int, optional
        Columns multiplied at a time. Memory is O(n · (q + chunk_size)).

    Returns
    -------
    Estimate
        The error is that of the residual's samples (Student-t, s − 1 degrees of freedom).

    Raises
    ------
    ValueError
        If A is not square, or the budget leaves no sketch or no residual.
    TypeError
        If A has no `matmat` (of a Gram operator: if J lacks either side).

    References
    ----------
    Meyer, Musco, Musco, Woodruff (2021), Hutch++: Optimal Stochastic Trace Estimation, Algorithm 1.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = np.diag(0.5 ** np.arange(200.0))
    >>> abs(float(te.hutchpp(A, 60, rng=0)) - 2) < 1e-4
    True
    """
    A = check.square(A, "hutchpp")
    check.require_side(A, "matmat", "hutchpp")
    n = A.shape[0]
    q, s = _split(n_matvecs, n_sketch, probes)
    check.check_probes(probes, n, A, "hutchpp")
    chunk = chunk_columns(A, chunk_size)
    best = cheapest(A)
    if probes is None and best is not None and 2 * q + s >= best.cost:
        return exact(A, chunk_size=chunk)
    q = min(q, n)
    law = named(distribution).directions if normalise else named(distribution)
    stream = Probes(n, A, rng=rng, distribution=law.name, probes=probes)
    length2 = n - q if normalise and law.invariant else None
    return HutchPP(A, stream, chunk, q, length2).once(s)


def _split(m: int | None, q: int | None, probes: Any) -> tuple[int, int]:
    """Sketch and residual sizes (q, s) with 2q + s = m; a third for each unless told otherwise.

    Measured at n = 1000, m = 60 and 120: q = 2m/5 has 0.3 and 0.07 times the error on 0.7^i, 0.9 and 0.5 on 0.9^i, but
    1.1 on i⁻¹ and 1.3 on flat and indefinite spectra. Of a Gram operator a sketch column costs two vjps and a jvp,
    one of the residual a vjp; at equal cost 3q + s more than q = s gains up to sevenfold on 0.7^i and loses up to
    twofold on flat spectra and steps.
    """
    if probes is not None:
        k = check.budget(None, probes, 1, "probes", "hutchpp")
        q = k // 2 if q is None else q
        if m is not None and m != q + k:
            raise ValueError(
                f"hutchpp: {k} probes with n_sketch = {q} spend 2q + s = {q + k} products, not n_matvecs = {m}."
            )
        m = q + k
    m = check.budget(m, None, 3, "n_matvecs", "hutchpp")
    q = m // 3 if q is None else q
    if q < 1 or m - 2 * q < 1:
        raise ValueError(
            f"hutchpp: n_sketch = {q} of n_matvecs = {m} leaves {m - 2 * q} for the residual; 2q + s = n_matvecs with "
            "q ≥ 1 and s ≥ 1 is needed."
        )
    return q, m - 2 * q


class HutchPP(Sampler):
    """Samples uᴴAu, u = (I − QQᴴ)g, beside tr(QᴴAQ) with Q = orth(AS), of q sketch columns S drawn first.

    With `length2`, each u is brought to that squared length.
    """

    KEPT: ClassVar[tuple[str, ...]] = ("samples", "basis", "on_sketch")
    FORMS: ClassVar[tuple[str, ...]] = ("samples", "on_sketch")
    samples: list[Any]
    basis: list[Any]
    on_sketch: list[Any]

    def __init__(self, A: Any, stream: Probes, chunk: int, q: int = 0, length2: int | None = None) -> None:
        super().__init__(A, stream, chunk)
        self.length2, self.bounds = length2, trace_bounds(A)
        if q:
            S = stream.take(q)
            self.basis.append(orth(self.multiply(S), S)[0])

    def left(self, k: int) -> Iterator[Any]:
        """What Q leaves of the next k probes, a chunk at a time."""
        Q = self.joined("basis") if self.basis else None
        for G in self.stream.chunks(k, self.chunk):
            yield G if Q is None else _backends.compiled(_left, (self.length2,), (Q, G), G)

    def grow(self, k: int) -> None:
        """Spend k more samples."""
        off_sketch = self._forms(k) if self.on_sketch else self._first_forms(k)
        self.samples.append(off_sketch[None, :])

    def _forms(self, k: int) -> Any:
        return quadratic_forms(self.xp, self.meter.op, self.left(k))

    def _first_forms(self, k: int) -> Any:
        """The same, and qᴴAq; in one pass over A, as long as columns are copied for less."""
        xp, op, chunk, Q = self.xp, self.meter.op, self.chunk, self.basis[0]
        n, q = Q.shape
        if q + k <= chunk and n * (q + k) <= aa.LARGE:
            forms = quadratic_forms(xp, op, [aa.concat_columns(xp, [Q, *self.left(k)])])
            on_sketch, off_sketch = forms[:q], forms[q:]
        else:
            on_sketch = quadratic_forms(xp, op, (Q[:, i : min(i + chunk, q)] for i in range(0, q, chunk)))
            off_sketch = self._forms(k)
        self.on_sketch.append(on_sketch[None, :])
        return off_sketch

    def estimate(self) -> Estimate:
        """The answer so far."""
        residual = from_samples(self.joined("samples"), method="hutchpp", **self.meter.spent)
        value = self.xp.sum(self.joined("on_sketch")) + residual.value
        return replace(residual, value=value, samples=None, bounds=self.bounds)

    def consistent(self, columns: dict[str, int], state: dict[str, Any]) -> bool:
        """Whether arrays with these numbers of columns, and the state's counts, can come from one run."""
        samples, basis = columns["samples"], columns["basis"]
        return samples > 0 and basis == columns["on_sketch"] and state["drawn"] == samples + basis


class Deflating(HutchPP):
    """Adaptive Hutch++: Q grows from the samples' products Au when that pays.

    With Q empty this is Hutchinson; after one `deflate` it is Hutch++ whose sketch cost one product a column
    and not two, because the samples' own products are the sketch. The samples taken before are dropped (they
    shaped Q, and would bias), their products are not.
    """

    KEPT = ("samples", "products", "basis", "on_sketch", "spreads")
    FORMS = ("samples", "on_sketch", "spreads")
    products: list[Any]
    spreads: list[Any]

    def __init__(self, A: Any, rng: Any, distribution: Distribution, chunk: int) -> None:
        super().__init__(A, Probes(A.shape[0], A, rng=rng, distribution=named(distribution).alone.name), chunk)

    def grow(self, k: int) -> None:
        """Spend k more samples."""
        for U in self.left(k):
            AU = self.multiply(U)
            self.samples.append(form(self.xp, self.meter.op, U, AU)[None, :])
            self.products.append(AU)
            self.remember(U, AU)

    def consistent(self, columns: dict[str, int], state: dict[str, Any]) -> bool:
        """Whether arrays with these numbers of columns, and the state's counts, can come from one run."""
        grown = bool(columns["basis"]) == bool(columns["spreads"])
        return super().consistent(columns, state) and columns["samples"] == columns["products"] and grown

    def estimate(self) -> Estimate:
        """The answer so far."""
        method = "adaptive hutchpp" if self.basis else "hutchinson"
        e = from_samples(self.joined("samples"), method=method, bounds=self.bounds, **self.meter.spent)
        if not self.basis:
            return e
        exact = self.xp.sum(self.joined("on_sketch"))
        reach = None if e.reach is None else e.reach + exact
        return replace(e, value=e.value + exact, samples=None, reach=reach)

    def spread(self) -> Any:
        """Standard deviation of one sample, (1, 1)."""
        return self.xp.reshape(self.estimate().stderr, (1, 1)) * self.n_samples**0.5

    def worth_deflating(self, ahead: float, left: int) -> int:
        """One product for each sample's, to have AQ; not on a flat spectrum, where the last sketch took nothing out."""
        k = self.n_samples
        room = self.stream.n - sum(Q.shape[1] for Q in self.basis)
        flat = bool(self.spreads) and bool(self.spread()[0, 0] > 0.8 * self.spreads[-1][0, -1])
        return k if ahead > 3 * k and left >= 2 * k and k < room and not flat else 0

    def deflate(self) -> None:
        """Move the span of the samples' products into the sketch, and sample what is left as often."""
        k = self.n_samples
        xp, Y = self.xp, self.joined("products")
        self.spreads.append(self.spread())
        if self.basis:  # twice is enough: Gram–Schmidt against the old columns loses orthogonality once
            old = self.joined("basis")
            Y = deflate(xp, old, aa.orth(xp, deflate(xp, old, Y))[0])
        Q = aa.orth(xp, Y)[0]
        self.on_sketch.append(form(xp, self.meter.op, Q, self.multiply(Q))[None, :])
        self.basis.append(Q)
        self.products, self.samples = [], []
        self.grow(k)


def _left(length2: int | None, arrays: tuple[Any, Any]) -> Any:
    """What Q leaves of the columns of G, at that squared length, if any; zeros stay."""
    Q, G = arrays
    xp = aa.namespace(G)
    U = deflate(xp, Q, G)
    if length2 is None:
        return U
    found = xp.sum(aa.abs2(xp, U), axis=0)
    scale = xp.sqrt(length2 / xp.where(found > 0, found, xp.ones_like(found)))
    return U * xp.astype(scale, U.dtype)[None, :]
