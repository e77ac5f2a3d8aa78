"""What does a probe cost, over one plain backward pass of the same model and batch?

    python docs/benchmarks/passes.py [--frameworks torch jax] [--models MLP CNN …] [--probes 16] [--quick] [--gpu]
                                     [--out DIR]

For an MLP, a CNN, the paper's GRU and a transformer (timed_models.py), in PyTorch and in JAX, in turns in one process:
a plain backward pass (a pullback of one cotangent through the whole batch, forward pass excluded, compiled in JAX),
and, over the number of probes, the summed vjps (`rmatmat`), the norms of the summed vjps (one block), and the norms of
per-example gradients (`block_sqnorms`) and their Gram matrix (`sketch_gram`). Also, as a share of what a large matrix
product reaches on this machine, the flops of the backward pass over the time of each. Prints the tables, writes
passes.json and brings the tables of docs/performance.md up to date.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from estimators import revision
from tables import Table, fill, markdown, plain
from timed_models import NAMES, QUICK, Sizes, in_jax, in_torch
from timing import machine, on_gpu, peak, seconds

RESULTS = Path(__file__).resolve().parent / "results"
LIMITS = {"summed vjps": 1.3, "their norms": 1.3, "per-example norms": 2.0}
"""The most that a probe may cost, in plain backward passes."""

Timed = dict[str, Callable[[], Any]]


def torch_case(name: str, sizes: Sizes, k: int) -> tuple[Timed, float]:
    """What is timed, and the flops of a plain backward pass."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from traceest_adapters.torch import jacobian

    model, x, options = in_torch(name, sizes)
    state = model(x)[0] if options.get("output") == 0 else model(x)
    parameters, u = list(model.parameters()), torch.randn_like(state)

    def backward() -> Any:
        return torch.autograd.grad(state, parameters, u, retain_graph=True)

    with FlopCounterMode(display=False) as counter:
        backward()
    J, one = jacobian(model, x, **options), jacobian(model, x, **{**options, "batch_axis": None})
    V = torch.randn(J.shape[0], k)
    timed = {
        "backward pass": backward,
        "summed vjps": lambda: one.rmatmat(V),
        "their norms": lambda: one.block_sqnorms(V),
        "per-example norms": lambda: J.block_sqnorms(V),
        "per-example Gram": lambda: J.sketch_gram(V),
    }
    return timed, float(counter.get_total_flops())


def jax_case(name: str, sizes: Sizes, k: int) -> Timed:
    """What is timed."""
    import jax

    from traceest_adapters.jax import jacobian

    fn, params, x, options = in_jax(name, sizes)
    pull = jax.jit(lambda p, x: jax.vjp(lambda p: fn(p, x), p))
    state, pullback = pull(params, x)
    u, apply = jax.random.normal(jax.random.key(0), state.shape), jax.jit(lambda f, u: f(u))
    J, one = jacobian(fn, params, x, **options), jacobian(fn, params, x, batch_axis=None)
    V = jax.random.normal(jax.random.key(1), (J.shape[0], k))
    timed: Timed = {
        "backward pass": lambda: apply(pullback, u),
        "summed vjps": lambda: one.rmatmat(V),
        "their norms": lambda: one.block_sqnorms(V),
        "per-example norms": lambda: J.block_sqnorms(V),
        "per-example Gram": lambda: J.sketch_gram(V),
    }
    return timed


def measure(timed: Timed, k: int, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of each, medians of turns, and, per probe, the median ratio to the backward pass of the same turn."""
    for f in timed.values():
        seconds(f)
        seconds(f)
    turns: dict[str, list[float]] = {what: [] for what in timed}
    for _ in range(repeats):
        for what, f in timed.items():
            turns[what].append(seconds(f))
    plain_pass = turns["backward pass"]
    found = {}
    for what, times in turns.items():
        per = 1 if what == "backward pass" else k
        ratios = [t / per / b for t, b in zip(times, plain_pass, strict=True)]
        found[what] = {"seconds": statistics.median(times) / per, "ratio": statistics.median(ratios)}
    return found


def tables(rows: list[dict[str, Any]], k: int, peak_flops: float) -> list[Table]:
    """Costs in backward passes, and shares of the peak."""
    kinds = list(dict.fromkeys((row["framework"], row["model"]) for row in rows))
    found = {(row["framework"], row["model"]): row for row in rows}
    what = list(rows[0]["measured"])[1:]
    costs, shares = [["", "backward pass", *what]], [["", "GFLOP", "backward pass", *what[:3]]]
    for kind in kinds:
        row = found[kind]
        m, name = row["measured"], ", ".join(kind[::-1])
        marks = {w: "*" if m[w]["ratio"] > LIMITS.get(w, float("inf")) else "" for w in what}
        costs.append(
            [name, f"{1e3 * m['backward pass']['seconds']:.3g} ms", *(f"{m[w]['ratio']:.2f}{marks[w]}" for w in what)]
        )
        of_peak = [row["flops"] / m[w]["seconds"] / peak_flops for w in ("backward pass", *what[:3])]
        shares.append([name, f"{row['flops'] / 1e9:.3g}", *(f"{100 * share:.0f} %" for share in of_peak)])
    return [
        (f"A probe of {k}, in plain backward passes (* beyond 1.3 for summed, 2 for per-example ones)", costs),
        (f"Flops of a backward pass over the time of each, of a peak of {peak_flops / 1e9:.0f} GFLOP/s", shares),
    ]


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frameworks", nargs="+", default=["torch", "jax"], choices=["torch", "jax"])
    parser.add_argument("--models", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--probes", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="tiny models: prints only, unless --out is given")
    parser.add_argument("--gpu", action="store_true", help="on the GPU, if there is one")
    parser.add_argument("--out", type=Path, help="folder for passes.json; default: results, beside this file")
    options = parser.parse_args()
    if options.gpu:
        on_gpu()
    sizes = QUICK if options.quick else Sizes()
    top, rows = peak(), []
    for framework in options.frameworks:
        for name in options.models:
            timed, flops = torch_case(name, sizes, options.probes)
            if framework == "jax":
                timed = jax_case(name, sizes, options.probes)
            measured = measure(timed, options.probes, 3 if options.quick else options.repeats)
            rows.append({"framework": framework, "model": name, "flops": flops, "measured": measured})
    shown = tables(rows, options.probes, top)
    print("\n".join(plain(*t) for t in shown))
    out = options.out or (None if options.quick else RESULTS)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    result = {"revision": revision(), "machine": machine(), "peak_flops": top, "probes": options.probes, "rows": rows}
    (out / "passes.json").write_text(json.dumps(result, indent=1) + "\n")
    if out == RESULTS:
        text = "\n".join([f"{result['revision']}; {result['machine']}.\n", *(markdown(*t) for t in shown)])
        fill(RESULTS.parent.parent / "performance.md", "passes", text)


if __name__ == "__main__":
    main()
