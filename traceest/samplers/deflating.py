"""Adaptive Hutch++: a sketch grown from the samples' own products while it pays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from traceest import _array_api as aa
from traceest.estimators.sampler import Sampler
from traceest.operators.products import deflate, form
from traceest.probes import Distribution, Probes, independent
from traceest.uncertainty.estimate import Estimate, from_samples, trace_bounds


class Deflating(Sampler):
    """uᴴAu with u = (I − QQᴴ)g, and Q grown from the products Au when that pays.

    With Q empty this is Hutchinson; after one `deflate` it is Hutch++ whose sketch cost one product a column
    and not two, because the samples' own products are the sketch. The samples taken before are dropped (they
    shaped Q, and would bias), their products are not.
    """

    KEPT = ("samples", "products", "basis", "on_sketch", "spreads")
    FORMS = ("samples", "on_sketch", "spreads")
    samples: list[Any]
    products: list[Any]
    basis: list[Any]
    on_sketch: list[Any]
    spreads: list[Any]

    def __init__(self, A: Any, rng: Any, distribution: Distribution, chunk: int) -> None:
        super().__init__(A, Probes(A.shape[0], A, rng=rng, distribution=independent(distribution)), chunk)
        self.bounds = trace_bounds(A)

    def grow(self, k: int) -> None:
        """Spend k more samples."""
        Q = self.joined("basis") if self.basis else None
        for G in self.stream.chunks(k, self.chunk):
            U = G if Q is None else deflate(self.xp, Q, G)
            AU = self.multiply(U)
            self.samples.append(form(self.xp, self.meter.op, U, AU)[None, :])
            self.products.append(AU)
            self.remember(U, AU)

    def seen(self, V: Any) -> Any:
        """What `remember` is given for the probe V."""
        return self.multiply(V)

    def consistent(self, columns: dict[str, int], state: dict[str, Any]) -> bool:
        """Whether arrays with so many columns, and the state's counts, can be of one run."""
        samples, basis = columns["samples"], columns["basis"]
        pairs = samples == columns["products"] and basis == columns["on_sketch"]
        return samples > 0 and pairs and state["drawn"] == samples + basis and bool(basis) == bool(columns["spreads"])

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
