"""The variance of every sampling estimator is the one its docstring promises, and its stderr says so."""

from __future__ import annotations

import numpy as np
import operators_zoo as zoo
import pytest
from assertions import assert_unbiased, assert_variance

import traceest as te
from traceest.operators import sketch_gram
from traceest.uncertainty.ustatistics import pair_mean

N_PROBES = 40_000


def frobenius2(A):
    return float(np.sum(np.abs(A) ** 2))


def diagonal2(A):
    return float(np.sum(np.abs(np.diag(A)) ** 2))


def off_identity2(A):
    """‖A‖² − |tr A|²/n, the part that probes of fixed length see."""
    return frobenius2(A) - abs(np.trace(A)) ** 2 / len(A)


REAL = {
    "gaussian": lambda A: 2 * frobenius2(A),
    "rademacher": lambda A: 2 * (frobenius2(A) - diagonal2(A)),
    "sphere": lambda A: 2 * len(A) / (len(A) + 2) * off_identity2(A),
}
COMPLEX = {
    "gaussian": frobenius2,
    "rademacher": lambda A: frobenius2(A) - diagonal2(A),
    "sphere": lambda A: len(A) / (len(A) + 1) * off_identity2(A),
}


def samples_of(A, distribution, rng=0):
    """Many samples in one call: explicit probes, since a budget of n or more is answered exactly."""
    probes = getattr(te.probes, distribution)(len(A), N_PROBES, rng=rng, like=A)
    return te.hutchinson(A, probes=probes).samples[0]


@pytest.mark.parametrize("distribution", REAL)
@pytest.mark.parametrize("operator", ["slowexp", "flat", "indefinite", "smallstep"])
def test_one_probe_has_the_variance_of_its_law(distribution, operator):
    A = zoo.SQUARE[operator](30)
    assert_variance(samples_of(A, distribution), REAL[distribution](A), within=0.1)


@pytest.mark.parametrize("distribution", COMPLEX)
def test_complex_probes_halve_the_variance(distribution):
    A = zoo.hermitian(30)
    assert_variance(samples_of(A, distribution).real, COMPLEX[distribution](A), within=0.1)


def test_only_the_symmetric_part_of_a_matrix_has_variance():
    A = zoo.nonsymmetric(30)
    assert_variance(samples_of(A, "gaussian"), 2 * frobenius2((A + A.T) / 2), within=0.1)


def test_rademacher_probes_are_exact_on_a_diagonal():
    e = te.hutchinson(np.diag(np.arange(1.0, 31)), 5, rng=0)
    assert (float(e), float(e.stderr)) == (465.0, 0.0)


@pytest.mark.parametrize("k", [1, 4, 9, 11])
def test_orthogonal_probes_shrink_the_spheres_error(k):
    n = 12
    A = zoo.spectral("poly", n)
    runs = [te.hutchinson(A, k, rng=seed, distribution="orthogonal") for seed in range(6000)]
    variance = REAL["sphere"](A) / k * (n - k) / (n - 1)
    assert_variance([float(e) for e in runs], variance, within=0.1)
    if k > 1:
        assert_unbiased([float(e.stderr) ** 2 for e in runs], variance)


def test_as_many_orthogonal_probes_as_dimensions_are_exact():
    A = zoo.indefinite(12)
    V = te.probes.orthogonal(12, 12, rng=0)
    assert float(te.hutchinson(A, probes=V)) == pytest.approx(np.trace(A), rel=1e-13)


@pytest.mark.parametrize("distribution", REAL)
def test_the_squared_stderr_is_an_unbiased_variance(distribution):
    A = zoo.spectral("slowexp", 30)
    runs = [te.hutchinson(A, 4, rng=seed, distribution=distribution) for seed in range(2000)]
    assert_unbiased([float(e.stderr) ** 2 for e in runs], REAL[distribution](A) / 4)


@pytest.mark.parametrize("distribution", REAL)
@pytest.mark.parametrize("n_blocks", [1, 3, 10, 30])
def test_blocks_take_every_cross_example_term_away(n_blocks, distribution):
    J = zoo.jacobian(30, 2, 50)
    K, d = J @ J.T, 60 // n_blocks
    V = getattr(te.probes, distribution)(60, N_PROBES, rng=1, n_blocks=n_blocks)
    e = te.rhutch(te.aslinearoperator(J, n_blocks=n_blocks), probes=V)
    variance = sum(REAL[distribution](K[i : i + d, i : i + d]) for i in range(0, 60, d))
    assert_variance(np.sum(e.samples, axis=0), variance, within=0.1)
    assert N_PROBES * float(e.stderr) ** 2 == pytest.approx(variance, rel=0.1)


def test_every_row_of_samples_estimates_its_own_block():
    J = zoo.jacobian(10, 3, 20)
    V = te.probes.rademacher(30, N_PROBES, rng=2)
    e = te.rhutch(te.aslinearoperator(J, n_blocks=10), probes=V)
    for row, block in zip(e.samples, np.split(J, 10), strict=True):
        assert_unbiased(row, frobenius2(block))


def test_the_column_side_has_the_variance_of_its_own_gram_matrix():
    J = zoo.jacobian(10, 3, 20)
    e = te.fhutch(J, probes=te.probes.rademacher(20, N_PROBES, rng=3))
    assert_variance(e.samples[0], REAL["rademacher"](J.T @ J), within=0.1)


@pytest.mark.parametrize("m", [2, 4, 8])
def test_the_u_statistic_has_the_variance_of_kong_and_valiant(m):
    J = zoo.haar(24)[:, :16] * np.linspace(1.0, 1.5, 16)
    K = J @ J.T
    tr2, tr4 = np.trace(K @ K), np.trace(K @ K @ K @ K)
    rng = np.random.default_rng(m)

    def once():
        G = sketch_gram(te.aslinearoperator(J), rng.standard_normal((24, m)))
        return pair_mean(np, G**2).value

    variance = (8 * (m - 2) * tr4 + 4 * tr2**2 + 12 * tr4) / (m * (m - 1))
    assert_variance([once() for _ in range(10_000)], variance, within=0.15)


def test_more_probes_divide_the_variance():
    A = zoo.spectral("slowexp", 30)
    for m in (2, 8):
        assert_variance(
            [float(te.hutchinson(A, m, rng=seed)) for seed in range(4000)], REAL["rademacher"](A) / m, within=0.1
        )
