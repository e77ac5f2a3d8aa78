"""Traces of functions, densities and entropies: within their own error bars of the dense spectrum's."""

from __future__ import annotations

import sys
import tracemalloc
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import operators_zoo as zoo
import pytest
import torch
from assertions import Counter, assert_close, assert_counts

import traceest as te

LANCZOS = sys.modules["traceest.spectrum.lanczos"]
QUADRATURE = sys.modules["traceest.spectrum.quadrature"]
N = 1000
FUNCTIONS = {
    "log": np.log,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "x log x": lambda x: x * np.log(np.maximum(x, 1e-300)),
    "x²": lambda x: x**2,
    "1/(x + 0.01)": lambda x: 1 / (x + 1e-2),
}
SINGULAR = ("slowexp", "fastexp")  # to rounding: no log


def diagonal(eigenvalues, **known):
    """diag(λ): sphere probes know no basis, and this one is fast."""
    lam = eigenvalues[:, None]
    return te.aslinearoperator(lambda X: lam * X, like=np.zeros((len(lam), 1)), **known)


def held(estimates, truth):
    """The share of 95 % intervals that hold the truth, to rounding."""
    ends = [e.confidence_interval() for e in estimates]
    slack = 1e-10 * abs(truth)
    return np.mean([low - slack <= truth <= high + slack for low, high in ends])


def of_all_functions(spectrum, m, seeds, **options):
    """Estimates over seeds, by function; one Lanczos run serves all functions."""
    A = diagonal(zoo.SPECTRA[spectrum](N), psd=True)
    runs = [QUADRATURE.quadrature(A, m, caller="test", rng=seed, **options).clipped(0.0) for seed in range(seeds)]
    names = [f for f in FUNCTIONS if not (f == "log" and spectrum in SINGULAR)]
    return {f: [q.trace(FUNCTIONS[f]) for q in runs] for f in names}


def check_coverage(spectrum, m, seeds, at_least, **options):
    lam = zoo.SPECTRA[spectrum](N)
    for f, estimates in of_all_functions(spectrum, m, seeds, **options).items():
        share = held(estimates, np.sum(FUNCTIONS[f](lam)))
        assert share >= at_least, f"{f}: held in {share}"


@pytest.mark.parametrize("spectrum", zoo.SPECTRA)
def test_intervals_hold_the_dense_value(spectrum):
    check_coverage(spectrum, 120, 40, 0.82)  # four standard errors below 95 %


@pytest.mark.slow
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("spectrum", zoo.SPECTRA)
def test_intervals_hold_over_many_seeds(spectrum, keeps):
    check_coverage(spectrum, 240, 400, 0.93 - 2 * 0.0125, reorthogonalise=keeps)


@pytest.mark.parametrize("spectrum", zoo.SPECTRA)
def test_copies_of_eigenvalues_share_their_weight(spectrum):
    """Without reorthogonalisation the answers are the same, far within their bars, and the bars are.

    Where truncation rules (log of eigenvalues that fall), the copies take steps: not so many as half.
    """
    kept, lean, shorter = (
        of_all_functions(spectrum, None, 8, n_probes=4, steps=steps, reorthogonalise=keeps)
        for steps, keeps in ((60, True), (60, False), (30, True))
    )
    for f, estimates in kept.items():
        if (spectrum, f) == ("poly", "log"):
            assert all(float(a) < float(b) for a, b in zip(lean[f], shorter[f], strict=True))
            continue
        bars = np.array([float(e.stderr) for e in estimates])
        apart = np.array([float(a) - float(b) for a, b in zip(estimates, lean[f], strict=True)])
        assert np.sqrt(np.mean(apart**2) / np.mean(bars**2)) < 0.3, f
        assert np.mean([float(e.stderr) for e in lean[f]]) == pytest.approx(np.mean(bars), rel=0.1), f


@pytest.mark.parametrize("spectrum", zoo.SPECTRA)
def test_intervals_hold_without_reorthogonalisation(spectrum):
    check_coverage(spectrum, 240, 40, 0.82, reorthogonalise=False)


@pytest.mark.parametrize("spectrum", ["poly", "slowexp", "fastexp"])
def test_no_eigenvalue_comes_twice_from_a_basis_that_is_orthogonal(spectrum):
    A = diagonal(zoo.SPECTRA[spectrum](200))
    V = te.probes.sphere(200, 1, rng=0, like=A)

    def gap(**options):
        nodes = LANCZOS.gauss(np, LANCZOS.lanczos(np, A, V, 50, **options))[0][0]
        return np.min(np.diff(np.sort(nodes)[-6:]) / np.sort(nodes)[-5:])

    assert gap() > 1e-3
    assert gap(reorthogonalise=False) < 1e-12


def test_vectors_are_kept_as_long_as_those_of_a_run_fit_the_memory(monkeypatch):
    A, options = diagonal(zoo.SPECTRA["slowexp"](N)), {"n_probes": 3, "steps": 60, "rng": 0}
    kept, honest = [], QUADRATURE.Lanczos
    monkeypatch.setattr(QUADRATURE, "Lanczos", lambda *args: kept.append(args[3]) or honest(*args))

    def trace(**how):
        kept.clear()
        return float(te.trace_of_function(A, np.exp, **options, **how)), set(kept)

    by_default, lean = trace(), trace(reorthogonalise=False)
    assert by_default == trace(reorthogonalise=True) == (by_default[0], {True})
    assert lean[1] == {False}
    monkeypatch.setattr(QUADRATURE, "MEMORY", 8 * N * 30)
    assert trace() == lean


def test_without_reorthogonalisation_memory_does_not_grow_with_the_steps():
    n = 100_000
    lam = np.linspace(1.0, 3.0, n)
    A, V = diagonal(lam), te.probes.sphere(n, 1, rng=0, like=lam[:, None])

    def peak(steps):
        tracemalloc.start()
        LANCZOS.lanczos(np, A, V, steps, reorthogonalise=False)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(40) < 1.1 * peak(4) < 11 * V.nbytes


def entropies(spectrum, m, seeds, **options):
    lam = zoo.SPECTRA[spectrum](N)
    A = diagonal(lam, psd=True)
    p = lam / lam.sum()
    return [te.entropy_rank(A, m, rng=seed, **options) for seed in range(seeds)], exp_entropy(p[p > 1e-300])


@pytest.mark.parametrize("spectrum", zoo.SPECTRA)
def test_intervals_of_the_entropy_rank_hold(spectrum):
    estimates, truth = entropies(spectrum, 120, 60)
    assert held(estimates, truth) >= 0.84


@pytest.mark.slow
@pytest.mark.parametrize("m", [60, 120, 240])
@pytest.mark.parametrize("spectrum", zoo.SPECTRA)
def test_intervals_of_the_entropy_rank_hold_over_many_seeds(spectrum, m):
    estimates, truth = entropies(spectrum, m, 400)
    assert held(estimates, truth) >= 0.93 - 2 * 0.0125


@pytest.mark.parametrize("spectrum", ["poly", "fastexp"])
def test_deflation_takes_what_rules_the_sum(spectrum):
    lam = zoo.SPECTRA[spectrum](N)
    A, truth = diagonal(lam, psd=True), np.sum(lam**2)

    def errors(q):
        runs = [te.trace_of_function(A, lambda x: x * x, 240, n_deflate=q, rng=seed) for seed in range(20)]
        assert held(runs, truth) >= 0.75
        return np.sqrt(np.mean([(float(e) / truth - 1) ** 2 for e in runs]))

    assert errors(15) < 1e-3 * errors(0)
    plain, better = (
        np.std([float(e) for e in estimates]) / truth
        for estimates, truth in (entropies(spectrum, 240, 20, **o) for o in ({"n_deflate": 0}, {}))
    )
    assert better < 0.2 * plain


def test_a_deflated_quadrature_is_its_two_parts():
    A, q, s, t = zoo.spectral("poly", 60), 3, 2, 12
    Omega = te.probes.sphere(60, q + s, rng=1, like=A)
    e = te.trace_of_function(A, np.exp, probes=Omega, steps=t, n_deflate=q)
    powers = [np.linalg.matrix_power(A, i) @ Omega[:, :q] for i in range(5)]  # of seven blocks, two are behind X
    V = np.linalg.qr(np.concatenate(powers, axis=1))[0]
    theta, Y = np.linalg.eigh(V.T @ A @ V)
    X = V @ Y[:, np.argsort(-np.abs(theta))[:q]]
    lam, U = np.linalg.eigh(A)
    f = (U * np.exp(lam)) @ U.T
    G = Omega[:, q:] - X @ (X.T @ Omega[:, q:])
    forms = [(60 - q) * (g @ f @ g) / (g @ g) for g in G.T]
    assert float(e) == pytest.approx(np.trace(X.T @ f @ X) + np.mean(forms), rel=1e-8)


def test_a_dropped_basis_is_caught(monkeypatch):
    honest = QUADRATURE.Quadrature._mean
    dropped = lambda self, f, rule, basis: honest(self, f, rule, None)  # noqa: E731
    monkeypatch.setattr(QUADRATURE.Quadrature, "_mean", dropped)
    with pytest.raises(AssertionError):
        test_intervals_of_the_entropy_rank_hold("poly")
    with pytest.raises(AssertionError):
        test_a_deflated_quadrature_is_its_two_parts()


@pytest.mark.parametrize("spectrum", ["flat", "slowexp", "smallstep"])
def test_error_bars_have_the_size_of_the_errors(spectrum):
    lam = zoo.SPECTRA[spectrum](N)
    for f in ("exp", "1/(x + 0.01)"):
        estimates = of_all_functions(spectrum, 60, 150)[f]
        errors = np.array([float(e) for e in estimates]) - np.sum(FUNCTIONS[f](lam))
        bars = np.array([float(e.stderr) for e in estimates])
        ratio = np.sqrt(np.mean(bars**2) / np.mean(errors**2))
        assert 0.8 < ratio < 1.25, f"{f}: {ratio}"


@pytest.mark.parametrize("law", ["rademacher", "orthogonal", "gaussian"])
def test_other_laws_hold_too(law):
    A = zoo.spectral("flat", 200)
    estimates = [te.logdet(A, n_probes=12, steps=8, rng=seed, distribution=law) for seed in range(60)]
    assert held(estimates, np.linalg.slogdet(A)[1]) >= 0.83


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("keeps", [True, False])
def test_the_quadrature_is_the_textbooks(complex_, keeps):
    """vᴴf(A)v by Golub and Meurant: exact for polynomials of degree 2t − 1, and the first step is vᴴAv."""
    A = zoo.with_spectrum(np.linspace(-1.0, 2.0, 30), complex_=complex_)
    V = te.probes.sphere(30, 3, rng=0, like=A)
    nodes, weights = LANCZOS.gauss(np, LANCZOS.lanczos(np, A_op(A), V, 4, keeps))
    assert_close(np.sum(weights, axis=1), np.ones(3), 1e-13)
    for degree in range(8):
        truth = np.sum(V.conj() * (np.linalg.matrix_power(A, degree) @ V), axis=0).real / 30
        assert_close(np.sum(weights * nodes**degree, axis=1), truth, 1e-11)


def A_op(A):
    return te.aslinearoperator(A)


def test_shift_norms_and_entropy_are_the_dense_ones_within_their_bars():
    lam = zoo.SPECTRA["slowexp"](300)
    A = zoo.with_spectrum(lam)
    signed = zoo.indefinite(300)
    general = zoo.nonsymmetric(300)
    sigma = np.linalg.svd(general, compute_uv=False)
    cases = {
        "logdet": (lambda s: te.logdet(A, 120, shift=0.1, rng=s), np.sum(np.log(lam + 0.1))),
        "nuclear": (lambda s: te.schatten_norm(general, 1, 90, rng=s), np.sum(sigma)),
        "p = 3": (
            lambda s: te.schatten_norm(te.aslinearoperator(signed, symmetric=True), 3, 60, rng=s),
            np.sum(np.abs(np.linalg.eigvalsh(signed)) ** 3) ** (1 / 3),
        ),
        "entropy": (lambda s: te.entropy_rank(A, 120, rng=s), exp_entropy(lam / lam.sum())),
    }
    for name, (f, truth) in cases.items():
        estimates = [f(s) for s in range(24)]
        assert held(estimates, truth) >= 0.77, name
        assert np.mean([float(e.stderr) for e in estimates]) < 0.4 * abs(truth), name


def exp_entropy(p):
    return np.exp(-np.sum(p * np.log(p)))


EXACT = {
    "trace of a function": (lambda A, m: te.trace_of_function(A, np.sqrt, m), lambda lam: np.sum(np.sqrt(lam))),
    "logdet": (lambda A, m: te.logdet(A, m, shift=0.5), lambda lam: np.sum(np.log(lam + 0.5))),
    "schatten": (lambda A, m: te.schatten_norm(te.aslinearoperator(A, symmetric=True), 1, m), np.sum),
    "entropy": (lambda A, m: te.entropy_rank(A, m), lambda lam: exp_entropy(lam / lam.sum())),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("m", [36, 1000])
def test_a_budget_that_reaches_the_exact_answer_gives_it(name, m):
    counter = Counter(te.aslinearoperator(zoo.spectral("poly", 36)))
    f, truth = EXACT[name]
    e = f(counter, m)
    assert float(e) == pytest.approx(truth(zoo.SPECTRA["poly"](36)), rel=1e-10)
    assert e.exact
    assert float(e.stderr) == 0
    assert_counts(e, counter, budget=36)


def test_blocks_reach_it_by_vjps_at_the_length_of_one():
    J = zoo.jacobian(4, 9, 50)
    counter = Counter(te.aslinearoperator(J, n_blocks=4))
    e = te.logdet(te.gram(counter), 9, rng=0)
    assert_counts(e, counter, budget=9)
    assert (e.n_matvecs, e.n_rmatvecs, e.exact) == (0, 9, True)
    assert float(e) == pytest.approx(np.linalg.slogdet(J @ J.T)[1], rel=1e-10)


@pytest.mark.parametrize("m", [2, 3, 7, 20, 35])
def test_products_are_counted_and_the_budget_kept(m):
    for split in ({}, {"steps": 2}, {"n_probes": 1}, {"n_deflate": (m - 2) // 7}):
        counter = Counter(te.aslinearoperator(zoo.spectral("poly", 60)))
        assert_counts(te.logdet(counter, m, shift=0.1, rng=0, **split), counter, budget=m)
    counter = Counter(te.aslinearoperator(zoo.jacobian(4, 15, 80)))
    assert_counts(te.entropy_rank(te.gram(counter), m, rng=0), counter, budget=m)
    counter = Counter(te.aslinearoperator(zoo.jacobian(4, 15, 80)))
    d = te.spectral_density(te.gram(counter), m, rng=0)
    assert (d.n_matvecs, d.n_rmatvecs) == (counter.n_matvecs, counter.n_rmatvecs)
    assert max(d.n_matvecs, d.n_rmatvecs) <= m


def test_chunks_change_nothing():
    A = zoo.spectral("poly", 60)
    counter = Counter(te.aslinearoperator(A))
    chunked = te.trace_of_function(counter, np.exp, n_probes=5, steps=6, rng=0, chunk_size=2)
    whole = te.trace_of_function(A, np.exp, n_probes=5, steps=6, rng=0)
    assert counter.widest == 2
    assert_close([chunked.value, chunked.stderr], [whole.value, whole.stderr], 1e-12)


PSD = {
    "zero": np.zeros((40, 40)),
    "identity": np.eye(40),
    "low rank": zoo.low_rank(40, 2),
}


@pytest.mark.parametrize("name", PSD)
def test_breakdown_is_no_event(backend, name):
    """Krylov spaces that end early give exact quadratures, and no NaN."""
    A, xp = PSD[name], backend.xp
    lam = np.maximum(np.linalg.eigvalsh(A), 0.0)

    def f(A):
        A = te.aslinearoperator(A, psd=True)
        return [
            te.trace_of_function(A, lambda x: 1 / (1 + x), n_probes=3, steps=4, rng=0),
            te.trace_of_function(A, xp.sqrt, n_probes=3, steps=4, rng=0),
            te.logdet(A, n_probes=3, steps=4, shift=1.0, rng=0),
        ]

    truths = [np.sum(1 / (1 + lam)), np.sum(np.sqrt(lam)), np.sum(np.log(1 + lam))]
    for e, truth in zip(backend.call(f, A), truths, strict=True):
        assert np.isfinite(float(e.value))
        assert np.isfinite(float(e.stderr))
        assert abs(float(e.value) - truth) <= 4 * float(e.stderr) + 1e-6


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("operator", ["flat", "rank one", "zero", "identity"])
def test_tiny_operators_are_answered_exactly(operator, n):
    A = zoo.SQUARE[operator](n)
    lam = np.maximum(np.linalg.eigvalsh(A), 0)
    psd = te.aslinearoperator(A, psd=True)
    assert float(te.trace_of_function(psd, np.sqrt, 20)) == pytest.approx(np.sum(np.sqrt(lam)), abs=1e-7)
    assert float(te.logdet(psd, 20, shift=1.0)) == pytest.approx(np.sum(np.log1p(lam)), abs=1e-12)
    assert float(te.schatten_norm(psd, 1, 20)) == pytest.approx(np.sum(lam), abs=1e-12)
    rank = float(te.entropy_rank(psd, 20))
    assert np.isnan(rank) if operator == "zero" else 1 - 1e-9 <= rank <= n + 1e-9
    assert np.all(np.isfinite(te.spectral_density(psd, 20).density))


def test_a_singular_operator_has_a_finite_logdet():
    assert np.isfinite(float(te.logdet(zoo.low_rank(60, 5), 40, rng=0)))


@pytest.mark.parametrize(("dtype", "exponent"), [("float32", 60), ("float64", -500)])
def test_scale_is_only_a_factor(backend, dtype, exponent):
    A = zoo.spectral("slowexp", 40).astype(dtype)

    def f(A):
        A = te.aslinearoperator(A, psd=True)
        norm, rank = (
            te.schatten_norm(A, 0.5, n_probes=2, steps=3, rng=0),
            te.entropy_rank(A, n_probes=2, steps=3, rng=0),
        )
        return norm.value, norm.stderr, rank.value, rank.stderr

    plain, scaled = backend.call(f, A), backend.call(f, np.ldexp(A, exponent))
    rtol = 1e-9 if dtype == "float64" else 1e-2
    for x, y, power in zip(plain, scaled, (exponent, exponent, 0, 0), strict=True):
        assert np.ldexp(float(y), -power) == pytest.approx(float(x), rel=rtol)


CALLS = {
    "square": lambda A: te.trace_of_function(A, lambda x: x * x, n_probes=2, steps=4, rng=0),
    "square, deflated": lambda A: te.trace_of_function(A, lambda x: x * x, 22, n_deflate=2, rng=0),
    "logdet, rademacher": lambda A: te.logdet(A, n_probes=3, steps=4, shift=2.0, rng=0, distribution="rademacher"),
    "logdet, orthogonal": lambda A: te.logdet(A, n_probes=3, steps=4, shift=2.0, rng=0, distribution="orthogonal"),
    "nuclear norm of any": lambda A: te.schatten_norm(A, 1, n_probes=2, steps=4, rng=0),
    "entropy of a kernel": lambda A: te.entropy_rank(te.gram(A), n_probes=2, steps=4, rng=0),
    "exact": lambda A: te.logdet(te.gram(A), 40, shift=1.0),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_backends_agree_with_numpy(backend, name, dtype):
    A = (zoo.hermitian(40) if dtype.startswith("complex") else zoo.indefinite(40)).astype(dtype)
    expected, got = CALLS[name](A), backend.call(CALLS[name], A)
    rtol = 1e-4 if dtype == "float32" else 1e-10
    assert_close(backend.host(got.value), expected.value, rtol)
    assert_close(backend.host(got.stderr), expected.stderr, 100 * rtol)
    assert backend.host(got.value).dtype == backend.host(got.stderr).dtype == A.real.dtype
    assert got.value.shape == got.stderr.shape == got.df.shape == ()
    assert (got.n_matvecs, got.n_rmatvecs, got.method) == (expected.n_matvecs, expected.n_rmatvecs, expected.method)


def test_densities_agree_with_numpy_and_leave_jit(backend):
    f = lambda A: te.spectral_density(A, n_probes=2, steps=4, n_points=50, rng=0)  # noqa: E731
    A = zoo.indefinite(40)
    expected, got = f(A), backend.call(f, A)
    for field in ("grid", "density", "stderr", "width", "nodes", "weights"):
        assert_close(backend.host(getattr(got, field)), getattr(expected, field), 1e-9)
    assert got.cumulative(np.array([-9.0, 9.0])) == pytest.approx([0, 1])


def test_seeds_are_mapped_over_and_compiled():
    A, keys = jnp.asarray(zoo.spectral("poly", 20)), jax.random.split(jax.random.key(3), 3)
    f = lambda key: te.logdet(A, n_probes=2, steps=5, shift=0.1, rng=key)  # noqa: E731
    mapped = jax.jit(jax.vmap(f))(keys)
    apart = [jax.jit(f)(key) for key in keys]
    assert_close(mapped.value, [e.value for e in apart], 1e-10)
    assert_close(mapped.stderr, [e.stderr for e in apart], 1e-8)


@pytest.mark.parametrize("operator", [zoo.spectral("flat", 12), zoo.low_rank(12, 2)], ids=["flat", "low rank"])
def test_gradients_go_through_and_agree_between_libraries(operator):
    f = lambda A: te.logdet(A, n_probes=2, steps=4, shift=0.5, rng=0).value  # noqa: E731
    g = jax.jit(jax.grad(f))(jnp.asarray(operator))
    leaf = torch.from_numpy(operator.copy()).requires_grad_()
    f(leaf).backward()
    assert np.all(np.isfinite(g))
    assert np.all(np.isfinite(leaf.grad.numpy()))
    if operator[0, 0] > 1:  # flat: no breakdown
        assert_close(g, leaf.grad, 1e-8)
        step = 1e-6 * np.random.default_rng(0).standard_normal(operator.shape)
        slope = (float(f(operator + step)) - float(f(operator - step))) / 2
        assert np.sum(np.asarray(g) * step) == pytest.approx(slope, rel=1e-3)


def check_density(seeds):
    lam = zoo.SPECTRA["flat"](N)
    grid = np.linspace(1.2, 2.8, 9)
    inside = []
    for seed in range(seeds):
        d = te.spectral_density(diagonal(lam), 60, grid=grid, width=0.1, rng=seed)
        truth = np.mean(np.exp(-0.5 * ((grid[:, None] - lam) / 0.1) ** 2), axis=1) / (0.1 * (2 * np.pi) ** 0.5)
        low, high = d.band()
        inside.append(np.mean((low <= truth) & (truth <= high)))
    assert np.mean(inside) >= 0.9, f"inside {np.mean(inside)}"


def test_bands_hold_the_broadened_density():
    check_density(40)


def test_a_density_is_one_and_its_cumulative_grows():
    lam = zoo.SPECTRA["slowexp"](200)
    for m in (60, 200):
        d = te.spectral_density(diagonal(lam), m, rng=0)
        assert np.sum(d.density) * (d.grid[1] - d.grid[0]) == pytest.approx(1, abs=0.01)
        c = d.cumulative(d.grid)
        assert np.all(np.diff(c) >= 0)
        assert c[-1] == pytest.approx(1, abs=0.01)


def test_a_density_is_drawn():
    matplotlib = pytest.importorskip("matplotlib", reason="plots need matplotlib")
    matplotlib.use("Agg")
    ax = te.spectral_density(zoo.spectral("flat", 60), 30, rng=0).plot(label="A")
    assert len(ax.lines) == 1
    assert len(ax.collections) == 1
    matplotlib.pyplot.close(ax.figure)


FLAT = zoo.spectral("flat", 60)
FORWARD = te.Operator((60, 60), like=np.zeros(0), matmat=lambda X: X)
REVERSE = te.Operator((60, 20), like=np.zeros(0), rmatmat=lambda X: X[:20, :])
ERRORS = {
    "oblong": (lambda: te.logdet(np.ones((3, 2)), 5), ValueError, "logdet: expected a square operator"),
    "no budget": (lambda: te.logdet(FLAT), TypeError, "give a budget, n_matvecs=100 for instance, or both n_probes="),
    "half a budget": (lambda: te.logdet(FLAT, steps=5), TypeError, "give a budget"),
    "deflation": (
        lambda: te.trace_of_function(FLAT, np.exp, 20, n_deflate=3),
        ValueError,
        "n_deflate = 3 directions take 21 products, n_matvecs = 20 leaves 0",
    ),
    "budget": (lambda: te.entropy_rank(FLAT, 1), ValueError, "n_matvecs = 1 is below the method's minimum of 2"),
    "one step": (lambda: te.logdet(FLAT, 9, steps=1), ValueError, "steps = 1 is below the method's minimum of 2"),
    "overdrawn": (
        lambda: te.logdet(FLAT, 9, steps=5, n_probes=2),
        ValueError,
        "make 10 products, n_matvecs = 9 allows",
    ),
    "p": (lambda: te.schatten_norm(FLAT, 0, 9), ValueError, "p must be positive and finite, got 0; p = ∞ is spectral"),
    "one side": (lambda: te.schatten_norm(FORWARD, 1, 9), TypeError, "needs matmat and rmatmat"),
    "vjps": (lambda: te.logdet(te.gram(REVERSE), 9), TypeError, "has one side alone; .* a budget of 60 products"),
    "width": (lambda: te.spectral_density(FLAT, 9, width=0), ValueError, "width must be > 0, got 0"),
    "points": (lambda: te.spectral_density(FLAT, 9, n_points=1), ValueError, "n_points = 1 is below"),
    "law": (lambda: te.logdet(FLAT, 9, distribution="x"), ValueError, "distribution must be one of"),
    "probes": (lambda: te.logdet(FLAT, steps=3, probes=np.ones((59, 2))), ValueError, r"shape \(60, k\)"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_named_with_its_cure(name):
    call, kind, message = ERRORS[name]
    with pytest.raises(kind, match=f"(?s){message}"):
        call()


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_error_bars_of_the_wrong_size_are_caught(monkeypatch, factor):
    honest = QUADRATURE.Quadrature.trace

    def wrong(self, f, **fields):
        e = honest(self, f, **fields)
        return replace(e, stderr=factor * e.stderr, reach=None)

    monkeypatch.setattr(QUADRATURE.Quadrature, "trace", wrong)
    with pytest.raises(AssertionError):
        test_error_bars_have_the_size_of_the_errors("flat")
    if factor < 1:
        with pytest.raises(AssertionError, match="held"):
            check_coverage("smallstep", 60, 60, 0.82)
        with pytest.raises(AssertionError, match="inside"):
            check_density(40)


def test_truncation_that_is_not_owned_up_to_is_caught(monkeypatch):
    monkeypatch.setattr(QUADRATURE, "_hypot", lambda xp, stderr, truncation: stderr)
    with pytest.raises(AssertionError, match="held"):
        check_coverage("poly", 120, 40, 0.82)


def test_a_basis_that_is_not_orthogonal_is_caught(monkeypatch):
    monkeypatch.setattr(LANCZOS, "_orthogonalised", lambda arrays: arrays[1])
    with pytest.raises(AssertionError):
        test_no_eigenvalue_comes_twice_from_a_basis_that_is_orthogonal("slowexp")


def test_lengths_of_the_wrong_unit_are_caught(monkeypatch):
    honest = LANCZOS._lengths
    monkeypatch.setattr(LANCZOS, "_lengths", lambda xp, w, size: honest(xp, w, size) * size)
    for keeps in (True, False):
        with pytest.raises(AssertionError):
            test_the_quadrature_is_the_textbooks(False, keeps)


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_the_scale_of_a_float32_operator_does_not_matter(scale, keeps):
    lam = zoo.SPECTRA["slowexp"](300).astype(np.float32)[:, None]

    def nodes(c):
        A = te.aslinearoperator(lambda X: (np.float32(c) * lam) * X, like=lam, symmetric=True)
        V = te.probes.sphere(300, 2, rng=0, like=A)
        return LANCZOS.gauss(np, LANCZOS.lanczos(np, A, V, 12, keeps))[0]

    assert_close(nodes(scale) / scale, nodes(1.0), 1e-4)


def test_weights_of_the_wrong_row_are_caught(monkeypatch):
    honest = LANCZOS.gauss
    monkeypatch.setattr(QUADRATURE, "gauss", lambda *args: (lambda r: (r[0], r[1][:, ::-1]))(honest(*args)))
    with pytest.raises(AssertionError, match="held"):
        check_coverage("slowexp", 120, 20, 0.82)
