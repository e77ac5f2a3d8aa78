"""What do the estimators cost beyond their products? Whole time over the time of the operator products alone.

    python docs/benchmarks/overhead.py [--n 4000] [--matvecs 96] [--repeats 9] [--quick] [--out DIR]

On a dense float32 and float64 operator, with NumPy, PyTorch and jitted JAX: the median over the repeats of the whole
time over that of the same products made by hand, in turns, in one process. Prints the ratios against the
limits that this library sets itself (1.3 for Hutchinson, 1.8 for Hutch++, 2.0 for the exchangeable ones), writes
overhead.json, and brings the table of docs/calibration.md up to date.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from estimators import revision
from tables import Table, fill, markdown, plain

import traceest as te

RESULTS = Path(__file__).resolve().parent / "results"


def _orthogonal(A: Any, m: int, rng: Any) -> te.Estimate:
    return te.hutchinson(A, m, rng=rng, distribution="orthogonal")


ESTIMATORS: dict[str, tuple[Callable[..., te.Estimate], Callable[[int], tuple[int, ...]], float | None]] = {
    "hutchinson": (te.hutchinson, lambda m: (m,), 1.3),
    "hutchinson orth.": (_orthogonal, lambda m: (m,), None),
    "hutchpp": (te.hutchpp, lambda m: (m // 3, m // 3, m - 2 * (m // 3)), 1.8),
    "na_hutchpp": (te.na_hutchpp, lambda m: (m // 5, 2 * (m // 5), m - 3 * (m // 5)), 1.8),
    "nystrompp": (te.nystrompp, lambda m: (3 * m // 5, m - 3 * m // 5), 1.8),
    "xtrace": (te.xtrace, lambda m: (m // 2, m // 2), 2.0),
    "xnystrace": (te.xnystrace, lambda m: (m,), 2.0),
}
"""The estimator, the columns of its products one after the other, and the most that whole over products may be."""


class Library:
    """An array library: how to move a matrix there, compile a function of it, and wait for the answer."""

    def __init__(self, name: str, move: Callable[[np.ndarray], Any], rng: Callable[[int], Any], compiled: bool) -> None:
        self.name, self.move, self.rng, self.compiled = name, move, rng, compiled

    def timer(self, f: Callable[..., Any], *arrays: Any) -> Callable[[int], float]:
        """Seconds of one f(*arrays, rng), warmed up; operators are made inside."""
        g = jax.jit(f) if self.compiled else f

        def once(seed: int) -> float:
            rng = self.rng(seed)
            start = time.perf_counter()
            out = g(*arrays, rng)
            if self.compiled:
                jax.block_until_ready(out)
            return time.perf_counter() - start

        once(0)
        once(1)
        return once


LIBRARIES = (
    Library("NumPy", lambda A: A, lambda seed: seed, compiled=False),
    Library("PyTorch", torch.from_numpy, lambda seed: torch.Generator().manual_seed(seed), compiled=False),
    Library("JAX, jitted", jnp.asarray, jax.random.key, compiled=True),
)


def ratios(library: Library, A: np.ndarray, m: int, repeats: int) -> list[dict[str, Any]]:
    """A row for each estimator."""
    B, V = library.move(A), library.move(np.random.default_rng(1).standard_normal((A.shape[0], m)).astype(A.dtype))
    rows = []
    for name, (estimator, columns, limit) in ESTIMATORS.items():
        widths = columns(m)

        def products(B: Any, V: Any, _: Any, widths: tuple[int, ...] = widths) -> Any:
            ends = list(accumulate(widths))  # different columns each time, lest a compiler makes one product of two
            return [B @ V[:, b - k : b] for k, b in zip(widths, ends, strict=True)]

        def whole(B: Any, rng: Any, estimator: Any = estimator) -> Any:
            e = estimator(te.aslinearoperator(B, psd=True), m, rng=rng)
            return e.value, e.stderr

        alone, all_of_it = library.timer(products, B, V), library.timer(whole, B)
        times = [(all_of_it(seed), alone(seed)) for seed in range(repeats)]
        seconds = [statistics.median(t) for t in zip(*times, strict=True)]
        ratio = statistics.median(a / b for a, b in times)
        rows.append(
            {
                "library": library.name,
                "dtype": str(A.dtype),
                "estimator": name,
                "seconds": seconds[0],
                "products_seconds": seconds[1],
                "ratio": ratio,
                "limit": limit,
            }
        )
    return rows


def tables(rows: list[dict[str, Any]], n: int, m: int) -> list[Table]:
    """One table: a line an estimator, a column a library and precision."""
    kinds = list(dict.fromkeys((r["library"], r["dtype"]) for r in rows))
    body = []
    for name in dict.fromkeys(r["estimator"] for r in rows):
        found = {(r["library"], r["dtype"]): r for r in rows if r["estimator"] == name}
        limit = next(iter(found.values()))["limit"]
        ratios = [found[kind]["ratio"] for kind in kinds]
        shown = [f"{r:.2f}" + ("*" if limit is not None and r > limit else "") for r in ratios]
        body.append([name, "–" if limit is None else f"{limit:.1f}", *shown])
    head = ["", "limit", *(f"{library}, {dtype}" for library, dtype in kinds)]
    return [(f"n = {n}, m = {m}: whole time / time of the products alone (* beyond the limit)", [head, *body])]


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, default=4000, help="rows of the dense operator")
    parser.add_argument("--matvecs", type=int, default=96, help="budget of products")
    parser.add_argument("--repeats", type=int, default=9, help="pairs of timings for each ratio")
    parser.add_argument("--quick", action="store_true", help="3 pairs, for a look: prints only, unless --out is given")
    parser.add_argument("--out", type=Path, help="folder for overhead.json; default: results, beside this file")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for dtype in ("float64", "float32"):
        jax.config.update("jax_enable_x64", dtype == "float64")
        G = np.random.default_rng(0).standard_normal((options.n, options.n)).astype(dtype)
        A = (G + G.T) / (2 * options.n) ** 0.5 + 3 * np.eye(options.n, dtype=dtype)
        for library in LIBRARIES:
            rows += ratios(library, A, options.matvecs, 3 if options.quick else options.repeats)
    shown = tables(rows, options.n, options.matvecs)
    print("\n".join(plain(*t) for t in shown))
    out = options.out or (None if options.quick else RESULTS)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    versions = {"numpy": np.__version__, "torch": torch.__version__, "jax": jax.__version__}
    result = {"revision": revision(), "versions": versions, "n": options.n, "matvecs": options.matvecs, "rows": rows}
    (out / "overhead.json").write_text(json.dumps(result, indent=1) + "\n")
    if out == RESULTS:
        head = ", ".join([result["revision"], *(f"{k} {v}" for k, v in versions.items())])
        text = "\n".join([head + ".\n", *(markdown(*t) for t in shown)])
        fill(RESULTS.parent.parent / "calibration.md", "overhead", text)


if __name__ == "__main__":
    main()
