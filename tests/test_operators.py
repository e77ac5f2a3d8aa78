"""Everything that can be multiplied by becomes an operator, and operators obey matrix algebra."""

from __future__ import annotations

import numpy as np
import operators_zoo as zoo
import pytest
import scipy.sparse
import scipy.sparse.linalg
from assertions import assert_close

import traceest as te
from traceest.operators import block_rmatmat, block_sqnorms, sketch_gram

J = zoo.jacobian(3, 2, 4)
Z = zoo.jacobian(3, 2, 4, complex_=True)


class HasMatvec:
    """A foreign object which multiplies vectors alone."""

    def __init__(self, A, adjoint=False):
        self._A, self.shape, self.dtype = A, A.shape, A.dtype
        if adjoint:
            self.rmatvec = lambda v: A.conj().T @ v

    def matvec(self, v):
        assert v.ndim == 1
        return self._A @ v


class HasMatmul:
    """A foreign object which knows `@`."""

    def __init__(self, A):
        self._A, self.shape, self.dtype = A, A.shape, A.dtype

    def __matmul__(self, X):
        return self._A @ X


class HasMatmat(HasMatmul):
    def matmat(self, X):
        return self._A @ X

    def rmatmat(self, X):
        return self._A.conj().T @ X


class ScipySubclass(scipy.sparse.linalg.LinearOperator):
    def __init__(self, A):
        super().__init__(A.dtype, A.shape)
        self._A = A

    def _matvec(self, v):
        return self._A @ v


class ScipySubclassWithAdjoint(ScipySubclass):
    def _adjoint(self):
        return ScipySubclass(self._A.conj().T)


def scipy_operator(A, **products):
    return scipy.sparse.linalg.LinearOperator(A.shape, matvec=lambda v: A @ v.reshape(-1), dtype=A.dtype, **products)


CONVERTIBLE = {
    "array": (lambda A: A, True),
    "csr array": (scipy.sparse.csr_array, True),
    "csc matrix": (scipy.sparse.csc_matrix, True),
    "coo array": (scipy.sparse.coo_array, True),
    "scipy operator": (scipy_operator, False),
    "scipy operator with rmatvec": (lambda A: scipy_operator(A, rmatvec=lambda v: A.conj().T @ v.reshape(-1)), True),
    "scipy operator with rmatmat": (lambda A: scipy_operator(A, rmatmat=lambda X: A.conj().T @ X), True),
    "scipy aslinearoperator": (scipy.sparse.linalg.aslinearoperator, True),
    "scipy subclass": (ScipySubclass, False),
    "scipy subclass with adjoint": (ScipySubclassWithAdjoint, True),
    "matvec": (HasMatvec, False),
    "matvec and rmatvec": (lambda A: HasMatvec(A, adjoint=True), True),
    "matmul": (HasMatmul, False),
    "matmat and rmatmat": (HasMatmat, True),
    "operator": (te.aslinearoperator, True),
}


@pytest.mark.parametrize("name", CONVERTIBLE)
@pytest.mark.parametrize("A", [J, Z, J.astype(np.float32)], ids=["real", "complex", "float32"])
def test_everything_multiplies_as_its_matrix_does(name, A):
    make, has_adjoint = CONVERTIBLE[name]
    op = te.aslinearoperator(make(A))
    rng = np.random.default_rng(0)
    X, V = rng.standard_normal((4, 3)).astype(A.dtype), rng.standard_normal((6, 2)).astype(A.dtype)
    rtol = 1e-6 if A.dtype == np.float32 else 1e-14
    assert op.shape == A.shape
    assert op.dtype == A.dtype
    assert_close(op.matmat(X), A @ X, rtol)
    assert te.can(op, "rmatmat") == has_adjoint
    if has_adjoint:
        assert_close(op.rmatmat(V), A.conj().T @ V, rtol)


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_everything_has_a_trace(name):
    A = zoo.spectral("poly", 30)
    e = te.hutchinson(CONVERTIBLE[name][0](A), 20, rng=0)
    assert float(e) == pytest.approx(float(te.hutchinson(A, 20, rng=0)), rel=1e-12)


def test_what_conforms_is_returned_as_it_is():
    op = te.aslinearoperator(J)
    assert te.aslinearoperator(op) is op
    K = te.gram(J)
    assert te.aslinearoperator(K) is K
    assert te.aslinearoperator(K, psd=True) is K
    one_sided = te.gram(te.Operator(J.shape, like=J, rmatmat=op.rmatmat))
    assert te.aslinearoperator(one_sided) is one_sided


@pytest.mark.parametrize("ndim", [1, 2])
def test_functions_become_operators(backend, ndim):
    A = zoo.nonsymmetric(6)

    def products(a):
        like = a[:, 0] if ndim == 1 else a
        op = te.aslinearoperator(lambda X: a @ X, like=like, adjoint=lambda X: a.T @ X)
        return op.matmat(a), op.rmatmat(a)

    forward, reverse = backend.call(products, A)
    assert_close(backend.host(forward), A @ A, 1e-13)
    assert_close(backend.host(reverse), A.T @ A, 1e-13)


def test_a_function_of_vectors_never_sees_a_matrix():
    seen = []

    def f(v):
        seen.append(v.shape)
        return 2 * v

    te.aslinearoperator(f, like=np.zeros(5)).matmat(np.ones((5, 3)))
    assert seen == [(5,)] * 3


def test_a_function_may_be_oblong_and_one_sided():
    op = te.aslinearoperator(lambda X: J @ X, like=np.zeros((1, 1)), shape=(6, 4))
    assert op.shape == (6, 4)
    assert not te.can(op, "rmatmat")
    symmetric = te.aslinearoperator(lambda X: 3 * X, like=np.zeros((4, 1)), symmetric=True)
    assert_close(symmetric.rmatmat(np.eye(4)), 3 * np.eye(4), 1e-15)


@pytest.mark.parametrize("how", ["array", "operator"])
def test_what_is_declared_is_known(how):
    A = zoo.spectral("poly", 6)
    op = te.aslinearoperator(A if how == "array" else te.aslinearoperator(A), psd=True, n_blocks=3)
    assert (op.psd, op.symmetric, op.n_blocks) == (True, True, 3)
    assert te.aslinearoperator(A, symmetric=True).symmetric
    assert not te.aslinearoperator(A).symmetric
    assert_close(block_rmatmat(op, A).shape, (3, 6, 6), 0)


@pytest.mark.parametrize("A", [zoo.nonsymmetric(5), zoo.complex_general(5)], ids=["real", "complex"])
def test_lazy_algebra_is_matrix_algebra(A):
    B = A @ A + 1
    a, b = te.aslinearoperator(A), te.aslinearoperator(B)
    expressions = {
        "sum": (a + b, A + B),
        "sum with an array": (a + B, A + B),
        "sum of an array": (B + a, A + B),
        "difference from an array": (B - a, B - A),
        "difference": (a - b, A - B),
        "negative": (-a, -A),
        "product": (a @ b, A @ B),
        "left multiple": (2 * a, 2 * A),
        "right multiple": (a * 2.5, A * 2.5),
        "quotient": (a / 4, A / 4),
        "numpy scalar": (np.float64(2) * a, 2 * A),
        "0-d array": (np.asarray(2.0) * a, 2 * A),
        "adjoint": (a.H, A.conj().T),
        "transpose": (a.T, A.T),
        "twice transposed": (a.T.T, A),
        "transposed product": ((a @ b).T, (A @ B).T),
        "adjoint of a sum of multiples": ((2 * a - b / 3).H, (2 * A - B / 3).conj().T),
        "gram": (te.gram(a), A @ A.conj().T),
        "sum with a gram": (te.gram(a) + a, A @ A.conj().T + A),
    }
    if np.iscomplexobj(A):
        expressions |= {
            "complex multiple": ((2 + 1j) * a, (2 + 1j) * A),
            "complex64 multiple": (np.complex64(2 + 1j) * a, (2 + 1j) * A),
            "0-d complex array": (np.asarray(2 + 1j) * a, (2 + 1j) * A),
            "complex quotient": (a / (1 + 1j), A / (1 + 1j)),
        }
    eye = np.eye(5, dtype=A.dtype)
    for name, (lazy, dense) in expressions.items():
        np.testing.assert_allclose(lazy.matmat(eye), dense, rtol=1e-13, atol=1e-13, err_msg=name)
        np.testing.assert_allclose(lazy.rmatmat(eye), dense.conj().T, rtol=1e-13, atol=1e-13, err_msg=name)


def test_a_product_with_an_array_is_an_array():
    a = te.aslinearoperator(J)
    X = np.arange(12.0).reshape(4, 3)
    assert_close(a @ X, J @ X, 1e-15)
    assert_close(a @ X[:, 0], J @ X[:, 0], 1e-15)
    Y = np.arange(2.0 * J.shape[0]).reshape(2, -1)
    assert_close(Y @ a, Y @ J, 1e-14)
    assert_close(Y[0] @ a, Y[0] @ J, 1e-14)


def test_symmetry_survives_what_keeps_it():
    psd = te.aslinearoperator(zoo.spectral("poly", 5).astype(complex), psd=True)
    hermitian = te.aslinearoperator(zoo.hermitian(5), symmetric=True)
    assert (psd + psd).psd
    assert (2 * psd).psd
    assert not (-psd).psd
    assert (-psd).symmetric
    assert not (psd @ hermitian).symmetric
    assert (hermitian @ hermitian).psd
    assert (2.0 * hermitian).symmetric
    for c in (1j, np.complex64(1j), np.complex128(1j), np.asarray(1j)):
        assert not (c * hermitian).symmetric


def test_a_side_that_one_operand_lacks_the_result_lacks_too():
    full = te.aslinearoperator(zoo.nonsymmetric(4))
    forward = te.Operator((4, 4), like=np.zeros(0), matmat=full.matmat)
    for made in (full + forward, forward @ full, 2 * forward, forward.T.T, -forward):
        assert te.can(made, "matmat")
        assert not te.can(made, "rmatmat")
    assert not te.can(forward.H, "matmat")
    assert te.can(forward.H, "rmatmat")
    assert not te.can(te.gram(forward), "matmat")


def test_shapes_dtypes_and_foreign_operands_are_checked():
    a = te.aslinearoperator(J)
    with pytest.raises(ValueError, match=r"A \+ B: shapes \(6, 4\) and \(4, 6\) differ"):
        a + a.T
    with pytest.raises(ValueError, match=r"A @ B: \(6, 4\) and \(6, 4\) do not chain"):
        a @ a
    with pytest.raises(ValueError, match=r"A @ X: X has 3 rows, expected 4"):
        a @ np.zeros((3, 2))
    with pytest.raises(TypeError, match=r"dtypes float64 and float32 differ; convert one"):
        a + te.aslinearoperator(J.astype(np.float32))
    for wrong in ("x", None, [1.0]):
        with pytest.raises(TypeError):
            a + wrong
        with pytest.raises(TypeError):
            a * wrong


@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("n_blocks", [1, 3])
def test_block_products_are_products_of_the_blocks(backend, complex_, n_blocks):
    A = Z if complex_ else J
    V = np.random.default_rng(1).standard_normal((6, 2)).astype(A.dtype)
    d = 6 // n_blocks
    each = np.stack([A[i : i + d].conj().T @ V[i : i + d] for i in range(0, 6, d)]).transpose(0, 2, 1)

    def products(a, v):
        op = te.aslinearoperator(a, n_blocks=n_blocks)
        return block_rmatmat(op, v), block_sqnorms(op, v), sketch_gram(op, v)

    g, norms, G = (backend.host(x) for x in backend.call(products, A, V))
    assert_close(g, each, 1e-13)
    assert_close(norms, np.sum(np.abs(each) ** 2, axis=-1), 1e-13)
    assert_close(G, np.einsum("bip,cjp->bicj", each.conj(), each), 1e-13)


def test_repr_shows_what_there_is():
    forward = te.Operator((3, 4), like=np.zeros(0), matmat=lambda X: X)
    assert repr(forward) == "<Operator 3×4, float64, matmat>"
    assert repr(te.aslinearoperator(J, n_blocks=3)) == "<DenseOperator 6×4, float64, matmat, rmatmat, n_blocks=3>"
    assert "Gram 6×6 of <DenseOperator 6×4" in repr(te.gram(J))


def test_the_protocols_are_checkable():
    op = te.aslinearoperator(J)
    assert isinstance(op, te.LinearOperator)
    assert isinstance(te.gram(J), te.LinearOperator)
    assert isinstance(te.Operator((3, 4), like=np.zeros(0), rmatmat=lambda X: X), te.Jacobian)
