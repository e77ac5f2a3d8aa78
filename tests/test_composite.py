"""Sums, multiples, products and polynomials keep what their operands can do, and cost what they say."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import operators_zoo as zoo
import pytest
from assertions import Counter, assert_close, assert_counts, unbiased

import traceest as te
from traceest.operators import block_rmatmat, block_sqnorms, sketch_gram
from traceest.operators.factors import Scaled, SideBySide

POWERS = sys.modules["traceest.estimators.polynomial"]
SAMPLING = sys.modules["traceest.estimators.sampling"]
J1, J2 = zoo.jacobian(12, 5, 40), zoo.jacobian(12, 5, 25, seed=1)
K1, K2 = J1 @ J1.T, J2 @ J2.T
SUM = K1 + 0.3 * K2


def one_side(J, side, n_blocks=None):
    """J with one of its sides alone."""
    op = te.aslinearoperator(J, n_blocks=n_blocks)
    abilities = {"block_rmatmat": op.block_rmatmat} if side == "rmatmat" else {}
    return te.Operator(J.shape, like=J, n_blocks=n_blocks, **{side: getattr(op, side)}, **abilities)


def mixture(j1, j2, n_blocks=12):
    return te.gram(j1, n_blocks=n_blocks) + 0.3 * te.gram(j2, n_blocks=n_blocks)


# -- sums and multiples of Gram operators ----------------------------------------------------------


@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
def test_a_sum_of_kernels_is_the_kernel_of_both_factors_side_by_side(backend, complex_):
    A, B = zoo.jacobian(3, 2, 4, complex_=complex_), zoo.jacobian(3, 2, 5, complex_=complex_)
    J = np.concatenate([A, 0.3**0.5 * B], axis=1)
    V, W = zoo.jacobian(1, 6, 3, 3, complex_=complex_), zoo.jacobian(1, 9, 3, 3, complex_=complex_)

    def products(a, b, v, w):
        K = mixture(a, b, 3)
        J = K.factor
        return (
            *(J.matmat(w), J.rmatmat(v), K.matmat(v), J.gram_matmat(v)),
            *(block_rmatmat(J, v), block_sqnorms(J, v), sketch_gram(J, v)),
        )

    dense, KV = te.aslinearoperator(J, n_blocks=3), J @ (J.conj().T @ V)
    blockwise = block_rmatmat(dense, V), block_sqnorms(dense, V), sketch_gram(dense, V)
    expected = (J @ W, J.conj().T @ V, KV, KV, *blockwise)
    for got, right in zip(backend.call(products, A, B, V, W), expected, strict=True):
        assert_close(backend.host(got), right, 1e-12)


STATISTICS = {
    "trace": (lambda K: te.hutchinson(K, 3, rng=0), np.trace(SUM)),
    "norm": (lambda K: te.frobenius_norm(K, 3, rng=0), np.linalg.norm(SUM)),
    "effective rank": (lambda K: te.effective_rank(K, 3, rng=0), np.trace(SUM) ** 2 / np.linalg.norm(SUM) ** 2),
}


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("only", ["both", "rmatmat"])
def test_statistics_of_a_sum_go_by_blocks_and_vjps_alone(name, only):
    statistic, truth = STATISTICS[name]
    counters = [
        Counter(te.aslinearoperator(J, n_blocks=12) if only == "both" else one_side(J, only, 12)) for J in (J1, J2)
    ]
    e = statistic(te.gram(counters[0]) + 0.3 * te.gram(counters[1]))
    whole = statistic(te.gram(np.concatenate([J1, 0.3**0.5 * J2], axis=1), n_blocks=12))
    assert float(e) == pytest.approx(float(whole), rel=1e-12)
    assert float(e.stderr) == pytest.approx(float(whole.stderr), rel=1e-9)
    assert abs(float(e) - truth) < 5 * float(e.stderr)
    assert e.method == whole.method
    for counter in counters:  # a product with the sum is one with each of its terms
        assert_counts(e, counter, budget=3)


def test_a_sum_on_the_column_side_takes_jvps_alone():
    K = te.gram(one_side(J1, "matmat")) + te.gram(one_side(J2, "matmat"))
    assert not te.can(K.factor, "rmatmat")
    assert float(te.exact(K)) == pytest.approx(np.trace(K1 + K2), rel=1e-12)
    assert te.fhutch(K, 4, rng=0).n_matvecs == 4


def test_kernels_of_unequal_blocks_add_to_one_block():
    K = te.gram(J1, n_blocks=12) + te.gram(J2, n_blocks=6)
    assert K.factor.n_blocks is None
    assert not te.can(K.factor, "block_rmatmat")
    assert te.frobenius_norm(K, 4, rng=0).method == "U-statistic"
    assert_close(te.to_dense(K), K1 + K2, 1e-12)


def test_sums_nest_and_know_what_they_are():
    K = te.gram(J1, n_blocks=12)
    everything = (K + K) / 2 + 0 * K + np.float32(2) * K
    assert isinstance(everything, te.Gram)
    assert everything.factor.n_blocks == 12
    assert_close(te.to_dense(everything), 3 * K1, 1e-12)
    assert K.H is K
    assert_close(te.to_dense(mixture(J1, J2).T), SUM, 1e-12)
    assert repr(K + K).startswith("<Gram 60×60 of <[J₁ J₂] 60×80")


@pytest.mark.parametrize(
    "make", [lambda a, b: a - b, lambda a, b: -1 * a + b, lambda a, b: a + SUM, lambda a, b: 1j.real * a - 2 * b]
)
def test_what_is_no_gram_operator_is_none(make):
    K, L = te.gram(J1), te.gram(J2)
    made = make(K, L)
    assert not isinstance(made, te.Gram)
    assert_close(te.to_dense(made), make(K1, K2), 1e-12)


def test_float32_stays_float32():
    K = te.gram(J1.astype(np.float32), n_blocks=12)
    assert te.hutchinson(np.float64(2) * K + 3 * K, 3, rng=0).value.dtype == np.float32


def test_sums_that_do_not_fit_are_refused():
    K = te.gram(J1)
    with pytest.raises(ValueError, match=r"A \+ B: shapes \(60, 60\) and \(5, 5\) differ"):
        K + te.gram(np.eye(5))
    with pytest.raises(TypeError, match="dtypes float64 and float32 differ"):
        K + te.gram(J2.astype(np.float32))
    with pytest.raises(TypeError, match=r"trace: needs matmat \(forward mode, jvp\)"):
        te.trace(te.gram(one_side(J1, "rmatmat")) - te.gram(one_side(J2, "rmatmat")))


def test_groups_of_parameters_add():
    """Names that both terms have belong together."""
    left = te.DenseOperator(J1, n_blocks=12, parameters={"a.w": 30, "a.b": 10})
    right = te.DenseOperator(J2, n_blocks=12, parameters={"a.w": 5, "c.w": 20})
    found = te.summary(te.gram(left) + 0.3 * te.gram(right), method="exact", groups=1)
    assert float(found.groups["a"].trace) == pytest.approx(np.trace(K1) + 0.3 * np.sum(J2[:, :5] ** 2), rel=1e-12)
    assert float(found.groups["c"].trace) == pytest.approx(0.3 * np.sum(J2[:, 5:] ** 2), rel=1e-12)
    assert float(found.trace) == pytest.approx(np.trace(SUM), rel=1e-12)
    plain = te.gram(left) + te.gram(J2, n_blocks=12)
    assert not te.can(plain.factor, "grouped_gram")


def test_a_lost_cross_term_of_a_sum_is_caught(monkeypatch, backend):
    monkeypatch.setattr(SideBySide, "sketch_gram", lambda self, V: self.parts[0].sketch_gram(V))
    with pytest.raises(AssertionError):
        test_a_sum_of_kernels_is_the_kernel_of_both_factors_side_by_side(backend, False)


def test_a_multiple_that_is_squared_where_it_should_not_be_is_caught(monkeypatch):
    monkeypatch.setattr(Scaled, "_product", lambda self, name, X: self.square * getattr(self.of, name)(X))
    with pytest.raises(AssertionError):
        test_statistics_of_a_sum_go_by_blocks_and_vjps_alone("norm", "both")


# -- inner products --------------------------------------------------------------------------------

L = J1 @ np.diag(np.linspace(0.2, 1.0, 40))
LLT = L @ L.T
TRUTH = np.sum(K1 * LLT)
PRODUCTS = {
    "blocks": (lambda m, rng: te.inner_product(te.gram(J1, n_blocks=12), te.gram(L, n_blocks=12), m, rng=rng), 3),
    "one block": (lambda m, rng: te.inner_product(te.gram(J1), te.gram(L), m, rng=rng), 10),
    "two-sided": (lambda m, rng: te.inner_product(K1, LLT, n_matvecs=m, rng=rng), 6),
    "low-rank": (lambda m, rng: te.inner_product(K1, LLT, n_matvecs=m, rng=rng), 20),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_inner_products_are_unbiased(name):
    estimator, m = PRODUCTS[name]
    unbiased(lambda seed: estimator(m, seed), TRUTH, seeds=200)


@pytest.mark.parametrize("name", ["blocks", "low-rank"])
def test_a_95_percent_interval_of_an_inner_product_covers(name):
    estimator, m = PRODUCTS[name]
    ends = [estimator(m, 1000 + seed).confidence_interval() for seed in range(300)]
    # three probes cannot rule out that one block dominates: the interval reaches further than it has to
    assert 0.93 <= np.mean([low <= TRUTH <= high for low, high in ends]) <= (1.0 if name == "blocks" else 0.99)


def test_inner_products_of_any_operators_take_the_adjoint_of_the_first():
    A, B = zoo.complex_general(30), zoo.complex_general(30, seed=1)
    truth = np.trace(A.conj().T @ B).real
    unbiased(lambda seed: te.inner_product(A, B, n_matvecs=6, rng=seed), truth, seeds=200)
    assert float(te.inner_product(A, B, method="exact")) == pytest.approx(truth, rel=1e-12)
    a = te.aslinearoperator(A)
    assert float(te.inner_product(a.H, B, method="exact")) == pytest.approx(np.trace(A @ B).real, rel=1e-12)


def test_inner_products_agree_between_backends(backend):
    for f in (
        lambda a, b: te.inner_product(te.gram(a, n_blocks=12), te.gram(b, n_blocks=12), 3, rng=0),
        lambda a, b: te.inner_product(te.gram(a), te.gram(b), n_matvecs=12, rng=0),
    ):
        expected, got = f(J1, L), backend.call(f, J1, L)
        assert_close(backend.host(got.value), expected.value, 1e-11)
        assert_close(backend.host(got.stderr), expected.stderr, 1e-9)


def test_inner_products_are_bounded_where_both_are_positive():
    assert te.inner_product(te.gram(J1), te.gram(L), 3, rng=0).bounds == (0.0, np.inf)
    assert te.inner_product(te.gram(J1), LLT, n_matvecs=3, rng=0).bounds == (-np.inf, np.inf)


@pytest.mark.parametrize("only", ["both", "rmatmat"])
def test_the_trace_of_a_product_of_kernels_takes_vjps_alone(only):
    # long blocks: an exact answer would cost 60 vjps with each
    Js = [zoo.jacobian(20, 60, 30), zoo.jacobian(20, 60, 30) + 0.5 * zoo.jacobian(20, 60, 30, seed=1)]
    truth = np.sum((Js[0] @ Js[0].T) * (Js[1] @ Js[1].T))
    counters = [Counter(te.aslinearoperator(J, n_blocks=20) if only == "both" else one_side(J, only, 20)) for J in Js]
    lines = []
    e = te.trace(te.gram(counters[0]) @ te.gram(counters[1]), rtol=0.1, max_matvecs=100, rng=0, explain=lines.append)
    assert e.converged
    assert abs(float(e) / truth - 1) < 0.2
    assert e.method == "block U-statistic"
    assert_counts(e, *counters, budget=50)
    assert e.n_matvecs == 0
    assert "inner product" in lines[0]


def test_a_watched_run_of_a_product_goes_by_products_with_it():
    K = te.gram(J1, n_blocks=12) @ te.gram(L, n_blocks=12)
    e = te.trace(K, rtol=0.2, rng=0, callback=lambda e: False)
    assert e.n_matvecs > 0
    assert abs(float(e) / TRUTH - 1) < 0.4
    assert te.trace(K, rtol=0.2, rng=0, max_matvecs=3).n_matvecs <= 3


# -- powers and polynomials ------------------------------------------------------------------------

N = 40
COEFFICIENTS = [0.5, -1.0, 0.25, 2.0, 0.7]


def evaluated(A, c):
    return sum(x * np.linalg.matrix_power(A, k) for k, x in enumerate(c))


@pytest.mark.parametrize("degree", range(5))
@pytest.mark.parametrize("make", [zoo.indefinite, zoo.nonsymmetric, zoo.complex_general])
def test_a_polynomial_multiplies_as_its_matrix_does(backend, make, degree):
    A, c = make(6), COEFFICIENTS[: degree + 1]
    c = [x * (1 + 0.5j) for x in c] if np.iscomplexobj(A) else c
    forward, reverse = backend.call(lambda a: (te.polynomial(a, c).matmat(a), te.polynomial(a, c).rmatmat(a)), A)
    assert_close(backend.host(forward), evaluated(A, c) @ A, 1e-12)
    assert_close(backend.host(reverse), evaluated(A, c).conj().T @ A, 1e-12)


@pytest.mark.parametrize("p", range(5))
def test_powers(p):
    A = te.aslinearoperator(zoo.indefinite(6), symmetric=True)
    counter = Counter(A)
    P = te.polynomial(counter, [0.0] * p + [1.0])
    assert_close(P.matmat(np.eye(6)), np.linalg.matrix_power(zoo.indefinite(6), p), 1e-12)
    assert counter.n_matvecs == 6 * p
    assert_close(te.to_dense(A**p), np.linalg.matrix_power(zoo.indefinite(6), p), 1e-12)
    assert (A**p).psd == (p % 2 == 0)
    assert (A**p).symmetric
    assert (te.gram(J1) ** p).psd
    assert A**1 is A


def test_what_is_known_of_a_polynomial():
    symmetric, psd = (te.aslinearoperator(np.eye(3), **{flag: True}) for flag in ("symmetric", "psd"))
    assert te.polynomial(psd, [1, 2, 3]).psd
    assert not te.polynomial(psd, [1, -2, 3]).psd
    assert te.polynomial(symmetric, [1, 0, 3, 0]).psd
    assert not te.polynomial(symmetric, [1, 2, 3]).psd
    assert te.polynomial(symmetric, [1, 2, 3]).symmetric
    hermitian = te.aslinearoperator(np.eye(3, dtype=complex), symmetric=True)
    assert not te.polynomial(hermitian, [1j, 1]).symmetric


def test_polynomials_that_make_no_sense_are_refused():
    A = te.aslinearoperator(np.eye(3))
    cases = [
        (lambda: te.polynomial(A, []), ValueError, "at least one coefficient"),
        (lambda: te.polynomial(A, ["x"]), TypeError, "coefficients must be numbers, c₀ first, got 'x'"),
        (lambda: te.polynomial(A, [1j]), TypeError, "complex coefficients need a complex operator"),
        (lambda: te.polynomial(J1, [1.0]), ValueError, r"expected a square operator, got shape \(60, 40\)"),
        (lambda: A**-1, ValueError, "p must be an integer ≥ 0, got -1"),
        (lambda: A**0.5, ValueError, "p must be an integer ≥ 0, got 0.5"),
        (lambda: te.trace_of_polynomial(A, [0, 0, 1]), TypeError, "give a budget, for instance n_matvecs=10"),
        (
            lambda: te.trace_of_polynomial(A, [0, 0, 1], 1),
            ValueError,
            "n_matvecs = 1 is below the method's minimum of 2",
        ),
        (lambda: te.trace_of_polynomial(te.gram(one_side(J1, "rmatmat")), [0, 1], 4), TypeError, "needs matmat"),
        (lambda: te.trace_of_polynomial(A, [0, 0, 1], 6, probes=np.ones((3, 2))), ValueError, "probes has 2 columns"),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()


def declared(A):
    return te.aslinearoperator(A, symmetric=np.allclose(A, A.conj().T))


@pytest.mark.parametrize("degree", range(1, 6))
@pytest.mark.parametrize("make", [zoo.indefinite, zoo.hermitian, zoo.nonsymmetric, zoo.complex_general])
def test_half_the_powers_give_the_same_samples(degree, make):
    A, c, m = make(N), [*COEFFICIENTS, 0.3][: degree + 1], 6
    half = -(-degree // 2) if make in (zoo.indefinite, zoo.hermitian) else degree
    V = te.probes.rademacher(N, m, rng=0, like=A)
    counter = Counter(declared(A))
    e = te.trace_of_polynomial(counter, c, probes=V)
    plain = te.hutchinson(te.polynomial(declared(A), c), probes=V)
    assert_close(e.samples, plain.samples, 1e-12)
    assert_counts(e, counter, budget=m * half)
    assert e.n_matvecs == m * half


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5])
def test_of_a_gram_operator_the_last_odd_power_is_a_vjp(degree):
    c, V = [0.0] * degree + [1.0], te.probes.rademacher(60, 4, rng=0)
    counter = Counter(te.aslinearoperator(J1))
    e = te.trace_of_polynomial(te.gram(counter), c, probes=V)
    assert_counts(e, counter)
    assert (e.n_matvecs, e.n_rmatvecs) == (4 * (degree // 2), 4 * -(-degree // 2))
    assert_close(e.samples, te.hutchinson(te.polynomial(te.gram(J1), c), probes=V).samples, 1e-12)
    assert e.bounds == (0.0, np.inf)


@pytest.mark.parametrize("distribution", ["rademacher", "sphere", "orthogonal"])
@pytest.mark.parametrize("spectrum", ["flat", "slowexp"])
def test_traces_of_polynomials_are_unbiased(spectrum, distribution):
    op = declared(zoo.spectral(spectrum, N))
    truth = np.trace(evaluated(zoo.spectral(spectrum, N), COEFFICIENTS))
    laws = {"distribution": distribution, "chunk_size": 3}
    unbiased(lambda seed: te.trace_of_polynomial(op, COEFFICIENTS, 16, rng=seed, **laws), truth, seeds=400)


def coverage(op, coefficients, m, truth, estimator=te.trace_of_polynomial):
    ends = [estimator(op, coefficients, m, rng=seed).confidence_interval() for seed in range(600)]
    return np.mean([low <= truth <= high for low, high in ends])


def test_intervals_of_polynomials_cover_where_no_eigenvalue_is_most_of_it():
    A = zoo.spectral("flat", 100)
    assert 0.93 <= coverage(declared(A), COEFFICIENTS, 16, np.trace(evaluated(A, COEFFICIENTS))) <= 0.99


def test_where_one_is_the_intervals_of_xtrace_cover_as_documented():
    """Powers make spectra steep: the samples are Hutchinson's then, and so is what their intervals lack."""
    c, op = [0.0, *COEFFICIENTS[1:]], te.aslinearoperator(zoo.spectral("poly", 100), psd=True)
    truth = np.trace(evaluated(zoo.spectral("poly", 100), c))
    assert coverage(op, c, 16, truth) < 0.93
    assert coverage(op, c, 8, truth, lambda A, c, m, rng: te.xtrace(te.polynomial(A, c), m, rng=rng)) >= 0.93


def test_traces_of_polynomials_agree_between_backends(backend):
    for f, array in (
        (
            lambda a: te.trace_of_polynomial(te.aslinearoperator(a, symmetric=True), COEFFICIENTS, 9, rng=0),
            zoo.indefinite(N),
        ),
        (lambda j: te.trace_of_polynomial(te.gram(j, n_blocks=2), [1, 0, 2, 1], 9, rng=0), J1),
        (lambda a: te.trace_of_polynomial(a, COEFFICIENTS, N, rng=0), zoo.complex_general(N)),
    ):
        expected, got = f(array), backend.call(f, array)
        assert_close(backend.host(got.value), expected.value, 1e-11)
        assert_close(backend.host(got.stderr), expected.stderr, 1e-9)
        assert (got.method, got.n_products) == (expected.method, expected.n_products)


@pytest.mark.parametrize("make", [zoo.indefinite, zoo.complex_general])
def test_a_budget_that_reaches_the_exact_polynomial_gives_it(make):
    A, counter = make(N), Counter(declared(make(N)))
    e = te.trace_of_polynomial(counter, COEFFICIENTS, N, rng=0)
    assert_counts(e, counter, budget=N)
    assert complex(e) == pytest.approx(np.trace(evaluated(A, COEFFICIENTS)), rel=1e-12)
    assert (float(e.stderr), e.exact) == (0, True)
    of_gram = Counter(te.aslinearoperator(J1, n_blocks=12))
    e = te.trace_of_polynomial(te.gram(of_gram), COEFFICIENTS, 5, rng=0)  # five vjps, one for each row of a block
    assert_counts(e, of_gram, budget=5)
    assert float(e) == pytest.approx(np.trace(evaluated(K1, COEFFICIENTS)), rel=1e-12)
    constant = te.trace_of_polynomial(A, [2.0, 0.0], 1)
    assert (complex(constant), constant.n_matvecs, constant.exact) == (2.0 * N, 0, True)


def test_the_zero_operator_and_one_sample(backend):
    e = backend.call(lambda a: te.trace_of_polynomial(a, [0, 1, 1], 8, rng=0), np.zeros((N, N)))
    assert float(e.value) == float(e.stderr) == 0
    assert np.isnan(float(te.trace_of_polynomial(declared(zoo.indefinite(N)), COEFFICIENTS, 2, rng=0).stderr))


def test_an_error_bar_of_the_wrong_size_is_caught(monkeypatch):
    honest = SAMPLING.from_samples

    def narrow(*args, **fields):
        e = honest(*args, **fields)
        return replace(e, stderr=0.7 * e.stderr)

    monkeypatch.setattr(SAMPLING, "from_samples", narrow)
    with pytest.raises(AssertionError):
        test_intervals_of_polynomials_cover_where_no_eigenvalue_is_most_of_it()


def test_powers_that_are_shifted_by_one_are_caught(monkeypatch):
    honest = POWERS._moments
    monkeypatch.setattr(POWERS, "_moments", lambda xp, A, V, d: honest(xp, A, V, d + 1)[1:])
    with pytest.raises(AssertionError):
        test_half_the_powers_give_the_same_samples(3, zoo.indefinite)
    with pytest.raises(AssertionError):
        test_traces_of_polynomials_are_unbiased("slowexp", "rademacher")
