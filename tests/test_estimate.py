"""An Estimate knows its error, its bounds, its cost, and how to be joined with others."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import operators_zoo as zoo
import pytest
import scipy.stats
from assertions import assert_close

import traceest as te
from traceest.estimate import from_samples

A = zoo.spectral("poly", 60)
J = zoo.jacobian(10, 4, 50)


def estimate(value=2.0, stderr=0.5, df=9.0, **fields):
    return te.Estimate(np.asarray(value), np.asarray(stderr), np.asarray(df), **fields)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("df", [1.0, 2.5, 9.0, 1000.0])
def test_the_interval_is_students(confidence, df):
    low, high = estimate(df=df).confidence_interval(confidence)
    expected = scipy.stats.t(df, loc=2.0, scale=0.5).interval(confidence)
    assert (low, high) == pytest.approx(expected, rel=1e-10)


def test_the_stderr_is_that_of_the_samples():
    e = te.hutchinson(A, 9, rng=0)
    assert float(e.stderr) == pytest.approx(np.std(e.samples, ddof=1) / 3, rel=1e-13)
    assert float(e.df) == pytest.approx(8)


def test_blocks_add_their_variances_and_share_degrees_of_freedom():
    e = te.rhutch(te.aslinearoperator(J, n_blocks=10), 3, rng=0)
    variances = np.var(e.samples, axis=1, ddof=1) / 3 * (1 - 3 / 4)  # three of the four that there are
    assert float(e.stderr) == pytest.approx(np.sqrt(np.sum(variances)), rel=1e-13)
    assert float(e.df) == pytest.approx(np.sum(variances) ** 2 / np.sum(variances**2 / 2), rel=1e-12)


def test_the_interval_keeps_to_natural_bounds():
    assert estimate(value=0.5, stderr=1.0, bounds=(0.0, 1.0)).confidence_interval() == (0.0, 1.0)
    assert estimate(value=0.5, stderr=1.0, bounds=(0.0, math.inf)).confidence_interval().low == 0.0


def test_one_sample_tells_no_error_and_the_interval_is_everything():
    e = te.hutchinson(A, 1, rng=0)
    assert math.isnan(float(e.stderr))
    assert e.confidence_interval() == (-math.inf, math.inf)
    assert te.rhutch(J, 1, rng=0).confidence_interval() == (0.0, math.inf)
    assert te.frobenius_norm(te.gram(J), 2, rng=0).confidence_interval() == (0.0, math.inf)
    assert te.effective_rank(te.gram(J), 2, rng=0).confidence_interval() == (1.0, 40.0)
    assert te.alignment(te.gram(J), te.gram(J), 2, rng=0).confidence_interval() == (0.0, 1.0)


def test_a_psd_operator_has_no_negative_trace():
    psd = te.aslinearoperator(A, psd=True)
    for e in (te.hutchinson(psd, 4, rng=0), te.hutchpp(psd, 6, rng=0), te.trace(psd, rng=0), te.exact(psd)):
        assert e.bounds[0] == 0.0


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, -0.1, math.nan])
def test_a_confidence_is_a_probability(confidence):
    with pytest.raises(ValueError, match=r"confidence must lie between 0 and 1, got .*0\.95 means 95 %"):
        estimate().confidence_interval(confidence)


def test_batched_values_have_batched_intervals():
    e = te.Estimate(np.asarray([1.0, 2.0]), np.asarray([0.0, math.nan]), np.asarray([3.0, math.nan]))
    low, high = e.confidence_interval()
    np.testing.assert_array_equal(low, [1.0, -np.inf])
    np.testing.assert_array_equal(high, [1.0, np.inf])


RUNS = {
    "hutchinson": lambda V: te.hutchinson(A, probes=V),
    "rhutch": lambda V: te.rhutch(A, probes=V),
    "rhutch per block": lambda V: te.rhutch(te.aslinearoperator(A, n_blocks=6), probes=V),
    "fhutch": lambda V: te.fhutch(A, probes=V),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("cut", [[3], [1], [2, 5], [1, 2, 3, 4]])
def test_merging_gives_what_one_run_with_all_probes_gives(name, cut):
    V = te.probes.rademacher(60, 9, rng=0)
    whole, parts = RUNS[name](V), [RUNS[name](part) for part in np.split(V, cut, axis=1)]
    merged = parts[0].merge(*parts[1:])
    for field in ("value", "stderr", "df", "samples"):
        assert_close(getattr(merged, field), getattr(whole, field), 1e-13)
    for field in ("n_matvecs", "n_rmatvecs", "method", "bounds"):
        assert getattr(merged, field) == getattr(whole, field)


def test_one_stream_continued_is_one_run():
    rng = np.random.default_rng(7)
    parts = [te.hutchinson(A, k, rng=rng, distribution="gaussian") for k in (3, 5)]
    whole = te.hutchinson(A, 8, rng=7, distribution="gaussian")
    assert_close(te.merge(parts).value, whole.value, 1e-13)
    assert_close(te.merge(parts).stderr, whole.stderr, 1e-13)


def test_estimates_without_samples_are_weighed_by_their_cost():
    a, b = te.hutchpp(A, 9, rng=0), te.hutchpp(A, 18, rng=1)
    merged = te.merge([a, b])
    assert float(merged) == pytest.approx(float(a) / 3 + 2 * float(b) / 3)
    assert float(merged.stderr) == pytest.approx(math.hypot(float(a.stderr) / 3, 2 * float(b.stderr) / 3))
    assert min(float(a.df), float(b.df)) <= float(merged.df) <= float(a.df) + float(b.df)
    assert merged.n_matvecs == 27


def test_an_exact_estimate_wins_a_merger():
    e = te.merge([te.hutchinson(A, 4, rng=0), te.exact(A), te.hutchpp(A, 9, rng=0)])
    assert float(e) == pytest.approx(np.trace(A))
    assert float(e.stderr) == 0
    assert e.n_matvecs == 4 + 60 + 9


def test_estimates_of_different_blocks_do_not_merge():
    a = te.rhutch(te.aslinearoperator(J, n_blocks=10), 2, rng=0)
    with pytest.raises(ValueError, match=r"merge: the estimates hold samples of \[1, 10\] blocks"):
        a.merge(te.rhutch(J, 2, rng=1))


def test_nothing_does_not_merge():
    with pytest.raises(ValueError, match="merge: give at least one estimate"):
        te.merge([])


def test_merging_works_on_every_backend(backend):
    def merged(a):
        return te.hutchinson(a, 5, rng=0).merge(te.hutchinson(a, 4, rng=1))

    e, expected = backend.call(merged, A), merged(A)
    assert float(e.value) == pytest.approx(float(expected), rel=1e-12)
    assert float(e.stderr) == pytest.approx(float(expected.stderr), rel=1e-10)


def test_complex_estimates_have_a_real_error_and_no_interval():
    C = zoo.complex_general(40)
    e = te.hutchinson(C, 9, rng=0)
    assert complex(e) == complex(e.value)
    assert e.stderr.dtype == np.float64
    with pytest.raises(TypeError, match="interval is defined for real values only"):
        e.confidence_interval()
    assert e.to_dict()["value"] == [e.value.real, e.value.imag]
    assert e.to_dict()["ci95"] == [None, None]
    assert "±" in repr(e)


def test_it_is_a_number():
    e = estimate()
    assert (float(e), complex(e)) == (2.0, 2.0 + 0j)
    assert replace(e, n_matvecs=3, n_rmatvecs=4).n_products == 7


@pytest.mark.parametrize(
    "e",
    [
        te.hutchinson(A, 1, rng=0),
        te.hutchinson(A, 5, rng=0),
        te.exact(A),
        te.trace(A, rng=0),
        te.hutchinson(zoo.complex_general(9), 3, rng=0),
    ],
    ids=["one sample", "samples", "exact", "trace", "complex"],
)
def test_a_dict_of_it_is_strict_json(e):
    out = e.to_dict()
    assert json.loads(json.dumps(out, allow_nan=False)) == out
    assert out["method"] == e.method
    assert (out["n_matvecs"], out["n_rmatvecs"], out["converged"]) == (e.n_matvecs, e.n_rmatvecs, e.converged)


def test_repr_says_what_is_known():
    assert repr(estimate(method="hutchinson", n_matvecs=4)) == (
        "Estimate(2 ± 0.5, method='hutchinson', n_matvecs=4, n_rmatvecs=0)"
    )
    assert "± unknown" in repr(te.hutchinson(A, 1, rng=0))
    assert "converged=True" in repr(te.trace(A, rng=0))
    assert "value of shape (2,)" in repr(te.Estimate(np.ones(2), np.ones(2), np.ones(2)))


def test_repr_works_inside_a_transformation(backend):
    seen = []
    backend.call(lambda a: (seen.append(repr(te.hutchinson(a, 4, rng=0))), a)[1], A)
    assert "method='hutchinson'" in seen[0]


def test_degrees_of_freedom_are_those_that_the_samples_tell(backend):
    """m − 1, or 3/2 of the effective number of squared deviations where few of them make up the variance."""
    rng = np.random.default_rng(0)
    for x in (rng.standard_normal(40), rng.standard_normal(40) ** 6, np.zeros(5), np.eye(7)[0]):
        d2 = (x - x.mean()) ** 2
        expected = min(len(x) - 1, 1.5 * d2.sum() ** 2 / (d2**2).sum()) if d2.any() else len(x) - 1
        e = from_samples(backend.asarray(x[None, :]), method="hutchinson")
        assert float(e.df) == pytest.approx(expected, rel=1e-12)
    assert from_samples(np.array([[1.0, 2.0]]), method="hutchinson").df == 1


def test_the_interval_holds_for_skewed_samples():
    """Squares of one Gaussian, as of an operator of rank one: with m − 1 degrees it would hold in 91 %."""
    x = np.random.default_rng(1).standard_normal((2000, 30)) ** 2
    intervals = [from_samples(row[None, :], method="rhutch").confidence_interval() for row in x]
    assert np.mean([low <= 1 <= high for low, high in intervals]) >= 0.925
