"""How do time and memory grow with states, parameters, examples, probes and depth?

    python docs/benchmarks/scaling.py [--frameworks torch jax] [--only n P B probes depth] [--quick] [--gpu] [--out DIR]

A tanh MLP in PyTorch and in JAX, of which one size is varied over two decades, the others as in `BASE`: n by the
outputs of each example, P by the width, B with n. For the trace (`te.rhutch`, block by block) and for norm, rank and
trace together (`te.summary`, up to 64 probes and 512 examples: its Gram matrix has (B k)² entries): the
time of a call once compiled, and the peak memory of the process above what it held with the model and batch there.
Every size has a process of its own. Then a plain backward pass and `te.summary` of a GPT-2-shaped model of 124 million
parameters (memory.py). Slopes are of log–log least squares over the larger half of the sizes, where
overhead no longer hides them.

Writes scaling.json, figures/scaling.{png,svg}, and brings the tables of docs/performance.md up to date.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from estimators import revision
from pictures import save, subplots
from tables import Table, fill, markdown, plain
from timing import machine, median, on_gpu, show, wait

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Size:
    """Of the MLP, its batch, and the probes."""

    inputs: int = 32
    width: int = 128
    depth: int = 4
    outputs: int = 32
    examples: int = 64
    probes: int = 8


BASE, QUICK = Size(), Size(8, 16, 2, 4, 8, 2)
VARIED = {
    "n": ("outputs", (8, 24, 80, 240, 800)),
    "P": ("width", (64, 114, 202, 360, 640)),
    "B": ("examples", (8, 24, 80, 240, 800)),
    "probes": ("probes", (4, 12, 40, 120, 400)),
    "depth": ("depth", (2, 6, 20, 60, 200)),
}
"""The field that is varied, and its values, over two decades; P grows as the square of the width."""


def mlp(framework: str, s: Size) -> Any:
    """Its kernel."""
    rng = np.random.default_rng(0)
    widths = [s.inputs, *[s.width] * s.depth, s.outputs]
    params = {
        f"{i}": (rng.standard_normal((a, b)) / a**0.5).astype("float32") for i, (a, b) in enumerate(pairwise(widths))
    }
    x = rng.standard_normal((s.examples, s.inputs)).astype("float32")
    if framework == "torch":
        import torch

        from traceest_adapters.torch import ntk

        def module(p: Any, x: Any) -> Any:
            for i in range(s.depth):
                x = torch.tanh(x @ p[f"{i}"])
            return x @ p[f"{s.depth}"]

        return ntk(module, torch.as_tensor(x, device=torch.get_default_device()), params=_on_device(params))
    import jax
    import jax.numpy as jnp

    from traceest_adapters.jax import ntk as jax_ntk

    def function(p: Any, x: Any) -> Any:
        for i in range(s.depth):
            x = jnp.tanh(x @ p[f"{i}"])
        return x @ p[f"{s.depth}"]

    return jax_ntk(function, jax.tree.map(jnp.asarray, params), jnp.asarray(x))


def _on_device(params: dict[str, np.ndarray]) -> Any:
    import torch

    return {name: torch.as_tensor(p, device=torch.get_default_device()) for name, p in params.items()}


def child(framework: str, s: Size, gpu: bool) -> None:
    """Measure one size in this process, and print what was found."""
    if gpu:
        on_gpu()
    import traceest as te

    K = mlp(framework, s)
    found: dict[str, Any] = {"n": K.shape[0], "P": K.factor.shape[1]}
    before = _peak()
    calls = {"trace": lambda: te.rhutch(K, s.probes, rng=0).value}
    if s.probes <= 64 and s.examples <= 512:
        calls["summary"] = lambda: te.summary(K, n_probes=max(3, s.probes), rng=0).effective_rank.value
    for what, call in calls.items():
        wait(call())
        found[what] = {"bytes": _peak() - before, "seconds": median(call, most=0.5, repeats=5)}
    print(json.dumps(found))


def _peak() -> int:
    """Bytes that were ever held: on the GPU by PyTorch, else by the process."""
    import torch

    if torch.get_default_device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # in KiB on Linux


def run(framework: str, what: str, quick: bool, gpu: bool) -> list[dict[str, Any]]:
    """A row a size."""
    field, values = VARIED[what]
    base = QUICK if quick else BASE
    rows = []
    for value in values[:2] if quick else values:
        s = replace(base, **{field: value})
        command = [sys.executable, __file__, "--child", framework, json.dumps(asdict(s)), *(["--gpu"] if gpu else [])]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = json.loads(out.splitlines()[-1])
        at = found["P"] if what == "P" else found["n"] if what == "n" else value
        rows.append({"framework": framework, "varied": what, "at": at, **found})
    return rows


def slope(rows: list[dict[str, Any]], statistic: str, of: str) -> float | None:
    """Of log y over log x, over the larger half of the sizes."""
    points = [(r["at"], r[statistic][of]) for r in rows if statistic in r and r[statistic][of] > 0]
    points = points[-max(2, (len(points) + 1) // 2) :]
    return None if len(points) < 2 else float(np.polyfit(*np.log(np.array(points)).T, 1)[0])


def transformer(quick: bool) -> list[dict[str, Any]]:
    """A plain backward pass and a summary from 4 vjps of the GPT-2-shaped model, a process each."""
    script = Path(__file__).with_name("memory.py")
    options = ["--quick"] if quick else []
    commands = [[sys.executable, str(script), "--child", str(k), *options] for k in (0, 4)]
    return [json.loads(subprocess.run(c, check=True, capture_output=True, text=True).stdout) for c in commands]


def by_kind(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Rows of one framework and one quantity varied."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for r in rows:
        found.setdefault((r["framework"], r["varied"]), []).append(r)
    return found


def tables(rows: list[dict[str, Any]], large: list[dict[str, Any]]) -> list[Table]:
    """Slopes, then the large model."""
    head = [
        "",
        "from",
        "to",
        "trace: time",
        "",
        "slope",
        "memory",
        "slope",
        "summary: time",
        "",
        "slope",
        "memory",
        "slope",
    ]
    body = []
    for (framework, what), some in by_kind(rows).items():
        cells = [f"{what}, {framework}", f"{some[0]['at']:,}", f"{some[-1]['at']:,}"]
        for statistic in ("trace", "summary"):
            known = [r[statistic] for r in some if statistic in r]
            slopes = [slope(some, statistic, of) for of in ("seconds", "bytes")]
            shown = ["–" if x is None else f"{x:.2f}" for x in slopes]
            cells += [show(known[0]["seconds"]), show(known[-1]["seconds"]), shown[0]]
            cells += [f"{known[-1]['bytes'] / 2**20:.0f} MiB", shown[1]]
        body.append(cells)
    out: list[Table] = [
        ("Time and memory at the ends of the range, and log–log slopes in its larger half", [head, *body])
    ]
    if large:
        what = f"{large[0]['parameters'] / 1e6:.0f} million parameters"
        cells = [["backward pass", large[0]], ["summary, 4 vjps", large[1]]]
        line = [[name, f"{r['seconds']:.1f} s", f"{r['peak_bytes'] / 2**30:.2f} GiB"] for name, r in cells]
        out.append((f"GPT-2-shaped, {what}", [["", "time", "peak memory of the process"], *line]))
    return out


def figure(rows: list[dict[str, Any]], folder: Path) -> None:
    """Time above, memory below, against each quantity."""
    varied = list(dict.fromkeys(r["varied"] for r in rows))
    fig, axes = subplots(2, len(varied), figsize=(3 * len(varied), 5.4), sharey="row")
    for (framework, what), some in by_kind(rows).items():
        for y, (of, unit) in enumerate((("seconds", 1.0), ("bytes", 2.0**20))):
            ax = axes[y, varied.index(what)]
            for statistic, style in (("trace", "o-"), ("summary", "s--")):
                points = [(r["at"], r[statistic][of] / unit) for r in some if statistic in r and r[statistic][of] > 0]
                if points:
                    color = "C0" if framework == "torch" else "C1"
                    ax.loglog(
                        *zip(*points, strict=True), style, color=color, markersize=4, label=f"{statistic}, {framework}"
                    )
            ax.set_xlabel(what)
            ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("MiB")
    axes[0, 0].legend(fontsize=7)
    fig.tight_layout()
    save(fig, folder, "scaling", dpi=130)


def main() -> None:
    """Parse the command line, measure in processes, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frameworks", nargs="+", default=["torch", "jax"], choices=["torch", "jax"])
    parser.add_argument("--only", nargs="*", default=list(VARIED), choices=list(VARIED))
    parser.add_argument("--quick", action="store_true", help="two tiny sizes: prints only, unless --out is given")
    parser.add_argument("--gpu", action="store_true", help="on the GPU, if there is one")
    parser.add_argument("--out", type=Path, help="folder for the results; default: results, beside this file")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options.child[0], Size(**json.loads(options.child[1])), options.gpu)
        return
    if options.gpu:
        on_gpu()
    rows = []
    for framework in options.frameworks:
        for what in options.only:
            rows += run(framework, what, options.quick, options.gpu)
            print("\n".join(plain(*t) for t in tables(rows[-len(VARIED[what][1]) :], [])), flush=True)
    large = [] if options.gpu else transformer(options.quick)
    shown = tables(rows, large)
    print("\n".join(plain(*t) for t in shown))
    out = options.out or (None if options.quick else RESULTS)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    result = {"revision": revision(), "machine": machine(), "base": asdict(BASE), "rows": rows, "transformer": large}
    (out / "scaling.json").write_text(json.dumps(result, indent=1) + "\n")
    figure(rows, out.parent / "figures" if out == RESULTS else out)
    if out == RESULTS:
        text = "\n".join([f"{result['revision']}; {result['machine']}.\n", *(markdown(*t) for t in shown)])
        fill(RESULTS.parent.parent / "performance.md", "scaling", text)


if __name__ == "__main__":
    main()
