"""Operators made of others: adjoints, sums and products; and what +, −, * and @ of operators mean."""

from __future__ import annotations

import sys
from functools import reduce
from numbers import Number
from typing import Any

import numpy as np

from traceest import _array_api as aa
from traceest._boundary import public
from traceest.operators.abilities import SIDES, lacked
from traceest.operators.base import Operator, check_compatible
from traceest.operators.blocks import n_blocks
from traceest.operators.boundary import plain_array
from traceest.operators.convert import aslinearoperator, is_convertible
from traceest.operators.factors import Scaled
from traceest.operators.layout import common_state
from traceest.operators.polynomials import power as power

OTHER = {"matmat": "rmatmat", "rmatmat": "matmat"}


class Adjoint(Operator):
    """Jᴴ: the two sides of `of` = J change places."""

    def __init__(self, of: Any) -> None:
        known = {"symmetric": of.symmetric, "psd": of.psd, "name": f"{of.name}ᴴ"}
        if of.symmetric:  # its rows are those of J
            known |= {"state_shape": of.state_shape, "feature_axis": of.feature_axis}
        super().__init__((of.shape[1], of.shape[0]), like=of, **known)
        self.of, self.diagonal_blocks = of, of.diagonal_blocks

    def lacks(self, product: str) -> str | None:
        """As J lacks the other side."""
        return self.of.lacks(OTHER[product]) if product in OTHER else super().lacks(product)

    def matmat(self, X: Any) -> Any:
        """Jᴴ X."""
        return self.of.rmatmat(X)

    def rmatmat(self, V: Any) -> Any:
        """J V."""
        return self.of.matmat(V)

    @property
    def H(self) -> Any:
        """What it is the adjoint of, with all that can do."""
        return self.of


class Transpose(Adjoint):
    """Aᵀ, the complex conjugate of Aᴴ."""

    def __init__(self, of: Any) -> None:
        super().__init__(of)
        self.name = f"{of.name}ᵀ"

    def matmat(self, X: Any) -> Any:
        """Aᵀ X."""
        return self._xp.conj(self.of.rmatmat(self._xp.conj(X)))

    def rmatmat(self, V: Any) -> Any:
        """conj(A) V."""
        return self._xp.conj(self.of.matmat(self._xp.conj(V)))

    @property
    def H(self) -> Any:
        """conj(A)."""
        return Adjoint(self)


class Sum(Operator):
    """A + B, with the blocks of rows that both tell apart."""

    def __init__(self, A: Any, B: Any) -> None:
        super().__init__(
            A.shape,
            like=A,
            symmetric=A.symmetric and B.symmetric,
            psd=A.psd and B.psd,
            n_blocks=n_blocks(A) if n_blocks(A) == n_blocks(B) > 1 else None,
            name="A+B",
            **common_state(A, B),
        )
        self.terms = (A, B)

    def lacks(self, product: str) -> str | None:
        """As an addend does."""
        if product == "block_rmatmat" and not self.n_blocks:
            return ""
        side = "rmatmat" if product == "block_rmatmat" else product
        return lacked(*((A, side) for A in self.terms)) if side in SIDES else super().lacks(product)

    def matmat(self, X: Any) -> Any:
        """A X + B X."""
        A, B = self.terms
        return A.matmat(X) + B.matmat(X)

    def rmatmat(self, V: Any) -> Any:
        """Aᴴ V + Bᴴ V."""
        A, B = self.terms
        return A.rmatmat(V) + B.rmatmat(V)

    def block_rmatmat(self, V: Any) -> Any:
        """The same of each block of rows."""
        A, B = self.terms
        return A.block_rmatmat(V) + B.block_rmatmat(V)


class Product(Operator):
    """A B, with its `operands`; a product with it is one with B and then one with A.

    Its rows are those of A. Where A is block diagonal in the blocks of B, (A B)_b = A_b B_b, it can do by blocks what B
    can.
    """

    def __init__(self, A: Any, B: Any, **known: Any) -> None:
        blocks = n_blocks(B)
        blockwise = (
            {"n_blocks": blocks, "parameters": B.parameters} if blocks > 1 and A.diagonal_blocks % blocks == 0 else {}
        )
        super().__init__(
            (A.shape[0], B.shape[1]),
            like=A,
            n_blocks=blocks if blockwise else None,
            parameters=B.parameters if blockwise else (),
            state_shape=A.state_shape,
            feature_axis=A.feature_axis,
            name="A@B",
            **known,
        )
        self.operands = (A, B)

    def lacks(self, product: str) -> str | None:
        """As an operand does."""
        A, B = self.operands
        if product in SIDES:
            return lacked((A, product), (B, product))
        return lacked((A, "rmatmat"), (B, product)) if self.n_blocks and product in _BLOCKWISE else ""

    def matmat(self, X: Any) -> Any:
        """A(B X)."""
        A, B = self.operands
        return A.matmat(B.matmat(X))

    def rmatmat(self, V: Any) -> Any:
        """Bᴴ(Aᴴ V)."""
        A, B = self.operands
        return B.rmatmat(A.rmatmat(V))

    def block_rmatmat(self, V: Any) -> Any:
        """B_bᴴ(A_bᴴ v_b)."""
        A, B = self.operands
        return B.block_rmatmat(A.rmatmat(V))

    def block_sqnorms(self, V: Any) -> Any:
        """‖B_bᴴ(A_bᴴ v_b)‖²."""
        A, B = self.operands
        return B.block_sqnorms(A.rmatmat(V))

    def sketch_gram(self, V: Any) -> Any:
        """Inner products of the blocks' B_bᴴ(A_bᴴ v_b)."""
        A, B = self.operands
        return B.sketch_gram(A.rmatmat(V))

    def grouped_gram(self, V: Any, groups: tuple[tuple[int, ...], ...]) -> Any:
        """The same over each group of columns."""
        A, B = self.operands
        return B.grouped_gram(A.rmatmat(V), groups)


_BLOCKWISE = ("block_rmatmat", "block_sqnorms", "sketch_gram", "grouped_gram")


# -- what +, −, *, @ and ** of operators mean ------------------------------------------------------
def operand(other: Any) -> Any:
    """`other` as an operator, or NotImplemented."""
    return aslinearoperator(other) if is_convertible(other) else NotImplemented


def add(A: Any, other: Any) -> Any:
    """A + B."""
    B = operand(other)
    if B is NotImplemented:
        return NotImplemented
    check_addends(A, B)
    return Sum(A, B)


def subtract(A: Any, B: Any) -> Any:
    """A − B."""
    A, B = operand(A), operand(B)
    return NotImplemented if A is NotImplemented or B is NotImplemented else A + (-B)


def check_addends(A: Any, B: Any) -> None:
    """Raise unless `A` and `B` can be added."""
    if A.shape != B.shape:
        raise ValueError(f"A + B: shapes {A.shape} and {B.shape} differ; operators are added shape to shape.")
    check_compatible(A, B, "A + B")


def multiply(A: Any, c: Any) -> Any:
    """The multiple c A, for a number or an array without axes."""
    is_scalar = isinstance(c, Number) or (aa.n_axes(c) == 0 and aa.is_array(c))
    return Scaled(A, c) if is_scalar else NotImplemented


@public(marks=False)
def matmul(A: Any, other: Any) -> Any:
    """A X, for an array; A B, for an operator."""
    if aa.n_axes(other) in (1, 2) and aa.is_array(other):
        return _applied(A, plain_array(other, "A @ X") if isinstance(other, np.ndarray) else other)
    B = operand(other)
    if B is NotImplemented:
        return NotImplemented
    if A.shape[1] != B.shape[0]:
        raise ValueError(f"A @ B: {A.shape} and {B.shape} do not chain; A's columns must be B's rows.")
    check_compatible(A, B, "A @ B")
    chain = (*_chain(A), *_chain(B))
    half, odd = divmod(len(chain), 2)
    if not all(_are_adjoint(X, Y) for X, Y in zip(chain[:half], chain[: -half - 1 : -1], strict=True)):
        return Product(A, B)
    return chain[half].congruent(reduce(Product, chain[:half])) if odd else Product(A, B, psd=True)


@public(marks=False)
def rmatmul(A: Any, X: Any) -> Any:
    """X A, for an array or another library's operator."""
    if aa.n_axes(X) not in (1, 2):
        return NotImplemented
    if not aa.is_array(X):  # a sparse matrix
        other = operand(X)
        return other if other is NotImplemented else other @ A
    X = plain_array(X, "X @ A") if isinstance(X, np.ndarray) else X
    if X.shape[-1] != A.shape[0]:
        raise ValueError(f"X @ A: X has {X.shape[-1]} columns, expected {A.shape[0]} (A is {A.shape}).")
    xp, rows = aa.namespace(A), X if X.ndim == 2 else X[None, :]
    product = aa.adjoint(xp, A.rmatmat(aa.adjoint(xp, rows)))
    return product if X.ndim == 2 else product[0, :]


def _applied(A: Any, X: Any) -> Any:
    if X.shape[0] != A.shape[1]:
        raise ValueError(f"A @ X: X has {X.shape[0]} rows, expected {A.shape[1]} (A is {A.shape}).")
    return A.matmat(X) if X.ndim == 2 else A.matmat(X[:, None])[:, 0]


def _chain(A: Any) -> tuple[Any, ...]:
    """The operands of a product of products, from left to right."""
    return tuple(X for B in A.operands for X in _chain(B)) if isinstance(A, Product) else (A,)


def _are_adjoint(A: Any, B: Any) -> bool:
    """Whether B is known to be Aᴴ."""
    return (A is B and A.symmetric) or _is_adjoint_of(A, B) or _is_adjoint_of(B, A)


def _is_adjoint_of(A: Any, B: Any) -> bool:
    return type(A) is Adjoint and A.of is B


Operator.algebra = sys.modules[__name__]
