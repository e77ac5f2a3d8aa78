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
    return aa.real(xp, forms) if A.symmetric else forms


def quadratic_forms(xp: Any, A: Any, columns: Any) -> Any:
    """vᴴAv for each column of each chunk; of a Gram operator as ‖Jᴴv‖², one vjp instead of vjp and jvp."""
    if A.factor is not None:
        forms = [xp.sum(aa.abs2(xp, A.factor.rmatmat(V)), axis=0) for V in columns]
    else:
        forms = [form(xp, A, V, A.matmat(V)) for V in columns]
    return aa.concat_columns(xp, forms)


def deflate(xp: Any, Q: Any, G: Any) -> Any:
    """(I − QQᴴ) G."""
    return G - Q @ (aa.adjoint(xp, Q) @ G)


def orth(Y: Any, Omega: Any) -> tuple[Any, Any, Any, Any]:
    """Q, R and QᴴY of Y = AΩ in units of max|Y|, and that, as one program where the framework compiles.

    R is QᴴY, but that nothing is differentiated by it where Y has lost rank: see `_steady`.
    """
    found: tuple[Any, Any, Any, Any] = _backends.compiled(_orth, (_backends.differentiated(Y),), (Y, Omega), Y)
    return found


def _orth(differentiated: bool, arrays: tuple[Any, Any]) -> tuple[Any, Any, Any, Any]:
    Y, Omega = arrays
    xp = aa.namespace(Y)
    top = aa.largest(xp, Y)
    scale = xp.where(top > 0, top, 1.0)
    touched = aa.touched(xp, Y, Omega, scale)
    if differentiated:
        Q, R = _steady(xp, touched)
        return Q, R, aa.adjoint(xp, Q) @ (Y / scale), top
    Q, R = aa.tall_qr(xp, touched)
    return Q, R, R, top


def _steady(xp: Any, Y: Any) -> tuple[Any, Any]:
    """Q and R whose derivatives are those of what they are for, whatever the rank of Y.

    Columns that the ones before them span but for rounding have a Q of their own all the same, that of their rounding,
    and its derivative is what rounding makes of 0/0. What a sketch is for does not depend on them, as long as they
    complete the others to an orthonormal basis: so they stay where they are, and follow the others as far as that
    takes. R tells how Q was made, and which probe each direction comes from; of rounding, that is a constant.
    """
    known = xp.finfo(Y.dtype)
    fixed, R = (_backends.constant(x) for x in aa.tall_qr(xp, _backends.constant(Y)))
    size = xp.abs(xp.linalg.diagonal(R))
    lost = size < known.eps**0.5 * (1 + xp.max(size))
    Q, moving = aa.tall_qr(xp, xp.where(lost[None, :], fixed, Y))
    turned = _backends.constant(aa.vdot(xp, Q, fixed))  # the same columns but for signs, which QR is free to choose
    return Q, xp.where(xp.any(lost), turned[:, None] * R, moving)


def completed(arrays: tuple[Any, Any, Any]) -> Any:
    """What completes an orthonormal basis to one of the products Y of Ω too."""
    old, Y, Omega = arrays
    xp = aa.namespace(Y)
    # Twice is enough: Gram–Schmidt against the old columns loses orthogonality once.
    Y = aa.touched(xp, Y, Omega, aa.safe_scale(xp, Y))
    return aa.orth(xp, deflate(xp, old, aa.orth(xp, deflate(xp, old, Y))[0]))[0]
