"""A ⊗ B by products with A and with B."""

from __future__ import annotations

from functools import reduce
from typing import Any

from traceest._boundary import public
from traceest.operators.base import Operator, check_compatible
from traceest.operators.blocks import block_rmatmat, n_blocks
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
            symmetric=getattr(A, "symmetric", False) and getattr(B, "symmetric", False),
            psd=getattr(A, "psd", False) and getattr(B, "psd", False),
            n_blocks=n_blocks(A) if n_blocks(A) > 1 else None,
            name="A⊗B",
        )
        self.operands = (A, B)

    def __getattr__(self, name: str) -> Any:
        A, B = self.__dict__.get("operands", (None, None))
        if name in ("matmat", "rmatmat") and hasattr(A, name) and hasattr(B, name):
            return lambda X: _kronecker_product(self._xp, A, B, X, name)
        if name == "block_rmatmat" and self.n_blocks and hasattr(B, "rmatmat"):
            return self._block_rmatmat
        raise AttributeError(f"A⊗B has no {name}; it has what both A and B have")

    def _block_rmatmat(self, V: Any) -> Any:
        """(A_b ⊗ B)ᴴ v_b: B on all blocks at once, then A on each."""
        xp, (A, B), k = self._xp, self.operands, V.shape[1]
        V = _on_second(xp, B.rmatmat, V, A.shape[0], k)
        g = block_rmatmat(A, xp.reshape(V, (A.shape[0], -1)))  # (n_blocks, columns of B · k, columns of A)
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
    if hasattr(A, "factor") and hasattr(B, "factor"):
        return Gram(Kronecker(A.factor, B.factor))
    return Kronecker(A, B)


def _kronecker_product(xp: Any, A: Any, B: Any, X: Any, side: str) -> Any:
    """(A ⊗ B) X, or its adjoint's, with the operand first that leaves the other the fewer columns."""
    f, g, k = getattr(A, side), getattr(B, side), X.shape[1]
    (m_A, n_A), (m_B, n_B) = (A.shape, B.shape) if side == "matmat" else (A.shape[::-1], B.shape[::-1])
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
