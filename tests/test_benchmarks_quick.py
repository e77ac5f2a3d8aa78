"""The benchmark against other libraries runs, whichever of them are installed, and its arithmetic is right."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "docs" / "benchmarks"


def quick(out: Path, *options: str) -> dict:
    command = [sys.executable, str(BENCHMARKS / "against.py"), "--quick", "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "faster by, mean" in done.stdout
    return json.loads((out / "against.json").read_text())["parts"]


def test_operators_are_raced_quickly(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    parts = ["spectra, n = 1000", "Laplacian, logdet"]
    found = quick(tmp_path, "--only", *parts, "--arrays", "numpy")
    assert list(found) == parts
    rows = [r for part in found.values() for rows in part["problems"].values() for r in rows]
    ours = [r for r in rows if r["library"] == "traceest"]
    assert {"hutchinson", "hutchpp", "xtrace", "xnystrace", "trace(rtol)", "logdet"} == {r["method"] for r in ours}
    assert all(r["error"] < 0.5 and r["seconds"] > 0 for r in ours)
    assert (tmp_path / "against_spectra_n_1000.svg").exists()


@pytest.mark.slow
def test_a_part_that_is_there_is_not_measured_again(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    part = "Laplacian, logdet"
    first = quick(tmp_path, "--only", part, "--arrays", "numpy")
    assert quick(tmp_path, "--only", part, "--arrays", "numpy", "--resume") == first


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_models_are_raced_quickly(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jax")
    pytest.importorskip("torch")
    found = quick(tmp_path, "--only", "kernel of an MLP", "curvature", "--arrays", "torch")
    ours = [r for part in found.values() for rows in part["problems"].values() for r in rows if r["products"] == 10]
    assert ours
    assert all(r["error"] < 1e-5 for r in ours)  # ten outputs: exact


@pytest.fixture
def race(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import race

    return race


def rows(library: str, method: str, *points: tuple[float, float]) -> list[dict]:
    common = {"library": library, "method": method, "arrays": "numpy"}
    return [common | {"budget": i, "seconds": t, "error": e} for i, (t, e) in enumerate(points)]


def test_time_to_an_accuracy_lies_on_the_line_through_its_neighbours(race) -> None:
    ladder = rows("a", "m", (1.0, 1e-1), (4.0, 1e-2), (16.0, 1e-3))
    assert race.time_to(ladder, 10**-1.5) == pytest.approx(2.0)
    assert race.time_to(ladder, 1e-3) == pytest.approx(16.0)
    assert race.time_to(ladder, 0.5) == 1.0
    assert math.isinf(race.time_to(ladder, 1e-4))


def test_a_target_that_all_reach_at_once_is_no_duel(race) -> None:
    found = rows("traceest", "m", (1.0, 1e-2), (2.0, 1e-3)) + rows("other", "m", (3.0, 3e-2), (6.0, 3e-3))
    assert [target for target, *_ in race.duels(found)] == [1e-2]


def test_the_operators_have_the_trace_and_the_determinant_that_they_say(race) -> None:
    from operands import Laplacian, dense, rotated

    for A in (dense("poly", 40), rotated("slowexp", 41), rotated("poly", 40), Laplacian(6)):
        M = A.product("numpy")(np.eye(A.n))
        M = M.toarray() if hasattr(M, "toarray") else M
        np.testing.assert_allclose(np.trace(M), A.trace, rtol=1e-12)
        np.testing.assert_allclose(M, M.T, atol=1e-14)
        np.testing.assert_allclose(A.apply(np.eye(A.n), *A.arrays), M, atol=1e-14)
    np.testing.assert_allclose(np.linalg.slogdet(Laplacian(6).product("numpy")(np.eye(36)))[1], Laplacian(6).logdet)
