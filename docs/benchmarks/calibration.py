"""Do the error bars hold? Coverage of nominal 95 % intervals, and standard error over true error.

    python docs/benchmarks/calibration.py [--seeds 300] [--only poly ntk …] [--methods xtrace …] [--quick] [--out DIR]

For each family of operators and each estimator at budgets of 30, 60 and 120 products: how often the interval holds the
true trace (within 1e-12 of its scale, so that exact answers count), and rms standard error / rms true error, which is 1
for an honest bar. Then `traceest.trace` asked for a tolerance: how often the answer is within it.

Writes calibration.json and calibration.md, and brings the tables of docs/calibration.md up to date; families and
estimators not run keep the rows that the files have.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from estimators import METHODS, TRACE, Method, revision
from spectra import SPECTRA, UNTUNED, Problem, problem
from tables import Table, fill, markdown, plain

import traceest as te

BUDGETS = (30, 60, 120)
TOLERANCES = (1e-1, 1e-2, 1e-3)
FAMILIES = (*SPECTRA, *UNTUNED, "ntk")
RESULTS = Path(__file__).resolve().parent / "results"


def measure(p: Problem, method: Method, m: int, seeds: int) -> dict[str, Any]:
    """Coverage and ratio over `seeds` independent runs."""
    estimates = [method.run(p, m, np.random.default_rng([seed, m])) for seed in range(seeds)]
    return {"family": p.name, "n": p.n, "method": method.name, "budget": m, **summary(p, estimates)}


def summary(p: Problem, estimates: list[te.Estimate]) -> dict[str, Any]:
    """What is kept of many estimates of one trace; errors are relative to the problem's scale."""
    errors = np.array([float(e) - p.truth for e in estimates]) / p.scale
    stderrs = np.array([float(e.stderr) for e in estimates]) / p.scale
    slack = 1e-12 * p.scale
    intervals = [e.confidence_interval(0.95) for e in estimates]
    rms = float(np.sqrt(np.mean(errors**2)))
    above_rounding = rms > 1e-13
    return {
        "seeds": len(estimates),
        "coverage": float(np.mean([low - slack <= p.truth <= high + slack for low, high in intervals])),
        "stderr_over_error": float(np.sqrt(np.mean(stderrs**2)) / rms) if above_rounding else None,
        "median_stderr_over_error": float(np.median(stderrs) / rms) if above_rounding else None,
        "rms_error": rms,
        "mean_error": float(np.mean(errors)),
        "products": float(np.mean([e.n_products for e in estimates])),
        "exact": float(np.mean([e.exact for e in estimates])),
    }


def to_tolerance(p: Problem, rtol: float, seeds: int) -> dict[str, Any]:
    """`trace` stopped by its own interval: how often it keeps its word, and what it spends."""
    estimates = [te.trace(p.A, rtol=rtol, rng=np.random.default_rng([seed, 9])) for seed in range(seeds)]
    errors = np.array([abs(float(e) - p.truth) for e in estimates])
    within = errors <= rtol * abs(p.truth) + 1e-12 * p.scale
    products = [e.n_products for e in estimates]
    return {
        "family": p.name,
        "n": p.n,
        "rtol": rtol,
        **summary(p, estimates),
        "within": float(np.mean(within)),
        "median_products": float(np.median(products)),
        "max_products": max(products),
        "methods": sorted({e.method for e in estimates}),
    }


def out_of_band(row: dict[str, Any]) -> bool:
    """Whether coverage is outside 93–99 % by more than chance would have it (Wilson's interval, two σ)."""
    k, c, z2 = row["seeds"], row["coverage"], 4.0
    centre, half = (c + z2 / (2 * k)), (z2 * (c * (1 - c) + z2 / (4 * k)) / k) ** 0.5
    low, high = (centre - half) / (1 + z2 / k), (centre + half) / (1 + z2 / k)
    return high < 0.93 or low > 0.99


def cell(row: dict[str, Any] | None) -> str:
    """Coverage in per cent, a star where it is out of band, and the ratio: "95.3 1.02"."""
    if row is None:
        return "–"
    if row["exact"] == 1:
        return "exact"
    coverage = f"{100 * row['coverage']:.1f}"
    ratio = row["stderr_over_error"]
    if ratio is None:  # what is left is rounding
        return f"{coverage} eps"
    return coverage + ("*" if out_of_band(row) else "") + (f" {ratio:.2f}" if ratio < 99.5 else f" {ratio:.0e}")


def tables(result: dict[str, Any]) -> list[Table]:
    """Fixed budgets, then tolerances."""
    rows = {(r["family"], r["method"], r["budget"]): r for r in result["fixed"]}
    out = []
    for m in BUDGETS:
        for families in (tuple(SPECTRA), (*UNTUNED, "ntk")):
            shown = [f for f in families if any(key[0] == f for key in rows)]
            if shown:
                body = [
                    [x.name, *(cell(rows.get((f, x.name, m))) for f in shown)]
                    for x in (*METHODS, TRACE)
                    if any((f, x.name, m) in rows for f in shown)
                ]
                some = [r for r in result["fixed"] if r["family"] in shown and r["budget"] == m]
                seeds = "–".join(str(k) for k in sorted({min(r["seeds"] for r in some), max(r["seeds"] for r in some)}))
                title = f"m = {m} (n = {some[0]['n']}, {seeds} seeds): coverage in %, stderr / error"
                out.append((title, [["", *shown], *body]))
    for rtol in TOLERANCES:
        body = [
            [
                r["family"],
                f"{100 * r['within']:.1f}",
                f"{100 * r['coverage']:.1f}",
                f"{r['rms_error']:.1e}",
                f"{r['median_products']:.0f}",
                str(r["max_products"]),
                ", ".join(r["methods"]),
            ]
            for r in result["tolerance"]
            if r["rtol"] == rtol
        ]
        head = ["", "within, %", "coverage, %", "rms error", "products", "at most", "methods"]
        if body:
            out.append((f"trace(rtol={rtol:g}): answers within the tolerance", [head, *body]))
    return out


def run(families: list[str], methods: list[Method], budgets: tuple[int, ...], seeds: int) -> dict[str, Any]:
    """All measurements of these families with these methods; of tolerances too if `trace` is among them."""
    result: dict[str, Any] = {"revision": revision(), "fixed": [], "tolerance": []}
    for name in families:
        start, p = time.perf_counter(), problem(name)
        for method in methods:
            if p.psd or not method.psd_only:
                result["fixed"] += [measure(p, method, m, seeds) for m in budgets]
        if TRACE in methods:
            result["tolerance"] += [to_tolerance(p, rtol, seeds) for rtol in TOLERANCES]
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    return result


def keep_others(result: dict[str, Any], path: Path) -> dict[str, Any]:
    """`result`, with what the file at `path` has and this run has not measured."""
    if not path.exists():
        return result
    before = json.loads(path.read_text())
    kept = False
    for part, names in (("fixed", ("family", "method", "budget")), ("tolerance", ("family", "rtol"))):
        new = {tuple(r[n] for n in names) for r in result[part]}
        old = [r for r in before[part] if tuple(r[n] for n in names) not in new]
        kept = kept or bool(old)
        result[part] = sorted(old + result[part], key=lambda r: FAMILIES.index(r["family"]))
    others = [r for r in before["revision"].split("; some rows: ") if r != result["revision"]]
    if kept and others:
        result["revision"] = "; some rows: ".join([result["revision"], *others])
    return result


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=300, help="independent runs for each number")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="families to run")
    names = [m.name for m in (*METHODS, TRACE)]
    parser.add_argument("--methods", nargs="+", choices=names, default=names, help="estimators to run")
    parser.add_argument(
        "--quick", action="store_true", help="20 seeds, for a look: prints only, unless --out says where to write"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for calibration.json and .md; default: results, beside this file"
    )
    options = parser.parse_args()
    methods = [m for m in (*METHODS, TRACE) if m.name in options.methods]
    result = run(options.only, methods, BUDGETS, 20 if options.quick else options.seeds)
    out = options.out or (None if options.quick else RESULTS)
    result = keep_others(result, out / "calibration.json") if out else result
    shown = tables(result)
    head = f"{result['revision']}. A star: coverage outside 93–99 % by more than chance would have it.\n"
    print("\n".join([head, *(plain(*t) for t in shown)]))
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "calibration.json").write_text(json.dumps(result, indent=1) + "\n")
    text = "\n".join([head, *(markdown(*t) for t in shown)])
    (out / "calibration.md").write_text(text)
    if out == RESULTS:
        fill(RESULTS.parent.parent / "calibration.md", "calibration", text)


if __name__ == "__main__":
    main()
