"""What the question scripts share: where results go, timings in turns, figures, and text between a page's markers."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

QUESTIONS = Path(__file__).resolve().parent
REPRODUCTION = QUESTIONS.parent
# In front, for the `spectra` of the benchmarks is not the question of that name.
sys.path.insert(0, str(REPRODUCTION.parent / "benchmarks"))

from estimators import revision  # noqa: E402
from tables import Table, fill, markdown  # noqa: E402

__all__ = ["COLOURS", "Table", "axes", "label_ends", "markdown", "options", "seconds_in_turns", "write"]

COLOURS = {
    "MLP": "#0072B2",
    "CNN": "#E69F00",
    "GRU": "#009E73",
    "LSTM": "#CC79A7",
    "transformer": "#D55E00",
    "RHutch": "#999999",
    "block RHutch": "#0072B2",
    "FHutch": "#D55E00",
    "Hutch++": "#009E73",
    "XNysTrace": "#CC79A7",
    "exact, one state": "#E69F00",
    "jvp": "#D55E00",
    "product with K": "#009E73",
    "norm of a vjp": "#999999",
    "probe per example": "#0072B2",
}
"""Of models, methods and products (Okabe and Ito's, which the colour-blind tell apart)."""


def options(doc: str, quick: str) -> argparse.Namespace:
    """The command line of a question: --quick, --redraw, --out."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{quick}: writes only where --out says")
    parser.add_argument("--redraw", action="store_true", help="figures and page again, from the data that are there")
    parser.add_argument("--out", type=Path, help="folder for data and figures; default: those beside the page")
    return parser.parse_args()


def write(
    name: str,
    given: argparse.Namespace,
    measure: Callable[[bool], dict[str, Any]],
    draw: Callable[[dict[str, Any]], dict[str, Any]],
    text: Callable[[dict[str, Any]], dict[str, str]],
) -> None:
    """Measure, or read what was measured; draw; and put the text that says so into the page, or print it."""
    own = given.out is None and not given.quick
    data = (REPRODUCTION / "data" if own else given.out or Path()) / f"{name}.json"
    if given.redraw:
        found = json.loads(data.read_text())
    else:
        found = {"revision": revision(), **measure(given.quick)}
        found = json.loads(json.dumps(found))  # what a redrawing will see
    parts = text(found)
    if not own:
        print("\n".join(parts.values()))
    if not (own or given.out):
        return
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_text(json.dumps(found, indent=1) + "\n")
    figures = REPRODUCTION / "figures" if own else data.parent
    figures.mkdir(parents=True, exist_ok=True)
    for figure, drawn in draw(found).items():
        for ending in ("png", "svg"):
            metadata = {"Date": None} if ending == "svg" else None
            drawn.savefig(figures / f"{figure}.{ending}", dpi=110, bbox_inches="tight", metadata=metadata)
    if own:
        for marker, content in parts.items():
            fill(REPRODUCTION / f"{name}.md", marker, content)


def seconds_in_turns(calls: dict[str, Callable[[], Any]], rounds: int, least: float = 0.01) -> dict[str, list[float]]:
    """CPU seconds of every call, all of them in turns, so that what slows the machine slows each; warmed up before.

    Short calls are repeated within a round, to about `least` seconds. CPU time is that of all threads; what else runs
    on the machine does not count.
    """
    repeats, out = {}, {name: [] for name in calls}
    for name, call in calls.items():
        call()
        start = time.process_time()
        call()
        repeats[name] = max(1, min(50, round(least / max(time.process_time() - start, 1e-7))))
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            for _ in range(repeats[name]):
                call()
            out[name].append((time.process_time() - start) / repeats[name])
    return out


def axes(rows: int, columns: int, size: tuple[float, float], **kwargs: Any) -> tuple[Any, Any]:
    """A figure and its axes, (rows, columns), without frames and with a faint grid."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "svg.hashsalt": "traceest", "axes.titleweight": "bold"})
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **kwargs)
    for ax in grid.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, which="major", color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, grid


def label_ends(ax: Any, ends: dict[str, tuple[float, float]], gap: float = 0.075) -> None:
    """Names at the right ends of lines in logarithmic axes, `gap` of the height apart at least."""
    low, high = np.log(ax.get_ylim())
    names = sorted(ends, key=lambda name: ends[name][1])
    wanted = np.array([(np.log(ends[name][1]) - low) / (high - low) for name in names])
    heights = wanted.copy()
    for i in range(1, len(names)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    # Runs that were pushed up go back to where their middle belongs.
    start = 0
    for i in range(1, len(names) + 1):
        if i == len(names) or heights[i] > heights[i - 1] + 1.001 * gap:
            heights[start:i] += np.mean(wanted[start:i] - heights[start:i])
            start = i
    for i in range(1, len(names)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    for name, y in zip(names, heights, strict=True):
        ax.annotate(
            name, (1.02, y), xycoords="axes fraction", color=COLOURS[name], va="center", fontsize=9, fontweight="bold"
        )
