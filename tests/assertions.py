"""The checks that the tests are made of; `test_bite.py` shows that each of them can fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def assert_unbiased(estimates: Any, truth: complex, sigmas: float = 4.0) -> None:
    """The mean of independent estimates is within `sigmas` of its own standard errors of the truth."""
    x = np.asarray(estimates)
    stderr = np.std(x, ddof=1) / len(x) ** 0.5
    rounding = 1e-12 * abs(truth)  # all the spread there is where the estimator happens to be exact
    off = abs(np.mean(x) - truth)
    assert off <= sigmas * stderr + rounding, f"{off} off: mean {np.mean(x)} ± {stderr}, truth {truth}"


def unbiased(estimator: Callable[[int], Any], truth: complex, seeds: int) -> None:
    """`estimator(seed)` is unbiased over that many seeds."""
    assert_unbiased([complex(estimator(seed)) for seed in range(seeds)], truth)


def assert_variance(estimates: Any, variance: float, within: float) -> None:
    """The sample variance agrees with the formula up to the fraction `within`."""
    ratio = float(np.var(np.asarray(estimates), ddof=1)) / variance
    assert abs(ratio - 1) <= within, f"variance is {ratio:.3f} of what the formula says"


def assert_close(value: Any, truth: Any, rtol: float) -> None:
    """Equal up to `rtol` of the largest entry of `truth`; NaN equals NaN."""
    value, truth = np.asarray(value), np.asarray(truth)
    scale = np.max(np.abs(truth), initial=0.0, where=np.isfinite(truth))
    np.testing.assert_allclose(value, truth, rtol=rtol, atol=rtol * float(scale))


class Counter:
    """Any operator, with the columns counted that go through each of its products."""

    PRODUCTS = (
        *("matmat", "rmatmat", "gram_matmat"),
        *("block_rmatmat", "block_sqnorms", "block_sketch", "sketch_gram", "grouped_gram"),
    )

    def __init__(self, A: Any) -> None:
        self._A = A
        self.columns = dict.fromkeys(self.PRODUCTS, 0)
        self.widest = 0
        for name in self.PRODUCTS:
            if hasattr(A, name):
                setattr(self, name, self._counted(name, getattr(A, name)))

    def _counted(self, name: str, product: Callable[..., Any]) -> Callable[..., Any]:
        def counted(X: Any, *groups: Any) -> Any:
            self.columns[name] += X.shape[1]
            self.widest = max(self.widest, X.shape[1])
            return product(X, *groups)

        return counted

    def __getattr__(self, name: str) -> Any:
        if name in (*self.PRODUCTS, "H", "T"):  # what the protocol does not promise is not there
            raise AttributeError(name)
        return getattr(self._A, name)

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        return self._A.__array_namespace__()

    @property
    def n_matvecs(self) -> int:
        return self.columns["matmat"] + self.columns["gram_matmat"]

    @property
    def n_rmatvecs(self) -> int:
        return sum(self.columns.values()) - self.columns["matmat"]


def assert_counts(e: Any, *counters: Counter, budget: int | None = None) -> None:
    """The counts reported are the products made, and within the budget on either side."""
    made = sum(c.n_matvecs for c in counters), sum(c.n_rmatvecs for c in counters)
    assert (e.n_matvecs, e.n_rmatvecs) == made, f"reports {(e.n_matvecs, e.n_rmatvecs)}, made {made}"
    if budget is not None:
        assert max(made) <= budget * len(counters), f"made {made} of a budget of {budget}"
