"""Figures 2 and 3: a trace against the budget, its error against budget and run time, and few samples closely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from drawing import COLOURS, GREY, INK, curve, error_axis, figure, resampled, save, time_axis
from ladder import METHODS, PER_EXAMPLE, TRACE


def draw(result: dict[str, Any], out: Path, name: str) -> None:
    """All four panels."""
    fig, axes = figure(2, 2, 12, 8.6)
    rows = {method: [r for r in result["rows"] if r["method"] == method] for method in (*METHODS, TRACE)}
    truth = result["trace"]
    errors = {method: [np.divide(r["estimates"], truth) - 1 for r in of] for method, of in rows.items()}
    _values(axes[0, 0], rows, truth)
    _convergence(axes[0, 1], rows, errors)
    _times(axes[1, 0], rows, errors, result["exact"])
    _few(axes[1, 1], rows, errors)
    handles, labels = axes[1, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=11.5)
    n, P, B = (f"{result[key]:,}" for key in ("n", "P", "B"))
    fig.suptitle(
        f"Trace of the {result['case']}'s Neural Tangent Kernel: n = {n} states of {B} examples, P = {P} parameters; "
        f"{result['seeds']} seeds",
        fontsize=13,
        color=INK,
    )
    save(fig, out, name)


def _values(ax: Any, rows: dict[str, Any], truth: float) -> None:
    for method in METHODS:
        of = rows[method]
        m = [r["m"] for r in of]
        low, mid, high = np.quantile([np.divide(r["estimates"], truth) for r in of], [0.1, 0.5, 0.9], axis=1)
        ax.fill_between(m, low, high, color=COLOURS[method], alpha=0.18, linewidth=0)
        ax.plot(m, mid, color=COLOURS[method], marker="o")
    ax.axhline(1, color=INK, linewidth=0.9, linestyle=(0, (5, 3)))
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:.0f}")
    ax.set(title="Estimates: median and middle 80 %", xlabel="m, products", ylabel="estimate / exact trace")


def _convergence(ax: Any, rows: dict[str, Any], errors: dict[str, Any]) -> None:
    for method in METHODS:
        curve(ax, [r["m"] for r in rows[method]], errors[method], COLOURS[method], method)
    m = np.array([r["m"] for r in rows["RHutch"]], float)
    start = rows["RHutch"][0]["rms"]
    for slope, text in ((0.5, r"$\propto m^{-1/2}$"), (1.0, r"$\propto m^{-1}$")):
        y = 1.8 * start * m**-slope
        ax.plot(m, y, color=GREY, linewidth=1.0, linestyle=(0, (2, 2)))
        ax.annotate(text, (m[-1], y[-1]), (3, 3), textcoords="offset points", color=GREY, fontsize=11)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:.0f}")
    error_axis(ax)
    ax.set(title="Convergence", xlabel="m, products", ylabel="rms relative error")


def _times(ax: Any, rows: dict[str, Any], errors: dict[str, Any], exact: dict[str, float]) -> None:
    for method in METHODS:
        curve(ax, [r["of_direct"] for r in rows[method]], errors[method], COLOURS[method], _label(method))
    sampled = [(r, e) for r, e in zip(rows[TRACE], errors[TRACE], strict=True) if r["exact"] < len(r["estimates"])]
    for r, e in sampled:
        low, high = resampled(e)
        ax.vlines(r["of_direct"], low, high, color=INK, linewidth=1.2, zorder=4)
    at = [(r["of_direct"], r["rms"]) for r, _ in sampled]
    ax.plot(
        *zip(*at, strict=True) if at else ([], []), "D", color=INK, markersize=7, zorder=4, label="te.trace(rtol=…)"
    )
    for (x, y), text in _apart([(p, f"{100 * r['rtol']:g}") for p, (r, _) in zip(at, sampled, strict=True)]):
        style = {"textcoords": "offset points", "ha": "left", "va": "top", "fontsize": 10, "color": INK}
        ax.annotate(f"rtol {text} %", (x, y), (-6, -9), **style)
    ax.axvline(exact["of_direct"], color=INK, linewidth=1.3, linestyle=(0, (5, 2)), label="exact, n/B vjps by example")
    ax.axvline(1, color=GREY, linewidth=1.3)
    time_axis(ax)
    error_axis(ax)
    top = ax.get_ylim()[1]
    ax.annotate("exact", (exact["of_direct"], top), (4, -2), textcoords="offset points", va="top", color=INK)
    ax.annotate("direct", (1, top), (-4, -2), textcoords="offset points", va="top", ha="right", color=GREY)
    ax.set(title="Error against run time", xlabel="run time / that of the direct trace", ylabel="rms relative error")


def _apart(labels: list[tuple[tuple[float, float], str]]) -> list[tuple[tuple[float, float], str]]:
    """Labels of points that lie together made one."""
    found: list[tuple[tuple[float, float], str]] = []
    for (x, y), text in labels:
        if found and abs(np.log10(x / found[-1][0][0])) < 0.35 and abs(np.log10(y / found[-1][0][1])) < 0.5:
            at, before = found[-1]
            found[-1] = at, f"{before}, {text}"
        else:
            found.append(((x, y), text))
    return found


def _few(ax: Any, rows: dict[str, Any], errors: dict[str, Any], most: int = 32) -> None:
    for method in METHODS:
        few = [(r["m"], e) for r, e in zip(rows[method], errors[method], strict=True) if r["m"] <= most]
        curve(ax, [m for m, _ in few], [e for _, e in few], COLOURS[method], method)
    error_axis(ax)
    ax.set_xlim(0, most + 1)
    ax.set(title="Few samples", xlabel="m, products", ylabel="rms relative error")


def _label(method: str) -> str:
    return f"{method} (ours)" if method == PER_EXAMPLE else method
