"""The few helpers that the Array API standard lacks, each with its reason."""

from __future__ import annotations

import math
from collections.abc import Sized
from typing import Any

import array_api_compat
import numpy as np

from traceest import _backends

Array = Any
Namespace = Any

LARGE = 300_000
"""Numbers of a matrix that no longer fit a cache: its QR goes by blocks of rows, and copies of it cost."""


def namespace(*arrays: Array) -> Namespace:
    """The Array-API namespace of `arrays`; also lets the framework's plug-in introduce itself.

    The plug-in (see `traceest._backends`) registers `Estimate` as a pytree, which has to happen
    before the first result leaves a transformed function.
    """
    for array in arrays:
        _backends.find(array)
    return array_api_compat.array_namespace(*arrays)


def is_array(x: Any) -> bool:
    """Whether `x` is an array, or of a subclass of NumPy's; SciPy's sparse arrays, which look like one, are not."""
    if type(x).__module__.startswith("scipy."):
        return False
    return isinstance(x, np.ndarray) or bool(array_api_compat.is_array_api_obj(x))


def n_axes(x: Any) -> int | None:
    """How many axes an array of any library, dense or sparse, has; None for anything else."""
    axes: int | None = getattr(x, "ndim", None)
    return axes


def is_plain_sequence(x: Any) -> bool:
    """Whether `x` is a list or a tuple whose items have no names of their own."""
    return isinstance(x, (list, tuple)) and not hasattr(x, "_fields")


def is_indexed(x: Any) -> bool:
    """Whether there are ``len(x)`` and ``x[i]``."""
    return isinstance(x, Sized) and hasattr(x, "__getitem__")


def device(array: Array) -> Any:
    """Where `array` lives; `array.device` is not yet everywhere (Dask)."""
    return array_api_compat.device(array)


def devices_differ(A: Array, B: Array) -> bool:
    """Whether `A` and `B` are known to live apart; inside a JAX transformation a device is None, not known yet.

    An array that is spread over several devices has for device the sharding that says how, with a `device_set`; it
    goes with what lies on some of them, or is spread otherwise.
    """
    a, b = device(A), device(B)
    if a is None or b is None or not bool(a != b):
        return False
    spread = [getattr(d, "device_set", None) for d in (a, b)]
    if spread[0] is None and spread[1] is None:
        return True
    one, other = (set(s) if s is not None else {d} for s, d in zip(spread, (a, b), strict=True))
    return one.isdisjoint(other)


def library(xp: Namespace) -> str:
    """The name of the library whose arrays those of `xp` are."""
    name = xp.__name__.removeprefix("array_api_compat.").partition(".")[0]
    return {"numpy": "NumPy", "torch": "PyTorch", "jax": "JAX", "cupy": "CuPy"}.get(name, name)


def truth(x: Array) -> bool | None:
    """The value of a 0-d array of a boolean, or None where it is traced and has none yet."""
    try:
        return bool(x)
    except (TypeError, ValueError, RuntimeError):  # what frameworks raise then
        return None


def is_floating(xp: Namespace, dtype: Any) -> bool:
    """Whether `dtype` is real or complex floating."""
    return bool(xp.isdtype(dtype, ("real floating", "complex floating")))


def is_complex(xp: Namespace, dtype: Any) -> bool:
    """Whether `dtype` is complex floating."""
    return bool(xp.isdtype(dtype, "complex floating"))


def real_dtype(xp: Namespace, dtype: Any) -> Any:
    """The real dtype of the same precision; `finfo(dtype).dtype` is a string in PyTorch."""
    if not is_complex(xp, dtype):
        return dtype
    return xp.float64 if dtype == xp.complex128 else xp.float32


def conj(xp: Namespace, x: Array) -> Array:
    """Complex conjugate; the standard defines `conj` for complex dtypes only."""
    return xp.conj(x) if is_complex(xp, x.dtype) else x


def real(xp: Namespace, x: Array) -> Array:
    """Real part; the standard defines `real` for complex dtypes only."""
    return xp.real(x) if is_complex(xp, x.dtype) else x


def adjoint(xp: Namespace, X: Array) -> Array:
    """Xᴴ of the last two axes."""
    return conj(xp, xp.matrix_transpose(X))


def abs2(xp: Namespace, x: Array) -> Array:
    """|x|², elementwise, without the square root that `abs` takes of complex numbers."""
    if is_complex(xp, x.dtype):
        return xp.real(x) ** 2 + xp.imag(x) ** 2
    return x * x


def vdot(xp: Namespace, X: Array, Y: Array) -> Array:
    """Column-wise inner products xᵢᴴyᵢ; `vecdot` differs between libraries in the axes it accepts."""
    return xp.sum(conj(xp, X) * Y, axis=0)


def largest(xp: Namespace, x: Array, axis: Any = None, keepdims: bool = False) -> Array:
    """max|x| along `axis`; of real numbers without |x| in between, which costs as much again."""
    if is_complex(xp, x.dtype):
        return xp.max(xp.abs(x), axis=axis, keepdims=keepdims)
    return xp.maximum(xp.max(x, axis=axis, keepdims=keepdims), -xp.min(x, axis=axis, keepdims=keepdims))


def safe_scale(xp: Namespace, x: Array, axis: Any = None) -> Array:
    """max|x| along `axis` (kept), with 1 where it is zero: divide by it before squaring.

    A float32 operator of scale 1e±18 over- or underflows when its entries are squared.
    """
    s = largest(xp, x, axis, keepdims=True)
    return xp.where(s > 0, s, 1.0)


def root(xp: Namespace, x: Array) -> Array:
    """√max(x, 0), with gradient 0 where x ≤ 0: an unbiased estimate of a square may be negative. NaN stays NaN."""
    nothing = x <= 0
    return xp.where(nothing, 0.0, xp.sqrt(xp.where(nothing, 1.0, x)))


def orth(xp: Namespace, Y: Array, Omega: Array | None = None, scale: Array | None = None) -> tuple[Array, Array]:
    """Q and R of Y/max|Y|, `touched` by the probes: orthonormal columns whose span holds that of Y to rounding.

    `scale` is `safe_scale` of Y, where it is known already.
    """
    scale = safe_scale(xp, Y) if scale is None else scale
    return tall_qr(xp, Y / scale if Omega is None else touched(xp, Y, Omega, scale))


def tall_qr(xp: Namespace, Y: Array) -> tuple[Array, Array]:
    """Reduced QR; of a large tall matrix block by block, and then of the blocks' R (TSQR: Demmel and others 2012).

    As stable as Householder's whatever the condition. LAPACK goes over a panel of columns once for each of them, which
    costs twice as much, and more for many rows, where the panel is larger than a cache.
    """
    n, k = Y.shape
    rows = max(512, 8 * k)
    blocks = n // rows if n * k >= LARGE else 1
    if blocks < 2:
        Q, R = xp.linalg.qr(Y)[:2]
        return Q, R
    rows, rest = divmod(n, blocks)
    head, tail = Y[: n - rest, :], Y[n - rest :, :]
    Q, R = xp.linalg.qr(xp.reshape(head, (blocks, rows, k)))[:2]
    R = xp.reshape(R, (blocks * k, k))
    top, R = xp.linalg.qr(xp.concat([R, tail], axis=0) if rest else R)[:2]
    Q = xp.reshape(Q @ xp.reshape(top[: blocks * k, :], (blocks, k, k)), head.shape)
    return (xp.concat([Q, top[blocks * k :, :]], axis=0) if rest else Q), R


def touched(xp: Namespace, Y: Array, Omega: Array, scale: Array) -> Array:
    """Y/scale + εΩ′, scale = max|Y|: a touch of its probes keeps QR's derivative finite where Y is rank-deficient or 0.

    The probes are moved on by a row: columns of Q along Ω itself would make QᴴΩ, and with it all rounding, larger
    by √(n/k).
    """
    return Y / scale + xp.roll(xp.finfo(Y.dtype).eps * Omega, 1, axis=0)


def concat_columns(xp: Namespace, parts: list[Array]) -> Array:
    """Join along the last axis; a single part is returned as it is."""
    return parts[0] if len(parts) == 1 else xp.concat(parts, axis=-1)


def eigvalsh(xp: Namespace, A: Array) -> Array:
    """Eigenvalues of self-adjoint matrices, computed in `doubled` precision; NaN where a matrix is not finite."""
    A, hurt = _finite_matrices(xp, A)
    theta = xp.astype(xp.linalg.eigvalsh(doubled(xp, A)), real_dtype(xp, A.dtype))
    return xp.where(hurt[..., 0], math.nan, theta)


def eigh(xp: Namespace, A: Array) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors of self-adjoint matrices, as `eigvalsh`."""
    A, hurt = _finite_matrices(xp, A)
    theta, U = xp.linalg.eigh(doubled(xp, A))
    theta = xp.astype(theta, real_dtype(xp, A.dtype))
    return xp.where(hurt[..., 0], math.nan, theta), xp.where(hurt, math.nan, xp.astype(U, A.dtype))


def _finite_matrices(xp: Namespace, A: Array) -> tuple[Array, Array]:
    """`A` with zeros for matrices that hold a NaN or an infinity, which LAPACK raises at, and which those are."""
    hurt = ~xp.all(xp.isfinite(A), axis=(-2, -1), keepdims=True)
    return xp.where(hurt, xp.zeros_like(A), A), hurt


def doubled(xp: Namespace, A: Array) -> Array:
    """`A` in double precision where its device has that.

    LAPACK's divide and conquer underflows in single precision on kernels of dead units, rows of zeros among others,
    and then PyTorch raises "failed to converge".
    """
    known = xp.__array_namespace_info__().dtypes(device=device(A))
    name = "complex128" if is_complex(xp, A.dtype) else "float64"
    return xp.astype(A, known[name]) if name in known else A
