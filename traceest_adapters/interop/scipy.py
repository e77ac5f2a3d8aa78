"""Operators as SciPy's, for `scipy.sparse.linalg`: eigsh, svds, cg, lsqr and the others.

The way in needs no adapter: `traceest.aslinearoperator` takes SciPy's operators and sparse arrays.

>>> import numpy as np, scipy.sparse.linalg, torch
>>> from traceest_adapters.torch import ntk
>>> model = torch.nn.Linear(4, 2)
>>> K = to_scipy(ntk(model, torch.ones(10, 4)))
>>> values = scipy.sparse.linalg.eigsh(K, k=2, return_eigenvectors=False)
>>> bool(np.allclose(values, 50, rtol=1e-4))
True
"""

from __future__ import annotations

from typing import Any

from scipy.sparse.linalg import LinearOperator

from traceest_adapters.interop._export import adjoint_of, host_dtype, known_of, on_host, outgoing


def to_scipy(A: Any) -> LinearOperator:
    """A as a `scipy.sparse.linalg.LinearOperator`, on NumPy copies of its vectors.

    For SciPy's solvers on an operator of any backend and device: ``eigsh(to_scipy(K), k)``, ``svds(to_scipy(J), k)``,
    ``cg(to_scipy(K + 0.1 * te.identity(n, like=K)), y)``. A product is one of A's and two copies, of X and of A X; k
    columns are one product. A real operator takes complex vectors, a product with real and imaginary parts together.

    Parameters
    ----------
    A : operator, (n_rows, n_cols)
        Anything that `traceest.aslinearoperator` takes, with `matmat`.

    Returns
    -------
    scipy.sparse.linalg.LinearOperator, (n_rows, n_cols)
        With `rmatvec` and `rmatmat` where A has its adjoint side or is self-adjoint. Its dtype is A's precision in
        NumPy (float32 for half precision). What is known of A it carries as attributes `symmetric` and `psd`, which
        `traceest.aslinearoperator` reads.

    Raises
    ------
    TypeError
        If A has no `matmat`.

    Examples
    --------
    >>> import numpy as np, scipy.sparse.linalg, traceest as te
    >>> K = te.gram(np.arange(6.0).reshape(3, 2))
    >>> scipy.sparse.linalg.eigsh(to_scipy(K), k=1, return_eigenvectors=False).round(3)
    array([54.56])
    """
    A = outgoing(A, "to_scipy")
    adjoint = adjoint_of(A)
    forward, reverse = on_host(A, A.matmat), None if adjoint is None else on_host(A, adjoint)
    op = LinearOperator(
        A.shape,
        matvec=_vectors(forward),
        rmatvec=None if reverse is None else _vectors(reverse),
        matmat=forward,
        rmatmat=reverse,
        dtype=host_dtype(A),
    )
    for name, value in known_of(A).items():
        setattr(op, name, value)
    return op


def _vectors(matmat: Any) -> Any:
    return lambda x: matmat(x.reshape(-1, 1))[:, 0]
