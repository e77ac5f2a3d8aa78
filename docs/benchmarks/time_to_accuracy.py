"""How long until the trace of the paper's kernels is known to 1 %, 0.1 %, 0.01 % and 0.001 %?

    python docs/benchmarks/time_to_accuracy.py [--models MLP GRU] [--frameworks torch jax] [--quick] [--gpu] [--out DIR]

The MLP and the GRU of arXiv 2511.10796 (figures 1–3: n = 3,200 and 48,000), the same weights in PyTorch and in JAX.
For each estimator the least budget, to a few per cent, whose root-mean-square error over the seeds is below the
tolerance (the first of a grid, a factor of √2 apart, and then between it and the last one that was not enough), and the
median time of a call with it. Two ways are exact: direct (n kernel products, a product's
time measured on a sample at the best number of columns) and the best, n/B vjps. An estimator whose next budget would
take longer than the best exact answer, or than three seconds, is given up. `trace(rtol=…)` is called with the
tolerance.

The truth is the exact trace in float64; how far the exact float32 answers are from it is in the table. The model is
linearised once for all methods; that, and what the first call of each kind takes longer (compilation), are apart.
Writes time_to_accuracy.json, the figures figures/time_to_accuracy.{png,svg}, and brings docs/performance.md up to date.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from estimators import revision
from gru import QUICK as QUICK_GRU
from gru import SIZES as GRU
from gru import jax_gru
from pictures import save, subplots
from tables import Table, fill, markdown, plain
from timing import machine, median, on_gpu, seconds, show
from torch import nn

import traceest as te

RESULTS = Path(__file__).resolve().parent / "results"
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5)
MLP, QUICK_MLP = (
    {"inputs": 100, "width": 64, "layers": 15, "examples": 50},
    {"inputs": 6, "width": 8, "layers": 3, "examples": 5},
)
TARGETS = {("GRU", 1e-2): 30_000, ("MLP", 1e-2): 1_000, ("GRU", 1e-3): 500}
"""Speed-ups over direct that are aimed for."""

APART = 0.06
"""How near to the last budget that was not enough one that is has to be."""

TURNS = 5
"""Pairs of a run of `trace` and one of the exact trace, four times as many where these are short."""

LONGEST = 3.0
"""Seconds after which an estimator is given up, though the best exact answer takes longer."""

Estimator = Callable[[Any, Any, int, int], te.Estimate]

ESTIMATORS: dict[str, Estimator] = {
    "Hutch++": lambda K, one, m, seed: te.hutchpp(K, m, rng=seed),
    "RHutch": lambda K, one, m, seed: te.rhutch(one, m, rng=seed),
    "FHutch": lambda K, one, m, seed: te.fhutch(one, m, rng=seed),
    "block RHutch": lambda K, one, m, seed: te.rhutch(K, m, rng=seed),
}
"""Of the kernel, with its independent examples and as one block."""
LEAST = {"Hutch++": 3}


# -- the paper's models -----------------------------------------------------------------------------------------
def torch_model(name: str, quick: bool) -> tuple[nn.Module, torch.Tensor, dict[str, Any]]:
    """The model, its batch, and the adapter's options."""
    torch.manual_seed(0)
    if name == "GRU":
        s = QUICK_GRU if quick else GRU
        module = nn.GRU(s["inputs"], s["hidden"], batch_first=True)
        return module, torch.randn(s["sequences"], s["steps"], s["inputs"]), {"output": 0}
    s = QUICK_MLP if quick else MLP
    widths = [s["inputs"], *[s["width"]] * s["layers"]]
    layers = [layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers), torch.randn(s["examples"], s["inputs"]), {}


def jax_mlp(p: dict[str, Any], x: Any) -> Any:
    """The MLP with PyTorch's parameters."""
    import jax

    for i in sorted({int(name.split(".")[0]) for name in p}):
        x = jax.nn.relu(x @ p[f"{i}.weight"].T + p[f"{i}.bias"])
    return x


def maker(framework: str, name: str, quick: bool) -> Callable[..., te.Gram]:
    """The kernel, made anew by every call."""
    module, x, options = torch_model(name, quick)
    if framework == "torch":
        from traceest_adapters.torch import ntk

        return lambda **how: ntk(module, x, **options, **how)
    import jax.numpy as jnp

    from traceest_adapters.jax import ntk as jax_ntk

    params = {key: jnp.asarray(p.detach().cpu().numpy()) for key, p in module.named_parameters()}
    fn, inputs = jax_gru if name == "GRU" else jax_mlp, jnp.asarray(x.cpu().numpy())
    return lambda **how: jax_ntk(fn, params, inputs, **how)


def truth(name: str, quick: bool) -> float:
    """The exact trace, in float64."""
    from traceest_adapters.torch import ntk

    module, x, options = torch_model(name, quick)
    return float(te.exact(ntk(copy.deepcopy(module).double(), x.double(), **options)))


# -- measuring ------------------------------------------------------------------------------------------------------
def grid(least: int, most: int) -> list[int]:
    """Budgets a factor of √2 apart."""
    steps = (round(2 ** (i / 2)) for i in range(2 * most.bit_length() + 2))
    return sorted({m for m in steps if least <= m < most})


class Search:
    """The errors of an estimator, run only as often as it takes to know whether they are small enough.

    A ladder is climbed once: a smaller tolerance goes on from the budget that was enough for the last one.
    """

    def __init__(self, run: Callable[[int, int], te.Estimate], true: float, seeds: int, budgets: list[int]) -> None:
        self.run, self.true, self.seeds, self.budgets = run, true, seeds, budgets
        self.errors: dict[int, list[float]] = {}
        self.not_enough = budgets[0] - 1 if budgets else 0

    def rms(self, m: int, tolerance: float) -> float:
        """Over all seeds; or at least a lower bound that is above the tolerance."""
        found = self.errors.setdefault(m, [])
        while len(found) < self.seeds and sum(e * e for e in found) <= self.seeds * tolerance**2:
            found.append(float(self.run(m, len(found))) / self.true - 1)
        return float(np.sqrt(sum(e * e for e in found) / self.seeds))

    def least(self, tolerance: float, slowest: float) -> tuple[int, float] | None:
        """The first budget below the tolerance, and the time it takes, unless that is more than `slowest`."""
        while self.budgets:
            m = self.budgets[0]
            if m not in self.errors and min(seconds(partial(self.run, m, 0)) for _ in range(2)) > slowest:
                self.budgets = []
            elif self.rms(m, tolerance) < tolerance:
                enough = self.between(m, tolerance)
                return enough, median(lambda m=enough: self.run(m, 0).value)
            else:
                self.not_enough, self.budgets = m, self.budgets[1:]
        return None

    def between(self, enough: int, tolerance: float) -> int:
        """A smaller budget that is enough, after the last one that was not."""
        while (enough - self.not_enough) > max(1, APART * enough):
            m = (enough + self.not_enough) // 2
            if self.rms(m, tolerance) < tolerance:
                enough = m
            else:
                self.not_enough = m
        return enough


def product_seconds(K: te.Gram, widths: tuple[int, ...]) -> dict[int, float]:
    """Seconds of a kernel product, by the number of columns at once."""
    found = {}
    for k in widths:
        V = te.probes.rademacher(K.shape[0], k, rng=0, like=K)
        found[k] = median(lambda V=V: K.matmat(V)) / k
    return found


def measure(framework: str, name: str, seeds: int, quick: bool, true: float) -> dict[str, Any]:
    """Every method at every tolerance."""
    make = maker(framework, name, quick)
    first = {"linearise": seconds(make)}
    again = {"linearise": seconds(make)}
    K, one = make(), make(batch_axis=None, check=False)

    def once(what: str) -> Any:
        return ESTIMATORS[what](K, one, LEAST.get(what, 1), 0).value

    calls = {
        "a kernel product": lambda: K.matmat(te.probes.rademacher(K.shape[0], 1, rng=0, like=K)),
        **{what: partial(once, what) for what in ESTIMATORS},
    }
    for what, call in calls.items():
        first[what], again[what] = seconds(call), min(seconds(call) for _ in range(3))
    best = median(lambda: te.exact(K).value, most=2.0, repeats=3)
    n, n_b = K.shape[0], K.shape[0] // K.factor.n_blocks
    products = product_seconds(K, (1, 8, 32) if quick else (1, 8, 32, 128))
    row: dict[str, Any] = {"framework": framework, "model": name, "n": n, "P": K.factor.shape[1], "n_b": n_b}
    row["first"], row["again"], row["products"] = first, again, products
    row["direct"], row["best_exact"] = n * min(products.values()), best
    row["rounding"] = abs(float(te.exact(K)) / true - 1)
    row["found"] = []
    for what, estimator in ESTIMATORS.items():
        budgets = grid(LEAST.get(what, 1), n_b if what == "block RHutch" else 2 * n)
        search = Search(lambda m, seed, f=estimator: f(K, one, m, seed), true, seeds, budgets)
        for tolerance in TOLERANCES:
            found = search.least(tolerance, min(best, LONGEST))
            budget, taken = found if found is not None else (None, None)
            row["found"].append({"method": what, "tolerance": tolerance, "budget": budget, "seconds": taken})
    row["found"] += [trace_to(K, tolerance, true, seeds, best) for tolerance in TOLERANCES]
    return row


def trace_to(K: te.Gram, rtol: float, true: float, seeds: int, best: float) -> dict[str, Any]:
    """`trace` with that tolerance: its errors, products and time, also as a ratio to the exact trace's, by turns."""
    long = best > 0.3
    runs = [te.trace(K, rtol=rtol, rng=seed) for seed in range(1 if long and rtol < 1e-3 else seeds)]
    rms = float(np.sqrt(np.mean([(float(e) / true - 1) ** 2 for e in runs])))
    taken = [
        (seconds(lambda seed=seed: te.trace(K, rtol=rtol, rng=seed).value), seconds(lambda: te.exact(K).value))
        for seed in range(TURNS if long else 4 * TURNS)
    ]
    budget = int(statistics.median(e.n_products for e in runs))
    what = {"rms": rms, "methods": sorted({e.method for e in runs})}
    what["over_exact"] = statistics.median(ours / exact for ours, exact in taken)
    time = statistics.median(ours for ours, _ in taken)
    return {"method": "trace(rtol)", "tolerance": rtol, "budget": budget, "seconds": time, **what}


# -- showing --------------------------------------------------------------------------------------------------------
def percent(tolerance: float) -> str:
    """0.01 → 1 %."""
    return f"{100 * tolerance:g} %"


def times(row: dict[str, Any]) -> dict[str, dict[float, float | None]]:
    """Seconds by method and tolerance."""
    exact = {w: dict.fromkeys(TOLERANCES, row[k]) for w, k in (("direct", "direct"), ("best exact", "best_exact"))}
    for f in row["found"]:
        exact.setdefault(f["method"], {})[f["tolerance"]] = f["seconds"]
    return exact


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Times and speed-ups, a table a model and framework; then targets, and what is apart."""
    out: list[Table] = []
    head = [
        "",
        *(f"{percent(t)}: budget, time" for t in TOLERANCES),
        *(f"direct / it, {percent(t)}" for t in TOLERANCES),
    ]
    for row in rows:
        budgets = {(f["method"], f["tolerance"]): f["budget"] for f in row["found"]}
        body = []
        for method, found in times(row).items():
            fixed = {"direct": row["n"], "best exact": row["n_b"]}.get(method)
            cells = ["–" if s is None else f"{fixed or budgets[method, t]:,}, {show(s)}" for t, s in found.items()]
            speed = ["–" if s is None else f"{row['direct'] / s:,.0f}" for s in found.values()]
            body.append([method, *cells, *speed])
        title = f"{row['model']} in {row['framework']}: n = {row['n']:,}, P = {row['P']:,}"
        out.append((f"{title}; the exact float32 answer is off by {row['rounding']:.1e}", [head, *body]))
    out.append(("Targets", [["", "aim", *(f"{r['model']}, {r['framework']}" for r in rows)], *_targets(rows)]))
    kinds = list(rows[0]["first"])
    apart = [
        [f"{r['model']}, {r['framework']}", *(f"{show(r['first'][k])}, {show(r['again'][k])}" for k in kinds)]
        for r in rows
    ]
    out.append(
        (
            "Apart: the first call of each kind with one probe (compilation and all), and the next",
            [["", *kinds], *apart],
        )
    )
    return out


def _targets(rows: list[dict[str, Any]]) -> list[list[str]]:
    body = []
    for (model, tolerance), aim in TARGETS.items():
        cells = []
        for r in rows:
            found = [s for m, by in times(r).items() if m not in ("direct",) and (s := by[tolerance]) is not None]
            cells.append(f"{r['direct'] / min(found):,.0f}" if r["model"] == model else "")
        body.append([f"{model}, {percent(tolerance)}: over direct", f"{aim:,}", *cells])
    for tolerance in TOLERANCES:
        over = [f["over_exact"] for r in rows for f in r["found"] if "over_exact" in f and f["tolerance"] == tolerance]
        body.append([f"trace(rtol) over the best exact, {percent(tolerance)}", "1", *(f"{x:.2f}" for x in over)])
    return body


def figure(rows: list[dict[str, Any]], folder: Path) -> None:
    """Speed-up over direct against accuracy, as the paper's figure 1, beside the best exact answer."""
    fig, axes = subplots(1, len(rows), figsize=(4.2 * len(rows), 3.8), sharey=True)
    for ax, row in zip(axes[0], rows, strict=True):
        for i, (method, found) in enumerate(times(row).items()):
            if method == "direct":
                continue
            known = [(t, row["direct"] / s) for t, s in found.items() if s is not None]
            if known:
                style = "k--" if method == "best exact" else f"C{i}o-"
                ax.loglog(*zip(*known, strict=True), style, label=method, markersize=4)
        ax.set(title=f"{row['model']}, {row['framework']}", xlabel="relative rms error")
        ax.invert_xaxis()
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("speed-up over n kernel products")
    axes[0, -1].legend(fontsize=8)
    fig.tight_layout()
    save(fig, folder, "time_to_accuracy", dpi=130)


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["MLP", "GRU"], choices=["MLP", "GRU"])
    parser.add_argument("--frameworks", nargs="+", default=["torch", "jax"], choices=["torch", "jax"])
    parser.add_argument("--seeds", type=int, default=20, help="independent runs for each error")
    parser.add_argument("--quick", action="store_true", help="tiny models: prints only, unless --out is given")
    parser.add_argument("--gpu", action="store_true", help="on the GPU, if there is one")
    parser.add_argument("--out", type=Path, help="folder for the results; default: results, beside this file")
    options = parser.parse_args()
    if options.gpu:
        on_gpu()
    rows = []
    for name in options.models:
        true = truth(name, options.quick)
        for framework in options.frameworks:
            rows.append(measure(framework, name, options.seeds, options.quick, true))
            print("\n".join(plain(*t) for t in tables(rows[-1:])[:1]), flush=True)
    shown = tables(rows)
    print("\n".join(plain(*t) for t in shown[len(rows) :]))
    out = options.out or (None if options.quick else RESULTS)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    result = {"revision": revision(), "machine": machine(), "seeds": options.seeds, "rows": rows}
    (out / "time_to_accuracy.json").write_text(json.dumps(result, indent=1) + "\n")
    figure(rows, out.parent / "figures" if out == RESULTS else out)
    if out == RESULTS:
        head = f"{result['revision']}; {result['machine']}; {options.seeds} seeds.\n"
        text = "\n".join([head, *(markdown(*t) for t in shown)])
        fill(RESULTS.parent.parent / "performance.md", "time_to_accuracy", text)


if __name__ == "__main__":
    main()
