"""XNysTrace with ever more probes."""

from __future__ import annotations

import math
from typing import Any

from traceest import _array_api as aa
from traceest.estimate import Estimate, from_samples
from traceest.estimators.exchangeable import nystrom_estimate
from traceest.probes import Distribution, Probes
from traceest.samplers.base import Sampler


class Nystrom(Sampler):
    """XNysTrace with ever more probes: nothing is dropped, and all that was paid for serves again.

    The forms ωᴴAω of the same probes are Hutchinson's samples; where the spectrum is flat they are the better answer,
    and the one with the smaller error is given.
    """

    KEPT = ("products", "probes")
    products: list[Any]
    probes: list[Any]

    def __init__(self, A: Any, rng: Any, distribution: Distribution | None, chunk: int) -> None:
        distribution = "sphere" if distribution in (None, "orthogonal") else distribution
        super().__init__(A, Probes(A.shape[0], A, rng=rng, distribution=distribution), chunk)
        self.normalise = distribution != "rademacher"
        self.patience = A.shape[0] // 8
        self.looks: list[tuple[int, float]] = []

    def grow(self, k: int) -> None:
        """Spend k more probes."""
        for Omega in self.stream.chunks(k, self.chunk):
            self.probes.append(Omega)
            self.products.append(self.multiply(Omega))

    @property
    def rate(self) -> float:
        """As seen between the last two looks, hopeful before."""
        if len(self.looks) < 2:
            return 2.0
        (k, before), (m, now) = self.looks[-2:]
        return min(8.0, max(0.5, math.log(before / now) / math.log(m / k))) if now > 0 else 8.0

    def estimate(self) -> Estimate:
        """The answer so far."""
        Omega, Y = self.joined("probes"), self.joined("products")
        forms = aa.real(self.xp, aa.vdot(self.xp, Omega, Y))[None, :]
        e = from_samples(forms, method="hutchinson", bounds=(0.0, math.inf), **self.meter.spent)
        if self.n_samples >= 3:
            nystrom = nystrom_estimate(self.xp, Omega, Y, self.normalise, self.meter)
            e = nystrom if float(nystrom.stderr) <= float(e.stderr) else e
        self.looks.append((self.n_samples, float(e.stderr)))
        return e
