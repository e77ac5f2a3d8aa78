"""One body for every backend: the same seed gives the same answer, to rounding, compiled or not."""

from __future__ import annotations

import dask.array
import jax
import jax.numpy as jnp
import numpy as np
import operators_zoo as zoo
import pytest
import torch
from assertions import assert_close

import traceest as te

N = 40


def blocks(J, n_blocks=8):
    return te.aslinearoperator(J, n_blocks=n_blocks)


def lazy(A):
    return 2.0 * A @ A.T - A.H / 3


def lazy_square(A):
    A = te.aslinearoperator(A)
    return A.H @ A


ESTIMATORS = {
    "exact": te.exact,
    "hutchinson": lambda A: te.hutchinson(A, 9, rng=0),
    "hutchinson, gaussian, chunked": lambda A: te.hutchinson(A, 9, rng=0, distribution="gaussian", chunk_size=4),
    "hutchinson, sphere": lambda A: te.hutchinson(A, 9, rng=0, distribution="sphere"),
    "hutchinson, orthogonal": lambda A: te.hutchinson(A, 9, rng=0, distribution="orthogonal"),
    "hutchinson, hadamard, chunked": lambda A: te.hutchinson(A, 9, rng=0, distribution="hadamard", chunk_size=4),
    "hutchpp": lambda A: te.hutchpp(A, 12, rng=0),
    "hutchpp, chunked": lambda A: te.hutchpp(A, 12, rng=0, chunk_size=3),
    "xtrace": lambda A: te.xtrace(A, 12, rng=0),
    "xtrace, rademacher": lambda A: te.xtrace(A, 12, rng=0, distribution="rademacher"),
    "na_hutchpp": lambda A: te.na_hutchpp(A, 17, rng=0),
    "na_hutchpp, orthogonal": lambda A: te.na_hutchpp(A, 17, rng=0, distribution="orthogonal"),
    "nystrompp of the square": lambda A: te.nystrompp(lazy_square(A), 12, rng=0),
    "xnystrace of the square": lambda A: te.xnystrace(lazy_square(A), 9, rng=0),
    "two-sided frobenius": lambda A: te.frobenius_norm(A, n_matvecs=9, rng=0),
    "two-sided effective rank": lambda A: te.effective_rank(A, n_matvecs=9, rng=0),
    "exact effective rank": lambda A: te.effective_rank(A, method="exact"),
    "lazy algebra": lambda A: te.hutchinson(lazy(te.aslinearoperator(A)), 9, rng=0),
}
FACTORED = {
    "exact, blocks": lambda J: te.exact(blocks(J)),
    "exact, jvps": lambda J: te.exact(J, side="matmat"),
    "rhutch": lambda J: te.rhutch(J, 4, rng=0),
    "rhutch, blocks": lambda J: te.rhutch(blocks(J), 3, rng=0),
    "rhutch, orthogonal blocks": lambda J: te.rhutch(blocks(J), 3, rng=0, distribution="orthogonal"),
    "fhutch": lambda J: te.fhutch(J, 4, rng=0),
    "xtrace of K": lambda J: te.xtrace(te.gram(J), 12, rng=0),
    "xnystrace of K": lambda J: te.xnystrace(te.gram(J), 7, rng=0),
    "nystrompp of K": lambda J: te.nystrompp(te.gram(J), 12, rng=0),
    "na_hutchpp of K": lambda J: te.na_hutchpp(te.gram(J), 17, rng=0),
    "hutchpp of K": lambda J: te.hutchpp(te.gram(J), 12, rng=0),
    "frobenius": lambda J: te.frobenius_norm(te.gram(J), 6, rng=0),
    "frobenius, blocks": lambda J: te.frobenius_norm(te.gram(J, n_blocks=8), 4, rng=0),
    "frobenius, exact on the column side": lambda J: te.frobenius_norm(te.gram(J, n_blocks=8), method="exact"),
    "effective rank, blocks": lambda J: te.effective_rank(te.gram(J, n_blocks=8), 4, rng=0),
    "alignment, blocks": lambda J: te.alignment(te.gram(J, n_blocks=8), te.gram(J**2, n_blocks=8), 4, rng=0),
    "alignment of unequal blocks": lambda J: te.alignment(te.gram(J, n_blocks=8), te.gram(J**2), 4, rng=0),
    "alignment, two-sided": lambda J: te.alignment(
        te.gram(J), te.aslinearoperator(J @ J.T, psd=True), n_matvecs=9, rng=0
    ),
}


def agrees(backend, f, array, rtol):
    expected, got = f(array), backend.call(f, array)
    scale = abs(complex(expected))
    assert backend.host(got.value) == pytest.approx(expected.value, rel=rtol)
    assert backend.host(got.stderr) == pytest.approx(expected.stderr, rel=100 * rtol, abs=rtol * scale, nan_ok=True)
    assert (got.n_matvecs, got.n_rmatvecs, got.method) == (expected.n_matvecs, expected.n_rmatvecs, expected.method)
    assert backend.host(got.value).dtype == expected.value.dtype
    assert backend.host(got.stderr).dtype == array.real.dtype
    assert got.value.shape == got.stderr.shape == got.df.shape == ()


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "complex128"])
def test_square_operators_agree_with_numpy(backend, name, dtype):
    A = zoo.complex_general(N) if dtype.startswith("complex") else zoo.nonsymmetric(N)
    agrees(backend, ESTIMATORS[name], A.astype(dtype), 3e-4 if dtype == "float32" else 1e-12)


@pytest.mark.parametrize("name", FACTORED)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_jacobians_agree_with_numpy(backend, name, dtype):
    J = zoo.jacobian(8, 5, 30).astype(dtype)
    agrees(backend, FACTORED[name], J, 1e-12 if dtype == "float64" else 3e-4)


@pytest.mark.parametrize("name", [n for n in FACTORED if "two-sided" not in n and "alignment" not in n])
def test_complex_jacobians_agree_with_numpy(backend, name):
    J, f = zoo.jacobian(8, 5, 30, complex_=True), FACTORED[name]
    expected, got = f(J), backend.call(f, J)
    assert_close(backend.host(got.value), expected.value, 1e-12)
    assert_close(backend.host(got.stderr), expected.stderr, 1e-10)


@pytest.mark.parametrize("method", ["auto", "hutchinson", "hutchpp", "exact"])
def test_the_adaptive_trace_agrees_with_numpy(backend, method):
    if backend.jitted:
        pytest.skip("trace() looks at values to decide when to stop, so it runs around compiled code and not inside")
    agrees(backend, lambda A: te.trace(A, rtol=0.01, rng=0, method=method), zoo.spectral("slowexp", 150), 1e-12)


def test_results_stay_on_the_device(backend):
    if backend.jitted:
        pytest.skip("inside jax.jit a device is not known yet")
    A = backend.asarray(zoo.indefinite(20))
    for e in (te.hutchpp(A, 9, rng=0), te.frobenius_norm(A, 9, rng=0), te.trace(A, rng=0)):
        assert te.aslinearoperator(A).device == te._array_api.device(e.value) == te._array_api.device(e.stderr)


def test_intervals_and_numbers_leave_every_device(backend):
    e = backend.call(lambda A: te.hutchinson(A, 9, rng=0), zoo.indefinite(20))
    low, high = e.confidence_interval()
    assert low < float(e) < high
    assert isinstance(low, float)
    assert e.to_dict()["value"] == float(e)


@pytest.mark.parametrize("name", ["exact", "hutchinson", "hutchpp", "hutchinson, sphere", "two-sided frobenius"])
def test_dask_agrees_with_numpy(name):
    A = zoo.spectral("poly", N)
    e = ESTIMATORS[name](dask.array.from_array(A, chunks=(10, N)))
    assert float(e) == pytest.approx(float(ESTIMATORS[name](A)), rel=1e-10)


@pytest.mark.parametrize("name", ["rhutch, blocks", "fhutch", "frobenius, blocks", "effective rank, blocks"])
def test_dask_jacobians_agree_with_numpy(name):
    J = zoo.jacobian(8, 5, 30)
    e = FACTORED[name](dask.array.from_array(J, chunks=(10, 30)))
    assert float(e) == pytest.approx(float(FACTORED[name](J)), rel=1e-10)


def probes(batch, n, k):
    return np.random.default_rng(0).choice([-1.0, 1.0], size=(batch, n, k))


BATCHABLE = {
    "hutchinson": lambda A, V: te.hutchinson(A, probes=V),
    "hutchpp": lambda A, V: te.hutchpp(A, probes=V),
    "nystrompp": lambda A, V: te.nystrompp(A, probes=V, distribution="rademacher"),
    "na_hutchpp": lambda A, V: te.na_hutchpp(A, probes=V),
    "rhutch": lambda A, V: te.rhutch(blocks(A), probes=V),
    "fhutch": lambda A, V: te.fhutch(A, probes=V),
    "effective rank": lambda A, V: te.effective_rank(te.gram(A, n_blocks=8), probes=V),
    "alignment": lambda A, V: te.alignment(te.gram(A), te.gram(A @ A), probes=V),
}


@pytest.mark.parametrize("name", BATCHABLE)
@pytest.mark.parametrize("library", [pytest.param("jax", marks=pytest.mark.slow), "jax-jit", "torch"])
def test_estimates_come_out_of_vmap_as_pytrees(name, library):
    A, V, f = zoo.spectral("poly", N), probes(5, N, 6), BATCHABLE[name]
    if library == "torch":
        one = torch.from_numpy(A)
        many = torch.func.vmap(lambda v: f(one, v))(torch.from_numpy(V))
    else:
        mapped = jax.vmap(lambda v: f(jnp.asarray(A), v))
        many = (jax.jit(mapped) if library == "jax-jit" else mapped)(jnp.asarray(V))
    apart = [f(A, v) for v in V]
    assert isinstance(many, te.Estimate)
    assert_close(many.value, [e.value for e in apart], 1e-11)
    assert_close(many.stderr, [e.stderr for e in apart], 1e-9)
    ends = [e.confidence_interval() for e in apart]
    assert_close(many.confidence_interval().low, [low for low, _ in ends], 1e-9)
    assert_close(many.confidence_interval().high, [high for _, high in ends], 1e-9)
    assert many.n_products == apart[0].n_products


def test_estimates_are_pytrees_of_their_arrays():
    e = te.hutchinson(jnp.eye(20) + 0.1, 5, rng=0)
    leaves, tree = jax.tree.flatten(e)
    assert len(leaves) == 4
    again = jax.tree.unflatten(tree, leaves)
    assert (again.method, again.n_matvecs, again.bounds) == (e.method, e.n_matvecs, e.bounds)
    assert jax.tree.map(lambda x: 2 * x, e).value == 2 * e.value


@pytest.mark.parametrize(
    "name", ["hutchinson", "hutchpp", "two-sided frobenius", "two-sided effective rank", "exact effective rank"]
)
def test_gradients_go_through_and_agree_between_libraries(name):
    A = zoo.spectral("poly", 20)
    f = ESTIMATORS[name]
    g_jax = jax.grad(lambda A: f(A).value)(jnp.asarray(A))
    leaf = torch.from_numpy(A.copy()).requires_grad_()
    f(leaf).value.backward()
    assert_close(g_jax, leaf.grad, 1e-8)
    step = 1e-6 * np.random.default_rng(0).standard_normal(A.shape)
    slope = (float(f(A + step)) - float(f(A - step))) / 2
    assert np.sum(np.asarray(g_jax) * step) == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("name", ["effective rank, blocks", "frobenius, blocks", "alignment, blocks"])
def test_gradients_of_one_sided_statistics_are_finite_on_low_rank(name):
    J = zoo.jacobian(8, 5, 30) * (np.arange(30) < 2)
    assert np.all(np.isfinite(jax.grad(lambda J: FACTORED[name](J).value)(jnp.asarray(J))))
    leaf = torch.from_numpy(J.copy()).requires_grad_()
    FACTORED[name](leaf).value.backward()
    assert bool(torch.all(torch.isfinite(leaf.grad)))


OVER_KEYS = {
    **{
        f"hutchinson, {law}": lambda A, key, law=law: te.hutchinson(A, 6, rng=key, distribution=law)
        for law in ("rademacher", "gaussian", "sphere", "orthogonal", "hadamard")
    },
    "hutchpp": lambda A, key: te.hutchpp(A, 12, rng=key),
    "na_hutchpp": lambda A, key: te.na_hutchpp(A, 12, rng=key),
    "nystrompp": lambda A, key: te.nystrompp(A, 12, rng=key),
    "xtrace": lambda A, key: te.xtrace(A, 12, rng=key),
    "xnystrace": lambda A, key: te.xnystrace(A, 12, rng=key),
    "rhutch": lambda A, key: te.rhutch(te.gram(A), 6, rng=key),
    "fhutch": lambda A, key: te.fhutch(te.gram(A), 6, rng=key),
    "frobenius": lambda A, key: te.frobenius_norm(te.gram(A), 6, rng=key),
    "effective rank": lambda A, key: te.effective_rank(te.gram(A), 6, rng=key),
}


ALIKE = (
    "hutchinson, rademacher",
    "hutchinson, hadamard",
    "hutchpp",
    "nystrompp",
    "xnystrace",
    "rhutch",
    "effective rank",
)
"""One of each kind."""


@pytest.mark.usefixtures("compile_as_usual")
@pytest.mark.parametrize("name", [n if n in ALIKE else pytest.param(n, marks=pytest.mark.slow) for n in OVER_KEYS])
def test_seeds_are_mapped_over_and_compiled(name):
    """jit(vmap(estimator)) over keys gives what one key after the other does, error bars included."""
    A, f = jnp.asarray(zoo.spectral("poly", 20)), OVER_KEYS[name]
    keys = jax.random.split(jax.random.key(3), 4)
    mapped = jax.jit(jax.vmap(lambda key: f(A, key)))(keys)
    for i in range(4):
        one = f(A, keys[i])
        assert_close(mapped.value[i], one.value, 1e-10)
        assert_close(mapped.stderr[i], one.stderr, 1e-6)
    assert len(np.unique(np.asarray(mapped.value))) == 4


FIRST_CALLS = {
    "hutchpp": (lambda A: te.hutchpp(A, 13, rng=0), 18),
    "xtrace": (lambda A: te.xtrace(A, 14, rng=0), 18),
    "nystrompp": (lambda A: te.nystrompp(A, 13, rng=0), 18),
    "na_hutchpp": (lambda A: te.na_hutchpp(A, 17, rng=0), 20),
    "norm by products": (lambda A: te.frobenius_norm(A, n_matvecs=14, rng=0), 22),
    "few products": (lambda A: te.effective_rank(A, n_matvecs=5, rng=0), 22),
    "summary by vjps": (lambda A: te.summary(te.gram(te.aslinearoperator(A, n_blocks=1)), n_probes=5, rng=0), 25),
    "adaptive trace": (lambda A: te.trace(A, rtol=0.02, rng=0, max_matvecs=40), 48),
    "density": (lambda A: te.spectral_density(A, 24, rng=0), 28),
    "log-determinant": (lambda A: te.logdet(A, 24, shift=0.1, rng=0), 28),
    "eigenvalues": (lambda A: te.eigenvalues(A, 4, n_matvecs=24, rng=0), 24),
    "spectral norm": (lambda A: te.spectral_norm(A, 24, rng=0), 42),
    "diagonal": (lambda A: te.diagonal(A, 24, rng=0), 12),
}
"""With the programs that each may compile, a few more than it does; operation by operation they are 35 to 380."""


@pytest.mark.parametrize("name", FIRST_CALLS)
def test_a_first_call_outside_of_jit_compiles_few_programs(name, caplog):
    call, most = FIRST_CALLS[name]
    A = jnp.asarray(zoo.spectral("slowexp", 83))  # of a size that no other test has compiled for
    jax.clear_caches()
    with jax.log_compiles(True), caplog.at_level("WARNING", logger="jax"):
        call(te.aslinearoperator(A, symmetric=True, psd=True))
    compiled = [r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()]
    assert 0 < len(compiled) <= most, len(compiled)
