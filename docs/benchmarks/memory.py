"""Does the memory of one-sided statistics grow with the number of probes? A transformer of over 100 million parameters.

    python docs/benchmarks/memory.py [--probes 4 16 64] [--quick] [--out DIR]

A GPT-2-shaped model in PyTorch: a vocabulary of 50,257, 12 layers of width 768 with 12 heads, 124 million parameters in
float32. The state is the mean of the last hidden layer over 8 tokens, of 4 sequences, n = 3,072. `te.summary` (trace,
norm, effective rank, each layer's too) runs in a process of its own for each number of probes; what is reported is the
process's peak resident memory and the time, beside those of a plain backward pass. Writes memory.json and brings the
table of docs/kernels.md up to date.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from estimators import revision
from tables import Table, fill, markdown, plain

RESULTS = Path(__file__).resolve().parent / "results"
SIZES = {"vocabulary": 50257, "layers": 12, "width": 768, "heads": 12, "tokens": 8, "sequences": 4}
QUICK = {"vocabulary": 1000, "layers": 2, "width": 64, "heads": 4, "tokens": 8, "sequences": 4}


def model_and_batch(sizes: dict[str, int]) -> tuple[Any, Any]:
    """The transformer and random tokens."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (
                y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(self.norm1(x)).chunk(3, dim=-1)
            )
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).flatten(2))
            return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(sizes["vocabulary"], sizes["width"])
            self.place = nn.Embedding(sizes["tokens"], sizes["width"])
            self.blocks = nn.ModuleList(Block(sizes["width"], sizes["heads"]) for _ in range(sizes["layers"]))
            self.norm = nn.LayerNorm(sizes["width"])

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.embed(tokens) + self.place(torch.arange(tokens.shape[1]).expand_as(tokens))
            for block in self.blocks:
                x = block(x)
            return self.norm(x).mean(1)

    torch.manual_seed(0)
    return Transformer().eval(), torch.randint(sizes["vocabulary"], (sizes["sequences"], sizes["tokens"]))


def child(n_probes: int, quick: bool) -> None:
    """Measure in this process, and print what was found."""
    import traceest as te
    from traceest_adapters.torch import ntk

    model, tokens = model_and_batch(QUICK if quick else SIZES)
    found: dict[str, Any] = {"n_probes": n_probes, "parameters": sum(p.numel() for p in model.parameters())}
    start = time.perf_counter()
    if n_probes:
        s = te.summary(ntk(model, tokens), n_probes=n_probes, groups=1, rng=0)
        found["effective_rank"], found["stderr"] = float(s.effective_rank), float(s.effective_rank.stderr)
    else:
        model(tokens).sum().backward()
    found["seconds"] = time.perf_counter() - start
    found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # in KiB on Linux
    print(json.dumps(found))


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """A row a process."""
    least = min(r["peak_bytes"] for r in rows if r["n_probes"])
    body = []
    for r in rows:
        what = f"{r['n_probes']} vjps" if r["n_probes"] else "backward pass"
        rank = f"{r['effective_rank']:.1f} ± {r['stderr']:.1f}" if r["n_probes"] else ""
        of_least = f"{r['peak_bytes'] / least:.2f}" if r["n_probes"] else ""
        body.append([what, f"{r['peak_bytes'] / 2**30:.2f} GiB", of_least, f"{r['seconds']:.0f} s", rank])
    title = f"{rows[0]['parameters'] / 1e6:.0f} million parameters: peak memory of the process"
    return [(title, [["", "peak", "over the least", "time", "effective rank"], *body])]


def main() -> None:
    """Parse the command line, measure in processes, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--probes", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--quick", action="store_true", help="a small model: prints only, unless --out says where")
    parser.add_argument("--out", type=Path, help="folder for memory.json; default: results, beside this file")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options.child, options.quick)
        return
    rows = []
    for n_probes in (0, *options.probes):
        command = [sys.executable, __file__, "--child", str(n_probes), *(["--quick"] if options.quick else [])]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(rows[-1], flush=True)
    print("\n".join([revision(), *(plain(*t) for t in tables(rows))]))
    out = options.out or (None if options.quick else RESULTS)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "memory.json").write_text(json.dumps({"revision": revision(), "rows": rows}, indent=1) + "\n")
    if out == RESULTS:
        text = "\n".join([revision() + ".\n", *(markdown(*t) for t in tables(rows))])
        fill(RESULTS.parent.parent / "kernels.md", "memory", text)


if __name__ == "__main__":
    main()
