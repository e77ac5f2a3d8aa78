"""Looks at what a call declares of its operator: that it is self-adjoint, that it is positive.

They cost no product: the products that an answer is made of show it. Inside `jax.jit` and `vmap` there are no values
to look at, and nothing is raised.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from traceest import _array_api as aa
from traceest.operators.densify import dense_bytes, to_dense

ANSWERS = (TypeError, ValueError, RuntimeError)
"""What frameworks raise when a traced array is asked for its value."""


def number(x: Any) -> float | None:
    """The value of a 0-d array, or None where it is traced and has none yet."""
    try:
        return float(x.detach() if hasattr(x, "detach") else x)
    except ANSWERS:
        return None


def symmetric(asymmetry: Any, A: Any, caller: str) -> None:
    """Raise if products are those of no self-adjoint A; `asymmetry` is relative to their size.

    Up to ε^{1/4} passes: products by iteration or in less precision are no more symmetric than that, and what A − Aᴴ
    adds to sums over eigenvalues is of second order in it.
    """
    if A.factor is not None:  # JJᴴ is symmetric whatever J
        return
    off, eps = number(asymmetry), float(aa.namespace(A).finfo(A.dtype).eps)
    if off is not None and off > eps**0.25:
        raise ValueError(
            f"{caller}: A is not self-adjoint: ⟨u, Av⟩ and ⟨Au, v⟩ differ by {off:.2g} of the length of A's products, "
            "and eigenvalues by Lanczos are those of self-adjoint operators only. For singular values give gram(A); "
            "for powers of any A there is trace_of_polynomial."
        )


def asymmetry(xp: Any, D: Any) -> Any:
    """‖D − Dᴴ‖ / ‖D‖ of a square array."""
    D = D / xp.astype(aa.safe_scale(xp, D), D.dtype)
    size = xp.sum(aa.abs2(xp, D))
    off = xp.sum(aa.abs2(xp, D - aa.adjoint(xp, D)))
    return aa.root(xp, off / xp.where(size > 0, size, xp.ones_like(size)))


def dense(xp: Any, A: Any, caller: str) -> Any:
    """The matrix of A, (n, n), made Hermitian to the last bit; a ValueError if it is not but for rounding."""
    D = to_dense(A, max_bytes=dense_bytes(A))
    symmetric(asymmetry(xp, D), A, caller)
    return (D + aa.adjoint(xp, D)) / 2


def positive(least: Any, largest: Any, A: Any, what: str, caller: str) -> None:
    """Raise if the `least` eigenvalue seen is negative beyond rounding; `largest` is the largest modulus."""
    low, size, eps = number(least), number(largest), float(aa.namespace(A).finfo(A.dtype).eps)
    if low is not None and size is not None and low < -10 * eps**0.5 * size:
        raise ValueError(
            f"{caller}: {what} is not positive: it has an eigenvalue of {low:.3g} or below (the largest modulus is "
            f"{size:.3g}); look for a wrong sign, or shift it: A + c·I with c > {-low:.3g}."
        )


def defined(value: Any, nodes: Any, f: Any, caller: str) -> None:
    """Raise if f, of which `value` is the trace, is not finite on the spectrum, saying where."""
    size = number(aa.namespace(value).abs(value))
    if size is None or math.isfinite(size):
        return
    xp = aa.namespace(nodes)
    flat = xp.reshape(nodes, (-1,))
    with np.errstate(all="ignore"):
        values = f(flat)
    where = next((i for i in range(flat.shape[0]) if not math.isfinite(number(xp.abs(values[i])) or 0.0)), None)
    at = "somewhere on the spectrum" if where is None else f"{float(flat[where]):.6g}, where A has a Ritz value"
    raise ValueError(
        f"{caller}: f is NaN or infinite at {at}; it has to be finite wherever A has eigenvalues. Is A positive, and "
        "not singular? Its range: "
        f"{float(xp.min(flat)):.6g} to {float(xp.max(flat)):.6g}."
    )
