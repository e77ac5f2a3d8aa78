"""Orthogonal signs: a sample without replacement of forms whose mean is the trace."""

from __future__ import annotations

import numpy as np
import operators_zoo as zoo
import pytest
from assertions import Counter, assert_close, assert_unbiased, assert_variance

import traceest as te
from traceest.probes import Probes
from traceest.probes import orthogonal_signs as hadamard


def all_of(n: int, n_blocks: int = 1, rng: int = 0, dtype: type = float) -> np.ndarray:
    """Every probe of one set, (n_blocks, n / n_blocks, N)."""
    d = n // n_blocks
    V = te.probes.hadamard(n, hadamard.order(d), rng=rng, like=np.empty(0, dtype), n_blocks=n_blocks)
    return V.reshape(n_blocks, d, -1)


def holds(e: te.Estimate, truth: float) -> bool:
    """Whether the interval does."""
    low, high = e.confidence_interval()
    return bool(low <= truth <= high)


def pairs(n: int) -> np.ndarray:
    """All of whose mass is in one class of a plain Hadamard matrix: rows 2i and 2i + 1."""
    return np.eye(n) + np.kron(np.eye(n // 2), [[0.0, 1.0], [1.0, 0.0]])


@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize(
    ("n", "n_blocks"), [(1, 1), (2, 1), (3, 1), (64, 1), (33, 1), (200, 1), (6, 3), (70, 5), (96, 3)]
)
def test_all_probes_of_a_set_are_a_tight_frame_of_signs(n, n_blocks, dtype):
    for block in all_of(n, n_blocks, dtype=dtype):
        d, N = block.shape
        assert 1 << (d - 1).bit_length() == N
        assert_close(block @ block.conj().T, N * np.eye(d), 1e-13)
        assert_close(np.abs(block), np.ones((d, N)), 1e-15)
        if d == N:
            assert_close(block.conj().T @ block, N * np.eye(d), 1e-13)


@pytest.mark.parametrize("n", [6, 100])
def test_more_probes_than_a_set_has_are_of_another_set(n):
    N = hadamard.order(n)
    V = te.probes.hadamard(n, 2 * N, rng=0)
    for W in (V[:, :N], V[:, N:]):
        assert_close(W @ W.T, N * np.eye(n), 1e-13)
    assert not np.array_equal(V[:, :N], V[:, N:])


def test_chunks_go_on_with_their_set_and_each_take_begins_another():
    stream = Probes(32, np.empty(0), rng=0, distribution="hadamard")
    first, second = (np.concatenate(list(stream.chunks(16, 5)), axis=1) for _ in range(2))
    assert_close(first.T @ second, np.zeros((16, 16)), 1e-15)

    def overlaps(seed):
        stream = Probes(32, np.empty(0), rng=seed, distribution="hadamard")
        S, G, (X,) = stream.take(1), stream.take(1), stream.chunks(1, 1)
        return (S.T @ G).item() ** 2, (G.T @ X).item() ** 2

    for squares in np.array([overlaps(s) for s in range(2000)]).T:
        assert_unbiased(squares, 32)


def test_blocks_go_through_their_probes_in_orders_of_their_own():
    """Products of two probes of a block are the same columns of signs in each, but not at the same time."""
    V = all_of(3 * 64, 3)
    of_pairs = [block[:, :-1] * block[:, 1:] for block in V]
    assert not any(np.array_equal(a, b) for a, b in ((of_pairs[0], of_pairs[1]), (of_pairs[1], of_pairs[2])))


@pytest.mark.parametrize("m", [2, 13, *(pytest.param(m, marks=pytest.mark.slow) for m in (1, 5))])
@pytest.mark.parametrize("n_blocks", [1, 4])
@pytest.mark.parametrize("n_b", [14, 16])
def test_the_variance_is_that_of_a_sample_without_replacement(m, n_blocks, n_b):
    J = zoo.jacobian(n_blocks, n_b, 40)
    truth, op, N = float(np.sum(J**2)), te.aslinearoperator(J, n_blocks=n_blocks), hadamard.order(n_b)
    found = [te.rhutch(op, m, rng=s, distribution="hadamard") for s in range(3000)]
    values = np.array([float(e) for e in found])
    assert_unbiased(values, truth)
    blocks = [J[b * n_b : (b + 1) * n_b] @ J[b * n_b : (b + 1) * n_b].T for b in range(n_blocks)]
    one = 2 * sum(np.sum(K**2) - np.sum(np.diag(K) ** 2) for K in blocks)
    variance = one / m * (N - m) / (N - 1)
    assert_variance(values, variance, within=0.12)
    if m > 1:
        assert_unbiased([float(e.stderr) ** 2 for e in found], variance)


@pytest.mark.parametrize("n_blocks", [1, 8])
@pytest.mark.parametrize("m", [4, 12])
def test_the_intervals_hold(m, n_blocks):
    J = zoo.jacobian(n_blocks, 32, 60)
    truth, op = float(np.sum(J**2)), te.aslinearoperator(J, n_blocks=n_blocks)
    inside = [holds(te.rhutch(op, m, rng=s, distribution="hadamard"), truth) for s in range(1000)]
    assert np.mean(inside) > 0.95 - 3 * 0.007


def test_mass_in_one_class_of_a_plain_hadamard_matrix_is_not_taken_for_certain():
    """With it, all four samples would be the same in every eighth run, and the error of each as large as it can be."""
    A = pairs(256)
    found = [te.hutchinson(A, 4, rng=s, distribution="hadamard") for s in range(300)]
    assert np.mean([float(e.stderr) < 1.0 for e in found]) < 0.01
    assert np.mean([holds(e, 256.0) for e in found]) > 0.9


def test_signs_by_blocks_are_orthogonal_unless_told_otherwise():
    op = te.aslinearoperator(zoo.jacobian(3, 16, 40), n_blocks=3)
    for of in (te.rhutch, te.hutchinson):
        A = op if of is te.rhutch else te.gram(op)
        assert float(of(A, 5, rng=0)) == float(of(A, 5, rng=0, distribution="hadamard"))
        assert float(of(A, 5, rng=0)) != float(of(A, 5, rng=0, distribution="rademacher"))
    plain = te.aslinearoperator(zoo.jacobian(1, 48, 40), n_blocks=1)
    assert float(te.rhutch(plain, 5, rng=0)) == float(te.rhutch(plain, 5, rng=0, distribution="rademacher"))


# -- trace ------------------------------------------------------------------------------------------------------
def traced(n_b: int, rtol: float, **how):
    """`trace` of a kernel of six blocks, the vjps that were made, and the truth."""
    J = zoo.jacobian(6, n_b, 200)
    counter = Counter(te.aslinearoperator(J, n_blocks=6))
    return te.trace(te.gram(counter), rtol=rtol, **how), counter.n_rmatvecs, float(np.sum(J**2))


@pytest.mark.parametrize("n_b", [64, 61])
def test_all_probes_are_the_exact_trace_and_none_is_paid_for_twice(n_b):
    e, made, truth = traced(n_b, 2e-3, rng=0, callback=lambda e: False)  # watched: samples come first
    assert made == e.n_rmatvecs == 64
    assert e.exact
    assert e.converged
    assert_close(float(e), truth, 1e-13)


def test_the_exact_trace_is_taken_where_it_costs_less_than_all_probes():
    e, made, truth = traced(40, 2e-3, rng=0, callback=lambda e: False)
    assert made == e.n_rmatvecs == 45
    assert e.exact
    assert_close(float(e), truth, 1e-13)


def test_fewer_than_all_do_for_a_tolerance_between():
    counts, errors = [], []
    for seed in range(200):
        e, made, truth = traced(64, 2e-2, rng=seed)
        counts.append(made)
        errors.append(abs(float(e) / truth - 1))
        assert e.converged
    assert 8 < np.median(counts) < 50
    assert np.mean(np.array(errors) < 2e-2) > 0.95 - 3 * 0.0154


def test_a_budget_ends_a_run_before_all_probes():
    e, made, _ = traced(64, 1e-6, rng=0, max_matvecs=50, method="rhutch")
    assert made == 50
    assert not e.converged
    assert not e.exact


def test_a_run_by_samples_alone_ends_with_all_of_them():
    e, made, truth = traced(40, 1e-9, rng=0, max_matvecs=500, method="rhutch")
    assert made == 64
    assert_close(float(e), truth, 1e-13)


def test_another_run_goes_on_with_the_same_set_whatever_its_seed(tmp_path):
    how = {"method": "rhutch", "checkpoint": tmp_path / "run.npz"}
    first, made, truth = traced(64, 1e-9, rng=0, max_matvecs=40, **how)
    assert made == 40
    assert not first.exact
    second, made, _ = traced(64, 1e-9, rng=None, max_matvecs=70, **how)
    assert made == 24 + 1  # the first is multiplied again, to see that the operator is the same
    assert_close(float(second), truth, 1e-13)


def test_samples_of_another_run_are_not_of_the_same_set():
    first, _, truth = traced(64, 1e-9, rng=0, max_matvecs=40, method="rhutch")
    e, made, _ = traced(64, 1e-9, rng=1, max_matvecs=100, method="rhutch", start=first)
    assert made == 60 + 1  # the first of the other run is multiplied again
    assert not e.exact
    assert float(e.stderr) > 0
    assert abs(float(e) - truth) < 6 * float(e.stderr)


def test_long_blocks_have_independent_signs():
    """There N is drawn from too seldom to tell, and N random numbers are more than the signs themselves."""
    n_b = 2**14 + 1
    J = te.aslinearoperator(np.random.default_rng(0).standard_normal((2 * n_b, 3)), n_blocks=2)
    short = te.aslinearoperator(np.random.default_rng(0).standard_normal((2 * n_b - 2, 3)), n_blocks=2)
    for op, law in ((J, "rademacher"), (short, "hadamard")):
        assert float(te.rhutch(op, 3, rng=0)) == float(te.rhutch(op, 3, rng=0, distribution=law))
