"""The boundary of products: what an operator is given, and what is taken from it.

Each answer is held against what was asked for (shape, dtype, namespace, device). Where a product is a user's function
or another library's, it is given a copy and its answer is copied: it may write into its argument, and into one array of
its own again and again, which iterative solvers bear and estimators, which keep all products, would not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

from traceest import _array_api as aa
from traceest import _backends

OURS = ("traceest", "traceest_adapters")
"""Packages whose operators change no argument and give arrays of their own."""


class Watch:
    """What is seen of users' products: whether they change their argument, or the answer that they gave before.

    `refused` is the property, "shape" or "dtype", that an answer was refused for, and the reason.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.argument_changed, self.answer_overwritten = False, False
        self.refused: tuple[str, str] | None = None
        self._last: dict[Any, tuple[Any, Any]] = {}

    def look(self, product: Any, xp: Any, argument: tuple[Any, Any], answer: tuple[Any, Any]) -> None:
        """Compare the argument with what was given, and the last answer with what it was."""
        self.argument_changed |= bool(xp.any(argument[0] != argument[1]))
        if (last := self._last.get(product)) is not None:
            self.answer_overwritten |= bool(xp.any(xp.asarray(last[0]) != last[1]))
        self._last[product] = answer


_watch: ContextVar[Watch | None] = ContextVar("traceest_watch", default=None)


@contextmanager
def watching() -> Iterator[Watch]:
    """Have users' products looked at."""
    watch = Watch()
    token = _watch.set(watch)
    try:
        yield watch
    finally:
        _watch.reset(token)


def is_ours(A: Any) -> bool:
    """Whether the class of `A` is one of this library or of its adapters."""
    return type(A).__module__.partition(".")[0] in OURS


def _refusal(kind: type[Exception], message: str) -> Exception:
    """The error to raise, of which whoever watches is told."""
    if (watch := _watch.get()) is not None:
        watch.refused = "shape" if kind is ValueError else "dtype", message
    return kind(message)


# -- the answer ------------------------------------------------------------------------------------------
def answered(A: Any, side: str, X: Any, Y: Any, groups: tuple[Any, ...] = ()) -> Any:
    """Y, the product of the operator `A` named `side` with X, if it is what was asked for.

    Answers of more precision than the operator's are rounded to it, and subclasses of NumPy's array (`np.matrix`) are
    taken as arrays. Nothing is asked of values, so that nothing is waited for and all can be traced.

    Raises
    ------
    ValueError
        For another shape.
    TypeError
        For what is no array, or one of another library, dtype or device.
    """
    wanted = expected_shape(A, side, X.shape[1], groups) if X.ndim == 2 else expected_shape(A, side, 1)[:1]
    if type(Y) is not type(X):
        Y = _of_one_library(A, side, X, Y, wanted)
    if tuple(Y.shape) != wanted:
        raise _refusal(ValueError, _shape_message(A, side, X, tuple(Y.shape), wanted))
    dtype = A.dtype
    if Y.dtype != dtype and side == "block_sqnorms":
        dtype = aa.real_dtype(aa.namespace(X), dtype)
    if Y.dtype != dtype and X.dtype == A.dtype:  # what others multiply by, complex vectors for instance, is theirs
        Y = _of_dtype(A, side, X, Y, dtype)
    if type(Y) is not np.ndarray and aa.devices_differ(X, Y):
        raise _refusal(
            TypeError,
            f"{side} of {A.name} was given an array on device {aa.device(X)} and answered with one on {aa.device(Y)}; "
            "bring it back before it is returned.",
        )
    return Y


def expected_shape(A: Any, side: str, k: int, groups: tuple[Any, ...] = ()) -> tuple[int, ...]:
    """The shape of the product `side` of `A` with k columns."""
    n, P = A.shape
    B = A.n_blocks or 1
    if side in ("matmat", "gram_matmat"):
        return (n, k)
    if side == "rmatmat":
        return (P, k)
    if side == "block_rmatmat":
        return (B, k, P)
    if side == "block_sqnorms":
        return (B, k)
    return (len(groups[0]), B, k, B, k) if side == "grouped_gram" else (B, k, B, k)


def _of_one_library(A: Any, side: str, X: Any, Y: Any, wanted: tuple[int, ...]) -> Any:
    """Y as an array of X's library; a plain one of a subclass that multiplies in another way."""
    if isinstance(X, np.ndarray) and isinstance(Y, np.ndarray):
        return plain_array(Y, f"{side} of {A.name}")
    if not aa.is_array(Y):
        shown = (
            f"{Y!r}, a {type(Y).__name__}" if Y is None or isinstance(Y, (int, float, complex)) else type(Y).__name__
        )
        raise _refusal(
            TypeError,
            f"{side} of {A.name} returned {shown}; an array of shape {wanted} was asked for. Return the product (a "
            "function that writes into an array has to return that).",
        )
    theirs, ours = array_api_compat.array_namespace(Y), array_api_compat.array_namespace(X)
    if theirs is not ours:
        raise _refusal(
            TypeError,
            f"{side} of {A.name} was given an array of {aa.library(ours)} and answered with one of "
            f"{aa.library(theirs)}; convert it before it is returned, or say by like= what the function works on.",
        )
    return Y


def plain_array(A: Any, where: str) -> Any:
    """The plain NumPy array of a subclass (`np.matrix`, whose * multiplies matrices; a memory map).

    Raises
    ------
    TypeError
        If entries are masked: what is missing cannot be multiplied by.
    """
    if isinstance(A, np.ma.MaskedArray):
        if np.ma.is_masked(A):
            raise _refusal(
                TypeError,
                f"{where}: a masked array with {int(np.ma.count_masked(A))} masked entries is no matrix; say what they "
                "are, A.filled(0.0).",
            )
        return np.ma.getdata(A)
    return np.asarray(A)


def _shape_message(A: Any, side: str, X: Any, got: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    k = X.shape[1] if X.ndim == 2 else 1
    if X.ndim == 1:
        hint = f"a function of vectors returns vectors; the operator is said to be {A.shape[0]}×{A.shape[1]}"
    elif side not in ("matmat", "rmatmat"):
        hint = "see traceest.Jacobian for what this ability returns"
    elif len(got) == 2 and got == wanted[::-1]:
        hint = "the answer is transposed; columns in, columns out"
    elif k > 1 and len(got) == 2 and got[0] == wanted[0] and got[1] == 1:
        hint = "only one column came back; multiply each, or give a function of vectors and like=np.zeros(n)"
    elif len(got) == 1:
        hint = "a vector came back; of a function of vectors say so by a 1-D like=, like=np.zeros(n)"
    elif len(got) == 2 and got[1] == k:
        hint = f"the operator is said to be {A.shape[0]}×{A.shape[1]}; give its true shape="
    else:
        hint = "return one column for each that is given"
    given = f"{side} of {A.name} was given an array of shape {tuple(X.shape)}"
    return f"{given} and answered with one of {got}, not {wanted}: {hint}."


def _of_dtype(A: Any, side: str, X: Any, Y: Any, dtype: Any) -> Any:
    """Y in the operator's dtype, where that only takes away digits that the operator is not said to have."""
    xp = aa.namespace(X)
    kind = "complex floating" if aa.is_complex(xp, dtype) else "real floating"
    if xp.isdtype(Y.dtype, kind) and _bits(xp, Y.dtype) > _bits(xp, dtype):
        return xp.astype(Y, dtype)
    if not aa.is_floating(xp, Y.dtype):
        hint = "a product with floating numbers is floating; do not round it"
    elif aa.is_complex(xp, Y.dtype) != aa.is_complex(xp, dtype):
        hint = (
            "the operator is said to be real; give a complex like=, or the real part of the product"
            if aa.is_complex(xp, Y.dtype)
            else "the operator is said to be complex, and a product with complex numbers is; keep its imaginary part"
        )
    else:
        hint = f"the digits promised are not there; give like= of dtype {Y.dtype}, or multiply in {dtype}"
    raise _refusal(TypeError, f"{side} of {A.name} answered with dtype {Y.dtype}, the operator's is {dtype}: {hint}.")


def _bits(xp: Any, dtype: Any) -> int:
    return int(xp.finfo(dtype).bits)


# -- products of users -----------------------------------------------------------------------------------
def copied(x: Any) -> Any:
    """A copy, that belongs to nobody else; arrays that cannot be changed are returned as they are."""
    backend = _backends.find(x)
    if backend is not None:
        return backend.copied(x)
    return array_api_compat.array_namespace(x).asarray(x, copy=True)


@dataclass(frozen=True)
class Promise:
    """What an operator's products are said to be."""

    shape: tuple[int, int]
    dtype: Any
    n_blocks: int | None
    name: str


class Guarded:
    """A user's product `side`, which cannot change what it is given nor what it gave, and is held to its promise.

    As many columns as rows are given in two parts, since an answer that is transposed could not be told from a right
    one by its shape. With `by_column` the product is a function of vectors, and is called once a column.
    """

    def __init__(self, product: Callable[..., Any], side: str, promise: Promise, *, by_column: bool = False) -> None:
        self.product, self.side, self.promise, self.by_column = product, side, promise, by_column

    def __call__(self, X: Any, *groups: Any) -> Any:
        """The product, an array of its own."""
        k = X.shape[1]
        if self.by_column:
            return aa.namespace(X).stack([self._once(X[:, i], ()) for i in range(k)], axis=1)
        if k > 1 and self.side in ("matmat", "rmatmat") and self.promise.shape == (k, k):
            parts = [self._once(X[:, : k // 2], ()), self._once(X[:, k // 2 :], ())]
            return aa.namespace(X).concat(parts, axis=1)
        return self._once(X, groups)

    def _once(self, X: Any, groups: tuple[Any, ...]) -> Any:
        given = copied(X)
        raw = self.product(given, *groups)
        Y = copied(answered(self.promise, self.side, X, raw, groups))
        if (watch := _watch.get()) is not None:
            watch.look(self, aa.namespace(X), (given, X), (raw, Y))
        return Y
