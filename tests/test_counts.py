"""The counts reported are the products made; budgets are kept; chunks change nothing."""

from __future__ import annotations

import numpy as np
import operators_zoo as zoo
import pytest
from assertions import Counter, assert_close, assert_counts

import traceest as te

N = 36
SQUARE = {
    "exact": lambda A, m: te.exact(A),
    "hutchinson": lambda A, m: te.hutchinson(A, m, rng=0),
    "hutchinson, orthogonal": lambda A, m: te.hutchinson(A, m, rng=0, distribution="orthogonal"),
    "hutchpp": lambda A, m: te.hutchpp(A, m, rng=0),
    "hutchpp, n_sketch": lambda A, m: te.hutchpp(A, m, rng=0, n_sketch=1),
    "nystrompp": lambda A, m: te.nystrompp(A, m, rng=0),
    "na_hutchpp": lambda A, m: te.na_hutchpp(A, m, rng=0),
    "frobenius": lambda A, m: te.frobenius_norm(A, n_matvecs=m, rng=0),
    "effective rank": lambda A, m: te.effective_rank(A, n_matvecs=m, rng=0),
    "trace": lambda A, m: te.trace(A, rtol=1e-6, max_matvecs=m, rng=0),
    "trace by hutchinson": lambda A, m: te.trace(A, rtol=1e-6, max_matvecs=m, rng=0, method="hutchinson"),
    "trace by hutchpp": lambda A, m: te.trace(A, rtol=1e-6, max_matvecs=m, rng=0, method="hutchpp"),
}
FEWEST = {"na_hutchpp": 4}
KERNEL = {
    **SQUARE,
    "rhutch": lambda K, m: te.rhutch(K, m, rng=0),
    "fhutch": lambda K, m: te.fhutch(K, m, rng=0),
    "frobenius, two-sided": lambda K, m: te.frobenius_norm(K, m, rng=0, method="two-sided"),
    "trace by rhutch": lambda K, m: te.trace(K, rtol=1e-6, max_matvecs=m, rng=0, method="rhutch"),
    "trace by fhutch": lambda K, m: te.trace(K, rtol=1e-6, max_matvecs=m, rng=0, method="fhutch"),
}


def check_budget(estimator, m):
    """The check itself, which `test_bite` aims at an estimator that spends double."""
    counter = Counter(te.aslinearoperator(zoo.spectral("poly", N)))
    assert_counts(estimator(counter, m), counter, budget=m)


@pytest.mark.parametrize("name", [name for name in SQUARE if name != "exact"])
@pytest.mark.parametrize("m", [3, 4, 5, 11, 12, 13, 35])
def test_a_square_operator_is_charged_what_it_is_multiplied(name, m):
    if m < FEWEST.get(name, 0):
        pytest.skip("below the method's minimum")
    check_budget(SQUARE[name], m)


@pytest.mark.parametrize("name", [name for name in KERNEL if name != "exact"])
@pytest.mark.parametrize("n_blocks", [1, 4])
@pytest.mark.parametrize("m", [3, 5, 8, 12, 20, 35])
def test_a_kernel_is_charged_on_its_factor(name, n_blocks, m):
    if m < FEWEST.get(name, 0):
        pytest.skip("below the method's minimum")
    counter = Counter(te.aslinearoperator(zoo.jacobian(4, 9, 30), n_blocks=n_blocks))
    e = KERNEL[name](te.gram(counter), m)
    assert_counts(e, counter, budget=m)


@pytest.mark.parametrize("n_blocks", [(1, 1), (4, 4), (4, 1)])
@pytest.mark.parametrize("m", [2, 3, 9, 36])
@pytest.mark.parametrize("method", ["auto", "two-sided", "exact"])
def test_two_kernels_are_charged_together(n_blocks, m, method):
    factors = [
        Counter(te.aslinearoperator(zoo.jacobian(4, 9, P), n_blocks=B)) for P, B in zip((30, 50), n_blocks, strict=True)
    ]
    e = te.alignment(*map(te.gram, factors), m, rng=0, method=method)
    assert_counts(e, *factors, budget=36 if method == "exact" else m)


@pytest.mark.parametrize("q", [1, 2, 4])
def test_hutchpp_of_a_kernel_needs_jvps_for_its_sketch_alone(q):
    counter = Counter(te.aslinearoperator(zoo.jacobian(4, 9, 30)))
    e = te.hutchpp(te.gram(counter), 11, n_sketch=q, rng=0)
    assert (e.n_matvecs, e.n_rmatvecs) == (q, 11)
    assert_counts(e, counter)


@pytest.mark.parametrize("name", SQUARE)
@pytest.mark.parametrize("m", [N, N + 5, 10 * N])
def test_a_budget_that_reaches_the_exact_answer_gives_it(name, m):
    A = zoo.spectral("poly", N)
    if name.startswith("trace by"):
        pytest.skip("a forced method is not replaced by another")
    counter = Counter(te.aslinearoperator(A))
    e = SQUARE[name](counter, m)
    truth = {
        "frobenius": np.linalg.norm(A),
        "effective rank": np.trace(A) ** 2 / np.linalg.norm(A) ** 2,
    }.get(name, np.trace(A))
    if name != "trace" or e.exact:
        assert_counts(e, counter, budget=m)
        assert float(e) == pytest.approx(truth, rel=1e-12)
        assert float(e.stderr) == 0
        assert e.exact


KERNEL_TRUTH = {
    "rhutch": np.trace,
    "hutchinson": np.trace,
    "frobenius": np.linalg.norm,
    "effective rank": lambda K: np.trace(K) ** 2 / np.linalg.norm(K) ** 2,
}


@pytest.mark.parametrize("name", KERNEL_TRUTH)
@pytest.mark.parametrize("P", [6, 30, 50])
def test_blocks_reach_the_exact_answer_at_the_length_of_one(name, P):
    J = zoo.jacobian(4, 9, P)
    counter = Counter(te.aslinearoperator(J, n_blocks=4))
    e = KERNEL[name](te.gram(counter), 9)
    assert_counts(e, counter, budget=9)
    assert float(e) == pytest.approx(KERNEL_TRUTH[name](J @ J.T), rel=1e-12)
    assert float(e.stderr) == 0
    assert e.exact


@pytest.mark.parametrize("only", ["matmat", "rmatmat"])
@pytest.mark.parametrize("name", KERNEL_TRUTH)
@pytest.mark.parametrize("m", [4, 20])
def test_one_sided_jacobians_are_charged_on_their_side(only, name, m):
    if (only, name) == ("matmat", "rhutch"):
        pytest.skip("rhutch needs rmatmat")
    J = zoo.jacobian(4, 9, 20)
    op = te.aslinearoperator(J)
    counter = Counter(te.Operator(J.shape, like=J, **{only: getattr(op, only)}))
    assert_counts(KERNEL[name](te.gram(counter), m), counter, budget=m)


@pytest.mark.parametrize("chunk_size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    "name", ["hutchinson", "hutchpp", "nystrompp", "na_hutchpp", "rhutch", "fhutch", "exact", "trace"]
)
@pytest.mark.parametrize("distribution", ["rademacher", "orthogonal"])
def test_chunks_change_nothing(chunk_size, name, distribution):
    J = zoo.jacobian(4, 9, 40)
    law = {} if name == "exact" else {"rng": 0, "distribution": distribution}
    budget = () if name in ("exact", "trace") else (8,)
    counter = Counter(te.aslinearoperator(J, n_blocks=1))
    chunked = getattr(te, name)(te.gram(counter), *budget, chunk_size=chunk_size, **law)
    whole = getattr(te, name)(te.gram(J), *budget, **law)
    assert counter.widest <= chunk_size
    assert_close(chunked.value, whole.value, 1e-12)
    assert_close(chunked.stderr, whole.stderr, 1e-10)
    assert (chunked.n_matvecs, chunked.n_rmatvecs) == (whole.n_matvecs, whole.n_rmatvecs)


def test_explicit_probes_are_all_spent_and_nothing_else():
    A = zoo.spectral("poly", N)
    for estimator, cost in ((te.hutchinson, 8), (te.hutchpp, 12), (te.frobenius_norm, 8)):
        counter = Counter(te.aslinearoperator(A))
        e = estimator(counter, probes=te.probes.rademacher(N, 8, rng=0))
        assert_counts(e, counter, budget=cost)
        assert e.n_matvecs == cost
