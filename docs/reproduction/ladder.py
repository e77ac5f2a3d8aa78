"""The experiment of figures 2 and 3: a trace by each method, over budgets and seeds, timed against the direct one.

The budget m counts columns: kernel-vector products of Hutch++ (2q + s = m, q = m/6), vjps of RHutch, jvps of FHutch.
What they cost is seen in the run times, which are taken in turns: between any two of them a part of the direct trace's
n kernel-vector products is made and timed as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cases import Case, rms, seconds

import traceest as te

EXACT, TRACE = "exact by example", "te.trace"
PER_EXAMPLE = "RHutch by example"


def hutchpp(case: Case, m: int, rng: Any) -> te.Estimate:
    """With the paper's signs and its q."""
    return te.hutchpp(case.whole, m, n_sketch=max(1, m // 6), distribution="rademacher", rng=rng)


METHODS: dict[str, Callable[[Case, int, Any], te.Estimate]] = {
    "Hutch++": hutchpp,
    "RHutch": lambda case, m, rng: te.rhutch(case.whole, m, rng=rng),
    "FHutch": lambda case, m, rng: te.fhutch(case.whole, m, rng=rng),
    PER_EXAMPLE: lambda case, m, rng: te.rhutch(case.blocks, m, rng=rng),
}
BUDGETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
TOLERANCES = (3e-2, 1e-2, 3e-3, 1e-3, 1e-4)
TURNS = 3
SHORT = 0.1
"""Seconds below which a run is timed five times a turn."""


def budgets_of(name: str, case: Case, budgets: tuple[int, ...]) -> list[int]:
    """Those that the method can spend and that are fewer than the exact trace's products."""
    least = 3 if name == "Hutch++" else 1
    sizes = case.sizes
    most = sizes["n"] // sizes["B"] if name == PER_EXAMPLE else min(sizes["n"], sizes["P"])
    return [m for m in budgets if least <= m < most]


def estimates(name: str, case: Case, budgets: list[int], seeds: int) -> dict[int, list[float]]:
    """By budget, one a seed. A one-sided estimate is the mean of its first m samples, so that one run has them all."""
    if name == "Hutch++":
        return {m: [float(hutchpp(case, m, seed)) for seed in range(seeds)] for m in budgets}
    samples = [METHODS[name](case, max(budgets), seed).samples for seed in range(seeds)]
    sums = [np.asarray(x, np.float64).sum(axis=0) for x in samples]
    return {m: [float(x[:m].mean()) for x in sums] for m in budgets}


class Direct:
    """The n kernel-vector products of the direct way, or the first ones, made and timed a part at a time."""

    def __init__(self, Ks: Sequence[te.Gram], parts: int, share: float, chunk: int = 256) -> None:
        self.Ks, self.n = Ks, Ks[0].shape[0]
        self.chunk, self.last = min(chunk, self.n), max(1, round(share * self.n))
        self.part = -(-self.last // parts)
        self.taken, self.done, self.sums = 0.0, 0, 0.0
        for k in {self.chunk, self.n % self.chunk} - {0}:
            self._products(0, k)  # compiles

    def go_on(self, to_the_end: bool = False) -> None:
        """Make the next part, in whole chunks."""
        until = self.last if to_the_end else min(self.last, self.done + self.part)
        while self.done < until:
            stop = min(self.n, self.done + self.chunk)
            start = time.perf_counter()
            self.sums = self.sums + self._products(self.done, stop)
            self.taken += time.perf_counter() - start
            self.done = stop

    @property
    def seconds(self) -> float:
        """Of all n products."""
        return self.taken * self.n / self.done

    def _products(self, start: int, stop: int) -> Any:
        """Parts of tr K_a, and of ⟨K_a, K_b⟩ for all pairs, in float64."""
        at = jnp.arange(start, stop), jnp.arange(stop - start)
        E = jnp.zeros((self.n, stop - start), self.Ks[0].dtype).at[at].set(1)
        columns = [K.matmat(E) for K in self.Ks]
        traces = [jnp.sum(C[at]) for C in columns]
        products = [jnp.sum(C * D) for C, D in combinations_with_replacement(columns, 2)]
        return np.array([*traces, *products], np.float64)


def measure(
    case: Case, budgets: tuple[int, ...], tolerances: tuple[float, ...], seeds: int, share: float = 1.0
) -> dict[str, Any]:
    """Estimates of every method, and run times, all in one process; of the direct trace's products only a share."""
    truth = float(te.exact(case.blocks))
    ladder = {name: budgets_of(name, case, budgets) for name in METHODS}
    values = {name: estimates(name, case, of, seeds) for name, of in ladder.items()}
    print(
        {name: f"{rms(np.divide(v[max(v)], truth) - 1):.1e} at m = {max(v)}" for name, v in values.items()}, flush=True
    )
    adaptive = {rtol: [te.trace(case.blocks, rtol=rtol, rng=seed) for seed in range(seeds)] for rtol in tolerances}
    runs = {(name, m): lambda rng, f=METHODS[name], m=m: f(case, m, rng) for name, of in ladder.items() for m in of}
    runs |= {(TRACE, rtol): lambda rng, rtol=rtol: te.trace(case.blocks, rtol=rtol, rng=rng) for rtol in tolerances}
    runs |= {(EXACT, 0): lambda rng: te.exact(case.blocks)}
    for (name, _), f in runs.items():
        if name in METHODS:  # all else has compiled what it needs
            jax.block_until_ready(f(0))
    taken, direct = in_turns([case.whole], runs, share)
    full = direct.seconds
    rows = [
        _row(name, m, values[name][m], truth) | times(taken[name, m], full) for name, of in ladder.items() for m in of
    ]
    for rtol, found in adaptive.items():
        row = _row(TRACE, None, [float(e) for e in found], truth) | {"rtol": rtol}
        row |= {"vjps": [e.n_rmatvecs for e in found], "exact": sum(float(e.stderr) == 0 for e in found)}
        rows.append(row | times(taken[TRACE, rtol], full))
    exact = times(taken[EXACT, 0], full) | {"vjps": case.sizes["n"] // case.sizes["B"]}
    return {
        "case": case.name,
        **case.sizes,
        "seeds": seeds,
        "trace": truth,
        "direct": {
            "seconds": full,
            "products": direct.done,
            "error": direct.sums[0] / truth - 1 if direct.done == direct.n else None,
        },
        "exact": exact,
        "rows": rows,
        "cross_check": cross_check(case, truth),
    }


def in_turns(
    Ks: Sequence[te.Gram], runs: dict[Any, Callable[[int], Any]], share: float
) -> tuple[dict[Any, list[float]], Direct]:
    """Seconds of each run, `TURNS` times round, with the direct way's products made between them."""
    direct = Direct(Ks, TURNS * len(runs), share)
    taken: dict[Any, list[float]] = {key: [] for key in runs}
    for turn in range(TURNS):
        for key, f in runs.items():
            once = seconds(lambda f=f, turn=turn: f(turn))
            short = [seconds(lambda f=f, turn=turn: f(turn)) for _ in range(4 if once < SHORT else 0)]
            taken[key].append(float(np.median([once, *short])))
            direct.go_on()
    direct.go_on(to_the_end=True)
    return taken, direct


def cross_check(case: Case, truth: float) -> dict[str, float]:
    """What PyTorch finds with the same probes, over what JAX finds, less 1."""
    there, here = case.in_torch, case.blocks
    found = {
        PER_EXAMPLE: float(te.rhutch(there, 4, rng=0)) / float(te.rhutch(here, 4, rng=0)) - 1,
        "Hutch++": float(te.hutchpp(there, 3, rng=0)) / float(te.hutchpp(here, 3, rng=0)) - 1,
    }
    if case.sizes["n"] // case.sizes["B"] <= 256:
        found[EXACT] = float(te.exact(there)) / truth - 1
    return found


def _row(name: str, m: int | None, values: list[float], truth: float) -> dict[str, Any]:
    return {"method": name, "m": m, "estimates": values, "rms": rms(np.divide(values, truth) - 1)}


def times(taken: list[float], direct: float) -> dict[str, float]:
    """Their median, also relative to the direct way's."""
    middle = float(np.median(taken))
    return {"seconds": middle, "of_direct": middle / direct}
