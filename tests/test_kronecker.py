"""Kronecker products, self-adjoint parts, identities and written-out operators are what their matrices are."""

from __future__ import annotations

import sys

import numpy as np
import operators_zoo as zoo
import pytest
from assertions import Counter, assert_close, unbiased

import traceest as te
from traceest.operators import block_rmatmat, block_sqnorms, sketch_gram

KRONECKER = sys.modules["traceest.operators.kronecker"]


def matrix(rows, columns, seed=0, *, complex_=False):
    return zoo.jacobian(1, rows, columns, seed, complex_=complex_)


PAIRS = {
    "square": (matrix(3, 3), matrix(4, 4, 1)),
    "wide and tall": (matrix(2, 5), matrix(4, 3, 1)),
    "tall and wide": (matrix(5, 2), matrix(3, 4, 1)),
    "a row and a column": (matrix(1, 4), matrix(3, 1, 1)),
    "complex": (matrix(3, 2, complex_=True), matrix(2, 4, 1, complex_=True)),
}


def check_kron(backend, A, B):
    """The check itself, which a mutation below is aimed at."""
    whole = np.kron(A, B)
    X, V = matrix(whole.shape[1], 3, 2).astype(A.dtype), matrix(whole.shape[0], 2, 3).astype(A.dtype)

    def products(a, b, x, v):
        op = te.kron(a, b)
        return op.matmat(x), op.rmatmat(v)

    forward, reverse = backend.call(products, A, B, X, V)
    assert_close(backend.host(forward), whole @ X, 1e-13)
    assert_close(backend.host(reverse), whole.conj().T @ V, 1e-13)


@pytest.mark.parametrize("name", PAIRS)
def test_it_multiplies_as_the_matrix_does(backend, name):
    check_kron(backend, *PAIRS[name])


def test_indices_that_are_not_brought_into_order_are_caught(monkeypatch, backend):
    monkeypatch.setattr(
        KRONECKER, "_on_second", lambda xp, g, X, n, k: xp.reshape(g(xp.reshape(X, (-1, n * k))), (n, -1, k))
    )
    with pytest.raises(AssertionError):
        check_kron(backend, *PAIRS["square"])


def test_more_than_two():
    A, B, C = matrix(2, 3), matrix(3, 2, 1), matrix(2, 2, 2)
    assert_close(te.to_dense(te.kron(A, B, C)), np.kron(np.kron(A, B), C), 1e-13)
    assert_close(te.to_dense(te.kron(A, B).H), np.kron(A, B).T, 1e-13)


@pytest.mark.parametrize(("rows", "columns"), [(2, 6), (6, 2)])
def test_the_operand_goes_first_that_leaves_the_other_fewer_columns(rows, columns):
    A, B = Counter(te.aslinearoperator(matrix(rows, columns))), Counter(te.aslinearoperator(matrix(4, 4, 1)))
    te.kron(A, B).matmat(np.ones((columns * 4, 5)))
    assert (A.n_matvecs, B.n_matvecs) == (4 * 5, min(rows, columns) * 5)


def test_what_is_known_of_both_is_known_of_the_product():
    psd, hermitian = (te.aslinearoperator(np.eye(3), **{flag: True}) for flag in ("psd", "symmetric"))
    assert te.kron(psd, psd).psd
    assert te.kron(psd, hermitian).symmetric
    assert not te.kron(psd, hermitian).psd
    assert not te.kron(psd, np.eye(3)).symmetric


def test_a_side_that_one_operand_lacks_the_product_lacks_too():
    full = te.aslinearoperator(matrix(4, 3))
    reverse = te.Operator(full.shape, like=full, rmatmat=full.rmatmat)
    op = te.kron(full, reverse)
    assert te.can(op, "rmatmat")
    assert not te.can(op, "matmat")
    with pytest.raises(TypeError, match="dtypes float64 and float32 differ"):
        te.kron(np.eye(2), np.eye(2, dtype=np.float32))


@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
def test_of_gram_operators_it_is_one_with_the_blocks_of_the_first(backend, complex_):
    J1, J2 = zoo.jacobian(3, 2, 4, complex_=complex_), zoo.jacobian(1, 3, 5, complex_=complex_)
    J = np.kron(J1, J2)
    V = zoo.jacobian(1, 18, 4, 3, complex_=complex_)

    def products(a, b, v):
        factor = te.kron(te.gram(a, n_blocks=3), te.gram(b)).factor
        return block_rmatmat(factor, v), block_sqnorms(factor, v), sketch_gram(factor, v)

    dense = te.aslinearoperator(J, n_blocks=3)
    expected = block_rmatmat(dense, V), block_sqnorms(dense, V), sketch_gram(dense, V)
    for got, right in zip(backend.call(products, J1, J2, V), expected, strict=True):
        assert_close(backend.host(got), right, 1e-12)


def test_statistics_of_gram_products_take_vjps_alone():
    J1, J2 = zoo.jacobian(6, 4, 10), zoo.jacobian(1, 5, 7)
    K = te.kron(te.gram(J1, n_blocks=6), te.gram(J2))
    assert isinstance(K, te.Gram)
    assert K.factor.n_blocks == 6
    dense = np.kron(J1 @ J1.T, J2 @ J2.T)
    unbiased(lambda seed: float(te.frobenius_norm(K, 3, rng=seed)) ** 2, np.linalg.norm(dense) ** 2, seeds=100)
    e = te.rhutch(K, 3, rng=0)
    assert (e.n_matvecs, e.n_rmatvecs, e.method) == (0, 3, "rhutch per block")


# -- written out -----------------------------------------------------------------------------------


def one_side(A, side):
    op = te.aslinearoperator(A)
    return te.Operator(A.shape, like=A, **{side: getattr(op, side)})


@pytest.mark.parametrize("side", ["matmat", "rmatmat"])
@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("shape", [(3, 5), (300, 2), (2, 300)])
def test_an_operator_is_written_out_on_the_side_it_has(side, complex_, shape):
    A = matrix(*shape, complex_=complex_)
    assert_close(te.to_dense(one_side(A, side)), A, 1e-14)
    K = te.gram(one_side(A, side))
    assert_close(te.to_dense(K), A @ A.conj().T, 1e-12)


def test_an_operator_is_written_out_on_every_backend(backend):
    A, J = zoo.nonsymmetric(6), zoo.jacobian(3, 2, 9)
    assert_close(backend.host(backend.call(lambda a: te.to_dense(2.0 * te.aslinearoperator(a)), A)), 2 * A, 1e-14)
    dense = backend.call(lambda j: te.to_dense(te.gram(j, n_blocks=3)), J)
    assert_close(backend.host(dense), J @ J.T, 1e-13)


@pytest.mark.parametrize(("P", "cost"), [(3, (3, 0)), (30, (0, 4))])
def test_a_kernel_is_written_out_by_the_fewest_products(P, cost):
    counter = Counter(te.aslinearoperator(zoo.jacobian(5, 4, P), n_blocks=5))
    te.to_dense(te.gram(counter))
    assert (counter.n_matvecs, counter.n_rmatvecs) == cost


def test_absurd_sizes_are_refused():
    huge = te.identity(10**6, like=np.zeros(0))
    with pytest.raises(ValueError, match="1000000×1000000 of float64 would take 8,000,000,000,000 bytes, max_bytes"):
        te.to_dense(huge)
    with pytest.raises(ValueError, match="of complex64 would take 128 bytes, max_bytes = 127"):
        te.to_dense(te.identity(4, like=np.zeros(0, np.complex64)), max_bytes=127)
    with pytest.raises(TypeError, match="has no product"):
        te.to_dense(te.Operator((2, 2), like=np.zeros(0)))


def test_the_self_adjoint_part(backend):
    A = zoo.complex_general(5)
    part = backend.call(lambda a: te.to_dense(te.symmetric_part(a)), A)
    assert_close(backend.host(part), (A + A.conj().T) / 2, 1e-14)
    symmetric = te.aslinearoperator(zoo.indefinite(4), symmetric=True)
    assert te.symmetric_part(symmetric) is symmetric
    assert te.symmetric_part(A).symmetric
    with pytest.raises(ValueError, match=r"expected a square operator, got shape \(2, 3\)"):
        te.symmetric_part(matrix(2, 3))
    with pytest.raises(TypeError, match=r"needs both sides, and .* lacks rmatmat"):
        te.symmetric_part(one_side(zoo.nonsymmetric(4), "matmat"))


def test_shifts_by_the_identity():
    A = te.aslinearoperator(zoo.spectral("poly", 6), psd=True)
    shifted = A + 2 * te.identity(6, like=A)
    assert shifted.psd
    assert_close(te.to_dense(shifted), zoo.spectral("poly", 6) + 2 * np.eye(6), 1e-14)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        te.identity(0, like=A)
