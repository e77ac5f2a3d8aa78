"""Jacobians made of others that keep what those can do: multiples, rows combined within blocks, columns side by side.

So K₁ + K₂ = [J₁ J₂][J₁ J₂]ᴴ and c·K = (√c·J)(√c·J)ᴴ keep one side alone, blocks and groups of parameters. What one of
them has is asked of its parts when it is to be known, since some Jacobians pay for finding out.
"""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Number, Real
from typing import Any

from traceest import _array_api as aa
from traceest.operators.abilities import SIDES, Product, can, lacked
from traceest.operators.base import Delegating, Operator
from traceest.operators.blocks import n_blocks
from traceest.operators.layout import common_state
from traceest.operators.sketched import BlockSketch


class SideBySide(Operator):
    """[J₁ J₂], (n, P₁ + P₂). A product with it is one product with each of the two, and is counted as one.

    It has a side where both have it. Blocks of rows are told apart where both tell the same ones apart; otherwise all
    rows are one block.
    """

    def __init__(self, J1: Any, J2: Any) -> None:
        B1, B2 = n_blocks(J1), n_blocks(J2)
        super().__init__(
            (J1.shape[0], J1.shape[1] + J2.shape[1]),
            like=J1,
            n_blocks=B1 if B1 == B2 else None,
            parameters=J1.parameters + J2.parameters if J1.parameters and J2.parameters else (),
            name="[J₁ J₂]",
            **common_state(J1, J2),
        )
        self.parts = (J1, J2)

    def lacks(self, product: str) -> str | None:
        """As a part does."""
        if product in SIDES:
            return lacked(*((J, product) for J in self.parts))
        if product == "gram_matmat":
            return lacked(*((J, side) for J in self.parts if not can(J, product) for side in SIDES))
        if self.n_blocks is None or (product == "grouped_gram" and not self.parameters):
            return ""
        needed = product if product == "grouped_gram" else "rmatmat"
        return super().lacks(product) or lacked(*((J, needed) for J in self.parts))

    def gram_matmat(self, V: Any) -> Any:
        """J₁(J₁ᴴ V) + J₂(J₂ᴴ V)."""
        return _total(J.gram_matmat(V) for J in self.parts)

    def matmat(self, X: Any) -> Any:
        """J₁ X₁ + J₂ X₂."""
        P1 = self.parts[0].shape[1]
        return self.parts[0].matmat(X[:P1, :]) + self.parts[1].matmat(X[P1:, :])

    def rmatmat(self, V: Any) -> Any:
        """J₁ᴴ V above J₂ᴴ V."""
        return self._xp.concat([J.rmatmat(V) for J in self.parts], axis=0)

    def block_rmatmat(self, V: Any) -> Any:
        """The same of every block."""
        return self._xp.concat([J.block_rmatmat(V) for J in self.parts], axis=-1)

    def block_sqnorms(self, V: Any) -> Any:
        """The sum of the two parts'."""
        return _total(J.block_sqnorms(V) for J in self.parts)

    def sketch_gram(self, V: Any) -> Any:
        """The sum of the two parts'."""
        return _total(J.sketch_gram(V) for J in self.parts)

    def grouped_gram(self, V: Any, groups: tuple[tuple[int, ...], ...]) -> Any:
        """Each part is asked once, for those of the groups that it has a share in."""
        first, found = 0, dict[int, Any]()
        for J in self.parts:
            last = first + len(J.parameters)
            mine = [tuple(i - first for i in group if first <= i < last) for group in groups]
            asked = [g for g, members in enumerate(mine) if members]
            if asked:
                grams = J.grouped_gram(V, tuple(mine[g] for g in asked))
                for row, g in enumerate(asked):
                    found[g] = found[g] + grams[row, ...] if g in found else grams[row, ...]
            first = last
        return self._xp.stack([found[g] for g in range(len(groups))])


class Scaled(Delegating):
    """c·J for a number c, with all that J can do."""

    def __init__(self, J: Any, c: Any) -> None:
        if isinstance(c, Number):
            number: Any = c  # `Number` promises no conjugate, though all numbers have one
            real, self.conjugate = isinstance(c, Real), number.conjugate()
        else:
            xp = aa.namespace(c)
            real, self.conjugate = not aa.is_complex(xp, c.dtype), aa.conj(xp, c)
        positive = isinstance(c, Real) and float(c) >= 0
        super().__init__(J, symmetric=J.symmetric and real, psd=J.psd and positive, name=f"c·{J.name}")
        self.c, self.square = c, c**2 if real else (c * self.conjugate).real
        self.diagonal_blocks = J.diagonal_blocks

    def _product(self, name: str, X: Any, *groups: Any) -> Any:
        factors = {"matmat": self.c, "rmatmat": self.conjugate, "block_rmatmat": self.conjugate}
        return factors.get(name, self.square) * super()._product(name, X, *groups)


class Weighted(Delegating):
    """LᴴJ, (m, P), for a block-diagonal L, (n, m), with one block for each of J's: the same blocks and parameters.

    With L Lᴴ the curvature of a loss at a model's outputs, ``gram(Weighted(J, …).H)`` = JᴴL LᴴJ is the Gauss–Newton
    matrix. A vjp is one of J, of L V; so all that J can do it can do.

    Parameters
    ----------
    J : Jacobian, (n, P)
    m : int
        Rows, the same number in each block.
    times, adjoint : callable
        V ↦ L V, (m, k) → (n, k), and X ↦ LᴴX.
    """

    def __init__(self, J: Any, m: int, times: Product, adjoint: Product) -> None:
        super().__init__(J, (m, J.shape[1]), symmetric=False, psd=False, state_shape=None, name=f"Lᴴ·{J.name}")
        self._times, self._adjoint = times, adjoint

    def lacks(self, product: str) -> str | None:
        """As J does."""
        why: str | None = self.of.lacks(product)
        return why

    @property
    def sketch_bytes(self) -> int:
        """What J's take."""
        return int(self.of.sketch_bytes)

    def block_sketch(self, V: Any) -> BlockSketch:
        """J's of L V."""
        sketch: BlockSketch = self.of.block_sketch(self._times(V))
        return sketch

    def _product(self, name: str, X: Any, *groups: Any) -> Any:
        made = super()._product(name, X if name == "matmat" else self._times(X), *groups)
        return self._adjoint(made) if name in ("matmat", "gram_matmat") else made


def _total(arrays: Iterable[Any]) -> Any:
    """Σ without a 0 to start from, which would not be an array."""
    first, *rest = arrays
    return sum(rest, start=first)
