"""Input checks at the boundary; inside, nothing is checked again."""

from __future__ import annotations

from typing import Any, SupportsFloat, SupportsIndex

import array_api_compat
import numpy as np

from traceest import _array_api as aa
from traceest import _backends
from traceest.operators import aslinearoperator
from traceest.operators.abilities import can, missing

OBLONG = {
    "trace": "the trace of J Jᴴ is meant by rhutch(J), fhutch(J) or trace(gram(J))",
    "frobenius_norm": "‖J‖² = tr JJᴴ is what rhutch(J), fhutch(J) or trace(gram(J)) estimate, and "
    "frobenius_norm(gram(J)) is ‖JJᴴ‖",
    "inner_product": "⟨A, B⟩ = tr AᴴB is trace(aslinearoperator(A).H @ B), and inner_product(gram(A), gram(B)) is "
    "⟨AAᴴ, BBᴴ⟩",
}
"""What a rectangular operator is to be asked for instead."""


def operator(A: Any, caller: str) -> Any:
    """`A` as an operator with rows, columns, a dtype that linear algebra is done in, and at least one product."""
    A = aslinearoperator(A)
    xp = aa.namespace(A)
    if A.dtype not in (xp.float64, xp.float32, xp.complex128, xp.complex64):
        floating = aa.is_floating(xp, A.dtype) or "float" in str(A.dtype)
        raise TypeError(_dtype_message(A.dtype, caller) if floating else f"{caller}: {_INTEGERS.format(A.dtype)}")
    if min(A.shape) < 1:
        raise ValueError(f"{caller}: the operator is empty, shape {tuple(A.shape)}; it needs rows and columns.")
    if str(aa.device(A)) == "meta":
        raise TypeError(
            f"{caller}: the operator is on the meta device, whose arrays have shapes and no numbers; move it to a "
            "device that has them."
        )
    return A


_INTEGERS = "the operator's dtype {} is not floating; convert it first."


def _dtype_message(dtype: Any, caller: str) -> str:
    """What to do about a precision that linear algebra is not done in."""
    name = str(dtype).rpartition(".")[2]
    wide = name in ("float128", "longdouble", "complex256", "clongdouble", "float96", "complex192")
    to = ("complex128" if "complex" in name else "float64") if wide else "float32"
    why = "which linear algebra is not available in" if wide else "whose rounding would be in every answer"
    return (
        f"{caller}: the operator's dtype is {dtype}, {why}; estimates are made in float32 and float64 (complex64 and "
        f"complex128). Convert the array to {to}, or, to keep it as it is, give a function that multiplies by it and "
        f"whose argument and answer are {to}: aslinearoperator(f, like=…)."
    )


def square(A: Any, caller: str) -> Any:
    """`A` as a square operator."""
    A = operator(A, caller)
    if A.shape[0] != A.shape[1]:
        cure = OBLONG.get(caller, OBLONG["trace"])
        raise ValueError(
            f"{caller}: expected a square operator, got shape {tuple(A.shape)}; of a rectangular J, {cure}."
        )
    return A


def kernel(A: Any, caller: str) -> Any:
    """`A` as a square operator whose factor, if it has one, has at least one side."""
    return square(A, caller)


def require_side(A: Any, side: str, caller: str) -> None:
    """Raise unless `A` can be multiplied from `side`."""
    if not can(A, side):
        raise TypeError(missing(A, side, caller))


def budget(n: Any, probes: Any, minimum: int, name: str, caller: str) -> int:
    """The number of products to spend, from the budget or from the explicit probes."""
    if probes is not None and not array_api_compat.is_array_api_obj(probes):
        raise TypeError(f"{caller}: probes must be an array, one probe a column, got {type(probes).__name__}.")
    if n is None and probes is not None:
        n = probes.shape[-1]
    if n is None:
        raise TypeError(f"{caller}: give a budget, for instance {name}={max(minimum, 10)}, or explicit probes=.")
    if isinstance(n, bool) or not isinstance(n, (int, SupportsIndex)):
        raise TypeError(f"{caller}: {name} must be an integer, got {type(n).__name__}.")
    n = n.__index__()
    if n < minimum:
        raise ValueError(f"{caller}: {name} = {n} is below the method's minimum of {minimum}.")
    if probes is not None and probes.shape[-1] != n:
        raise ValueError(f"{caller}: {name} = {n}, but probes has {probes.shape[-1]} columns; drop one of the two.")
    return n


def check_probes(probes: Any, rows: int, A: Any, caller: str) -> None:
    """Raise unless explicit `probes` fit the operator in shape, dtype and device."""
    if probes is None:
        return
    if probes.ndim != 2 or probes.shape[0] != rows:
        raise ValueError(f"{caller}: probes must have shape ({rows}, k), one a column, got {tuple(probes.shape)}.")
    if aa.namespace(probes) is not aa.namespace(A) or (
        isinstance(probes, np.ndarray) and type(probes) is not np.ndarray
    ):
        raise TypeError(
            f"{caller}: probes are of {type(probes).__module__}.{type(probes).__name__}, the operator's arrays of "
            f"{aa.library(aa.namespace(A))}; convert the probes."
        )
    if aa.devices_differ(probes, A):
        raise TypeError(
            f"{caller}: probes are on device {aa.device(probes)}, the operator on {aa.device(A)}; move one of them."
        )
    if probes.dtype != A.dtype:
        raise TypeError(f"{caller}: probes have dtype {probes.dtype}, the operator {A.dtype}; convert one of them.")


def number(x: Any, name: str, caller: str) -> Any:
    """`x`, if it is a real number.

    Raises
    ------
    TypeError
        If it is not.
    """
    if isinstance(x, bool | str | bytes | complex) or not isinstance(x, (float, int, SupportsFloat)):
        raise TypeError(f"{caller}: {name} must be a number, got {x!r}.")
    return x


def tolerance(rtol: float, atol: float, confidence: float, caller: str) -> None:
    """Raise unless the tolerances can be met by some interval."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not number(value, name, caller) >= 0:
            raise ValueError(f"{caller}: {name} must be ≥ 0, got {value!r}.")
    if rtol == 0 and atol == 0:
        raise ValueError(f"{caller}: rtol and atol are both 0, which asks for the exact value; call exact() instead.")
    if not 0 < number(confidence, "confidence", caller) < 1:
        raise ValueError(f"{caller}: confidence must lie between 0 and 1, got {confidence!r}; 0.95 means 95 %.")


def _not_finite(x: Any) -> tuple[Any, Any]:
    """The columns that have a NaN or an infinity in them, and whether any has."""
    xp = aa.namespace(x)
    bad = xp.any(xp.reshape(~xp.isfinite(x), (-1, x.shape[-1])), axis=0)
    return bad, xp.any(bad)


def finite(x: Any, side: str, first_column: int, caller: str) -> None:
    """Raise if a product has a NaN or an infinity in it, saying which product and which column; not inside a trace."""
    bad, any_bad = _backends.compiled(_not_finite, (), x, x)
    if aa.truth(any_bad):
        column = first_column + next(i for i in range(x.shape[-1]) if bool(bad[i]))
        raise ValueError(
            f"{caller}: NaN or infinity in the product {side}, column {column} of those asked so far; look for "
            "overflow, a log or a division at zero in the operator (or the model), or try float64."
        )
