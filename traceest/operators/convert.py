"""`aslinearoperator`: everything that can be multiplied by becomes an operator."""

from __future__ import annotations

from typing import Any

import numpy as np

from traceest import _array_api as aa
from traceest import _backends
from traceest._boundary import public
from traceest.operators.base import Delegating, Derived, Operator
from traceest.operators.boundary import Guarded, Promise, is_ours, plain_array
from traceest.operators.dense import DenseOperator
from traceest.operators.foreign import Foreign


@public
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
        operators that have no one dtype and device, for masked arrays with masked entries.
    ValueError
        For arrays that are not 2-D, for a `like` that is no vector and no matrix, for `n_blocks` that do not divide the
        rows.

    Notes
    -----
    Functions, and objects of classes that are not this library's, are given copies, and their answers are copied: they
    may write into their argument, or into one array of theirs again and again. Each answer has to have the shape,
    dtype, library and device asked for; ``like`` says which. Otherwise it raises ValueError or TypeError when made.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = te.aslinearoperator(lambda X: 3 * X, like=np.zeros((5, 1)), psd=True)
    >>> A.shape
    (5, 5)
    """
    known: dict[str, Any] = {"symmetric": symmetric, "psd": psd}
    if isinstance(A, np.ndarray) and type(A) is not np.ndarray:
        A = plain_array(A, "aslinearoperator")
    if _conforms(A):
        A = A if is_ours(A) else Foreign(A)
        return A if not (symmetric or psd or n_blocks) else _declare(A, n_blocks, **known)
    is_array = aa.is_array(A)
    if n_blocks is not None and not is_array:
        raise ValueError(
            f"aslinearoperator: n_blocks= is for arrays, got a {type(A).__name__}; make an Operator that has n_blocks "
            "and block_rmatmat of its own."
        )
    if is_array:
        op: Operator = _from_array(A, n_blocks, **known)
    elif like is None and (convert := _backends.conversion(A)) is not None:
        op = aslinearoperator(convert(A), **known)
    elif callable(A) and not _has(A, "shape"):
        op = _from_function(A, like, shape, adjoint, **known)
    elif _has(A, "shape") and _has(A, "matmat", "rmatmat", "matvec", "__matmul__"):
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
    if _conforms(obj) or aa.n_axes(obj) == 2 or _has(obj, "matvec"):
        return True
    return _backends.conversion(obj) is not None


def _conforms(A: Any) -> bool:
    if isinstance(A, Operator):
        return True
    return _has(A, "matmat", "rmatmat", "factor") and _has(A, "__array_namespace__") and _has(A, "device")


def _has(A: Any, *names: str) -> bool:
    """Whether an object of any kind has an attribute of one of these names."""
    return any(hasattr(A, name) for name in names)


def _is_scipy(A: Any) -> bool:
    return type(A).__module__.startswith("scipy.")


def _declare(A: Any, n_blocks: int | None, **known: Any) -> Operator:
    """The same products with more known of them; a Gram operator knows all already."""
    known = {"symmetric": A.symmetric or known["symmetric"], "psd": A.psd or known["psd"]}
    if isinstance(A, DenseOperator):
        return _from_array(A.array, n_blocks or A.n_blocks, **known)
    if n_blocks not in (None, A.n_blocks):
        raise ValueError(
            f"aslinearoperator: {A!r} cannot be split into n_blocks = {n_blocks} from outside, its products decide; "
            "give the array, or an Operator that has n_blocks and block_rmatmat of its own."
        )
    return A if A.factor is not None else Delegating(A, **known)


def _from_array(A: Any, n_blocks: int | None, **known: Any) -> Operator:
    if A.ndim != 2:
        raise ValueError(f"aslinearoperator: an operator is a 2-D array, got shape {tuple(A.shape)}.")
    if n_blocks is not None and (n_blocks < 1 or A.shape[0] % n_blocks):
        raise ValueError(
            f"aslinearoperator: n_blocks = {n_blocks} does not divide the {A.shape[0]} rows into equal contiguous runs."
        )
    return DenseOperator(A, n_blocks=n_blocks, **known)


def _from_function(f: Any, like: Any, shape: Any, adjoint: Any, **known: Any) -> Operator:
    like = plain_array(like, "aslinearoperator: like=") if isinstance(like, np.ndarray) else like
    _check_like(like, shape)
    shape = (like.shape[0], like.shape[0]) if shape is None else (int(shape[0]), int(shape[1]))
    name = f.__name__ if _has(f, "__name__") else "function"
    promise = Promise(shape, like.dtype, None, name)
    sides: dict[str, Any] = {"matmat": Guarded(f, "matmat", promise, by_column=like.ndim == 1)}
    if adjoint is not None:
        sides["rmatmat"] = Guarded(adjoint, "rmatmat", promise, by_column=like.ndim == 1)
    elif known["symmetric"] or known["psd"]:
        sides["rmatmat"] = sides["matmat"]
    return Operator(shape, like=like, name=name, **sides, **known)


def _check_like(like: Any, shape: Any) -> None:
    """Raise unless `like` tells namespace, dtype and whether the function is of vectors or of matrices."""
    if like is None:
        raise TypeError(
            "aslinearoperator: a bare function needs like=, an array that tells namespace, dtype, device and, if "
            "shape= is absent, the size: like=np.zeros((n, 1)) for a function of (n, k) matrices, "
            "like=np.zeros(n) for a function of vectors."
        )
    if not aa.is_array(like):
        raise TypeError(
            f"aslinearoperator: like= must be an array, got {type(like).__name__}; np.zeros((n, 1)) is one."
        )
    if like.ndim not in (1, 2):
        raise ValueError(
            f"aslinearoperator: like= has shape {tuple(like.shape)}; an operator takes vectors (a 1-D like=) or "
            "matrices of one vector a column (2-D). Of a function of fields, such as images, make one of vectors: "
            "lambda v: f(v.reshape(shape)).reshape(-1), with like=field.reshape(-1)."
        )
    if not aa.is_floating(aa.namespace(like), like.dtype):
        raise TypeError(
            f"aslinearoperator: like= has dtype {like.dtype}, which is not floating, and probes in it would be "
            "rounded; give like= of the floating dtype that the function works in."
        )
    if shape is not None and len(shape) != 2:
        raise ValueError(f"aslinearoperator: shape= must be (n_rows, n_cols), got {shape!r}.")


def _from_object(A: Any, like: Any, **known: Any) -> Operator:
    if len(A.shape) != 2:
        raise ValueError(f"aslinearoperator: an operator has rows and columns, got shape {tuple(A.shape)}.")
    like = _like_of(A) if like is None else like
    known = {flag: known[flag] or getattr(A, flag, False) is True for flag in known}
    name = type(A).__name__
    sides = {side: product for side, product in _sides(A).items() if product is not None}
    if _is_sparse(A):  # SciPy's own products change nothing and give new arrays
        return Derived(A.shape, like=like, name=name, **{side: f for side, (f, _) in sides.items()}, **known)
    promise = Promise((int(A.shape[0]), int(A.shape[1])), like.dtype, None, name)
    guarded: dict[str, Any] = {
        side: Guarded(f, side, promise, by_column=by_column) for side, (f, by_column) in sides.items()
    }
    return Operator(A.shape, like=like, name=name, **guarded, **known)


def _like_of(A: Any) -> Any:
    """An array of the library that the object is of, or NumPy's, in the object's dtype."""
    backend = _backends.find(A)
    if backend is not None and (like := backend.like(A)) is not None:
        return like
    try:
        return np.empty(0, dtype=A.dtype if _has(A, "dtype") and A.dtype is not None else np.float64)
    except TypeError as error:
        raise TypeError(
            f"aslinearoperator: {type(A).__name__} has dtype {A.dtype!r}, which NumPy does not know; give like=, an "
            "array of the library and dtype that it multiplies."
        ) from error


def _sides(A: Any) -> dict[str, tuple[Any, bool] | None]:
    """A foreign object's products, each with whether it is one of vectors; None where there is none."""
    if _is_sparse(A):
        return {"matmat": (A.__matmul__, False), "rmatmat": (A.conj().T.__matmul__, False)}
    matmat: tuple[Any, bool] | None
    forward, reverse = _scipy_columnwise(A)
    if _has(A, "matmat") and not forward:
        matmat = A.matmat, False
    elif _has(A, "__matmul__") and not forward:
        matmat = A.__matmul__, False
    else:
        matmat = (A.matvec, True) if _has(A, "matvec") else None
    rmatmat = None
    if _has(A, "rmatmat") and not reverse:
        rmatmat = (A.rmatmat, False) if _scipy_has_adjoint(A) else None
    elif _has(A, "rmatvec"):
        rmatmat = (A.rmatvec, True) if _scipy_has_adjoint(A) else None
    elif _backends.find(A) is not None and _has(A, "T") and tuple(A.T.shape) == tuple(A.shape[::-1]):
        rmatmat = _transposed(A), False  # a framework's sparse array
    return {"matmat": matmat, "rmatmat": rmatmat}


def _transposed(A: Any) -> Any:
    """X ↦ Aᴴ X by the transpose."""

    def rmatmat(X: Any) -> Any:
        xp = aa.namespace(X)
        return aa.conj(xp, A.T @ aa.conj(xp, X))

    return rmatmat


def _is_sparse(A: Any) -> bool:
    return _is_scipy(A) and _has(A, "tocsr")


def _scipy_columnwise(A: Any) -> tuple[bool, bool]:
    """Whether a LinearOperator multiplies matrices a column at a time, forward and by its adjoint.

    SciPy joins the columns after the last product, which a function that writes into one array has overwritten by then.
    """
    base = next(
        (c for c in type(A).__mro__ if c.__name__ == "LinearOperator" and c.__module__.startswith("scipy")), None
    )
    if base is None:
        return False, False
    if type(A).__name__ == "_CustomLinearOperator":
        given = [vars(A).get(f"_CustomLinearOperator__{f}_impl") for f in ("matmat", "rmatmat")]
        return given[0] is None, given[1] is None
    parts = [part for part in vars(A).get("args", ()) if isinstance(part, base)]
    if parts:  # a sum, product, multiple or adjoint of others
        columnwise = any(any(_scipy_columnwise(part)) for part in parts)
        return columnwise, columnwise
    return not _overridden(A, base, "_matmat", "matmat"), not _overridden(A, base, "_rmatmat", "rmatmat", "_adjoint")


def _overridden(A: Any, base: type, *names: str) -> bool:
    """Whether the class of A has a method of its own where `base` has one of these."""
    return any(getattr(type(A), name, None) is not getattr(base, name, None) for name in names)


def _scipy_has_adjoint(A: Any) -> bool:
    """SciPy's LinearOperator always has the method `rmatmat`; whether it works shows in what was overridden.

    Trying it out would cost a product that the user's count would see and ours would not.
    """
    if not any(c.__module__.startswith("scipy.sparse.linalg") for c in type(A).__mro__):
        return True
    given = [vars(A).get(f"_CustomLinearOperator__{f}_impl") for f in ("rmatvec", "rmatmat")]
    if type(A).__name__ == "_CustomLinearOperator":
        return any(f is not None for f in given)
    base = next(c for c in type(A).__mro__ if c.__name__ == "LinearOperator")
    return _overridden(A, base, "_rmatvec", "_rmatmat", "_adjoint", "rmatvec", "rmatmat")
