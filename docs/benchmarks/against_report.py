"""Tables and figures of against.py, from its rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pictures import save, subplots
from race import OURS, TARGETS, Best, Row, duels, fastest, geometric_mean, ladders, same_method
from tables import Table

Parts = dict[str, dict[str, Any]]
COLOURS = {
    "traceest": "black", "traceax": "tab:blue", "matfree": "tab:cyan", "curvlinops": "tab:orange", "skerch": "tab:red",
    "primate": "tab:green", "imate": "tab:olive", "torch.func": "tab:purple", "nngeometry": "tab:brown",
    "neural-tangents": "tab:pink",
}  # fmt: skip


def tables(parts: Parts) -> list[Table]:
    """The summary, then equal accuracy part by part, then equal methods."""
    return [_summary(parts), *(_equal_accuracy(name, part) for name, part in parts.items()), _equal_methods(parts)]


def _ratios(part: dict[str, Any], arrays: str | None = None) -> list[float]:
    """Their seconds over ours, for each problem and target."""
    return [
        p.seconds / o.seconds for rows in part["problems"].values() for _, o, p in duels(rows, arrays, part["floor"])
    ]


def _summary(parts: Parts) -> Table:
    body = []
    every: list[float] = []
    for name, part in parts.items():
        ratios = _ratios(part)
        every += ratios
        alone = [_show_mean(_ratios(part, arrays)) for arrays in ("numpy", "torch", "jax")]
        body.append([name, *_counts(ratios), *alone])
    body.append(["all", *_counts(every), "", "", ""])
    head = ["", "duels", "faster by, mean", "at worst", "NumPy alone", "PyTorch alone", "JAX alone"]
    return "How many times faster than the fastest peer at equal accuracy (below 1: slower)", [head, *body]


def _counts(ratios: list[float]) -> list[str]:
    return [str(len(ratios)), _show_mean(ratios), f"{min(ratios):.2f}" if ratios else "–"]


def _show_mean(ratios: list[float]) -> str:
    return f"{geometric_mean(ratios):.2f}" if ratios else "–"


def _equal_accuracy(name: str, part: dict[str, Any]) -> Table:
    body = []
    for problem, rows in part["problems"].items():
        for target, ours, theirs in duels(rows, None, part["floor"]):
            ratio = theirs.seconds / ours.seconds
            mark = "" if ratio >= 1 / 1.05 else "*"
            body.append([problem, f"{target:g}", *_show(ours), *_show(theirs), f"{ratio:.2f}{mark}"])
        alone = _out_of_reach(rows, part["floor"])
        body += [[problem, f"{t:g}", *_show(fastest(rows, t, True)), "none", "–", "–"] for t in alone]
    head = ["", "rms error", "ours", "ms", "fastest peer", "ms", "theirs / ours"]
    return f"{name}: time to an accuracy (* a peer is more than 1.05 times faster)", [head, *body]


def _out_of_reach(rows: list[Row], floor: float) -> list[float]:
    """The hardest target that ours reach and no peer does, if any."""
    there = [
        t for t in TARGETS
        if t >= floor
        and math.isfinite(fastest(rows, t, True).seconds)
        and not math.isfinite(fastest(rows, t, False).seconds)
    ]  # fmt: skip
    return there[-1:] if any(r["library"] != OURS for r in rows) else []


def _show(best: Best) -> list[str]:
    return [
        f"{best.method} ({best.library + ', ' if best.library != OURS else ''}{best.arrays})",
        f"{1e3 * best.seconds:.3g}",
    ]


def _equal_methods(parts: Parts) -> Table:
    """One line for each peer's method: ours over theirs at the same budget and arrays, means over problems."""
    found: dict[tuple[str, str, str, str], list[Row]] = {}
    for name, part in parts.items():
        for rows in part["problems"].values():
            for r in same_method(rows):
                found.setdefault((name, r["library"], r["method"], r["arrays"]), []).append(r)
    body = []
    for (name, library, method, arrays), pairs in found.items():
        seconds = geometric_mean(r["seconds"] for r in pairs)
        errors = [r["error"] for r in pairs if 1e-6 < r["error"] < 1e6]
        body.append([name, library, method, arrays, f"{seconds:.2f}", _show_mean(errors)])
    return "The same method at the same budget, ours / theirs, geometric means", [
        ["", "library", "method", "arrays", "seconds", "errors"],
        *body,
    ]


def figures(parts: Parts, folder: Path) -> None:
    """For each part a row of panels against products and one against time, as PNG and SVG."""
    for name, part in parts.items():
        problems = part["problems"]
        n = len(problems)
        figure, axes = subplots(2, n, figsize=(3.2 * n + 1.6, 6.4), sharey="col", layout="constrained")
        for column, (problem, rows) in enumerate(problems.items()):
            for axis, x in zip(axes[:, column], ("products", "seconds"), strict=True):
                _panel(axis, rows, x)
                axis.set(xscale="log", yscale="log", xlabel="products" if x == "products" else "seconds of one core")
                _label_ticks(axis)
            axes[0, column].set_title(problem, fontsize=10)
        for row in axes:
            row[0].set_ylabel("rms relative error")
        handles = {h.get_label(): h for axis in axes.flat for h in axis.get_legend_handles_labels()[0]}
        figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=7, frameon=False)
        stem = "against_" + "".join(c if c.isalnum() else "_" for c in name).replace("__", "_").replace("__", "_")
        save(figure, folder, stem, dpi=90)


def _label_ticks(axis: Any) -> None:
    """1, 2 and 5 where an axis spans little more than a decade, else powers of ten, and none between."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for side, (low, high) in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
        side.set_minor_formatter(NullFormatter())
        if high < 30 * low:
            side.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 8 * low else (1, 3)))
            side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _panel(axis: Any, rows: list[Row], x: str) -> None:
    """Each library's best over its methods and arrays as a line, and all else that it does as faint points."""
    points: dict[str, list[tuple[float, float]]] = {}
    for (library, *_), ladder in ladders(rows).items():
        if x == "seconds" or any(r["products"] for r in ladder):
            points.setdefault(library, []).extend((r[x], max(r["error"], 1e-16)) for r in ladder)
    for library, found in points.items():
        colour, ours = COLOURS.get(library, "grey"), library == OURS
        axis.scatter(*zip(*found, strict=True), s=7, color=colour, alpha=0.25, linewidths=0, zorder=1)
        ends = zip(*_frontier(found), strict=True)
        axis.plot(*ends, "o-", color=colour, label=library, lw=2 if ours else 1.2, ms=4, zorder=3 if ours else 2)


def _frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that nothing cheaper is as accurate as."""
    best: list[tuple[float, float]] = []
    for x, error in sorted(points):
        if not best or error < best[-1][1]:
            best.append((x, error))
    return best
