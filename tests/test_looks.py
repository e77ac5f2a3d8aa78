"""What a call declares of its operator is looked at: self-adjoint, positive; and truncation is owned up to."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import operators_zoo as zoo
import pytest
import torch

import traceest as te

LOOKS = sys.modules["traceest.spectrum.looks"]
TRUNCATION = sys.modules["traceest.spectrum.truncation"]
N = 120


def one_entry(n):
    A = 2 * np.eye(n)
    A[0, 1] = 5.0
    return A


NOT_SELF_ADJOINT = {
    "general": zoo.nonsymmetric(N),
    "nearly scalar": np.eye(N) + 1e-3 * zoo.nonsymmetric(N),
    "triangular": np.triu(zoo.nonsymmetric(N)),
    "skew": zoo.nonsymmetric(N) - zoo.nonsymmetric(N).T,
    "a permutation": np.roll(np.eye(N), 1, axis=0),
    "one entry": one_entry(N),
    "imaginary": np.diag(1j * np.linspace(1.0, 2.0, N)),
    "complex symmetric": (1 + 1j) * zoo.spectral("flat", N),
    "complex": zoo.complex_general(N),
}


def declared(A):
    return te.aslinearoperator(A, symmetric=True)


SPECTRAL = {
    "trace_of_function": lambda A, m: te.trace_of_function(A, np.exp, m, rng=0),
    "trace_of_function, deflated": lambda A, m: te.trace_of_function(A, np.exp, m, n_deflate=1, rng=0),
    "trace_of_function, one probe": lambda A, m: te.trace_of_function(A, np.exp, m, n_probes=1, rng=0),
    "logdet": lambda A, m: te.logdet(A, m, rng=0),
    "entropy_rank": lambda A, m: te.entropy_rank(A, m, rng=0),
    "schatten_norm": lambda A, m: te.schatten_norm(declared(A), 1, m, rng=0),
    "spectral_density": lambda A, m: te.spectral_density(A, m, rng=0),
    "eigenvalues": lambda A, m: te.eigenvalues(A, 2, n_matvecs=m, rng=0),
    "spectral_norm": lambda A, m: te.spectral_norm(declared(A), m, rng=0),
}


@pytest.mark.parametrize("m", [40, N])
@pytest.mark.parametrize("kind", NOT_SELF_ADJOINT)
@pytest.mark.parametrize("call", SPECTRAL)
def test_what_is_not_self_adjoint_has_no_spectrum_by_lanczos(call, kind, m):
    with pytest.raises(ValueError, match="A is not self-adjoint"):
        SPECTRAL[call](NOT_SELF_ADJOINT[kind], m)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
@pytest.mark.parametrize("spectrum", [*zoo.SPECTRA, "indefinite", "low rank", "rank one", "zero", "identity"])
def test_what_is_self_adjoint_passes_to_rounding(spectrum, dtype):
    A = zoo.SQUARE[spectrum](N).astype(dtype)
    for m in (6, 40, N):
        for seed in range(2):
            te.trace_of_function(A, np.exp, m, rng=seed)
            te.trace_of_function(A, np.exp, m, rng=seed, reorthogonalise=False)
            te.eigenvalues(A, 2, n_matvecs=m, rng=seed)


NOT_POSITIVE = {
    "negative definite": -zoo.spectral("flat", N),
    "indefinite": zoo.indefinite(N),
    "one negative": zoo.with_spectrum(np.append(np.linspace(1.0, 2.0, N - 1), -3.0)),
    "half of it": zoo.with_spectrum(np.concatenate([np.linspace(1, 3, N // 2), -np.linspace(1, 3, N // 2)])),
}
POSITIVE = {
    "logdet": lambda A, m: te.logdet(A, m, rng=0),
    "logdet, deflated": lambda A, m: te.logdet(A, m, n_deflate=1, rng=0),
    "entropy_rank": lambda A, m: te.entropy_rank(A, m, rng=0),
    "declared": lambda A, m: te.trace_of_function(te.aslinearoperator(A, psd=True), np.sqrt, m, rng=0),
}


@pytest.mark.parametrize("m", [40, N])
@pytest.mark.parametrize("kind", NOT_POSITIVE)
@pytest.mark.parametrize("call", POSITIVE)
def test_what_is_not_positive_is_refused(call, kind, m):
    with pytest.raises(ValueError, match="is not positive: it has an eigenvalue of -"):
        POSITIVE[call](NOT_POSITIVE[kind], m)


def test_a_shift_that_makes_it_positive_does():
    A = zoo.with_spectrum(np.linspace(-1.0, 3.0, N))
    truth = np.sum(np.log(np.linspace(-1.0, 3.0, N) + 1.5))
    assert float(te.logdet(A, N, shift=1.5)) == pytest.approx(truth)
    with pytest.raises(ValueError, match=r"A \+ 0.5·I is not positive"):
        te.logdet(A, 40, shift=0.5, rng=0)


@pytest.mark.parametrize("m", [40, N])
def test_a_singular_operator_has_a_logdet_of_which_nothing_is_certain(m):
    e = te.logdet(zoo.low_rank(N, 20), m, rng=0)
    assert e.converged is False
    assert not e.exact
    assert e.confidence_interval() == (-np.inf, np.inf)
    with pytest.raises(ValueError, match="is zero, and its log-determinant −∞"):
        te.logdet(np.zeros((N, N)), m, rng=0)


@pytest.mark.parametrize("m", [40, N])
def test_a_function_that_is_not_defined_on_the_spectrum_is_refused_saying_where(m):
    for A, f in ((zoo.indefinite(N), np.log), (zoo.indefinite(N), np.sqrt), (np.zeros((N, N)), lambda x: 1 / x)):
        with pytest.raises(ValueError, match="f is NaN or infinite at"):
            te.trace_of_function(A, f, m, rng=0)


def test_nothing_is_raised_where_there_are_no_values():
    A = jnp.asarray(NOT_SELF_ADJOINT["general"])
    e = jax.jit(lambda A: te.logdet(A, n_probes=2, steps=5, rng=0))(A)
    assert e.n_matvecs == 10
    assert e.converged is None
    jax.vmap(lambda A: te.trace_of_function(A, jnp.exp, n_probes=2, steps=3, rng=0).value)(jnp.stack([A, A]))
    with pytest.raises(ValueError, match="not self-adjoint"):
        te.logdet(torch.from_numpy(np.asarray(A).copy()).requires_grad_(), 40, rng=0)


@pytest.mark.parametrize("m", [40, N])
@pytest.mark.parametrize("n_deflate", [0, 2])
def test_complex_functions_have_the_error_of_the_modulus(m, n_deflate):
    lam = np.linspace(-1.0, 3.0, N)
    A, truth = zoo.with_spectrum(lam), np.sum(np.exp(3j * lam))
    runs = [te.trace_of_function(A, lambda x: np.exp(3j * x), m, n_deflate=n_deflate, rng=s) for s in range(60)]
    off = np.array([abs(complex(e) - truth) for e in runs])
    if m == N:
        assert off.max() < 1e-10
        return
    bars = np.array([float(e.stderr) for e in runs])
    assert 0.8 < np.sqrt(np.mean(bars**2) / np.mean(off**2)) < 1.25


HARD = {
    "0.9^i": 0.9 ** np.arange(1, 201.0),
    "i⁻⁴": np.arange(1, 501.0) ** -4,
    "log-uniform": np.logspace(-6, 0, 600),
    "an edge at 0": np.linspace(1e-6, 1, 800),
    "a hub": np.concatenate([np.linspace(-8.0, 8.0, 499), [15.5]]),
    "a star": np.concatenate([[499**0.5, -(499**0.5)], np.zeros(498)]),
}
OF_POSITIVE = {
    "log": np.log,
    "1/x": lambda x: 1 / x,
    "1/√x": lambda x: x**-0.5,
    "√x": np.sqrt,
    "x log x": lambda x: x * np.log(x),
    "x/(x + 1e-3)": lambda x: x / (x + 1e-3),
    "x/(x + 1e-6)": lambda x: x / (x + 1e-6),
}
OF_ANY = {"exp": np.exp, "step": lambda x: np.where(x > 0.3, 1.0, 0.0), "x²": lambda x: x**2}


def hard_cases():
    return [(s, f) for s, lam in HARD.items() for f in ({**OF_POSITIVE, **OF_ANY} if lam.min() > 0 else OF_ANY)]


def check_hard(spectrum, f, m, seeds, at_least):
    lam = HARD[spectrum]
    column, function = lam[:, None], {**OF_POSITIVE, **OF_ANY}[f]
    like = np.zeros((len(lam), 1))
    A = te.aslinearoperator(lambda X: column * X, like=like, symmetric=True, psd=bool(lam.min() > 0))
    truth, held = np.sum(function(lam)), []
    for seed in range(seeds):
        e = te.trace_of_function(A, function, m, rng=seed)
        low, high = e.confidence_interval()
        held.append(low - 1e-9 * abs(truth) <= truth <= high + 1e-9 * abs(truth))
        if np.isinf(float(e.stderr)):
            assert e.converged is False
    assert np.mean(held) >= at_least, f"{spectrum}, {f}, {m} products: held in {np.mean(held)}"


SOME = [
    ("0.9^i", "log"),
    ("0.9^i", "1/x"),
    ("i⁻⁴", "1/√x"),
    ("i⁻⁴", "x log x"),
    ("log-uniform", "x/(x + 1e-3)"),
    ("log-uniform", "√x"),
    ("log-uniform", "step"),
    ("an edge at 0", "1/x"),
    ("a hub", "exp"),
    ("a star", "exp"),
]


@pytest.mark.parametrize(("spectrum", "f"), SOME)
def test_intervals_hold_where_quadrature_is_hard(spectrum, f):
    check_hard(spectrum, f, 60, 15, 0.6)  # four standard errors below 90 %


@pytest.mark.slow
@pytest.mark.parametrize("m", [30, 60, 100])
@pytest.mark.parametrize(("spectrum", "f"), hard_cases())
def test_intervals_hold_where_quadrature_is_hard_over_many_seeds(spectrum, f, m):
    check_hard(spectrum, f, m, 200, 0.9 - 2 * 0.0212)


def test_growth_that_is_not_seen_is_caught(monkeypatch):
    """By the last third of the steps alone, which is what there was."""
    monkeypatch.setattr(TRUNCATION, "rest", lambda xp, means, *_: xp.abs(means[0] - means[1]))
    monkeypatch.setattr(TRUNCATION, "at_edge", lambda xp, values, *_: xp.zeros_like(values[0]))
    with pytest.raises(AssertionError, match="held"):
        check_hard("0.9^i", "1/x", 60, 15, 0.6)


def test_an_edge_that_is_not_seen_is_caught(monkeypatch):
    monkeypatch.setattr(TRUNCATION, "at_edge", lambda xp, values, *_: xp.zeros_like(values[0]))
    with pytest.raises(AssertionError, match="held"):
        check_hard("an edge at 0", "1/x", 30, 30, 0.65)


def test_a_look_that_is_left_out_is_caught(monkeypatch):
    monkeypatch.setattr(LOOKS, "symmetric", lambda *args: None)
    with pytest.raises(pytest.fail.Exception):
        test_what_is_not_self_adjoint_has_no_spectrum_by_lanczos("trace_of_function", "general", 40)


def rms(lam, f, m, seeds, **options):
    column = lam[:, None]
    A = te.aslinearoperator(lambda X: column * X, like=np.zeros((len(lam), 1)), symmetric=True)
    runs = [te.trace_of_function(A, f, m, rng=s, **options) for s in range(seeds)]
    assert all(e.n_matvecs <= m for e in runs)
    return np.sqrt(np.mean([(float(e) / np.sum(f(lam)) - 1) ** 2 for e in runs]))


@pytest.mark.parametrize("n_deflate", [1, 2, 5])
def test_deflation_removes_what_it_finds(n_deflate):
    """One eigenvector holds all but a hundredth of tr exp: without it the rest is sampled."""
    lam = HARD["a hub"]
    assert rms(lam, np.exp, 100, 20, n_deflate=n_deflate) < 2e-2
    assert rms(lam, np.exp, 100, 20) > 0.2


def test_the_split_is_chosen_for_the_function():
    """More steps where truncation rules, more probes where sampling does; never more products."""
    fixed = {"n_probes": 4, "steps": 25}
    assert rms(HARD["0.9^i"], np.log, 100, 8) < 0.85 * rms(HARD["0.9^i"], np.log, 100, 8, **fixed)
    flat = zoo.SPECTRA["flat"](500)
    assert rms(flat, np.exp, 100, 40) < 0.75 * rms(flat, np.exp, 100, 40, **fixed)
