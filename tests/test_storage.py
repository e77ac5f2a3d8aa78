"""What is saved comes back, and goes on as if it had never stopped."""

from __future__ import annotations

from typing import Any

import numpy as np
import operators_zoo as zoo
import pytest
import torch

import traceest as te
from traceest.uncertainty.estimate import PROVENANCE, STATIC

A = zoo.spectral("poly", 30)


@pytest.mark.parametrize("f", [te.hutchinson, te.hutchpp, te.xtrace])
def test_an_estimate_comes_back_as_it_was(backend: Any, f: Any, tmp_path: Any) -> None:
    e = backend.call(lambda A: f(A, 9, rng=0), A)
    te.save(e, tmp_path / "run.npz")
    back = te.load(tmp_path / "run.npz", like=backend.asarray(A))
    for name in ("value", "stderr", "df"):
        np.testing.assert_array_equal(backend.host(getattr(back, name)), backend.host(getattr(e, name)))
    assert (back.n_matvecs, back.method, back.bounds, back.converged) == (e.n_matvecs, e.method, e.bounds, e.converged)
    assert back.confidence_interval() == e.confidence_interval()


def test_a_killed_run_goes_on(backend: Any, tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    te.save(backend.call(lambda A: te.hutchinson(A, 8, rng=rng), A), tmp_path / "run.npz")
    first = te.load(tmp_path / "run.npz", like=backend.asarray(A))
    both = first.merge(backend.call(lambda A: te.hutchinson(A, 12, rng=rng), A))
    whole = te.hutchinson(A, 20, rng=np.random.default_rng(0))
    assert float(both) == pytest.approx(float(whole), rel=1e-13)
    assert float(both.stderr) == pytest.approx(float(whole.stderr), rel=1e-12)
    assert both.n_matvecs == 20


def test_a_foreign_file_is_refused(tmp_path: Any) -> None:
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="holds no Estimate"):
        te.load(tmp_path / "other.npz")


@pytest.mark.parametrize("groups", [None, True])
@pytest.mark.parametrize("count", [1, 2])
def test_a_summary_comes_back_as_it_was(groups: Any, count: int, tmp_path: Any) -> None:
    J = zoo.jacobian(4, 6, 30)
    Ks = [te.gram(te.DenseOperator(J + a, n_blocks=4, parameters={"w": 24, "b": 6})) for a in range(count)]
    s = te.summary(*Ks, n_probes=3, rng=0, groups=groups, target=np.ones(24))
    te.save(s, tmp_path / "summary")
    back = te.load(tmp_path / "summary.npz")
    assert repr(back) == repr(s)
    assert back.to_dict() == s.to_dict()
    assert list(back.groups) == list(s.groups)
    for name, e in s.estimates.items():
        same = getattr(back, name)
        assert (same.statistic, same.shape, same.probes, same.bounds) == (e.statistic, e.shape, e.probes, e.bounds)
        np.testing.assert_array_equal(same.reach, e.reach)
    as_tensors = te.load(tmp_path / "summary.npz", like=torch.zeros(1, dtype=torch.float64))
    assert isinstance(as_tensors.trace.value, torch.Tensor)


def test_bounds_and_what_it_is_of_come_back(tmp_path: Any) -> None:
    """Without its bounds an interval of an alignment would go beyond one."""
    for e in (
        te.alignment(te.gram(A), te.gram(A + 1), 4, rng=0),
        te.effective_rank(te.gram(A), 4, rng=0),
        te.rhutch(A, 3, rng=0),
        te.trace(A, rtol=0.5, method="hutchinson", rng=0),
    ):
        te.save(e, tmp_path / "run.npz")
        back = te.load(tmp_path / "run.npz")
        assert e.bounds[0] in (0.0, 1.0) or e.converged is not None
        for name in (*STATIC, *PROVENANCE):
            assert getattr(back, name) == getattr(e, name), name
        assert back.confidence_interval(0.999) == e.confidence_interval(0.999)
        with pytest.raises(ValueError, match="the same probes"):
            back.merge(e)


@pytest.mark.parametrize("what", [3.0, np.zeros(3), te.eigenvalues(A, 3, rng=0), te.Tracker(3)])
def test_what_cannot_be_saved_is_named(what: Any, tmp_path: Any) -> None:
    with pytest.raises(TypeError, match=f"save: writes an Estimate or a Summary, got {type(what).__name__}"):
        te.save(what, tmp_path / "run.npz")
    assert not list(tmp_path.iterdir())
