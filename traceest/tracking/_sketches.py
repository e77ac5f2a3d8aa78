"""The sketches of the first, the last and the present checkpoint, by probes common to all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from traceest import _array_api as aa
from traceest.kernels.sketches import Request, Sketch, exact_cost
from traceest.kernels.sketches.deflated import Deflated, deflated
from traceest.kernels.sketches.exact import Exact, dense_kernel, of_dense_kernels
from traceest.kernels.sketches.one_sided import OneSided
from traceest.kernels.sketches.one_sided_sampler import one_sided
from traceest.kernels.sketches.two_sided import Plain
from traceest.kernels.sketches.two_sided_sampler import two_sided
from traceest.operators.abilities import can
from traceest.operators.blocks import n_blocks
from traceest.operators.metering import Meter
from traceest.probes import Probes


class Sketches:
    """What is kept of the first and the last checkpoint, and the joint sketch of these with the present one."""

    def __init__(self, K: Any, stream: Probes, m: int) -> None:
        self.shape, self.blocks = K.shape, n_blocks(K.inner)
        request = Request("Tracker", n_probes=m)
        self.exact = m >= exact_cost([K], request)
        self.V, self.law = None if self.exact else stream.take(m), stream.distribution
        self.kept: list[Any] = []

    def check(self, K: Any) -> None:
        """Raise unless K is a kernel on the same states."""
        blocks = n_blocks(K.inner)
        if (K.shape, blocks) != (self.shape, self.blocks):
            raise ValueError(
                f"Tracker: this kernel has shape {K.shape} and {blocks} blocks, those before {self.shape} and "
                f"{self.blocks}; follow one state on one batch, and start another Tracker for another."
            )

    def follow(self, K: Any, own: Sketch | None) -> Sketch:
        """The joint sketch of first, last and present kernel; `own` is the present one's, where it was made already."""
        now = own if own is not None else self._sketch(K)
        first, last = (self.kept[0], self.kept[-1]) if self.kept else (now, now)
        self.kept = [first, now]
        return _joined(first, last, now)

    def _sketch(self, K: Any) -> Any:
        if self.exact:
            return dense_kernel(K, "Tracker"), self.blocks
        request = Request("Tracker", probes=self.V, distribution=self.law)
        factor = K.factor
        by_factor = factor is not None and (can(factor, "rmatmat") or not can(K, "matmat"))
        return one_sided([K], request).sketch() if by_factor else two_sided([K], request)


class Deflation:
    """A basis of leading directions, one step of subspace iteration further at each checkpoint."""

    def __init__(self, stream: Probes, q: int) -> None:
        self.stream, self.q, self.Q = stream, q, None

    def sketch(self, K: Any, V: Any) -> tuple[Deflated, Sketch]:
        """The sketch with the basis deflated, and the common probes' own, which it gives as well.

        Q comes from products with Q alone, never with the probes, so that it is independent of them.
        """
        xp, first = aa.namespace(K), Meter(K)
        if self.Q is None:
            S = self.stream.take(self.q)
            self.Q = aa.orth(xp, first.op.matmat(S), S)[0]
        values, Z, own = deflated(K, self.Q, V)
        values.fields |= {name: values.fields[name] + n for name, n in first.spent.items()}
        self.Q = aa.orth(xp, Z, self.Q)[0]
        scale = aa.safe_scale(xp, own)
        own, unit = own / scale, xp.sum(scale)
        if values.G is not None:
            return values, OneSided(xp, [(own,)], [unit], values.fields, [])
        return values, Plain(xp, V, [own], [unit], values.fields, [])


def _joined(first: Any, last: Any, now: Any) -> Sketch:
    """Three sketches by the same probes as one of three kernels; the present one's counts."""
    if isinstance(now, OneSided):
        grams, units = [s.grams[0] for s in (first, last, now)], [s.units[0] for s in (first, last, now)]
        return replace(now, grams=grams, units=units)
    if isinstance(now, Plain):
        products, units = [s.KV[0] for s in (first, last, now)], [s.units[0] for s in (first, last, now)]
        return replace(now, KV=products, units=units)
    found: Exact = of_dense_kernels([kernel for (kernel, _), _ in (first, last, now)], now[1])
    found.fields |= now[0][1]
    return found
