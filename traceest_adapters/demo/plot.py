"""The picture: every statistic along training, with 95 % bands and exact values at both ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from traceest_adapters.demo.run import ModelResults, Results

BLUE, VERMILION = "#0072B2", "#D55E00"  # of Okabe and Ito's palette, told apart by all eyes
INK, GREY = "#333333", "#777777"
LABELS = {
    "trace": "trace",
    "Frobenius norm": "Frobenius norm",
    "effective rank": "effective rank",
    "alignment": "alignment with the start",
}


def write_plot(results: Results, path: Path) -> None:
    """Write the picture as PNG: a row for each model, a column for each statistic.

    Parameters
    ----------
    results : Results
    path : Path
        An existing file is replaced.
    """
    o = results.options
    figure = Figure(figsize=(12, 5.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(results.models), len(LABELS), sharex=True, squeeze=False)
    for row, model, colour in zip(axes, results.models, (BLUE, VERMILION)):
        for ax, statistic in zip(row, LABELS):
            _draw(ax, model, statistic, colour)
        row[0].set_ylabel(f"{model.name}: n = {model.n}, P = {model.n_params}", color=colour, fontsize=12)
    for ax, label in zip(axes[0], LABELS.values()):
        ax.set_title(label, fontsize=12, color=INK)
    for ax in axes[-1]:
        ax.set_xlabel("training step", color=INK)
    figure.suptitle(
        f"Neural Tangent Kernels of digit classifiers in training, estimated from {o.probes} probes",
        fontsize=13,
        color=INK,
    )
    figure.legend(handles=_legend(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150, format="png")


def _draw(ax: Any, model: ModelResults, statistic: str, colour: str) -> None:
    steps = [p.step for p in model.track]
    found = [p.estimates[statistic] for p in model.track]
    intervals = [e.confidence_interval() for e in found]
    low, high = [i.low for i in intervals], [i.high for i in intervals]
    ax.fill_between(steps, low, high, color=colour, alpha=0.22, linewidth=0)
    ax.plot(steps, [float(e) for e in found], color=colour, linewidth=1.6, marker="o", markersize=3)
    exact = {c.when: float(c.exact) for c in model.comparisons if c.statistic == statistic}
    if statistic == "alignment":
        ends = [(steps[0], 1.0), (steps[-1], exact["before and after"])]  # of the start with itself it is 1
    else:
        ends = [(steps[0], exact["before"]), (steps[-1], exact["after"])]
    ax.scatter(*zip(*ends), s=55, facecolors="none", edgecolors="black", linewidths=1.4, zorder=3, clip_on=False)
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(colors=INK)
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.set_ylim(bottom=0, top=1.05 if statistic == "alignment" else None)
    if ax.get_ylim()[1] > 10_000:
        ax.yaxis.set_major_formatter(EngFormatter(sep=""))


def _legend() -> list[Any]:
    """Entries in grey, since they stand for both rows' colours."""
    return [
        Line2D([], [], color=GREY, linewidth=1.6, marker="o", markersize=3, label="estimate"),
        Patch(facecolor=GREY, alpha=0.3, label="95 % interval"),
        Line2D([], [], color="none", marker="o", markersize=7, markeredgecolor="black", label="exact value"),
    ]
