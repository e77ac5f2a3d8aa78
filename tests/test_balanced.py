"""Balanced signs: those of a feature add up to ±√T over its positions, whatever else they are."""

from __future__ import annotations

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from assertions import Counter, assert_close, assert_unbiased, assert_variance

import traceest as te
from traceest.operators.layout import Layout, layout
from traceest.probes import balanced_signs
from traceest_adapters import jax as in_jax
from traceest_adapters import torch as in_torch


def holds(e: te.Estimate, truth: float) -> bool:
    low, high = e.confidence_interval()
    return bool(low <= truth <= high)


# -- the signs --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("T", [1, 2, 3, 4, 5, 9, 10, 16, 50, 64, 99])
def test_sums_are_next_to_the_root_of_t_and_their_square_has_mean_t(T):
    low, high, larger = balanced_signs.sums(T)
    assert low <= T**0.5 < high or low == T**0.5
    assert (low - T) % 2 == 0
    assert high == low + 2
    assert_close((1 - larger) * low**2 + larger * high**2, T, 1e-13)
    S = te.probes.balanced(T, 4000, rng=0).sum(0)
    assert set(np.abs(S)) <= {low, high}
    assert_unbiased(S**2, T)
    assert_unbiased(S, 0.0)


@pytest.mark.parametrize("shape", [(10, 3, 1), (1, 3, 10), (2, 3, 5)])
@pytest.mark.parametrize("dtype", [float, complex])
def test_each_feature_of_each_block_is_balanced_over_its_positions(shape, dtype):
    B, k = 4, 50
    V = te.probes.balanced(B * 30, k, rng=0, like=np.empty(0, dtype), n_blocks=B, layout=shape)
    S = V.reshape(B, *shape, k).sum((1, 3))
    parts = [S] if dtype is float else [S.real * 2**0.5, S.imag * 2**0.5]
    for part in parts:
        assert_close(np.unique(np.abs(part).round(12)), [2.0, 4.0], 1e-13)


@pytest.mark.parametrize("T", [5, 6])
def test_all_signs_of_a_sum_are_equally_likely(T):
    low, high, larger = balanced_signs.sums(T)
    V = te.probes.balanced(T, 20000, rng=1)
    for s, p in ((low, 1 - larger), (high, larger)):
        alike = [v for v in product((-1.0, 1.0), repeat=T) if abs(sum(v)) == s]
        for v in alike:
            assert_unbiased(np.all(np.array(v)[:, None] == V, axis=0), p / len(alike), sigmas=4.5)


def test_features_blocks_and_probes_are_independent():
    V = te.probes.balanced(2 * 18, 3000, rng=2, n_blocks=2, layout=(9, 2, 1)).reshape(2, 9, 2, 3000)
    first = V[0, 0, 0] * V[0, 1, 0]
    for second in (V[0, 0, 1] * V[0, 1, 1], V[1, 0, 0] * V[1, 1, 0], np.roll(first, 1)):
        assert_unbiased(first * second, 0.0)
        assert_unbiased(second, 0.0)


def variance(A: np.ndarray) -> float:
    """Of vᵀAv, as the head of `traceest.probes.balanced_signs` says."""
    T = len(A)
    low, high, larger = balanced_signs.sums(T)
    fourth = (1 - larger) * low**4 + larger * high**4
    kappa = (fourth - 3 * T**2 + 2 * T) / (T * (T - 1) * (T - 2) * (T - 3))
    A = A - np.diag(np.diag(A))
    squares = np.sum(A**2)
    return 2 * squares + kappa * (A.sum() ** 2 - 4 * np.sum(A.sum(0) ** 2) + 2 * squares)


def star(T: int) -> np.ndarray:
    A = np.zeros((T, T))
    A[0, 1:] = A[1:, 0] = 1.0
    return A


def symmetric(T: int, mean: float = 0.0) -> np.ndarray:
    A = np.random.default_rng(0).standard_normal((T, T)) + mean
    return A + A.T


@pytest.mark.parametrize("A", [symmetric(12), symmetric(13, 1.0), star(9), np.eye(8) + 1.0], ids=len)
def test_the_variance_is_the_formula_s(A):
    found = [te.hutchinson(A, 4, rng=s, distribution="balanced") for s in range(3000)]
    values = np.array([float(e) for e in found])
    assert_unbiased(values, np.trace(A))
    assert_variance(values, variance(A) / 4, within=0.12)
    squares = np.array([float(e.stderr) ** 2 for e in found])
    if np.ptp(A[~np.eye(len(A), dtype=bool)]) == 0:  # samples that agree have a bar that their spread does not tell
        samples = np.array([np.var(e.samples, ddof=1) for e in found])
        assert_unbiased(samples / 4, variance(A) / 4)
        assert np.all(squares >= samples / 4 - 1e-12)
        assert np.min(squares) > 0
    else:
        assert_unbiased(squares, variance(A) / 4)


@pytest.mark.parametrize("T", [4, 16, 64, 100])
def test_what_all_positions_have_in_common_adds_nothing(T):
    A = np.full((T, T), 3.0)
    for seed in range(20):
        assert_close(float(te.hutchinson(A, 2, rng=seed, distribution="balanced")), 3.0 * T, 1e-13)


@pytest.mark.parametrize("T", [8, 30, 101])
def test_no_matrix_costs_much_more_than_with_fair_signs(T):
    """The worst is the eigenvector of the quadratic form in A's entries with the largest eigenvalue: less than 4/T."""
    rng = np.random.default_rng(T)
    u = rng.standard_normal(T)
    for A in (star(T), symmetric(T), np.outer(u, u), np.outer(u - u.mean(), np.ones(T)) + np.outer(np.ones(T), u)):
        A = (A + A.T) / 2
        fair = 2 * np.sum((A - np.diag(np.diag(A))) ** 2)
        assert variance(A) <= fair * (1 + 4 / T)


# -- which rows belong together -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shape", "axis", "n_blocks", "expected"),
    [
        ((4, 10, 3), -1, 4, Layout(10, 3, 1)),
        ((4, 10, 3), 1, 4, Layout(1, 10, 3)),
        ((4, 5, 6, 7), 1, 4, Layout(1, 5, 42)),
        ((4, 5, 6, 7), 2, 4, Layout(5, 6, 7)),
        ((4, 10, 3), -1, 1, Layout(40, 3, 1)),
        ((4, 5, 6, 7), 1, 1, Layout(4, 5, 42)),
        ((4, 10, 3), -1, 2, Layout(20, 3, 1)),
        ((4, 3), -1, 4, Layout(1, 3, 1)),
        ((4, 3), -1, 1, Layout(4, 3, 1)),
        ((4,), -1, 1, Layout(4, 1, 1)),
        ((4,), -1, 4, Layout(1, 1, 1)),
        ((4, 10, 3), -1, 3, None),
        ((4, 10, 2), -1, 4, None),
        (None, -1, 4, None),
    ],
)
def test_the_layout_of_a_block_follows_from_the_state(shape, axis, n_blocks, expected):
    n = 120 if shape is None or shape == (4, 10, 2) else int(np.prod(shape))
    J = te.aslinearoperator(np.zeros((n, 2)))
    J.state_shape, J.feature_axis = shape, axis
    assert layout(J, n_blocks) == expected
    assert layout(te.gram(J), n_blocks) == expected


def named(n_blocks: int, *shape: int, P: int = 40) -> te.DenseOperator:
    """A random Jacobian of a state of that shape, whose kernel has much in common between positions."""
    rng = np.random.default_rng(0)
    J = rng.standard_normal((*shape, P)) + 2 * rng.standard_normal((1, *(1 for _ in shape[1:-1]), shape[-1], P))
    J = te.aslinearoperator(J.reshape(-1, P), n_blocks=n_blocks)
    J.state_shape = shape
    return J


@pytest.mark.parametrize(
    ("n_blocks", "shape", "law"),
    [
        (3, (3, 43, 3), "balanced"),  # 129 rows
        (3, (3, 64, 2), "hadamard"),  # 128
        (3, (3, 3, 60), "hadamard"),  # three positions
        (1, (3, 4, 2), "balanced"),
        (1, (6, 4), "balanced"),
        (1, (3, 4), "rademacher"),
    ],
)
def test_samples_are_balanced_where_there_are_positions(n_blocks, shape, law):
    J = named(n_blocks, *shape)
    for e in (te.rhutch(J, 3, rng=0), te.hutchinson(te.gram(J), 3, rng=0)):
        V = te.probes.Probes(
            J.shape[0], J, rng=0, distribution=law, n_blocks=n_blocks, layout=layout(J, n_blocks)
        ).take(3)
        assert_close(float(e), float(te.rhutch(J, 3, probes=V)), 1e-13)
    if law != "rademacher":
        assert float(e) != float(te.rhutch(J, 3, rng=0, distribution="rademacher"))


def test_a_layout_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"layout \(4, 3, 1\) of 2 blocks does not make n = 12 rows"):
        te.probes.balanced(12, 2, rng=0, n_blocks=2, layout=(4, 3, 1))


# -- traces -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n_blocks", [3, 1])
def test_they_take_a_fraction_of_the_variance_and_the_intervals_hold(n_blocks):
    J = named(n_blocks, 3, 64, 3)
    truth = float(te.exact(te.gram(J)))
    found = [te.rhutch(J, 4, rng=s) for s in range(600)]
    fair = [float(te.rhutch(J, 4, rng=s, distribution="rademacher")) for s in range(600)]
    A = J.array.reshape(n_blocks, -1, 3, 40)
    A = np.einsum("btfp,bsgp->bftgs", A, A)
    own = np.einsum("bftfs->bfts", A)
    one = sum(variance(A_f) for A_b in own for A_f in A_b) + 2 * (np.sum(A**2) - np.sum(own**2))
    assert_unbiased([float(e) for e in found], truth)
    assert_unbiased([float(e.stderr) ** 2 for e in found], one / 4)
    assert_variance([float(e) for e in found], one / 4, within=0.25)
    assert one / 4 < 0.2 * np.var(fair)
    assert np.mean([holds(e, truth) for e in found]) > 0.95 - 3 * 0.009


def test_trace_needs_fewer_and_goes_on_from_a_checkpoint(tmp_path):
    def made(law, **how):
        counter = Counter(named(3, 3, 81, 3, P=400))
        counter.state_shape = (3, 81, 3)
        e = te.trace(te.gram(counter), rtol=0.03, rng=1, distribution=law, callback=lambda e: False, **how)
        assert abs(float(e) / truth - 1) < 0.03
        return e.n_rmatvecs

    truth = float(te.exact(te.gram(named(3, 3, 81, 3, P=400))))
    few = made(None)
    assert few < 0.5 * made("hadamard")
    path = tmp_path / "run.npz"
    first = te.trace(
        te.gram(named(3, 3, 81, 3, P=400)), rtol=1e-9, max_matvecs=few // 2, method="rhutch", checkpoint=path
    )
    assert not first.converged
    assert made(None, method="rhutch", checkpoint=path) >= few // 2


def test_trace_of_one_block_balances_the_vjps_that_it_begins_with(tmp_path):
    def run(seed, law=None, rtol=0.1, **how):
        return te.trace(K, rtol=rtol, rng=seed, distribution=law, callback=lambda e: False, **how)

    K = te.gram(named(1, 6, 40, 3, P=400))
    truth = float(te.exact(K))
    found, fair = ([run(s, law) for s in range(40)] for law in (None, "rademacher"))
    few, many = (np.mean([e.n_rmatvecs + 2 * e.n_matvecs for e in some]) for some in (found, fair))
    assert few < 0.5 * many
    assert np.mean([abs(float(e) / truth - 1) < 0.1 for e in found]) > 0.95 - 3 * 0.034

    class Killed(Exception):
        pass

    def kill(e):
        raise Killed

    for seed in range(5):
        path = tmp_path / f"{seed}.npz"
        with pytest.raises(Killed):
            te.trace(K, rtol=0.03, rng=seed, checkpoint=path, callback=kill)
        resumed, whole = run(seed, rtol=0.03, checkpoint=path), run(seed, rtol=0.03)
        assert whole.n_rmatvecs > 10
        assert_close(float(resumed), float(whole), 1e-13)


@pytest.mark.parametrize("n_blocks", [3, 1])
@pytest.mark.parametrize("statistic", [te.frobenius_norm, te.effective_rank], ids=lambda f: f.__name__)
def test_norms_and_ranks_take_a_fraction_of_the_error_and_the_intervals_hold(statistic, n_blocks):
    K, m = te.gram(named(n_blocks, 3, 64, 3)), 6 if n_blocks > 1 else 16
    truth = float(statistic(K, method="exact"))
    found = [statistic(K, m, rng=s, method="one-sided") for s in range(300)]
    fair = [statistic(K, m, rng=s, method="one-sided", distribution="rademacher") for s in range(300)]
    same = statistic(K, m, rng=0, method="one-sided", distribution="balanced")
    assert float(found[0]) == float(same)
    errors, unfair = (np.array([float(e) / truth - 1 for e in some]) for some in (found, fair))
    if statistic is te.frobenius_norm:
        assert_unbiased((errors + 1) ** 2, 1.0)
    assert np.mean(errors**2) < 0.5 * np.mean(unfair**2)
    assert np.mean([holds(e, truth) for e in found]) > 0.95 - 3 * 0.0126


def test_products_with_kernels_of_one_block_and_trackers_balance_too():
    K = te.gram(named(1, 6, 8, 2))
    K.factor.n_blocks = None
    V = te.probes.balanced(96, 4, rng=0, layout=(48, 2, 1))
    e = te.frobenius_norm(K, n_matvecs=4, method="two-sided", rng=0)
    assert_close(float(e), float(te.frobenius_norm(K, method="two-sided", probes=V)), 1e-13)
    blocks = te.gram(named(3, 3, 16, 2))
    tracker = te.Tracker(4, rng=0)
    V = te.probes.balanced(96, 4, rng=0, n_blocks=3, layout=(16, 2, 1))
    assert_close(float(tracker.update(blocks).frobenius_norm), float(te.frobenius_norm(blocks, probes=V)), 1e-13)


@pytest.mark.parametrize(
    ("keep", "n_blocks", "expected"),
    [
        (2, 4, Layout(10, 1, 1)),
        (1, 4, Layout(1, 3, 1)),
        (0, 4, Layout(10, 3, 1)),
        ((1, 2), 4, Layout(1, 1, 1)),
        (2, 1, Layout(40, 1, 1)),
        (1, 1, Layout(4, 3, 1)),
        (0, 1, Layout(10, 3, 1)),
    ],
)
def test_partial_traces_balance_over_the_positions_traced_over(keep, n_blocks, expected):
    K = te.gram(named(n_blocks, 4, 10, 3))
    runs = 1 if keep == 0 or n_blocks == 1 else n_blocks
    law = "balanced" if expected.positions >= 4 else "rademacher"
    how = {"rng": 0, "distribution": law, "n_blocks": runs, "layout": expected}
    V = te.probes.Probes(runs * int(np.prod(expected)), np.empty(0), **how).take(2)
    if V.shape[0] > 2 * runs:
        found, given = te.partial_trace(K, 2, keep=keep, rng=0), te.partial_trace(K, keep=keep, probes=V)
        assert_close(found.matrix.value, given.matrix.value, 1e-12)
        assert_close(te.partial_trace(K, 2, keep=keep, shape=(4, 10, 3), rng=0).matrix.value, given.matrix.value, 1e-12)
    other = te.partial_trace(K, 2, keep=0, shape=(4, 30), rng=0)
    fair = te.partial_trace(K, 2, keep=0, shape=(4, 30), rng=0, distribution="rademacher")
    assert_close(other.matrix.value, fair.matrix.value, 1e-13)


def test_partial_traces_take_a_fraction_of_the_error_without_bias():
    K = te.gram(named(3, 3, 32, 3))
    exact = te.partial_trace(K, 10**4, keep=2)
    M = exact.matrix.value
    found = [te.partial_trace(K, 4, keep=2, rng=s) for s in range(200)]
    fair = [te.partial_trace(K, 4, keep=2, rng=s, distribution="rademacher").matrix.value for s in range(200)]
    for i in range(3):
        for j in range(3):
            assert_unbiased([e.matrix.value[i, j] for e in found], M[i, j])
    errors, unfair = (np.mean(np.square(np.array(some) - M)) for some in ([e.matrix.value for e in found], fair))
    assert errors < 0.3 * unfair
    assert np.mean([holds(e.trace, np.trace(M)) for e in found]) > 0.95 - 3 * 0.0154
    assert np.mean([holds(e.frobenius_norm, np.linalg.norm(M)) for e in found]) > 0.95 - 3 * 0.0154


def rnn(p, x):
    def cell(h, x_t):
        h = jax.nn.sigmoid(x_t @ p["in"] + h @ p["rec"] + p["bias"])
        return h, h

    return jnp.swapaxes(jax.lax.scan(cell, jnp.zeros((x.shape[0], 8)), jnp.swapaxes(x, 0, 1))[1], 0, 1)


def conv(p, x):
    """Channels last."""
    for w, b in p:
        x = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + b
        x = jax.nn.relu(x)
    return x


def models() -> dict:
    keys = jax.random.split(jax.random.key(0), 6)
    p = {
        "in": jax.random.normal(keys[0], (3, 8)),
        "rec": jax.random.normal(keys[1], (8, 8)) / 8**0.5,
        "bias": jnp.zeros(8),
    }
    layers = [
        (jax.random.normal(keys[2], (3, 3, 1, 6)) / 3, jnp.zeros(6)),
        (jax.random.normal(keys[3], (3, 3, 6, 4)) / 7, jnp.zeros(4)),
    ]
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(6, 4, 3, padding=1)
    ).double()
    gru = torch.nn.GRU(3, 8, batch_first=True).double()
    images, sequences = (np.random.default_rng(i).standard_normal(s) for i, s in enumerate([(3, 10, 10), (3, 32, 3)]))
    return {
        "JAX RNN": in_jax.ntk(rnn, p, jnp.asarray(sequences)),
        "JAX CNN": in_jax.ntk(conv, layers, jnp.asarray(images[..., None])),
        "PyTorch GRU": in_torch.ntk(gru, torch.tensor(sequences), output=0),
        "PyTorch CNN": in_torch.ntk(net, torch.tensor(images[:, None])),
    }


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("JAX RNN", Layout(32, 8, 1)),
        ("JAX CNN", Layout(100, 4, 1)),
        ("PyTorch GRU", Layout(32, 8, 1)),
        ("PyTorch CNN", Layout(1, 4, 100)),
    ],
)
def test_kernels_of_models_with_positions(model, expected):
    K = models()[model]
    assert layout(K, 3) == expected
    truth = float(te.exact(K))
    found = [te.rhutch(K, 2, rng=s) for s in range(150)]
    fair = [float(te.rhutch(K, 2, rng=s, distribution="rademacher")) for s in range(150)]
    values = [float(e) for e in found]
    assert_unbiased(values, truth)
    assert np.var(values) < 0.7 * np.var(fair)
    assert np.mean([holds(e, truth) for e in found]) > 0.95 - 3 * 0.018


@pytest.mark.parametrize(
    ("batch_axis", "asked", "shape", "axis"),
    [
        (0, None, (5, 7, 4), -1),
        (0, 1, (5, 7, 4), 1),
        (1, None, (7, 5, 4), -1),
        (1, 0, (7, 5, 4), 1),
        (1, 2, (7, 5, 4), 2),
    ],
)
@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_the_axis_of_features_is_named_among_the_output_s_own(framework, batch_axis, asked, shape, axis):
    if framework == "jax":
        K = in_jax.ntk(lambda w, x: x @ w, jnp.eye(4), jnp.ones((5, 7, 4)), batch_axis=batch_axis, feature_axis=asked)
    else:
        layer = torch.nn.Linear(4, 4, bias=False)
        K = in_torch.ntk(layer, torch.ones(5, 7, 4), batch_axis=batch_axis, feature_axis=asked)
    J = K.factor
    assert (J.state_shape, J.feature_axis) == (shape, axis)
    for same in ((2 * K).factor, te.vstack([J, J])):
        assert same.feature_axis == axis
    B, features = shape[0], shape[axis]
    assert layout(J, B).features == features
    assert layout(te.vstack([J, J]), 2 * B).features == features


@pytest.mark.parametrize("asked", [0, 3, -3])
def test_an_axis_that_is_none_of_features_is_refused(asked):
    with pytest.raises(ValueError, match=rf"feature_axis={asked} of an output with 3 axes"):
        in_jax.ntk(lambda w, x: x @ w, jnp.eye(4), jnp.ones((5, 7, 4)), feature_axis=asked)
    with pytest.raises(ValueError, match=rf"feature_axis={asked} of an output with 3 axes"):
        in_torch.ntk(torch.nn.Linear(4, 4), torch.ones(5, 7, 4), feature_axis=asked)


def test_batches_have_the_layout_of_their_examples():
    batches = [jnp.ones((2, 50, 4)), jnp.ones((2, 50, 4))]
    for blocks, expected in (("example", Layout(50, 4, 1)), ("batch", Layout(100, 4, 1))):
        K = in_jax.ntk(lambda w, x: x @ w, jnp.eye(4), batches=batches, blocks=blocks)
        assert layout(K, K.factor.n_blocks) == expected
        tensors = [torch.tensor(np.asarray(x)) for x in batches]
        K = in_torch.ntk(torch.nn.Linear(4, 4).double(), batches=tensors, blocks=blocks)
        assert layout(K, K.factor.n_blocks) == expected


@pytest.mark.parametrize("n", [37, 40, 102])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_samples_that_agree_on_a_constant_do_not_pass_for_certain(n: int, k: int) -> None:
    """Of one feature all squared sums may be the same: the spread of samples is nothing then, their bar is not."""
    A = np.eye(n) + 0.1
    estimates = [te.hutchinson(A, k, rng=seed, distribution="balanced") for seed in range(100)]
    held = [e.confidence_interval().low <= np.trace(A) <= e.confidence_interval().high for e in estimates]
    assert np.mean(held) >= 0.95
    J = te.Operator((n, 1), like=A, rmatmat=lambda V: V.sum(0, keepdims=True))
    assert min(float(te.rhutch(J, 3, rng=s, distribution="balanced").stderr) for s in range(20)) > 0
