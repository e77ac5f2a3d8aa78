"""Samplers that grow until told to stop: the engines behind `traceest.trace`.

A sampler holds everything already paid for. `grow(k)` spends k more samples; `estimate()` is the
answer so far; its error is taken to fall as the number of samples to the power −`rate`, and the exact trace is not
resorted to before `patience` samples. `Deflating` may also turn the products of its
samples into a sketch, which is Hutch++ grown while it pays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from traceest import _array_api as aa
from traceest import _validation as check
from traceest.estimate import Estimate, from_samples, trace_bounds
from traceest.estimators._metering import Meter
from traceest.estimators.exchangeable import nystrom_estimate
from traceest.estimators.hutchpp import deflate
from traceest.operators.blocks import block_sqnorms, n_blocks
from traceest.probes import Distribution, Probes


class Sampling:
    """Independent samples of one kind, (n_blocks, k) for every (n, k) of probes."""

    rate, patience = 0.5, 0

    def __init__(
        self, J: Any, side: str, method: str, sample: Callable[[Any, Any], Any], stream: Probes, chunk: int
    ) -> None:
        self.meter = Meter(J)
        self.side, self.method, self.sample, self.stream, self.chunk = side, method, sample, stream, chunk
        self.parts: list[Any] = []

    def grow(self, k: int) -> None:
        """Spend k more samples."""
        for V in self.stream.chunks(k, self.chunk):
            first = self.meter.n_matvecs + self.meter.n_rmatvecs
            x = self.sample(self.meter.op, V)
            check.finite(x, self.side, first, "trace")
            self.parts.append(x)

    @property
    def n_samples(self) -> int:
        """Samples that the estimate rests on."""
        return sum(x.shape[1] for x in self.parts)

    def estimate(self) -> Estimate:
        """The answer so far."""
        x = aa.concat_columns(self.stream.xp, self.parts)
        return from_samples(x, method=self.method, bounds=(0.0, math.inf), **self.meter.spent)

    def deflation_cost(self) -> float:
        """Products that a sketch of the samples so far would cost; infinite where none can be made."""
        return math.inf


def rhutch_sampling(J: Any, rng: Any, distribution: Distribution, chunk: int) -> Sampling:
    """‖J_bᴴ v_b‖² for each block: vjps alone."""
    B = n_blocks(J)
    stream = Probes(J.shape[0], J, rng=rng, distribution=distribution, n_blocks=B)
    return Sampling(J, "rmatmat", "rhutch" if B == 1 else "rhutch per block", block_sqnorms, stream, chunk)


def fhutch_sampling(J: Any, rng: Any, distribution: Distribution, chunk: int) -> Sampling:
    """‖Jw‖²: jvps alone."""
    stream = Probes(J.shape[1], J, rng=rng, distribution=distribution)
    xp = stream.xp

    def sample(J: Any, W: Any) -> Any:
        return xp.sum(aa.abs2(xp, J.matmat(W)), axis=0)[None, :]

    return Sampling(J, "matmat", "fhutch", sample, stream, chunk)


class Nystrom:
    """XNysTrace with ever more probes: nothing is dropped, and all that was paid for serves again.

    The forms ωᴴAω of the same probes are Hutchinson's samples; where the spectrum is flat they are the better answer,
    and the one with the smaller error is given.
    """

    side = "matmat"

    def __init__(self, A: Any, rng: Any, distribution: Distribution | None, chunk: int) -> None:
        self.meter, self.xp, self.chunk = Meter(A), aa.namespace(A), chunk
        distribution = "sphere" if distribution in (None, "orthogonal") else distribution
        self.stream = Probes(A.shape[0], A, rng=rng, distribution=distribution)
        self.normalise = distribution != "rademacher"
        self.patience = A.shape[0] // 8
        self.probes: list[Any] = []
        self.products: list[Any] = []
        self.looks: list[tuple[int, float]] = []

    def grow(self, k: int) -> None:
        """Spend k more probes."""
        for Omega in self.stream.chunks(k, self.chunk):
            first = self.meter.n_matvecs
            Y = self.meter.op.matmat(Omega)
            check.finite(Y, self.side, first, "trace")
            self.probes.append(Omega)
            self.products.append(Y)

    @property
    def n_samples(self) -> int:
        """Probes that the estimate rests on."""
        return sum(Y.shape[1] for Y in self.products)

    @property
    def rate(self) -> float:
        """P of an error that falls as k^−p: as seen between the last two looks, hopeful before."""
        if len(self.looks) < 2:
            return 2.0
        (k, before), (m, now) = self.looks[-2:]
        return min(8.0, max(0.5, math.log(before / now) / math.log(m / k))) if now > 0 else 8.0

    def estimate(self) -> Estimate:
        """The answer so far."""
        Omega, Y = (aa.concat_columns(self.xp, parts) for parts in (self.probes, self.products))
        forms = aa.real(self.xp, aa.vdot(self.xp, Omega, Y))[None, :]
        e = from_samples(forms, method="hutchinson", bounds=(0.0, math.inf), **self.meter.spent)
        if self.n_samples >= 3:
            nystrom = nystrom_estimate(self.xp, Omega, Y, self.normalise, self.meter)
            e = nystrom if float(nystrom.stderr) <= float(e.stderr) else e
        self.looks.append((self.n_samples, float(e.stderr)))
        return e

    def deflation_cost(self) -> float:
        """There is nothing to deflate: the sketch is made of all probes already."""
        return math.inf


class Deflating:
    """uᴴAu with u = (I − QQᴴ)g, and Q grown from the products Au when that pays.

    With Q empty this is Hutchinson; after one `deflate` it is Hutch++ whose sketch cost one product a column
    and not two, because the samples' own products are the sketch. The samples taken before are dropped (they
    shaped Q, and would bias), their products are not.
    """

    side = "matmat"
    rate, patience = 0.5, 0

    def __init__(self, A: Any, rng: Any, distribution: Distribution, chunk: int) -> None:
        self.meter, self.xp, self.chunk = Meter(A), aa.namespace(A), chunk
        self.stream = Probes(A.shape[0], A, rng=rng, distribution=distribution)
        self.bounds = trace_bounds(A)
        self.Q: Any = None
        self.on_sketch: Any = 0.0
        self.products: list[Any] = []
        self.parts: list[Any] = []

    def _multiply(self, V: Any) -> Any:
        first = self.meter.n_matvecs
        AV = self.meter.op.matmat(V)
        check.finite(AV, self.side, first, "trace")
        return AV

    def grow(self, k: int) -> None:
        """Spend k more samples."""
        for G in self.stream.chunks(k, self.chunk):
            U = G if self.Q is None else deflate(self.xp, self.Q, G)
            AU = self._multiply(U)
            self.parts.append(aa.vdot(self.xp, U, AU)[None, :])
            self.products.append(AU)

    @property
    def n_samples(self) -> int:
        """Samples that the estimate rests on."""
        return sum(x.shape[1] for x in self.parts)

    def estimate(self) -> Estimate:
        """The answer so far."""
        x = aa.concat_columns(self.xp, self.parts)
        method = "hutchinson" if self.Q is None else "adaptive hutchpp"
        e = from_samples(x, method=method, bounds=self.bounds, **self.meter.spent)
        return e if self.Q is None else replace(e, value=e.value + self.on_sketch, samples=None)

    def deflation_cost(self) -> float:
        """One product for each sample's, to have AQ."""
        room = self.stream.n - (0 if self.Q is None else self.Q.shape[1])
        return self.n_samples if self.n_samples < room else math.inf

    def deflate(self) -> None:
        """Move the span of the samples' products into the sketch, and start sampling the rest afresh."""
        xp = self.xp
        Y = aa.concat_columns(xp, self.products)
        if self.Q is None:
            Q = aa.orth(xp, Y)[0]
        else:  # twice is enough: Gram–Schmidt against the old columns loses orthogonality once
            Q = aa.orth(xp, deflate(xp, self.Q, aa.orth(xp, deflate(xp, self.Q, Y))[0]))[0]
        for i in range(0, Q.shape[1], self.chunk):
            Qc = Q[:, i : min(i + self.chunk, Q.shape[1])]
            self.on_sketch = self.on_sketch + xp.sum(aa.vdot(xp, Qc, self._multiply(Qc)))
        self.Q = Q if self.Q is None else xp.concat([self.Q, Q], axis=1)
        self.products, self.parts = [], []
