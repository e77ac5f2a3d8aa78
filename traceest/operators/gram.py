"""K = J Jᴴ: a Jacobian becomes a kernel."""

from __future__ import annotations

from numbers import Real
from typing import Any

from traceest._boundary import public
from traceest.operators.abilities import SIDES, can, lacked
from traceest.operators.algebra import Adjoint, Product, check_addends
from traceest.operators.base import Operator
from traceest.operators.blocks import n_blocks as blocks_of
from traceest.operators.convert import aslinearoperator
from traceest.operators.factors import Scaled, SideBySide


class Gram(Operator):
    """K = J Jᴴ, (n, n), symmetric and positive semidefinite, with `factor` = J.

    A product with K costs one vjp and one jvp. Estimators see `.factor` and use one side alone where that
    is enough: vᴴKv = ‖Jᴴv‖².

    Sums of Gram operators, K₁ + K₂ = [J₁ J₂][J₁ J₂]ᴴ, multiples c·K = (√c·J)(√c·J)ᴴ by a real number c ≥ 0, and
    P K Pᴴ = (P J)(P J)ᴴ, ``P @ K @ P.H``, are Gram operators again, with the sides and blocks of their terms. A product
    with a sum is one with each term; counts are those of the sum: n_rmatvecs = 5 means five vjps with J₁ and five with
    J₂.
    """

    def __init__(self, factor: Any) -> None:
        n = factor.shape[0]
        state = {"state_shape": factor.state_shape, "feature_axis": factor.feature_axis}
        super().__init__((n, n), like=factor, psd=True, name="Gram", **state)
        self.factor = factor

    def lacks(self, product: str) -> str | None:
        """As J does; a product takes both sides of J."""
        if product not in SIDES:
            return ""
        why = None if can(self.factor, "gram_matmat") else lacked(*((self.factor, side) for side in SIDES))
        return None if why is None else f"K V = J(JᴴV) takes both sides of J{'; ' if why else ''}{why}"

    def matmat(self, X: Any) -> Any:
        """J(Jᴴ X)."""
        return self.factor.gram_matmat(X)

    rmatmat = matmat

    @property
    def H(self) -> Operator:
        """The adjoint: K itself."""
        return self

    @property
    def dual(self) -> Gram:
        """JᴴJ: the Gram operator of the other side, with the same eigenvalues but for zeros.

        Trace, norm, effective rank and eigenvalues of the one are those of the other. Of JᴴJ, whose J has blocks and
        parameters, those of the part of each group of parameters come by ``summary(gram(J.H).dual, groups=True)``.
        """
        return Gram(self.factor.of if isinstance(self.factor, Adjoint) else Adjoint(self.factor))

    def congruent(self, P: Any) -> Gram:
        """P K Pᴴ = (P J)(P J)ᴴ."""
        return Gram(Product(P, self.factor))

    def __add__(self, other: Any) -> Any:
        if not isinstance(other, Gram):
            return super().__add__(other)
        check_addends(self, other)
        return Gram(SideBySide(self.factor, other.factor))

    def __mul__(self, c: Any) -> Any:
        if not (isinstance(c, Real) and float(c) >= 0):
            return super().__mul__(c)
        s = float(c) ** 0.5
        if isinstance(self.factor, Adjoint):
            return Gram(Adjoint(Scaled(self.factor.of, s)))
        return Gram(Scaled(self.factor, s))

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"<Gram {self.shape[0]}×{self.shape[1]} of {self.factor!r}>"


@public
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
        For JᴴJ, (P, P), write ``gram(J.H)``: its trace, norm and effective rank are taken from J Jᴴ, block by block,
        where J has blocks.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> J = np.arange(6.0).reshape(3, 2)
    >>> float(te.exact(te.gram(J)))
    55.0
    """
    return Gram(aslinearoperator(J, n_blocks=n_blocks))


def shorter(K: Any) -> Any:
    """K itself, or JJᴴ for a K = JᴴJ whose J has blocks of rows: the same eigenvalues but for zeros, at less cost."""
    factor = K.factor
    able = isinstance(factor, Adjoint) and blocks_of(factor.of) > 1 and can(factor.of, "rmatmat")
    return K.dual if able else K
