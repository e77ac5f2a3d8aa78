"""Zero, rank one, tiny and hugely scaled operators: right to rounding, and in silence."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import operators_zoo as zoo
import pytest

import traceest as te

ESTIMATORS = {
    "hutchinson": lambda A: te.hutchinson(A, 7, rng=0),
    "hutchpp": lambda A: te.hutchpp(A, 9, rng=0),
    "xtrace": lambda A: te.xtrace(A, 14, rng=0),
    "xnystrace of the kernel": lambda A: te.xnystrace(te.gram(A), 7, rng=0),
    "na_hutchpp": lambda A: te.na_hutchpp(A, 14, rng=0),
    "na_hutchpp, rademacher": lambda A: te.na_hutchpp(A, 14, rng=0, distribution="rademacher"),
    "nystrompp of the kernel": lambda A: te.nystrompp(te.gram(A), 9, rng=0),
    "hutchpp of the kernel": lambda A: te.hutchpp(te.gram(A), 9, rng=0),
    "rhutch": lambda A: te.rhutch(A, 7, rng=0),
    "rhutch per block": lambda A: te.rhutch(te.aslinearoperator(A, n_blocks=A.shape[0]), 7, rng=0),
    "fhutch": lambda A: te.fhutch(A, 7, rng=0),
    "trace": lambda A: te.trace(A, rng=0),
    "exact": te.exact,
}
OF_THE_GRAM = (
    "xnystrace of the kernel",
    "nystrompp of the kernel",
    "hutchpp of the kernel",
    "rhutch",
    "rhutch per block",
    "fhutch",
)


def truth(name, A):
    return float(np.sum(A * A)) if name in OF_THE_GRAM else float(np.trace(A))


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("operator", ["flat", "indefinite", "rank one", "zero", "identity", "nonsymmetric"])
def test_tiny_operators_are_answered_exactly(name, n, operator):
    A = zoo.SQUARE[operator](n)
    e = ESTIMATORS[name](A)
    assert float(e) == pytest.approx(truth(name, A), rel=1e-13, abs=1e-13)
    assert float(e.stderr) == 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_zero_is_zero_for_certain(backend, name):
    if backend.jitted and name == "trace":
        pytest.skip("trace() looks at values to decide when to stop, so it runs around compiled code and not inside")
    e = backend.call(ESTIMATORS[name], np.zeros((40, 40)))
    assert (float(e.value), float(e.stderr)) == (0.0, 0.0)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_hutchpp_is_exact_on_low_rank(backend, rank):
    A = zoo.low_rank(50, rank)
    e = backend.call(lambda A: te.hutchpp(A, 12, rng=0), A)
    assert float(e.value) == pytest.approx(np.trace(A), rel=1e-13)
    assert float(e.stderr) < 1e-13
    sparse = np.diag(np.arange(50) < rank).astype(float)
    assert float(backend.call(lambda A: te.hutchpp(A, 12, rng=0), sparse).value) == pytest.approx(rank, rel=1e-13)


ENOUGH = {
    "hutchpp": lambda A: te.hutchpp(A, 50, rng=0),
    "na_hutchpp": lambda A: te.na_hutchpp(A, 100, rng=0),
    "xtrace": lambda A: te.xtrace(A, 40, rng=0),
    "trace": lambda A: te.trace(A, rtol=1e-3, rng=0),
    "trace, hutchpp": lambda A: te.trace(A, rtol=1e-3, rng=0, method="hutchpp"),
}
"""With a sketch that holds sixteen columns or more."""

PLAIN = {
    "rank 1": zoo.low_rank(120, 1),
    "rank 5": zoo.low_rank(120, 5),
    "rank 15": zoo.low_rank(120, 15),
    "diag(1, 1, 0, …)": np.diag(np.arange(120) < 2).astype(float),
    "skew-symmetric": np.triu(zoo.nonsymmetric(120), 1) - np.triu(zoo.nonsymmetric(120), 1).T,
    "identity": np.eye(120),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ENOUGH)
@pytest.mark.parametrize("operator", PLAIN)
def test_what_a_sketch_holds_is_right_to_rounding(backend, name, operator, dtype):
    if backend.jitted and name.startswith("trace"):
        pytest.skip("trace() looks at values to decide when to stop, so it runs around compiled code and not inside")
    A = PLAIN[operator].astype(dtype)
    e = backend.call(ENOUGH[name], A)
    if name == "na_hutchpp" and operator in ("identity", "skew-symmetric"):
        pytest.skip("of rank n, nothing that a sketch could hold, and no length that its residual should have")
    eps, size = float(np.finfo(dtype).eps), max(abs(float(np.trace(A))), float(np.linalg.norm(A)))
    assert abs(float(e.value) - float(np.trace(A))) <= 200 * eps * size
    assert float(e.stderr) <= 200 * eps * size


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_adaptive_trace_ends_early_on_low_rank(rank):
    A = zoo.low_rank(500, rank)
    e = te.trace(A, rtol=1e-8, rng=0)
    assert e.converged
    assert e.n_matvecs <= 50
    assert float(e) == pytest.approx(np.trace(A), rel=1e-12)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(
    ("dtype", "exponent"), [("float32", 18), ("float32", -18), ("float64", 150), ("float64", -150)]
)
def test_scale_is_only_a_factor(backend, name, dtype, exponent):
    if backend.jitted and name == "trace":
        pytest.skip("trace() looks at values to decide when to stop, so it runs around compiled code and not inside")
    if backend.xp is jnp and name in OF_THE_GRAM and exponent < 0:
        exponent = exponent * 5 // 6  # XLA flushes subnormal numbers, such as squares of 1e-18, to zero
    power = round(exponent / math.log10(2))  # scaling by a power of two rounds nothing
    A = zoo.spectral("slowexp", 40).astype(dtype)
    plain = backend.call(ESTIMATORS[name], A)
    scaled = backend.call(ESTIMATORS[name], np.ldexp(A, power))
    rtol = 1e-12 if dtype == "float64" else 1e-4
    back = -power * (2 if name in OF_THE_GRAM else 1)
    scaled_value, scaled_stderr = (math.ldexp(float(x), back) for x in (scaled.value, scaled.stderr))
    assert scaled_value == pytest.approx(float(plain.value), rel=rtol)
    assert scaled_stderr == pytest.approx(float(plain.stderr), rel=100 * rtol, abs=rtol * float(plain.value))
    assert float(scaled.df) == pytest.approx(float(plain.df), rel=100 * rtol)


@pytest.mark.parametrize(
    ("dtype", "exponent"), [("float32", 15), ("float32", -15), ("float64", 140), ("float64", -140)]
)
@pytest.mark.parametrize("n_blocks", [1, 8])
def test_ratios_of_a_kernel_do_not_depend_on_scale(backend, dtype, exponent, n_blocks):
    J = zoo.jacobian(8, 5, 30).astype(dtype)

    def rank(J):
        return te.effective_rank(te.gram(J, n_blocks=n_blocks), 4, rng=0)

    def alignment(J):
        return te.alignment(te.gram(J, n_blocks=n_blocks), te.gram(J[:, :15], n_blocks=n_blocks), 4, rng=0)

    scale = np.asarray(10.0**exponent, dtype=dtype)
    rtol = 1e-10 if dtype == "float64" else 2e-3
    for f in (rank, alignment):
        plain, scaled = backend.call(f, J), backend.call(f, J * scale)
        assert float(scaled.value) == pytest.approx(float(plain.value), rel=rtol)
        assert float(scaled.stderr) == pytest.approx(float(plain.stderr), rel=10 * rtol)


def test_a_zero_kernel_has_norm_zero_and_no_rank():
    K = te.gram(np.zeros((40, 30)), n_blocks=8)
    assert float(te.frobenius_norm(K, 4, rng=0)) == 0
    assert np.isnan(float(te.effective_rank(K, 4, rng=0)))
    assert te.effective_rank(K, 4, rng=0).confidence_interval() == (1.0, 30.0)
    assert np.isnan(float(te.alignment(K, K, 4, rng=0)))
