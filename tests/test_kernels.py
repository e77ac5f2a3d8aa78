"""Norm, effective rank and alignment agree with the dense kernel on every route, and their intervals cover."""

from __future__ import annotations

import numpy as np
import operators_zoo as zoo
import pytest
from assertions import Counter, assert_close, assert_counts, unbiased

import traceest as te
from traceest._array_api import namespace
from traceest.kernels.sketches import Request
from traceest.kernels.sketches.one_sided_sampler import one_sided
from traceest.operators import sketch_gram
from traceest.uncertainty.moments import degrees_of_freedom
from traceest.uncertainty.ustatistics import Invariant, block_sum, pair_mean, squared_mean

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
    assert e.method == "two-sided low-rank"
    assert e.n_matvecs == e.n_rmatvecs == 40 * (1 + (statistic == "alignment"))


def test_the_budgets_kind_chooses_the_side_where_there_are_no_blocks():
    K, V = te.gram(J1), te.probes.rademacher(80, 10, rng=0)
    assert te.frobenius_norm(K, 10, rng=0).method == "U-statistic"
    assert te.frobenius_norm(K, probes=V).method == "U-statistic"
    assert te.frobenius_norm(K, n_matvecs=10, rng=0).method == "two-sided low-rank"
    assert te.frobenius_norm(K, n_matvecs=10, probes=V).method == "two-sided"
    assert te.frobenius_norm(te.gram(J1, n_blocks=4), n_matvecs=10, rng=0).method == "block U-statistic"
    assert te.frobenius_norm(te.gram(one_side(J1, "matmat")), n_matvecs=10, rng=0).method == "U-statistic"


@pytest.mark.parametrize("m", [5, 12])
def test_the_two_sided_norm_is_unbiased_for_any_square_operator(m):
    for A in (zoo.nonsymmetric(40), zoo.complex_general(40), zoo.indefinite(40)):
        unbiased(lambda seed, A=A: float(te.frobenius_norm(A, m, rng=seed)) ** 2, np.linalg.norm(A) ** 2, seeds=300)


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
        value, left_out = backend.call(lambda a, closed=closed: tuple(closed(namespace(a), a))[:2], data)
        assert_close(backend.host(value), naive(data), 1e-12)
        expected = [[naive(data, gone=(b, i)) for i in range(m)] for b in range(B)]
        assert_close(backend.host(left_out), expected, 1e-12)


LAWS = {"gaussian": Invariant.of("gaussian", 9, False), "sphere": Invariant.of("sphere", 9, False)}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("m", [3, 5])
def test_leave_one_out_values_with_the_equal_terms_are_those_of_deleting_one_probe(backend, law, m):
    B = 3
    G1, G2 = symmetric_sketch(B, m), symmetric_sketch(B, m, seed=1)

    def diagonal(G):
        return np.einsum("bibi->bi", G)

    def naive(gone=None):
        H, left = G1 * G2, [[i for i in range(m) if (b, i) != gone] for b in range(B)]
        cross = sum(np.mean(H[b][left[b]][:, c][:, left[c]]) for b in range(B) for c in range(B) if b != c)
        own = 0.0
        for b in range(B):
            T = np.sum(diagonal(G1)[b, left[b]]) * np.sum(diagonal(G2)[b, left[b]])
            own += LAWS[law].product(len(left[b]), np.sum(H[b][left[b]][:, b][:, left[b]]), T)
        return cross + own

    def closed(H, x, y):
        return tuple(pair_mean(namespace(H), H, (x, y), LAWS[law]))[:2]

    value, left_out = backend.call(closed, G1 * G2, diagonal(G1), diagonal(G2))
    assert_close(backend.host(value), naive(), 1e-12)
    assert_close(backend.host(left_out), [[naive((b, i)) for i in range(m)] for b in range(B)], 1e-11)


def test_the_equal_terms_are_the_average_over_all_rotations_of_the_probes():
    G = symmetric_sketch(1, 2)[0, :, 0, :]
    angles = np.arange(8) * np.pi / 8  # a polynomial of degree four in sine and cosine has its mean over these
    turned = [R.T @ G @ R for R in (np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]) for t in angles)]
    average = np.mean([H[0, 1] ** 2 for H in turned])
    assert LAWS["gaussian"].product(2, np.sum(G**2), np.trace(G) ** 2) == pytest.approx(average, rel=1e-12)


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("law", ["gaussian", "sphere"])
@pytest.mark.parametrize("m", [2, 3])
def test_norms_by_all_pairs_are_unbiased(m, law, complex_):
    J = zoo.jacobian(3, 5, 12, complex_=complex_)
    K, true = te.gram(J, n_blocks=3), np.linalg.norm(J @ J.conj().T) ** 2
    unbiased(lambda seed: float(sketch_norm2(K, m, seed, law)), true, seeds=1500)


def sketch_norm2(K, m, seed, law):
    """The estimate of ‖K‖² itself: the norm's is cut off at zero."""
    s = one_sided([K], Request("test", n_probes=m, rng=seed, distribution=law)).sketch()
    return s.product(0, 0).value * s.units[0] ** 2


def test_a_wrong_law_is_caught(monkeypatch):
    monkeypatch.setattr(Invariant, "of", classmethod(lambda cls, *args: Invariant(1.0, 2)))
    with pytest.raises(AssertionError, match="off"):
        test_norms_by_all_pairs_are_unbiased(2, "sphere", False)


def test_all_pairs_tell_more_than_unequal_ones():
    J = zoo.haar(60)[:, :40]
    K, true = te.gram(J, n_blocks=1), 40.0
    errors = {
        law: np.sqrt(np.mean([(sketch_norm2(K, 3, seed, law) - true) ** 2 for seed in range(300)]))
        for law in ("rademacher", "gaussian")
    }
    assert errors["gaussian"] < 0.9 * errors["rademacher"]  # five independent numbers against three


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
    df = degrees_of_freedom(np, (left_out - left_out.mean(axis=1, keepdims=True)) ** 2)
    assert float(e.df) == pytest.approx(np.sum(parts) ** 2 / np.sum(parts**2 / df), rel=1e-8)


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


# -- a low-rank part of several kernels, leaving one and two probes out ---------------------------------


def naive_left_out(Ks, Omega, i, out, normalise):
    """Traces and inner products of all pairs, probes `out` not in the sketch, probe i in the residual."""
    n, units = len(Ks[0]), [np.abs(K @ Omega).max() for K in Ks]
    kept = np.delete(sum(K / u for K, u in zip(Ks, units, strict=True)) @ Omega, out, axis=1)
    Q = np.linalg.qr(kept)[0]
    u = Omega[:, i] - Q @ (Q.T @ Omega[:, i])
    u = u * (np.sqrt(n - Q.shape[1]) / np.linalg.norm(u)) if normalise else u

    def trace(C):
        return np.trace(Q.T @ C @ Q) + u @ C @ u

    return [trace(K) for K in Ks] + [trace(K.T @ L) for K in Ks for L in Ks]


@pytest.mark.parametrize("law", ["sphere", "rademacher"])
@pytest.mark.parametrize("statistic", TRUTH)
def test_the_low_rank_route_is_leaving_one_probe_out_and_its_error_leaving_two(statistic, law):
    Ks = [K1, K2] if statistic == "alignment" else [K1]
    k, c, normalise = 8, len(Ks), law != "rademacher"
    Omega = te.probes.Probes(80, K1, rng=3, distribution=law).take(k)
    one = np.array([naive_left_out(Ks, Omega, i, [i], normalise) for i in range(k)])
    two = np.array([[naive_left_out(Ks, Omega, i, [i, j], normalise) for j in range(k)] for i in range(k)])
    one, two = one.T, np.moveaxis(two, -1, 0)
    mean = one.mean(axis=1)

    def variance(e, pairs):
        off = ~np.eye(k, dtype=bool)
        delta, apart = (e[:, None] - pairs) * off, (pairs - pairs.T) * off
        signed = np.var(e, ddof=1) / k + np.sum(delta * delta.T) / (k * (k - 1))
        return max(signed, np.sum(apart**2) / (4 * k * k * (k - 1)))

    if statistic == "frobenius_norm":
        gradient, value = np.array([0, 0.5 / np.sqrt(mean[1])]), np.sqrt(mean[1])
    elif statistic == "effective_rank":
        t2 = mean[0] ** 2 - variance(one[0], two[0])
        gradient, value = np.array([2 * mean[0] / mean[1], -t2 / mean[1] ** 2]), t2 / mean[1]
    else:
        _, _, f, p, _, g = mean
        value = p / np.sqrt(f * g)
        gradient = np.array([0, 0, -0.5 * value / f, 1 / np.sqrt(f * g), 0, -0.5 * value / g])
    e = getattr(te, statistic)(*Ks, n_matvecs=2 * k, rng=3, distribution=law)
    assert e.method == "two-sided low-rank"
    assert e.n_matvecs == 2 * k * c
    assert float(e) == pytest.approx(value, rel=1e-10)
    # the functions are taken at a k-th of the deviations, where they are linear but for that much
    assert float(e.stderr) == pytest.approx(variance(gradient @ one, np.tensordot(gradient, two, 1)) ** 0.5, rel=0.1)


@pytest.mark.parametrize("statistic", ["frobenius_norm", "effective_rank"])
@pytest.mark.parametrize("spectrum", ["poly", "slowexp", "smallstep"])
def test_low_rank_error_bars_hold_and_are_small(statistic, spectrum):
    eigenvalues = zoo.SPECTRA[spectrum](200)
    column = eigenvalues[:, None]
    A = te.aslinearoperator(lambda X: column * X, like=column, psd=True)
    norm = np.linalg.norm(eigenvalues)
    truth = norm if statistic == "frobenius_norm" else (np.sum(eigenvalues) / norm) ** 2
    errors = {}
    for method in ("two-sided", "hutchinson"):
        runs = [
            getattr(te, statistic)(A, n_matvecs=40, rng=s, method=method, distribution="sphere") for s in range(200)
        ]
        held = [low - 1e-12 <= truth <= high + 1e-12 for low, high in (e.confidence_interval() for e in runs)]
        assert 0.90 <= np.mean(held) <= 1.0
        errors[method] = np.sqrt(np.mean([(float(e) - truth) ** 2 for e in runs]))
        sizes = np.sqrt(np.mean([float(e.stderr) ** 2 for e in runs]))
        assert 0.8 * errors[method] <= sizes <= 2.5 * errors[method]
    assert errors["two-sided"] < 0.9 * errors["hutchinson"]


# -- centred, with targets, apart ------------------------------------------------------------------------


def centring(n):
    return np.eye(n) - np.ones((n, n)) / n


Y = np.random.default_rng(5).standard_normal((80, 3)) + 1
CENTRED = {
    "exact": {"method": "exact"},
    "vjps, blocks": {"n_probes": 3},
    "vjps, one block": {"n_probes": 40},
    "two-sided": {"n_matvecs": 44},
    "two-sided, plain": {"n_matvecs": 44, "method": "hutchinson"},
}


def kernels_for(how):
    if how == "vjps, blocks":
        return te.gram(J1 + 1.0, n_blocks=20), te.gram(J2 + 0.7, n_blocks=20)
    if how == "two-sided" or how == "two-sided, plain":
        return (te.aslinearoperator(J @ J.T, psd=True) for J in (J1 + 1.0, J2 + 0.7))
    return te.gram(J1 + 1.0), te.gram(J2 + 0.7)


def agrees(call, truth, seeds=30):
    """The mean of the runs is the truth to within the spread of one, as is each one's error bar."""
    runs = [call(seed) for seed in range(seeds)]
    values = np.array([float(e) for e in runs])
    if runs[0].exact:
        np.testing.assert_allclose(values, truth, rtol=1e-11)
        return
    spread = np.std(values, ddof=1)
    assert abs(values.mean() - truth) <= spread
    assert spread <= 0.3 * truth
    assert 0.6 * spread <= np.mean([float(e.stderr) for e in runs]) <= 2.5 * spread


@pytest.mark.parametrize("how", CENTRED)
def test_centred_alignment_is_that_of_features_without_their_mean(how):
    H = centring(80)
    A, B = (H @ (J @ J.T) @ H for J in (J1 + 1.0, J2 + 0.7))
    truth = np.sum(A * B) / (np.linalg.norm(A) * np.linalg.norm(B))
    options = dict(CENTRED[how])
    if "n_probes" in options:
        options["n_probes"] += 1  # for the ones
    seeds = 1 if how == "exact" else 30
    agrees(lambda seed: te.centred_alignment(*kernels_for(how), rng=seed, **options), truth, seeds)


def test_a_large_mean_costs_a_centred_alignment_no_accuracy():
    K, L = (te.gram(J + 1e6, n_blocks=20) for J in (J1, J2))
    far = te.centred_alignment(K, L, 4, rng=0)
    near = te.centred_alignment(te.gram(J1, n_blocks=20), te.gram(J2, n_blocks=20), 4, rng=0)
    assert float(far) == pytest.approx(float(near), rel=1e-2)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("how", CENTRED)
def test_target_alignment_is_that_with_the_targets_kernel(how, targets, centred):
    y = Y[:, 0] if targets == 1 else Y
    H = centring(80) if centred else np.eye(80)
    K, T = H @ (J1 + 1.0) @ (J1 + 1.0).T @ H, H @ np.outer(y, y) @ H if targets == 1 else H @ Y @ Y.T @ H
    truth = np.sum(K * T) / (np.linalg.norm(K) * np.linalg.norm(T))
    options = dict(CENTRED[how])
    if "n_probes" in options:
        options["n_probes"] += targets + centred
    kernel = next(iter(kernels_for(how)))
    seeds = 1 if how == "exact" else 30
    agrees(lambda seed: te.target_alignment(kernel, y, rng=seed, centred=centred, **options), truth, seeds)


def test_targets_are_part_of_the_budget():
    K = te.gram(J1, n_blocks=4)
    counted = Counter(te.aslinearoperator(J1, n_blocks=4))
    assert_counts(te.target_alignment(te.gram(counted), Y, 9, rng=0), counted, budget=9)
    with pytest.raises(ValueError, match="n_probes = 4 is below the method's minimum of 5"):
        te.target_alignment(K, Y, 4)


def test_targets_may_have_the_states_shape():
    K = te.gram(J1, n_blocks=20)
    flat = te.target_alignment(K, Y[:, 0], 4, rng=0)
    shaped = te.target_alignment(K, Y[:, 0].reshape(20, 2, 2), 4, rng=0)
    assert float(flat) == float(shaped)
    with pytest.raises(ValueError, match=r"y must have shape \(80,\)"):
        te.target_alignment(K, Y[:-1], 4)


@pytest.mark.parametrize("how", CENTRED)
def test_relative_distance_is_that_of_the_dense_kernels(how):
    A, B = (J @ J.T for J in (J1 + 1.0, J2 + 0.7))
    truth, seeds = np.linalg.norm(A - B) / np.linalg.norm(B), 1 if how == "exact" else 30
    agrees(lambda seed: te.relative_distance(*kernels_for(how), rng=seed, **CENTRED[how]), truth, seeds)


def test_a_small_distance_is_told_as_well_as_a_large_one():
    K, L = te.gram(J1, n_blocks=20), te.gram(J1 + 1e-7 * J2, n_blocks=20)
    truth = np.linalg.norm(J1 @ J2.T + J2 @ J1.T) * 1e-7 / np.linalg.norm(K1)
    for options in ({"n_probes": 3}, {"n_matvecs": 30, "method": "two-sided"}):
        assert float(te.relative_distance(L, K, rng=0, **options)) == pytest.approx(truth, rel=0.2)


# -- to a tolerance ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", TRUTH)
@pytest.mark.parametrize("blocks", [12, 1])
def test_a_tolerance_is_kept(statistic, blocks):
    A, B = BIG1 @ BIG1.T, BIG2 @ BIG2.T
    norm = np.linalg.norm(A)
    truth = {
        "frobenius_norm": norm,
        "effective_rank": np.trace(A) ** 2 / norm**2,
        "alignment": np.sum(A * B) / (norm * np.linalg.norm(B)),
    }[statistic]
    kernels = [te.gram(J, n_blocks=blocks) for J in ((BIG1, BIG2) if statistic == "alignment" else (BIG1,))]
    rtol = 0.25 if statistic == "effective_rank" else 0.1
    runs = [getattr(te, statistic)(*kernels, rtol=rtol, rng=seed) for seed in range(60)]
    assert all(e.converged for e in runs)
    assert np.mean([abs(float(e) / truth - 1) <= rtol for e in runs]) >= 0.95
    assert not all(e.exact for e in runs)


@pytest.mark.parametrize("statistic", ["frobenius_norm", "effective_rank"])
def test_a_tolerance_takes_the_low_rank_route_and_few_products_where_the_spectrum_falls(statistic):
    eigenvalues = zoo.SPECTRA["poly"](500)
    column, norm = eigenvalues[:, None], np.linalg.norm(eigenvalues)
    truth = norm if statistic == "frobenius_norm" else (np.sum(eigenvalues) / norm) ** 2
    A = te.aslinearoperator(lambda X: column * X, like=column, psd=True)
    runs = [getattr(te, statistic)(A, rtol=0.01, rng=seed) for seed in range(40)]
    assert all(e.converged and e.method == "two-sided low-rank" for e in runs)
    assert np.mean([abs(float(e) / truth - 1) <= 0.01 for e in runs]) >= 0.95
    assert np.median([e.n_matvecs for e in runs]) <= 100
    K = te.gram(np.sqrt(column) * zoo.haar(500))
    assert getattr(te, statistic)(K, rtol=0.01, rng=0).method == "two-sided low-rank"


@pytest.mark.parametrize("statistic", ["frobenius_norm", "effective_rank"])
def test_a_tolerance_takes_the_side_with_fewer_columns(backend, statistic):
    """P jvps at most, not n vjps; what is counted is what J has seen."""
    J = np.linspace(1.0, 2.0, 600)[:, None] ** np.linspace(0.0, 3.0, 30) * zoo.jacobian(600, 1, 30)
    norm = np.linalg.norm(J.T @ J)
    truth = norm if statistic == "frobenius_norm" else np.trace(J.T @ J) ** 2 / norm**2
    counted = Counter(te.aslinearoperator(backend.asarray(J)))
    e = getattr(te, statistic)(te.gram(counted), rtol=1e-4, rng=0)
    assert float(e) == pytest.approx(truth, rel=1e-4)
    assert e.exact
    assert e.converged
    assert e.n_matvecs < 100
    assert_counts(e, counted)
    wide = Counter(te.aslinearoperator(backend.asarray(J.T)))
    assert float(getattr(te, statistic)(te.gram(wide), rtol=1e-4, rng=0)) == pytest.approx(truth, rel=1e-4)


@pytest.mark.parametrize("statistic", ["frobenius_norm", "effective_rank"])
def test_few_columns_keep_the_budget_and_the_tolerance(statistic):
    J = zoo.haar(900)[:, :300] * np.sqrt(zoo.SPECTRA["poly"](300))
    norm = np.linalg.norm(zoo.SPECTRA["poly"](300))
    truth = norm if statistic == "frobenius_norm" else np.sum(zoo.SPECTRA["poly"](300)) ** 2 / norm**2
    counters = [Counter(te.aslinearoperator(J)) for _ in range(40)]
    runs = [getattr(te, statistic)(te.gram(c), rtol=0.02, rng=seed) for seed, c in enumerate(counters)]
    for e, counted in zip(runs, counters, strict=True):
        assert_counts(e, counted)
    assert all(e.converged and e.method == "two-sided low-rank" for e in runs)
    assert np.mean([abs(float(e) / truth - 1) <= 0.02 for e in runs]) >= 0.95
    counted = Counter(te.aslinearoperator(J))
    e = getattr(te, statistic)(te.gram(counted), max_matvecs=40, rtol=1e-9, rng=0)
    assert e.converged is False
    assert_counts(e, counted, budget=40)


def test_a_tolerance_out_of_reach_says_so_and_keeps_the_budget():
    counted = Counter(te.aslinearoperator(BIG1, n_blocks=4))
    e = te.effective_rank(te.gram(counted), rtol=1e-4, max_matvecs=11, rng=0)
    assert e.converged is False
    assert_counts(e, counted, budget=11)
    assert te.effective_rank(te.gram(BIG1, n_blocks=4), rtol=1e-4, rng=0).exact
    with pytest.raises(ValueError, match="asks for the exact value"):
        te.effective_rank(te.gram(BIG1), rtol=0)
    with pytest.raises(TypeError, match="give rng= for probes="):
        te.effective_rank(te.gram(BIG1), rtol=0.1, probes=BIG1)


@pytest.mark.parametrize("of", [te.alignment, te.centred_alignment])
def test_three_probes_of_one_block_do_not_tell_how_far_off_an_alignment_is(of):
    """What is left without one is a single pair, whose cosine is ±1: of no spread, so that no interval would hold."""
    rng = np.random.default_rng(0)
    J = rng.standard_normal((60, 40)) + 1
    K, L = te.gram(J), te.gram(J + rng.standard_normal((60, 40)))
    m = 3 if of is te.alignment else 4  # one goes into centring
    truth = float(of(K, L, method="exact"))
    for seed in range(20):
        e = of(K, L, m, rng=seed, method="one-sided")
        assert np.isnan(e.stderr)
        assert e.confidence_interval() == (0.0, 1.0)
    found = [of(K, L, m + 3, rng=seed, method="one-sided").confidence_interval() for seed in range(300)]
    assert np.mean([low <= truth <= high for low, high in found]) > 0.88
    blocks = [te.gram(x, n_blocks=3) for x in (J, J[::-1])]
    assert np.isfinite(of(*blocks, m, rng=0).stderr)
