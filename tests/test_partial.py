"""Partial traces agree with the dense kernel's on every route, and their intervals cover."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import operators_zoo as zoo
import pytest
import torch
from assertions import Counter, assert_close, assert_counts, assert_unbiased

import traceest as te

RESULT = sys.modules["traceest.partial.result"]
ROUTES = sys.modules["traceest.partial.routes"]
SHAPE = (6, 4, 3)
J = zoo.jacobian(6, 12, 20)
K = J @ J.T
KEPT = [kept for r in range(4) for kept in itertools.combinations(range(3), r)]


def partial(K, shape, kept):
    """By its definition, from the matrix."""
    rows = list(range(len(shape)))
    columns = [len(shape) + a if a in kept else a for a in rows]
    M = np.einsum(K.reshape(*shape, *shape), rows + columns, [*kept, *(len(shape) + a for a in kept)])
    d = int(np.prod([shape[a] for a in kept]))
    return M.reshape(d, d)


def one_side(J, side, n_blocks=None):
    """J with one of its sides alone."""
    op = te.aslinearoperator(J, n_blocks=n_blocks)
    abilities = {"block_rmatmat": op.block_rmatmat} if side == "rmatmat" else {}
    return te.Operator(J.shape, like=J, n_blocks=n_blocks, **{side: getattr(op, side)}, **abilities)


def with_pairs(J, n_blocks):
    """A factor that makes all pairs of its blocks' products itself, as those of models do."""
    return te.gram(J / 2**0.5, n_blocks=n_blocks) + te.gram(J / 2**0.5, n_blocks=n_blocks)


BY = {
    "examples": lambda J: te.gram(J, n_blocks=6),
    "examples, vjps alone": lambda J: te.gram(one_side(J, "rmatmat", 6)),
    "examples, pairs": lambda J: with_pairs(J, 6),
    "runs of examples": lambda J: te.gram(J, n_blocks=3),
    "blocks across examples": lambda J: te.gram(J, n_blocks=12),
    "blocks across, pairs": lambda J: with_pairs(J, 12),
    "one block": te.gram,
    "jvps": lambda J: te.gram(one_side(J, "matmat")),
    "two-sided": lambda J: te.aslinearoperator(J @ J.conj().T, symmetric=True),
}


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("kept", KEPT, ids=str)
@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
def test_enough_probes_are_exact(by, kept, complex_):
    factor = zoo.jacobian(6, 12, 20, complex_=complex_)
    M = te.partial_trace(BY[by](factor), 72, shape=SHAPE, keep=kept)
    truth = partial(factor @ factor.conj().T, SHAPE, kept)
    norm = np.linalg.norm(truth)
    assert_close(M.matrix.value, truth, 1e-12)
    assert float(M.trace) == pytest.approx(np.trace(truth).real, rel=1e-12)
    assert float(M.frobenius_norm) == pytest.approx(norm, rel=1e-12)
    assert float(M.effective_rank) == pytest.approx(abs(np.trace(truth)) ** 2 / norm**2, rel=1e-12)
    assert_close(M.eigenvalues.value, np.linalg.eigvalsh(truth)[::-1], 1e-12)
    for e in (M.matrix, M.trace, M.frobenius_norm, M.effective_rank, M.eigenvalues):
        assert e.exact
        assert not np.any(e.stderr)


def check_unbiased(by, kept, make=BY):
    """Every entry of M, and ‖M‖²; the check itself, which mutations below are aimed at."""
    operator, truth = make[by](J), partial(K, SHAPE, kept)
    runs = [te.partial_trace(operator, 2, shape=SHAPE, keep=kept, rng=seed) for seed in range(250)]
    for p, q in itertools.product(range(len(truth)), repeat=2):
        assert_unbiased([M.matrix.value[p, q] for M in runs], truth[p, q], sigmas=5.0)  # hundreds of entries in all
    assert_unbiased([float(M._norm2.value) * float(M.unit) ** 2 for M in runs], np.sum(truth**2))
    assert_unbiased([float(M._squared_trace.value) * float(M.unit) ** 2 for M in runs], np.trace(truth) ** 2)


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("kept", [(1,), (2,), (0,), (0, 2)], ids=str)
def test_entries_norm_and_trace_are_unbiased(by, kept):
    check_unbiased(by, kept)


def test_other_laws_of_probes_are_unbiased_too():
    truth = partial(K, SHAPE, (1,))
    for law in ("gaussian", "sphere"):
        runs = [
            te.partial_trace(BY["examples"](J), 2, shape=SHAPE, keep=1, rng=s, distribution=law) for s in range(250)
        ]
        assert_unbiased([float(M.trace) for M in runs], np.trace(truth))
        assert_unbiased([M.matrix.value[0, 1] for M in runs], truth[0, 1])


@pytest.mark.parametrize("make", [zoo.nonsymmetric, zoo.complex_general])
def test_operators_that_are_not_symmetric(make):
    A = make(24)
    truth = partial(A, (4, 6), (1,))
    assert_close(te.partial_trace(A, 4, shape=(4, 6), keep=1).matrix.value, truth, 1e-13)
    runs = [te.partial_trace(A, 3, shape=(4, 6), keep=1, rng=seed) for seed in range(300)]
    assert_unbiased([M.matrix.value[2, 4] for M in runs], truth[2, 4])
    assert_unbiased([float(M._squared_trace.value) * float(M.unit) ** 2 for M in runs], abs(np.trace(truth)) ** 2)
    with pytest.raises(TypeError, match=r"declare the operator, aslinearoperator\(K, symmetric=True\)"):
        _ = runs[0].eigenvalues


# -- kernels whose partial traces are known --------------------------------------------------------


def naive(K, shape, kept):
    """All pairs of blocks summed, Σ_{τ,τ′} K[(κ, τ), (κ′, τ′)]."""
    rows, r = list(range(len(shape))), len(shape)
    d = int(np.prod([shape[a] for a in kept]))
    return np.einsum(
        K.reshape(*shape, *shape), [*rows, *(r + a for a in rows)], [*kept, *(r + a for a in kept)]
    ).reshape(d, d)


def test_of_a_rank_one_map_of_matrices():
    """Y ↦ ⟨X, Y⟩ Z is z xᵀ, row by row, with partial traces Z Xᵀ and Zᵀ X."""
    rng = np.random.default_rng(0)
    X, Z = rng.standard_normal((5, 7)), rng.standard_normal((5, 7))
    op = te.Operator((35, 35), like=X, matmat=lambda Y: Z.reshape(-1, 1) * (X.reshape(1, -1) @ Y))
    for keep, truth in ((0, Z @ X.T), (1, Z.T @ X)):
        assert_close(te.partial_trace(op, 7, shape=(5, 7), keep=keep).matrix.value, truth, 1e-13)
        runs = [te.partial_trace(op, 4, shape=(5, 7), keep=keep, rng=s).matrix.value[0, 1] for s in range(300)]
        assert_unbiased(runs, truth[0, 1])
        assert np.linalg.norm(naive(np.outer(Z, X), (5, 7), (keep,)) - truth) > 0.5 * np.linalg.norm(truth)


def test_of_a_kronecker_product():
    """tr(B)·A and tr(A)·B; the sum over all pairs of blocks is another matrix."""
    A, B = zoo.spectral("poly", 5), zoo.indefinite(6)
    for op in (te.kron(te.aslinearoperator(A), B), np.kron(A, B)):
        assert_close(te.partial_trace(op, 6, shape=(5, 6), keep=0).matrix.value, np.trace(B) * A, 1e-12)
        assert_close(te.partial_trace(op, 6, shape=(5, 6), keep=-1).matrix.value, np.trace(A) * B, 1e-12)
    assert np.linalg.norm(naive(np.kron(A, B), (5, 6), (1,)) - np.trace(A) * B) > 0.1 * np.linalg.norm(np.trace(A) * B)


def test_modes_of_a_separable_kernel_are_counted():
    """Of a kernel (time) ⊗ (units) the effective ranks are those of the factors."""
    time, units = zoo.haar(8)[:, :3], zoo.haar(10)[:, :5]
    examples = te.gram(np.eye(12), n_blocks=12)
    factor = te.kron(examples, te.gram(time), te.gram(units))
    assert factor.factor.n_blocks == 12
    for keep, rank in ((1, 3), (2, 5), (0, 12)):
        runs = [
            float(te.partial_trace(factor, 3, shape=(12, 8, 10), keep=keep, rng=s).effective_rank) for s in range(20)
        ]
        assert np.mean(runs) == pytest.approx(rank, rel=0.1)


# -- costs -----------------------------------------------------------------------------------------

VJPS_A_PROBE = {  # where blocks are examples, the example axis costs nothing
    ("examples", (1,)): 4,
    ("examples", (0,)): 1,
    ("examples", (0, 2)): 3,
    ("examples, pairs", (1,)): 4,
    ("runs of examples", (0,)): 2,
    ("blocks across examples", (1,)): 4,
    ("one block", (0,)): 6,
    ("one block", (1, 2)): 12,
}


@pytest.mark.parametrize(("by", "kept"), VJPS_A_PROBE)
@pytest.mark.parametrize("m", [2, 3, 50])
def test_vjps_are_charged_as_they_are_made(by, kept, m):
    parts = [Counter(K.factor) for K in (BY[by](J),)] if "pairs" not in by else []
    if parts:
        operator = te.gram(parts[0])
    else:
        parts = [Counter(te.aslinearoperator(J, n_blocks=6)) for _ in range(2)]
        operator = te.gram(parts[0]) + te.gram(parts[1])
    M = te.partial_trace(operator, m, shape=SHAPE, keep=kept, rng=0)
    blocks = {"examples": 6, "examples, pairs": 6, "runs of examples": 3}.get(by, 1)
    n_exact = 72 // blocks // VJPS_A_PROBE[by, kept]
    for counter in parts:
        assert_counts(M, counter)
    assert M.n_rmatvecs == VJPS_A_PROBE[by, kept] * min(m, n_exact)
    assert M.n_matvecs == 0
    assert M.matrix.exact == (m >= n_exact)


def test_jvps_and_products_are_charged_as_they_are_made():
    counter = Counter(te.aslinearoperator(J))
    M = te.partial_trace(te.gram(counter), 5, shape=SHAPE, keep=(0, 1), side="matmat", rng=0)
    assert_counts(M, counter, budget=5)
    assert (M.n_matvecs, M.method) == (5, "jvps")
    counter = Counter(te.aslinearoperator(K))
    M = te.partial_trace(counter, 5, shape=SHAPE, keep=(0, 2), rng=0)
    assert_counts(M, counter)
    assert M.n_matvecs == 5 * 18 if not M.matrix.exact else 72


@pytest.mark.parametrize("by", ["examples, pairs", "one block", "two-sided"])
def test_chunks_change_nothing(monkeypatch, by):
    kept = (2,)
    whole = te.partial_trace(BY[by](J), 3, shape=SHAPE, keep=kept, rng=0)
    monkeypatch.setattr(ROUTES, "COLUMNS", 1)
    monkeypatch.setattr(ROUTES, "chunk_columns", lambda A, size: 1)
    one_by_one = te.partial_trace(BY[by](J), 3, shape=SHAPE, keep=kept, rng=0)
    assert_close(one_by_one.samples * one_by_one.unit, whole.samples * whole.unit, 1e-12)


def test_the_shape_is_taken_from_the_factor():
    factor = te.aslinearoperator(J, n_blocks=6)
    factor.state_shape = SHAPE
    K, plain = te.gram(factor), te.partial_trace(te.gram(J, n_blocks=6), 2, shape=SHAPE, keep=1, rng=0)
    for operator, times in ((K, 1), (2 * K + K, 3)):
        M = te.partial_trace(operator, 2, keep=1, rng=0)
        assert_close(M.matrix.value, times * plain.matrix.value, 1e-12)
    assert plain.kept_shape == (4,)
    assert (
        repr(plain) == "PartialTrace(4×4, kept axes of length (4,), method='vjps per block', n_matvecs=0, n_rmatvecs=8)"
    )


# -- intervals -------------------------------------------------------------------------------------

BIG = zoo.jacobian(20, 24, 60, seed=7)
STATISTICS = ("matrix", "trace", "frobenius_norm", "effective_rank", "eigenvalues")


def coverage(by, kept, m, seeds=300):
    """The share of 95 % intervals that hold the truth, by statistic, and the least of single eigenvalues."""
    shape = (20, 6, 4)
    dense = BIG @ BIG.T
    operator = {
        "vjps": te.gram(BIG, n_blocks=20),
        "one block": te.gram(BIG),
        "jvps": te.gram(one_side(BIG, "matmat")),
        "two-sided": te.aslinearoperator(dense, psd=True),
    }[by]
    M = partial(dense, shape, kept)
    norm = np.linalg.norm(M)
    truth = dict(
        zip(STATISTICS, (M, np.trace(M), norm, np.trace(M) ** 2 / norm**2, np.linalg.eigvalsh(M)[::-1]), strict=True)
    )
    inside = {name: [] for name in STATISTICS}
    for seed in range(5000, 5000 + seeds):
        found = te.partial_trace(operator, m, shape=shape, keep=kept, rng=seed)
        for name in STATISTICS:
            low, high = getattr(found, name).confidence_interval()
            rounding = 1e-12 * norm
            inside[name].append((low - rounding <= truth[name]) & (truth[name] <= high + rounding))
    means = {name: float(np.mean(x)) for name, x in inside.items()}
    return means | {"least": float(np.min(np.mean(inside["eigenvalues"], axis=0)))}


@pytest.mark.parametrize(
    ("by", "kept", "m"),
    [
        ("vjps", (1,), 3),
        ("vjps", (2,), 4),
        ("vjps", (0,), 8),
        ("one block", (1,), 8),
        ("jvps", (2,), 8),
        ("two-sided", (2,), 8),
    ],
)
def test_95_percent_intervals_cover(by, kept, m):
    covered = coverage(by, kept, m)
    assert 0.93 <= covered["matrix"] <= 0.99
    assert 0.925 <= covered["trace"] <= 0.99  # 0.95 within two standard errors of 300 runs
    assert 0.92 <= covered["frobenius_norm"] <= 1.0
    assert covered["effective_rank"] >= 0.93
    assert covered["eigenvalues"] >= 0.95
    assert covered["least"] >= 0.92  # single eigenvalues: least of all, hence what chance makes least


def test_eigenvalues_that_jvps_cannot_know_are_not_claimed():
    M = te.partial_trace(te.gram(one_side(J, "matmat")), 3, shape=SHAPE, keep=(0, 1), rng=0)
    stderr = M.eigenvalues.stderr  # 24 of them, from samples of rank 3
    assert np.all(np.isfinite(stderr[:6]))
    assert np.all(np.isnan(stderr[6:]))
    assert M.eigenvalues.confidence_interval().high[-1] == np.inf


def test_one_probe_has_no_error_bar_and_is_exact_where_that_is_all():
    M = te.partial_trace(te.gram(J, n_blocks=6), probes=np.ones((72, 2)), shape=SHAPE, keep=())
    assert M.matrix.value.shape == (1, 1)
    exact = te.partial_trace(te.gram(J, n_blocks=6), 1, shape=SHAPE, keep=(0, 1, 2))
    assert exact.matrix.exact
    assert_close(exact.matrix.value, K, 1e-13)


def test_two_probes_have_no_error_bar_for_the_norm():
    M = te.partial_trace(te.gram(J, n_blocks=6), 2, shape=SHAPE, keep=1, rng=0)
    assert np.isnan(float(M.frobenius_norm.stderr))
    assert np.isfinite(float(M.trace.stderr))
    assert np.all(np.isfinite(M.matrix.stderr))


# -- backends --------------------------------------------------------------------------------------

CALLS = {
    "examples traced": (lambda j: te.gram(j, n_blocks=6), (1,)),
    "examples kept": (lambda j: te.gram(j, n_blocks=6), (0, 2)),
    "pairs": (lambda j: te.gram(j, n_blocks=6) + te.gram(2.0 * j, n_blocks=6), (2,)),
    "jvps": (lambda j: te.gram(one_side(j, "matmat")), (1,)),
    "two-sided": (lambda j: te.aslinearoperator(te.gram(j), symmetric=True) - 0.1 * te.identity(72, like=j), (2,)),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "float64") for name in CALLS), ("examples traced", "float32"), ("examples kept", "complex128")],
)
def test_every_backend_gives_the_same(backend, name, dtype):
    make, kept = CALLS[name]
    factor = zoo.jacobian(6, 12, 20, complex_=dtype == "complex128").astype(dtype)

    def statistics(j):
        M = te.partial_trace(make(j), 3, shape=SHAPE, keep=kept, rng=0)
        return [getattr(M, name) for name in STATISTICS]

    rtol = 1e-4 if dtype == "float32" else 1e-10
    for expected, got in zip(statistics(factor), backend.call(statistics, factor), strict=True):
        assert_close(backend.host(got.value), expected.value, rtol)
        assert_close(backend.host(got.stderr), expected.stderr, 100 * rtol)
        assert backend.host(got.value).dtype == expected.value.dtype
        assert (got.n_matvecs, got.n_rmatvecs, got.method) == (expected.n_matvecs, expected.n_rmatvecs, expected.method)


@pytest.mark.parametrize("library", ["jax", "torch"])
def test_results_are_pytrees(library):
    V = np.random.default_rng(0).choice([-1.0, 1.0], size=(4, 18, 3))

    def f(j, v):
        return te.partial_trace(te.gram(j, n_blocks=6), probes=v, shape=SHAPE, keep=1)

    if library == "jax":
        many = jax.jit(jax.vmap(lambda v: f(jnp.asarray(J), v)))(jnp.asarray(V))
    else:
        many = torch.func.vmap(lambda v: f(torch.from_numpy(J), v))(torch.from_numpy(V))
    assert isinstance(many, te.PartialTrace)
    for i, v in enumerate(V):
        one = f(J, v)
        assert_close(many.samples[i] * many.unit[i], one.samples * one.unit, 1e-12)


def test_gradients_go_through():
    def f(j):
        M = te.partial_trace(te.gram(j, n_blocks=6), 3, shape=SHAPE, keep=1, rng=0)
        return M.effective_rank.value + M.matrix.value[0, 1]

    slope = jax.grad(f)(jnp.asarray(J))
    leaf = torch.from_numpy(J.copy()).requires_grad_()
    f(leaf).backward()
    assert_close(slope, leaf.grad, 1e-9)
    low_rank = J * (np.arange(20) < 2)
    assert np.all(np.isfinite(jax.grad(f)(jnp.asarray(low_rank))))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scale_is_only_a_factor(backend, dtype):
    power = 50 if dtype == "float32" else 400  # of two: J's; K's is twice that

    def f(j):
        M = te.partial_trace(te.gram(j, n_blocks=6), 3, shape=SHAPE, keep=1, rng=0)
        return [getattr(M, name) for name in STATISTICS]

    rtol = 1e-3 if dtype == "float32" else 1e-10
    for sign in (1, -1):
        plain, scaled = backend.call(f, J.astype(dtype)), backend.call(f, np.ldexp(J.astype(dtype), sign * power))
        for name, a, b in zip(STATISTICS, plain, scaled, strict=True):
            back = 0 if name == "effective_rank" else -2 * sign * power
            assert_close(np.ldexp(backend.host(b.value).astype(np.float64), back), backend.host(a.value), rtol)
            assert_close(np.ldexp(backend.host(b.stderr).astype(np.float64), back), backend.host(a.stderr), rtol)


def test_the_zero_kernel(backend):
    M = backend.call(lambda j: te.partial_trace(te.gram(j, n_blocks=6), 3, shape=SHAPE, keep=1, rng=0), 0 * J)
    for name in ("matrix", "trace", "frobenius_norm", "eigenvalues"):
        assert not np.any(backend.host(getattr(M, name).value))
        assert not np.any(backend.host(getattr(M, name).stderr))
    assert np.isnan(float(M.effective_rank.value))


# -- errors ----------------------------------------------------------------------------------------

GRAM = te.gram(J, n_blocks=6)
CASES = {
    "oblong": (
        lambda: te.partial_trace(J, 3, shape=SHAPE, keep=0),
        ValueError,
        "partial_trace: expected a square operator",
    ),
    "no shape": (
        lambda: te.partial_trace(GRAM, 3, keep=0),
        TypeError,
        "give shape=, the state's axes, example first, with a product of 72",
    ),
    "shape that does not fit": (
        lambda: te.partial_trace(GRAM, 3, shape=(6, 4), keep=0),
        ValueError,
        r"shape \(6, 4\) has 24 entries, the operator 72 rows",
    ),
    "shape with a zero": (
        lambda: te.partial_trace(GRAM, 3, shape=(0, 4), keep=0),
        ValueError,
        r"shape \(0, 4\) has 0 entries",
    ),
    "no axis": (
        lambda: te.partial_trace(GRAM, 3, shape=SHAPE, keep=3),
        ValueError,
        r"keep = 3 is no axis of a state of shape \(6, 4, 3\)",
    ),
    "an axis twice": (
        lambda: te.partial_trace(GRAM, 3, shape=SHAPE, keep=(0, -3)),
        ValueError,
        r"keep = \(0, -3\) names an axis twice",
    ),
    "a name": (
        lambda: te.partial_trace(GRAM, 3, shape=SHAPE, keep="time"),
        TypeError,
        "keep must be an axis or a tuple of them, got 'time'",
    ),
    "no budget": (
        lambda: te.partial_trace(GRAM, shape=SHAPE, keep=1),
        TypeError,
        "give a budget, for instance n_probes=10",
    ),
    "one probe": (
        lambda: te.partial_trace(GRAM, 1, shape=SHAPE, keep=1),
        ValueError,
        "n_probes = 1 is below the method's minimum of 2",
    ),
    "orthogonal": (
        lambda: te.partial_trace(GRAM, 2, shape=SHAPE, keep=1, distribution="orthogonal"),
        ValueError,
        "bias the norm; choose rademacher",
    ),
    "probes": (
        lambda: te.partial_trace(GRAM, probes=np.ones((72, 2)), shape=SHAPE, keep=1),
        ValueError,
        r"probes must have shape \(18, k\)",
    ),
    "side": (
        lambda: te.partial_trace(GRAM, 2, shape=SHAPE, keep=1, side="left"),
        ValueError,
        "side must be auto, matmat or rmatmat, got 'left'",
    ),
    "a side of no factor": (
        lambda: te.partial_trace(K, 2, shape=SHAPE, keep=1, side="rmatmat"),
        TypeError,
        "side='rmatmat' needs a Gram operator",
    ),
    "a missing side": (
        lambda: te.partial_trace(te.gram(one_side(J, "rmatmat")), 2, shape=SHAPE, keep=1, side="matmat"),
        TypeError,
        r"needs matmat \(forward mode, jvp\)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_told_what_to_do(name):
    call, kind, message = CASES[name]
    with pytest.raises(kind, match=message):
        call()


# -- what these checks catch -----------------------------------------------------------------------


def test_the_sum_over_all_pairs_of_examples_is_caught(monkeypatch):
    """Signs that examples share, and the Gram matrix of the sum over examples, give the naive sum."""

    def pooled(J, V, d):
        g = sum(J.block_rmatmat(np.tile(V[:12], (6, 1)))).reshape(-1, d, J.shape[1])
        return np.stack([g @ g.swapaxes(1, 2) / 6] * 6)

    monkeypatch.setattr(ROUTES, "block_gram", pooled)
    with pytest.raises(AssertionError, match="off"):
        check_unbiased("examples", (1,))


def test_signs_of_their_own_where_examples_are_kept_are_caught(monkeypatch):
    """⟨J_bᴴ(s_b⊗e), J_cᴴ(s_c⊗e′)⟩ averages to zero between examples."""
    honest = ROUTES.Axes.columns

    def own(self, xp, S):
        V = honest(self, xp, S)
        flips = np.sign(np.random.default_rng(abs(int(V.sum() * 7))).standard_normal(self.B))
        return V * np.repeat(flips, V.shape[0] // self.B)[:, None]

    monkeypatch.setattr(ROUTES.Axes, "columns", own)
    with pytest.raises(AssertionError, match="off"):
        check_unbiased("examples", (0,))


def test_the_biased_norm_of_the_mean_matrix_is_caught(monkeypatch):
    honest = RESULT.pair_mean

    def biased(xp, H):
        return honest(xp, H).map(lambda value: value + np.einsum("bibi->", H) / H.shape[1] ** 2)

    monkeypatch.setattr(RESULT, "pair_mean", biased)
    with pytest.raises(AssertionError, match="off"):
        check_unbiased("examples", (1,))


def test_axes_in_the_wrong_order_are_caught(monkeypatch):
    monkeypatch.setattr(ROUTES.Axes, "gathered", lambda self, xp, X: X.reshape(self.d_traced, self.d_kept, -1))
    with pytest.raises(AssertionError):
        test_enough_probes_are_exact("two-sided", (1,), False)


@pytest.mark.parametrize("factor", [0.6, 2.0])
def test_error_bars_of_the_wrong_size_are_caught(monkeypatch, factor):
    honest = RESULT.PartialTrace._array
    scaled = lambda self, of, v, s, df, **f: honest(self, of, v, factor * s, df, **f)  # noqa: E731
    monkeypatch.setattr(RESULT.PartialTrace, "_array", scaled)
    with pytest.raises(AssertionError):
        test_95_percent_intervals_cover("vjps", (1,), 3)


def test_eigenvalues_whose_bias_is_not_counted_are_caught(monkeypatch):
    monkeypatch.setattr(RESULT, "_largest_of_neighbours", lambda xp, x: 0 * x)
    with pytest.raises(AssertionError):
        test_95_percent_intervals_cover("vjps", (0,), 8)


def test_a_count_that_is_not_what_was_spent_is_caught(monkeypatch):
    honest = te.partial_trace
    monkeypatch.setattr(te, "partial_trace", lambda *a, **k: replace(honest(*a, **k), n_rmatvecs=1))
    with pytest.raises(AssertionError, match="reports"):
        test_vjps_are_charged_as_they_are_made("examples", (1,), 2)


@pytest.mark.parametrize("keep", [0, 1, 2, (1, 2)])
def test_a_models_state_tells_its_own_axes(keep):
    from models import as_jax, jax_gru, torch_gru

    import traceest_adapters.jax
    import traceest_adapters.torch

    module, x = torch_gru(3, 4), torch.randn(6, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    K = traceest_adapters.torch.ntk(module, x, batch_axis=1, output=0)
    L = traceest_adapters.jax.ntk(jax_gru, as_jax(module), jnp.asarray(x.numpy()), batch_axis=1)
    dense = te.to_dense(K).detach().numpy().reshape(5, 6, 4, 5, 6, 4)
    kept = (keep,) if isinstance(keep, int) else keep
    left, right = "btu", "".join(c.upper() if a in kept else c for a, c in enumerate("btu"))
    out = "".join(left[a] for a in kept) + "".join(right[a] for a in kept)
    d = int(np.prod([(5, 6, 4)[a] for a in kept]))
    truth = np.einsum(f"{left}{right}->{out}", dense).reshape(d, d)
    np.testing.assert_allclose(
        te.partial_trace(K, 24, keep=keep).matrix.value.detach().numpy(), truth, rtol=1e-9, atol=1e-12
    )
    ours, theirs = (te.partial_trace(k, 3, keep=keep, rng=0) for k in (K, L))
    for name in ("trace", "frobenius_norm", "effective_rank"):
        assert float(getattr(ours, name)) == pytest.approx(float(getattr(theirs, name)), rel=1e-9)
