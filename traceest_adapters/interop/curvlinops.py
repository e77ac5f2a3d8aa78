"""The curvature operators of curvlinops in and out (curvlinops-for-pytorch ≥ 3.0).

>>> import torch, traceest as te
>>> from curvlinops import GGNLinearOperator
>>> model, data = torch.nn.Linear(3, 2), [(torch.ones(4, 3), torch.zeros(4, 2))]
>>> G = GGNLinearOperator(model, torch.nn.MSELoss(), list(model.parameters()), data)
>>> round(float(te.trace(G)), 4)
8.0
"""

from __future__ import annotations

from typing import Any

import torch
from curvlinops import (
    EFLinearOperator,
    FisherMCLinearOperator,
    GGNLinearOperator,
    JacobianLinearOperator,
    KFACLinearOperator,
)

import traceest as te
from traceest_adapters.interop._export import adjoint_of, both_sides, known_of, outgoing

PyTorchLinearOperator: Any = JacobianLinearOperator.__mro__[-2]  # the base class has no public name
PSD = (EFLinearOperator, FisherMCLinearOperator, KFACLinearOperator)
"""Sums of squares of gradients, and Kronecker products of such (EKFAC, with squares for eigenvalues, is a KFAC too)."""
CONVEX = (torch.nn.MSELoss, torch.nn.CrossEntropyLoss, torch.nn.BCEWithLogitsLoss)
"""Losses that make a Gauss-Newton matrix positive semidefinite."""


def from_curvlinops(A: Any) -> te.Operator:
    """A Hessian, GGN, Fisher matrix or Jacobian of curvlinops as one of traceest's operators, on PyTorch tensors.

    What `traceest.aslinearoperator`, and with it every estimator, calls when it is given one. Products are
    ``A @ X`` and ``A.adjoint() @ X``; one of k columns goes through the data once.

    Parameters
    ----------
    A : curvlinops operator, (n_rows, n_cols)
        Its parameters on one device, of one dtype.

    Returns
    -------
    traceest.Operator, (n_rows, n_cols)
        Symmetric where curvlinops says self-adjoint; positive semidefinite: Fisher matrices, (E)KFAC, and the GGN of
        the mean squared error and of the cross-entropies. Of others declare it, ``aslinearoperator(A, psd=True)``.

    Raises
    ------
    TypeError
        If A's parameters have several devices or dtypes, or A is no operator.

    Examples
    --------
    >>> import torch
    >>> from curvlinops import HessianLinearOperator
    >>> model, data = torch.nn.Linear(3, 2), [(torch.ones(4, 3), torch.zeros(4, 2))]
    >>> A = from_curvlinops(HessianLinearOperator(model, torch.nn.MSELoss(), list(model.parameters()), data))
    >>> A.shape, A.symmetric, A.psd
    ((8, 8), True, False)
    """
    if not isinstance(A, PyTorchLinearOperator):
        raise TypeError(f"from_curvlinops: expected an operator of curvlinops, got {type(A).__name__}.")
    try:
        device, dtype = A.device, A.dtype
    except RuntimeError as e:
        raise TypeError(
            f"from_curvlinops: {type(A).__name__} has no one device and dtype ({e}); move and convert the model's "
            "parameters first, or make an operator of each device's parameters."
        ) from e
    symmetric = bool(A.SELF_ADJOINT)
    adjoint = None if symmetric else _adjoint(A)
    return te.Operator(
        A.shape,
        like=torch.empty(0, dtype=dtype, device=device),
        matmat=A.__matmul__,
        rmatmat=A.__matmul__ if symmetric else None if adjoint is None else adjoint.__matmul__,
        symmetric=symmetric,
        psd=_is_psd(A),
        name=type(A).__name__,
    )


def _adjoint(A: Any) -> Any:
    try:
        return A.adjoint()
    except NotImplementedError:
        return None


def _is_psd(A: Any) -> bool:
    if isinstance(A, CurvlinopsOperator):
        return A.psd
    return isinstance(A, PSD) or (isinstance(A, GGNLinearOperator) and isinstance(A._loss_func, CONVEX))


class CurvlinopsOperator(PyTorchLinearOperator):  # type: ignore[misc]
    """What `to_curvlinops` makes."""

    def __init__(self, A: Any) -> None:
        super().__init__([(A.shape[1],)], [(A.shape[0],)])
        self.operator = A
        self.SELF_ADJOINT, self.psd = known_of(A).values()

    @property
    def device(self) -> torch.device:
        """Where products are taken."""
        return self.operator.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the products."""
        return self.operator.dtype

    def _matmat(self, X: list[torch.Tensor]) -> list[torch.Tensor]:
        return [self.operator.matmat(X[0])]

    def _adjoint(self) -> CurvlinopsOperator:
        if adjoint_of(self.operator) is None:
            raise NotImplementedError(f"an adjoint needs rmatmat, which {self.operator!r} lacks")
        return CurvlinopsOperator(both_sides(self.operator).H)


def to_curvlinops(A: Any) -> CurvlinopsOperator:
    """A as an operator of curvlinops, for its inverses and its algebra.

    Parameters
    ----------
    A : operator, (n_rows, n_cols)
        Anything that `traceest.aslinearoperator` takes, of PyTorch tensors, with `matmat`.

    Returns
    -------
    curvlinops operator, (n_rows, n_cols)
        On tensors (n_cols, k); `SELF_ADJOINT` where A is known to be.

    Raises
    ------
    TypeError
        If A is not of PyTorch tensors, or has no `matmat`.

    Examples
    --------
    >>> import torch, traceest as te
    >>> from curvlinops import CGInverseLinearOperator
    >>> K = te.gram(torch.eye(3)) + te.identity(3, like=torch.empty(0))
    >>> CGInverseLinearOperator(to_curvlinops(K)) @ torch.ones(3)
    tensor([0.5000, 0.5000, 0.5000])
    """
    return CurvlinopsOperator(outgoing(A, "to_curvlinops", "PyTorch"))
