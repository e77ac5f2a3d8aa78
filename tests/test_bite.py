"""The tests bite: the very checks used elsewhere fail on estimators that are wrong in known ways."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import operators_zoo as zoo
import pytest
import test_counts
import test_diagonal
import test_exchangeable
import test_kernels
import test_nystrom
import test_unbiased
from assertions import assert_close, assert_unbiased, assert_variance

import traceest as te

HUTCHPP = sys.modules["traceest.estimators.hutchpp"]  # the package's attribute of that name is the function
NYSTROM = sys.modules["traceest.estimators.nystrom"]
GRADIENTS = sys.modules["traceest.uncertainty.gradients"]
LEAVE_OUT = sys.modules["traceest.uncertainty.leave_out"]
DIAGONAL = sys.modules["traceest.estimators.diagonal"]
SKETCH = sys.modules["traceest.kernels.sketches.one_sided"]
TWO_SIDED = sys.modules["traceest.kernels.sketches.two_sided"]


def zero(A, n=None, **kwargs):
    """An estimator that returns zero, and is sure of it."""
    e = te.hutchinson(A, n, **kwargs)
    return replace(e, value=0 * e.value, stderr=0 * e.stderr)


def residual_of(broken):
    """Hutch++ with its residual term changed."""
    return lambda samples, **fields: broken(te.uncertainty.estimate.from_samples(samples, **fields))


@pytest.mark.parametrize("spectrum", zoo.SPECTRA)
def test_a_returned_zero_is_caught(spectrum):
    with pytest.raises(AssertionError, match="off"):
        test_unbiased.check_trace(lambda A, seed: zero(A, 7, rng=seed), zoo.spectral(spectrum, test_unbiased.N))


@pytest.mark.parametrize("name", ["rhutch", "rhutch per block", "fhutch"])
def test_a_squared_norm_that_is_off_by_a_tenth_is_caught(name):
    def broken(J, seed):
        return 1.1 * complex(test_unbiased.ONE_SIDED[name](J, seed))

    with pytest.raises(AssertionError, match="off"):
        test_unbiased.check_squared_norm(broken, zoo.jacobian(12, 5, 40))


@pytest.mark.parametrize("spectrum", ["flat", "smallstep", "bigstep"])
@pytest.mark.parametrize("name", ["hutchpp", "hutchpp, wide sketch"])
def test_a_dropped_residual_is_caught(monkeypatch, spectrum, name):
    monkeypatch.setattr(HUTCHPP, "from_samples", residual_of(lambda e: replace(e, value=0 * e.value)))
    with pytest.raises(AssertionError, match="off"):
        test_unbiased.check_trace(test_unbiased.TWO_SIDED[name], zoo.spectral(spectrum, test_unbiased.N))


def test_a_residual_that_is_not_deflated_is_caught(monkeypatch):
    monkeypatch.setattr(HUTCHPP, "deflate", lambda xp, Q, G: G)
    with pytest.raises(AssertionError, match="off"):
        test_unbiased.check_trace(test_unbiased.TWO_SIDED["hutchpp"], zoo.spectral("poly", test_unbiased.N))


@pytest.mark.parametrize("spectrum", ["flat", "smallstep", "bigstep"])
@pytest.mark.parametrize("name", ["na_hutchpp", "nystrompp"])
def test_a_dropped_residual_of_a_low_rank_part_is_caught(monkeypatch, spectrum, name):
    honest = NYSTROM.LowRankPlus.estimate

    def dropped(self):
        return replace(honest(self), value=np.sum(self.R.conj() * self.L))

    monkeypatch.setattr(NYSTROM.LowRankPlus, "estimate", dropped)
    A = zoo.spectral(spectrum, test_unbiased.N)
    with pytest.raises(AssertionError, match="off"):
        test_unbiased.check_trace(lambda A, seed: getattr(te, name)(A, 12, rng=seed), A)
    with pytest.raises(AssertionError):
        getattr(test_nystrom, f"test_{name}_is_the_textbooks")("poly", "sphere")


@pytest.mark.parametrize("factor", [0.8, 1.3])
def test_error_bars_of_the_wrong_size_from_gradients_are_caught(monkeypatch, factor):
    honest = GRADIENTS.stderr

    def wrong(*args):
        stderr, df = honest(*args)
        return factor * stderr, df

    monkeypatch.setattr(GRADIENTS, "stderr", wrong)
    with pytest.raises(AssertionError):
        test_nystrom.test_intervals_hold_from_few_products("nystrompp", zoo.spectral("fastexp", 100), 30)
    with pytest.raises(AssertionError, match="off"):
        test_nystrom.test_the_squared_stderr_is_an_unbiased_variance("sphere", False)


def test_a_skew_part_that_is_taken_for_error_is_caught(monkeypatch):
    monkeypatch.setattr(GRADIENTS, "_symmetric_share", lambda xp, G, BG: 1.0)
    A = np.random.default_rng(0).standard_normal((100, 100))
    with pytest.raises(AssertionError):
        test_nystrom.test_intervals_hold_from_few_products("na_hutchpp", A, 60)


def test_a_dropped_residual_of_the_diagonal_is_caught(monkeypatch):
    monkeypatch.setattr(DIAGONAL.aa, "vdot", lambda xp, X, Y: 0 * xp.sum(X * Y, axis=0))
    for check in (
        lambda: test_diagonal.test_xdiag_is_the_textbooks("poly"),
        lambda: test_diagonal.test_entries_are_unbiased("xdiag", "indefinite", "rademacher"),
    ):
        with pytest.raises(AssertionError):
            check()


@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_error_bars_of_the_wrong_size_from_leaving_out_are_caught(monkeypatch, factor):
    honest = LEAVE_OUT.LeftOut.mean

    def wrong(self, *args):
        value, stderr, df = honest(self, *args)
        return value, factor * stderr, df

    monkeypatch.setattr(LEAVE_OUT.LeftOut, "mean", wrong)
    with pytest.raises(AssertionError):
        test_diagonal.test_intervals_hold_entry_by_entry("slowexp", "xdiag", 30)
    with pytest.raises(AssertionError):
        test_exchangeable.test_the_error_bars_have_the_size_of_the_errors(te.xtrace, 1.0)


@pytest.mark.parametrize(
    "name", ["hutchinson", "hutchpp", "nystrompp", "na_hutchpp", "frobenius", "trace by hutchinson"]
)
def test_a_doubled_budget_is_caught(monkeypatch, name):
    once = te._validation.budget
    monkeypatch.setattr(te._validation, "budget", lambda *args: 2 * once(*args))
    with pytest.raises(AssertionError, match="of a budget of 11"):
        test_counts.check_budget(test_counts.SQUARE[name], 11)


def test_a_count_that_is_not_what_was_spent_is_caught():
    with pytest.raises(AssertionError, match="reports"):
        test_counts.check_budget(lambda A, m: replace(te.hutchinson(A, m, rng=0), n_matvecs=m - 1), 11)


@pytest.mark.parametrize("factor", [0.5, 10.0])
@pytest.mark.parametrize(("cls", "route"), [(SKETCH.OneSided, "one block"), (TWO_SIDED.LowRank, "two-sided")])
def test_an_error_bar_of_the_wrong_size_is_caught(monkeypatch, factor, cls, route):
    honest = cls.estimate

    def wrong(self, *args, **fields):
        e = honest(self, *args, **fields)
        return replace(e, stderr=factor * e.stderr)

    monkeypatch.setattr(cls, "estimate", wrong)
    with pytest.raises(AssertionError):
        test_kernels.test_estimates_agree_with_the_dense_kernel("frobenius_norm", route)


def test_the_biased_norm_of_the_sketch_is_caught(monkeypatch):
    def biased(xp, H, *law):
        e = test_unbiased.pair_mean(xp, H)
        diagonal = np.sum(np.einsum("bibi->bi", H)) / H.shape[1] ** 2
        return e.map(lambda value: value + diagonal)

    monkeypatch.setattr(SKETCH, "pair_mean", biased)
    with pytest.raises(AssertionError):
        test_kernels.test_estimates_agree_with_the_dense_kernel("frobenius_norm", "one block")


def test_a_variance_that_is_off_by_a_fifth_is_caught():
    x = np.random.default_rng(0).standard_normal(40_000)
    assert_variance(x, 1.0, within=0.1)
    for factor in (0.8, 1.2):
        with pytest.raises(AssertionError, match="variance"):
            assert_variance(x, factor, within=0.1)


def test_the_checks_pass_what_is_right():
    x = np.random.default_rng(0).standard_normal(1000)
    assert_unbiased(x, 0.0)
    assert_unbiased(np.full(10, 3.0), 3.0)
    assert_close([1.0, np.nan], [1.0, np.nan], 1e-15)
    with pytest.raises(AssertionError):
        assert_unbiased(x, 0.2)
    with pytest.raises(AssertionError):
        assert_unbiased(np.full(10, np.nan), 3.0)
    with pytest.raises(AssertionError):
        assert_close([1.0], [1.0 + 1e-9], 1e-12)
