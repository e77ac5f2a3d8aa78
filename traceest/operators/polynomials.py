"""Powers and polynomials of an operator, its self-adjoint part, and the identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Number, Real
from typing import Any, SupportsIndex

from traceest import _array_api as aa
from traceest._boundary import public
from traceest.operators.abilities import SIDES, can
from traceest.operators.base import Operator
from traceest.operators.convert import aslinearoperator


class Polynomial(Operator):
    """c₀ + c₁ A + … + c_d A^d, by Horner's rule, with its `base` A and `coefficients`."""

    def __init__(self, A: Any, coefficients: tuple[Any, ...]) -> None:
        real = all(isinstance(c, Real) for c in coefficients)
        positive = real and min(coefficients) >= 0
        symmetric = A.symmetric and real
        even = not any(coefficients[1::2])
        super().__init__(
            A.shape,
            like=A,
            symmetric=symmetric,
            psd=positive and symmetric and (even or A.psd),
            state_shape=A.state_shape,
            feature_axis=A.feature_axis,
            name="p(A)",
        )
        self.base, self.coefficients = A, coefficients

    def lacks(self, product: str) -> str | None:
        """As A does."""
        if product not in SIDES:
            return ""
        return self.base.lacks("matmat" if self.symmetric and can(self.base, "matmat") else product)

    def matmat(self, X: Any) -> Any:
        """p(A) X."""
        return _horner(self.base.matmat, self.coefficients, X)

    def rmatmat(self, V: Any) -> Any:
        """p(A)ᴴ V."""
        if self.symmetric and can(self.base, "matmat"):
            return self.matmat(V)
        return _horner(self.base.rmatmat, tuple(c.conjugate() for c in self.coefficients), V)


class SymmetricPart(Operator):
    """(A + Aᴴ)/2."""

    def __init__(self, A: Any) -> None:
        known = {"state_shape": A.state_shape, "feature_axis": A.feature_axis}
        super().__init__(A.shape, like=A, symmetric=True, name="(A+Aᴴ)/2", **known)
        self.of = A

    def matmat(self, X: Any) -> Any:
        """(A X + Aᴴ X)/2."""
        return (self.of.matmat(X) + self.of.rmatmat(X)) / 2

    rmatmat = matmat


class Identity(Operator):
    """I, (n, n)."""

    def __init__(self, n: int, like: Any) -> None:
        super().__init__((n, n), like=like, psd=True, name="I")
        self.diagonal_blocks = n

    def matmat(self, X: Any) -> Any:
        """X itself."""
        return X

    rmatmat = matmat


@public
def polynomial(A: Any, coefficients: Sequence[complex]) -> Operator:
    """p(A) = c₀ I + c₁ A + … + c_d A^d, lazily: d products with A a column, by Horner's rule.

    ``A ** p`` is the monomial. It is known to be self-adjoint where A is and the coefficients are real, and positive
    semidefinite where moreover they are ≥ 0 and A is positive semidefinite, or its powers even. For the trace alone,
    `trace_of_polynomial` takes half as many products.

    Parameters
    ----------
    A : operator, (n, n)
        Anything that `aslinearoperator` takes.
    coefficients : sequence of numbers
        c₀, c₁, …, c_d; complex ones for a complex A only.

    Returns
    -------
    Operator, (n, n)
        With the sides that A has.

    Raises
    ------
    ValueError
        If A is not square, or there are no coefficients.
    TypeError
        If a coefficient is not a number, or complex and A is not.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = np.diag([1.0, 2.0, 3.0])
    >>> float(te.exact(te.polynomial(A, [1.0, 0.0, 2.0])))
    31.0
    """
    A = aslinearoperator(A)
    return Polynomial(A, checked_coefficients(A, coefficients, "polynomial"))


def power(A: Any, p: Any) -> Any:
    """A^p for an integer p ≥ 0; A^1 is A itself."""
    if isinstance(p, bool) or not isinstance(p, (int, SupportsIndex)) or p.__index__() < 0:
        raise ValueError(f"A ** p: p must be an integer ≥ 0, got {p!r}; other powers are functions of the spectrum.")
    p = p.__index__()
    return A if p == 1 else Polynomial(A, checked_coefficients(A, [0.0] * p + [1.0], "A ** p"))


def checked_coefficients(A: Any, coefficients: Sequence[Any], caller: str) -> tuple[Any, ...]:
    """Python numbers, so that they change no dtype, without zeros at the end."""
    if A.shape[0] != A.shape[1]:
        raise ValueError(f"{caller}: expected a square operator, got shape {tuple(A.shape)}; powers need one.")
    found: list[Any] = []
    for c in coefficients:
        if not isinstance(c, Number):
            raise TypeError(f"{caller}: coefficients must be numbers, c₀ first, got {c!r}.")
        number: Any = c
        found.append(float(number) if isinstance(c, Real) else complex(number))
    if not found:
        raise ValueError(f"{caller}: give at least one coefficient, c₀, got none.")
    if any(isinstance(c, complex) for c in found) and not aa.is_complex(aa.namespace(A), A.dtype):
        raise TypeError(f"{caller}: complex coefficients need a complex operator, got dtype {A.dtype}; convert it.")
    while len(found) > 1 and found[-1] == 0:
        found.pop()
    return tuple(found)


@public
def symmetric_part(A: Any) -> Operator:
    """(A + Aᴴ)/2, lazily; it has the same real quadratic forms, and for real A the same trace.

    What needs a self-adjoint operator may be asked of it. A product costs one with each side of A.

    Parameters
    ----------
    A : operator, (n, n)
        With both sides; what is known to be self-adjoint is returned as it is.

    Returns
    -------
    Operator, (n, n)
        Known to be self-adjoint.

    Raises
    ------
    ValueError
        If A is not square.
    TypeError
        If A lacks a side.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = te.symmetric_part(np.triu(np.ones((3, 3))))
    >>> A.symmetric, float(A.matmat(np.eye(3))[1, 0])
    (True, 0.5)
    """
    A = aslinearoperator(A)
    if A.shape[0] != A.shape[1]:
        raise ValueError(f"symmetric_part: expected a square operator, got shape {tuple(A.shape)}.")
    if A.symmetric:
        return A
    for side in SIDES:
        if not can(A, side):
            raise TypeError(f"symmetric_part: needs both sides, and {A!r} lacks {side}; give the adjoint too.")
    return SymmetricPart(A)


@public
def identity(n: int, *, like: Any) -> Operator:
    """The identity of size n; ``A + c * identity(n, like=A)`` shifts a spectrum.

    Parameters
    ----------
    n : int
        At least 1.
    like : array or operator
        Gives namespace, dtype and device.

    Returns
    -------
    Operator, (n, n)
        Known to be positive semidefinite. A product is the array itself.

    Raises
    ------
    ValueError
        If n is below 1.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = te.aslinearoperator(np.diag([1.0, 2.0, 3.0]), psd=True)
    >>> float(te.exact(A + 0.5 * te.identity(3, like=A)))
    7.5
    """
    if n < 1:
        raise ValueError(f"identity: n must be at least 1, got {n}.")
    return Identity(n, like)


def _horner(multiply: Callable[[Any], Any], coefficients: tuple[Any, ...], X: Any) -> Any:
    *lower, leading = coefficients
    Y = leading * X
    for c in reversed(lower):
        Y = multiply(Y) + c * X if c else multiply(Y)
    return Y
