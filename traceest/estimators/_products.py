"""Products a chunk of columns at a time, and the forms vᴴAv made of them."""

from __future__ import annotations

from typing import Any

from traceest import _array_api as aa
from traceest import _backends


def products(xp: Any, A: Any, X: Any, chunk: int) -> Any:
    """A X, a chunk of columns at a time."""
    k = X.shape[1]
    return aa.concat_columns(xp, [A.matmat(X[:, i : min(i + chunk, k)]) for i in range(0, k, chunk)])


def form(xp: Any, A: Any, V: Any, AV: Any) -> Any:
    """VᴴAv for each column, real where A is known to be self-adjoint."""
    forms = aa.vdot(xp, V, AV)
    return aa.real(xp, forms) if getattr(A, "symmetric", False) else forms


def quadratic_forms(xp: Any, A: Any, columns: Any) -> Any:
    """vᴴAv for each column of each chunk; of a Gram operator as ‖Jᴴv‖², one vjp instead of vjp and jvp."""
    if hasattr(A, "factor"):
        forms = [xp.sum(aa.abs2(xp, A.factor.rmatmat(V)), axis=0) for V in columns]
    else:
        forms = [form(xp, A, V, A.matmat(V)) for V in columns]
    return aa.concat_columns(xp, forms)


def deflate(xp: Any, Q: Any, G: Any) -> Any:
    """(I − QQᴴ) G."""
    return G - Q @ (aa.adjoint(xp, Q) @ G)


def orth(Y: Any, Omega: Any) -> tuple[Any, Any, Any]:
    """Q and R of Y = AΩ in units of max|Y|, and that, as one program where the framework compiles."""
    found: tuple[Any, Any, Any] = _backends.compiled(_orth, (), (Y, Omega), Y)
    return found


def _orth(arrays: tuple[Any, Any]) -> tuple[Any, Any, Any]:
    Y, Omega = arrays
    xp = aa.namespace(Y)
    top = aa.largest(xp, Y)
    return *aa.orth(xp, Y, Omega, xp.where(top > 0, top, 1.0)), top
