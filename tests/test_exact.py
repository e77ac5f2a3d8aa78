"""The exact trace is exact, on every route, at the fewest products."""

from __future__ import annotations

import numpy as np
import operators_zoo as zoo
import pytest
from assertions import Counter, assert_counts

import traceest as te


def frobenius2(J):
    return float(np.sum(np.abs(J) ** 2))


def sides(J, *names, n_blocks=None):
    """J with only some of its products."""
    op = te.aslinearoperator(J, n_blocks=n_blocks)
    return te.Operator(op.shape, like=J, n_blocks=n_blocks, **{name: getattr(op, name) for name in names})


@pytest.mark.parametrize("name", zoo.SQUARE)
@pytest.mark.parametrize("n", [1, 2, 3, 17])
def test_the_trace_of_every_operator(name, n):
    A = zoo.SQUARE[name](n)
    e = te.exact(A)
    assert complex(e) == pytest.approx(complex(np.trace(A)), rel=1e-13, abs=1e-13)
    assert float(e.stderr) == 0
    assert e.exact
    assert (e.n_matvecs, e.n_rmatvecs) == (n, 0)


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 1000])
@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
def test_chunks_change_nothing(chunk_size, complex_):
    J = zoo.jacobian(4, 3, 7, complex_=complex_)
    for n_blocks in (1, 4):
        counter = Counter(te.aslinearoperator(J, n_blocks=n_blocks))
        for A in (counter, te.gram(counter)):
            assert float(te.exact(A, chunk_size=chunk_size)) == pytest.approx(frobenius2(J), rel=1e-13)
        assert counter.widest <= chunk_size


@pytest.mark.parametrize(
    ("n_blocks", "n_b", "P", "cost"),
    [(6, 5, 40, (0, 5)), (1, 5, 40, (0, 5)), (6, 5, 3, (3, 0)), (6, 1, 40, (0, 1)), (30, 2, 2, (0, 2))],
)
def test_the_cheapest_side_is_taken(n_blocks, n_b, P, cost):
    J = zoo.jacobian(n_blocks, n_b, P)
    counter = Counter(te.aslinearoperator(J, n_blocks=n_blocks))
    e = te.exact(te.gram(counter))
    assert (e.n_matvecs, e.n_rmatvecs) == cost
    assert_counts(e, counter)
    assert float(e) == pytest.approx(frobenius2(J), rel=1e-13)


@pytest.mark.parametrize("side", ["matmat", "rmatmat"])
@pytest.mark.parametrize("n_blocks", [1, 6])
def test_a_side_may_be_forced(side, n_blocks):
    J = zoo.jacobian(6, 3, 20)
    e = te.exact(te.gram(J, n_blocks=n_blocks), side=side)
    assert float(e) == pytest.approx(frobenius2(J), rel=1e-13)
    assert (e.n_matvecs, e.n_rmatvecs) == ((20, 0) if side == "matmat" else (0, 18 // n_blocks))


def test_a_square_jacobian_is_a_factor_once_a_side_is_forced():
    J = zoo.nonsymmetric(9)
    assert float(te.exact(J)) == pytest.approx(np.trace(J))
    for side in ("matmat", "rmatmat"):
        assert float(te.exact(J, side=side)) == pytest.approx(frobenius2(J))


@pytest.mark.parametrize("only", ["matmat", "rmatmat"])
def test_one_side_is_enough_for_a_jacobian(only):
    J = zoo.jacobian(3, 4, 5)
    for A in (sides(J, only), te.gram(sides(J, only))):
        assert float(te.exact(A)) == pytest.approx(frobenius2(J), rel=1e-13)


@pytest.mark.parametrize("ability", ["block_rmatmat", "block_sqnorms"])
def test_an_operator_may_bring_its_own_block_products(ability):
    J = zoo.jacobian(4, 3, 7)
    dense = te.aslinearoperator(J, n_blocks=4)
    own = {
        "block_rmatmat": dense.block_rmatmat,
        "block_sqnorms": lambda V: np.sum(dense.block_rmatmat(V) ** 2, axis=-1),
    }
    op = te.Operator(J.shape, like=J, n_blocks=4, rmatmat=dense.rmatmat, **{ability: own[ability]})
    e = te.exact(te.gram(op))
    assert float(e) == pytest.approx(frobenius2(J), rel=1e-13)
    assert e.n_rmatvecs == 3


def test_the_interval_of_an_exact_answer_is_a_point():
    e = te.exact(zoo.indefinite(9))
    assert e.confidence_interval() == (float(e), float(e))


def test_a_missing_side_is_named():
    J = zoo.jacobian(3, 4, 5)
    with pytest.raises(TypeError, match=r"exact: needs matmat \(forward mode, jvp\)"):
        te.exact(sides(J, "rmatmat"), side="matmat")
    with pytest.raises(TypeError, match="square operator needs matmat"):
        te.exact(sides(np.eye(4), "rmatmat"))
