"""Is the number of probes to a pass that the adapters choose the best one? A sweep of chunk sizes.

    python docs/benchmarks/chunks.py [--frameworks torch jax] [--models MLP CNN …] [--repeats 7] [--quick] [--out DIR]

For the models of passes.py, the seconds of norms of summed vjps (one block) and of per-example gradients, with every
chunk size of a sweep and with the one chosen, in turns in one process. What is reported is the chosen one's time over
the best one's, of medians. Prints the table, writes chunks.json and brings the table of docs/adapters.md up to date.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from estimators import revision
from tables import Table, fill, markdown, plain
from timed_models import NAMES, QUICK, Sizes, in_jax, in_torch

RESULTS = Path(__file__).resolve().parent / "results"
SWEEP = (1, 2, 4, 8, 16, 32)
PROBES = 32
LIMIT = 1.25
"""The most that the chosen chunk size may take, over the best of the sweep."""

Make = Callable[..., Any]


def case(framework: str, name: str, sizes: Sizes) -> tuple[Make, Callable[[Any], Any]]:
    """From options to a Jacobian, and from one to its probes; both wait for what they start."""
    if framework == "torch":
        import torch

        from traceest_adapters.torch import jacobian

        module, x, options = in_torch(name, sizes)
        return lambda **o: jacobian(module, x, **{**options, **o}), lambda J: torch.randn(J.shape[0], PROBES)
    import jax

    from traceest_adapters.jax import jacobian as in_jax_jacobian

    fn, params, x, options = in_jax(name, sizes)
    probes = lambda J: jax.random.normal(jax.random.key(1), (J.shape[0], PROBES))  # noqa: E731
    return lambda **o: in_jax_jacobian(fn, params, x, **{**options, **o}), probes


def seconds(J: Any, V: Any) -> float:
    """Of one product."""
    start = time.perf_counter()
    out = J.block_sqnorms(V)
    getattr(out, "block_until_ready", lambda: None)()
    return time.perf_counter() - start


def measure(framework: str, name: str, sizes: Sizes, repeats: int) -> list[dict[str, Any]]:
    """A row for summed and one for per-example norms."""
    make, probes = case(framework, name, sizes)
    rows = []
    for what, options in (("summed", {"batch_axis": None}), ("per example", {})):
        chosen = make(**options)
        all_sizes = {c: make(chunk_size=c, **options) for c in SWEEP}
        V, turns = probes(chosen), {c: [] for c in (None, *SWEEP)}
        for turn in range(repeats + 1):
            for c in turns:
                took = seconds(chosen if c is None else all_sizes[c], V)
                turns[c] += [took] if turn else []
        medians = {c: statistics.median(times) for c, times in turns.items()}
        best = min(SWEEP, key=lambda c: medians[c])
        rows.append(
            {
                "framework": framework,
                "model": name,
                "norms": what,
                "seconds": {str(c): medians[c] for c in SWEEP},
                "chosen": chosen.chunk_size,
                "chosen_seconds": medians[None],
                "best": best,
                "ratio": medians[None] / medians[best],
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """Every chunk size over the best, and the chosen one."""
    body = [["", *(str(c) for c in SWEEP), "chosen"]]
    for row in rows:
        best = min(row["seconds"].values())
        mark = "*" if row["ratio"] > LIMIT else ""
        body.append(
            [
                f"{row['model']}, {row['framework']}, {row['norms']}",
                *(f"{row['seconds'][str(c)] / best:.2f}" for c in SWEEP),
                f"{row['chosen']}: {row['ratio']:.2f}{mark}",
            ]
        )
    return f"Time of {PROBES} probes by the chunk size, over that of the best (* beyond {LIMIT})", body


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frameworks", nargs="+", default=["torch", "jax"], choices=["torch", "jax"])
    parser.add_argument("--models", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="tiny models: prints only, unless --out is given")
    parser.add_argument("--out", type=Path, help="folder for chunks.json; default: results, beside this file")
    options = parser.parse_args()
    sizes, rows = QUICK if options.quick else Sizes(), []
    for framework in options.frameworks:
        for name in options.models:
            rows += measure(framework, name, sizes, 1 if options.quick else options.repeats)
            print(plain(*table(rows[-2:])), flush=True)
    print(plain(*table(rows)))
    out = options.out or (None if options.quick else RESULTS)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "chunks.json").write_text(json.dumps({"revision": revision(), "rows": rows}, indent=1) + "\n")
    if out == RESULTS:
        fill(RESULTS.parent.parent / "adapters.md", "chunks", f"{revision()}.\n\n{markdown(*table(rows))}")


if __name__ == "__main__":
    main()
