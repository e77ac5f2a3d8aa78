"""Against other libraries at their own game: error against products and against time, for operators and for models.

    python docs/benchmarks/against.py [--only PART …] [--arrays A …] [--resume] [--quick] [--seeds N] [--out DIR]

Parts: traces of six spectra with n = 1000 (dense) and n = 10,000 (fast rotations), trace and log-determinant of a
Laplacian with n = 10⁶, trace and norm of neural tangent kernels, traces of a Hessian and a Gauss–Newton matrix. All
contenders of a part run in turn in this process, on one core. Each part is written when it is done, and `--resume`
goes on from what is there. Prints tables, writes against.json and figures, and brings the tables of docs/peers.md up
to date. Libraries that are not installed are left out, and named.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS, FIGURES, PAGE = HERE / "results", HERE / "figures", HERE.parent / "peers.md"


def one_core() -> None:
    """No library may use threads: before any of them is imported."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    if hasattr(os, "sched_setaffinity"):  # which XLA heeds, whatever its flags
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def parts() -> dict[str, tuple[Callable[[bool, int], dict[str, list[dict[str, Any]]]], int, float]]:
    """What measures each part, its seeds, and the accuracy below which rounding rules."""
    import against_models as models
    import against_operators as operators

    return {
        "spectra, n = 1000": (lambda quick, k: operators.spectra(150 if quick else 1000, quick, k), 20, 1e-12),
        "spectra, n = 10000": (lambda quick, k: operators.spectra(2500 if quick else 10_000, quick, k), 4, 1e-12),
        "Laplacian, trace": (lambda quick, k: operators.laplacian_trace(30 if quick else 1000, quick, k), 4, 1e-12),
        "Laplacian, logdet": (lambda quick, k: operators.laplacian_logdet(30 if quick else 1000, quick, k), 4, 1e-12),
        "kernel of an MLP": (lambda quick, k: models.kernels("MLP", quick, k), 10, 1e-5),
        "kernel of a CNN": (lambda quick, k: models.kernels("CNN", quick, k), 10, 1e-5),
        "curvature": (models.curvature, 20, 1e-5),
    }


PARTS = (
    "spectra, n = 1000", "spectra, n = 10000", "Laplacian, trace", "Laplacian, logdet", "kernel of an MLP",
    "kernel of a CNN", "curvature",
)  # fmt: skip


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    parser.add_argument("--resume", action="store_true", help="keep the parts that the file has")
    parser.add_argument("--arrays", nargs="+", choices=["numpy", "torch", "jax"], help="whose contenders; default: all")
    parser.add_argument("--quick", action="store_true", help="tiny, 2 seeds: prints only, unless --out is given")
    parser.add_argument("--seeds", type=int, help="runs for each number; default: 4 to 20, by part")
    parser.add_argument("--out", type=Path, help="folder for against.json and figures; default: results and figures")
    options = parser.parse_args()
    one_core()
    import jax
    import numpy as np
    import race
    import torch
    from against_report import figures, tables
    from estimators import revision
    from peers import available
    from tables import fill, markdown, plain

    if options.arrays:
        race.ARRAYS.intersection_update(options.arrays)
    torch.set_num_threads(1)
    jax.config.update("jax_enable_x64", True)
    out = options.out or (None if options.quick else RESULTS)
    file = out / "against.json" if out else None
    versions = {"numpy": np.__version__, "torch": torch.__version__, "jax": jax.__version__, **available()[1]}
    result: dict[str, Any] = {"revision": revision(), "versions": versions, "parts": {}}
    if file and file.exists() and (options.resume or options.only != list(PARTS)):
        result["parts"] = json.loads(file.read_text())["parts"]
    print(", ".join(f"{library} {version}" for library, version in versions.items()), flush=True)
    for name, (measure, seeds, floor) in parts().items():
        if name not in options.only or (options.resume and name in result["parts"]):
            continue
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what others warn of is theirs
            problems = measure(options.quick, options.seeds or (2 if options.quick else seeds))
        result["parts"][name] = {"revision": result["revision"], "floor": floor, "problems": problems}
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    shown = tables(result["parts"])
    print("\n".join(plain(*t) for t in shown))
    if out is None:
        return
    figures(result["parts"], FIGURES if out == RESULTS else out)
    if out == RESULTS:
        measured = " and ".join(sorted({part["revision"] for part in result["parts"].values()}))
        head = ", ".join([measured, *(f"{k} {v}" for k, v in versions.items())])
        fill(PAGE, "against", "\n".join([head + ".\n", *(markdown(*t) for t in shown)]))


if __name__ == "__main__":
    main()
