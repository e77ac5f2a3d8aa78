"""Rich or lazy: do the kernel's alignment to its start, effective rank and norm tell which?

    python docs/reproduction/questions/rich_or_lazy.py [--seeds 3] [--quick] [--out DIR]

One start, α from rich to lazy over three decades (lazy_training.py), trained until the same training loss: an MLP on
MNIST, a GRU on a flip-flop memory task. A `te.Tracker` follows the kernel of f's outputs with 4 vjps a look at equal
ratios of the loss; at the start and at the end the kernel is written out too, which shows whether the intervals hold.
Writes rich_or_lazy.json and the figures, and brings the tables of docs/reproduction/rich_or_lazy.md up to date.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from copy import deepcopy
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from estimators import revision
from lazy_training import TASKS, Task, train
from tables import Table, fill, markdown, plain

import traceest as te
from traceest_adapters.torch import ntk

REPRODUCTION = Path(__file__).resolve().parents[1]
ALPHAS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
N_PROBES = 4
STATISTICS = {
    "alignment": "alignment to the start",
    "rank": "effective rank, of the start's",
    "norm": "‖K‖, of the start's",
}
EXACT = ("alignment", "rank", "norm")


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


def told_apart(rows: list[dict[str, Any]], statistic: str, at: float) -> tuple[int, int]:
    """How many neighbouring α have all intervals of one on one side of all of the other's; `at` is a share of the way.

    The way is that of log loss, from 0 at the start to 1 at the end.
    """
    alphas = sorted({r["alpha"] for r in rows})
    spans = []
    for alpha in alphas:
        looks = [_at(r["looks"], at)[statistic] for r in rows if r["alpha"] == alpha]
        spans.append((min(x[1] for x in looks), max(x[2] for x in looks)))
    apart = sum(a[1] < b[0] or b[1] < a[0] for a, b in pairwise(spans))
    return apart, len(alphas) - 1


def _at(looks: list[dict[str, Any]], share: float) -> dict[str, Any]:
    """The first look that is so far on the way, in the logarithm of the loss."""
    first, last = np.log(looks[0]["loss"]), np.log(looks[-1]["loss"])
    return next(x for x in looks if np.log(x["loss"]) <= first + share * (last - first) + 1e-12)


def held(rows: list[dict[str, Any]], statistic: str) -> tuple[int, int]:
    """Of how many runs the last interval holds the exact value."""
    ends = [(r["looks"][-1][statistic], r["exact"][statistic]) for r in rows]
    return sum(low <= true <= high for (_, low, high), true in ends), len(ends)


def tables(result: dict[str, Any]) -> list[Table]:
    """A table of runs a task, one of what tells α apart, one of coverage."""
    out = []
    for name, title in result["titles"].items():
        rows = [r for r in result["rows"] if r["task"] == name]
        body = []
        for alpha in sorted({r["alpha"] for r in rows}):
            same = [r for r in rows if r["alpha"] == alpha]
            last = [r["looks"][-1] for r in same]
            body.append(
                [
                    f"{alpha:g}",
                    _range([r["steps"] for r in same], ".0f"),
                    _range([100 * r["moved"] for r in same], ".2g", " %"),
                    _range([100 * r["test_accuracy"] for r in same], ".1f", " %"),
                    *(_range([x[key][0] for x in last], ".4g" if key == "alignment" else ".3g") for key in STATISTICS),
                    _range([r["centred"][0] for r in same], ".3g"),
                    _range([x["distance"][0] for x in last], ".2g"),
                ]
            )
        head = ["α", "steps", "weights moved", "test accuracy", *STATISTICS.values(), "centred alignment", "distance"]
        start = _range([r["start"]["rank"] for r in rows], ".3g")
        loss = f"{rows[0]['looks'][0]['loss']:.3g} → {result['targets'][name]:g}"
        note = f"{title}, training loss {loss}; rank at the start {start}"
        out.append((f"{note}; least – greatest of {result['seeds']} seeds", [head, *body]))
    head = ["", *(f"{title}: {when}" for title in result["titles"].values() for when in ("half-way", "end", "held"))]
    body = []
    for key, title in STATISTICS.items():
        cells = []
        for name in result["titles"]:
            rows = [r for r in result["rows"] if r["task"] == name]
            cells += ["{} of {}".format(*told_apart(rows, key, at)) for at in (0.5, 1.0)]
            cells.append("{} of {}".format(*held(rows, key)))
        body.append([title.split(",")[0], *cells])
    title = "Neighbouring α told apart by intervals, over all seeds; last intervals that hold the exact value"
    out.append((title, [head, *body]))
    return out


def _range(x: list[float], form: str, unit: str = "") -> str:
    low, high = f"{min(x):{form}}", f"{max(x):{form}}"
    return (low if low == high else f"{low} – {high}") + unit


def draw(result: dict[str, Any], folder: Path) -> None:
    """Along training, and at its end against α."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = list(result["titles"])
    alphas = sorted({r["alpha"] for r in result["rows"]})
    colour = dict(zip(alphas, mpl.colormaps["plasma"](np.linspace(0.0, 0.85, len(alphas))), strict=True))
    figure, axes = plt.subplots(len(names), 3, figsize=(11, 6.4), layout="constrained", squeeze=False)
    for row, name in zip(axes, names, strict=True):
        runs = [r for r in result["rows"] if r["task"] == name]
        for ax, (key, title) in zip(row, STATISTICS.items(), strict=True):
            _along(ax, runs, key, colour)
            ax.set_title(f"{result['titles'][name]}: {title}", fontsize=10)
            ax.set_xlabel("training loss")
    _save(figure, folder / "rich_or_lazy")
    figure, axes = plt.subplots(1, 4, figsize=(11, 2.9), layout="constrained")
    shown = {"alignment": "alignment to the start", "distance": "‖K − K₀‖ / ‖K₀‖", **dict(list(STATISTICS.items())[1:])}
    for ax, (key, title) in zip(axes, shown.items(), strict=True):
        for name, hue, mark in zip(names, ("#1b6ca8", "#c4571b"), ("o", "s"), strict=False):
            _at_the_end(ax, [r for r in result["rows"] if r["task"] == name], key, hue, mark, result["titles"][name])
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("α")
    axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    _save(figure, folder / "rich_or_lazy_end")


def _along(ax: Any, runs: list[dict[str, Any]], key: str, colour: dict[float, Any]) -> None:
    """A line a run, its intervals as a band, α beside its end."""
    ends = {}
    for r in runs:
        x, (y, low, high) = [k["loss"] for k in r["looks"]], np.array([k[key] for k in r["looks"]]).T
        hue = colour[r["alpha"]]
        ax.plot(x, y, color=hue, linewidth=1.2)
        ax.fill_between(x, low, high, color=hue, alpha=0.18, linewidth=0)
        ends.setdefault(r["alpha"], []).append((x[-1], y[-1]))
    ax.set_xscale("log")
    if key != "alignment":
        ax.set_yscale("log")
    ax.invert_xaxis()
    low, high = ax.get_ylim()
    if key == "alignment":
        low, high = low, 1.0 + 0.03 * (1.0 - low)
        ax.set_ylim(low, high)
    _plain_ticks(ax)
    logs = ax.get_yscale() == "log"
    place = np.log if logs else np.asarray
    order = sorted(ends, key=lambda a: float(np.mean([y for _, y in ends[a]])))
    heights = np.array([float(np.mean(place([y for _, y in ends[a]]))) for a in order])
    gap = 0.058 * (place(ax.get_ylim()[1]) - place(ax.get_ylim()[0]))
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    heights -= max(0.0, heights[-1] - place(ax.get_ylim()[1]))
    for i in range(len(heights) - 2, -1, -1):
        heights[i] = min(heights[i], heights[i + 1] - gap)
    for alpha, height in zip(order, heights, strict=True):
        y = float(np.exp(height)) if logs else float(height)
        ax.annotate(
            f"{'α = ' if alpha == max(order) else ''}{alpha:g}",
            (1.02, y),
            xycoords=("axes fraction", "data"),
            color=colour[alpha],
            va="center",
            fontsize=8,
        )
    ax.spines[["top", "right"]].set_visible(False)


def _plain_ticks(ax: Any) -> None:
    """Losses as plain numbers."""
    import matplotlib.ticker as ticker

    low, high = sorted(ax.get_xlim())
    marks = [t for t in (0.1, 0.2, 0.5, 1.0, 2.0) if low <= t <= high] + ([0.3] if low > 0.2 else [])
    ax.xaxis.set_major_locator(ticker.FixedLocator(marks))
    ax.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    ax.xaxis.set_minor_locator(ticker.NullLocator())


def _at_the_end(ax: Any, runs: list[dict[str, Any]], key: str, hue: str, mark: str, label: str) -> None:
    """Every run with its interval, and the mean over starts as a line."""
    for r in runs:
        y, low, high = r["looks"][-1][key]
        ax.plot([r["alpha"]] * 2, [max(low, 1e-9), high], color=hue, linewidth=3, alpha=0.3, solid_capstyle="butt")
        ax.plot(r["alpha"], y, mark, color=hue, markersize=3)
    alphas = sorted({r["alpha"] for r in runs})
    means = [np.mean([r["exact"][key] for r in runs if r["alpha"] == a]) for a in alphas]
    ax.plot(alphas, means, color=hue, linewidth=1, label=label)
    ax.set_xscale("log")
    if key != "alignment":
        ax.set_yscale("log")
    ax.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path.with_suffix(".png"), dpi=150)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="starts of every α")
    parser.add_argument("--quick", action="store_true", help="two α, a few steps: prints only, unless --out says where")
    parser.add_argument("--redraw", action="store_true", help="figures and page again from the JSON that is there")
    parser.add_argument("--out", type=Path, help="folder for JSON and figures; default: data and figures of the page")
    options = parser.parse_args(arguments)
    out = options.out or (None if options.quick else REPRODUCTION)
    data, figures = (None, None) if out is None else (out / "data", out / "figures")
    if options.redraw:
        result = json.loads((REPRODUCTION / "data" / "rich_or_lazy.json").read_text())
    else:
        tasks = {name: make(12) if options.quick else make() for name, make in TASKS.items()}
        if options.quick:
            early = {"mnist": 0.9, "flip_flop": 0.7}
            tasks = {name: replace(t, target=early[name], max_steps=100) for name, t in tasks.items()}
        alphas, seeds = ((0.3, 30.0), 1) if options.quick else (ALPHAS, options.seeds)
        rows = [r for name, task in tasks.items() for r in run(name, task, alphas, seeds)]
        result = {
            "revision": revision(),
            "seeds": seeds,
            "n_probes": N_PROBES,
            "titles": {name: t.name for name, t in tasks.items()},
            "targets": {name: t.target for name, t in tasks.items()},
            "rows": rows,
        }
    shown = tables(result)
    print("\n".join([result["revision"], *(plain(*t) for t in shown)]))
    if out is None:
        return
    for folder in (data, figures):
        folder.mkdir(parents=True, exist_ok=True)
    if not options.redraw:
        (data / "rich_or_lazy.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, figures)
    if out == REPRODUCTION:
        text = "\n".join([result["revision"] + ".\n", *(markdown(*t) for t in shown)])
        fill(REPRODUCTION / "rich_or_lazy.md", "rich-or-lazy", text)


if __name__ == "__main__":
    main()
