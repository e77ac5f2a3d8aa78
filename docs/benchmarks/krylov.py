"""Do block Krylov sketches pay? Trace estimators that deflate by [Ω, AΩ, …, Aᵗ⁻¹Ω] at equal numbers of products.

    python docs/benchmarks/krylov.py [--seeds 16] [--quick] [--out DIR]

k probes and t products of each give a Krylov space V of t·k columns on which A is known. Three ways to use it:

* Krylov Hutch++: tr(QᵀAQ), Q = orth(V), plus Hutchinson on (I − QQᵀ)A(I − QQᵀ) from s probes more; t·k + s products.
* Krylov XTrace: leave out all of one probe's chain [ωᵢ, Aωᵢ, …]; what is left of ωᵢ is the residual's probe. t·k
  products: A times ωᵢ is in the chain, so that the residual takes none.
* Krylov XNysTrace: the same with the Nyström approximation on V₍ᵢ₎ in place of the projection.

All of them are unbiased, for V₍ᵢ₎ does not depend on ωᵢ. Every leave-one-out estimate is recomputed from an orthonormal
basis, which is slow and sure. Sphere probes know no basis, so the operators are diagonal. Prints tables of mean
relative errors, writes krylov.json, and brings the table of docs/krylov.md up to date.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import show
from estimators import revision
from spectra import SPECTRA, UNTUNED, problem
from tables import Table, fill, markdown, plain

import traceest as te

RESULTS = Path(__file__).resolve().parent / "results"
BUDGETS = (30, 60, 120)
FAMILIES = (*SPECTRA, *(name for name in UNTUNED if name != "signs"), "ntk")
Deflated = Callable[[np.ndarray, np.ndarray, np.ndarray], float]


def krylov_space(lam: np.ndarray, Omega: np.ndarray, t: int) -> np.ndarray:
    """[Ω, AΩ, …, Aᵗ⁻¹Ω] with columns of length 1, (t, n, k), for A = diag(λ)."""
    V = [Omega / np.linalg.norm(Omega, axis=0)]
    for _ in range(t - 1):
        Y = lam[:, None] * V[-1]
        V.append(Y / np.linalg.norm(Y, axis=0))
    return np.array(V)


def orth(V: np.ndarray) -> np.ndarray:
    """An orthonormal basis of V's columns, up to rounding."""
    U, s, _ = np.linalg.svd(V, full_matrices=False)
    return U[:, s > 1e-13 * s[0]]


def projected(lam: np.ndarray, Q: np.ndarray, w: np.ndarray) -> float:
    """Tr(QᵀAQ) + uᵀAu, u = (I − QQᵀ)w at its length."""
    u = w - Q @ (Q.T @ w)
    return float(lam @ np.sum(Q**2, axis=1) + (len(w) - Q.shape[1]) / (u @ u) * (u @ (lam * u)))


def nystrom(lam: np.ndarray, Q: np.ndarray, w: np.ndarray) -> float:
    """Tr Â + wᵀ(A − Â)w for the Nyström approximation Â on Q, what Q leaves of w at its length."""
    AQ = lam[:, None] * Q
    L = np.linalg.cholesky(Q.T @ AQ + 1e-15 * lam.max() * np.eye(Q.shape[1]))
    B = np.linalg.solve(L, AQ.T)  # Â = BᵀB
    u, seen = w - Q @ (Q.T @ w), B @ w
    return float(np.sum(B**2) + (len(w) - Q.shape[1]) / (u @ u) * (w @ (lam * w) - seen @ seen))


def leaving_out(lam: np.ndarray, m: int, t: int, rng: Any, deflated: Deflated) -> float:
    """The mean over the m/t probes of the estimate with its chain left out."""
    Omega = te.probes.sphere(len(lam), m // t, rng=rng)
    V = krylov_space(lam, Omega, t)
    bases = (orth(np.concatenate(list(np.delete(V, i, axis=2)), axis=1)) for i in range(m // t))
    return float(np.mean([deflated(lam, Q, w) for Q, w in zip(bases, Omega.T, strict=True)]))


def krylov_hutchpp(lam: np.ndarray, m: int, t: int, rng: Any) -> float:
    """Half of the products for the space, half for the residual."""
    k = max(1, m // (2 * t))
    Omega = te.probes.sphere(len(lam), k + m - t * k, rng=rng)
    Q = orth(np.concatenate(list(krylov_space(lam, Omega[:, :k], t)), axis=1))
    return float(np.mean([projected(lam, Q, w) for w in Omega[:, k:].T]))


def methods() -> dict[str, Callable[[Any, np.ndarray, int, Any], float]]:
    """(operator, eigenvalues, budget, rng) ↦ estimate: the library's, then the Krylov ones by depth."""
    found: dict[str, Callable[[Any, np.ndarray, int, Any], float]] = {
        f.__name__: lambda A, lam, m, rng, f=f: float(f(A, m, rng=rng)) for f in (te.hutchpp, te.xtrace, te.xnystrace)
    }
    for t in (2, 4):
        found[f"Krylov Hutch++, t = {t}"] = lambda A, lam, m, rng, t=t: krylov_hutchpp(lam, m, t, rng)
    for label, deflated in (("Krylov XTrace", projected), ("Krylov XNysTrace", nystrom)):
        for t in (2, 3):
            found[f"{label}, t = {t}"] = lambda A, lam, m, rng, t=t, d=deflated: leaving_out(lam, m, t, rng, d)
    return found


def run(seeds: int, budgets: tuple[int, ...]) -> list[dict[str, Any]]:
    """A row for each family, budget and method."""
    rows = []
    for name in FAMILIES:
        p = problem(name)
        lam = p.eigenvalues if p.eigenvalues is not None else np.maximum(np.linalg.eigvalsh(p.dense), 0.0)
        A = te.aslinearoperator(lambda X, lam=lam: lam[:, None] * X, like=np.zeros((len(lam), 1)), psd=True)
        for m in budgets:
            for method, f in methods().items():
                errors = [f(A, lam, m, np.random.default_rng([seed, m])) / lam.sum() - 1 for seed in range(seeds)]
                error = float(np.mean(np.abs(errors)))
                rows.append({"family": name, "budget": m, "method": method, "mean_relative_error": error})
        print(f"{name}: done", flush=True)
    return rows


def tables(rows: list[dict[str, Any]], budgets: tuple[int, ...]) -> list[Table]:
    """One for each budget."""
    by = {(r["family"], r["budget"], r["method"]): r["mean_relative_error"] for r in rows}
    return [
        (
            f"m = {m}: mean relative error",
            [["", *FAMILIES], *([x, *(show(by[f, m, x]) for f in FAMILIES)] for x in methods())],
        )
        for m in budgets
    ]


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=16, help="independent runs for each number")
    parser.add_argument("--quick", action="store_true", help="4 seeds, one budget: prints only, unless --out is given")
    parser.add_argument("--out", type=Path, help="folder for krylov.json; default: results, beside this file")
    options = parser.parse_args()
    seeds, budgets = (4, BUDGETS[:1]) if options.quick else (options.seeds, BUDGETS)
    rows = run(seeds, budgets)
    shown = tables(rows, budgets)
    print("\n".join(plain(*t) for t in shown))
    out = options.out or (None if options.quick else RESULTS)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    result = {"revision": revision(), "seeds": seeds, "rows": rows}
    (out / "krylov.json").write_text(json.dumps(result, indent=1) + "\n")
    if out == RESULTS:
        text = "\n".join([f"{result['revision']}, {seeds} seeds.\n", *(markdown(*t) for t in shown)])
        fill(RESULTS.parent.parent / "krylov.md", "krylov", text)


if __name__ == "__main__":
    main()
