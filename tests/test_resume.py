"""`trace` goes on from a killed run or from an earlier Estimate, and says why it does what it does."""

from __future__ import annotations

import numpy as np
import operators_zoo as zoo
import pytest
from assertions import Counter, assert_close

import traceest as te

OPERATORS = {
    "psd": lambda: te.aslinearoperator(zoo.spectral("poly", 200), psd=True),
    "unknown": lambda: te.aslinearoperator(zoo.spectral("slowexp", 200)),
    "indefinite": lambda: te.aslinearoperator(zoo.indefinite(200), symmetric=True),
    "blocks": lambda: te.gram(zoo.jacobian(5, 40, 300), n_blocks=5),
    "complex blocks": lambda: te.gram(zoo.jacobian(5, 40, 300) * np.exp(1j * np.arange(300)), n_blocks=5),
    "columns": lambda: te.gram(te.Operator((90, 60), like=np.empty(0), matmat=lambda X: zoo.jacobian(3, 30, 60) @ X)),
}


class Killed(Exception):
    """What ends a run from outside."""


def killed_at(look: int):
    """A callback that ends the run at that look."""
    looks = iter(range(look + 1))

    def callback(_: te.Estimate) -> None:
        if next(looks) == look:
            raise Killed

    return callback


@pytest.mark.parametrize("look", [0, 1])
@pytest.mark.parametrize("name", OPERATORS)
def test_a_killed_run_goes_on_as_if_nothing_had_been(name, look, tmp_path):
    A, path = OPERATORS[name](), tmp_path / "run.npz"
    asked = {"rtol": 1e-6, "max_matvecs": 36, "rng": 5}
    whole = te.trace(A, **asked)
    with pytest.raises(Killed):
        te.trace(A, **asked, checkpoint=path, callback=killed_at(look))
    counter = Counter(A.factor if isinstance(A, te.Gram) else A)
    resumed = te.trace(te.gram(counter) if isinstance(A, te.Gram) else counter, **asked, checkpoint=path)
    assert_close(resumed.value, whole.value, 1e-10)
    assert_close(resumed.stderr, whole.stderr, 1e-6)
    verified = int(whole.n_matvecs > 0), int(whole.n_rmatvecs > 0)  # one product, of the first probe once more
    assert (resumed.n_matvecs, resumed.n_rmatvecs) == (whole.n_matvecs + verified[0], whole.n_rmatvecs + verified[1])
    made = counter.n_matvecs + counter.n_rmatvecs
    assert made < resumed.n_products, "what was paid for was paid for again"


def test_a_finished_run_is_read_back_and_a_tighter_one_goes_on_from_it(tmp_path):
    A, path = OPERATORS["unknown"](), tmp_path / "run.npz"
    done = te.trace(A, rtol=0.2, rng=0, checkpoint=path)
    counter = Counter(A)
    again = te.trace(counter, rtol=0.2, rng=0, checkpoint=path)
    assert counter.n_matvecs == 1, "the first probe, to see whether it is the same operator"
    assert (float(again), again.n_matvecs) == (float(done), done.n_matvecs + 1)
    tighter = te.trace(counter, rtol=0.05, rng=0, checkpoint=path)
    assert tighter.n_matvecs == done.n_matvecs + counter.n_matvecs


def test_a_checkpoint_goes_with_every_backend(backend, tmp_path):
    if backend.jitted:
        pytest.skip("trace() looks at values, so it runs around compiled code and not inside")
    A, path = backend.asarray(zoo.spectral("poly", 60)), tmp_path / "run.npz"
    for psd in (True, False):
        op = te.aslinearoperator(A, psd=psd)
        whole = te.trace(op, rtol=1e-2, max_matvecs=50, rng=1)
        with pytest.raises(Killed):
            te.trace(op, rtol=1e-2, max_matvecs=50, rng=1, checkpoint=path, callback=killed_at(1))
        resumed = te.trace(op, rtol=1e-2, max_matvecs=50, rng=1, checkpoint=path)
        assert_close(backend.host(resumed.value), backend.host(whole.value), 1e-10)
        path.unlink()


def test_probes_of_an_earlier_run_are_not_drawn_again(tmp_path):
    """The interval would be too narrow if they were: the samples would agree because they are the same."""
    A, path = te.aslinearoperator(zoo.spectral("flat", 300)), tmp_path / "run.npz"
    te.trace(A, rtol=1e-9, max_matvecs=20, rng=0, method="hutchinson", checkpoint=path)
    e = te.trace(A, rtol=1e-9, max_matvecs=40, rng=0, method="hutchinson", checkpoint=path)
    assert len(np.unique(np.round(e.samples, 9))) == e.samples.shape[1] == 40


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.npz"
    te.trace(zoo.spectral("flat", 60), rng=0, checkpoint=path)
    with pytest.raises(ValueError, match=r"its shape is \[60, 60\], this one's \[70, 70\]; give checkpoint= another"):
        te.trace(zoo.spectral("flat", 70), rng=0, checkpoint=path)
    with pytest.raises(ValueError, match=r"its method is 'Exchangeable', this one's 'Sampling'"):
        te.trace(zoo.spectral("flat", 60), rng=0, method="hutchinson", checkpoint=path)
    with pytest.raises(ValueError, match=r"its dtype is 'float64'"):
        te.trace(zoo.spectral("flat", 60).astype(np.float32), rng=0, checkpoint=path)
    te.save(te.exact(np.eye(3)), path)
    with pytest.raises(ValueError, match="is not a checkpoint"):
        te.trace(zoo.spectral("flat", 60), rng=0, checkpoint=path)


@pytest.mark.parametrize("name", ["blocks", "columns", "indefinite"])
def test_an_estimate_is_gone_on_from(name, tmp_path):
    A = OPERATORS[name]()
    first = te.trace(A, rtol=1e-9, max_matvecs=12, rng=0, method="hutchinson")
    te.save(first, tmp_path / "first.npz")
    counter = Counter(A.factor if isinstance(A, te.Gram) else A)
    op = te.gram(counter) if isinstance(A, te.Gram) else counter
    start = te.load(tmp_path / "first.npz")
    e = te.trace(op, rtol=1e-9, max_matvecs=30, rng=1, method="hutchinson", start=start)
    more = te.trace(A, rtol=1e-9, max_matvecs=18, rng=1, method="hutchinson")
    merged = first.merge(more)
    assert_close(e.value, merged.value, 1e-12)
    assert_close(e.stderr, merged.stderr, 1e-12)
    assert max(e.n_matvecs, e.n_rmatvecs) == 30 + 1  # the first probe once more
    assert counter.n_matvecs + counter.n_rmatvecs == 18 + 1


def test_an_estimate_without_samples_cannot_be_gone_on_from():
    A = te.aslinearoperator(zoo.spectral("poly", 200), psd=True)
    for start in (te.xnystrace(A, 20, rng=0), te.hutchinson(A, 20, rng=0)):
        with pytest.raises(ValueError, match=r"which this run cannot go on from; only hutchinson, rhutch and fhutch"):
            te.trace(A, rng=1, start=start)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("psd", ["positive semidefinite", "half-width", "the interval is inside the tolerance"]),
        ("unknown", ["not known to be positive semidefinite", "into a sketch"]),
        ("blocks", ["vjps alone", "independent blocks of rows", "rmatvecs: "]),
        ("columns", ["jvps alone", "one side alone"]),
    ],
)
def test_the_decisions_are_told(name, words):
    lines = []
    e = te.trace(OPERATORS[name](), rtol=0.02, rng=0, explain=lines.append)
    told = "\n".join(lines)
    assert all(word in told for word in words), told
    assert f"{float(e):.6g}" in told or e.exact


def test_the_decisions_are_printed(capsys):
    te.trace(np.eye(5), explain=True)
    assert "exactly (at most 16 products)" in capsys.readouterr().out
    te.trace(OPERATORS["psd"](), rtol=1e-12, max_matvecs=15, rng=0, explain=True)
    assert "the budget is spent" in capsys.readouterr().out
    te.trace(np.eye(5))
    assert capsys.readouterr().out == ""
