"""What is saved comes back, and goes on as if it had never stopped."""

from __future__ import annotations

from typing import Any

import numpy as np
import operators_zoo as zoo
import pytest

import traceest as te

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
