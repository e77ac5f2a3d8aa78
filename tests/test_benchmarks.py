"""The performance benchmarks run, at small sizes, and what they look for is found."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "docs" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
tta = pytest.importorskip("time_to_accuracy", reason="the benchmarks are not in an installed package")
import run  # noqa: E402
import scaling  # noqa: E402
import startup  # noqa: E402
import timing  # noqa: E402


def test_time_to_accuracy_is_measured_for_every_method_and_tolerance() -> None:
    true = tta.truth("MLP", quick=True)
    row = tta.measure("torch", "MLP", 3, quick=True, true=true)
    assert {(f["method"], f["tolerance"]) for f in row["found"]} == {
        (method, t) for method in (*tta.ESTIMATORS, "trace(rtol)") for t in tta.TOLERANCES
    }
    assert row["rounding"] < 1e-6
    titles = [title for title, _ in tta.tables([row])]
    assert titles[0].startswith("MLP in torch: n = 40, P = 200")


@pytest.mark.parametrize(("name", "n", "P"), [("MLP", 3200, 64704), ("GRU", 48000, 14592)])
def test_the_models_have_the_papers_sizes(name: str, n: int, P: int) -> None:
    assert tta.maker("torch", name, quick=False)(check=False).factor.shape == (n, P)


def test_the_least_budget_that_is_accurate_is_found() -> None:
    """Of an estimator whose error is ±1/√m whatever the seed."""
    runs: list[int] = []

    def run(m: int, seed: int) -> Any:
        runs.append(m)
        return _Answer(1 + (-1) ** seed / math.sqrt(m))

    search = tta.Search(run, 1.0, seeds=10, budgets=[1, 4, 16, 64, 256])
    found = [search.least(tolerance, slowest=60.0) for tolerance in (0.19, 0.1, 0.01)]
    assert [f and f[0] for f in found] == [28, 106, None]  # more than 27.7, and more than 100
    assert runs.count(4) < 10  # known to be too few before all seeds are through
    assert tta.Search(run, 1.0, seeds=10, budgets=[1, 4, 1024]).least(0.2, slowest=0.0) is None


class _Answer(float):
    @property
    def value(self) -> float:
        return float(self)


def test_budgets_are_a_factor_of_root_two_apart() -> None:
    assert tta.grid(3, 50) == [3, 4, 6, 8, 11, 16, 23, 32, 45]


def test_a_size_is_measured_in_time_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    scaling.child("torch", scaling.QUICK, gpu=False)
    found = json.loads(capsys.readouterr().out)
    s = scaling.QUICK
    assert found["n"] == s.examples * s.outputs
    assert found["P"] == s.inputs * s.width + (s.depth - 1) * s.width**2 + s.width * s.outputs
    assert found["trace"]["seconds"] > 0
    assert found["summary"]["bytes"] >= 0


def test_slopes_are_those_of_power_laws() -> None:
    rows = [{"at": x, "trace": {"seconds": 3 * x**1.5, "bytes": 0}} for x in (1, 10, 100, 1000)]
    assert scaling.slope(rows, "trace", "seconds") == pytest.approx(1.5)
    assert scaling.slope(rows, "trace", "bytes") is None
    assert scaling.slope(rows, "summary", "seconds") is None


@pytest.mark.slow
def test_starting_brings_no_heavy_library_along() -> None:
    import_row, *first = startup.measure(1, ["torch"])
    assert import_row["brought"] == []
    assert [r["what"] for r in first] == [
        "first trace, torch",
        "first summary, torch",
        "first Hutch++ of a matrix, torch",
        "first norm of a matrix, torch",
        "first trace of a matrix to 1 %, torch",
    ]


def test_a_benchmark_that_does_not_exist_is_named() -> None:
    out = subprocess.run([sys.executable, BENCHMARKS / "run.py", "pases"], capture_output=True, text=True)
    assert out.returncode
    assert "no benchmark pases" in out.stderr


def test_every_benchmark_of_the_driver_is_there(tmp_path: Path) -> None:
    for name in (*run.PERFORMANCE, *run.STATISTICS):
        assert (BENCHMARKS / f"{name}.py").exists()
    assert run.command("passes", True, True, tmp_path)[1:] == [
        str(BENCHMARKS / "passes.py"), "--quick", "--gpu", "--out", str(tmp_path)
    ]  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_nothing_is_run_on_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--gpu"])
    assert run.main() == 0
    assert "no GPU: skipped passes, time_to_accuracy, scaling" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no GPU"):
        timing.on_gpu()


def test_seconds_are_shown_for_people() -> None:
    assert [timing.show(s) for s in (None, 2e-5, 0.0125, 1.5, 300, 3 * 3600)] == [
        "–",
        "20 µs",
        "12.5 ms",
        "1.5 s",
        "5 min",
        "3 h",
    ]
