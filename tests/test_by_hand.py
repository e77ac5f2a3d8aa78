"""Small formulas of error bars and quadrature, worked out by hand: what tests of whole answers forgive."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest

import traceest as te
from traceest.probes import Probes
from traceest.spectrum import truncation
from traceest.spectrum.leading import leading
from traceest.spectrum.plan import plan
from traceest.spectrum.quadrature import quadrature
from traceest.tracking._dynamic import Shifted
from traceest.tracking._sketches import Deflation
from traceest.uncertainty.block_spread import block_spread
from traceest.uncertainty.doubt import Doubt
from traceest.uncertainty.estimate import from_samples
from traceest.uncertainty.gradients import _symmetric_share, mean_square
from traceest.uncertainty.skewed_intervals import (
    LEVELS,
    SCORES,
    Rescaling,
    at_level,
    joined,
    reach,
    relative_spread,
    student,
)
from traceest.uncertainty.ustatistics import block_sum, squared_mean

RNG = np.random.default_rng(0)


def test_a_squared_mean_has_no_square_of_any_sample() -> None:
    x = RNG.standard_normal((3, 4)) + 1
    means = x.mean(axis=1)
    expected = sum(means[b] * means[c] for b, c in permutations(range(3), 2))
    expected += sum(x[b, i] * x[b, j] for b in range(3) for i, j in permutations(range(4), 2)) / 12
    assert float(squared_mean(np, x).value) == pytest.approx(expected)


# -- intervals that are not symmetric --------------------------------------------------------------------------
def test_of_all_statistics_that_make_up_one_the_largest_spread_of_each_block_is_believed() -> None:
    x = RNG.standard_normal((2, 4)) + 1
    one = block_sum(np, x).spreading(np.array([0.1, 0.4]), np.array([1.0, 2.0]))
    other = block_sum(np, x).spreading(np.array([0.3, 0.2]), np.array([3.0, 4.0]))
    for pair in ((one, other), (other, one)):
        found = pair[0].map(lambda a, b: a + b, pair[1]).rescaled
        np.testing.assert_array_equal(found.spread, [0.3, 0.4])
        np.testing.assert_array_equal(found.df, [3.0, 2.0])


def test_the_reach_of_a_mean_is_its_multiple_by_exp_of_t_rho_and_no_more_than_exp_of_eight() -> None:
    spread, df = np.array([0.01]), np.array([5.0])
    t = np.concatenate([[0.0], student(np, df)[:, 0]])
    found = reach(np, np.float64(3.0), Rescaling(lambda f: 3.0 * f, spread, df))
    np.testing.assert_allclose(found, [3 * np.exp(-0.1 * t), 3 * np.exp(0.1 * t)])
    found = reach(np, np.float64(3.0), Rescaling(lambda f: 3.0 * f, 100 * spread, 0.2 * df))
    assert found[1, -1] == pytest.approx(3 * math.exp(8))


def test_a_relative_spread_is_in_units_of_the_squared_mean() -> None:
    np.testing.assert_allclose(relative_spread(np, np.array([2.0, 0.0]), np.array([1.0, 1.0])), [0.25, 0.0])


def test_between_two_levels_the_reach_is_linear_in_the_normal_score() -> None:
    kept = np.stack([-np.array(SCORES), 2 * np.array(SCORES)])
    for confidence in (*LEVELS[1:], 0.3, 0.93, 0.99):
        z = float(te.Estimate(0.0, 1.0, math.inf).half_width(confidence))
        np.testing.assert_allclose(at_level(kept, confidence), [-z, 2 * z], rtol=1e-6)


def test_the_reach_of_one_estimate_is_that_of_their_mean() -> None:
    value, own = np.float64(3.0), np.array([[3.0, 2.0, 1.0], [3.0, 5.0, 9.0]])
    np.testing.assert_allclose(joined(np, [1.0], [value], [own]), own)
    np.testing.assert_allclose(joined(np, [0.6, 0.8], [value, value], [own, own])[:, 1], [4.2 - 1.0, 4.2 + 2.0])


@pytest.mark.parametrize(("dtype", "kappa"), [("float64", 2), ("complex128", 1)])
def test_signs_on_one_eigenvalue_are_half_believed(dtype: str, kappa: int) -> None:
    """Of rank one all signs give the same: their spread is 0, the Gram matrix tells κ/m, of which a fourth is taken."""
    m = 4
    s = np.array([1.0, -1.0, 1.0, 1.0]).astype(dtype)
    G = np.outer(s, s.conj())[None, :, None, :]
    np.testing.assert_allclose(block_spread(np, G, np.ones((1, m))), [kappa / (4 * m)])


def test_the_spread_of_a_block_is_that_of_its_samples_and_of_their_gram_matrix() -> None:
    """By the words of the module's head: tr K² from unequal pairs, and 1/m taken off what the fourth power shows."""
    m, x = 3, RNG.standard_normal((3, 5))
    G, forms = x @ x.T, np.array([[1.0, 1.1, 1.3]])
    shown = forms.var(ddof=1) / m / forms.mean() ** 2
    pairs = np.mean([G[i, j] ** 2 for i, j in permutations(range(m), 2)])
    law = min(1.0, shown / (2 / m * pairs / np.mean(np.diagonal(G)) ** 2))
    concentration = (m * np.sum((G @ G) ** 2) / np.sum(G**2) ** 2 - 1) / (m - 1)
    expected = (shown + (1 + law) / 2 * 2 / m * concentration) / 2
    assert 0 < law < 1
    np.testing.assert_allclose(block_spread(np, G[None, :, None, :], forms), [expected])


def test_how_much_of_an_operator_is_symmetric_is_told_by_different_probes() -> None:
    G, B = RNG.standard_normal((20, 4)), RNG.standard_normal((20, 20)) + 2 * np.eye(20)
    P = G.T @ B @ G
    pairs = list(permutations(range(4), 2))
    expected = sum((P[i, j] + P[j, i]) ** 2 / 4 for i, j in pairs) / sum(P[i, j] ** 2 for i, j in pairs)
    assert float(_symmetric_share(np, G, B @ G)) == pytest.approx(expected)


# -- estimates -------------------------------------------------------------------------------------------------
def test_a_doubt_is_part_of_the_value() -> None:
    assert float(from_samples(np.full((1, 4), 100.0), doubt=Doubt(constant=0.1)).stderr) == pytest.approx(10)
    assert float(from_samples(np.full((1, 4), 100.0)).stderr) == 0


def test_one_seed_is_one_run_whatever_law_is_made_of_it() -> None:
    A = np.eye(40) + 1
    e = te.hutchinson(A, 4, rng=0)
    with pytest.raises(ValueError, match="the same probes"):
        e.merge(te.hutchinson(A, 4, rng=0, distribution="gaussian"))
    assert e.merge(te.hutchinson(A, 4, rng=1, distribution="gaussian")).n_matvecs == 8


# -- what quadrature has not seen ------------------------------------------------------------------------------
def means(M, t: int) -> list[np.float64]:
    return [np.float64(M(d)) for d in truncation.depths(t)]


def test_an_error_that_falls_slowly_is_summed_up_to_the_last_step() -> None:
    t, n = 240, 16 * 240
    found = truncation.rest(np, means(lambda t: 2 - t**-0.25, t), 2.0, 0.0, t, n)
    assert float(found) == pytest.approx(t**-0.25 - n**-0.25, rel=1e-3)


def test_what_grows_with_each_doubling_is_not_known() -> None:
    assert float(truncation.rest(np, means(math.log, 240), 5.0, 1e-3, 240, 4000)) == math.inf
    assert math.isfinite(float(truncation.rest(np, means(math.log, 240), 5.0, 1e6, 240, 4000)))  # no concern
    edge = means(lambda t: t**2.0, 240)
    assert float(truncation.at_edge(np, edge, 1e-3, 240, 4000)) == math.inf
    assert math.isfinite(float(truncation.at_edge(np, means(math.log, 240), 1e-3, 240, 4000)))


def test_a_budget_is_split_into_two_fifths_of_its_root_of_probes() -> None:
    A = te.aslinearoperator(np.eye(1000))
    for n_matvecs, probes in ((25, 2), (100, 4), (400, 8)):
        assert plan(A, n_matvecs, None, None, 0, None, "test")[:2] == (probes, n_matvecs // probes)


def rotated(eigenvalues: np.ndarray, seed: int = 0) -> np.ndarray:
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(eigenvalues),) * 2))[0]
    return Q * eigenvalues @ Q.T


def test_what_is_deflated_is_of_largest_modulus() -> None:
    A = rotated(np.r_[-10.0, np.linspace(0.0, 1.0, 59)])
    X, _ = leading(np, te.aslinearoperator(A), RNG.standard_normal((60, 1)), 10, "test")
    np.testing.assert_allclose(A @ X, -10 * X, atol=1e-6)


def test_what_more_blocks_change_of_the_deflated_part_is_in_the_error() -> None:
    A = rotated(np.linspace(1.0, 2.0, 200) ** 4)
    q = quadrature(te.aslinearoperator(A), 90, caller="test", n_deflate=3, rng=0)
    fine, coarse = q.basis
    apart = abs(sum(sign * np.sum(np.log(x) * w) for sign, (x, w) in ((1, fine), (-1, coarse))))
    alone = q._replace(basis=(fine, fine)).errors(np.log)[1]
    assert apart > 1e-12
    assert q.errors(np.log)[1] == pytest.approx(alone + apart)


def test_an_answer_that_truncation_rules_has_not_converged() -> None:
    assert te.logdet(np.diag(np.logspace(-8, 0, 400)), 24, rng=0).converged is False
    assert te.logdet(np.diag(np.linspace(1.0, 2.0, 400)), 24, rng=0).converged is None


# -- eigenvalues -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(6))
def test_bounds_hold_to_the_last_digit(seed: int) -> None:
    """What has converged is off by rounding, which the bounds know of."""
    exact = np.r_[3.0, 2.0, 1.5, 1e-3 * np.linspace(0, 1, 57)]
    e = te.eigenvalues(rotated(exact, seed), 3, n_matvecs=30, rtol=None, method="krylov", rng=seed)
    assert np.all(np.abs(e.values - exact[:3]) <= e.bounds)
    assert np.all(e.bounds < 1e-11)


def test_the_interval_of_a_norm_is_as_wide_as_was_asked_for() -> None:
    for seed in range(12):
        A = np.random.default_rng(seed).standard_normal((120, 80))
        for x, rtol in ((A, 0.1), (A @ A.T, 0.1), (A, 0.02)):
            e = te.spectral_norm(te.aslinearoperator(x, symmetric=x is not A), rtol=rtol, rng=seed)
            assert e.converged
            assert float(e.half_width()) <= rtol * float(e)


# -- a run of kernels ------------------------------------------------------------------------------------------
def test_a_kernel_that_has_doubled_takes_its_trace_along() -> None:
    """ρ = 1 and P/P₋ = 4: with κ = 1/m the weight is w = ½·2 = 1, and what is added is tr of the difference."""
    K, m = te.aslinearoperator(np.cov(RNG.standard_normal((30, 50))), symmetric=True), 4
    run, same = Shifted(Probes(30, K, rng=0), m), Probes(30, K, rng=0)
    first, V = run.follow(K), same.take(m)
    assert float(first.stderr) == pytest.approx(np.sum(V * K.matmat(V), axis=0).std(ddof=1) / m**0.5)
    second, V = run.follow(2 * K), same.take(m)
    assert float(second.value) == pytest.approx(float(first.value) + np.sum(V * K.matmat(V)) / m)
    assert float(run.kappa) == pytest.approx(1 / (2 * m))


def test_a_basis_goes_a_step_further_at_each_checkpoint() -> None:
    eigenvalues = np.r_[1.5, np.linspace(0.0, 1.0, 59)]
    A = rotated(eigenvalues)
    K, V = te.aslinearoperator(A, symmetric=True), RNG.standard_normal((60, 4))
    u = np.linalg.eigh(A)[1][:, -1]
    basis, left = Deflation(Probes(60, K, rng=0), 2), []
    for _ in range(12):
        basis.sketch(K, V)
        left.append(np.linalg.norm(u - basis.Q @ (basis.Q.T @ u)))
    assert left[-1] < 0.05 * left[0]


def test_a_kernel_with_other_blocks_is_not_gone_on_with() -> None:
    J, tracker = RNG.standard_normal((24, 9)), te.Tracker(3)
    tracker.update(te.gram(J, n_blocks=8))
    with pytest.raises(ValueError, match="4 blocks"):
        tracker.update(te.gram(J, n_blocks=4))


def test_after_the_last_probe_of_a_set_comes_another_set() -> None:
    new = lambda rng: Probes(16, np.empty(0), rng=rng, distribution="hadamard", n_blocks=2)  # noqa: E731
    first, other = new(0), new(1)
    every = np.concatenate(list(first.chunks(8, 3)), axis=1)
    other.restore(first.state())
    following = next(other.chunks(8, 8))
    assert not any(np.array_equal(abs(every.T @ v), abs(every.T @ w)) for v in following.T for w in every.T[:1])
    assert not np.array_equal(following, every)


def test_degrees_of_freedom_of_squared_gradients_are_those_that_they_show_and_the_probes_at_least() -> None:
    for squares, df in (([1.0, 2.0, 3.0, 2.0], 4 * 2 * 2.0**2 / (2 / 3)), ([0.0, 0.0, 0.0, 1.0], 4), ([2.0, 2.0], 2)):
        variance, found = mean_square(np, np.array(squares))
        assert (float(variance), float(found)) == (pytest.approx(np.mean(squares)), pytest.approx(df))
