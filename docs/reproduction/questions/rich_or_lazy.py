"""Rich or lazy: do the kernel's alignment to its start, effective rank and norm tell which?

    python docs/reproduction/questions/rich_or_lazy.py [--seeds 3] [--quick] [--out DIR]

One start, α from rich to lazy over three decades (lazy_training.py), trained until the same training loss: an MLP on
MNIST, a GRU on a flip-flop memory task. A `te.Tracker` follows the kernel of f's outputs with 4 vjps a look at equal
ratios of the loss; at the start and at the end the kernel is written out too, and for some α over 300 seeds of the
Tracker, which shows whether the intervals hold.
Writes rich_or_lazy.json and the figures, and brings the tables of docs/reproduction/rich_or_lazy.md up to date.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from estimators import revision
from image_models import root, written_out
from lazy_training import TASKS, Task, train
from rich_or_lazy_report import STATISTICS, answer, draw, tables
from tables import fill, markdown, plain

import traceest as te
from traceest_adapters.torch import ntk

REPRODUCTION = Path(__file__).resolve().parents[1]
ALPHAS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
N_PROBES, COVERED = 4, (0.1, 1.0, 10.0)


class Follow:
    """Looks at one run: values with their intervals, rank and norm as multiples of the start's, which is exact."""

    def __init__(self, task: Task, rng: int) -> None:
        self.task, self.rng = task, rng
        self.tracker = te.Tracker(N_PROBES, rng=rng)
        self.kernels: list[te.Gram] = []

    def __call__(self, model: torch.nn.Module, loss: float, step: int) -> dict[str, Any]:
        K = ntk(deepcopy(model), self.task.probed, check=step == 0)
        self.kernels = [*self.kernels[:1], K]
        if step == 0:
            self.start = te.summary(K, method="exact")
        seen = self.tracker.update(K, step=step)
        return {
            "step": step,
            "loss": loss,
            "alignment": _ends(seen.alignment_to_start),
            "distance": _ends(seen.distance_to_start),
            "rank": _multiple(seen.effective_rank_change_from_start, self.start.effective_rank),
            "norm": _multiple(seen.frobenius_norm_change_from_start, self.start.frobenius_norm),
        }

    def end(self) -> dict[str, Any]:
        """The written-out kernels' own statistics, and the alignment without what is common to all outputs."""
        exact = te.summary(*self.kernels, method="exact")
        rank, norm = exact.effective_rank.value, exact.frobenius_norm.value
        centred = te.centred_alignment(*self.kernels, n_probes=N_PROBES + 1, rng=self.rng)
        return {
            "exact": {
                "alignment": float(exact.alignment.value[0, 1]),
                "distance": float(exact.relative_distance.value[1, 0]),
                "rank": float(rank[1] / rank[0]),
                "norm": float(norm[1] / norm[0]),
            },
            "start": {"rank": float(rank[0]), "norm": float(norm[0])},
            "centred": _ends(centred),
        }


def _ends(e: te.Estimate) -> list[float]:
    """Value, and both ends of the 95 % interval."""
    return [float(e), *map(float, e.confidence_interval())]


def _multiple(change: te.Estimate, start: te.Estimate) -> list[float]:
    """1 + change/start."""
    return [1 + x / float(start) for x in _ends(change)]


def run(name: str, task: Task, alphas: tuple[float, ...], seeds: int) -> list[dict[str, Any]]:
    """Every α from every start."""
    rows = []
    for seed in range(seeds):
        for i, alpha in enumerate(alphas):
            begun, follow = time.perf_counter(), Follow(task, rng=1000 * seed + i)
            found = asdict(train(task, alpha, seed, follow))
            rows.append({"task": name, **found, **follow.end(), "seconds": time.perf_counter() - begun})
            last = rows[-1]["looks"][-1]
            shown = ", ".join(f"{key} {last[key][0]:.4g}" for key in STATISTICS)
            print(f"{name}, α = {alpha:g}, seed {seed}: {found['steps']} steps, {shown}", flush=True)
    return rows


def coverage(name: str, task: Task, alphas: tuple[float, ...], seeds: int) -> list[dict[str, Any]]:
    """Do the Tracker's intervals hold at the end of training? Over its own seeds, by kernels written out once."""
    rows = []
    for alpha in alphas:
        kept: list[torch.nn.Module] = []
        train(task, alpha, 0, lambda model, loss, step, kept=kept: kept.append(deepcopy(model)) or {})
        Ks = [written_out(model, task.probed, torch.float64) for model in (kept[0], kept[-1])]
        roots = [te.gram(root(K), n_blocks=len(task.probed)) for K in Ks]
        exact, looks = te.summary(*roots, method="exact"), []
        for seed in range(seeds):
            tracker = te.Tracker(N_PROBES, rng=seed)
            looks.append([tracker.update(K) for K in roots][-1])
        rank, norm = exact.effective_rank.value, exact.frobenius_norm.value
        truth = {
            "alignment_to_start": exact.alignment.value[0, 1],
            "distance_to_start": exact.relative_distance.value[1, 0],
            "effective_rank_change_from_start": rank[1] - rank[0],
            "frobenius_norm_change_from_start": norm[1] - norm[0],
        }
        row: dict[str, Any] = {"task": name, "alpha": alpha, "seeds": seeds}
        for statistic, true in truth.items():
            ends = [getattr(look, statistic).confidence_interval() for look in looks]
            row[statistic] = float(np.mean([low <= true <= high for low, high in ends]))
        rows.append(row)
        print(row, flush=True)
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="starts of every α")
    parser.add_argument("--quick", action="store_true", help="two α, a few steps: prints only, unless --out says where")
    parser.add_argument("--coverage", action="store_true", help="coverage again; the runs stay as the JSON has them")
    parser.add_argument("--redraw", action="store_true", help="figures and page again from the JSON that is there")
    parser.add_argument("--out", type=Path, help="folder for JSON and figures; default: data and figures of the page")
    options = parser.parse_args(arguments)
    out = options.out or (None if options.quick else REPRODUCTION)
    path = (out or REPRODUCTION) / "data" / "rich_or_lazy.json"
    tasks = {name: make(12) if options.quick else make() for name, make in TASKS.items()}
    alphas, seeds, covered, trials = ALPHAS, options.seeds, COVERED, 300
    if options.quick:
        early = {"mnist": 0.9, "flip_flop": 0.7}
        tasks = {name: replace(t, target=early[name], max_steps=100) for name, t in tasks.items()}
        alphas, seeds, covered, trials = (0.3, 30.0), 1, (30.0,), 5
    if options.redraw or options.coverage:
        result = json.loads(path.read_text())
    else:
        result = {
            "revision": revision(),
            "seeds": seeds,
            "n_probes": N_PROBES,
            "titles": {name: t.name for name, t in tasks.items()},
            "targets": {name: t.target for name, t in tasks.items()},
            "rows": [r for name, task in tasks.items() for r in run(name, task, alphas, seeds)],
        }
    if not options.redraw:
        result["coverage"] = [r for name, task in tasks.items() for r in coverage(name, task, covered, trials)]
    shown = tables(result)
    print("\n".join([result["revision"], *(plain(*t) for t in shown), answer(result)]))
    if out is None:
        return
    for folder in (path.parent, out / "figures"):
        folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    draw(result, out / "figures")
    if out == REPRODUCTION:
        text = "\n".join([result["revision"] + ".\n", *(markdown(*t) for t in shown)])
        fill(REPRODUCTION / "rich_or_lazy.md", "rich-or-lazy", text)
        fill(REPRODUCTION / "rich_or_lazy.md", "answer", answer(result))


if __name__ == "__main__":
    main()
