"""Figure 1 of arXiv 2511.10796: speed-up over the direct trace against accuracy, for the MLP and the GRU.

    python docs/reproduction/figure1.py [--seeds 20] [--share 1] [--quick] [--out DIR]

From the data of figures 2 and 3, which are measured first where they are not there. An accuracy of 99 % is a root-mean-
square relative error of 1 %; the run time that it takes is read off between two budgets of the ladder, linearly in the
logarithms. Writes data/figure1.json, figures/figure1.png and figures/figure1.svg.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cases import gru, mlp, options, read, write
from figure2 import QUICK_BUDGETS, QUICK_TOLERANCES
from ladder import BUDGETS, EXACT, METHODS, PER_EXAMPLE, TOLERANCES, TRACE, measure

ERRORS = (1e-2, 1e-3, 1e-4, 1e-5)
FINE = tuple(float(x) for x in 10 ** np.arange(-1, -5.01, -0.125))


def time_to(rows: list[dict[str, Any]], error: float) -> float | None:
    """Run time over the direct trace's from which on the rms error is at most `error`; None beyond the ladder."""
    e, t = (np.log([r[key] for r in rows]) for key in ("rms", "of_direct"))
    t = np.minimum.accumulate(t[::-1])[::-1]  # a larger budget that took less time serves as well
    worse = np.nonzero(e > np.log(error))[0]
    if len(worse) == 0:
        return float(np.exp(t[0]))
    i = int(worse[-1])
    if i + 1 == len(e):
        return None
    share = (e[i] - np.log(error)) / (e[i] - e[i + 1])
    return float(np.exp(t[i] + share * (t[i + 1] - t[i])))


def speed_ups(result: dict[str, Any], errors: tuple[float, ...]) -> dict[str, list[float | None]]:
    """By method and error: the direct trace's time over the method's."""
    found: dict[str, list[float | None]] = {}
    for method in METHODS:
        rows = [r for r in result["rows"] if r["method"] == method]
        taken = [time_to(rows, error) for error in errors]
        found[method] = [None if t is None else 1 / t for t in taken]
    found[EXACT] = [1 / result["exact"]["of_direct"]] * len(errors)
    return found


def draw(cases: list[dict[str, Any]], out: Path) -> None:
    """A panel a model."""
    from drawing import COLOURS, INK, error_axis, figure, per_cent, power, save
    from matplotlib.ticker import FuncFormatter

    fig, axes = figure(1, 2, 12, 5.2)
    for ax, case in zip(axes[0], cases, strict=True):
        fine = speed_ups(case, FINE)
        for method in METHODS:
            at = [(e, s) for e, s in zip(FINE, fine[method], strict=True) if s is not None]
            if not at:
                continue
            ax.plot(
                *zip(*at, strict=True),
                color=COLOURS[method],
                label=f"{method} (ours)" if method == PER_EXAMPLE else method,
            )
            marks = [p for p in at if any(abs(p[0] / e - 1) < 1e-6 for e in ERRORS)]
            ax.plot(*zip(*marks, strict=True) if marks else ([], []), "o", color=COLOURS[method], markersize=6)
        adaptive = [r for r in case["rows"] if r["method"] == TRACE and r["exact"] < len(r["estimates"])]
        ax.plot(
            [r["rms"] for r in adaptive],
            [1 / r["of_direct"] for r in adaptive],
            "D",
            color=INK,
            label="te.trace(rtol=…)",
        )
        ax.axhline(fine[EXACT][0], color=INK, linewidth=1.3, linestyle=(0, (5, 2)), label="exact, n/B vjps by example")
        error_axis(ax, "x")
        ax.set_xlim(0.13, 0.7e-5)
        ax.set_xticks(ERRORS)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: per_cent(1 - x)))
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda x, _: power(x)))
        ax.set(title=f"{case['case']}: n = {case['n']:,}, P = {case['P']:,}", xlabel="accuracy, 1 − rms relative error")
    axes[0, 0].set_ylabel("speed-up over the direct trace")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=6)
    fig.suptitle("How much sooner than the trace from n kernel-vector products", fontsize=13, color=INK)
    save(fig, out, "figure1")


def main(argv: Sequence[str] | None = None) -> None:
    """Read or measure, then write and draw."""
    o = options(__doc__, argv)
    budgets, tolerances = (QUICK_BUDGETS, QUICK_TOLERANCES) if o.quick else (BUDGETS, TOLERANCES)
    cases = []
    for name, make in (("figure2", mlp), ("figure3", gru)):
        if o.out is not None and (o.out / "data" / f"{name}.json").exists():
            cases.append(read(o.out, name))
        else:
            cases.append(write(o.out, name, measure(make(o.quick), budgets, tolerances, o.seeds, o.share)))
    speeds = {case["case"]: speed_ups(case, ERRORS) for case in cases}
    write(o.out, "figure1", {"errors": ERRORS, "speed_ups": speeds})
    if o.out is not None:
        draw(cases, o.out)


if __name__ == "__main__":
    main()
