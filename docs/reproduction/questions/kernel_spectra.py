"""Are Neural Tangent Kernels of low rank, and when is Hutch++ worth its jvps?

    python docs/reproduction/questions/kernel_spectra.py [--quick] [--redraw] [--out DIR]

MLP, CNN, GRU, LSTM and transformer on scikit-learn's digits, at initialisation and after 300 steps of Adam; the kernel
of 32 test images. Over width and depth: effective rank from 8 vjps, entropy rank from 96 products with K, and the
largest eigenvalue, with their intervals. At width 16 the Jacobian is written out in float64: the whole spectrum, and
the error of every estimator at equal cost, where a product with K costs what it was measured to. Errors of RHutch are
its exact standard deviation, those of Hutch++ and XNysTrace the root mean square over seeds, on the spectrum itself
(their probes, on the sphere, know no basis). Writes spectra.json and three figures, and fills
docs/reproduction/spectra.md.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from architectures import ARCHITECTURES, Trained, trained
from page import COLOURS, Table, axes, label_ends, markdown, options, seconds_in_turns, write

import traceest as te
from traceest.operators.blocks import unit_probes
from traceest_adapters.torch import jacobian, ntk

WHEN = ("at initialisation", "trained")
WIDTHS, WIDTH = (16, 32, 64), 32
DEPTHS, DEPTH = (1, 2, 4), 2
DENSE_WIDTH = 16
SEEDS = 40
BUDGETS = (6, 9, 15, 24, 39, 63, 102, 165, 267)
"""Products that Hutch++ and XNysTrace are given."""


def ranks(model: Trained, name: str, width: int, depth: int, seed: int) -> list[dict[str, Any]]:
    """Estimates of one model before and after training."""
    rows = []
    for when, body in zip(WHEN, (model.before, model.after), strict=True):
        K = ntk(body, model.images)
        effective, entropy = te.effective_rank(K, n_probes=8, rng=seed), te.entropy_rank(K, 96, rng=seed)
        top = te.eigenvalues(K, 1, n_matvecs=24, block_size=3, rng=seed)
        rows.append(
            {
                "model": name, "width": width, "depth": depth, "when": when, "seed": seed, "accuracy": model.accuracy,
                "n": K.shape[0], "P": K.factor.shape[1], "effective_rank": interval(effective),
                "entropy_rank": interval(entropy),
                "top_share": float(top.values[0]) / float(te.rhutch(K, 8, rng=seed)),
            }
        )  # fmt: skip
    return rows


def interval(e: te.Estimate) -> list[float]:
    """Value and the ends of the 95 % interval."""
    low, high = e.confidence_interval()
    return [float(e), float(low), float(high)]


def written_out(body: Any, images: Any) -> np.ndarray:
    """The Jacobian, (B, n_b, P), in float64."""
    J = jacobian(body.double(), images.double())
    n_b = J.shape[0] // J.n_blocks
    parts = [J.block_rmatmat(unit_probes(J, i, min(i + 16, n_b))).detach().numpy() for i in range(0, n_b, 16)]
    return np.concatenate(parts, axis=1)


def dense(model: Trained, name: str, seeds: int) -> list[dict[str, Any]]:
    """The spectrum, what a product costs, and the error at equal cost, before and after training."""
    rows = []
    for when, body in zip(WHEN, (model.before, model.after), strict=True):
        K = ntk(body, model.images)
        costs = measured_costs(K)
        blocks = written_out(body, model.images)
        J = blocks.reshape(-1, blocks.shape[2])
        lam = np.sort(np.linalg.eigvalsh(J @ J.T if J.shape[0] < J.shape[1] else J.T @ J))[::-1].clip(0)
        lam = np.concatenate([lam, np.zeros(max(0, len(J) - len(lam)))])
        p = lam[lam > 0] / lam.sum()
        diagonal = np.sum(np.sum(J**2, axis=1) ** 2)
        within = np.sum([np.sum((block @ block.T) ** 2) for block in blocks])
        kept = np.unique(np.geomspace(1, np.sum(lam > 1e-14 * lam[0]), 120).astype(int))
        rows.append(
            {
                "model": name, "when": when, "n": len(J), "P": J.shape[1], "exact_vjps": blocks.shape[1],
                "effective_rank": float(lam.sum() ** 2 / np.sum(lam**2)),
                "entropy_rank": float(np.exp(-np.sum(p * np.log(p)))),
                **{f"rank_{x}": int(np.searchsorted(np.cumsum(p), x / 100) + 1) for x in (50, 90, 99)},
                "eigenvalues": [[int(i), float(lam[i - 1] / lam.sum())] for i in kept],
                "costs": costs,
                # relative standard deviation of one probe
                "RHutch": float(np.sqrt(2 * (np.sum(lam**2) - diagonal)) / lam.sum()),
                "block RHutch": float(np.sqrt(2 * (within - diagonal)) / lam.sum()),
                "two-sided": two_sided(lam, seeds),
            }
        )  # fmt: skip
    return rows


def measured_costs(K: te.Gram) -> dict[str, float]:
    """A product with K, and one probe of block RHutch, in vjps of the whole batch."""
    J: Any = K.factor
    V = te.probes.rademacher(K.shape[0], 16, rng=0, like=K)
    calls = {
        "vjp": lambda: J.rmatmat(V), "product": lambda: J.gram_matmat(V), "block probe": lambda: J.block_sqnorms(V)
    }  # fmt: skip
    seconds = {name: np.array(s) for name, s in seconds_in_turns(calls, 11).items()}
    return {name: float(np.median(seconds[name] / seconds["vjp"])) for name in ("product", "block probe")}


def two_sided(lam: np.ndarray, seeds: int) -> list[dict[str, Any]]:
    """Relative root-mean-square errors of Hutch++ and XNysTrace."""
    A = te.aslinearoperator(lambda X: lam[:, None] * X, like=np.zeros((len(lam), 1)), psd=True)
    rows = []
    for m in (m for m in BUDGETS if m < len(lam) / 2):
        for method, call in (("Hutch++", te.hutchpp), ("XNysTrace", te.xnystrace)):
            errors = [float(call(A, m, rng=seed)) / lam.sum() - 1 for seed in range(seeds)]
            rows.append({"method": method, "n_matvecs": m, "rms": float(np.sqrt(np.mean(np.square(errors))))})
    return rows


def cost(row: dict[str, Any], method: str, m: int) -> float:
    """In vjps: of 2q + s products that Hutch++ makes, only the q of the sketch need a jvp too."""
    product = row["costs"]["product"]
    return m * product if method == "XNysTrace" else m - m // 3 + m // 3 * product


def exact_cost(row: dict[str, Any]) -> float:
    """Of the exact trace in vjps: a probe per example for each of its states."""
    return float(row["exact_vjps"] * row["costs"]["block probe"])


def curve(row: dict[str, Any], method: str) -> tuple[np.ndarray, np.ndarray]:
    """Costs and relative errors."""
    if method in ("RHutch", "block RHutch"):
        each = row["costs"]["block probe"] if method == "block RHutch" else 1.0
        m = np.geomspace(2, 400, 50)
        return m * each, row[method] / np.sqrt(m)
    mine = [r for r in row["two-sided"] if r["method"] == method]
    return np.array([cost(row, method, r["n_matvecs"]) for r in mine]), np.array([r["rms"] for r in mine])


def break_even(row: dict[str, Any], method: str, against: str) -> float | None:
    """The cost from which `method` has the smaller error, between the budgets measured; None: not among them."""
    x, y = curve(row, method)
    each = row["costs"]["block probe"] if against == "block RHutch" else 1.0
    ahead = np.log(np.maximum(y, 1e-16)) - np.log(row[against] / np.sqrt(x / each))
    for i in range(len(x)):
        if ahead[i:].max() < 0:
            if i == 0:
                return float(x[0])
            t = ahead[i - 1] / (ahead[i - 1] - ahead[i])
            return float(np.exp((1 - t) * np.log(x[i - 1]) + t * np.log(x[i])))
    return None


def measure(quick: bool) -> dict[str, Any]:
    """Everything, of two small models if quick."""
    torch.set_num_threads(1)
    names = ("MLP", "GRU") if quick else tuple(ARCHITECTURES)
    sizes = [(w, DEPTH) for w in WIDTHS] + [(WIDTH, d) for d in DEPTHS if d != DEPTH]
    sizes = [(8, 1), (16, 1)] if quick else sizes
    steps, rows, full = 20 if quick else 300, [], []
    for name in names:
        for width, depth in sizes:
            start = time.perf_counter()
            model = trained(name, width, depth, 0, steps)
            rows += ranks(model, name, width, depth, 0)
            if (width, depth) == ((8, 1) if quick else (DENSE_WIDTH, DEPTH)):
                full += dense(model, name, 5 if quick else SEEDS)
            print(f"{name}, width {width}, depth {depth}: {time.perf_counter() - start:.0f} s", flush=True)
    return {"steps": steps, "seeds": 5 if quick else SEEDS, "ranks": rows, "dense": full}


# -- figures --------------------------------------------------------------------------------------------
def draw(found: dict[str, Any]) -> dict[str, Any]:
    """Spectra, ranks over width and depth, and errors at equal cost."""
    return {
        "spectra": draw_spectra(found["dense"]),
        "ranks": draw_ranks(found["ranks"]),
        "hutchpp": draw_errors(found["dense"]),
    }


def draw_spectra(rows: list[dict[str, Any]]) -> Any:
    """Eigenvalue shares against rank, a panel a model."""
    names = list(dict.fromkeys(r["model"] for r in rows))
    figure, grid = axes(1, len(names), (2.7 * len(names), 3.3), sharey=True, sharex=True)
    for ax, name in zip(grid[0], names, strict=True):
        for r in (r for r in rows if r["model"] == name):
            i, share = np.array(r["eigenvalues"]).T
            style = {"color": COLOURS[name], "linestyle": "-" if r["when"] == "trained" else (0, (4, 2))}
            ax.plot(i / r["n"], share, label=r["when"], linewidth=1.8, **style)
            ax.axvline(r["rank_90"] / r["n"], ymax=0.06, linewidth=1.8, **style)
        ax.set(xscale="log", yscale="log", ylim=(1e-9, 1), xlim=(2e-4, 1), title=name)
    grid[0, 0].set_ylabel("eigenvalue / trace")
    grid[0, 0].legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 0.08))
    figure.supxlabel(
        "index of the eigenvalue / n    (bars at the bottom: to their left, 90 % of the trace)", fontsize=10
    )
    return figure


def draw_ranks(rows: list[dict[str, Any]]) -> Any:
    """Effective and entropy rank over width and over depth."""
    names, seen = list(dict.fromkeys(r["model"] for r in rows)), {r["depth"] for r in rows}
    depth, width = (DEPTH, WIDTH) if DEPTH in seen else (min(seen), min(r["width"] for r in rows))
    figure, grid = axes(2, 4, (13, 6.4), sharey="row")
    columns = [(x, when) for x in ("width", "depth") for when in WHEN]
    for row, (key, title) in enumerate((("effective_rank", "effective rank"), ("entropy_rank", "entropy rank"))):
        for ax, (x, when) in zip(grid[row], columns, strict=True):
            ends = {}
            for name in names:
                fixed = ("depth", depth) if x == "width" else ("width", width)
                some = [r for r in rows if (r["model"], r["when"], r[fixed[0]]) == (name, when, fixed[1])]
                some.sort(key=lambda r: r[x])
                at = np.array([r[x] for r in some])
                value, low, high = np.array([r[key] for r in some]).T
                spread = [value - low, high - value]
                ax.errorbar(at, value, spread, color=COLOURS[name], marker="o", markersize=4, linewidth=1.6, capsize=2)
                ends[name] = (at[-1], value[-1])
            ax.set(xscale="log", yscale="log", xlabel=x)
            ax.set_xticks(at, [str(i) for i in at])
            ax.set_xticks([], minor=True)
            if row == 0:
                ax.set_title(f"{when}, {fixed[0]} {fixed[1]}")
            ax.ends = ends
        grid[row, 0].set_ylabel(title)
    for ax in grid.flat:
        label_ends(ax, ax.ends)
    return figure


def draw_errors(rows: list[dict[str, Any]]) -> Any:
    """Error against cost, a column a model, a row a state."""
    names = list(dict.fromkeys(r["model"] for r in rows))
    figure, grid = axes(2, len(names), (2.7 * len(names), 6.0), sharey=True, sharex=True)
    for r in rows:
        ax = grid[WHEN.index(r["when"]), names.index(r["model"])]
        for method in ("RHutch", "block RHutch", "Hutch++", "XNysTrace"):
            ax.plot(*curve(r, method), color=COLOURS[method], linewidth=1.8, label=method)
        ax.axvline(exact_cost(r), color="#333333", linestyle=":", linewidth=1.2)
        ax.annotate("exact", (exact_cost(r), 2.2e-5), rotation=90, fontsize=8, ha="right", color="#333333")
        ax.set(xscale="log", yscale="log", xlim=(2, 500), ylim=(2e-5, 1))
        if ax in grid[0]:
            ax.set_title(r["model"])
    for row, when in enumerate(WHEN):
        grid[row, 0].set_ylabel(f"{when}\nrelative error of the trace")
    figure.supxlabel("cost in vjps of the whole batch", fontsize=10)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return figure


# -- the page -------------------------------------------------------------------------------------------
def text(found: dict[str, Any]) -> dict[str, str]:
    """The answer and the tables."""
    rows, full = found["ranks"], found["dense"]
    share = [r["effective_rank"][0] / r["n"] for r in rows]
    entropy = [r["entropy_rank"][0] / r["n"] for r in rows]
    pairs = [(r, break_even(r, "Hutch++", "block RHutch") or np.inf) for r in full]
    ahead = [(r, x) for r, x in pairs if x < exact_cost(r)]
    known = [x for x in (break_even(r, "Hutch++", "RHutch") for r in full) if x is not None]
    products = [r["costs"]["product"] for r in full]
    count = len({r["model"] for r in rows})
    low_rank = (
        f"Over {len(rows)} kernels the effective rank is {percent(min(share))} to {percent(max(share))} of n (median "
        f"{percent(np.median(share))}), the entropy rank {percent(min(entropy))} to {percent(max(entropy))} (median "
        f"{percent(np.median(entropy))}). {trend(rows)}"
    )
    worth = (
        f"A product with K costs {min(products):.1f} to {max(products):.1f} vjps here. At equal cost Hutch++ overtakes "
        f"RHutch of the whole state in {len(known)} of {len(full)} kernels"
        + (f", from {min(known):.0f} to {max(known):.0f} vjps on. " if known else ". ")
        + "RHutch per example it overtakes, at less than the exact trace costs by n/B of those, in "
        f"{len(ahead)} of {len(full)}"
        + (f" ({', '.join(dict.fromkeys(r['model'] for r, _ in ahead))}), {late(ahead)}. " if ahead else ". ")
        + "So: where the state is not made of independent examples, two-sided estimators for anything better than a "
        "few percent; where it is, vjps per example, and two-sided ones only where an example has many states and "
        "the error is to be smaller than that."
    )
    answer = f"""**Low rank: yes, for all {count} architectures.** {low_rank}

**Hutch++: worth its jvps against RHutch of the whole state; late, or never, against RHutch per example.** {worth}"""
    return {
        "answer": answer + f"\n\n{found['revision']}.",
        "spectra": markdown(*spectra_table(full)),
        "worth": markdown(*worth_table(full)),
        "ranks": markdown(*ranks_table(rows)),
        "check": check_text(rows, full),
    }


def late(ahead: list[tuple[dict[str, Any], float]]) -> str:
    """From which cost on, and what the error is by then."""
    costs = [x for _, x in ahead]
    errors = [r["block RHutch"] / np.sqrt(x / r["costs"]["block probe"]) for r, x in ahead]
    return (
        f"from {min(costs):.0f} to {max(costs):.0f} vjps on, where the error of the trace is {percent(min(errors))} to "
        f"{percent(max(errors))} already"
    )


def percent(x: float) -> str:
    return f"{100 * x:.2g} %"


def trend(rows: list[dict[str, Any]]) -> str:
    """Of the effective rank with width, and with training."""
    at = {(r["model"], r["width"], r["depth"], r["when"]): r["effective_rank"][0] for r in rows}
    depth = DEPTH if any(k[2] == DEPTH for k in at) else 1
    widths = sorted({k[1] for k in at if k[2] == depth})
    names = list(dict.fromkeys(k[0] for k in at))
    first, then = (
        [(np.polyfit(np.log(widths), np.log([at[name, w, depth, when] for w in widths]), 1)[0], name) for name in names]
        for when in WHEN
    )
    ends = [f"width^{power:.1f} ({name})" for power, name in (min(first), max(first), min(then), max(then))]
    fallen = [at[k[0], k[1], k[2], WHEN[1]] < at[k] for k in at if k[3] == WHEN[0]]
    lowered = [k[0] for k, low in zip((k for k in at if k[3] == WHEN[0]), fallen, strict=True) if low]
    which = ", ".join(f"{lowered.count(name)} {name}" for name in dict.fromkeys(lowered))
    return (
        f"At initialisation it grows from {ends[0]} to {ends[1]}, after training from {ends[2]} to {ends[3]}; n grows "
        f"as width^1. Training lowers it in {sum(fallen)} of {len(fallen)} models" + (f" ({which})." if which else ".")
    )


def spectra_table(full: list[dict[str, Any]]) -> Table:
    head = ["", "n", "P", "effective rank", "entropy rank", "50 % of the trace", "90 %", "99 %"]
    body = [
        [
            f"{r['model']} {r['when']}",
            f"{r['n']}",
            f"{r['P']}",
            f"{r['effective_rank']:.1f}",
            f"{r['entropy_rank']:.1f}",
        ]
        + [f"{r[f'rank_{x}']}" for x in (50, 90, 99)]
        for r in full
    ]
    return "Exact spectra: how many eigenvalues hold so much of the trace", [head, *body]


def worth_table(full: list[dict[str, Any]]) -> Table:
    ahead = [f"{m} ahead of RHutch{how}" for m in ("Hutch++", "XNysTrace") for how in ("", " per example")]
    head = ["", "product with K", "probe per example", "exact trace", *ahead]
    body = []
    for r in full:
        cells = [
            "–" if x is None else f"from {x:.0f}" + ("" if x < exact_cost(r) else " (exact is cheaper)")
            for x in (break_even(r, m, a) for m in ("Hutch++", "XNysTrace") for a in ("RHutch", "block RHutch"))
        ]
        costs = [f"{r['costs'][x]:.2f}" for x in ("product", "block probe")]
        body.append([f"{r['model']} {r['when']}", *costs, f"{exact_cost(r):.0f}", *cells])
    return "Costs, and where the two-sided estimators overtake, in vjps of the whole batch", [head, *body]


def ranks_table(rows: list[dict[str, Any]]) -> Table:
    head = ["", "n", "P", "accuracy", *(f"{k}, {w}" for k in ("effective rank", "entropy rank") for w in WHEN)]
    body, at = [], {(r["model"], r["width"], r["depth"], r["when"]): r for r in rows}
    for (name, width, depth, when), r in at.items():
        if when == WHEN[0]:
            pair = [r, at[name, width, depth, WHEN[1]]]
            cells = [
                f"{x[k][0]:.3g} ({x[k][1]:.3g} to {x[k][2]:.3g})"
                for k in ("effective_rank", "entropy_rank")
                for x in pair
            ]
            size = [f"{r['n']}", f"{r['P']}", f"{100 * r['accuracy']:.0f} %"]
            body.append([f"{name}, width {width}, depth {depth}", *size, *cells])
    return "Estimates with 95 % intervals", [head, *body]


def check_text(rows: list[dict[str, Any]], full: list[dict[str, Any]]) -> str:
    """How many of the intervals hold the exact value, where that is known."""
    held, total, off = 0, 0, []
    for r in full:
        mine = next(
            x for x in rows if (x["model"], x["when"], x["n"], x["P"]) == (r["model"], r["when"], r["n"], r["P"])
        )
        for key in ("effective_rank", "entropy_rank"):
            value, low, high = mine[key]
            held, total = held + (low <= r[key] * (1 + 1e-3) and high >= r[key] * (1 - 1e-3)), total + 1
            off.append(abs(value / r[key] - 1))
    return f"{held} of {total} intervals hold the exact value; the largest error is {percent(max(off))}."


if __name__ == "__main__":
    write("spectra", options(__doc__, "two small models"), measure, draw, text)
