"""What all ways out share: which operator goes, on whose arrays, and with which sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat
import numpy as np

import traceest as te
from traceest import _array_api as aa
from traceest.uncertainty.estimate import _to_host

Product = Callable[[Any], Any]
ARRAYS: dict[str, Callable[[Any], bool]] = {
    "NumPy": array_api_compat.is_numpy_namespace,
    "JAX": array_api_compat.is_jax_namespace,
    "PyTorch": array_api_compat.is_torch_namespace,
}


def outgoing(A: Any, caller: str, *libraries: str) -> Any:
    """`A` as an operator that has `matmat`, on the arrays of one of `libraries` (any, if none is named).

    Raises
    ------
    TypeError
        If it is not.
    """
    A = te.aslinearoperator(A)
    xp = aa.namespace(A)
    if libraries and not any(ARRAYS[name](xp) for name in libraries):
        raise TypeError(
            f"{caller}: the operator works on arrays of {xp.__name__}, expected {' or '.join(libraries)}; make it of "
            "such arrays, or take traceest_adapters.interop.scipy.to_scipy, which works on NumPy copies of any."
        )
    if not te.can(A, "matmat"):
        raise TypeError(
            f"{caller}: needs matmat (forward mode, jvp), which {A!r} lacks; hand over A.H, if rmatmat is what "
            "it has, or a model whose backward pass can be differentiated."
        )
    return A


def adjoint_of(A: Any) -> Product | None:
    """X ↦ Aᴴ X: `rmatmat`, or `matmat` where A is known to be self-adjoint, or None."""
    return A.rmatmat if te.can(A, "rmatmat") else A.matmat if A.symmetric else None


def known_of(A: Any) -> dict[str, Any]:
    """What is known of A, to be carried along."""
    return {"symmetric": A.symmetric, "psd": A.psd}


def both_sides(A: Any) -> te.Operator:
    """A with its two sides alone, and lazy algebra (`H`, `T`) on them, which the protocol does not promise."""
    return te.Operator(A.shape, like=A, matmat=A.matmat, rmatmat=adjoint_of(A), **known_of(A), name=repr(A))


def host_dtype(A: Any) -> np.dtype:
    """NumPy's dtype for the arrays of A; float32 for the shorter ones, which LAPACK has no routines for."""
    xp = aa.namespace(A)
    double = xp.finfo(A.dtype).bits == 64
    if aa.is_complex(xp, A.dtype):
        return np.dtype(np.complex128 if double else np.complex64)
    return np.dtype(np.float64 if double else np.float32)


def on_host(A: Any, product: Product) -> Product:
    """`product`, one of A's sides, on NumPy arrays (n, k): copies go to its device and back.

    A real operator takes complex arrays too, real and imaginary parts as columns of one product.
    """
    xp, device, dtype = aa.namespace(A), aa.device(A), host_dtype(A)
    short = xp.finfo(A.dtype).bits < 32

    def multiply(X: Any) -> Any:
        X = np.asarray(X)
        if np.iscomplexobj(X) and not np.issubdtype(dtype, np.complexfloating):
            Y = multiply(np.concatenate([X.real, X.imag], axis=1))
            return Y[:, : X.shape[1]] + 1j * Y[:, X.shape[1] :]
        # A copy: solvers write into their vectors while the product may still be on its way, or be the vector itself.
        X = xp.asarray(np.array(X, dtype=dtype, order="C"), device=device)
        Y = product(xp.astype(X, A.dtype))
        return np.require(_to_host(xp.astype(Y, xp.float32) if short else Y), requirements=["W"])

    return multiply
