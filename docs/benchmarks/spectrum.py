"""Do spectra hold? Eigenvalues against their bounds, and functions of operators against their error bars.

    python docs/benchmarks/spectrum.py [--seeds 300] [--quick] [--out DIR]

Diagonal operators of n = 1000 with the six spectra of spectra.py; Gaussian and sphere probes see a diagonal one as they
do any rotation of it. Coverage is how often a nominal 95 % interval holds the true value (within 1e-10 of it, so that
exact answers count), the ratio is rms standard error / rms true error. Writes spectrum.json, and brings the tables of
docs/spectrum.md up to date.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from calibration import cell
from estimators import revision
from spectra import SPECTRA, N
from tables import Table, fill, markdown, plain

import traceest as te
from traceest.spectrum.quadrature import quadrature

BUDGETS = (60, 120, 240)
RESULTS = Path(__file__).resolve().parent / "results"
FUNCTIONS = {
    "log": np.log,
    "√x": np.sqrt,
    "exp": np.exp,
    "x log x": lambda x: x * np.log(np.maximum(x, 1e-300)),
    "x²": np.square,
    "1/(x + 0.01)": lambda x: 1 / (x + 1e-2),
}
SINGULAR = ("slowexp", "fastexp")
"""Spectra that fall below rounding, of which there is no log."""


def diagonal(lam: np.ndarray) -> Any:
    """diag(λ)."""
    return te.aslinearoperator(lambda X: lam[:, None] * X, like=np.zeros((len(lam), 1)), psd=True)


def summary(estimates: list[te.Estimate], truth: float) -> dict[str, Any]:
    """Coverage, ratio and relative error."""
    errors = np.array([float(e) - truth for e in estimates])
    bars = np.array([float(e.stderr) for e in estimates])
    ends, slack = [e.confidence_interval() for e in estimates], 1e-10 * abs(truth)
    rms = float(np.sqrt(np.mean(errors**2)))
    return {
        "seeds": len(estimates),
        "coverage": float(np.mean([low - slack <= truth <= high + slack for low, high in ends])),
        "stderr_over_error": float(np.sqrt(np.mean(bars**2)) / rms) if rms > 1e-12 * abs(truth) else None,
        "relative_error": rms / abs(truth),
        "exact": float(np.mean([e.exact for e in estimates])),
    }


def functions(seeds: int) -> list[dict[str, Any]]:
    """A row for each spectrum, budget and function; one quadrature serves all functions. Entropy rank last."""
    rows = []
    for name, spectrum in SPECTRA.items():
        lam = spectrum(N)
        p = lam / lam.sum()
        entropy = float(np.exp(-np.sum(p * np.log(p))))
        for m in BUDGETS:
            runs = [quadrature(diagonal(lam), m, caller="", rng=seed).clipped(0.0) for seed in range(seeds)]
            for f, function in FUNCTIONS.items():
                if f != "log" or name not in SINGULAR:
                    found = summary([q.trace(function) for q in runs], float(np.sum(function(lam))))
                    rows.append({"family": name, "budget": m, "function": f, **found})
            ranks = [te.entropy_rank(diagonal(lam), m, rng=seed) for seed in range(seeds)]
            rows.append({"family": name, "budget": m, "function": "entropy rank", **summary(ranks, entropy)})
        print(f"{name}: done", flush=True)
    return rows


def extremes() -> list[dict[str, Any]]:
    """The six largest eigenvalues to the default tolerance, and the norm to its own."""
    rows = []
    for name, spectrum in SPECTRA.items():
        lam = np.sort(spectrum(N))[::-1]
        e = te.eigenvalues(diagonal(lam), 6, rng=0)
        errors = np.abs(e.values - lam[:6])
        norm = te.spectral_norm(diagonal(lam), rng=0)
        rows.append(
            {
                "family": name,
                "products": e.n_matvecs,
                "relative_error": float(np.max(errors / lam[:6])),
                "worst_bound": float(np.max(e.bounds)),
                "within_bounds": bool(np.all(errors <= e.bounds)),
                "norm_products": norm.n_matvecs,
                "norm_error": abs(float(norm) / float(lam[0]) - 1),
            }
        )
    return rows


def tables(result: dict[str, Any]) -> list[Table]:
    """Eigenvalues; then, for each budget, coverage and ratio, and errors."""
    head = ["", "products", "largest relative error", "largest bound", "norm: products", "norm: error"]
    body = [
        [
            r["family"],
            str(r["products"]),
            f"{r['relative_error']:.0e}",
            f"{r['worst_bound']:.0e}",
            str(r["norm_products"]),
            f"{r['norm_error']:.0e}",
        ]
        for r in result["extremes"]
    ]
    out = [("The six largest of 1000 eigenvalues (rtol = 1e-8), and the spectral norm (rtol = 1e-3)", [head, *body])]
    rows = {(r["family"], r["budget"], r["function"]): r for r in result["functions"]}
    shown = [*FUNCTIONS, "entropy rank"]
    for m in BUDGETS:
        body = [[f, *(cell(rows.get((f, m, x))) for x in shown)] for f in SPECTRA]
        out.append((f"m = {m}: coverage in %, stderr / error", [["", *shown], *body]))
    for m in BUDGETS:
        body = [
            [f, *(f"{rows[f, m, x]['relative_error']:.0e}" if (f, m, x) in rows else "–" for x in shown)]
            for f in SPECTRA
        ]
        out.append((f"m = {m}: rms relative error", [["", *shown], *body]))
    return out


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=300, help="independent runs for each number")
    parser.add_argument("--quick", action="store_true", help="20 seeds: prints only, unless --out says where to write")
    parser.add_argument("--out", type=Path, help="folder for spectrum.json; default: results, beside this file")
    options = parser.parse_args()
    rows = functions(20 if options.quick else options.seeds)
    result = {"revision": revision(), "extremes": extremes(), "functions": rows}
    shown = tables(result)
    print("\n".join(plain(*t) for t in shown))
    out = options.out or (None if options.quick else RESULTS)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "spectrum.json").write_text(json.dumps(result, indent=1) + "\n")
    if out == RESULTS:
        head = (
            f"{result['revision']}, {rows[0]['seeds']} seeds. A star: coverage outside 93–99 % by more than chance.\n"
        )
        fill(RESULTS.parent.parent / "spectrum.md", "spectrum", "\n".join([head, *(markdown(*t) for t in shown)]))


if __name__ == "__main__":
    main()
