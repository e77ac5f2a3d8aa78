"""Checkpoints as a table, as a file, and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np

from traceest import _files

PANELS = {
    "trace": ("trace",),
    "Frobenius norm": ("frobenius_norm",),
    "effective rank": ("effective_rank",),
    "alignment": ("alignment_to_start", "alignment_to_previous"),
}


def columns(checkpoints: Sequence[Any]) -> dict[str, list[float]]:
    """Step, and value, stderr, and both ends of the 95 % interval of every statistic."""
    table: dict[str, list[float]] = {"step": [c.step for c in checkpoints]}
    for name in checkpoints[0].estimates if checkpoints else ():
        found = [c.estimates[name] for c in checkpoints]
        intervals = [e.confidence_interval() for e in found]
        table[name] = [float(e) for e in found]
        table[f"{name}_stderr"] = [float(e.stderr) for e in found]
        table[f"{name}_low"] = [low for low, _ in intervals]
        table[f"{name}_high"] = [high for _, high in intervals]
    return table


def to_csv(checkpoints: Sequence[Any], path: str | PathLike[str]) -> None:
    """A header, then a row a checkpoint."""
    table = columns(checkpoints)
    where = _files.as_path(path, "to_csv")
    with _files.replacing(where, "to_csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))


def plot(checkpoints: Sequence[Any], axes: Any) -> Any:
    """A panel a statistic, lines with their 95 % intervals shaded."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install 'traceest[plot]'.") from error
    if axes is None:
        axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, layout="constrained")[1]
    axes = list(axes.flat) if isinstance(axes, np.ndarray) else list(axes)
    if len(axes) != len(PANELS):
        raise ValueError(f"plot: needs {len(PANELS)} axes, one for each of {', '.join(PANELS)}; got {len(axes)}.")
    table = columns(checkpoints)
    for ax, (title, names) in zip(axes, PANELS.items(), strict=True):
        for name in names:
            label = name.replace("alignment_", "").replace("_", " ") if len(names) > 1 else None
            (line,) = ax.plot(table["step"], table[name], marker=".", label=label)
            ax.fill_between(
                table["step"], table[f"{name}_low"], table[f"{name}_high"], color=line.get_color(), alpha=0.2
            )
        ax.set_title(title)
        if len(names) > 1:
            ax.legend()
    for ax in axes[-2:]:
        ax.set_xlabel("step")
    return axes[0].figure
