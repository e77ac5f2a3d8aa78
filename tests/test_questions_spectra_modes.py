"""The questions about spectra and AD modes run, and their pages say what their data say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from assertions import Counter

import traceest as te
from traceest.kernels import adaptive
from traceest_adapters.demo.data import load
from traceest_adapters.torch import ntk

REPRODUCTION = Path(__file__).parents[1] / "docs" / "reproduction"
SCRIPTS = {"spectra": "kernel_spectra", "ad_modes": "ad_modes"}
FIGURES = {"spectra": ("spectra", "ranks", "hutchpp"), "ad_modes": ("ad_costs", "front_door")}
pytestmark = pytest.mark.skipif(not REPRODUCTION.exists(), reason="the questions are not in an installed package")


def run(name: str, *arguments: str) -> str:
    """What the script prints; by itself, for its neighbours are named as those of the benchmarks are."""
    pytest.importorskip("matplotlib", reason="figures are drawn with it")
    pytest.importorskip("sklearn", reason="the digits are from it")
    root = str(REPRODUCTION.parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(REPRODUCTION / "questions" / f"{SCRIPTS[name]}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_a_question_runs_quickly_and_writes_what_it_says(name, tmp_path):
    printed = run(name, "--quick", "--out", str(tmp_path))
    assert "**" in printed
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["revision"].startswith("traceest")
    for figure in FIGURES[name]:
        assert (tmp_path / f"{figure}.png").stat().st_size > 10_000
        assert (tmp_path / f"{figure}.svg").stat().st_size > 10_000
    CHECKS[name](found)


@pytest.mark.parametrize("name", FIGURES)
def test_the_data_hold_what_a_run_has_to(name):
    CHECKS[name](json.loads((REPRODUCTION / "data" / f"{name}.json").read_text()))


def check_spectra(found):
    exact = {(r["model"], r["when"]): r for r in found["dense"]}
    for r in found["ranks"]:
        true = exact[r["model"], r["when"]]
        if (r["n"], r["P"]) == (true["n"], true["P"]):
            for key in ("effective_rank", "entropy_rank"):
                value, low, high = r[key]
                assert low <= value <= high
                assert abs(value / true[key] - 1) < 0.25
    for r in found["dense"]:
        i, share = np.array(r["eigenvalues"]).T
        assert np.all(np.diff(i) > 0)
        assert np.all(np.diff(share) <= 0)
        assert r["block RHutch"] < r["RHutch"]
        assert r["rank_50"] <= r["rank_90"] <= r["rank_99"] <= min(r["n"], r["P"])


def check_modes(found):
    assert {r["framework"] for r in found["rows"]} == {"PyTorch", "JAX"}
    for r in found["rows"]:
        assert r["ratio"] == pytest.approx(r["P"] / r["n"])
        assert all(0 < low <= middle <= high for middle, low, high in r["seconds"].values())
        for what in ("trace", "rank"):
            answers = r.get(what, {})
            assert all(e["converged"] for e in answers.values())
            values = np.array([e["value"] for e in answers.values()])
            assert np.all(np.abs(values / values.mean() - 1) < 0.1) if len(values) else r["framework"] == "JAX"


CHECKS = {"spectra": check_spectra, "ad_modes": check_modes}


@pytest.mark.parametrize("name", FIGURES)
def test_a_page_says_what_the_data_say(name, tmp_path):
    shutil.copy(REPRODUCTION / "data" / f"{name}.json", tmp_path)
    printed = run(name, "--redraw", "--out", str(tmp_path))
    page = (REPRODUCTION / f"{name}.md").read_text()
    parts = re.findall(r"<!-- (\w+) -->\n(.*?)<!-- /\1 -->", page, re.S)
    assert len(parts) >= 3
    for marker, content in parts:
        assert content.strip(), marker
        assert content.strip() in printed, marker
    for figure in FIGURES[name]:
        assert f"figures/{figure}.svg" in page
        for ending in ("png", "svg"):
            assert (REPRODUCTION / "figures" / f"{figure}.{ending}").exists()


@pytest.mark.parametrize("seed", range(3))
def test_kernels_of_dead_units_have_a_spectrum_in_single_precision(seed):
    """Rows of zeros, and eigenvalues that fall out of range: LAPACK in single precision gave up on some of these."""
    pytest.importorskip("sklearn", reason="the digits are from it")
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32), torch.nn.ReLU()]
    x = torch.from_numpy(load(seed).test_images[:32]).flatten(1)
    K = ntk(torch.nn.Sequential(*layers), x)
    D = te.to_dense(K).double()
    assert bool((D.diagonal() == 0).any())
    p = torch.linalg.eigvalsh(D).clamp(min=0) / D.trace()
    entropy = torch.exp(-torch.sum(torch.xlogy(p, p)))
    e = te.entropy_rank(K, 64)
    assert e.value.dtype == torch.float32
    assert float(e) == pytest.approx(float(entropy), rel=1e-4)
    assert float(te.eigenvalues(K, 1, method="exact").values[0] / D.trace()) == pytest.approx(float(p[-1]), rel=1e-5)


def test_a_tolerance_on_the_side_with_more_columns_is_caught(monkeypatch):
    """That n products are on the table where P would do."""
    J = np.random.default_rng(0).standard_normal((600, 30))
    few, many = Counter(te.aslinearoperator(J)), Counter(te.aslinearoperator(J))
    te.effective_rank(te.gram(few), rtol=1e-6, rng=0)
    monkeypatch.setattr(adaptive, "by_columns", lambda Ks, request: Ks)
    te.effective_rank(te.gram(many), rtol=1e-6, rng=0)
    assert few.n_rmatvecs < 0.1 * many.n_rmatvecs
