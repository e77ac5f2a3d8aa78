"""Do intervals hold after a run has chosen for itself when to stop, and how many products does it spend for them?

    python docs/benchmarks/stopping.py [--seeds 1000] [--only flat …] [--rtol 0.1 0.03] [--quick] [--out DIR]

Nine spectra of products with K, n = 300, Gram operators of one block and of eight, by one side or both, and four small
models whose Jacobians are written out once: a multilayer perceptron, a convolutional network, a GRU, and a recurrent
network in its chaotic phase. Trace, norm and effective rank of each to several tolerances. For each: how often the
95 % interval holds the value, how often the value is within the tolerance, the median of the products spent, and that
median over the smallest fixed budget whose interval is as narrow, over the first 20 seeds. Writes stopping.json and
brings the table of docs/calibration.md up to date.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from estimators import revision
from tables import Table, fill, markdown, plain

import traceest as te
from traceest.operators.blocks import unit_probes
from traceest_adapters.torch import jacobian

RESULTS = Path(__file__).resolve().parent / "results"
N = 300
SPECTRA: dict[str, Callable[[int], np.ndarray]] = {
    "flat": lambda n: np.linspace(1.0, 3.0, n),
    "poly": lambda n: np.arange(1.0, n + 1) ** -2,
    "slow poly": lambda n: np.arange(1.0, n + 1) ** -0.5,
    "slowexp": lambda n: 0.9 ** np.arange(n),
    "fastexp": lambda n: 0.7 ** np.arange(n),
    "smallstep": lambda n: np.where(np.arange(n) < n // 20, 1.0, 1e-3),
    "bigstep": lambda n: np.where(np.arange(n) < n // 20, 1.0, 1e-8),
    "one outlier": lambda n: np.where(np.arange(n) < 1, n / 4, 1.0),
    "low rank": lambda n: np.where(np.arange(n) < n // 10, 1.0, 0.0),
}
GRAMS = ("one block", "one block, vjps alone", "eight blocks")
MODELS = ("MLP", "CNN", "GRU", "RNN")
STATISTICS: dict[str, Callable[..., te.Estimate]] = {
    "trace": te.trace,
    "frobenius_norm": te.frobenius_norm,
    "effective_rank": te.effective_rank,
}
RTOL = (0.3, 0.1)
SEEDS_OF_FIXED = 20


def _gram(name: str) -> te.Gram:
    """A Gram operator whose blocks have a common direction, as gradients of different examples do."""
    rng = np.random.default_rng(0)
    J = rng.standard_normal((1200, 400)) * np.arange(1, 401) ** -0.4 + 0.2 * rng.standard_normal(400)
    J = te.aslinearoperator(J, n_blocks=8 if name == "eight blocks" else 1)
    if name == "one block, vjps alone":
        return te.gram(te.Operator(J.shape, like=J, rmatmat=J.rmatmat))
    return te.gram(J)


def _rnn() -> tuple[Callable[..., torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    B, T, nin, H = 6, 30, 3, 12
    p = {"V": torch.randn(H, nin) / nin**0.5, "b": torch.zeros(H), "W": 1.5 * torch.randn(H, H) / H**0.5}

    def states(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        h, out = x.new_zeros(x.shape[0], H), []
        for t in range(T):
            h = torch.tanh(h) @ p["W"].T + x[:, t] @ p["V"].T + p["b"]
            out.append(h)
        return torch.stack(out, 1)

    return states, p, torch.randn(B, T, nin)


def _model(name: str) -> Any:
    """The Jacobian of one of `MODELS`, six examples."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        if name == "RNN":
            states, p, x = _rnn()
            return jacobian(states, x, params=p)
        if name == "GRU":
            return jacobian(torch.nn.GRU(6, 16, batch_first=True), torch.randn(6, 20, 6), output=0)
        if name == "MLP":
            layers = [torch.nn.Linear(40, 24), torch.nn.ReLU(), torch.nn.Linear(24, 200)]
            return jacobian(torch.nn.Sequential(*layers), torch.randn(6, 40))
        conv = [torch.nn.Conv2d(1, 6, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(6, 8, 3, padding=1)]
        return jacobian(torch.nn.Sequential(*conv), torch.randn(6, 1, 8, 8))
    finally:
        torch.set_default_dtype(torch.float32)


@cache
def operator(name: str) -> Any:
    """An operator by name."""
    if name in SPECTRA:
        lam = SPECTRA[name](N)[:, None]
        U = np.linalg.qr(np.random.default_rng(0).standard_normal((N, N)))[0]
        A = (U * lam.T) @ U.T
        return te.aslinearoperator(A, psd=True)
    if name in GRAMS:
        return _gram(name)
    J = _model(name)
    n_b = J.shape[0] // J.n_blocks
    rows = J.block_rmatmat(unit_probes(J, 0, n_b)).reshape(J.shape)
    K = te.gram(rows.numpy(), n_blocks=J.n_blocks)
    K.factor.state_shape, K.factor.feature_axis = J.state_shape, J.feature_axis
    return K


def products(e: te.Estimate) -> int:
    """Products on the side that has more."""
    return max(e.n_matvecs, e.n_rmatvecs)


@cache
def exact(name: str, statistic: str) -> float:
    """The true value."""
    f = STATISTICS[statistic]
    return float(f(operator(name), method="exact"))


def smallest(name: str, statistic: str, rtol: float, seed: int) -> int:
    """The smallest fixed budget whose 95 % interval is within the tolerance, to a quarter."""
    K, m = operator(name), 3
    sided = getattr(K, "factor", None) is not None and (K.factor.n_blocks or 1) > 1
    sided = sided or not hasattr(K, "matmat")
    while True:
        e = STATISTICS[statistic](K, **{"n_probes" if sided else "n_matvecs": m}, rng=seed)
        if e.exact or e.half_width() <= rtol * abs(float(e)):
            return products(e)
        m = int(1.25 * m) + 1


def measure(name: str, statistic: str, rtol: float, seeds: int) -> dict[str, Any]:
    """All runs of one statistic of one operator to one tolerance."""
    K, true, f = operator(name), exact(name, statistic), STATISTICS[statistic]
    runs = [f(K, rtol=rtol, rng=seed) for seed in range(seeds)]
    ends = [e.confidence_interval() for e in runs]
    slack = 1e-9 * abs(true)
    row = {
        "operator": name,
        "statistic": statistic,
        "rtol": rtol,
        "seeds": seeds,
        "held": float(np.mean([low - slack <= true <= high + slack for low, high in ends])),
        "within": float(np.mean([abs(float(e) - true) <= rtol * abs(true) + slack for e in runs])),
        "converged": float(np.mean([bool(e.converged or e.exact) for e in runs])),
        "exact": float(np.mean([e.exact for e in runs])),
        "products": float(np.median([products(e) for e in runs])),
        "mean_products": float(np.mean([products(e) for e in runs])),
    }
    if statistic != "trace":
        some = range(min(seeds, SEEDS_OF_FIXED))
        ratios = [products(runs[seed]) / smallest(name, statistic, rtol, seed) for seed in some]
        row["over_fixed"] = float(np.median(ratios))
    return row


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """A table a statistic: coverage, kept tolerances, products, ratio to the smallest fixed budget."""
    out = []
    for statistic in dict.fromkeys(r["statistic"] for r in rows):
        some = [r for r in rows if r["statistic"] == statistic]
        tolerances = list(dict.fromkeys(r["rtol"] for r in some))
        body = []
        for name in dict.fromkeys(r["operator"] for r in some):
            cells = []
            for rtol in tolerances:
                r = next((r for r in some if (r["operator"], r["rtol"]) == (name, rtol)), None)
                cells.append("" if r is None else _cell(r))
            body.append([name, *cells])
        head = ["", *(f"rtol {rtol}" for rtol in tolerances)]
        shown = "interval holds %, within tolerance %, products"
        shown += "" if statistic == "trace" else " (over the smallest fixed budget)"
        out.append((f"{statistic}: {shown} ({some[0]['seeds']} seeds)", [head, *body]))
    return out


def _cell(r: dict[str, Any]) -> str:
    ratio = f" ({r['over_fixed']:.2f})" if "over_fixed" in r else ""
    return f"{100 * r['held']:.1f} {100 * r['within']:.1f} {r['products']:.0f}{ratio}"


def main() -> None:
    """Parse the command line, measure, print, write."""
    everything = (*SPECTRA, *GRAMS, *MODELS)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=1000, help="independent runs for each number")
    parser.add_argument("--only", nargs="+", choices=everything, default=list(everything), help="operators to run")
    parser.add_argument("--statistics", nargs="+", choices=STATISTICS, default=list(STATISTICS), help="what of them")
    parser.add_argument("--rtol", nargs="+", type=float, default=list(RTOL), help="relative tolerances")
    parser.add_argument("--quick", action="store_true", help="10 seeds: prints only, unless --out says where to write")
    parser.add_argument("--out", type=Path, help="folder for the JSON; default: results, beside this file")
    options = parser.parse_args()
    out = options.out or (None if options.quick else RESULTS)
    rows, seeds = [], 10 if options.quick else options.seeds
    for name in options.only:
        start = time.perf_counter()
        rows += [measure(name, s, rtol, seeds) for s in options.statistics for rtol in options.rtol]
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    shown = tables(rows)
    print("\n".join([revision(), *(plain(*t) for t in shown)]))
    least = {s: min((r["held"] for r in rows if r["statistic"] == s), default=math.nan) for s in options.statistics}
    print("least coverage:", ", ".join(f"{s} {100 * x:.1f} %" for s, x in least.items()))
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "stopping.json").write_text(json.dumps({"revision": revision(), "rows": rows}, indent=1) + "\n")
    if out == RESULTS:
        fill(RESULTS.parent.parent / "calibration.md", "stopping", "\n\n".join(markdown(*t) for t in shown))


if __name__ == "__main__":
    main()
