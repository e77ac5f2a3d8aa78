"""Input checks at the boundary; inside, nothing is checked again."""

from __future__ import annotations

from typing import Any

import array_api_compat

from traceest import _array_api as aa
from traceest import _backends
from traceest.operators import aslinearoperator

WITHOUT = {
    "matmat": "rhutch, hutchinson of a Gram operator and the one-sided kernel statistics need rmatmat (vjps) alone",
    "rmatmat": "fhutch needs matmat (jvps) alone",
}
SIDES = {"matmat": "matmat (forward mode, jvp)", "rmatmat": "rmatmat (reverse mode, vjp)"}


def operator(A: Any, caller: str) -> Any:
    """`A` as an operator with rows, columns, a floating dtype and at least one product."""
    A = aslinearoperator(A)
    if not aa.is_floating(aa.namespace(A), A.dtype):
        raise TypeError(f"{caller}: the operator's dtype {A.dtype} is not floating; convert it first.")
    if min(A.shape) < 1:
        raise ValueError(f"{caller}: the operator is empty, shape {tuple(A.shape)}; it needs rows and columns.")
    return A


def square(A: Any, caller: str) -> Any:
    """`A` as a square operator."""
    A = operator(A, caller)
    if A.shape[0] != A.shape[1]:
        raise ValueError(
            f"{caller}: expected a square operator, got shape {tuple(A.shape)}; of a rectangular J, the trace of "
            "J Jᴴ is meant by rhutch(J), fhutch(J) or trace(gram(J))."
        )
    return A


def kernel(A: Any, caller: str) -> Any:
    """`A` as a square operator whose factor, if it has one, has at least one side."""
    return square(A, caller)


def require_side(A: Any, side: str, caller: str) -> None:
    """Raise unless `A` can be multiplied from `side`."""
    if not hasattr(A, side):
        raise TypeError(f"{caller}: needs {SIDES[side]}, which {A!r} has not got. {WITHOUT[side]}.")


def budget(n: Any, probes: Any, minimum: int, name: str, caller: str) -> int:
    """The number of products to spend, from the budget or from the explicit probes."""
    if probes is not None and not array_api_compat.is_array_api_obj(probes):
        raise TypeError(f"{caller}: probes must be an array, one probe a column, got {type(probes).__name__}.")
    if n is None and probes is not None:
        n = probes.shape[-1]
    if n is None:
        raise TypeError(f"{caller}: give a budget, for instance {name}={max(minimum, 10)}, or explicit probes=.")
    if isinstance(n, bool) or not hasattr(n, "__index__"):
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
    if aa.devices_differ(probes, A):
        raise TypeError(
            f"{caller}: probes are on device {aa.device(probes)}, the operator on {aa.device(A)}; move one of them."
        )
    if probes.dtype != A.dtype:
        raise TypeError(f"{caller}: probes have dtype {probes.dtype}, the operator {A.dtype}; convert one of them.")


def tolerance(rtol: float, atol: float, confidence: float, caller: str) -> None:
    """Raise unless the tolerances can be met by some interval."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not value >= 0:
            raise ValueError(f"{caller}: {name} must be ≥ 0, got {value!r}.")
    if rtol == 0 and atol == 0:
        raise ValueError(f"{caller}: rtol and atol are both 0, which asks for the exact value; call exact() instead.")
    if not 0 < confidence < 1:
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
