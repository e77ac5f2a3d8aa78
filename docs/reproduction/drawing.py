"""One look for all figures: a colour for each method throughout, names at the ends of lines, no frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import numpy as np
from ladder import EXACT, PER_EXAMPLE, TRACE
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

INK, GREY = "#333333", "#8a8a8a"
COLOURS = {  # of Okabe and Ito's palette, told apart by all eyes
    "Hutch++": "#0072B2",
    "RHutch": "#D55E00",
    "FHutch": "#009E73",
    PER_EXAMPLE: "#A6407A",
    TRACE: "#111111",
    EXACT: "#111111",
}
STYLE = {
    "font.size": 11.5,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 12.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.markersize": 4.5,
    "svg.hashsalt": "traceest",
    "svg.fonttype": "none",
}


def figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure with its axes in an array."""
    plt.rcParams.update(STYLE)
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False)


def save(fig: Any, out: Path, name: str) -> None:
    """As figures/`name`.png and .svg."""
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    fig.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})
    fig.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    plt.close(fig)


def per_cent(x: float) -> str:
    """0.01 as "1 %"."""
    return f"{100 * x:.10f}".rstrip("0").rstrip(".") + " %"


def power(x: float) -> str:
    """1e4 as "10⁴", and small ones as they are."""
    e = round(np.log10(x))
    return f"{10**e:g}" if 0 <= e <= 1 else "10" + str(e).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def error_axis(ax: Any, which: str = "y") -> None:
    """A logarithmic axis of relative errors in per cent."""
    (ax.set_yscale if which == "y" else ax.set_xscale)("log")
    axis = ax.yaxis if which == "y" else ax.xaxis
    axis.set_major_formatter(FuncFormatter(lambda x, _: per_cent(x)))
    axis.set_minor_formatter(NullFormatter())


def time_axis(ax: Any) -> None:
    """A logarithmic axis of run times relative to the direct trace's."""
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: power(x)))
    ax.xaxis.set_minor_formatter(NullFormatter())


def resampled(errors: Any, draws: int = 500) -> tuple[float, float]:
    """The middle 90 % of the rms of errors over resampled seeds."""
    x = np.square(np.asarray(errors))
    picks = np.random.default_rng(0).integers(0, len(x), (draws, len(x)))
    low, high = np.quantile(np.sqrt(x[picks].mean(axis=1)), [0.05, 0.95])
    return float(low), float(high)


def curve(ax: Any, x: Sequence[float], errors: Sequence[Any], colour: str, label: str, **style: Any) -> None:
    """Rms errors over seeds with the band of their own uncertainty."""
    y = [float(np.sqrt(np.mean(np.square(e)))) for e in errors]
    low, high = zip(*(resampled(e) for e in errors), strict=True)
    ax.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    ax.plot(x, y, color=colour, label=label, **{"marker": "o", **style})


def at_end(ax: Any, x: float, y: float, text: str, colour: str, dx: float = 6, dy: float = 0, **options: Any) -> None:
    """A name beside a line's end."""
    options = {"ha": "left", "va": "center", "fontsize": 10.5, **options}
    ax.annotate(text, (x, y), (dx, dy), textcoords="offset points", color=colour, annotation_clip=False, **options)
