"""Do the intervals of norm, effective rank and alignment hold on the kernels of real models?

    python docs/benchmarks/kernel_coverage.py [--seeds 300] [--only MLP …] [--quick] [--out DIR]

An MLP, a GRU, a CNN and a transformer on scikit-learn's digits, at initialisation and after training, with 4, 8 and 16
vjps. Their Jacobians are written out once, so that every seed costs matrix products only. For each statistic: coverage
of the nominal 95 % interval, rms standard error / rms error, and rms relative error. Writes kernel_coverage.json and
brings the table of docs/kernels.md up to date.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from digit_models import MODELS, jacobians
from estimators import revision
from tables import Table, fill, markdown, plain

import traceest as te

RESULTS = Path(__file__).resolve().parent / "results"
BUDGETS = (4, 8, 16)
STATISTICS = {"trace": "trace", "frobenius_norm": "‖K‖", "effective_rank": "effective rank"}
WHEN = ("at initialisation", "trained")


def measure(name: str, seeds: int, steps: int) -> list[dict[str, Any]]:
    """All rows of one model."""
    *Js, shape = jacobians(name, steps=steps)
    Ks = [te.gram(J, n_blocks=shape[0]) for J in Js]
    for K in Ks:
        K.factor.state_shape = shape
    exact, rows = te.summary(*Ks, method="exact"), []
    for m in BUDGETS:
        runs = [te.summary(*Ks, n_probes=m, rng=np.random.default_rng([seed, m])) for seed in range(seeds)]
        for label in STATISTICS:
            for a, when in enumerate(WHEN):
                rows.append(_row(name, when, label, m, [getattr(s, label) for s in runs], getattr(exact, label), (a,)))
        rows.append(_row(name, "both", "alignment", m, [s.alignment for s in runs], exact.alignment, (0, 1)))
    return rows


def _row(model: str, when: str, statistic: str, m: int, runs: Any, exact: Any, at: tuple[int, ...]) -> dict[str, Any]:
    true = float(exact.value[at])
    errors = np.array([e.value[at] for e in runs]) / true - 1
    ends = [e.confidence_interval() for e in runs]
    rms = float(np.sqrt(np.mean(errors**2)))
    return {
        "model": model,
        "when": when,
        "statistic": statistic,
        "n_probes": m,
        "seeds": len(runs),
        "exact": true,
        "coverage": float(np.mean([low[at] <= true <= high[at] for low, high in ends])),
        "stderr_over_error": float(np.sqrt(np.mean(np.array([e.stderr[at] for e in runs]) ** 2)) / true / rms),
        "rms": rms,
    }


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """A table a statistic: coverage, ratio, error."""
    out = []
    for statistic, title in {**STATISTICS, "alignment": "alignment of trained with initial"}.items():
        some = [r for r in rows if r["statistic"] == statistic]
        keys = list(dict.fromkeys((r["model"], r["when"]) for r in some))
        body = []
        for model, when in keys:
            mine = {r["n_probes"]: r for r in some if (r["model"], r["when"]) == (model, when)}
            true = next(iter(mine.values()))["exact"]
            cells = [
                f"{100 * r['coverage']:.1f} {r['stderr_over_error']:.2f} {100 * r['rms']:.1f} %" for r in mine.values()
            ]
            body.append([f"{model}" if when == "both" else f"{model} {when}", f"{true:.4g}", *cells])
        head = ["", "exact", *(f"{m} vjps" for m in BUDGETS)]
        out.append((f"{title}: coverage in %, stderr / error, rms error ({some[0]['seeds']} seeds)", [head, *body]))
    return out


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=300, help="independent runs for each number")
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS), help="models to run")
    parser.add_argument("--quick", action="store_true", help="10 seeds: prints only, unless --out says where to write")
    parser.add_argument("--out", type=Path, help="folder for the JSON; default: results, beside this file")
    options = parser.parse_args()
    out = options.out or (None if options.quick else RESULTS)
    rows = []
    for name in options.only:
        start = time.perf_counter()
        rows += measure(name, 10 if options.quick else options.seeds, 20 if options.quick else 300)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    shown = tables(rows)
    print("\n".join([revision(), *(plain(*t) for t in shown)]))
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "kernel_coverage.json").write_text(json.dumps({"revision": revision(), "rows": rows}, indent=1) + "\n")
    if out == RESULTS:
        text = "\n".join([revision() + ".\n", *(markdown(*t) for t in shown)])
        fill(RESULTS.parent.parent / "kernels.md", "coverage", text)


if __name__ == "__main__":
    main()
