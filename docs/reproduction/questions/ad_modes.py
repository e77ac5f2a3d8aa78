"""Reverse or forward mode: what do a vjp and a jvp cost over P/n, and does `te.trace` take the better one?

    python docs/reproduction/questions/ad_modes.py [--quick] [--redraw] [--out DIR]

An MLP (two layers, ReLU, 8 inputs) and a GRU (8 steps, 8 inputs; every hidden unit at every step) on random normal
inputs, in PyTorch and in JAX from one set of weights, with width and number of examples chosen so that P/n goes from
1/100 to 100. Seconds are CPU seconds of one thread, of all calls in turns. Per probe: a vjp, a jvp, a product with K, a
probe per example. Then the work to a trace within 1 % (half-width of the 95 % interval) by RHutch, FHutch, RHutch per
example and the exact trace, predicted from the seconds and from the spread of 32 probes, beside what `te.trace` spends,
and likewise the effective rank within 5 %. Writes ad_modes.json and two figures, and fills
docs/reproduction/ad_modes.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from page import COLOURS, Table, axes, markdown, options, seconds_in_turns, write

import traceest as te
from traceest_adapters import jax as in_jax
from traceest_adapters import torch as in_torch

RATIOS = tuple(float(x) for x in np.geomspace(0.01, 100, 7))
MODELS, FRAMEWORKS = ("MLP", "GRU"), ("PyTorch", "JAX")
INPUTS, STEPS = 8, 8
COLUMNS, SPREAD, SEEDS = 8, 32, 8
RTOL, RANK_RTOL = 0.01, 0.05
Z = 1.96


def sizes(model: str, ratio: float) -> tuple[int, int]:
    """Width and number of examples for about this P/n; both change, from narrow and many to wide and few."""
    t = np.log(ratio / RATIOS[0]) / np.log(RATIOS[-1] / RATIOS[0])
    width = round(8 * 64**t if model == "MLP" else 8 * 32**t)
    per_example = width if model == "MLP" else STEPS * width
    P = width * (INPUTS + width + 2) * (1 if model == "MLP" else 3)
    return width, max(1, round(P / (ratio * per_example)))


def modules(model: str, width: int, examples: int) -> tuple[Any, Any]:
    """The PyTorch module and its inputs (seed 0)."""
    from torch import nn

    torch.manual_seed(0)
    if model == "GRU":
        return nn.GRU(INPUTS, width, batch_first=True), torch.randn(examples, STEPS, INPUTS)
    layers = [nn.Linear(a, width) for a in (INPUTS, width)]
    return nn.Sequential(*(f for layer in layers for f in (layer, nn.ReLU()))), torch.randn(examples, INPUTS)


def kernel(framework: str, model: str, width: int, examples: int, batch_axis: int | None) -> te.Gram:
    """The NTK, of independent examples (batch_axis=0) or of the whole state as one."""
    module, x = modules(model, width, examples)
    if framework == "PyTorch":
        selected = {"output": 0} if model == "GRU" else {}
        return in_torch.ntk(module, x, batch_axis=batch_axis, **selected)
    params = {name: jnp.asarray(p.detach().numpy()) for name, p in module.named_parameters()}
    return in_jax.ntk(jax_mlp if model == "MLP" else jax_gru, params, jnp.asarray(x.numpy()), batch_axis=batch_axis)


def jax_mlp(p: dict[str, Any], x: Any) -> Any:
    """The layers of the module."""
    for i in (0, 2):
        x = jax.nn.relu(x @ p[f"{i}.weight"].T + p[f"{i}.bias"])
    return x


def jax_gru(p: dict[str, Any], x: Any) -> Any:
    """That of the paper's GRU."""
    from gru import jax_gru as states

    return states(p, x)


def per_probe(K: te.Gram, by_example: te.Gram, rounds: int) -> dict[str, list[float]]:
    """Median, least and greatest CPU seconds of one product of each kind."""
    J, Jb = K.factor, by_example.factor
    n, P = J.shape
    V, W = (te.probes.rademacher(size, COLUMNS, rng=0, like=K) for size in (n, P))
    calls = {
        "vjp": lambda: J.rmatmat(V), "jvp": lambda: J.matmat(W), "product": lambda: K.matmat(V),
        "norm": lambda: J.block_sqnorms(V), "block": lambda: Jb.block_sqnorms(V),
    }  # fmt: skip
    done = {name: (lambda call=call: jax.block_until_ready(call())) for name, call in calls.items()}
    seconds = {name: np.array(s) / COLUMNS for name, s in seconds_in_turns(done, rounds).items()}
    return {name: [float(np.median(s)), float(s.min()), float(s.max())] for name, s in seconds.items()}


def sides(K: te.Gram, seeds: int) -> list[dict[str, Any]]:
    """Products for the effective rank, seed by seed, with JJᵀ alone and by the front door, which may take JᵀJ."""
    rows = []
    for rtol in (RANK_RTOL, RTOL):
        for way, A in (("JJᵀ", without_factor(K)), ("front door", K)):
            found = [te.effective_rank(A, rtol=rtol, rng=seed) for seed in range(seeds)]
            rows.append({"rtol": rtol, "way": way, "products": [max(e.n_matvecs, e.n_rmatvecs) for e in found]})
    return rows


def without_factor(K: te.Gram) -> Any:
    """K as any positive semidefinite operator, which is n×n and nothing else."""
    return te.aslinearoperator(K.matmat, like=te.probes.rademacher(K.shape[0], 1, rng=0, like=K), psd=True)


def spent(e: te.Estimate) -> dict[str, Any]:
    """What an adaptive call answered, and the products it took."""
    return {
        "value": float(e), "stderr": float(e.stderr), "method": e.method, "matvecs": e.n_matvecs,
        "rmatvecs": e.n_rmatvecs, "converged": bool(e.converged if e.converged is not None else e.exact),
    }  # fmt: skip


def one(framework: str, model: str, ratio: float, rounds: int) -> dict[str, Any]:
    """A model at one P/n."""
    width, examples = sizes(model, ratio)
    K, Kb = (kernel(framework, model, width, examples, axis) for axis in (None, 0))
    n, P = K.factor.shape
    row: dict[str, Any] = {"framework": framework, "model": model, "ratio": P / n, "n": n, "P": P, "width": width}
    row |= {"examples": examples, "seconds": per_probe(K, Kb, rounds)}
    if framework == "PyTorch":
        row |= decisions(K, Kb)
        row["sides"] = sides(K, 2 if rounds < 3 else SEEDS) if n > P else []
    return row


def decisions(K: te.Gram, Kb: te.Gram) -> dict[str, Any]:
    """What the front door spends, and the spread of a probe: the same in both frameworks, whose probes are the same."""
    n, examples, row = K.shape[0], Kb.factor.n_blocks, {"spread": {}}
    for name, e in (
        ("RHutch", te.rhutch(K, SPREAD, rng=0)), ("FHutch", te.fhutch(K, SPREAD, rng=1)),
        ("block RHutch", te.rhutch(Kb, min(SPREAD, n // examples - 1), rng=2)),
    ):  # fmt: skip
        row["spread"][name] = float(e.stderr) / float(e) * max(e.n_matvecs, e.n_rmatvecs) ** 0.5
    row["trace"] = {
        "one state": spent(te.trace(K, rtol=RTOL, rng=0)),
        "examples": spent(te.trace(Kb, rtol=RTOL, rng=0)),
    }
    row["rank"] = {
        "one state": spent(te.effective_rank(K, rtol=RANK_RTOL, rng=0)),
        "examples": spent(te.effective_rank(Kb, rtol=RANK_RTOL, rng=0)),
    }
    return row


def measure(quick: bool) -> dict[str, Any]:
    """Every model, framework and P/n; the GRU at one P/n if quick."""
    torch.set_num_threads(1)
    rows = []
    for model in MODELS[1:] if quick else MODELS:
        for ratio in RATIOS[2:3] if quick else RATIOS:
            for framework in FRAMEWORKS:
                start = time.perf_counter()
                rows.append(one(framework, model, ratio, 2 if quick else 7))
                print(f"{framework}, {model}, P/n = {ratio:.3g}: {time.perf_counter() - start:.0f} s", flush=True)
    return {"rtol": RTOL, "rank_rtol": RANK_RTOL, "rows": rows}


# -- what follows from it -------------------------------------------------------------------------------
def panels(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Rows of each model and framework by P/n, the front door's decisions with those of the other framework."""
    decided = {(r["model"], r["ratio"]): r for r in rows if "trace" in r}
    shared = ("spread", "trace", "rank")
    out: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for r in sorted(rows, key=lambda r: r["ratio"]):
        of = decided[r["model"], r["ratio"]]
        out.setdefault((r["model"], r["framework"]), []).append(r | {key: of[key] for key in shared})
    return out


def each(r: dict[str, Any], kind: str) -> float:
    """Seconds of one product."""
    return float(r["seconds"][kind][0])


def ratio(r: dict[str, Any], kind: str) -> float:
    """In vjps."""
    return each(r, kind) / each(r, "vjp")


def seconds(r: dict[str, Any], e: dict[str, Any], examples: bool) -> float:
    """What an answer cost."""
    both = min(e["matvecs"], e["rmatvecs"])
    reverse = each(r, "block" if examples else "norm")
    return both * each(r, "product") + (e["rmatvecs"] - both) * reverse + (e["matvecs"] - both) * each(r, "jvp")


def work(r: dict[str, Any]) -> dict[str, float]:
    """Seconds to a trace within the tolerance, by every way."""
    probes = {name: max(10.0, (Z * spread / RTOL) ** 2) for name, spread in r["spread"].items()}
    n_b = r["n"] // r["examples"]
    return {
        "RHutch": probes["RHutch"] * each(r, "norm"),
        "FHutch": probes["FHutch"] * each(r, "jvp"),
        "exact, one state": min(r["n"] * each(r, "norm"), r["P"] * each(r, "jvp")),
        "block RHutch": min(probes["block RHutch"], n_b) * each(r, "block"),
        "te.trace, one state": seconds(r, r["trace"]["one state"], False),
        "te.trace, examples": seconds(r, r["trace"]["examples"], True),
    }


def crossings(rows: list[dict[str, Any]]) -> list[tuple[float, str]]:
    """P/n from which on a jvp is the cheaper or the dearer of the two; within 8 % of each other they are alike."""
    x, y = np.log([r["ratio"] for r in rows]), np.log([ratio(r, "jvp") for r in rows])
    x, y = x[np.abs(y) > 0.08], y[np.abs(y) > 0.08]
    return [
        (float(np.exp(x[i] + (x[i + 1] - x[i]) * y[i] / (y[i] - y[i + 1]))), "dearer" if y[i] < 0 else "cheaper")
        for i in range(len(x) - 1)
        if (y[i] < 0) != (y[i + 1] < 0)
    ]


def draw(found: dict[str, Any]) -> dict[str, Any]:
    """Cost of a product over P/n, and work to a trace."""
    return {"ad_costs": draw_costs(panels(found["rows"])), "front_door": draw_work(panels(found["rows"]))}


def draw_costs(of: dict[tuple[str, str], list[dict[str, Any]]]) -> Any:
    figure, grid = axes(1, len(of), (3.3 * len(of), 3.4), sharey=True, sharex=True)
    for ax, ((model, framework), rows) in zip(grid[0], of.items(), strict=True):
        x, vjp = np.array([r["ratio"] for r in rows]), np.array([r["seconds"]["vjp"][0] for r in rows])
        ax.axhline(1, color="#333333", linewidth=1)
        kinds = {"jvp": "jvp", "product": "product with K", "norm": "norm of a vjp", "block": "probe per example"}
        for kind, name in kinds.items():
            middle, low, high = np.array([r["seconds"][kind] for r in rows]).T / vjp
            ax.plot(x, middle, color=COLOURS[name], marker="o", markersize=4, linewidth=1.8, label=name)
            ax.fill_between(x, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
        ax.set(xscale="log", yscale="log", title=f"{model}, {framework}", ylim=(0.2, 8))
        ax.set_yticks([0.25, 0.5, 1, 2, 4, 8], ["¼", "½", "1", "2", "4", "8"])
        ax.set_yticks([], minor=True)
    grid[0, 0].set_ylabel("cost in vjps")
    figure.supxlabel("parameters per state, P/n", fontsize=10)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return figure


def draw_work(of: dict[tuple[str, str], list[dict[str, Any]]]) -> Any:
    figure, grid = axes(1, len(of), (3.3 * len(of), 3.6), sharey=True, sharex=True)
    for ax, ((model, framework), rows) in zip(grid[0], of.items(), strict=True):
        x, found = [r["ratio"] for r in rows], [work(r) for r in rows]
        for name in found[0]:
            front = name.startswith("te.")
            style = {"color": COLOURS[name], "linewidth": 1.8} if not front else {"linewidth": 0, "markersize": 6}
            filled = {"marker": "o", "markerfacecolor": "black" if "one" in name else "white", "color": "black"}
            ax.plot(x, [w[name] for w in found], label=name, **style, **(filled if front else {}))
        ax.set(xscale="log", yscale="log", title=f"{model}, {framework}")
    grid[0, 0].set_ylabel("CPU seconds to a trace within 1 %")
    figure.supxlabel("parameters per state, P/n", fontsize=10)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6, frameon=False)
    return figure


def text(found: dict[str, Any]) -> dict[str, str]:
    """The answer and the tables."""
    of = panels(found["rows"])
    lines = []
    for (model, framework), rows in of.items():
        at, costs = crossings(rows), [ratio(r, "jvp") for r in rows]
        span = f"{costs[0]:.2f} vjps at P/n = {rows[0]['ratio']:.2g}, {costs[-1]:.2f} at {rows[-1]['ratio']:.3g}"
        always = f"{'dearer' if costs[0] > 1 else 'cheaper'} than a vjp throughout"
        where = ", ".join(f"{how} from P/n = {x:.2g} on" for x, how in at) if at else always
        lines.append(f"* {model} in {framework}: a jvp is {where} ({span}).")
    regret: dict[str, list[float]] = {"examples": [], "one state": []}
    gain = []
    for r in (r for rows in of.values() for r in rows):
        w = work(r)
        alone = [x for name, x in w.items() if name not in ("block RHutch", "te.trace, examples")]
        regret["one state"].append(w["te.trace, one state"] / min(alone))
        if r["examples"] > 1:
            regret["examples"].append(w["te.trace, examples"] / min(w.values()))
            gain.append(w["te.trace, one state"] / w["te.trace, examples"])
    worst = {what: max(x) for what, x in regret.items()}
    middle = {what: float(np.median(x)) for what, x in regret.items()}
    crossed = sum(bool(crossings(rows)) for rows in of.values())
    door = (
        f"With independent examples `te.trace` spends {middle['examples']:.1f} times what the best of all ways needs "
        f"in the median of {len(regret['examples'])} cases, {worst['examples']:.1f} times at worst: it takes vjps per "
        "example at every P/n, whose error is so much smaller that the price of a jvp hardly matters (the whole state "
        f"as one costs {min(gain):.1f} to {max(gain):.0f} times as much). Of a state that is *not* made of independent "
        f"examples it takes products with K, which cost both modes: {middle['one state']:.1f} times the best way in "
        f"the median, {worst['one state']:.1f} times at worst. Where it loses, the spectrum is flat, and "
        '`method="rhutch"` '
        'or `method="fhutch"`, whichever product is the cheaper, is the better choice; where the spectrum falls, the '
        "products with K are."
    )
    answer = f"""**Where is the break-even? P/n alone does not set it: there is one in {crossed} of {len(of)} cases.**

{chr(10).join(lines)}

**Does the front door choose it?** {door}

{found["revision"]}."""
    return {"answer": answer, "costs": markdown(*costs_table(of)), "work": markdown(*work_table(of)),
            "sides": markdown(*sides_table(found["rows"]))}  # fmt: skip


def sides_table(rows: list[dict[str, Any]]) -> Table:
    head = [
        "",
        "n",
        "P",
        *(f"{way}, within {100 * x:.0f} %" for x in (RANK_RTOL, RTOL) for way in ("JJᵀ", "front door")),
    ]
    body = [
        [f"{r['model']}, P/n = {r['ratio']:.2g}", f"{r['n']}", f"{r['P']}"]
        + [f"{np.median(x['products']):.0f} ({min(x['products'])} to {max(x['products'])})" for x in r["sides"]]
        for r in rows if r.get("sides")
    ]  # fmt: skip
    return "Products for the effective rank: median, least and most over seeds", [head, *body]


def costs_table(of: dict[tuple[str, str], list[dict[str, Any]]]) -> Table:
    head = ["", "n", "P", "examples", "vjp", "jvp", "product with K", "norm of a vjp", "probe per example"]
    kinds = ("jvp", "product", "norm", "block")
    body = [
        [
            f"{model}, {framework}, P/n = {r['ratio']:.2g}", *(f"{r[x]}" for x in ("n", "P", "examples")),
            f"{1e3 * each(r, 'vjp'):.3g} ms", *(f"{ratio(r, kind):.2f}" for kind in kinds),
        ]
        for (model, framework), rows in of.items() for r in rows
    ]  # fmt: skip
    return "CPU time a probe: a vjp in milliseconds, the others in vjps", [head, *body]


def work_table(of: dict[tuple[str, str], list[dict[str, Any]]]) -> Table:
    names = list(work(next(iter(of.values()))[0]))
    body = [
        [f"{model}, {framework}, P/n = {r['ratio']:.2g}", *(f"{1e3 * work(r)[name]:.3g}" for name in names)]
        + [f"{r['trace'][state]['method']}" for state in ("one state", "examples")]
        for (model, framework), rows in of.items() for r in rows
    ]  # fmt: skip
    return "CPU milliseconds to a trace within 1 %", [["", *names, "taken, one state", "taken, examples"], *body]


if __name__ == "__main__":
    write("ad_modes", options(__doc__, "the GRU at one P/n"), measure, draw, text)
