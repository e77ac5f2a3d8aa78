"""Is `trace` at a budget as good as the best fixed method on the kernels of real models?

    python docs/benchmarks/models.py [--seeds 12] [--quick] [--out DIR]

The demo's GRU and MLP on scikit-learn's digits, at initialisation and after 300 steps of training. Their Jacobians are
written out once, so that every estimator can be run many times; `trace` sees them with their independent examples, and
also as operators K that can only be multiplied by, which hides the factor and the examples. Mean relative errors at
equal budgets; for the factor a product is a vjp, whose number the budget bounds. Prints tables, writes models.json, and
brings the table of docs/calibration.md up to date.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import ratio, show
from estimators import revision
from tables import Table, fill, markdown, plain

import traceest as te
from traceest.operators.blocks import unit_probes
from traceest_adapters.demo.data import load
from traceest_adapters.demo.jax_models import learners

RESULTS = Path(__file__).resolve().parent / "results"
BUDGETS = (10, 30, 60)
STEPS = 300

Estimator = Callable[[Any, int, int], te.Estimate]

OF_THE_FACTOR: dict[str, Estimator] = {
    "rhutch per block": lambda K, m, seed: te.rhutch(K, m, rng=seed),
    "hutchpp": lambda K, m, seed: te.hutchpp(K, m, rng=seed),
    "xtrace": lambda K, m, seed: te.xtrace(K, m, rng=seed),
    "xnystrace": lambda K, m, seed: te.xnystrace(K, m, rng=seed),
    "trace": lambda K, m, seed: te.trace(K, rtol=1e-15, max_matvecs=m, rng=seed),
}
OF_PRODUCTS: dict[str, Estimator] = {
    "hutchinson": lambda K, m, seed: te.hutchinson(K, m, rng=seed),
    **{name: OF_THE_FACTOR[name] for name in ("hutchpp", "xtrace", "xnystrace", "trace")},
}


def jacobians(seed: int = 0) -> dict[str, tuple[np.ndarray, int]]:
    """Each model's Jacobian, (n, P), before and after training, and its number of independent examples."""
    found = {}
    for learner in learners(load(seed), seed):
        for when in ("at initialisation", "trained"):
            J = learner.kernel().factor
            n_b = J.shape[0] // J.n_blocks
            rows = J.block_rmatmat(unit_probes(J, 0, n_b))  # (B, n_b, P): unit vectors of all examples at once
            found[f"{learner.name} {when}"] = (np.asarray(rows, np.float64).reshape(J.shape), J.n_blocks)
            learner.train(STEPS)
    return found


def run(seeds: int, budgets: tuple[int, ...]) -> list[dict[str, Any]]:
    """A row for each kernel, way to see it, budget and estimator."""
    rows = []
    for name, (J, n_blocks) in jacobians().items():
        truth = float(np.sum(J * J))
        product = te.aslinearoperator(lambda X, J=J: J @ (J.T @ X), like=J, shape=(len(J), len(J)), psd=True)
        ways = {"factor": (te.gram(J, n_blocks=n_blocks), OF_THE_FACTOR), "K alone": (product, OF_PRODUCTS)}
        for way, (K, estimators) in ways.items():
            for m in budgets:
                for estimator, f in estimators.items():
                    runs = [f(K, m, seed) for seed in range(seeds)]
                    error = float(np.mean([abs(float(e) / truth - 1) for e in runs]))
                    spent = max(max(e.n_matvecs, e.n_rmatvecs) for e in runs)
                    row = {"kernel": name, "way": way, "estimator": estimator, "budget": m, "spent": spent}
                    rows.append({**row, "mean_relative_error": error, "methods": sorted({e.method for e in runs})})
        print(f"{name}: {J.shape[0]} × {J.shape[1]}, done", flush=True)
    return rows


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """One for each way to see the kernels: a line an estimator, a column a kernel and budget."""
    out = []
    by = {(r["way"], r["kernel"], r["budget"], r["estimator"]): r["mean_relative_error"] for r in rows}
    kernels, budgets = (list(dict.fromkeys(r[key] for r in rows)) for key in ("kernel", "budget"))
    for way, estimators in (("factor", OF_THE_FACTOR), ("K alone", OF_PRODUCTS)):
        for m in budgets:
            body = [[name, *(show(by[way, k, m, name]) for k in kernels)] for name in estimators]
            best = [min(by[way, k, m, name] for name in estimators if name != "trace") for k in kernels]
            ratios = [ratio(by[way, k, m, "trace"], b) for k, b in zip(kernels, best, strict=True)]
            out.append(
                (f"{way}, m = {m}: mean relative error", [["", *kernels], *body, ["trace / best fixed", *ratios]])
            )
    return out


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=12, help="independent runs for each number")
    parser.add_argument("--quick", action="store_true", help="5 seeds, one budget: prints only, unless --out is given")
    parser.add_argument("--out", type=Path, help="folder for models.json; default: results, beside this file")
    options = parser.parse_args()
    seeds, budgets = (5, BUDGETS[1:2]) if options.quick else (options.seeds, BUDGETS)
    rows = run(seeds, budgets)
    shown = tables(rows)
    print("\n".join(plain(*t) for t in shown))
    out = options.out or (None if options.quick else RESULTS)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    result = {"revision": revision(), "seeds": seeds, "rows": rows}
    (out / "models.json").write_text(json.dumps(result, indent=1) + "\n")
    if out == RESULTS:
        text = "\n".join([f"{result['revision']}, {seeds} seeds.\n", *(markdown(*t) for t in shown)])
        fill(RESULTS.parent.parent / "calibration.md", "models", text)


if __name__ == "__main__":
    main()
