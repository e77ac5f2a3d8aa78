"""`Tracker`: values as those of the single calls, changes with small errors that are true, along a path of kernels."""

from __future__ import annotations

import csv

import numpy as np
import operators_zoo as zoo
import pytest
from assertions import Counter, assert_close, assert_unbiased

import traceest as te

B, N_B, P, T = 12, 8, 60, 6
START, DRIFT = zoo.jacobian(B, N_B, P), zoo.jacobian(B, N_B, P, seed=1)
PATH = [START + 0.04 * t * DRIFT for t in range(T)]
STATISTICS = ("trace", "frobenius_norm", "effective_rank")


def truth(t):
    """All statistics of checkpoint t from dense kernels."""
    K, before, first = (PATH[i] @ PATH[i].T for i in (t, max(t - 1, 0), 0))

    def values(K):
        norm = np.linalg.norm(K)
        return {"trace": np.trace(K), "frobenius_norm": norm, "effective_rank": np.trace(K) ** 2 / norm**2}

    found = values(K)
    for other, suffix in ((before, ""), (first, "_from_start")):
        found |= {f"{name}_change{suffix}": found[name] - values(other)[name] for name in STATISTICS}
    for other, to in ((before, "previous"), (first, "start")):
        found[f"alignment_to_{to}"] = np.sum(K * other) / (np.linalg.norm(K) * np.linalg.norm(other))
        found[f"distance_to_{to}"] = np.linalg.norm(K - other) / np.linalg.norm(other)
    return found


TRUTH = [truth(t) for t in range(T)]
KERNELS = {
    "blocks": lambda J: te.gram(J, n_blocks=B),
    "one block": te.gram,
    "products": lambda J: te.aslinearoperator(J @ J.T, psd=True),
}
OPTIONS = {
    "blocks": {"n_probes": 4},
    "blocks, fresh": {"n_probes": 4, "n_fresh": 3},
    "one block": {"n_probes": 24},
    "one block, deflated": {"n_probes": 24, "n_deflate": 20},
    "products": {"n_probes": 24},
    "products, deflated": {"n_probes": 12, "n_deflate": 20},
    "products, fresh": {"n_probes": 12, "n_fresh": 6},
}


def followed(how, seed=0, path=PATH):
    tracker = te.Tracker(rng=seed, **OPTIONS[how])
    for t, J in enumerate(path):
        tracker.update(KERNELS[how.split(",")[0]](J), step=10 * t)
    return tracker


@pytest.mark.parametrize("how", OPTIONS)
def test_values_changes_and_alignments_are_those_of_the_dense_kernels(how):
    runs = [followed(how, seed) for seed in range(40)]
    for t in range(1, T):
        for name, true in TRUTH[t].items():
            found = [getattr(tracker[t], name) for tracker in runs]
            values, errors = np.array([float(e) for e in found]), np.array([float(e.stderr) for e in found])
            spread = np.std(values, ddof=1)
            assert abs(values.mean() - true) <= max(spread, 1e-3 * abs(true)), name
            assert 0.6 * spread <= np.sqrt(np.mean(errors**2)) <= 3 * spread, name


@pytest.mark.parametrize("how", OPTIONS)
def test_intervals_of_values_and_changes_cover(how):
    runs = [followed(how, seed, PATH[:3]) for seed in range(150)]
    for name in ("trace", "frobenius_norm", "trace_change", "frobenius_norm_change", "effective_rank_change"):
        ends = [getattr(tracker[2], name).confidence_interval() for tracker in runs]
        assert 0.88 <= np.mean([low <= TRUTH[2][name] <= high for low, high in ends]) <= 1.0, name


@pytest.mark.parametrize("how", ["blocks", "one block", "products"])
def test_changes_are_told_many_times_better_than_by_independent_probes(how):
    tracker = followed(how)
    for t in range(1, T):
        for name in ("trace", "frobenius_norm"):
            before, now = getattr(tracker[t - 1], name), getattr(tracker[t], name)
            independent = np.hypot(float(before.stderr), float(now.stderr))
            assert float(getattr(tracker[t], f"{name}_change").stderr) < independent / 3


def test_the_trace_change_is_unbiased():
    kernels = [te.gram(J, n_blocks=B) for J in PATH[:2]]

    def change(seed):
        tracker = te.Tracker(3, rng=seed)
        tracker.update(kernels[0])
        return float(tracker.update(kernels[1]).trace_change)

    assert_unbiased([change(seed) for seed in range(300)], TRUTH[1]["trace_change"])


def test_without_extras_values_are_those_of_the_single_calls():
    tracker = followed("blocks")
    for t, J in enumerate(PATH):
        for name in ("frobenius_norm", "effective_rank"):
            alone = getattr(te, name)(KERNELS["blocks"](J), 4, rng=0)
            assert float(getattr(tracker[t], name)) == pytest.approx(float(alone), rel=1e-12)
            assert float(getattr(tracker[t], name).stderr) == pytest.approx(float(alone.stderr), rel=1e-9)
    between = te.alignment(KERNELS["blocks"](PATH[3]), KERNELS["blocks"](PATH[2]), 4, rng=0)
    assert float(tracker[3].alignment_to_previous) == pytest.approx(float(between), rel=1e-12)


def test_the_first_checkpoint_has_not_changed():
    first = followed("blocks")[0]
    for name, e in first.estimates.items():
        if "change" in name or "distance" in name:
            assert float(e) == pytest.approx(0, abs=1e-7)
        if "alignment" in name:
            assert float(e) == pytest.approx(1, rel=1e-12)


def test_deflation_and_fresh_probes_better_the_values():
    column = zoo.SPECTRA["slowexp"](200)[:, None]
    path = [
        te.aslinearoperator(lambda X, s=s: (s * column) * X, like=column, psd=True) for s in np.linspace(1, 1.2, 12)
    ]
    true = 1.2 * np.sum(column)

    def error(**options):
        def last(seed):
            tracker = te.Tracker(8, rng=seed, distribution="sphere", **options)
            return float([tracker.update(K) for K in path][-1].trace)

        return np.sqrt(np.mean([(last(seed) / true - 1) ** 2 for seed in range(40)]))

    plain = error()
    assert error(n_deflate=20) < 0.3 * plain
    assert error(n_fresh=8) < 0.6 * plain


@pytest.mark.parametrize("how", OPTIONS)
def test_each_checkpoint_costs_what_is_promised(how):
    m, q, fresh = (OPTIONS[how].get(name, 0) for name in ("n_probes", "n_deflate", "n_fresh"))
    kernel = how.split(",")[0]
    tracker = te.Tracker(rng=0, **OPTIONS[how])
    for t, J in enumerate(PATH[:3]):
        if kernel == "products":
            counter = Counter(te.aslinearoperator(J @ J.T, psd=True))
            tracker.update(counter)
            expected = m + q * (1 + (t == 0)) + fresh, 0
        else:
            counter = Counter(te.aslinearoperator(J, n_blocks=B if kernel == "blocks" else None))
            tracker.update(te.gram(counter))
            expected = q * (1 + (t == 0)), m + q * (1 + (t == 0)) + fresh
        assert (counter.n_matvecs, counter.n_rmatvecs) == expected
        now, fresh_cost = tracker[t].frobenius_norm, np.array([fresh, 0] if kernel == "products" else [0, fresh])
        assert (now.n_matvecs, now.n_rmatvecs) == tuple(np.array(expected) - fresh_cost)


def test_as_many_probes_as_the_exact_answer_costs_give_it():
    tracker = te.Tracker(N_B, rng=0)
    for J in PATH[:3]:
        tracker.update(te.gram(J, n_blocks=B))
    for t in range(3):
        for name, true in TRUTH[t].items():
            assert float(getattr(tracker[t], name)) == pytest.approx(true, rel=1e-9, abs=1e-6)
            assert float(getattr(tracker[t], name).stderr) == 0
    assert tracker[2].trace.exact
    assert tracker[2].trace.n_rmatvecs == N_B


@pytest.mark.parametrize("option", ["n_deflate", "n_fresh"])
def test_exact_answers_need_no_bettering(option):
    tracker = te.Tracker(B * N_B, rng=0, **{option: 5})
    for J in PATH[:2]:
        tracker.update(te.aslinearoperator(J @ J.T, psd=True))
    assert tracker[1].trace.exact
    assert float(tracker[1].trace_change) == pytest.approx(TRUTH[1]["trace_change"], rel=1e-9)


def test_a_kernel_that_was_refused_leaves_no_trace():
    tracker = te.Tracker(3, n_deflate=4)
    for _ in range(2):
        with pytest.raises(ValueError, match="batch_axis=None"):
            tracker.update(te.gram(START, n_blocks=B))
    tracker.update(te.gram(START))
    assert tracker[0].frobenius_norm.method == "deflated"


def test_it_runs_on_every_backend(backend):
    def run(*Js):
        tracker = te.Tracker(3, rng=0)
        for J in Js:
            now = tracker.update(te.gram(J, n_blocks=B))
        return tuple(x for e in now.estimates.values() for x in (e.value, e.stderr))

    expected = run(*PATH[:3])
    for value, true in zip(backend.call(run, *PATH[:3]), expected, strict=True):
        assert_close(backend.host(value), true, 1e-8)


def test_it_goes_into_a_table_a_file_and_a_picture(tmp_path):
    tracker = followed("blocks")
    table = tracker.table()
    assert table["step"] == [0, 10, 20, 30, 40, 50]
    assert table["trace_low"][3] <= table["trace"][3] <= table["trace_high"][3]
    tracker.to_csv(tmp_path / "run.csv")
    with open(tmp_path / "run.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["trace"]) for row in rows] == table["trace"]
    assert set(rows[0]) == set(table)
    import matplotlib as mpl

    mpl.use("Agg")
    figure = tracker.plot()
    assert [ax.get_title() for ax in figure.axes] == ["trace", "Frobenius norm", "effective rank", "alignment"]
    with pytest.raises(ValueError, match="needs 4 axes"):
        tracker.plot(figure.axes[:2])
    assert te.Tracker(3).table() == {"step": []}
    assert "trace_change=" in repr(tracker[1])


WRONG = {
    "few": (lambda: te.Tracker(2), ValueError, "below the method's minimum of 3"),
    "one fresh": (lambda: te.Tracker(3, n_fresh=1), ValueError, "at least 2, or 0"),
    "negative": (lambda: te.Tracker(3, n_deflate=-1), ValueError, "n_deflate = -1"),
    "orthogonal": (lambda: te.Tracker(3, distribution="orthogonal"), ValueError, "not independent"),
    "deflated blocks": (
        lambda: te.Tracker(3, n_deflate=4).update(te.gram(START, n_blocks=B)),
        ValueError,
        "batch_axis=None",
    ),
    "other states": (
        lambda: (
            [te.Tracker(3).update(te.gram(J)) for J in (START,)]
            and (t := te.Tracker(3), t.update(te.gram(START)), t.update(te.gram(START[:40])))
        ),
        ValueError,
        "follow one state",
    ),
    "vjps alone": (
        lambda: te.Tracker(3, n_deflate=4).update(
            te.gram(te.Operator(START.shape, like=START, rmatmat=lambda V: START.T @ V))
        ),
        TypeError,
        "needs matmat",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_asked_wrongly_is_named_with_its_cure(wrong):
    call, kind, message = WRONG[wrong]
    with pytest.raises(kind, match=message):
        call()


def test_independent_probes_at_each_checkpoint_are_caught(monkeypatch):
    from traceest.tracking import _sketches

    honest = _sketches.Sketches.follow

    fresh = np.random.default_rng(0)

    def redrawn(self, K, own):
        self.V = te.probes.rademacher(K.shape[0], 4, rng=fresh)
        return honest(self, K, own)

    monkeypatch.setattr(_sketches.Sketches, "follow", redrawn)
    with pytest.raises(AssertionError):
        test_values_changes_and_alignments_are_those_of_the_dense_kernels("blocks")


def test_a_basis_that_depends_on_the_probes_is_caught(monkeypatch):
    from traceest.kernels.sketches import deflated as module
    from traceest.tracking import _sketches

    honest = module.deflated

    def greedy(K, Q, V):
        values, Z, own = honest(K, np.linalg.qr(np.concatenate([K.matmat(V), Q], axis=1))[0], V)
        return values, Z[:, : Q.shape[1]], own

    monkeypatch.setattr(_sketches, "deflated", greedy)
    with pytest.raises(AssertionError):
        test_values_changes_and_alignments_are_those_of_the_dense_kernels("one block, deflated")
