"""`aslinearoperator`: everything that can be multiplied by becomes an operator."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

from traceest import _array_api as aa
from traceest import _backends
from traceest._settings import usual
from traceest.operators.base import ABILITIES, Operator
from traceest.operators.dense import DenseOperator


@usual
def aslinearoperator(
    A: Any,
    *,
    like: Any = None,
    shape: tuple[int, int] | None = None,
    adjoint: Any = None,
    symmetric: bool = False,
    psd: bool = False,
    n_blocks: int | None = None,
) -> Any:
    """Make an operator of an array, another library's operator, an object with products, or a function.

    Parameters
    ----------
    A : array, SciPy sparse matrix or LinearOperator, operator of another library, object, or callable
        An Array-API array (NumPy, JAX, PyTorch, CuPy, Dask, array-api-strict); a SciPy object; an operator of
        PyLops, Lineax, CoLA, linear_operator or curvlinops (whose facts, symmetric and positive semidefinite, are
        taken over); any object with `shape` and one of `matmat`, `rmatmat`, `matvec`, ``@``; or a function
        X ↦ A X. What conforms already is returned as it is.
    like : array, optional
        Namespace, dtype and device for a function or a foreign object (default there: those of its library, or
        NumPy and the object's own dtype). For a function of vectors, give a vector ``like``: it is then called once
        a column; with a 2-D ``like`` it is given (n_cols, k) matrices, which is faster.
    shape : (int, int), optional
        Shape of a function's operator; default: square, with ``like.shape[0]`` rows.
    adjoint : callable, optional
        For a function: X ↦ Aᴴ X.
    symmetric, psd : bool
        Declare what you know: self-adjoint, positive semidefinite.
    n_blocks : int, optional
        Rows fall into this many contiguous runs of equal length (for an array).

    Returns
    -------
    LinearOperator or Jacobian

    Raises
    ------
    TypeError
        For integer dtypes, for functions without `like`, for objects with no product, for another library's
        operators that have no one dtype and device.
    ValueError
        For arrays that are not 2-D, for `n_blocks` that do not divide the rows.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = te.aslinearoperator(lambda X: 3 * X, like=np.zeros((5, 1)), psd=True)
    >>> A.shape
    (5, 5)
    """
    known: dict[str, Any] = {"symmetric": symmetric, "psd": psd}
    if _conforms(A):
        return A if not (symmetric or psd or n_blocks) else _declare(A, n_blocks, **known)
    is_array = array_api_compat.is_array_api_obj(A) and not _is_scipy(A)
    if n_blocks is not None and not is_array:
        raise ValueError(
            f"aslinearoperator: n_blocks= is for arrays, got a {type(A).__name__}; make an Operator that has n_blocks "
            "and block_rmatmat of its own."
        )
    if is_array:
        op: Operator = _from_array(A, n_blocks, **known)
    elif like is None and (convert := _backends.conversion(A)) is not None:
        op = aslinearoperator(convert(A), **known)
    elif callable(A) and not hasattr(A, "shape"):
        op = _from_function(A, like, shape, adjoint, **known)
    elif hasattr(A, "shape") and any(hasattr(A, p) for p in ("matmat", "rmatmat", "matvec", "__matmul__")):
        op = _from_object(A, like, **known)
    else:
        raise TypeError(
            f"aslinearoperator: cannot multiply by a {type(A).__name__}; give an array, a SciPy sparse matrix or "
            "LinearOperator, an object with shape and matmat, or a function together with like=."
        )
    if not aa.is_floating(aa.namespace(op), op.dtype):
        raise TypeError(
            f"aslinearoperator: dtype {op.dtype} is not floating, and estimates would be rounded or overflow; "
            "convert the operator to a real or complex floating dtype first."
        )
    return op


def is_convertible(obj: Any) -> bool:
    """Whether `obj` can be an operand of lazy algebra: an operator, a 2-D array, or another library's operator."""
    is_operator = _conforms(obj) or hasattr(obj, "matvec") or getattr(obj, "ndim", None) == 2
    return is_operator or _backends.conversion(obj) is not None


def _conforms(A: Any) -> bool:
    # A Gram operator of a one-sided J, and a product of two, have none of their own and are used through their factors.
    is_operator = isinstance(A, Operator) or any(hasattr(A, p) for p in ("matmat", "rmatmat", "factor"))
    return is_operator and hasattr(A, "__array_namespace__") and hasattr(A, "device")


def _is_scipy(A: Any) -> bool:
    return type(A).__module__.startswith("scipy.")


def _declare(A: Any, n_blocks: int | None, **known: Any) -> Operator:
    """The same products with more known of them; a Gram operator knows all already."""
    known = {flag: known[flag] or getattr(A, flag, False) for flag in known}
    if isinstance(A, DenseOperator):
        return _from_array(A.array, n_blocks or A.n_blocks, **known)
    if n_blocks not in (None, getattr(A, "n_blocks", None)):
        raise ValueError(
            f"aslinearoperator: {A!r} cannot be split into n_blocks = {n_blocks} from outside, its products decide; "
            "give the array, or an Operator that has n_blocks and block_rmatmat of its own."
        )
    if hasattr(A, "factor"):
        return A
    abilities: dict[str, Any] = {p: getattr(A, p, None) for p in ("matmat", "rmatmat", *ABILITIES)}
    name, blocks = getattr(A, "name", type(A).__name__), n_blocks or getattr(A, "n_blocks", None)
    return Operator(A.shape, like=A, n_blocks=blocks, name=name, **abilities, **known)


def _from_array(A: Any, n_blocks: int | None, **known: Any) -> Operator:
    if A.ndim != 2:
        raise ValueError(f"aslinearoperator: an operator is a 2-D array, got shape {tuple(A.shape)}.")
    if n_blocks is not None and (n_blocks < 1 or A.shape[0] % n_blocks):
        raise ValueError(
            f"aslinearoperator: n_blocks = {n_blocks} does not divide the {A.shape[0]} rows into equal contiguous runs."
        )
    return DenseOperator(A, n_blocks=n_blocks, **known)


def _from_function(f: Any, like: Any, shape: Any, adjoint: Any, **known: Any) -> Operator:
    if like is None:
        raise TypeError(
            "aslinearoperator: a bare function needs like=, an array that tells namespace, dtype, device and, if "
            "shape= is absent, the size: like=np.zeros((n, 1)) for a function of (n, k) matrices, "
            "like=np.zeros(n) for a function of vectors."
        )
    shape = (like.shape[0], like.shape[0]) if shape is None else shape
    xp = aa.namespace(like)
    wrap = _columnwise(xp) if like.ndim == 1 else lambda g: g
    matmat = wrap(f)
    rmatmat = wrap(adjoint) if adjoint is not None else (matmat if known["symmetric"] or known["psd"] else None)
    return Operator(shape, like=like, matmat=matmat, rmatmat=rmatmat, name=getattr(f, "__name__", "function"), **known)


def _from_object(A: Any, like: Any, **known: Any) -> Operator:
    if like is None:
        like = np.empty(0, dtype=getattr(A, "dtype", None) or np.float64)
    xp = aa.namespace(like)
    if hasattr(A, "matmat"):
        matmat = A.matmat
    elif hasattr(A, "__matmul__"):
        matmat = A.__matmul__
    else:
        matmat = _columnwise(xp)(A.matvec) if hasattr(A, "matvec") else None
    known = {flag: known[flag] or getattr(A, flag, False) is True for flag in known}
    return Operator(A.shape, like=like, matmat=matmat, rmatmat=_adjoint_of(A, xp), name=type(A).__name__, **known)


def _adjoint_of(A: Any, xp: Any) -> Any:
    """X ↦ Aᴴ X of a foreign object, or None where it has no adjoint."""
    if _is_scipy(A) and hasattr(A, "tocsr"):  # a sparse matrix
        return A.conj().T.__matmul__
    if hasattr(A, "rmatmat"):
        return A.rmatmat if _scipy_has_adjoint(A) else None
    if hasattr(A, "rmatvec"):
        return _columnwise(xp)(A.rmatvec)
    return None


def _scipy_has_adjoint(A: Any) -> bool:
    """SciPy's LinearOperator always has the method `rmatmat`; whether it works shows in what was overridden.

    Trying it out would cost a product that the user's count would see and ours would not.
    """
    if not any(c.__module__.startswith("scipy.sparse.linalg") for c in type(A).__mro__):
        return True
    given = [getattr(A, f"_CustomLinearOperator__{f}_impl", None) for f in ("rmatvec", "rmatmat")]
    if type(A).__name__ == "_CustomLinearOperator":
        return any(f is not None for f in given)
    base = next(c for c in type(A).__mro__ if c.__name__ == "LinearOperator")
    overridable = ("_rmatvec", "_rmatmat", "_adjoint", "rmatvec", "rmatmat")
    return any(getattr(type(A), f, None) is not getattr(base, f, None) for f in overridable)


def _columnwise(xp: Any) -> Any:
    """A function of vectors as one of matrices: it can only be called once a column."""

    def wrap(f: Any) -> Any:
        return lambda X: xp.stack([f(X[:, i]) for i in range(X.shape[1])], axis=1)

    return wrap
