"""Answer, tables and figures of the study of rich and lazy training."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tables import Table

STATISTICS = {
    "alignment": "alignment to the start",
    "rank": "effective rank, of the start's",
    "norm": "‖K‖, of the start's",
}


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
                    _range([min(x["rank"][0] for x in r["looks"]) for r in same], ".3g"),
                    _range([r["centred"][0] for r in same], ".3g"),
                    _range([x["distance"][0] for x in last], ".2g"),
                ]
            )
        head = ["α", "steps", "weights moved", "test accuracy", *STATISTICS.values()]
        head += ["effective rank, least on the way", "centred alignment", "‖K − K₀‖ / ‖K₀‖"]
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
    names = {
        "alignment_to_start": "alignment",
        "distance_to_start": "distance",
        "effective_rank_change_from_start": "effective rank's change",
        "frobenius_norm_change_from_start": "‖K‖'s change",
    }
    body = [
        [f"{result['titles'][r['task']]}, α = {r['alpha']:g}", *(f"{100 * r[key]:.1f} %" for key in names)]
        for r in result["coverage"]
    ]
    title = f"Coverage of the Tracker's 95 % intervals at the end of training, {result['coverage'][0]['seeds']} seeds"
    return [*out, (title, [["", *names.values()], *body])]


def answer(result: dict[str, Any]) -> str:
    """What the numbers say, in words that hold whatever they are."""
    parts = []
    for name, title in result["titles"].items():
        rows = [r for r in result["rows"] if r["task"] == name]
        low, high = (f(r["alpha"] for r in rows) for f in (min, max))
        rich, lazy = ([r for r in rows if r["alpha"] == a] for a in (low, high))

        def at_the_end(key: str, some: list[dict[str, Any]]) -> str:
            return _range([r["looks"][-1][key][0] for r in some], ".3g")

        said = [
            f"{what} {at_the_end(key, rich)} at α = {low:g} and {at_the_end(key, lazy)} at α = {high:g}, "
            "{} of {} neighbouring α told apart".format(*told_apart(rows, key, 1.0))
            for key, what in (
                ("alignment", "alignment"),
                ("norm", "‖K‖/‖K₀‖"),
                ("rank", "effective rank over its start's"),
            )
        ]
        means = {
            a: np.mean([r["exact"]["distance"] for r in rows if r["alpha"] == a]) for a in {r["alpha"] for r in rows}
        }
        *_, before, last = sorted(means)
        slope = np.log(means[last] / means[before]) / np.log(last / before)
        said.append(f"‖K − K₀‖ goes as α to the power {slope:.2f} from α = {before:g} to {last:g}")
        looks = [x["rank"][0] for r in rich for x in r["looks"]]
        said.append(
            f"on the way the rank at α = {low:g} is {min(looks):.2f} at the least, {max(looks):.2f} at the most"
        )
        parts.append(f"* {title}: {'; '.join(said)}.")
    count = [held(result["rows"], key) for key in STATISTICS]
    covered = [100 * x for r in result["coverage"] for key, x in r.items() if key.endswith("start")]
    hold, last, seeds = sum(k for k, _ in count), sum(n for _, n in count), result["coverage"][0]["seeds"]
    parts.append(
        f"* By {result['n_probes']} vjps, {hold} of {last} last intervals, of all runs and statistics, hold the "
        f"exact value; over {seeds} seeds of the probes they cover {min(covered):.1f} to {max(covered):.1f} %."
    )
    return "\n".join(parts)


def _range(x: list[float], form: str, unit: str = "") -> str:
    low, high = f"{min(x):{form}}", f"{max(x):{form}}"
    return (low if low == high else f"{low} – {high}") + unit


def draw(result: dict[str, Any], folder: Path) -> None:
    """Along training, and at its end against α."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "rich or lazy"  # so that the same data make the same file
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
    ends: dict[float, list[float]] = {}
    for r in runs:
        x, (y, low, high) = [k["loss"] for k in r["looks"]], np.array([k[key] for k in r["looks"]]).T
        hue = colour[r["alpha"]]
        ax.plot(x, y, color=hue, linewidth=1.2)
        ax.fill_between(x, low, high, color=hue, alpha=0.18, linewidth=0)
        ends.setdefault(r["alpha"], []).append(y[-1])
    ax.set_xscale("log")
    if key == "norm":
        ax.set_yscale("log")
    ax.invert_xaxis()
    low = ax.get_ylim()[0]
    if key == "alignment":
        ax.set_ylim(low, 1.0 + 0.03 * (1.0 - low))
    _plain_ticks(ax)
    _label_ends(ax, ends, colour)
    ax.spines[["top", "right"]].set_visible(False)


def _label_ends(ax: Any, ends: dict[float, list[float]], colour: dict[float, Any]) -> None:
    """Every α at the height where its lines end, moved apart where labels would meet."""
    to_axes = ax.transData + ax.transAxes.inverted()
    order = sorted(ends, key=lambda alpha: float(np.mean(ends[alpha])))
    heights = [float(np.mean([to_axes.transform((ax.get_xlim()[0], y))[1] for y in ends[a]])) for a in order]
    gap = 0.062
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    heights[-1] = min(heights[-1], 1.0)
    for i in range(len(heights) - 2, -1, -1):
        heights[i] = min(heights[i], heights[i + 1] - gap)
    for alpha, height in zip(order, heights, strict=True):
        text, hue = f"α = {alpha:g}" if alpha == max(order) else f"{alpha:g}", colour[alpha]
        ax.text(1.02, height, text, transform=ax.transAxes, color=hue, va="center", fontsize=8)


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
    if key in ("norm", "distance"):
        ax.set_yscale("log")
    ax.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path.with_suffix(".png"), dpi=150)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
