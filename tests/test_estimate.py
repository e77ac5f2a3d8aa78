"""An Estimate knows its error, its bounds, its cost, and how to be joined with others."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import operators_zoo as zoo
import pytest
import scipy.stats
import torch
from assertions import assert_close

import traceest as te
from traceest.uncertainty.estimate import from_samples

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


NAMED = {
    "trace": lambda seed: te.trace(A, method="hutchinson", rtol=1e-9, max_matvecs=8, rng=seed),
    "hutchinson": lambda seed: te.hutchinson(A, 8, rng=seed),
    "hutchpp": lambda seed: te.hutchpp(A, 9, rng=seed),
    "xtrace": lambda seed: te.xtrace(A, 8, rng=seed),
    "xnystrace": lambda seed: te.xnystrace(A, 8, rng=seed),
    "nystrompp": lambda seed: te.nystrompp(A, 8, rng=seed),
    "na_hutchpp": lambda seed: te.na_hutchpp(A, 9, rng=seed),
    "rhutch": lambda seed: te.rhutch(A, 8, rng=seed),
    "fhutch": lambda seed: te.fhutch(A, 8, rng=seed),
    "rhutch, signs in sets": lambda seed: te.rhutch(A, 8, rng=seed, distribution="hadamard"),
    "frobenius_norm": lambda seed: te.frobenius_norm(A, n_matvecs=8, rng=seed),
    "effective_rank": lambda seed: te.effective_rank(A, n_matvecs=8, rng=seed),
    "alignment": lambda seed: te.alignment(A, A + np.eye(60), n_matvecs=8, rng=seed),
    "diagonal": lambda seed: te.diagonal(A, 8, "hutchinson", rng=seed),
    "diagonal, deflated": lambda seed: te.diagonal(te.aslinearoperator(A, symmetric=True), 8, "xdiag", rng=seed),
    "trace_of_polynomial": lambda seed: te.trace_of_polynomial(A, [1.0, 0.0, 1.0], 16, rng=seed),
    "norm of a summary": lambda seed: te.summary(A, n_matvecs=8, rng=seed).frobenius_norm,
}
OF_TRACE = ("trace", "hutchinson", "hutchpp", "xtrace", "xnystrace", "nystrompp", "na_hutchpp", "rhutch", "fhutch")


@pytest.mark.parametrize("name", NAMED)
def test_the_same_probes_do_not_merge_twice(name):
    e = NAMED[name](0)
    for other in (e, NAMED[name](0), te.merge([NAMED[name](0), NAMED[name](1)])):
        with pytest.raises(ValueError, match="merge: two of the estimates rest on the same probes"):
            e.merge(other)
    merged = te.merge([e, NAMED[name](1), NAMED[name](2)])
    assert merged.n_products == 3 * e.n_products
    assert (merged.statistic, merged.shape) == (e.statistic, e.shape)
    with pytest.raises(ValueError, match="the same probes"):
        merged.merge(NAMED[name](1))


@pytest.mark.parametrize("name", [name for name in NAMED if name not in OF_TRACE and not name.startswith("rhutch")])
def test_different_statistics_do_not_merge(name):
    statistic = "effective_rank" if name == "frobenius_norm" else "frobenius_norm"
    for other in (te.hutchinson(A, 9, rng=1), te.exact(A), *([] if "norm" in name else [NAMED[statistic](1)])):
        with pytest.raises(ValueError, match=r"of different statistics, .*; merge those of one and the same"):
            NAMED[name](0).merge(other)
        with pytest.raises(ValueError, match="of different statistics"):
            other.merge(NAMED[name](0))


def test_all_traces_merge():
    e = te.merge([NAMED[name](seed) for seed, name in enumerate(OF_TRACE)])
    assert abs(float(e) - np.trace(A)) < 4 * float(e.stderr)


def test_operators_of_other_shapes_do_not_merge():
    with pytest.raises(ValueError, match=r"of operators of shapes \(50, 50\), \(60, 60\)"):
        te.hutchinson(A, 8, rng=0).merge(te.hutchinson(A[:50, :50], 8, rng=1))
    with pytest.raises(ValueError, match="with values of shapes"):
        te.diagonal(A, 8, rng=0).merge(te.diagonal(A[:50, :50], 8, rng=1))
    both = te.rhutch(J, 8, rng=0).merge(te.fhutch(J, 8, rng=1))  # tr JJᴴ = tr JᴴJ
    assert both.merge(te.hutchinson(J @ J.T, 8, rng=2)).merge(te.hutchinson(J.T @ J, 8, rng=3)).n_products == 32


@pytest.mark.parametrize("kind", ["PCG64", "MT19937", "Philox", "torch", "jax", "explicit", "short"])
def test_whatever_probes_are_made_of_they_are_told_apart(kind):
    made = {
        "torch": lambda seed: torch.Generator().manual_seed(seed),
        "jax": lambda seed: jax.random.key(seed),
        "explicit": lambda seed: te.probes.rademacher(80, 5, rng=seed),
        "short": lambda seed: te.probes.rademacher(10, 5, rng=seed),
    }
    make = made.get(kind, lambda seed: np.random.Generator(getattr(np.random, kind)(seed)))
    n = {"explicit": 80, "short": 10}.get(kind, 60)
    like = {"torch": torch.as_tensor, "jax": jnp.asarray}.get(kind, np.asarray)
    operator = like(zoo.spectral("poly", n))

    def run(seed):
        given = {"probes": make(seed)} if n != 60 else {"n_matvecs": 5, "rng": make(seed)}
        return te.hutchinson(operator, **given)

    assert run(0).merge(run(1)).n_matvecs == 10
    if kind == "short":  # of so few signs chance makes the same ones twice
        assert run(0).merge(run(0)).n_matvecs == 10
        return
    with pytest.raises(ValueError, match="the same probes"):
        run(0).merge(run(0))
    if kind not in ("explicit", "jax"):  # a generator moves on
        rng = make(0)
        parts = [te.hutchinson(operator, 5, rng=rng) for _ in range(2)]
        assert parts[0].merge(parts[1]).n_matvecs == 10


def test_what_an_estimate_is_of_does_not_stand_in_the_way_of_transformations():
    """Estimates of runs that differ in their probes alone are alike as pytrees."""
    runs = [te.hutchinson(jnp.asarray(A), 5, rng=seed) for seed in range(3)]
    mean = jax.tree.map(lambda *x: sum(x) / 3, *runs)
    assert float(mean) == pytest.approx(np.mean([float(e) for e in runs]))
    e = jax.jit(lambda A: te.hutchinson(A, 5, rng=0))(jnp.asarray(A))
    assert (e.statistic, e.shape, e.probes) == ("trace", None, ())
    with pytest.raises(ValueError, match="different statistics"):
        e.merge(te.frobenius_norm(jnp.asarray(A), n_matvecs=8, rng=1))


def test_an_estimate_does_not_merge_with_itself_whatever_is_known_of_it():
    e = te.Estimate(np.asarray(2.0), np.asarray(0.5), np.asarray(9.0), n_matvecs=3)
    with pytest.raises(ValueError, match="the same probes"):
        e.merge(e)
    assert e.merge(replace(e, value=np.asarray(2.5))).n_matvecs == 6


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
