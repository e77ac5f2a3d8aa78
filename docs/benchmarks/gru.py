"""Norm, effective rank and trace of the paper's GRU from a few vjps: errors over seeds, in JAX and in PyTorch.

    python docs/benchmarks/gru.py [--seeds 20] [--exact] [--quick] [--out DIR]

The GRU of arXiv 2511.10796: 10 inputs, 64 hidden units, 50 time steps, 15 sequences of random normal input; the state
is every hidden unit at every time step of every sequence, n = 48,000, P = 14,592. One set of PyTorch weights serves
both frameworks. The exact statistics take 3,200 vjps and a 14,592² matrix, some minutes: they are computed once
(`--exact` again), and kept in gru.json with the seed they belong to. Relative root-mean-square errors by the number of
vjps, per example with balanced and fair signs and with sphere probes, and (`batch_axis=None`, twenty times the seeds)
with the whole state as one block, beside what the variance formula of the U-statistic says,

    Var = (8(m − 2) tr K⁴ + 4 (tr K²)² + 12 tr K⁴) / (m(m − 1)),

with Gaussian probes. Writes gru.json and brings the table of docs/kernels.md up to date.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from estimators import revision
from tables import Table, fill, markdown, plain

import traceest as te
from traceest.operators.blocks import unit_probes
from traceest_adapters import jax as in_jax
from traceest_adapters import torch as in_torch

RESULTS = Path(__file__).resolve().parent / "results"
SIZES = {"inputs": 10, "hidden": 64, "steps": 50, "sequences": 15}
QUICK = {"inputs": 4, "hidden": 8, "steps": 6, "sequences": 5}
PER_EXAMPLE, ONE_BLOCK = (2, 4, 8), (8, 16, 32)
LAWS = {"JAX": "balanced", "PyTorch": "balanced", "JAX, fair signs": "rademacher", "JAX, sphere": "sphere"}
"""Frameworks and laws of the probes, of which the default is balanced signs."""


def jax_gru(p: dict[str, Any], x: Any) -> Any:
    """`nn.GRU` with its own parameters, batch first: every hidden state, (sequence, time, hidden)."""

    def cell(h: Any, x_t: Any) -> tuple[Any, Any]:
        r_x, z_x, n_x = jnp.split(x_t @ p["weight_ih_l0"].T + p["bias_ih_l0"], 3, axis=-1)
        r_h, z_h, n_h = jnp.split(h @ p["weight_hh_l0"].T + p["bias_hh_l0"], 3, axis=-1)
        r, z = jax.nn.sigmoid(r_x + r_h), jax.nn.sigmoid(z_x + z_h)
        h = (1 - z) * jnp.tanh(n_x + r * n_h) + z * h
        return h, h

    start = jnp.zeros((x.shape[0], p["weight_hh_l0"].shape[1]), x.dtype)
    return jnp.swapaxes(jax.lax.scan(cell, start, jnp.swapaxes(x, 0, 1))[1], 0, 1)


def kernels(sizes: dict[str, int], batch_axis: int | None) -> dict[str, te.Gram]:
    """The kernel in both frameworks, of the same weights and inputs (seed 0)."""
    torch.manual_seed(0)
    module = torch.nn.GRU(sizes["inputs"], sizes["hidden"], batch_first=True)
    x = torch.randn(sizes["sequences"], sizes["steps"], sizes["inputs"])
    params = {name: jnp.asarray(p.detach().numpy()) for name, p in module.named_parameters()}
    return {
        "JAX": in_jax.ntk(jax_gru, params, jnp.asarray(x.numpy()), batch_axis=batch_axis),
        "PyTorch": in_torch.ntk(module, x, batch_axis=batch_axis, output=0),
    }


def exact(K: te.Gram) -> dict[str, float]:
    """Tr K, tr K² and tr K⁴ from C = JᵀJ, accumulated in float64 from float32 rows a few unit vectors at a time."""
    J: Any = K.factor
    n_b = J.shape[0] // J.n_blocks
    C = np.zeros((J.shape[1], J.shape[1]), np.float32)
    for i in range(0, n_b, 64):
        rows = np.asarray(J.block_rmatmat(unit_probes(J, i, min(i + 64, n_b)))).reshape(-1, J.shape[1])
        C += rows.T @ rows
    squared = C @ C
    sums = {"trace": np.trace(C, dtype=np.float64), "squares": np.sum(np.square(C), dtype=np.float64)}
    sums["fourth"] = np.sum(np.square(squared), dtype=np.float64)
    return {name: float(x) for name, x in sums.items()}


def measure(K: te.Gram, truth: dict[str, float], m: int, seeds: int, distribution: Any) -> dict[str, Any]:
    """Root-mean-square relative errors and coverage over seeds."""
    if distribution is None:  # Gaussian probes as any: the plain U-statistic, which the formula is for
        drawn = (te.probes.gaussian(K.shape[0], m, rng=seed, like=K) for seed in range(seeds))
        summaries = [te.summary(K, probes=V) for V in drawn]
    else:
        summaries = [te.summary(K, n_probes=m, rng=seed, distribution=distribution) for seed in range(seeds)]
    found: dict[str, Any] = {"n_probes": m, "seeds": seeds}
    for name, true in truth.items():
        estimates = [getattr(s, name) for s in summaries]
        values = np.array([float(e) for e in estimates]) / true - 1
        held = [low <= true <= high for low, high in (e.confidence_interval() for e in estimates)]
        known = np.isfinite(values)
        found[name] = {
            "rms": float(np.sqrt(np.mean(values[known] ** 2))),
            "unknown": int(np.sum(~known)),
            "coverage": float(np.mean(held)),
            # of ‖K‖², which the formula is for
            "rms_of_square": float(np.sqrt(np.mean(((values[known] + 1) ** 2 - 1) ** 2))),
        }
    return found


def formula(sums: dict[str, float], m: int) -> float:
    """Relative standard deviation of the one-block U-statistic of ‖K‖² with Gaussian probes."""
    t2, t4 = sums["squares"], sums["fourth"]
    return float(np.sqrt((8 * (m - 2) * t4 + 4 * t2**2 + 12 * t4) / (m * (m - 1))) / t2)


def tables(result: dict[str, Any]) -> list[Table]:
    """Per example for both frameworks, then one block against the formula."""
    head = ["", *(f"{name}, {what}" for name in ("trace", "‖K‖", "effective rank") for what in LAWS)]
    rows = {(r["framework"], r["blocks"], r["n_probes"]): r for r in result["rows"]}
    names = ("trace", "frobenius_norm", "effective_rank")
    body = []
    for m in PER_EXAMPLE:
        cells = [f"{100 * rows[f, True, m][name]['rms']:.1f} %" for name in names for f in LAWS]
        body.append([f"{m} vjps", *cells])
    one = [["", "measured", "formula"]]
    one += [
        [f"{m} vjps", f"{100 * rows['JAX', False, m]['frobenius_norm']['rms_of_square']:.1f} %", f"{100 * x:.1f} %"]
        for m, x in ((m, formula(result["exact"], m)) for m in ONE_BLOCK)
    ]
    seeds = rows["JAX", True, PER_EXAMPLE[0]]["seeds"], rows["JAX", False, ONE_BLOCK[0]]["seeds"]
    return [
        (f"Relative rms error over {seeds[0]} seeds, per example", [head, *body]),
        (f"‖K‖² with the state as one block, {seeds[1]} seeds: relative rms error", one),
    ]


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=20, help="independent runs for each number")
    parser.add_argument("--exact", action="store_true", help="compute the exact statistics again")
    parser.add_argument("--quick", action="store_true", help="a small GRU: prints only, unless --out says where")
    parser.add_argument("--out", type=Path, help="folder for gru.json; default: results, beside this file")
    options = parser.parse_args()
    out = options.out or (None if options.quick else RESULTS)
    sizes = QUICK if options.quick else SIZES
    blocks, whole = kernels(sizes, 0), kernels(sizes, None)
    path = None if out is None else out / "gru.json"
    known = json.loads(path.read_text()) if path is not None and path.exists() and not options.exact else {}
    sums = known["exact"] if known.get("sizes") == sizes else exact(blocks["JAX"])
    truth = {
        "trace": sums["trace"],
        "frobenius_norm": sums["squares"] ** 0.5,
        "effective_rank": sums["trace"] ** 2 / sums["squares"],
    }
    result: dict[str, Any] = {"revision": revision(), "sizes": sizes, "seed": 0, "exact": sums, **truth, "rows": []}
    for name, law in LAWS.items():
        for m in PER_EXAMPLE:
            row = measure(blocks[name.split(",")[0]], truth, m, options.seeds, law)
            result["rows"].append({"framework": name, "blocks": True, **row})
            print(name, m, {s: f"{row[s]['rms']:.3f}" for s in truth}, flush=True)
    for m in ONE_BLOCK:
        row = measure(whole["JAX"], truth, m, 20 * options.seeds, None)
        result["rows"].append({"framework": "JAX", "blocks": False, **row})
    head = f"{result['revision']}; exact: tr K = {truth['trace']:.6g}, ‖K‖² = {sums['squares']:.5g}, effective rank "
    head += f"{truth['effective_rank']:.1f}.\n"
    print("\n".join([head, *(plain(*t) for t in tables(result))]))
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    if path.parent == RESULTS:
        fill(RESULTS.parent.parent / "kernels.md", "gru", "\n".join([head, *(markdown(*t) for t in tables(result))]))


if __name__ == "__main__":
    main()
