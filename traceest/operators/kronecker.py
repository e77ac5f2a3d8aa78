"""A ⊗ B by products with A and with B."""

from __future__ import annotations

from functools import reduce
from typing import Any

from traceest._boundary import public
from traceest.operators.abilities import SIDES, lacked
from traceest.operators.base import Operator, check_compatible
from traceest.operators.blocks import n_blocks
from traceest.operators.convert import aslinearoperator
from traceest.operators.gram import Gram


class Kronecker(Operator):
    """A ⊗ B, with its `operands`. It has a side where both have it, and the blocks of rows that A has.

    With vectors written as matrices, row by row, (A ⊗ B) vec(X) = vec(A X Bᵀ).
    """

    def __init__(self, A: Any, B: Any) -> None:
        super().__init__(
            (A.shape[0] * B.shape[0], A.shape[1] * B.shape[1]),
            like=A,
            symmetric=A.symmetric and B.symmetric,
            psd=A.psd and B.psd,
            n_blocks=n_blocks(A) if n_blocks(A) > 1 else None,
            name="A⊗B",
        )
        self.operands, self.diagonal_blocks = (A, B), A.diagonal_blocks

    def lacks(self, product: str) -> str | None:
        """As an operand does."""
        A, B = self.operands
        if product in SIDES:
            return lacked((A, product), (B, product))
        return B.lacks("rmatmat") if product == "block_rmatmat" and self.n_blocks else ""

    def matmat(self, X: Any) -> Any:
        """A X_i Bᵀ for each column, X_i written as a matrix."""
        (A, B), k = self.operands, X.shape[1]
        return _applied(self._xp, A.matmat, B.matmat, A.shape, B.shape, X, k)

    def rmatmat(self, V: Any) -> Any:
        """(Aᴴ ⊗ Bᴴ) V."""
        (A, B), k = self.operands, V.shape[1]
        return _applied(self._xp, A.rmatmat, B.rmatmat, A.shape[::-1], B.shape[::-1], V, k)

    def block_rmatmat(self, V: Any) -> Any:
        """(A_b ⊗ B)ᴴ v_b: B on all blocks at once, then A on each."""
        xp, (A, B), k = self._xp, self.operands, V.shape[1]
        V = _on_second(xp, B.rmatmat, V, A.shape[0], k)
        g = A.block_rmatmat(xp.reshape(V, (A.shape[0], -1)))  # (n_blocks, columns of B · k, columns of A)
        g = xp.reshape(g, (g.shape[0], B.shape[1], k, A.shape[1]))
        return xp.reshape(xp.permute_dims(g, (0, 2, 3, 1)), (g.shape[0], k, self.shape[1]))


@public
def kron(A: Any, B: Any, *more: Any) -> Operator:
    """The Kronecker product A ⊗ B (⊗ …), lazily: (A ⊗ B)[(i, k), (j, l)] = A[i, j] B[k, l].

    A column costs products of B with as many columns as A has, and of A with as many as B has rows (or the other way
    round, where that is fewer). tr(A ⊗ B) = tr A · tr B, so estimate the factors where only that is wanted.

    Parameters
    ----------
    A, B, *more : operator
        Anything that `aslinearoperator` takes; of any shapes.

    Returns
    -------
    Operator, (n_A n_B, m_A m_B)
        With the sides that all have; self-adjoint, or positive semidefinite, where all are known to be. Of Gram
        operators it is the Gram operator of the factors' Kronecker product, with the blocks of the first.

    Raises
    ------
    TypeError
        If dtypes or devices differ.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A, B = np.array([[1.0, 2.0], [3.0, 4.0]]), np.eye(3)
    >>> bool(np.allclose(te.kron(A, B).matmat(np.eye(6)), np.kron(A, B)))
    True
    """
    return reduce(_kron, (aslinearoperator(X) for X in (A, B, *more)))


def _kron(A: Any, B: Any) -> Operator:
    check_compatible(A, B, "kron")
    if A.factor is not None and B.factor is not None:
        return Gram(Kronecker(A.factor, B.factor))
    return Kronecker(A, B)


def _applied(xp: Any, f: Any, g: Any, of_A: tuple[int, int], of_B: tuple[int, int], X: Any, k: int) -> Any:
    """The products f with one operand and g with the other, that one first which leaves the other the fewer columns."""
    (m_A, n_A), (m_B, n_B) = of_A, of_B
    if n_A + m_B <= n_B + m_A:
        Y = xp.reshape(_on_second(xp, g, X, n_A, k), (n_A, m_B * k))
        return xp.reshape(f(Y), (m_A * m_B, k))
    Y = f(xp.reshape(X, (n_A, n_B * k)))
    return xp.reshape(_on_second(xp, g, Y, m_A, k), (m_A * m_B, k))


def _on_second(xp: Any, g: Any, X: Any, n: int, k: int) -> Any:
    """(I ⊗ B) X for n rows of the first operand: (n, rows of B, k)."""
    X = xp.permute_dims(xp.reshape(X, (n, -1, k)), (1, 0, 2))
    Y = g(xp.reshape(X, (X.shape[0], n * k)))
    return xp.permute_dims(xp.reshape(Y, (Y.shape[0], n, k)), (1, 0, 2))
