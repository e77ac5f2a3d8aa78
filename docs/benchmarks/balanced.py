"""What signs balanced over positions are worth: traces, norms and effective ranks of models with several positions.

    python docs/benchmarks/balanced.py [--seeds 200] [--quick] [--out DIR]

Kernels of untrained PyTorch models on eight examples, of which the exact statistics take seconds: recurrent layers and
a transformer over the rows of scikit-learn's digits, of which each is a token; convolutions with a channel an output;
and an MLP as one block, whose positions are the examples. Relative root-mean-square errors of the trace, the Frobenius
norm and the effective rank over seeds, and whether the 95 % intervals hold, by fair signs, by orthogonal ones (of
traces alone) and by balanced ones. Writes balanced.json and brings the table of docs/mathematics.md up to date.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from estimators import revision
from tables import Table, fill, markdown, plain
from timed_models import Block
from torch import nn

import traceest as te
from traceest.operators.layout import layout
from traceest_adapters.demo.data import load
from traceest_adapters.torch import ntk

RESULTS = Path(__file__).resolve().parent / "results"
BUDGETS = (4, 16)
NAMES = {"trace": "trace", "frobenius_norm": "‖K‖", "effective_rank": "effective rank"}
LAWS = {"trace": ("rademacher", "hadamard", "balanced")}
PAIRS = ("rademacher", "balanced")


class Tokens(nn.Module):
    """An embedding of each row with a place of its own, two transformer blocks, a norm; the state is every token's."""

    def __init__(self, d: int, rows: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(rows, d), nn.Parameter(0.1 * torch.randn(rows, d))
        self.blocks, self.norm = nn.Sequential(Block(d, 4), Block(d, 4)), nn.LayerNorm(d)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.blocks(self.embed(images) + self.place))


def convolutions(*channels: int) -> nn.Sequential:
    """Of 3 × 3, each but the last followed by ReLU."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def kernels(quick: bool) -> dict[str, te.Gram]:
    """One of each kind of model, on digits of twice the size."""
    torch.manual_seed(0)
    n, width = (2, 8) if quick else (8, 32)
    images = torch.as_tensor(load(0)[0][:n]).reshape(n, 8, 8)
    images = nn.functional.interpolate(images[:, None], scale_factor=2)[:, 0]
    maps = images[:, None]
    dense = nn.Linear(256, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 10)
    rows = {"batch_first": True}
    return {
        "GRU": ntk(nn.GRU(16, width, **rows), images, output=0),
        "GRU, two layers": ntk(nn.GRU(16, width, 2, **rows), images, output=0),
        "LSTM": ntk(nn.LSTM(16, width, **rows), images, output=0),
        "transformer, tokens": ntk(Tokens(width, 16), images),
        "CNN, feature maps": ntk(convolutions(1, 16, 16, 4), maps),
        "CNN, a mask": ntk(convolutions(1, 16, 16, 1), maps),
        "GRU, one block": ntk(nn.GRU(16, width, **rows), images, output=0, batch_axis=None),
        "MLP, one block": ntk(nn.Sequential(nn.Flatten(), *dense), images, batch_axis=None),
    }


def estimate(K: te.Gram, name: str, m: int, law: Any, seed: int) -> te.Estimate:
    """One estimate of one statistic from m vjps."""
    if name == "trace":
        return te.rhutch(K, m, rng=seed, distribution=law)
    return getattr(te, name)(K, m, rng=seed, distribution=law, method="one-sided")


def measure(K: te.Gram, name: str, m: int, law: Any, truth: float, seeds: int) -> dict[str, Any]:
    """Relative root-mean-square error, its standard error, and coverage over seeds."""
    found = [estimate(K, name, m, law, seed) for seed in range(seeds)]
    squares = np.array([float(e) / truth - 1 for e in found]) ** 2
    rms = float(np.sqrt(np.mean(squares)))
    held = [bool(low <= truth <= high) for low, high in (e.confidence_interval() for e in found)]
    off = float(np.std(squares) / len(squares) ** 0.5 / (2 * rms)) if rms else 0.0
    return {"statistic": name, "n_probes": m, "law": law, "rms": rms, "stderr": off, "coverage": float(np.mean(held))}


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Errors by fair and balanced signs, of the trace by orthogonal ones too, and the range of coverage."""
    of = {(r["model"], r["statistic"], r["n_probes"], r["law"]): r for r in rows}
    models = list(dict.fromkeys(r["model"] for r in rows))
    found = []
    for m in dict.fromkeys(r["n_probes"] for r in rows):
        body = [["", *(f"{title}, {law}" for name, title in NAMES.items() for law in LAWS.get(name, PAIRS))]]
        for model in models:
            some = [of[model, name, m, law] for name in NAMES for law in LAWS.get(name, PAIRS)]
            body.append([model, *(f"{100 * r['rms']:.1f} %" for r in some)])
        found.append((f"{m} vjps: relative rms error", body))
    return found


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=200, help="independent runs for each number")
    parser.add_argument("--quick", action="store_true", help="small models and few runs: prints only, but with --out")
    parser.add_argument("--out", type=Path, help="folder for balanced.json; default: results, beside this file")
    options = parser.parse_args()
    out = options.out or (None if options.quick else RESULTS)
    seeds, budgets = (4, BUDGETS[:1]) if options.quick else (options.seeds, BUDGETS)
    result: dict[str, Any] = {"revision": revision(), "seeds": seeds, "rows": []}
    for model, K in kernels(options.quick).items():
        B = K.factor.n_blocks or 1
        for name in NAMES:
            truth = float(te.exact(K)) if name == "trace" else float(getattr(te, name)(K, method="exact"))
            for m in budgets:
                for law in LAWS.get(name, PAIRS):
                    row = measure(K, name, m, law, truth, seeds)
                    result["rows"].append({"model": model, "n": K.shape[0], "layout": layout(K, B), **row})
                    print(model, name, m, law, f"{row['rms']:.4f} {row['coverage']:.3f}", flush=True)
    held = [r["coverage"] for r in result["rows"] if r["law"] == "balanced"]
    head = f"{result['revision']}; {seeds} seeds; with balanced signs {100 * min(held):.0f} to {100 * max(held):.0f} % "
    head += "of the 95 % intervals hold.\n"
    print("\n".join([head, *(plain(*t) for t in tables(result["rows"]))]))
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "balanced.json").write_text(json.dumps(result, indent=1) + "\n")
    if out == RESULTS:
        page = RESULTS.parent.parent / "mathematics.md"
        fill(page, "balanced", "\n".join([head, *(markdown(*t) for t in tables(result["rows"]))]))


if __name__ == "__main__":
    main()
