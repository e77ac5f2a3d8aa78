"""How accurate are the estimators for their products? Mean relative errors on six spectra, ours and others'.

    python docs/benchmarks/accuracy.py [--peers] [--quick] [--seeds 40] [--out DIR]

Every fixed-budget estimator at 60, 120 and 300 products, and `traceest.trace` stopped by the same budget. With --peers
also traceax, matfree, curvlinops, skerch and primate, where they are installed, on the same matrices, with the products
that they really spend. Prints tables, writes accuracy.json, and brings the tables of docs/calibration.md up to date.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from estimators import METHODS, TRACE, Method, revision
from operands import Operand, from_matrix
from spectra import SPECTRA, Problem, problem
from tables import Table, fill, markdown, plain

BUDGETS = (60, 120, 300)
ROUNDING = 1e-13
RESULTS = Path(__file__).resolve().parent / "results"


def errors(p: Problem, estimate: Callable[[int], float], seeds: int) -> dict[str, Any]:
    """Mean relative error over the runs that gave a number, and how many gave none or an exception."""
    found, failed = [], 0
    for seed in range(seeds):
        try:
            value = estimate(seed)
        except Exception as error:  # a library that raises is a result, not the end of the benchmark
            print(f"  {p.name}: {type(error).__name__}: {error}")
            value = math.nan
        if math.isfinite(value):
            found.append(abs(value / p.truth - 1))
        else:
            failed += 1
    return {"mean_relative_error": float(np.mean(found)) if found else None, "failed": failed}


def run(peers: list[Any], budgets: tuple[int, ...], seeds: int) -> list[dict[str, Any]]:
    """A row for each spectrum, budget and estimator."""
    rows = []
    for name in SPECTRA:
        p = problem(name)
        operand = from_matrix(name, p.dense)
        for m in budgets:
            rows += [_ours(p, method, m, seeds) for method in (*METHODS, TRACE)]
            rows += [_theirs(p, operand, peer, m, seeds) for peer in peers]
        print(f"{name}: done", flush=True)
    return rows


def _ours(p: Problem, method: Method, m: int, seeds: int) -> dict[str, Any]:
    spent: list[int] = []

    def estimate(seed: int) -> float:
        e = method.run(p, m, np.random.default_rng([seed, m]))
        spent.append(e.n_products)
        return float(e)

    row = errors(p, estimate, seeds)
    return _row(p, "traceest", method.name, m, max(spent), row)


def _theirs(p: Problem, A: Operand, peer: Any, m: int, seeds: int) -> dict[str, Any]:
    row = errors(p, lambda seed: peer.estimate(A, m, seed), seeds)
    return _row(p, peer.package, peer.ours, m, peer.count(m), row)


def _row(p: Problem, library: str, method: str, m: int, spent: int, row: dict[str, Any]) -> dict[str, Any]:
    return {"spectrum": p.name, "library": library, "method": method, "budget": m, "products": spent, **row}


def show(error: float | None, failed: int = 0) -> str:
    """An error in six characters, with the number of runs that gave none."""
    text = "none" if error is None else "exact" if error < ROUNDING else f"{error:.1e}"
    return f"{text} ({failed} nan)" if failed else text


def ratio(ours: float | None, other: float | None) -> str:
    """Ours over the other's; "=" where both are down at rounding."""
    if ours is None or other is None:
        return "–"
    if max(ours, other) < ROUNDING:
        return "="
    return f"{max(ours, 1e-16) / max(other, 1e-16):.2g}"


def tables(rows: list[dict[str, Any]], budgets: tuple[int, ...]) -> list[Table]:
    """Ours, then ours beside others'."""
    by = {(r["spectrum"], r["library"], r["method"], r["budget"]): r for r in rows}
    names = [m.name for m in (*METHODS, TRACE)]

    def error(s: str, library: str, method: str, m: int) -> float | None:
        return by[s, library, method, m]["mean_relative_error"]

    def line(label: str, library: str, method: str, m: int) -> list[str]:
        found = [by[s, library, method, m] for s in SPECTRA]
        shown = [show(r["mean_relative_error"], r["failed"]) for r in found]
        return [label, str(max(r["products"] for r in found)), *shown]

    out = []
    for m in budgets:
        body = [line(name, "traceest", name, m) for name in names]
        fixed = [x.name for x in METHODS if x.name != "rhutch 5 blocks"]  # which knows more than trace(A) is told
        best = {s: min(error(s, "traceest", x, m) for x in fixed) for s in SPECTRA}
        body.append(["trace / best fixed", "", *(ratio(error(s, "traceest", "trace", m), best[s]) for s in SPECTRA)])
        out.append((f"m = {m}: mean relative error", [["", "spent", *SPECTRA], *body]))
    others = dict.fromkeys((r["method"], r["library"]) for r in rows if r["library"] != "traceest")
    for m in budgets if others else ():
        body = []
        for name in names:
            libraries = [library for method, library in others if method == name]
            if libraries:
                body.append(line(name, "traceest", name, m))
            for library in libraries:
                ratios = [ratio(error(s, "traceest", name, m), error(s, library, name, m)) for s in SPECTRA]
                body += [line(f"  {library}", library, name, m), ["    ours / theirs", "", *ratios]]
        out.append((f"m = {m}: beside other libraries", [["", "spent", *SPECTRA], *body]))
    return out


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", action="store_true", help="run the other libraries that are installed, too")
    parser.add_argument("--seeds", type=int, default=40, help="independent runs for each number")
    parser.add_argument(
        "--quick", action="store_true", help="5 seeds and one budget, for a look: prints only, unless --out is given"
    )
    parser.add_argument("--out", type=Path, help="folder for accuracy.json; default: results, beside this file")
    options = parser.parse_args()
    seeds, budgets = (5, BUDGETS[1:2]) if options.quick else (options.seeds, BUDGETS)
    peers: list[Any] = []
    versions: dict[str, str] = {}
    if options.peers:
        from peers import available

        peers, versions = available()
        print(", ".join(f"{library} {version}" for library, version in versions.items()))
    rows = run(peers, budgets, seeds)
    shown = tables(rows, budgets)
    print("\n".join(plain(*t) for t in shown))
    out = options.out or (None if options.quick else RESULTS)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    result = {"revision": revision(), "peers": versions, "seeds": seeds, "rows": rows}
    (out / "accuracy.json").write_text(json.dumps(result, indent=1) + "\n")
    if out == RESULTS:
        head = ", ".join([result["revision"], f"{seeds} seeds", *(f"{k} {v}" for k, v in versions.items())])
        text = "\n".join([head + ".\n", *(markdown(*t) for t in shown)])
        fill(RESULTS.parent.parent / "calibration.md", "accuracy", text)


if __name__ == "__main__":
    main()
