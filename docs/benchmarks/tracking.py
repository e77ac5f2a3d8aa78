"""How much better does a Tracker tell changes of a kernel than independent probes at each checkpoint?

    python docs/benchmarks/tracking.py [--checkpoints 20] [--quick] [--out DIR]

The four models of digit_models.py in training on scikit-learn's digits, batches of 64, looked at with 4 vjps: at every
second step of Adam with rate 3e-4, and at every tenth with 1e-3, where kernels double between looks. For the change of
the trace and of the norm between consecutive checkpoints: the width of the interval from independent probes at each, at
the same cost, over the Tracker's (geometric mean and least over the run), and how many of the Tracker's 95 % intervals
hold the exact change. Writes tracking.json and docs/tracking.png, and brings the table of docs/kernels.md up to date.
"""

from __future__ import annotations

import argparse
import json
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digit_models import MODELS
from estimators import revision
from tables import Table, fill, markdown, plain
from torch import nn

import traceest as te
from traceest_adapters.demo.data import batches, load
from traceest_adapters.torch import ntk

RESULTS = Path(__file__).resolve().parent / "results"
N_PROBES = 4
RUNS = ((3e-4, 2), (1e-3, 10))
STATISTICS = {"trace": "trace", "frobenius_norm": "‖K‖"}


def run(name: str, checkpoints: int, rate: float, every: int) -> tuple[te.Tracker, dict[str, Any]]:
    """Train one model and follow its kernel."""
    torch.manual_seed(0)
    digits = load(0)
    body, probed = MODELS[name](), torch.from_numpy(digits.probed)
    head = nn.Linear(body(probed).flatten(1).shape[1], 10)
    optimiser = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=rate)
    stream, tracker = batches(digits, 0), te.Tracker(N_PROBES, rng=0)
    alone: list[te.Summary] = []
    exact: list[te.Summary] = []
    for c in range(checkpoints):
        for _ in range(every if c else 0):
            images, labels = map(torch.from_numpy, next(stream))
            optimiser.zero_grad()
            nn.functional.cross_entropy(head(body(images).flatten(1)), labels.long()).backward()
            optimiser.step()
        K = ntk(deepcopy(body).eval(), probed)
        tracker.update(K, step=c * every)
        alone.append(te.summary(K, n_probes=N_PROBES, rng=1000 + c))
        exact.append(te.summary(K, method="exact"))
    moved = float(np.mean([float(c.distance_to_previous) for c in tracker.checkpoints[1:]]))
    found: dict[str, Any] = {"model": name, "checkpoints": checkpoints, "rate": rate, "every": every, "moved": moved}
    for statistic in STATISTICS:
        a, e = ([getattr(s, statistic) for s in run] for run in (alone, exact))
        changes = [getattr(c, f"{statistic}_change") for c in tracker.checkpoints[1:]]
        widths = [np.hypot(float(x.stderr), float(y.stderr)) for x, y in pairwise(a)]
        gains = np.array([w / float(c.stderr) for w, c in zip(widths, changes, strict=True)])
        true = [float(y) - float(x) for x, y in pairwise(e)]
        ends = [c.confidence_interval() for c in changes]
        found[statistic] = {
            "gain": float(np.exp(np.mean(np.log(gains)))),
            "least": float(gains.min()),
            "covered": int(np.sum([low <= t <= high for (low, high), t in zip(ends, true, strict=True)])),
            "value_first": float(e[0]),
            "value_last": float(e[-1]),
            "alignment_to_start": float(tracker[-1].alignment_to_start),
        }
    return tracker, found


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """One a run, with a row a model and statistic."""
    return [_table([r for r in rows if (r["rate"], r["every"]) == how]) for how in RUNS]


def _table(rows: list[dict[str, Any]]) -> Table:
    head = ["", "first", "last", "moved by", "gain, mean", "gain, least", "changes in their intervals"]
    body = []
    for r in rows:
        for statistic, title in STATISTICS.items():
            x = r[statistic]
            held = f"{x['covered']} of {r['checkpoints'] - 1}"
            values = f"{x['value_first']:.4g}", f"{x['value_last']:.4g}"
            moved = f"{100 * r['moved']:.0f} %"
            body.append([f"{r['model']}, {title}", *values, moved, f"{x['gain']:.1f}", f"{x['least']:.1f}", held])
    r = rows[0]
    title = f"{r['checkpoints']} checkpoints, every {r['every']} steps of Adam {r['rate']:g}, {N_PROBES} vjps each"
    return title, [head, *body]


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="3 checkpoints: prints only, unless --out says where")
    parser.add_argument("--out", type=Path, help="folder for tracking.json and .png; default: results and docs")
    options = parser.parse_args()
    out = options.out or (None if options.quick else RESULTS)
    rows, trackers = [], {}
    for rate, every in RUNS:
        for name in MODELS:
            trackers[name, every], found = run(name, 3 if options.quick else options.checkpoints, rate, every)
            rows.append(found)
    print("\n".join([revision(), *(plain(*t) for t in tables(rows))]))
    if out is None:
        return
    import matplotlib as mpl

    mpl.use("Agg")
    out.mkdir(parents=True, exist_ok=True)
    (out / "tracking.json").write_text(json.dumps({"revision": revision(), "rows": rows}, indent=1) + "\n")
    figure = trackers["GRU", RUNS[-1][1]].plot()
    figure.suptitle(f"GRU in training, {N_PROBES} vjps a checkpoint; 95 % intervals")
    figure.savefig((RESULTS.parent.parent if out == RESULTS else out) / "tracking.png", dpi=110)
    if out == RESULTS:
        text = "\n".join([revision() + ".\n", *(markdown(*t) for t in tables(rows))])
        fill(RESULTS.parent.parent / "kernels.md", "tracking", text)


if __name__ == "__main__":
    main()
