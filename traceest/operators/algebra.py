"""Operators made of others: products, powers and polynomials, the self-adjoint part, the identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Number, Real
from typing import Any

from traceest import _array_api as aa
from traceest._boundary import public
from traceest.operators.base import Derived, Operator
from traceest.operators.convert import aslinearoperator


class Product(Operator):
    """A B, with its `operands`; a product with it is one with B and then one with A."""

    def __init__(self, A: Any, B: Any) -> None:
        forward = hasattr(A, "matmat") and hasattr(B, "matmat")
        reverse = hasattr(A, "rmatmat") and hasattr(B, "rmatmat")
        super().__init__(
            (A.shape[0], B.shape[1]),
            like=A,
            matmat=(lambda X: A.matmat(B.matmat(X))) if forward else None,
            rmatmat=(lambda X: B.rmatmat(A.rmatmat(X))) if reverse else None,
            name="A@B",
        )
        self.operands = (A, B)


class Polynomial(Operator):
    """c₀ + c₁ A + … + c_d A^d, by Horner's rule, with its `base` A and `coefficients`."""

    def __init__(self, A: Any, coefficients: tuple[Any, ...]) -> None:
        real = all(isinstance(c, Real) for c in coefficients)
        positive = real and min(coefficients) >= 0
        symmetric = getattr(A, "symmetric", False) and real
        even = not any(coefficients[1::2])
        sides: dict[str, Any] = {"matmat": _horner(A.matmat, coefficients)} if hasattr(A, "matmat") else {}
        if symmetric and sides:
            sides["rmatmat"] = sides["matmat"]
        elif hasattr(A, "rmatmat"):
            sides["rmatmat"] = _horner(A.rmatmat, tuple(c.conjugate() for c in coefficients))
        super().__init__(
            A.shape,
            like=A,
            symmetric=symmetric,
            psd=positive and symmetric and (even or getattr(A, "psd", False)),
            name="p(A)",
            **sides,
        )
        self.base, self.coefficients = A, coefficients


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
    if isinstance(p, bool) or not hasattr(p, "__index__") or p.__index__() < 0:
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
    if getattr(A, "symmetric", False):
        return A
    for side in ("matmat", "rmatmat"):
        if not hasattr(A, side):
            raise TypeError(f"symmetric_part: needs both sides, and {A!r} has no {side}; give the adjoint too.")

    def product(X: Any) -> Any:
        return (A.matmat(X) + A.rmatmat(X)) / 2

    return Derived(A.shape, like=A, matmat=product, rmatmat=product, symmetric=True, name="(A+Aᴴ)/2")


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
    return Derived((n, n), like=like, matmat=lambda X: X, rmatmat=lambda X: X, psd=True, name="I")


def _horner(multiply: Callable[[Any], Any], coefficients: tuple[Any, ...]) -> Callable[[Any], Any]:
    *lower, leading = coefficients

    def product(X: Any) -> Any:
        Y = leading * X
        for c in reversed(lower):
            Y = multiply(Y) + c * X if c else multiply(Y)
        return Y

    return product
