"""K = J Jᴴ: a Jacobian becomes a kernel."""

from __future__ import annotations

from typing import Any

from traceest.operators.base import Operator
from traceest.operators.convert import aslinearoperator


class Gram(Operator):
    """K = J Jᴴ, (n, n), symmetric and positive semidefinite, with `factor` = J.

    A product with K costs one vjp and one jvp. Estimators see `.factor` and use one side alone where that
    is enough: vᴴKv = ‖Jᴴv‖².
    """

    def __init__(self, factor: Any) -> None:
        n = factor.shape[0]
        super().__init__((n, n), like=factor, psd=True, name="Gram")
        self.factor = factor

    def __getattr__(self, name: str) -> Any:
        # Found when asked for: some factors pay for finding out whether they have a side.
        factor = self.__dict__.get("factor")
        if name in ("matmat", "rmatmat") and factor is not None:
            if hasattr(factor, "gram_matmat"):
                return factor.gram_matmat
            if hasattr(factor, "rmatmat") and hasattr(factor, "matmat"):
                return lambda V: factor.matmat(factor.rmatmat(V))
        raise AttributeError(f"Gram has no {name}; K V = J(Jᴴ V) needs both sides of J")

    def __repr__(self) -> str:
        return f"<Gram {self.shape[0]}×{self.shape[1]} of {self.factor!r}>"


def gram(J: Any, *, n_blocks: int | None = None) -> Gram:
    """The Gram operator K = J Jᴴ; of a model's Jacobian, its Neural Tangent Kernel.

    Parameters
    ----------
    J : Jacobian, array, or anything that `aslinearoperator` takes, (n, P)
        With `matmat`, with `rmatmat`, or with both; what K can then be asked depends on it.
    n_blocks : int, optional
        For an array: its rows fall into this many contiguous runs of equal length.

    Returns
    -------
    Gram, (n, n)
        For JᴴJ, (P, P), write ``gram(J.H)``.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> J = np.arange(6.0).reshape(3, 2)
    >>> float(te.exact(te.gram(J)))
    55.0
    """
    return Gram(aslinearoperator(J, n_blocks=n_blocks))
