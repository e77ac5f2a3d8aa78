"""The estimators under test, all with one signature: (problem, budget, rng) ↦ Estimate."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectra import Problem

import traceest as te


@dataclass(frozen=True)
class Method:
    """An estimator, and what it asks of the operator."""

    name: str
    run: Callable[[Problem, int, Any], te.Estimate]
    psd_only: bool = False


def _ours() -> list[Method]:
    return [
        Method("hutchinson", lambda p, m, rng: te.hutchinson(p.A, m, rng=rng)),
        Method("hutchinson orth.", lambda p, m, rng: te.hutchinson(p.diagonal, m, rng=rng, distribution="orthogonal")),
        Method("rhutch 5 blocks", lambda p, m, rng: te.rhutch(p.J_blocks, m, rng=rng), psd_only=True),
        Method("fhutch", lambda p, m, rng: te.fhutch(p.J, m, rng=rng), psd_only=True),
        Method("hutchpp", lambda p, m, rng: te.hutchpp(p.A, m, rng=rng)),
        Method("na_hutchpp", lambda p, m, rng: te.na_hutchpp(p.diagonal, m, rng=rng)),
        Method("nystrompp", lambda p, m, rng: te.nystrompp(p.diagonal, m, rng=rng), psd_only=True),
        Method("xtrace", lambda p, m, rng: te.xtrace(p.diagonal, m, rng=rng)),
        Method("xnystrace", lambda p, m, rng: te.xnystrace(p.diagonal, m, rng=rng), psd_only=True),
    ]


METHODS = _ours()
"""Every estimator with a fixed budget. Sphere and orthogonal probes see the operator unrotated, which is faster.

`rhutch` without blocks is left out: it is Hutchinson's estimator of JJᵀ sample by sample, by one side.
"""

TRACE = Method("trace", lambda p, m, rng: te.trace(p.A, rtol=1e-15, max_matvecs=m, rng=rng))
"""The adaptive front door, with a tolerance out of reach, so that the budget ends it."""


def revision() -> str:
    """Version and commit that the numbers come from."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True).stdout.strip()

    commit = git("rev-parse", "--short", "HEAD") or "unknown commit"
    changed = " with changes" if git("status", "--porcelain", "../../traceest") else ""
    return f"traceest {te.__version__}, {commit}{changed}"
