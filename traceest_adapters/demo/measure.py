"""Estimates of a kernel's statistics along training, and estimate against exact at both ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import traceest as te

N_CHECKPOINTS = 9
LONG = 0.3  # seconds from which one call is timing enough


@dataclass(frozen=True)
class Comparison:
    """A statistic estimated and exact, with the seconds that each took."""

    when: str
    statistic: str
    estimate: te.Estimate
    exact: te.Estimate
    seconds: float
    exact_seconds: float

    @property
    def speed_up(self) -> float:
        """How many times faster the estimate was."""
        return self.exact_seconds / self.seconds

    @property
    def holds(self) -> bool:
        """Whether the estimate's 95 % interval holds the exact value."""
        low, high = self.estimate.confidence_interval()
        return bool(low <= float(self.exact) <= high)


@dataclass(frozen=True)
class Checkpoint:
    """Estimates by name after `step` steps of training, and the accuracy there."""

    step: int
    accuracy: float
    estimates: dict[str, te.Estimate]


def checkpoints(n_steps: int) -> list[int]:
    """Steps to look at: denser at the start, where kernels change most; the first is 0, the last `n_steps`."""
    last = N_CHECKPOINTS - 1
    return sorted({round(n_steps * (i / last) ** 2) for i in range(N_CHECKPOINTS)})


def estimates(K: Any, K_start: Any, n_probes: int, seed: int) -> dict[str, te.Estimate]:
    """All four statistics of K; the alignment is with the kernel at the start, and probes are common to all."""
    calls = {**_of_one(K, n_probes, seed), **_of_two(K_start, K, n_probes, seed)}
    return {name: estimate() for name, (estimate, _) in calls.items()}


def warm_up(K: Any) -> None:
    """Run what the exact statistics run, untimed."""
    te.exact(K)
    te.frobenius_norm(K, method="exact")


def comparisons(K_start: Any, K_end: Any, n_probes: int, seed: int) -> Iterator[Comparison]:
    """Trace, norm and effective rank of each kernel and the alignment of the two, estimated and exact.

    Call `estimates` and `warm_up` first, so that no time counts compilation.
    """
    for when, calls in (
        ("before", _of_one(K_start, n_probes, seed)),
        ("after", _of_one(K_end, n_probes, seed)),
        ("before and after", _of_two(K_start, K_end, n_probes, seed)),
    ):
        for statistic, (estimate, exact) in calls.items():
            e, seconds = _timed(estimate)
            x, exact_seconds = _timed(exact)
            yield Comparison(when, statistic, e, x, seconds, exact_seconds)


Calls = dict[str, tuple[Callable[[], te.Estimate], Callable[[], te.Estimate]]]


def _of_one(K: Any, m: int, seed: int) -> Calls:
    return {
        "trace": (lambda: te.rhutch(K, m, rng=seed), lambda: te.exact(K)),
        "Frobenius norm": (
            lambda: te.frobenius_norm(K, m, rng=seed),
            lambda: te.frobenius_norm(K, method="exact"),
        ),
        "effective rank": (
            lambda: te.effective_rank(K, m, rng=seed),
            lambda: te.effective_rank(K, method="exact"),
        ),
    }


def _of_two(K1: Any, K2: Any, m: int, seed: int) -> Calls:
    return {
        "alignment": (
            lambda: te.alignment(K1, K2, m, rng=seed),
            lambda: te.alignment(K1, K2, method="exact"),
        )
    }


def _timed(f: Callable[[], te.Estimate]) -> tuple[te.Estimate, float]:
    """What `f` returns and the seconds it takes: the least of up to five calls, of one where that is long."""
    spent: list[float] = []
    while True:
        start = time.perf_counter()
        e = f()
        float(e)  # waits for an asynchronous device
        spent.append(time.perf_counter() - start)
        if len(spent) == 5 or sum(spent) > LONG:
            return e, min(spent)
