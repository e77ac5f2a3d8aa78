"""Norm, effective rank and alignment agree with the dense kernel on every route, and their intervals cover."""

from __future__ import annotations

import numpy as np
import operators_zoo as zoo
import pytest
from assertions import assert_close, unbiased

import traceest as te
from traceest._array_api import namespace
from traceest.estimators.ustatistics import block_sum, pair_mean, squared_mean
from traceest.operators import sketch_gram

J1, J2 = zoo.jacobian(20, 4, 60), zoo.jacobian(20, 4, 60) + 0.8 * zoo.jacobian(20, 4, 60, seed=1)
K1, K2 = J1 @ J1.T, J2 @ J2.T
TRUTH = {
    "frobenius_norm": np.linalg.norm(K1),
    "effective_rank": np.trace(K1) ** 2 / np.linalg.norm(K1) ** 2,
    "alignment": np.sum(K1 * K2) / (np.linalg.norm(K1) * np.linalg.norm(K2)),
}


def one_side(J, side, n_blocks=None):
    """J with one of its sides alone."""
    op = te.aslinearoperator(J, n_blocks=n_blocks)
    abilities = {"block_rmatmat": op.block_rmatmat} if side == "rmatmat" else {}
    return te.Operator(J.shape, like=J, n_blocks=n_blocks, **{side: getattr(op, side)}, **abilities)


ROUTES = {
    "blocks": lambda J: te.gram(J, n_blocks=20),
    "one block": te.gram,
    "vjps alone, blocks": lambda J: te.gram(one_side(J, "rmatmat", 20)),
    "jvps alone": lambda J: te.gram(one_side(J, "matmat")),
    "two-sided": lambda J: te.aslinearoperator(J @ J.T, psd=True),
}


def call(statistic, route, *args, **kwargs):
    kernels = [route(J) for J in ((J1, J2) if statistic == "alignment" else (J1,))]
    return getattr(te, statistic)(*kernels, *args, **kwargs)


def test_the_two_kernels_are_neither_equal_nor_unrelated():
    assert 0.5 < TRUTH["alignment"] < 0.95
    assert 5 < TRUTH["effective_rank"] < 60


@pytest.mark.parametrize("statistic", TRUTH)
@pytest.mark.parametrize("route", ROUTES)
def test_exact_is_exact_on_every_route(statistic, route):
    if (statistic, route) == ("alignment", "jvps alone"):
        e = te.alignment(ROUTES[route](J1), ROUTES["blocks"](J2), method="exact")
    else:
        e = call(statistic, ROUTES[route], method="exact")
    assert float(e) == pytest.approx(TRUTH[statistic], rel=1e-12)
    assert float(e.stderr) == 0
    assert e.exact


@pytest.mark.parametrize("P", [3, 60, 200])
def test_the_exact_statistics_agree_on_the_smaller_side(P):
    J = zoo.jacobian(20, 4, P, complex_=P == 60)
    K = J @ J.conj().T
    for k in (te.gram(J), te.gram(J, n_blocks=20), te.gram(one_side(J, "matmat")), te.gram(one_side(J, "rmatmat"))):
        assert float(te.frobenius_norm(k, method="exact")) == pytest.approx(np.linalg.norm(K), rel=1e-12)
        rank = abs(np.trace(K)) ** 2 / np.linalg.norm(K) ** 2
        assert float(te.effective_rank(k, method="exact")) == pytest.approx(rank, rel=1e-12)
        assert float(te.alignment(k, k, method="exact")) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("statistic", TRUTH)
@pytest.mark.parametrize("route", ROUTES)
def test_estimates_agree_with_the_dense_kernel(statistic, route):
    if (statistic, route) == ("alignment", "jvps alone"):
        pytest.skip("two column spaces have no common probes")
    m = 40 if route in ("one block", "jvps alone", "two-sided") else 3
    runs = [call(statistic, ROUTES[route], m, rng=seed) for seed in range(40)]
    # √ and ratios are biased in second order; the spread of one run bounds what is left of it in forty
    spread = np.std([float(e) for e in runs], ddof=1)
    assert abs(np.mean([float(e) for e in runs]) - TRUTH[statistic]) <= spread
    assert spread <= 0.25 * TRUTH[statistic]
    # the jackknife is conservative with few probes (Efron and Stein 1981), never the other way round
    assert 0.7 * spread <= np.mean([float(e.stderr) for e in runs]) <= 2.3 * spread
    assert not any(e.exact for e in runs)


@pytest.mark.parametrize("statistic", TRUTH)
def test_the_two_sided_route_may_be_forced_on_a_gram_operator(statistic):
    e = call(statistic, te.gram, n_matvecs=40, rng=0, method="two-sided")
    dense = call(statistic, ROUTES["two-sided"], n_matvecs=40, rng=0)
    assert float(e) == pytest.approx(float(dense), rel=1e-10)
    assert e.method == "two-sided"
    assert e.n_matvecs == e.n_rmatvecs


def test_the_two_sided_norm_is_unbiased_for_any_square_operator():
    for A in (zoo.nonsymmetric(40), zoo.complex_general(40), zoo.indefinite(40)):
        unbiased(lambda seed, A=A: float(te.frobenius_norm(A, 5, rng=seed)) ** 2, np.linalg.norm(A) ** 2, seeds=300)


def test_indefinite_operators_may_be_aligned_negatively():
    A = zoo.indefinite(40)
    e = te.alignment(A, -1.0 * te.aslinearoperator(A), 20, rng=0)
    assert float(e) == pytest.approx(-1.0)
    assert e.bounds == (-1.0, 1.0)


def test_kernels_of_unequal_blocks_share_probes():
    mixed = te.alignment(te.gram(J1, n_blocks=20), te.gram(J2), 30, rng=0)
    plain = te.alignment(te.gram(J1), te.gram(J2), 30, rng=0)
    assert float(mixed) == pytest.approx(float(plain), rel=1e-12)
    assert float(mixed.stderr) == pytest.approx(float(plain.stderr), rel=1e-10)


# -- leave-one-out values in closed form -----------------------------------------------------------


def naive_pair_mean(H, gone=None):
    """By its definition, over the probes that are left: block b has lost probe i if gone = (b, i)."""
    B, m = H.shape[:2]
    left = [[i for i in range(m) if (b, i) != gone] for b in range(B)]
    total = 0.0
    for b in range(B):
        for c in range(B):
            pairs = [H[b, i, c, j] for i in left[b] for j in left[c] if b != c or i != j]
            total += np.mean(pairs)
    return total


def naive_block_sum(x, gone=None):
    return sum(np.mean([x[b, i] for i in range(x.shape[1]) if (b, i) != gone]) for b in range(len(x)))


def naive_squared_mean(x, gone=None):
    rows = [[x[b, i] for i in range(x.shape[1]) if (b, i) != gone] for b in range(len(x))]
    return sum(map(np.mean, rows)) ** 2 - sum(np.var(row, ddof=1) / len(row) for row in rows)


def symmetric_sketch(B, m, seed=0):
    G = np.random.default_rng(seed).standard_normal((B * m, B * m))
    return (G + G.T).reshape(B, m, B, m)


@pytest.mark.parametrize("B", [1, 2, 5])
@pytest.mark.parametrize("m", [3, 4, 7])
def test_leave_one_out_values_are_those_of_deleting_one_probe_of_one_block(backend, B, m):
    H, x = symmetric_sketch(B, m), np.random.default_rng(1).standard_normal((B, m)) + 2
    cases = [
        (pair_mean, naive_pair_mean, H),
        (block_sum, naive_block_sum, x),
        (squared_mean, naive_squared_mean, x),
    ]
    for closed, naive, data in cases:
        value, left_out = backend.call(lambda a, closed=closed: tuple(closed(namespace(a), a)), data)
        assert_close(backend.host(value), naive(data), 1e-12)
        expected = [[naive(data, gone=(b, i)) for i in range(m)] for b in range(B)]
        assert_close(backend.host(left_out), expected, 1e-12)


def test_too_few_probes_have_no_leave_one_out_value():
    assert pair_mean(np, symmetric_sketch(3, 2)).left_out is None
    assert squared_mean(np, np.ones((3, 2))).left_out is None
    assert block_sum(np, np.ones((3, 1))).left_out is None
    assert float(pair_mean(np, symmetric_sketch(3, 2)).value) == pytest.approx(naive_pair_mean(symmetric_sketch(3, 2)))


@pytest.mark.parametrize("statistic", TRUTH)
def test_the_stderr_is_the_jackknife_of_rerunning_without_one_probe(statistic):
    m, V = 4, te.probes.rademacher(80, 4, rng=0)
    G1, G2 = (sketch_gram(te.aslinearoperator(J, n_blocks=20), V) for J in (J1, J2))

    def theta(gone=None):
        norm2 = naive_pair_mean(G1**2, gone)
        if statistic == "frobenius_norm":
            return norm2**0.5
        if statistic == "effective_rank":
            return naive_squared_mean(np.einsum("bibi->bi", G1), gone) / norm2
        return naive_pair_mean(G1 * G2, gone) / (norm2 * naive_pair_mean(G2**2, gone)) ** 0.5

    left_out = np.array([[theta((b, i)) for i in range(m)] for b in range(20)])
    parts = (m - 1) / m * np.sum((left_out - left_out.mean(axis=1, keepdims=True)) ** 2, axis=1)
    e = call(statistic, ROUTES["blocks"], probes=V)
    assert float(e) == pytest.approx(theta(), rel=1e-12)
    assert float(e.stderr) == pytest.approx(np.sqrt(np.sum(parts)), rel=1e-9)
    assert float(e.df) == pytest.approx(np.sum(parts) ** 2 / np.sum(parts**2 / (m - 1)), rel=1e-8)


# -- intervals -------------------------------------------------------------------------------------


def coverage(statistic, m, seeds, **kwargs):
    ends = [call(statistic, ROUTES["blocks"], m, rng=s, **kwargs).confidence_interval() for s in range(seeds)]
    return np.mean([low <= TRUTH[statistic] <= high for low, high in ends])


@pytest.mark.parametrize("statistic", TRUTH)
@pytest.mark.parametrize("m", [3])
def test_a_95_percent_interval_covers(statistic, m):
    assert 0.90 <= coverage(statistic, m, seeds=300) <= 1.0


@pytest.mark.parametrize("m", [2, 3, 8])
def test_the_traces_95_percent_interval_covers(m):
    op, truth = te.aslinearoperator(zoo.jacobian(20, 12, 60), n_blocks=20), np.sum(zoo.jacobian(20, 12, 60) ** 2)
    ends = [te.rhutch(op, m, rng=s).confidence_interval() for s in range(300)]
    assert 0.90 <= np.mean([low <= truth <= high for low, high in ends]) <= 0.995


BIG1 = zoo.jacobian(16, 12, 80)
BIG2 = BIG1 + 0.5 * zoo.jacobian(16, 12, 80, seed=2)


@pytest.mark.parametrize("statistic", TRUTH)
@pytest.mark.parametrize("m", [3, 4, 8])
def test_intervals_cover_on_larger_blocks(statistic, m):
    A, B = BIG1 @ BIG1.T, BIG2 @ BIG2.T
    norm = np.linalg.norm(A)
    truth = {
        "frobenius_norm": norm,
        "effective_rank": np.trace(A) ** 2 / norm**2,
        "alignment": np.sum(A * B) / (norm * np.linalg.norm(B)),
    }[statistic]
    kernels = [te.gram(J, n_blocks=16) for J in ((BIG1, BIG2) if statistic == "alignment" else (BIG1,))]
    ends = [getattr(te, statistic)(*kernels, m, rng=s).confidence_interval() for s in range(300)]
    assert 0.90 <= np.mean([low <= truth <= high for low, high in ends]) <= 1.0
    assert np.mean([high - low for low, high in ends]) < truth


def test_intervals_keep_to_natural_bounds():
    for seed in range(30):
        K, L = te.gram(zoo.low_rank(30, 2), n_blocks=3), te.gram(zoo.low_rank(30, 2, seed=1), n_blocks=3)
        low, high = te.effective_rank(K, 3, rng=seed).confidence_interval()
        assert 1.0 <= low <= high <= 30.0
        low, high = te.alignment(K, L, 3, rng=seed).confidence_interval()
        assert 0.0 <= low <= high <= 1.0
        assert te.frobenius_norm(K, 3, rng=seed).confidence_interval().low >= 0.0


def test_a_kernel_is_aligned_with_itself_and_its_multiples_for_certain():
    K, L = te.gram(J1, n_blocks=20), te.gram(3 * J1, n_blocks=20)
    e = te.alignment(K, L, 3, rng=0)
    assert float(e) == pytest.approx(1.0, rel=1e-12)
    assert float(e.stderr) < 1e-12


def test_the_sketchs_own_rank_is_not_what_is_answered():
    K = te.gram(zoo.haar(60)[:, :35], n_blocks=1)
    runs = [float(te.effective_rank(K, 16, rng=seed)) for seed in range(200)]
    assert np.median(runs) == pytest.approx(35, rel=0.15)
