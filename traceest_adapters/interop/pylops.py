"""PyLops' operators in and out (pylops ≥ 2.0).

>>> import numpy as np, pylops, traceest as te
>>> D = pylops.FirstDerivative(100, dtype="float64")
>>> e = te.frobenius_norm(te.gram(D), n_probes=8, rng=0)
>>> e.n_rmatvecs
8
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pylops

import traceest as te
from traceest_adapters.interop._export import adjoint_of, host_dtype, known_of, on_host, outgoing


def from_pylops(A: pylops.LinearOperator) -> te.Operator:
    """A PyLops operator as one of traceest's, on NumPy arrays.

    What `traceest.aslinearoperator`, and with it every estimator, calls when it is given one. Products are
    `A.matmat` and `A.rmatmat`. An operator that works on other arrays (CuPy, JAX) says so by
    ``aslinearoperator(A, like=array)``. PyLops knows no symmetry: declare it, ``aslinearoperator(A, psd=True)``.

    Parameters
    ----------
    A : pylops.LinearOperator, (n_rows, n_cols)
        Linear over its dtype.

    Returns
    -------
    traceest.Operator, (n_rows, n_cols)

    Raises
    ------
    TypeError
        If A has no dtype, or is complex and linear over the reals alone.

    Examples
    --------
    >>> import numpy as np, pylops, traceest as te
    >>> float(te.exact(from_pylops(pylops.Diagonal(np.arange(4.0)))))
    6.0
    """
    if not isinstance(A, pylops.LinearOperator):
        raise TypeError(f"from_pylops: expected a pylops.LinearOperator, got {type(A).__name__}.")
    if getattr(A, "dtype", None) is None:
        raise TypeError(f"from_pylops: {A!r} has no dtype; give it one when it is made, dtype='float64'.")
    if not A.clinear and np.issubdtype(np.dtype(A.dtype), np.complexfloating):
        raise TypeError(
            f"from_pylops: {A!r} is linear over the reals alone (clinear=False), so it is no complex matrix; give it "
            "vectors of real and imaginary parts, or its real form."
        )
    one_sided = isinstance(A, pylops.FunctionOperator) and A.fc is None
    known: dict[str, Any] = {name: vars(A).get(name) is True for name in ("symmetric", "psd")}
    return te.Operator(
        A.shape,
        like=np.empty(0, dtype=A.dtype),
        matmat=A.matmat,
        rmatmat=None if one_sided else A.rmatmat,
        name=type(A).__name__,
        **known,
    )


class PylopsOperator(pylops.LinearOperator):  # type: ignore[misc]
    """What `to_pylops` makes: an operator of any backend, on NumPy copies of its vectors."""

    def __init__(self, A: Any) -> None:
        adjoint = adjoint_of(A)
        self._forward = on_host(A, A.matmat)
        self._reverse = None if adjoint is None else on_host(A, adjoint)
        super().__init__(dtype=host_dtype(A), shape=A.shape)
        self.symmetric, self.psd = known_of(A).values()

    def _matmat(self, X: Any) -> Any:
        return self._forward(X)

    def _rmatmat(self, X: Any) -> Any:
        if self._reverse is None:
            raise NotImplementedError("the operator has no rmatmat, and is not known to be self-adjoint")
        return self._reverse(X)

    def _matvec(self, x: Any) -> Any:
        return self._matmat(x.reshape(-1, 1))[:, 0]

    def _rmatvec(self, x: Any) -> Any:
        return self._rmatmat(x.reshape(-1, 1))[:, 0]


def to_pylops(A: Any) -> PylopsOperator:
    """A as a PyLops operator, for its solvers and its algebra, on NumPy copies of vectors.

    Parameters
    ----------
    A : operator, (n_rows, n_cols)
        Anything that `traceest.aslinearoperator` takes, of any backend, with `matmat`.

    Returns
    -------
    pylops.LinearOperator, (n_rows, n_cols)
        k columns are one product. What is known of A it carries as attributes `symmetric` and `psd`.

    Raises
    ------
    TypeError
        If A has no `matmat`.

    Examples
    --------
    >>> import numpy as np
    >>> A = to_pylops(np.array([[2.0, 0.0], [0.0, 4.0]]))
    >>> A / np.array([2.0, 8.0])
    array([1., 2.])
    """
    return PylopsOperator(outgoing(A, "to_pylops"))
