"""Every estimator is unbiased: its mean over hundreds of seeds is the truth, to four standard errors."""

from __future__ import annotations

import numpy as np
import operators_zoo as zoo
import pytest
from assertions import assert_unbiased, unbiased

import traceest as te
from traceest.operators import sketch_gram
from traceest.uncertainty.ustatistics import block_sum, pair_mean, squared_mean

N = 60
SEEDS = 300
TWO_SIDED = {
    "hutchinson": lambda A, seed: te.hutchinson(A, 7, rng=seed),
    "hutchinson gaussian": lambda A, seed: te.hutchinson(A, 7, rng=seed, distribution="gaussian"),
    "hutchinson sphere": lambda A, seed: te.hutchinson(A, 7, rng=seed, distribution="sphere"),
    "hutchinson orthogonal": lambda A, seed: te.hutchinson(A, 7, rng=seed, distribution="orthogonal"),
    "hutchpp": lambda A, seed: te.hutchpp(A, 7, rng=seed),
    "hutchpp, wide sketch": lambda A, seed: te.hutchpp(A, 25, rng=seed),
    "hutchpp gaussian": lambda A, seed: te.hutchpp(A, 7, rng=seed, distribution="gaussian"),
    "xtrace": lambda A, seed: te.xtrace(A, 10, rng=seed),
    "xtrace, rademacher": lambda A, seed: te.xtrace(A, 10, rng=seed, distribution="rademacher"),
    "na_hutchpp": lambda A, seed: te.na_hutchpp(A, 12, rng=seed),
    "na_hutchpp, rademacher": lambda A, seed: te.na_hutchpp(A, 12, rng=seed, distribution="rademacher"),
    "hutchpp of few sketch columns": lambda A, seed: te.hutchpp(A, 9, n_sketch=1, rng=seed),
}
ONE_SIDED = {
    "rhutch": lambda J, seed: te.rhutch(J, 2, rng=seed),
    "rhutch per block": lambda J, seed: te.rhutch(te.aslinearoperator(J, n_blocks=12), 2, rng=seed),
    "rhutch per block, orthogonal": lambda J, seed: te.rhutch(
        te.aslinearoperator(J, n_blocks=12), 2, rng=seed, distribution="orthogonal"
    ),
    "fhutch": lambda J, seed: te.fhutch(J, 2, rng=seed),
    "hutchinson of the kernel": lambda J, seed: te.hutchinson(te.gram(J, n_blocks=12), 2, rng=seed),
    "xtrace of the kernel": lambda J, seed: te.xtrace(te.gram(J), 10, rng=seed),
    "xnystrace of the kernel": lambda J, seed: te.xnystrace(te.gram(J), 6, rng=seed),
    "xnystrace of the kernel, gaussian, as they are": lambda J, seed: te.xnystrace(
        te.gram(J), 6, rng=seed, distribution="gaussian", normalise=False
    ),
    "nystrompp of the kernel": lambda J, seed: te.nystrompp(te.gram(J), 10, rng=seed),
    "nystrompp of the kernel, rademacher": lambda J, seed: te.nystrompp(
        te.gram(J), 10, rng=seed, distribution="rademacher"
    ),
    "na_hutchpp of the kernel": lambda J, seed: te.na_hutchpp(te.gram(J), 12, rng=seed),
    "hutchpp of the kernel": lambda J, seed: te.hutchpp(te.gram(J, n_blocks=2), 7, rng=seed),
}
SPECTRA = ("fastexp", "slowexp", "poly", "smallstep", "bigstep", "flat")
OTHERS = ("indefinite", "nonsymmetric", "hermitian", "complex")


def check_trace(estimator, A, seeds=SEEDS):
    """The check itself, which `test_bite` aims at broken estimators."""
    unbiased(lambda seed: estimator(A, seed), np.trace(A), seeds)


def check_squared_norm(estimator, J, seeds=SEEDS):
    unbiased(lambda seed: estimator(J, seed), float(np.sum(np.abs(J) ** 2)), seeds)


@pytest.mark.parametrize("name", TWO_SIDED)
@pytest.mark.parametrize("spectrum", [*SPECTRA, *OTHERS])
def test_the_trace_is_unbiased(name, spectrum):
    check_trace(TWO_SIDED[name], zoo.SQUARE[spectrum](N))


@pytest.mark.parametrize("name", ONE_SIDED)
@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
def test_the_squared_norm_of_a_jacobian_is_unbiased(name, complex_):
    check_squared_norm(ONE_SIDED[name], zoo.jacobian(12, 5, 40, complex_=complex_))


@pytest.mark.parametrize("name", ONE_SIDED)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_squared_norm_is_unbiased_on_every_spectrum(name, spectrum):
    check_squared_norm(ONE_SIDED[name], zoo.spectral(spectrum, N), seeds=200)


def forms_and_products(J, n_blocks, m, seed, complex_=False):
    """G of one sketch, (B, m, B, m), and its diagonal, (B, m)."""
    op = te.aslinearoperator(J, n_blocks=n_blocks)
    G = sketch_gram(op, te.probes.rademacher(J.shape[0], m, rng=seed, like=J))
    forms = np.real(np.einsum("bibi->bi", G))
    return forms, G


@pytest.mark.parametrize("n_blocks", [1, 4, 12])
@pytest.mark.parametrize("m", [2, 3, 5])
@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
def test_the_u_statistics_are_unbiased(n_blocks, m, complex_):
    J = zoo.jacobian(12, 3, 20, complex_=complex_)
    K = J @ J.conj().T

    def squared_frobenius(seed):
        G = forms_and_products(J, n_blocks, m, seed)[1]
        return pair_mean(np, np.abs(G) ** 2).value

    def squared_trace(seed):
        return squared_mean(np, forms_and_products(J, n_blocks, m, seed)[0]).value

    def trace(seed):
        return block_sum(np, forms_and_products(J, n_blocks, m, seed)[0]).value

    unbiased(squared_frobenius, np.sum(np.abs(K) ** 2), SEEDS)
    unbiased(squared_trace, np.real(np.trace(K)) ** 2, SEEDS)
    unbiased(trace, np.real(np.trace(K)), SEEDS)


@pytest.mark.parametrize("n_blocks", [1, 4])
def test_the_inner_product_of_two_kernels_is_unbiased(n_blocks):
    J1, J2 = zoo.jacobian(12, 3, 20), zoo.jacobian(12, 3, 20, seed=1) + zoo.jacobian(12, 3, 20)
    truth = np.sum((J1 @ J1.T) * (J2 @ J2.T))

    def inner(seed):
        G1, G2 = (forms_and_products(J, n_blocks, 3, seed)[1] for J in (J1, J2))
        return pair_mean(np, G1 * G2).value

    unbiased(inner, truth, SEEDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO_SIDED)
@pytest.mark.parametrize("spectrum", [*SPECTRA, *OTHERS])
def test_the_trace_is_unbiased_over_thousands_of_seeds(name, spectrum):
    check_trace(TWO_SIDED[name], zoo.SQUARE[spectrum](N), seeds=5000)


HERMITIAN = {
    "hutchinson": lambda A, seed: te.hutchinson(A, 10, rng=seed),
    "hutchpp": lambda A, seed: te.hutchpp(A, 12, rng=seed),
    "na_hutchpp": lambda A, seed: te.na_hutchpp(A, 12, rng=seed),
    "xtrace": lambda A, seed: te.xtrace(A, 12, rng=seed),
    "trace": lambda A, seed: te.trace(A, rtol=0.05, max_matvecs=20, rng=seed),
    "trace by hutchpp": lambda A, seed: te.trace(A, rtol=0.05, max_matvecs=30, rng=seed, method="hutchpp"),
    "trace by hutchinson": lambda A, seed: te.trace(A, rtol=0.05, max_matvecs=20, rng=seed, method="hutchinson"),
    "exact": lambda A, seed: te.exact(A),
}


@pytest.mark.parametrize("name", HERMITIAN)
def test_a_hermitian_operators_trace_is_real_and_has_an_interval(name):
    A = zoo.hermitian(40)
    op, f = te.aslinearoperator(A, symmetric=True), HERMITIAN[name]
    assert not np.iscomplexobj(f(op, 0).value)
    low, high = f(op, 0).confidence_interval()
    assert low <= high
    test = [float(f(op, seed)) for seed in range(200)]
    assert_unbiased(test, float(np.trace(A).real), sigmas=4.5 if name.startswith("trace") else 4.0)
