"""How stable is the alignment of two kernels, a statistic of the product K₁ᵀK₂?

    python docs/reproduction/questions/alignment.py [--seeds 300] [--quick] [--out DIR]

The alignment of a kernel (ten logits of 48 images, n = 480) with that of the same network at its start, by vjps of
independent examples: rms error and coverage of the 95 % interval over seeds,

* grid: three data sets, MLPs, CNNs and GRUs of three or four sizes, after 300 steps of Adam;
* training: three networks on MNIST after 1 to 1000 steps, where the alignment comes down from 1;
* examples, probes: 4 to 48 images, and 3 to 8 vjps, at the end of that;
* dominance: the GRU's with and without the two examples that have most of ‖K‖²;

in each the same call in float32 beside float64, by the models themselves; and

* routes: the hidden states of digit_models.py, n = 3,072 and 9,216, by blocks, by the two-sided low-rank route without
  blocks, and by Hutch++ of the three products K₁K₂, K₁², K₂², as in the paper, at equal numbers of passes.

Kernels are written out once in float64 and factored, K = LLᵀ: L has the sketches that the Jacobian has. Writes
alignment.json and the figure, and brings the tables of docs/reproduction/alignment.md up to date.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from alignment_report import answer, draw, tables
from digit_models import jacobians
from estimators import revision
from image_models import DATA, SIZES, checkpoints, kernel, n_parameters, root, written_out
from tables import fill, markdown, plain

import traceest as te

REPRODUCTION = Path(__file__).resolve().parents[1]
N_PROBES, BUDGETS = 4, (3, 6, 8)
PRECISIONS = torch.float32, torch.float64
STEPS = (0, 1, 3, 10, 30, 100, 300, 1000)
FOLLOWED = (("MLP", 256), ("CNN", 16), ("GRU", 64))
EXAMPLES = (4, 6, 12, 24, 48)
ROUTES = {"blocks": (4, 8, 16), "two-sided": (8, 24, 64), "Hutch++ of products": (18, 48, 144)}
"""Budgets in passes (vjps and jvps) for each of the two kernels."""


def measured(roots: list[Any], B: int, truth: dict[str, float], m: int, seeds: int) -> dict[str, Any]:
    """Errors and coverage of alignment, distance, and the second kernel's norm over seeds."""
    Ks = [te.gram(L, n_blocks=B) for L in roots]
    runs = [te.summary(*Ks, n_probes=m, rng=np.random.default_rng([seed, m])) for seed in range(seeds)]
    found: dict[str, Any] = {"n_probes": m, "seeds": seeds}
    for name, at in (("alignment", (0, 1)), ("relative_distance", (1, 0)), ("frobenius_norm", (1,))):
        some = [getattr(s, name) for s in runs]
        true, values = truth[name], np.array([e.value[at] for e in some])
        ends = [e.confidence_interval() for e in some]
        rms = float(np.sqrt(np.mean((values - true) ** 2)))
        found[name] = {
            "exact": true,
            "rms": rms,
            "bias": float(np.mean(values) - true),
            "coverage": float(np.mean([low[at] <= true <= high[at] for low, high in ends])),
            "stderr_over_error": float(np.sqrt(np.mean([e.stderr[at] ** 2 for e in some])) / rms),
        }
    return found


def exact(K: np.ndarray, L: np.ndarray) -> dict[str, float]:
    """Alignment, and distance from K, of kernels that are written out."""
    K, L = K.astype(float), L.astype(float)
    distance = float(np.linalg.norm(L - K) / np.linalg.norm(K))
    return {
        "alignment": float(np.sum(K * L) / (np.linalg.norm(K) * np.linalg.norm(L))),
        "relative_distance": distance,
        "frobenius_norm": float(np.linalg.norm(L)),
    }


def estimated(models: Any, probed: Any, dtype: torch.dtype) -> dict[str, float]:
    """The same by 4 vjps of the models themselves, whose signs are those of every precision."""
    s = te.summary(*(kernel(m, probed, dtype) for m in models), n_probes=4, rng=0)
    found = {"alignment": s.alignment.value[0, 1], "relative_distance": s.relative_distance.value[1, 0]}
    found["frobenius_norm"] = s.frobenius_norm.value[1]
    return {name: float(x) for name, x in found.items()} | {"stderr": float(s.alignment.stderr[0, 1])}


class Start:
    """A network at its start, to which its later states are compared."""

    def __init__(self, model: Any, probed: Any, seeds: int) -> None:
        self.model, self.probed, self.seeds = model, probed, seeds
        self.Ks = [written_out(model, probed, d) for d in PRECISIONS]

    def rows(self, later: Any, cells: list[tuple[str, int, int]], **where: Any) -> list[dict[str, Any]]:
        """A row for every kind of cell, number of examples B, and number of vjps."""
        Ls, found = [written_out(later, self.probed, d) for d in PRECISIONS], []
        n_b = len(Ls[0]) // len(self.probed)
        for kind, B, m in cells:
            n, probed, pair = B * n_b, self.probed[:B], (self.model, later)
            rounded, truth = (exact(K[:n, :n], L[:n, :n]) for K, L in zip(self.Ks, Ls, strict=True))
            single, double = (estimated(pair, probed, d) for d in PRECISIONS)
            roots = [root(K[1][:n, :n]) for K in (self.Ks, Ls)]
            row = {
                "kind": kind,
                **where,
                "P": n_parameters(later),
                "examples": B,
                "float32_off_exact": {name: rounded[name] - true for name, true in truth.items()},
                "float32_off_estimated": {name: single[name] - double[name] for name in truth},
                "stderr": double["stderr"],
                **measured(roots, B, truth, m, self.seeds),
            }
            found.append(row)
            a = row["alignment"]
            cell = (
                f"{kind}: {where['model']} {where['size']} on {where['data']}, step {where['step']}, B = {B}, m = {m}"
            )
            print(f"{cell}: {a['exact']:.4f}, rms {a['rms']:.2g}, covered {100 * a['coverage']:.1f} %", flush=True)
        return found


def grid(seeds: int, quick: bool) -> list[dict[str, Any]]:
    """Data sets, models, sizes."""
    rows = []
    for data, make in DATA.items():
        images = make()
        for model, sizes in SIZES.items():
            for size in sizes[:1] if quick else sizes:
                steps = (0, 10 if quick else 300)
                first, last = checkpoints(images, model, size, steps)
                where = {"data": data, "model": model, "size": size, "step": steps[-1]}
                start = Start(first, images.probed[: 6 if quick else None], seeds)
                rows += start.rows(last, [("grid", len(start.probed), N_PROBES)], **where)
    return rows


def training(seeds: int, quick: bool) -> list[dict[str, Any]]:
    """Distance in training, and, at its end, numbers of examples and of vjps."""
    images, rows = DATA["MNIST"](), []
    for model, size in FOLLOWED[:1] if quick else FOLLOWED:
        steps = STEPS[:3] if quick else STEPS
        first, *others = checkpoints(images, model, size, steps)
        start = Start(first, images.probed[: 6 if quick else None], seeds)
        B = len(start.probed)
        for step, other in zip(steps[1:], others, strict=True):
            cells = [("training", B, N_PROBES)]
            if step == steps[-1]:
                cells += [("examples", some, N_PROBES) for some in EXAMPLES[: 2 if quick else None]]
                cells += [("probes", B, m) for m in BUDGETS[: 1 if quick else None]]
            rows += start.rows(other, cells, data="MNIST", model=model, size=size, step=step)
    return rows


def dominance(seeds: int, quick: bool) -> list[dict[str, Any]]:
    """Do single examples spoil coverage? The GRU's kernels with and without the two that have most of ‖K‖²."""
    images, rows = DATA["MNIST"](), []
    model, size = FOLLOWED[-1]
    steps = (0, 3) if quick else (0, 100, 1000)
    first, *others = checkpoints(images, model, size, steps)
    probed = images.probed[: 6 if quick else None]
    start = written_out(first, probed, torch.float64)
    n_b = len(start) // len(probed)
    for step, other in zip(steps[1:], others, strict=True):
        K = written_out(other, probed, torch.float64)
        squares = np.sum(K.reshape(len(probed), -1) ** 2, axis=1)  # of the rows of each example
        order = np.argsort(-squares)
        for without in (0, 2):
            kept = np.sort(order[without:])
            at = (kept[:, None] * n_b + np.arange(n_b)).ravel()
            L, M, B = start[np.ix_(at, at)], K[np.ix_(at, at)], len(kept)
            shares = np.sum(M.reshape(B, -1) ** 2, axis=1) / np.sum(M**2)
            where = {"kind": "dominance", "data": "MNIST", "model": model, "size": size, "step": step, "examples": B}
            where |= {"without": without, "largest_share": float(shares.max())}
            for m in (N_PROBES, 2 * N_PROBES):
                rows.append({**where, **measured([root(L), root(M)], B, exact(L, M), m, seeds)})
                print({key: rows[-1][key] for key in ("step", "without", "largest_share", "n_probes")}, flush=True)
    return rows


def routes(seeds: int, quick: bool) -> list[dict[str, Any]]:
    """Errors of the three routes at equal passes for each kernel."""
    rows = []
    for model in ("MLP",) if quick else ("MLP", "GRU"):
        *Js, (B, *_) = jacobians(model, steps=20 if quick else 300)
        if quick:
            Js, B = [J[: 4 * len(J) // B] for J in Js], 4
        blocks, whole = [te.gram(J, n_blocks=B) for J in Js], [te.gram(J) for J in Js]
        true = float(te.alignment(*blocks, method="exact"))
        for route, budgets in ROUTES.items():
            for passes in budgets[:1] if quick else budgets:
                rngs = [np.random.default_rng([seed, passes]) for seed in range(seeds)]
                values, covered = zip(*(_by(route, blocks, whole, passes, rng, true) for rng in rngs), strict=True)
                row: dict[str, Any] = {"kind": "routes", "model": model, "route": route, "passes": passes}
                row |= {"seeds": seeds, "exact": true}
                row["rms"] = float(np.sqrt(np.mean((np.array(values) - true) ** 2)))
                row["coverage"] = None if None in covered else float(np.mean(covered))
                rows.append(row)
                print({k: row[k] for k in ("model", "route", "passes", "rms", "coverage")}, flush=True)
    return rows


def _by(route: str, blocks: Any, whole: Any, passes: int, rng: Any, true: float) -> tuple[float, bool | None]:
    """The alignment by one route, and whether its interval holds the true one."""
    if route == "Hutch++ of products":
        m = passes // 6  # K₁K₂ takes two passes of each kernel a product, and its own square four
        a, b = whole
        cross, *squares = (float(te.hutchpp(x @ y, m, rng=rng)) for x, y in ((a, b), (a, a), (b, b)))
        return cross / float(np.sqrt(squares[0] * squares[1])), None
    Ks, budget = (blocks, {"n_probes": passes}) if route == "blocks" else (whole, {"n_matvecs": passes // 2})
    e = te.alignment(*Ks, **budget, rng=rng)
    low, high = e.confidence_interval()
    return float(e), low <= true <= high


PARTS = {"grid": grid, "training": training, "dominance": dominance, "routes": routes}


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=300, help="independent runs for each number")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run; others are kept")
    parser.add_argument("--quick", action="store_true", help="10 seeds: prints only, unless --out says where to write")
    parser.add_argument("--redraw", action="store_true", help="figure and page again from the JSON that is there")
    parser.add_argument("--out", type=Path, help="folder for JSON and figure; default: data and figures of the page")
    options = parser.parse_args(arguments)
    out = options.out or (None if options.quick else REPRODUCTION)
    path = (out or REPRODUCTION) / "data" / "alignment.json"
    result: dict[str, Any] = {"revision": "", "rows": [], "seconds": {}}
    if options.redraw or set(options.only) != set(PARTS):
        result = json.loads(path.read_text()) if path.exists() else result
    for part in [] if options.redraw else options.only:
        began, seeds = time.process_time(), 10 if options.quick else options.seeds
        rows = PARTS[part](max(3, seeds // 8) if part == "routes" else seeds, options.quick)
        result["rows"] = [r for r in result["rows"] if r["part"] != part] + [{"part": part, **r} for r in rows]
        result["seconds"][part], result["revision"] = time.process_time() - began, revision()
        if out is not None:  # part by part, since all of them take their time
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result, indent=1) + "\n")
    shown = tables(result)
    whole = {r["part"] for r in result["rows"]} == set(PARTS)
    print("\n".join([result["revision"], *(plain(*t) for t in shown), answer(result) if whole else ""]))
    if out is None:
        return
    (out / "figures").mkdir(parents=True, exist_ok=True)
    draw(result, out / "figures" / "alignment")
    if out == REPRODUCTION and whole:
        text = "\n".join([result["revision"] + ".\n", *(markdown(*t) for t in shown)])
        fill(REPRODUCTION / "alignment.md", "alignment", text)
        fill(REPRODUCTION / "alignment.md", "answer", answer(result))


if __name__ == "__main__":
    main()
