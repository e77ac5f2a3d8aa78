"""Diagonals: against the textbook's loop, calibrated entry by entry, exact where they should be."""

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

N, K = 40, 7


def naive_xdiag(A: np.ndarray, Omega: np.ndarray, i: int, out: list[int]) -> np.ndarray:
    """One estimate: probes `out` left out of the sketch, probe i in the residual."""
    Q = np.linalg.qr(np.delete(A @ Omega, out, axis=1))[0]
    kept = Q @ (Q.conj().T @ A)
    return np.diag(kept) + Omega[:, i].conj() * ((A - kept) @ Omega[:, i])


MATRICES = {
    "poly": zoo.spectral("poly", N),
    "step": zoo.spectral("smallstep", N),
    "indefinite": zoo.indefinite(N),
    "nonsymmetric": zoo.nonsymmetric(N),
    "hermitian": zoo.hermitian(N),
    "complex": zoo.complex_general(N),
}


@pytest.mark.parametrize("name", MATRICES)
def test_xdiag_is_the_textbooks(name):
    A = MATRICES[name]
    Omega = te.probes.gaussian(N, K, rng=1, like=A)
    symmetric = name not in ("nonsymmetric", "complex")
    e = te.diagonal(te.aslinearoperator(A, symmetric=symmetric), method="xdiag", probes=Omega)
    part = np.real if symmetric else np.asarray
    one = np.array([part(naive_xdiag(A, Omega, i, [i])) for i in range(K)])
    two = np.array([[part(naive_xdiag(A, Omega, i, [i, j])) for j in range(K)] for i in range(K)])
    off = ~np.eye(K, dtype=bool)[:, :, None]
    delta = np.where(off, one[:, None, :] - two, 0)
    apart = np.where(off, two - two.transpose(1, 0, 2), 0)
    variance = np.var(one, axis=0, ddof=1) / K
    variance += np.sum(delta * delta.transpose(1, 0, 2).conj(), axis=(0, 1)).real / (K * (K - 1))
    floor = np.sum(np.abs(apart) ** 2, axis=(0, 1)) / (2 * K * K * (K - 1))
    assert_close(e.value, one.mean(axis=0), 1e-10)
    assert_close(e.stderr, np.sqrt(np.maximum(variance, floor / 2)), 1e-8)


@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_entries_are_unbiased(method, name, distribution):
    """Of Gaussian probes Hutchinson's is a ratio, whose bias falls as 1/m."""
    A = MATRICES[name]
    op = te.aslinearoperator(A, symmetric=name not in ("nonsymmetric", "complex"))
    runs = np.array([te.diagonal(op, 20, method, rng=seed, distribution=distribution).value for seed in range(400)])
    z = np.abs(runs.mean(axis=0) - np.diag(A)) / (runs.std(axis=0, ddof=1) / 20 + 1e-13)
    bias = 2 / 20 if (method, distribution) == ("hutchinson", "gaussian") else 0.0
    assert z.max() < 4.5 + bias * 20


@pytest.mark.parametrize("m", [30, 60])
@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
@pytest.mark.parametrize("spectrum", ["flat", "poly", "slowexp", "smallstep"])
def test_intervals_hold_entry_by_entry(spectrum, method, m):
    A = zoo.spectral(spectrum, 150)
    op, truth = te.aslinearoperator(A, symmetric=True), np.diag(A)
    held, ratio = [], []
    for seed in range(60):
        e = te.diagonal(op, m, method, rng=seed)
        low, high = e.confidence_interval()
        held.append(np.mean((low <= truth) & (truth <= high)))
        ratio.append([np.mean(np.asarray(e.stderr) ** 2), np.mean((e.value - truth) ** 2)])
    assert 0.925 <= np.mean(held) <= 0.99
    assert 0.85 < np.sqrt(np.mean(ratio, axis=0)[0] / np.mean(ratio, axis=0)[1]) < 1.25


def test_row_norms_by_jvps_alone_do_not_see_other_rows():
    J = zoo.jacobian(4, 25, 60)
    op = te.Operator(J.shape, like=J, matmat=lambda W: J @ W)
    runs = [te.diagonal(te.gram(op), 20, rng=seed) for seed in range(300)]
    values = np.array([e.value for e in runs])
    truth = np.sum(J**2, axis=1)
    variance = 2 * (truth**2 - np.sum(J**4, axis=1)) / 20
    assert runs[0].method == "squared jvps"
    assert (runs[0].n_matvecs, runs[0].n_rmatvecs) == (20, 0)
    assert np.max(np.abs(values.mean(axis=0) - truth) / np.sqrt(variance / 300)) < 4.5
    assert np.mean(values.var(axis=0, ddof=1) / variance) == pytest.approx(1, abs=0.05)


ROUTES = {
    "square": (lambda J: te.aslinearoperator(J @ J.T), 24),
    "blocks": (lambda J: te.gram(J, n_blocks=4), 6),
    "rows": (lambda J: te.gram(te.Operator(J.shape, like=J, rmatmat=lambda V: J.T @ V)), 24),
    "columns": (lambda J: te.gram(te.aslinearoperator(J[:, :5])), 5),
}


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("by_budget", [True, False])
def test_the_exact_diagonal_goes_the_cheapest_way(name, by_budget):
    J = zoo.jacobian(4, 6, 30)
    make, cost = ROUTES[name]
    A = make(J)
    truth = np.sum((J[:, :5] if name == "columns" else J) ** 2, axis=1)
    e = te.diagonal(A, cost, rng=0) if by_budget else te.diagonal(A, method="exact", chunk_size=2)
    assert e.exact
    assert_close(e.value, truth, 1e-12)
    assert not np.any(e.stderr)
    assert max(e.n_matvecs, e.n_rmatvecs) == cost


@pytest.mark.parametrize("m", [4, 9, 20])
@pytest.mark.parametrize("method", ["auto", "hutchinson", "xdiag"])
def test_a_budget_is_kept_and_counted(method, m):
    for A in (te.aslinearoperator(MATRICES["poly"], psd=True), te.aslinearoperator(MATRICES["nonsymmetric"])):
        counter = Counter(A)
        e = te.diagonal(counter, m, method, rng=0)
        assert counter.n_matvecs + counter.n_rmatvecs == e.n_products <= m
    counter = Counter(te.aslinearoperator(zoo.jacobian(4, 9, 60)))
    assert_counts(te.diagonal(te.gram(counter), m, method, rng=0), counter, budget=m)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rank", [0, 1, 5, 15])
def test_a_rank_below_the_sketch_is_exact(backend, rank, dtype):
    A = (zoo.low_rank(60, rank) if rank else np.zeros((60, 60))).astype(dtype)
    e = backend.call(lambda A: te.diagonal(te.aslinearoperator(A, symmetric=True), 40, "xdiag", rng=0), A)
    eps = float(np.finfo(dtype).eps)
    assert np.max(np.abs(backend.host(e.value) - np.diag(A))) <= 300 * eps
    assert np.max(backend.host(e.stderr)) <= 300 * eps


@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
def test_a_diagonal_or_skew_operator_is_right_to_rounding(backend, method):
    for A in (np.eye(30), np.diag(np.arange(30.0) < 2), np.diag(np.arange(30.0))):
        A = A.astype(float)
        e = backend.call(lambda A: te.diagonal(te.aslinearoperator(A, symmetric=True), 10, "hutchinson", rng=0), A)
        assert_close(backend.host(e.value), np.diag(A), 1e-14)
        assert np.max(backend.host(e.stderr)) < 1e-13
    skew = np.triu(zoo.nonsymmetric(30), 1)
    e = backend.call(lambda A: te.diagonal(A, 12, method, rng=0), skew - skew.T)
    low, high = (backend.host(e.value) + s * 6 * backend.host(e.stderr) for s in (-1, 1))
    assert np.all((low <= 0) & (high >= 0))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("method", ["auto", "hutchinson", "xdiag", "exact"])
def test_tiny_operators_are_answered_exactly(backend, n, method):
    A = zoo.nonsymmetric(n)
    e = backend.call(lambda A: te.diagonal(A, 8, method, rng=0), A)
    assert_close(backend.host(e.value), np.diag(A), 1e-13)


@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
@pytest.mark.parametrize(("dtype", "power"), [("float32", 60), ("float32", -60), ("float64", 498), ("float64", -498)])
def test_scale_is_only_a_factor(backend, method, dtype, power):
    A = zoo.spectral("poly", 30).astype(dtype)

    def f(A):
        return te.diagonal(te.aslinearoperator(A, symmetric=True), 12, method, rng=0)

    plain, scaled = backend.call(f, A), backend.call(f, np.ldexp(A, power))
    for field in ("value", "stderr"):
        back = np.ldexp(backend.host(getattr(scaled, field)).astype(np.float64), -power)
        assert_close(back, backend.host(getattr(plain, field)), 1e-4 if dtype == "float32" else 1e-10)


@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
def test_it_is_mapped_compiled_and_differentiated(method):
    A = jnp.asarray(zoo.spectral("poly", 20))

    def f(A, key):
        return te.diagonal(te.aslinearoperator(A, symmetric=True), 10, method, rng=key)

    keys = jax.random.split(jax.random.key(0), 3)
    mapped = jax.jit(jax.vmap(f, in_axes=(None, 0)))(A, keys)
    for i in range(3):
        assert_close(mapped.value[i], f(A, keys[i]).value, 1e-10)
    for B in (A, jnp.zeros((20, 20)), jnp.asarray(zoo.low_rank(20, 2))):
        assert bool(jnp.all(jnp.isfinite(jax.grad(lambda B: jnp.sum(f(B, keys[0]).value ** 2))(B))))
        leaf = torch.tensor(np.asarray(B), requires_grad=True)
        e = te.diagonal(te.aslinearoperator(leaf, symmetric=True), 10, method, rng=0)
        (e.value**2).sum().backward()
        assert bool(torch.all(torch.isfinite(leaf.grad)))


def test_estimates_of_many_entries_are_merged_saved_and_shown(tmp_path):
    A = te.aslinearoperator(MATRICES["indefinite"], symmetric=True)
    a, b = (te.diagonal(A, 10, "hutchinson", rng=seed) for seed in (0, 1))
    merged = a.merge(b)
    assert_close(merged.value, (a.value + b.value) / 2, 1e-12)
    assert_close(merged.stderr, np.sqrt(a.stderr**2 + b.stderr**2) / 2, 1e-12)
    te.save(merged, tmp_path / "e.npz")
    assert_close(te.load(tmp_path / "e.npz").value, merged.value, 0)
    assert "shape (40,)" in repr(merged)
    told = merged.to_dict()
    assert len(told["value"]) == len(told["ci95"][0]) == 40


def test_what_cannot_be_done_says_what_can():
    J = zoo.jacobian(4, 6, 30)
    rows = te.gram(te.Operator(J.shape, like=J, rmatmat=lambda V: J.T @ V))
    with pytest.raises(TypeError, match=r"needs matmat .* the exact diagonal takes 24 vjps"):
        te.diagonal(rows, 5, rng=0)
    with pytest.raises(ValueError, match=r"ask for diagonal\(gram\(J\)\)"):
        te.diagonal(J, 5)
    with pytest.raises(ValueError, match="XDiag needs independent probes"):
        te.diagonal(MATRICES["poly"], 8, "xdiag", distribution="orthogonal")
    with pytest.raises(ValueError, match="method must be one of auto, hutchinson, xdiag, exact"):
        te.diagonal(MATRICES["poly"], 8, "xtrace")
    with pytest.raises(ValueError, match="below the method's minimum of 4"):
        te.diagonal(MATRICES["poly"], 3, "xdiag")
    one_sided = te.aslinearoperator(lambda X: X, like=np.zeros((9, 1)))
    with pytest.raises(TypeError, match="needs rmatmat"):
        te.diagonal(one_sided, 4, "xdiag")


def check_auto(spectrum, m, distribution):
    A = zoo.SQUARE[spectrum](120)
    op = te.aslinearoperator(A, symmetric=spectrum != "nonsymmetric")

    def rms(method):
        runs = [te.diagonal(op, m, method, rng=seed, distribution=distribution) for seed in range(15)]
        assert all(e.n_products <= m for e in runs)
        return np.sqrt(np.mean([np.abs(e.value - np.diag(A)) ** 2 for e in runs]))

    better = min(rms("hutchinson"), rms("xdiag"))
    assert rms("auto") <= 1.1 * better + 1e-12, f"{rms('auto')} for {better}"


@pytest.mark.parametrize("m", [20, 60])
@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@pytest.mark.parametrize("spectrum", ["flat", "poly", "fastexp", "smallstep", "indefinite", "nonsymmetric", "identity"])
def test_auto_takes_the_better_way_after_a_look_that_is_kept(spectrum, distribution, m):
    check_auto(spectrum, m, distribution)


@pytest.mark.parametrize("m", [8, 21])
def test_auto_gives_the_bits_of_the_way_it_takes(m):
    for spectrum, method in (("identity", "hutchinson"), ("flat", "hutchinson"), ("fastexp", "xdiag")):
        A = te.aslinearoperator(zoo.SQUARE[spectrum](60), symmetric=True)
        e, same = (te.diagonal(A, m, way, rng=3) for way in ("auto", method))
        assert e.method == method
        assert e.n_matvecs == same.n_matvecs
        assert_close(e.value, same.value, 1e-13)


def test_a_look_at_the_wrong_spread_is_caught(monkeypatch):
    module = sys.modules["traceest.estimators.diagonal"]
    honest = module.spreads
    monkeypatch.setattr(module, "spreads", lambda arrays: honest(arrays)[::-1])
    for spectrum in ("identity", "poly"):
        with pytest.raises(AssertionError):
            check_auto(spectrum, 20, "rademacher")
