"""Extreme eigenvalues and spectral norms: those of dense linear algebra, within the bounds that they come with."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import operators_zoo as zoo
import pytest
import torch
from assertions import Counter, assert_close, assert_counts

import traceest as te

KRYLOV = sys.modules["traceest.spectrum.krylov"]
SOLVER = sys.modules["traceest.spectrum.eigenvalues"]
N = 1000


def diagonal(eigenvalues, **known):
    """diag(λ): Gaussian probes know no basis, and this one is fast."""
    lam = eigenvalues[:, None]
    return te.aslinearoperator(lambda X: lam * X, like=np.zeros((len(lam), 1)), **known)


def within_bounds(e, truth):
    truth = np.asarray(truth)
    off = np.abs(np.asarray(e.values) - truth)
    assert np.all(off <= np.asarray(e.bounds)), f"off {off}, bounds {e.bounds}"
    assert np.all(np.asarray(e.bounds) <= np.asarray(e.residuals) + 1e-12 * np.max(np.abs(truth)))


def top_six(spectrum, n=N, **options):
    lam = np.sort(zoo.SPECTRA[spectrum](n))
    e = te.eigenvalues(diagonal(lam), 6, rng=0, **options)
    within_bounds(e, lam[::-1][:6])
    return e, lam[::-1][:6]


@pytest.mark.parametrize("spectrum", [s for s in zoo.SPECTRA if s != "flat"])
def test_the_largest_are_the_dense_ones_to_a_millionth(spectrum):
    e, truth = top_six(spectrum)
    np.testing.assert_allclose(e.values, truth, rtol=1e-6)
    assert e.converged
    assert e.n_matvecs <= 60


@pytest.mark.parametrize("n", [200, pytest.param(N, marks=pytest.mark.slow)])
def test_they_are_where_no_gap_sets_them_apart(n):
    e, truth = top_six("flat", n=n)
    np.testing.assert_allclose(e.values, truth, rtol=1e-6)
    assert e.converged
    assert e.n_matvecs < n


@pytest.mark.parametrize("spectrum", zoo.SPECTRA)
def test_a_budget_is_kept_and_the_bounds_hold_before_convergence(spectrum):
    for m in (24, 33, 60):
        e, _ = top_six(spectrum, n_matvecs=m, rtol=None)
        assert e.n_matvecs == m
        assert e.converged is None
    e, _ = top_six("flat", n_matvecs=60)
    assert (e.converged, e.n_matvecs) == (False, 60)


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
@pytest.mark.parametrize("complex_", [False, True])
def test_either_end_of_an_indefinite_operator(which, complex_):
    A = zoo.with_spectrum(np.linspace(-3.03, 2.9, 60), complex_=complex_)
    lam = np.linalg.eigvalsh(A)
    truth = {"largest": lam[::-1], "smallest": lam, "magnitude": lam[np.argsort(-np.abs(lam))]}[which][:5]
    e = te.eigenvalues(A, 5, which=which, vectors=True, rng=0)
    within_bounds(e, truth)
    assert_close(e.values, truth, 1e-8)
    X = e.vectors
    assert_close(X.conj().T @ X, np.eye(5), 1e-12)
    assert_close(np.linalg.norm(A @ X - X * e.values, axis=0), e.residuals, 1e-3 if e.residuals.max() > 1e-12 else 10)


def test_vectors_come_only_when_asked_for():
    assert te.eigenvalues(zoo.spectral("poly", 50), 2, rng=0).vectors is None


@pytest.mark.parametrize("method", ["krylov", "exact"])
@pytest.mark.parametrize("n", [1, 2, 3, 40])
@pytest.mark.parametrize("operator", ["zero", "identity", "rank one", "flat", "indefinite", "low rank", "hermitian"])
def test_degenerate_operators_are_right_to_rounding(operator, n, method):
    A = zoo.SQUARE[operator](n)
    for which in ("largest", "smallest", "magnitude"):
        k = min(n, 6)
        lam = np.linalg.eigvalsh(A)
        truth = {"largest": lam[::-1], "smallest": lam, "magnitude": lam[np.argsort(-np.abs(lam))]}[which][:k]
        e = te.eigenvalues(A, k, which=which, method=method, rng=0, vectors=True)
        signed = np.asarray if which != "magnitude" else np.abs  # ±λ come in either order
        np.testing.assert_allclose(signed(e.values), signed(truth), atol=1e-8 * max(1, abs(truth[0])))
        assert_close(e.vectors.conj().T @ e.vectors, np.eye(k), 1e-12)
        assert e.converged


@pytest.mark.parametrize("multiplicity", [3, 6])
def test_repeated_eigenvalues_are_all_found(multiplicity):
    lam = np.concatenate([np.full(multiplicity, 2.0), np.linspace(0, 1, 200 - multiplicity)])
    e = te.eigenvalues(diagonal(lam), 6, rng=0)
    within_bounds(e, np.sort(lam)[::-1][:6])
    assert_close(e.values, np.sort(lam)[::-1][:6], 1e-8)


@pytest.mark.parametrize(("dtype", "exponent"), [("float32", 60), ("float64", -500)])
def test_scale_is_only_a_factor(backend, dtype, exponent):
    A = zoo.spectral("slowexp", 40).astype(dtype)

    def f(A):
        e = te.eigenvalues(A, 3, n_matvecs=9, rtol=None, rng=0)
        return e.values, e.bounds

    plain, scaled = backend.call(f, A), backend.call(f, np.ldexp(A, exponent))
    rtol = 1e-12 if dtype == "float64" else 1e-4
    for x, y in zip(plain, scaled, strict=True):
        assert_close(np.ldexp(backend.host(y), -exponent), backend.host(x), 100 * rtol)


CALLS = {
    "largest": lambda A: te.eigenvalues(A, 3, n_matvecs=12, rtol=None, rng=0),
    "magnitude": lambda A: te.eigenvalues(A, 3, n_matvecs=12, rtol=None, rng=0, which="magnitude"),
    "exact": lambda A: te.eigenvalues(A, 3, rng=0, method="exact"),
    "of a kernel": lambda A: te.eigenvalues(te.gram(A), 3, n_matvecs=12, rtol=None, rng=0, which="smallest"),
    "of a kernel, by blocks": lambda A: te.eigenvalues(te.gram(A, n_blocks=8), 3, n_matvecs=5, rtol=None),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_backends_agree_with_numpy(backend, name, dtype):
    A = (zoo.hermitian(40) if dtype.startswith("complex") else zoo.indefinite(40)).astype(dtype)
    expected, got = CALLS[name](A), backend.call(CALLS[name], A)
    rtol = 1e-3 if dtype == "float32" else 1e-9
    for field in ("values", "residuals", "bounds"):
        x = backend.host(getattr(got, field))
        assert_close(x, getattr(expected, field), rtol if field == "values" or expected.method != "exact" else 1e9)
        assert x.dtype == expected.values.dtype
    assert (got.n_matvecs, got.n_rmatvecs, got.method) == (expected.n_matvecs, expected.n_rmatvecs, expected.method)


def test_growth_looks_at_values_on_every_backend(backend):
    if backend.jitted:
        pytest.skip("with a tolerance it looks at values to decide when to stop; rtol=None goes inside jax.jit")
    A = zoo.spectral("poly", 60)
    e, expected = (te.eigenvalues(X, 2, rtol=1e-3, rng=0) for X in (backend.asarray(A), A))
    assert_close(backend.host(e.values), expected.values, 1e-10)
    assert e.n_matvecs == expected.n_matvecs < 40


def test_gradients_are_those_of_the_eigenvalue():
    A = zoo.spectral("poly", 30)
    f = lambda A: te.eigenvalues(A, 1, n_matvecs=8, rtol=None, block_size=2, rng=0).values[0]  # noqa: E731
    _, U = np.linalg.eigh(A)
    leaf = torch.from_numpy(A.copy()).requires_grad_()
    f(leaf).backward()
    for g in (jax.jit(jax.grad(f))(jnp.asarray(A)), leaf.grad):
        g = np.asarray(g)
        assert_close((g + g.T) / 2, np.outer(U[:, -1], U[:, -1]), 1e-6)


@pytest.mark.parametrize("m", [6, 7, 13, 30])
def test_products_are_counted_and_the_budget_kept(m):
    counter = Counter(te.aslinearoperator(zoo.spectral("flat", 60)))
    assert_counts(te.eigenvalues(counter, 3, n_matvecs=m, rng=0), counter, budget=m)
    counter = Counter(te.aslinearoperator(zoo.jacobian(4, 15, 30)))
    assert_counts(te.eigenvalues(te.gram(counter), 3, n_matvecs=m, rng=0), counter, budget=m)
    if m > 8:
        counter = Counter(te.aslinearoperator(zoo.nonsymmetric(60)))
        assert_counts(te.spectral_norm(counter, m, rng=0), counter, budget=m)


def test_one_side_of_a_kernel_is_enough_for_all_of_it():
    J = zoo.jacobian(4, 9, 20)
    op = te.aslinearoperator(J, n_blocks=4)
    reverse = te.Operator(J.shape, like=J, rmatmat=op.rmatmat, block_rmatmat=op.block_rmatmat, n_blocks=4)
    e = te.eigenvalues(te.gram(reverse), 5)
    assert_close(e.values, np.linalg.eigvalsh(J @ J.T)[::-1][:5], 1e-12)
    assert (e.n_matvecs, e.n_rmatvecs, e.method) == (0, 9, "exact")


NORMS = {
    **{name: (lambda n, name=name: zoo.SPECTRA[name](n)) for name in zoo.SPECTRA},
    "outlier": lambda n: np.append(np.linspace(1, 3, n - 1), 3.02),
    "both signs": lambda n: np.linspace(-3.05, 3.0, n),
}


def check_norm(spectrum, m, seeds):
    lam = NORMS[spectrum](300)
    A, truth = diagonal(lam, symmetric=True), np.max(np.abs(lam))
    ends = [te.spectral_norm(A, m, rtol=None, rng=seed).confidence_interval() for seed in range(seeds)]
    held = np.mean([low <= truth * (1 + 1e-13) and truth * (1 - 1e-13) <= high for low, high in ends])
    assert held >= 0.93, f"held in {held}"


@pytest.mark.parametrize("spectrum", NORMS)
@pytest.mark.parametrize("m", [8, 16])
def test_the_interval_holds_the_norm(spectrum, m):
    check_norm(spectrum, m, 60)


@pytest.mark.slow
@pytest.mark.parametrize("spectrum", NORMS)
@pytest.mark.parametrize("m", [8, 10, 14, 20, 40])
def test_the_interval_holds_the_norm_over_many_seeds(spectrum, m):
    check_norm(spectrum, m, 400)


MATRICES = {
    "nonsymmetric": zoo.nonsymmetric(80),
    "complex": zoo.complex_general(80),
    "tall": zoo.jacobian(4, 20, 30),
    "wide": zoo.jacobian(4, 5, 90),
    "zero": np.zeros((50, 40)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_the_norm_of_any_matrix(name):
    e = te.spectral_norm(MATRICES[name], rtol=1e-4, rng=0)
    assert e.converged
    check_interval(e, np.linalg.norm(MATRICES[name], 2), 1e-4)


def test_the_norm_on_every_backend(backend):
    e = backend.call(lambda A: te.spectral_norm(A, 8, rtol=None, rng=0), MATRICES["complex"])
    check_interval(e, np.linalg.norm(MATRICES["complex"], 2), 0.1)


def check_interval(e, truth, rtol):
    low, high = e.confidence_interval()
    assert low - 1e-12 <= truth <= high + 1e-12
    assert float(e.value) == pytest.approx(truth, rel=rtol, abs=1e-15)


@pytest.mark.parametrize("n", [1, 2, 3, 16])
def test_small_norms_are_exact(n):
    A = zoo.indefinite(n)
    e = te.spectral_norm(te.aslinearoperator(A, symmetric=True), rng=0)
    assert float(e) == pytest.approx(np.linalg.norm(A, 2), rel=1e-13)
    assert e.exact
    assert float(e.stderr) == 0


REVERSE = te.Operator((60, 20), like=np.zeros(0), rmatmat=lambda X: X[:20, :])
FORWARD = te.Operator((60, 60), like=np.zeros(0), matmat=lambda X: X)
FLAT = zoo.spectral("flat", 60)
ERRORS = {
    "oblong": (lambda: te.eigenvalues(np.ones((3, 2))), ValueError, "eigenvalues: expected a square operator"),
    "k": (lambda: te.eigenvalues(np.eye(3), 4), ValueError, "k = 4 eigenvalues of an operator that has 3; ask for"),
    "k zero": (lambda: te.eigenvalues(FLAT, 0), ValueError, "k = 0 is below the method's minimum of 1"),
    "budget": (lambda: te.eigenvalues(FLAT, 6, n_matvecs=5), ValueError, "n_matvecs = 5 is below the method's minimum"),
    "which": (lambda: te.eigenvalues(FLAT, which="top"), ValueError, "which must be one of largest, smallest"),
    "method": (lambda: te.eigenvalues(FLAT, method="x"), ValueError, "method must be auto, krylov or exact"),
    "rtol": (lambda: te.eigenvalues(FLAT, rtol=0), ValueError, "rtol must be > 0, or None for a fixed budget; got 0"),
    "no budget": (
        lambda: te.eigenvalues(FLAT, rtol=None),
        TypeError,
        "rtol=None spends a fixed budget; give n_matvecs",
    ),
    "exact": (lambda: te.eigenvalues(FLAT, n_matvecs=9, method="exact"), ValueError, "cost 60 products, n_matvecs = 9"),
    "vjps": (
        lambda: te.eigenvalues(te.gram(REVERSE), n_matvecs=30),
        TypeError,
        "has one side alone; give J both sides .* or, of a kernel that fits in memory, a budget of 60 products",
    ),
    "norm, budget": (lambda: te.spectral_norm(FLAT, 7), ValueError, "n_matvecs = 7 is below the method's minimum of 8"),
    "norm, side": (lambda: te.spectral_norm(FORWARD), TypeError, "needs matmat and rmatmat .*symmetric=True"),
    "nan": (
        lambda: te.eigenvalues(FLAT * np.nan),
        ValueError,
        "eigenvalues: NaN or infinity in the product A V, column",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_named_with_its_cure(name):
    call, kind, message = ERRORS[name]
    with pytest.raises(kind, match=f"(?s){message}"):
        call()


def test_bounds_that_are_too_small_are_caught(monkeypatch):
    honest = KRYLOV._bounds
    monkeypatch.setattr(KRYLOV, "_bounds", lambda *args: honest(*args) / 30)
    with pytest.raises(AssertionError, match="off"):
        test_a_budget_is_kept_and_the_bounds_hold_before_convergence("slowexp")


def test_a_space_that_is_not_orthogonal_is_caught(monkeypatch):
    monkeypatch.setattr(KRYLOV, "deflate", lambda xp, Q, G: G)
    with pytest.raises(AssertionError):
        test_either_end_of_an_indefinite_operator("largest", False)


def test_a_norm_sure_of_itself_is_caught(monkeypatch):
    norm = sys.modules["traceest.spectrum.norm"]
    honest = norm.solve

    def sure(*args):
        ritz, meter, converged = honest(*args)
        return ritz._replace(bounds=ritz.bounds / 30), meter, converged

    monkeypatch.setattr(norm, "solve", sure)
    with pytest.raises(AssertionError, match="held"):
        check_norm("flat", 16, 20)
