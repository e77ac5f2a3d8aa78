"""CoLA's operators in and out (cola-ml ≥ 0.0.7).

>>> import torch, cola, traceest as te
>>> A = cola.PSD(cola.ops.Diagonal(torch.arange(1.0, 5.0)))
>>> float(te.trace(A))
10.0
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import cola
from cola.backends import np_fns

import traceest as te
from traceest import _array_api as aa
from traceest_adapters.interop._export import ARRAYS, adjoint_of, known_of, outgoing

FUNCTIONS = {"NumPy": "np_fns", "JAX": "jax_fns", "PyTorch": "torch_fns"}


def from_cola(A: cola.ops.LinearOperator) -> te.Operator:
    """A CoLA operator as one of traceest's, on the arrays that it works on.

    What `traceest.aslinearoperator`, and with it every estimator, calls when it is given one. Products are
    ``A @ X`` and ``A.H @ X``. Where JAX is installed, CoLA takes NumPy's arrays for JAX's, and so does this.

    Parameters
    ----------
    A : cola.ops.LinearOperator, (n_rows, n_cols)
        Annotated `cola.SelfAdjoint` or `cola.PSD` if you know it to be.

    Returns
    -------
    traceest.Operator, (n_rows, n_cols)
        With the adjoint side where CoLA has a product from the left, is annotated as self-adjoint, or can transpose.

    Raises
    ------
    TypeError
        If A is no operator.

    Examples
    --------
    >>> import torch, cola
    >>> A = from_cola(cola.PSD(cola.ops.Dense(torch.eye(3))))
    >>> A.shape, A.psd
    ((3, 3), True)
    """
    if not isinstance(A, cola.ops.LinearOperator):
        raise TypeError(f"from_cola: expected a cola.ops.LinearOperator, got {type(A).__name__}.")
    symmetric = A.isa(cola.SelfAdjoint)
    # By default CoLA transposes by automatic differentiation, which NumPy does not have.
    transposes = A.xnp is not np_fns or type(A)._rmatmat is not cola.ops.LinearOperator._rmatmat
    return te.Operator(
        A.shape,
        like=A.xnp.zeros((0,), dtype=A.dtype, device=A.device),
        matmat=A.__matmul__,
        rmatmat=A.__matmul__ if symmetric else (lambda X: A.H @ X) if transposes else None,
        symmetric=symmetric,
        psd=A.isa(cola.PSD),
        name=type(A).__name__,
    )


class ColaOperator(cola.ops.LinearOperator):  # type: ignore[misc]
    """What `to_cola` makes: products from the right by `matmat`, from the left by `rmatmat`."""

    def __init__(self, A: Any, annotations: set[Any]) -> None:
        super().__init__(A.dtype, A.shape, annotations=annotations)
        # CoLA guesses the library from the dtype, and guesses wrong where NumPy and JAX share it.
        xp = aa.namespace(A)
        library = next(name for name, is_it in ARRAYS.items() if is_it(xp))
        self.xnp = import_module(f"cola.backends.{FUNCTIONS[library]}")
        self.device = self.xnp.get_default_device() if aa.device(A) is None else aa.device(A)
        self.operator = A

    def _matmat(self, X: Any) -> Any:
        return self.operator.matmat(X)

    def _rmatmat(self, X: Any) -> Any:
        adjoint = adjoint_of(self.operator)
        if adjoint is None:
            return super()._rmatmat(X)
        xp = aa.namespace(self.operator)
        return aa.adjoint(xp, adjoint(aa.adjoint(xp, X)))


def to_cola(A: Any) -> ColaOperator:
    """A as a CoLA operator, for its algebra and its `eig`, `inv`, `logdet` and others.

    Parameters
    ----------
    A : operator, (n_rows, n_cols)
        Anything that `traceest.aslinearoperator` takes, of NumPy, JAX or PyTorch arrays, with `matmat`.

    Returns
    -------
    cola.ops.LinearOperator, (n_rows, n_cols)
        Annotated `cola.PSD` or `cola.SelfAdjoint` where A is known to be.

    Raises
    ------
    TypeError
        If A is not of these arrays, or has no `matmat`.

    Examples
    --------
    >>> import torch, cola, traceest as te
    >>> K = to_cola(te.gram(torch.arange(6.0, dtype=torch.float64).reshape(3, 2)))
    >>> K.isa(cola.PSD), round(float(cola.eigmax(K)), 3)
    (True, 54.56)
    """
    A = outgoing(A, "to_cola", *FUNCTIONS)
    known = known_of(A)
    annotations = {cola.PSD} if known["psd"] else {cola.SelfAdjoint} if known["symmetric"] else set()
    return ColaOperator(A, annotations)
