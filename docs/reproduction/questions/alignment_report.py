"""Answer, tables and figure of the alignment study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tables import Table

COLOURS = {"MLP": "#1b6ca8", "CNN": "#c4571b", "GRU": "#3a8f4d"}
MARKS = {"MNIST": "o", "digits": "s", "noise": "^"}
ROUTES = {"blocks": "#1b6ca8", "two-sided": "#c4571b", "Hutch++ of products": "#777777"}
NOMINAL = 0.93, 0.99
Rows = list[dict[str, Any]]


def of_kind(rows: Rows, kind: str, **where: Any) -> Rows:
    return [r for r in rows if r["kind"] == kind and all(r[name] == x for name, x in where.items())]


def tables(result: dict[str, Any]) -> list[Table]:
    """One for each part, then coverage and rounding over all cells."""
    rows = result["rows"]
    parts = (_grid, _training, _examples, _probes, _dominance, _routes, _all_cells)
    return [t for part in parts for t in part(rows)]


def answer(result: dict[str, Any]) -> str:
    """What the numbers say, in words that hold whatever they are."""
    rows = result["rows"]
    grid, training, routes = (of_kind(rows, kind) for kind in ("grid", "training", "routes"))
    errors = [100 * r["alignment"]["rms"] / r["alignment"]["exact"] for r in grid]
    size, m = grid[0]["examples"], grid[0]["n_probes"]
    P, A = [r["P"] for r in grid], [r["alignment"]["exact"] for r in grid]
    lines = [
        f"* Over {len(grid)} networks and data sets, {min(P):,} to {max(P):,} parameters, alignments {min(A):.2f} to "
        f"{max(A):.5f}: {m} vjps a kernel on {size} images have a relative rms error of {min(errors):.2g} to "
        f"{max(errors):.2g} %, {np.median(errors):.2g} % in the median."
    ]
    shares = [100 * r["alignment"]["rms"] / (1 - r["alignment"]["exact"]) for r in training]
    aways = [1 - r["alignment"]["exact"] for r in training]
    lines.append(
        f"* Along training, 1 − A from {min(aways):.1e} to {max(aways):.2f}, the rms error is {min(shares):.0f} to "
        f"{max(shares):.0f} % of 1 − A: it shrinks with what there is to see, since both kernels have the same probes."
    )
    cells = [r for r in rows if r["kind"] not in ("routes", "dominance")]
    for name, what in (("alignment", "alignment"), ("relative_distance", "relative distance")):
        coverage = [100 * r[name]["coverage"] for r in cells]
        held = sum(100 * NOMINAL[0] <= c <= 100 * NOMINAL[1] for c in coverage)
        lines.append(
            f"* The 95 % interval of the {what} covers {min(coverage):.1f} to {max(coverage):.1f} %, in the mean of "
            f"{len(cells)} cells of {cells[0]['seeds']} seeds {np.mean(coverage):.1f} %; {held} are within 93 to 99 %."
        )
    off = [max(abs(r[f"float32_off_{how}"]["alignment"]) for r in cells) for how in ("exact", "estimated")]
    of_error = max(abs(r["float32_off_estimated"]["alignment"]) / r["stderr"] for r in cells)
    lines.append(
        f"* float32 is off float64 by {off[1]:.1e} at most ({off[0]:.1e} for kernels written out): {of_error:.1e} "
        "standard errors at most."
    )
    for model in dict.fromkeys(r["model"] for r in routes):
        said = []
        for route in ROUTES:
            mine = of_kind(routes, "routes", model=model, route=route)
            errors, passes = (" / ".join(x) for x in zip(*((_share(r), str(r["passes"])) for r in mine), strict=True))
            said.append(f"{route} {errors} % at {passes} passes a kernel")
        lines.append(f"* Hidden states of the {model}: {'; '.join(said)}.")
    return "\n".join(lines)


def _share(r: dict[str, Any]) -> str:
    return f"{100 * r['rms'] / r['exact']:.2g}"


def _grid(rows: Rows) -> list[Table]:
    some = of_kind(rows, "grid")
    if not some:
        return []
    data = list(dict.fromkeys(r["data"] for r in some))
    body = []
    for model, size in dict.fromkeys((r["model"], r["size"]) for r in some):
        cells = []
        for one in data:
            (r,) = of_kind(some, "grid", model=model, size=size, data=one)
            cells += [f"{r['alignment']['exact']:.3f}", _error(r), f"{100 * r['alignment']['coverage']:.1f} %"]
        body.append([f"{model} {size}", *cells])
    head = ["", *(f"{one}: {what}" for one in data for what in ("exact", "rms error", "covered"))]
    title = f"Alignment of trained with initial by {some[0]['n_probes']} vjps a kernel"
    return [(f"{title}: relative rms error and coverage, {some[0]['seeds']} seeds", [head, *body])]


def _training(rows: Rows) -> list[Table]:
    some = of_kind(rows, "training")
    out = []
    for model, size in dict.fromkeys((r["model"], r["size"]) for r in some):
        body = []
        for r in of_kind(some, "training", model=model):
            a, d = r["alignment"], r["relative_distance"]
            away = 1 - a["exact"]
            cells = [f"{a['exact']:.6f}", f"{100 * a['rms'] / away:.0f} %", f"{100 * a['coverage']:.1f} %"]
            cells += [f"{d['exact']:.3g}", f"{100 * d['rms'] / d['exact']:.1f} %", f"{100 * d['coverage']:.1f} %"]
            body.append([str(r["step"]), *cells])
        head = ["step", "alignment A", "rms error of A / (1 − A)", "covered"]
        head += ["‖K − K₀‖ / ‖K₀‖", "rms error, relative", "covered"]
        out.append((f"{model} {size} on MNIST along training, {some[0]['n_probes']} vjps", [head, *body]))
    return out


def _examples(rows: Rows) -> list[Table]:
    some = of_kind(rows, "examples")
    title = "By number of examples, MNIST, step {step}, {n_probes} vjps: exact, rms error, coverage"
    return [(title.format(**some[0]), _by(some, "examples"))] if some else []


def _probes(rows: Rows) -> list[Table]:
    some = of_kind(rows, "probes")
    title = "By number of vjps, MNIST, step {step}, {examples} images: exact, rms error, coverage"
    return [(title.format(**some[0]), _by(some, "n_probes"))] if some else []


def _by(some: Rows, name: str) -> list[list[str]]:
    counts, body = sorted({r[name] for r in some}), []
    for model in dict.fromkeys(r["model"] for r in some):
        mine = [next(r for r in some if (r["model"], r[name]) == (model, count)) for count in counts]
        cells = [f"{r['alignment']['exact']:.3f} {_error(r)} {100 * r['alignment']['coverage']:.1f} %" for r in mine]
        body.append([f"{model} {mine[0]['size']}", *cells])
    return [["", *(str(count) for count in counts)], *body]


def _dominance(rows: Rows) -> list[Table]:
    some = of_kind(rows, "dominance")
    if not some:
        return []
    body = []
    for r in some:
        cells = [f"{100 * r['largest_share']:.0f} %", str(r["n_probes"])]
        cells += [f"{100 * r[name]['coverage']:.1f} %" for name in ("alignment", "relative_distance", "frobenius_norm")]
        left = f", without {r['without']} examples" if r["without"] else ""
        body.append([f"step {r['step']}{left}", *cells])
    r = some[0]
    head = ["", "largest example's part of ‖K‖²", "vjps", "alignment covered", "distance covered", "‖K‖ covered"]
    return [(f"{r['model']} {r['size']} on MNIST, {r['seeds']} seeds: single examples that dominate", [head, *body])]


def _routes(rows: Rows) -> list[Table]:
    some = of_kind(rows, "routes")
    body = []
    for r in some:
        covered = "" if r["coverage"] is None else f"{100 * r['coverage']:.0f} %"
        body.append([f"{r['model']}, {r['route']}", str(r["passes"]), f"{100 * r['rms'] / r['exact']:.2g} %", covered])
    head = ["", "passes a kernel", "relative rms error", "covered"]
    return [(f"Three routes, {some[0]['seeds']} seeds", [head, *body])] if some else []


def _all_cells(rows: Rows) -> list[Table]:
    cells = [r for r in rows if r["kind"] not in ("routes", "dominance")]
    if not cells:
        return []
    body = []
    for name, title in (("alignment", "alignment"), ("relative_distance", "relative distance")):
        coverage = np.array([r[name]["coverage"] for r in cells])
        held = sum(NOMINAL[0] <= c <= NOMINAL[1] for c in coverage)
        off = [max(abs(r[f"float32_off_{how}"][name]) for r in cells) for how in ("exact", "estimated")]
        of_error = max(abs(r["float32_off_estimated"]["alignment"]) / r["stderr"] for r in cells)
        row = [title, f"{held} of {len(cells)}", f"{100 * coverage.min():.1f} – {100 * coverage.max():.1f} %"]
        row += [f"{100 * coverage.mean():.1f} %", *(f"{x:.1e}" for x in off)]
        body.append([*row, f"{of_error:.1e}" if name == "alignment" else ""])
    head = ["", "cells with 93–99 %", "coverage", "mean", "float32 off float64, exact", "the same, estimated"]
    return [("All cells", [[*head, "the same, in standard errors"], *body])]


def _error(r: dict[str, Any]) -> str:
    return f"{100 * r['alignment']['rms'] / r['alignment']['exact']:.2g} %"


def draw(result: dict[str, Any], path: Path) -> None:
    """Six panels: sizes, coverage, training, examples, precision, routes."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "alignment"  # so that the same data make the same file
    import matplotlib.pyplot as plt

    rows = result["rows"]
    figure, axes = plt.subplots(2, 3, figsize=(11, 6.6), layout="constrained")
    panels = (_draw_sizes, _draw_training, _draw_examples, _draw_coverage, _draw_precision, _draw_routes)
    kinds = ("grid", "training", "examples", "training", "training", "routes")
    for ax, panel, kind in zip(axes.flat, panels, kinds, strict=True):
        if of_kind(rows, kind):  # what `--only` left out, and no file has, stays empty
            panel(ax, rows)
        ax.title.set_fontsize(10)
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path.with_suffix(".png"), dpi=150)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)


def _draw_sizes(ax: Any, rows: Rows) -> None:
    some = of_kind(rows, "grid")
    for model, hue in COLOURS.items():
        for data, mark in MARKS.items():
            mine = of_kind(some, "grid", model=model, data=data)
            y = [100 * r["alignment"]["rms"] / r["alignment"]["exact"] for r in mine]
            ax.plot([r["P"] for r in mine], y, "-" + mark, color=hue, markersize=5, linewidth=0.8)
    for i, (model, hue) in enumerate(COLOURS.items()):
        ax.text(0.02, 0.03 + 0.07 * i, model, color=hue, transform=ax.transAxes, fontsize=8)
    marks = [ax.plot([], [], mark, color="#444444", markersize=5, label=data)[0] for data, mark in MARKS.items()]
    ax.legend(handles=marks, frameon=False, fontsize=8, loc="upper right", handletextpad=0.1)
    ax.set(xscale="log", yscale="log", xlabel="parameters P", ylabel="relative rms error, %")
    ax.set_title("Size and data set: {n_probes} vjps, {examples} images".format(**some[0]))


def _draw_training(ax: Any, rows: Rows) -> None:
    some = of_kind(rows, "training")
    for model, hue in COLOURS.items():
        mine = of_kind(some, "training", model=model)
        if not mine:
            continue
        away, rms = zip(*((1 - r["alignment"]["exact"], r["alignment"]["rms"]) for r in mine), strict=True)
        ax.plot(away, rms, "-o", color=hue, markersize=4, linewidth=1)
        style = {"textcoords": "offset points", "color": hue, "fontsize": 7}
        ax.annotate(f"{model}, step {mine[0]['step']}", (away[0], rms[0]), xytext=(5, -7), **style)
        if model == list(COLOURS)[-1]:
            ax.annotate(f"step {mine[-1]['step']}", (away[-1], rms[-1]), xytext=(4, 6), ha="right", **style)
    low, high = (f(1 - r["alignment"]["exact"] for r in some) for f in (min, max))
    ax.plot([low, high], [0.1 * low, 0.1 * high], ":", color="#999999", linewidth=1)
    ax.text(30 * low, 6 * low, "10 % of 1 − A", color="#777777", fontsize=7, ha="right")
    ax.set_ylim(0.02 * low, high)
    ax.set(xscale="log", yscale="log", xlabel="1 − A, exact", ylabel="rms error of A")
    ax.set_title(f"Along training, MNIST: {some[0]['n_probes']} vjps")


def _draw_examples(ax: Any, rows: Rows) -> None:
    import matplotlib.ticker as ticker

    some = of_kind(rows, "examples")
    for model, hue in COLOURS.items():
        mine = of_kind(some, "examples", model=model)
        if not mine:
            continue
        x, y = zip(*((r["examples"], 100 * r["alignment"]["rms"] / r["alignment"]["exact"]) for r in mine), strict=True)
        ax.plot(x, y, "-o", color=hue, markersize=4, linewidth=1)
        ax.annotate(model, (x[0], y[0]), (4, 4), textcoords="offset points", color=hue, fontsize=8)
    counts = sorted({r["examples"] for r in some})
    ax.set(xscale="log", yscale="log", xlabel="examples B", ylabel="relative rms error, %")
    ax.xaxis.set_major_locator(ticker.FixedLocator(counts))
    ax.xaxis.set_major_formatter(ticker.FormatStrFormatter("%d"))
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.set_title(f"Number of examples, MNIST: {some[0]['n_probes']} vjps")


def _draw_coverage(ax: Any, rows: Rows) -> None:
    cells = [r for r in rows if r["kind"] not in ("routes", "dominance")]
    seeds = cells[0]["seeds"]
    ax.axhspan(100 * NOMINAL[0], 100 * NOMINAL[1], color="#e8e8e8", linewidth=0)
    ax.axhline(95, color="#999999", linewidth=0.8)
    for r in cells:
        x, y = 1 - r["alignment"]["exact"], 100 * r["alignment"]["coverage"]
        ax.plot(x, y, MARKS[r["data"]], color=COLOURS[r["model"]], markersize=4, alpha=0.8)
    noise = 100 * np.sqrt(0.95 * 0.05 / seeds)
    ax.text(0.02, 0.03, f"one standard error of {seeds} seeds: {noise:.1f} %", transform=ax.transAxes, fontsize=7)
    ax.set(xscale="log", xlabel="1 − A, exact")
    ax.set(ylabel="coverage of the 95 % interval, %", ylim=(85, 101))
    ax.set_title(f"Coverage, all {len(cells)} cells")


def _draw_precision(ax: Any, rows: Rows) -> None:
    cells = [r for r in rows if r["kind"] in ("grid", "training", "examples")]
    x = np.array([r["stderr"] for r in cells])
    for how, hue in (("estimated", "#8a3b8f"), ("exact", "#bbbbbb")):
        y = np.array([max(abs(r[f"float32_off_{how}"]["alignment"]), 1e-11) for r in cells])
        ax.plot(x, y, "o", color=hue, markersize=3.5)
        label = {"estimated": "4 vjps", "exact": "written out"}[how]
        ax.text(
            0.98, 0.06 if how == "exact" else 0.13, label, color=hue, transform=ax.transAxes, fontsize=8, ha="right"
        )
    ends = np.array([x.min(), x.max()])
    ax.plot(ends, ends, ":", color="#999999", linewidth=1)
    ax.text(ends[0], 2 * ends[0], "= standard error", color="#777777", fontsize=7)
    ax.axhline(2.0**-24, color="#999999", linewidth=0.6)
    ax.text(ends[0], 2e-9, "line: half a unit of float32", color="#777777", fontsize=7)
    ax.set(xscale="log", yscale="log", xlabel="standard error of 4 vjps", ylabel="|float32 − float64|")
    ax.set_title("Precision: the same signs")


def _draw_routes(ax: Any, rows: Rows) -> None:
    some = of_kind(rows, "routes")
    for model, line in zip(dict.fromkeys(r["model"] for r in some), ("-", "--"), strict=False):
        for route, hue in ROUTES.items():
            mine = of_kind(some, "routes", model=model, route=route)
            x, y = [r["passes"] for r in mine], [100 * r["rms"] / r["exact"] for r in mine]
            ax.plot(x, y, line + "o", color=hue, markersize=4, linewidth=1)
            if line == "-":
                at = {"xytext": (-4, -4), "ha": "right"} if route != "blocks" else {"xytext": (-2, -12)}
                ax.annotate(route, (x[0], y[0]), textcoords="offset points", color=hue, fontsize=8, **at)
    ax.plot([], [], "-", color="#444444", linewidth=1, label="MLP, n = 3,072")
    ax.plot([], [], "--", color="#444444", linewidth=1, label="GRU, n = 9,216")
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    ax.set(xscale="log", yscale="log", xlabel="passes (vjps and jvps) a kernel", ylabel="relative rms error, %")
    ax.set_title("Routes: hidden states")
