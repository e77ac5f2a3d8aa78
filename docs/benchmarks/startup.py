"""How long from nothing to the first answer?

    python docs/benchmarks/startup.py [--repeats 7] [--quick] [--out DIR]

Each number from processes of its own, the median: `import traceest` beyond NumPy's own import, and which of the heavy
libraries it brings along (none should be); and, the framework being imported, the first trace and the first summary of
a small model's kernel in JAX and PyTorch, with the adapter's import, the checks of the model and all compilation; also
of a matrix, 300 × 300, by methods that do more than draw samples, outside of `jax.jit`.
Writes startup.json and brings the table of docs/performance.md up to date.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from estimators import revision
from tables import Table, fill, markdown, plain

RESULTS = Path(__file__).resolve().parent / "results"
HEAVY = ("jax", "torch", "scipy", "matplotlib")
IMPORT = f"""
import time, sys, numpy
start = time.perf_counter()
import traceest
print(time.perf_counter() - start, *(m for m in {HEAVY} if m in sys.modules))
"""
FIRST = {
    "jax": """
import time, jax, jax.numpy as jnp
def model(p, x):
    return jnp.tanh(x @ p["a"]) @ p["b"]
keys = jax.random.split(jax.random.key(0), 3)
params = {"a": jax.random.normal(keys[0], (16, 32)), "b": jax.random.normal(keys[1], (32, 10))}
x = jax.random.normal(keys[2], (32, 16))
Q = jnp.linalg.qr(jax.random.normal(keys[0], (300, 300)))[0]
A = ((Q * 0.95 ** jnp.arange(300.0)) @ Q.T).block_until_ready()
start = time.perf_counter()
import traceest as te
from traceest_adapters.jax import ntk
K = ntk(model, params, x)
""",
    "torch": """
import time, torch
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
x = torch.randn(32, 16)
Q = torch.linalg.qr(torch.randn(300, 300))[0]
A = (Q * 0.95 ** torch.arange(300.0)) @ Q.T
start = time.perf_counter()
import traceest as te
from traceest_adapters.torch import ntk
K = ntk(model, x)
""",
}
STATISTICS = {
    "trace": "te.trace(K, rtol=0.05, rng=0)",
    "summary": "te.summary(K, n_probes=4, rng=0).effective_rank",
    "Hutch++ of a matrix": "te.hutchpp(A, 30, rng=0)",
    "norm of a matrix": "te.frobenius_norm(A, 30, rng=0)",
    "trace of a matrix to 1 %": "te.trace(A, rtol=0.01, rng=0)",
}
LIMITS = {"import traceest": 0.15, "jax": 3.0, "torch": 1.0}
"""Seconds that each may take."""


def run(code: str, repeats: int) -> tuple[float, list[str]]:
    """The median of what processes print first, and the words that follow."""
    outs = [
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
        for _ in range(repeats)
    ]
    return statistics.median(float(out[0]) for out in outs), sorted({word for out in outs for word in out[1:]})


def measure(repeats: int, frameworks: list[str]) -> list[dict[str, Any]]:
    """A row a start."""
    taken, brought = run(IMPORT, repeats)
    rows: list[dict[str, Any]] = [
        {
            "what": "import traceest, after NumPy",
            "seconds": taken,
            "limit": LIMITS["import traceest"],
            "brought": brought,
        }
    ]
    for framework in frameworks:
        for what, call in STATISTICS.items():
            taken, _ = run(f"{FIRST[framework]}\nfloat({call})\nprint(time.perf_counter() - start)", repeats)
            rows.append({"what": f"first {what}, {framework}", "seconds": taken, "limit": LIMITS[framework]})
    return rows


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """A row a start."""
    body = []
    for r in rows:
        mark = "*" if r["seconds"] > r["limit"] else ""
        brought = ", ".join(r["brought"]) or "none" if "brought" in r else ""
        body.append([r["what"], f"{r['seconds']:.3f} s{mark}", f"{r['limit']:g} s", brought])
    return [("From nothing to the first answer (* beyond the limit)", [["", "time", "limit", "heavy imports"], *body])]


def main() -> None:
    """Parse the command line, measure in processes, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7, help="processes for each number")
    parser.add_argument("--frameworks", nargs="+", default=["jax", "torch"], choices=["jax", "torch"])
    parser.add_argument("--quick", action="store_true", help="one process each: prints only, unless --out is given")
    parser.add_argument("--out", type=Path, help="folder for startup.json; default: results, beside this file")
    options = parser.parse_args()
    rows = measure(1 if options.quick else options.repeats, options.frameworks)
    print("\n".join(plain(*t) for t in tables(rows)))
    out = options.out or (None if options.quick else RESULTS)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "startup.json").write_text(json.dumps({"revision": revision(), "rows": rows}, indent=1) + "\n")
    if out == RESULTS:
        text = "\n".join([revision() + ".\n", *(markdown(*t) for t in tables(rows))])
        fill(RESULTS.parent.parent / "performance.md", "startup", text)


if __name__ == "__main__":
    main()
