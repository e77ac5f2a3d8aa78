"""Nyström++ and NA-Hutch++: the formulas against dense matrices, and error bars that hold from few products."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import operators_zoo as zoo
import pytest
import torch
from assertions import Counter, assert_close, assert_counts, assert_unbiased

import traceest as te

N, Q, S = 40, 6, 5
COMPLEX_PSD = zoo.hermitian(N) @ zoo.hermitian(N) + 0.1 * np.eye(N)
PSD = {"poly": zoo.spectral("poly", N), "flat": zoo.spectral("flat", N), "complex": COMPLEX_PSD}
SQUARE = {
    **PSD,
    "indefinite": zoo.indefinite(N),
    "nonsymmetric": np.random.default_rng(0).standard_normal((N, N)),
    "complex general": zoo.complex_general(N),
}
ESTIMATORS = {
    "nystrompp": (lambda A, m, **k: te.nystrompp(A, m, **{"rng": 0, **k}), 1),
    "na_hutchpp": (lambda A, m, **k: te.na_hutchpp(A, m, **{"rng": 0, **k}), 3),
}


def low_rank_part(A: np.ndarray, S: np.ndarray, R: np.ndarray) -> np.ndarray:
    """AR(SᴴAR)⁺SᴴA; Nyström's approximation with R = S."""
    return A @ R @ np.linalg.pinv(S.conj().T @ A @ R) @ S.conj().T @ A


def by_the_loop(A: np.ndarray, low_rank: np.ndarray, G: np.ndarray, law: str) -> tuple[complex, float]:
    """Trace of the low-rank part and mean of the residual's forms, a probe at a time; and the standard error."""
    n, s = G.shape
    B = A - low_rank
    forms = np.array([g.conj() @ B @ g for g in G.T])
    if law == "rademacher":
        variance = np.sum(np.abs(forms - forms.mean()) ** 2) / (s - 1)
    else:
        real = not np.iscomplexobj(A)
        seen = A - (low_rank + low_rank.T) / 2 if real else B
        slopes = [seen @ g - (g.conj() @ seen @ g / n * g if law == "sphere" else 0) for g in G.T]
        variance = (2 if real else 1) * np.mean([np.linalg.norm(x) ** 2 for x in slopes])
        if real and not np.allclose(A, A.T):
            D = seen - forms.mean() / n * np.eye(n)
            pairs = [(g @ D @ h, h @ D @ g) for i, g in enumerate(G.T) for j, h in enumerate(G.T) if i != j]
            variance *= sum(((a + b) / 2) ** 2 for a, b in pairs) / sum(a**2 for a, _ in pairs)
    return np.trace(low_rank) + forms.mean(), np.sqrt(variance / s)


@pytest.mark.parametrize("law", ["sphere", "gaussian", "rademacher"])
@pytest.mark.parametrize("name", PSD)
def test_nystrompp_is_the_textbooks(name: str, law: Any) -> None:
    A = PSD[name]
    V = getattr(te.probes, law)(N, Q + S, rng=1, like=A)
    e = te.nystrompp(A, probes=V, n_sketch=Q, distribution=law)
    value, stderr = by_the_loop(A, low_rank_part(A, V[:, :Q], V[:, :Q]), V[:, Q:], law)
    np.testing.assert_allclose(float(e), value.real, rtol=1e-10)
    np.testing.assert_allclose(float(e.stderr), stderr, rtol=1e-10)


@pytest.mark.parametrize("law", ["sphere", "gaussian", "rademacher"])
@pytest.mark.parametrize("name", SQUARE)
def test_na_hutchpp_is_the_textbooks(name: str, law: Any) -> None:
    A = SQUARE[name]
    V = getattr(te.probes, law)(N, 3 * Q + S, rng=1, like=A)
    e = te.na_hutchpp(A, probes=V, n_sketch=Q, distribution=law)
    value, stderr = by_the_loop(A, low_rank_part(A, V[:, :Q], V[:, Q : 3 * Q]), V[:, 3 * Q :], law)
    np.testing.assert_allclose(complex(e), value, rtol=1e-10)
    np.testing.assert_allclose(float(e.stderr), stderr, rtol=1e-10)


def test_what_is_known_to_be_hermitian_has_a_real_trace_and_needs_one_side() -> None:
    A = zoo.hermitian(N)
    V = te.probes.sphere(N, 3 * Q + S, rng=1, like=A)
    counter = Counter(te.Operator((N, N), like=A, matmat=lambda X: A @ X, symmetric=True))
    e = te.na_hutchpp(counter, probes=V, n_sketch=Q)
    plain = low_rank_part(A, V[:, :Q], V[:, Q : 3 * Q])
    value, stderr = by_the_loop(A, (plain + plain.conj().T) / 2, V[:, 3 * Q :], "sphere")
    np.testing.assert_allclose(float(e), value.real, rtol=1e-10)
    np.testing.assert_allclose(float(e.stderr), stderr, rtol=1e-10)
    assert_counts(e, counter)
    assert (e.n_matvecs, e.n_rmatvecs) == (3 * Q + S, 0)
    assert isinstance(e.confidence_interval().low, float)


@pytest.mark.parametrize("law", ["sphere", "gaussian"])
@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
def test_the_squared_stderr_is_an_unbiased_variance(law: Any, complex_: bool) -> None:
    """Of one fixed sketch, against the variance that its residual has; one probe is enough."""
    A = COMPLEX_PSD if complex_ else zoo.spectral("poly", N)
    Omega = te.probes.sphere(N, Q, rng=1, like=A)
    B = A - low_rank_part(A, Omega, Omega)
    norm2, trace2 = np.linalg.norm(B) ** 2, np.trace(B).real ** 2
    kept, lost = (N / (N + 1), trace2 / N) if complex_ else (2 * N / (N + 2), trace2 / N)
    variance = kept * (norm2 - lost) if law == "sphere" else (1 if complex_ else 2) * norm2
    for s in (1, 4):
        runs = []
        for seed in range(2000 // s):
            G = getattr(te.probes, law)(N, s, rng=seed, like=A)
            runs.append(te.nystrompp(A, probes=np.hstack([Omega, G]), n_sketch=Q, distribution=law))
        assert_unbiased([float(e.stderr) ** 2 for e in runs], variance / s)
        assert_unbiased([float(e) for e in runs], np.trace(A).real)


@pytest.mark.parametrize("s", [1, 2, 10])
def test_degrees_of_freedom_are_the_probes_or_more(s: int) -> None:
    """Gradients of one eigenvalue vary as Gaussians' squares do, those of many hardly at all."""
    many = te.nystrompp(zoo.spectral("flat", 200), 2 + s, n_sketch=2, rng=0)
    one = te.nystrompp(zoo.low_rank(200, 2), 1 + s, n_sketch=1, rng=0)
    assert float(one.df) >= s
    assert float(many.df) > 10 * s if s > 1 else float(many.df) == 1
    assert float(one.df) < 3 * s


def one_sided_decay(n: int) -> np.ndarray:
    """Neither symmetric nor normal: singular values 0.8^i between unrelated bases."""
    return (zoo.haar(n) * 0.8 ** np.arange(n)) @ zoo.haar(n, 1).T


@pytest.mark.parametrize("m", [30, 60])
@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("nystrompp", zoo.spectral("fastexp", 100)),
        ("nystrompp", zoo.spectral("flat", 100)),
        ("na_hutchpp", zoo.spectral("fastexp", 100)),
        ("na_hutchpp", zoo.indefinite(100)),
        ("na_hutchpp", one_sided_decay(100)),
        ("na_hutchpp", np.random.default_rng(0).standard_normal((100, 100))),
    ],
    ids=["nystrom fast", "nystrom flat", "na fast", "na indefinite", "na one-sided", "na nonsymmetric"],
)
def test_intervals_hold_from_few_products(name: str, operator: np.ndarray, m: int) -> None:
    """Also where the residual is a few large eigenvalues (fast), and the spread of its forms says little."""
    f, truth = ESTIMATORS[name][0], np.trace(operator)
    runs = [f(operator, m, rng=seed) for seed in range(300)]
    errors = np.array([float(e) - truth for e in runs])
    ratio = np.sqrt(np.mean([float(e.stderr) ** 2 for e in runs]) / np.mean(errors**2))
    assert 0.85 < ratio < 1.2
    held = np.mean([e.confidence_interval().low <= truth <= e.confidence_interval().high for e in runs])
    assert 0.93 <= held <= 0.995


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rank", [1, 5, 15])
def test_a_rank_below_the_sketch_is_exact(backend: Any, name: str, dtype: str, rank: int) -> None:
    f, each = ESTIMATORS[name]
    for A in (zoo.low_rank(80, rank), np.diag(np.arange(80) < rank).astype(float)):
        e = backend.call(lambda A, f=f, each=each: f(A, 18 * each + 8, n_sketch=18), A.astype(dtype))
        eps = float(np.finfo(dtype).eps)
        assert float(e.value) == pytest.approx(np.trace(A), rel=50 * eps)
        assert float(e.stderr) < 50 * eps * np.trace(A)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_identity_is_found_within_its_error(backend: Any, name: str, dtype: str) -> None:
    f, _ = ESTIMATORS[name]
    e = backend.call(lambda A: f(A, 12), np.eye(60).astype(dtype))
    assert abs(float(e.value) - 60) <= 4 * float(e.stderr)
    assert float(e.stderr) < 6


def test_a_skew_symmetric_operator_has_trace_zero(backend: Any) -> None:
    A = np.random.default_rng(0).standard_normal((60, 60))
    e = backend.call(lambda A: te.na_hutchpp(A, 30, rng=0), A - A.T)
    assert abs(float(e.value)) < 4 * float(e.stderr)


@pytest.mark.parametrize("law", ["sphere", "rademacher", "orthogonal"])
def test_unlucky_sketches_are_survived(law: Any) -> None:
    """In six dimensions random signs coincide, and are orthogonal, in every third sketch."""
    for seed in range(40):
        for A in (zoo.spectral("poly", 6), zoo.low_rank(6, 1), np.zeros((6, 6))):
            for f in (te.nystrompp, te.na_hutchpp):
                e = f(A, 5, rng=seed, distribution=law)
                assert abs(float(e) - np.trace(A)) < 30
                assert float(e.stderr) < 30


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("m", [4, 5, 12, 39])
@pytest.mark.parametrize("law", ["sphere", "rademacher"])
def test_a_budget_is_kept_and_counted(name: str, m: int, law: str) -> None:
    f, _ = ESTIMATORS[name]
    for symmetric in (True, False):
        counter = Counter(te.aslinearoperator(PSD["poly"], symmetric=symmetric))
        e = f(counter, m, distribution=law)
        assert_counts(e, counter, budget=m)
        assert e.n_products == m
        assert e.n_rmatvecs == (0 if symmetric or name == "nystrompp" else max(1, m // 5))
    assert f(counter, N).exact


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("law", ["sphere", "rademacher"])
def test_a_kernel_gives_the_same_and_random_signs_spare_its_jvps(name: str, law: str) -> None:
    f, each = ESTIMATORS[name]
    J = np.random.default_rng(0).standard_normal((60, 50)) / np.arange(1, 51)
    counter = Counter(te.aslinearoperator(J))
    lazy = f(te.gram(counter), 20, n_sketch=4, distribution=law)
    dense = f(te.aslinearoperator(J @ J.T, psd=True), 20, n_sketch=4, distribution=law)
    np.testing.assert_allclose(float(lazy), float(dense), rtol=1e-9)
    np.testing.assert_allclose(float(lazy.stderr), float(dense.stderr), rtol=1e-7)
    assert_counts(lazy, counter, budget=20)
    assert (lazy.n_matvecs, lazy.n_rmatvecs) == (20 if law == "sphere" else 4 * each, 20)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("law", ["sphere", "rademacher", "orthogonal"])
@pytest.mark.parametrize("factored", [False, True])
def test_chunks_change_nothing_and_are_kept(name: str, law: str, factored: bool) -> None:
    f, _ = ESTIMATORS[name]
    J = np.random.default_rng(0).standard_normal((60, 50)) / np.arange(1, 51)
    counter = Counter(te.aslinearoperator(J if factored else J @ J.T))
    e = f(te.gram(counter) if factored else counter, 24, chunk_size=5, distribution=law)
    whole = f(te.gram(J) if factored else J @ J.T, 24, distribution=law)
    assert_close(e.value, whole.value, 1e-12)
    assert_close(e.stderr, whole.stderr, 1e-9)
    assert counter.widest == 5


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("operator", ["poly", "rank 3", "three ones", "zero", "tiny"])
def test_gradients_are_those_of_differences_and_stay_finite(name: str, operator: str) -> None:
    f, each = ESTIMATORS[name]
    ones = np.diag(np.arange(N) < 3).astype(float)
    poly = PSD["poly"]
    A = {"poly": poly, "rank 3": zoo.low_rank(N, 3), "three ones": ones, "zero": 0 * ones, "tiny": 1e-18 * poly}
    A = A[operator].astype("float32" if operator == "tiny" else "float64")
    m = 5 * each + 4
    g = np.asarray(jax.grad(lambda A: f(A, m, n_sketch=5).value)(jnp.asarray(A)))
    assert np.abs(g).max() < 1e4
    T = torch.tensor(A, requires_grad=True)
    f(T, m, n_sketch=5).value.backward()
    assert np.abs(T.grad.numpy()).max() < 1e4
    if operator == "poly":
        E = np.random.default_rng(0).standard_normal((N, N))
        E = E @ E.T / np.linalg.norm(E @ E.T)
        h = 1e-6
        difference = (float(f(A + h * E, m, n_sketch=5)) - float(f(A - h * E, m, n_sketch=5))) / (2 * h)
        assert np.sum(g * E) == pytest.approx(difference, rel=1e-5)
        assert_close(g, T.grad.numpy(), 1e-8)


@pytest.mark.usefixtures("compile_as_usual")
@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("jitted", [pytest.param(False, marks=pytest.mark.slow), True])
def test_keys_are_mapped_over(name: str, jitted: bool) -> None:
    f, _ = ESTIMATORS[name]
    A, keys = jnp.asarray(PSD["poly"]), jax.random.split(jax.random.key(0), 4)
    mapped = jax.vmap(lambda key: f(A, 20, rng=key))
    many = (jax.jit(mapped) if jitted else mapped)(keys)
    apart = [f(A, 20, rng=key) for key in keys]
    assert_close(many.value, [e.value for e in apart], 1e-11)
    assert_close(many.stderr, [e.stderr for e in apart], 1e-9)
    assert len(np.unique(many.value)) == 4
