"""GPyTorch's linear_operator in and out (linear_operator ≥ 0.6).

>>> import torch, traceest as te
>>> from linear_operator.operators import RootLinearOperator
>>> float(te.trace(RootLinearOperator(torch.arange(6.0).reshape(3, 2))))
55.0
"""

from __future__ import annotations

from typing import Any

import linear_operator.operators as lo
import torch

import traceest as te
from traceest_adapters.interop._export import adjoint_of, both_sides, known_of, outgoing

PSD = (lo.RootLinearOperator, lo.PsdSumLinearOperator, lo.IdentityLinearOperator)
"""Positive semidefinite by what they are."""
SYMMETRIC = (*PSD, lo.DiagLinearOperator, lo.ToeplitzLinearOperator)
"""Symmetric by what they are."""


def from_linear_operator(A: lo.LinearOperator) -> te.Operator:
    """An operator of linear_operator, GPyTorch's kernels among them, as one of traceest's, on PyTorch tensors.

    What `traceest.aslinearoperator`, and with it every estimator, calls when it is given one. Products are
    `A.matmul` and `A.mT.matmul`, and derivatives by A's tensors pass through.

    Parameters
    ----------
    A : linear_operator.operators.LinearOperator, (n_rows, n_cols)
        One operator, not a batch.

    Returns
    -------
    traceest.Operator, (n_rows, n_cols)
        Symmetric and positive semidefinite where A's class says so: roots R Rᵀ, sums declared to be, identities; and
        sums and Kronecker products of such, and A Aᵀ. Symmetric too: diagonal and Toeplitz ones. Of others
        declare it, ``aslinearoperator(A, psd=True)``.

    Raises
    ------
    TypeError
        If A is no operator.
    ValueError
        If A is a batch.

    Examples
    --------
    >>> import torch
    >>> from linear_operator.operators import DiagLinearOperator
    >>> A = from_linear_operator(DiagLinearOperator(torch.ones(3)))
    >>> A.shape, A.symmetric, A.psd
    ((3, 3), True, False)
    """
    if not isinstance(A, lo.LinearOperator):
        raise TypeError(f"from_linear_operator: expected a linear_operator LinearOperator, got {type(A).__name__}.")
    if len(A.shape) != 2:
        raise ValueError(
            f"from_linear_operator: A is a batch of operators, shape {tuple(A.shape)}, expected one, (n_rows, n_cols); "
            "give its entries one by one, A[i]."
        )
    psd = _is(A, PSD, "psd")
    one_sided = isinstance(A, GpytorchOperator) and adjoint_of(A.operator) is None
    return te.Operator(
        tuple(A.shape),
        like=torch.empty(0, dtype=A.dtype, device=A.device),
        matmat=A.matmul,
        rmatmat=None if one_sided else lambda X: A.mT.matmul(X.conj()).conj(),
        symmetric=psd or _is(A, SYMMETRIC, "symmetric"),
        psd=psd,
        name=type(A).__name__,
    )


def _is(A: Any, kinds: tuple[Any, ...], flag: str) -> bool:
    """Whether A has the property that `kinds` have, or is made of parts that have it, and keeps it."""
    if isinstance(A, GpytorchOperator):
        return A.psd if flag == "psd" else A.symmetric
    if isinstance(A, kinds):
        return not A.dtype.is_complex  # they are symmetric, A = Aᵀ, and self-adjoint only if real
    if isinstance(A, (lo.SumLinearOperator, lo.KroneckerProductLinearOperator)):
        return all(_is(part, kinds, flag) for part in A.linear_ops)
    return False


class GpytorchOperator(lo.LinearOperator):  # type: ignore[misc]
    """What `to_linear_operator` makes."""

    def __init__(self, like: torch.Tensor, *, operator: Any) -> None:
        # linear_operator takes its operators apart into tensors and makes them again, on every product.
        super().__init__(like, operator=operator)
        self.operator = operator
        self.symmetric, self.psd = known_of(operator).values()

    def _matmul(self, rhs: torch.Tensor) -> torch.Tensor:
        return _batched(self.operator.matmat, rhs)

    def _t_matmul(self, rhs: torch.Tensor) -> torch.Tensor:
        return self._transpose_nonbatch()._matmul(rhs)

    def _size(self) -> torch.Size:
        return torch.Size(self.operator.shape)

    def _transpose_nonbatch(self) -> GpytorchOperator:
        if self.symmetric and not self.dtype.is_complex:
            return self
        if adjoint_of(self.operator) is None:
            raise TypeError(f"to_linear_operator: a transpose needs rmatmat, which {self.operator!r} lacks.")
        return GpytorchOperator(self._args[0], operator=both_sides(self.operator).T)


def _batched(matmat: Any, X: torch.Tensor) -> torch.Tensor:
    """(…, n, k) → (…, m, k), the whole batch as columns of one product; (n,) → (m,)."""
    if X.ndim == 1:
        return matmat(X[:, None])[:, 0]
    Y = matmat(X.movedim(-2, 0).reshape(X.shape[-2], -1))
    return Y.reshape(-1, *X.shape[:-2], X.shape[-1]).movedim(0, -2)


def to_linear_operator(A: Any) -> GpytorchOperator:
    """A as an operator of linear_operator, for its solves, its log-determinants and for GPyTorch.

    Derivatives pass through by the vectors that it is multiplied with, not by what A is made of.

    Parameters
    ----------
    A : operator, (n_rows, n_cols)
        Anything that `traceest.aslinearoperator` takes, of PyTorch tensors, with `matmat`.

    Returns
    -------
    linear_operator.operators.LinearOperator, (n_rows, n_cols)
        What is known of A it carries as attributes `symmetric` and `psd`.

    Raises
    ------
    TypeError
        If A is not of PyTorch tensors, or has no `matmat`.

    Examples
    --------
    >>> import torch, traceest as te
    >>> A = to_linear_operator(te.gram(torch.eye(3)))
    >>> A.add_diagonal(torch.tensor(1.0)).solve(torch.ones(3, 1)).T
    tensor([[0.5000, 0.5000, 0.5000]])
    """
    A = outgoing(A, "to_linear_operator", "PyTorch")
    return GpytorchOperator(torch.empty(0, dtype=A.dtype, device=A.device), operator=A)
