"""Algebra of Gram operators, done on their factors: K₁ + K₂ = [J₁ J₂][J₁ J₂]ᴴ and c·K = (√c·J)(√c·J)ᴴ.

So a sum or a multiple of kernels keeps what its terms can do: one side alone, blocks, groups of parameters. What a
factor made here can do is found when asked for, since some factors pay for finding out whether they have a side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from traceest.operators import blocks
from traceest.operators.base import ABILITIES, Operator
from traceest.operators.layout import feature_axis, state_shape


class SideBySide(Operator):
    """[J₁ J₂], (n, P₁ + P₂). A product with it is one product with each of the two, and is counted as one.

    It has a side where both have it. Blocks of rows are told apart where both tell the same ones apart; otherwise all
    rows are one block.
    """

    def __init__(self, J1: Any, J2: Any) -> None:
        B1, B2 = blocks.n_blocks(J1), blocks.n_blocks(J2)
        names = [tuple(getattr(J, "parameters", ())) for J in (J1, J2)]
        super().__init__(
            (J1.shape[0], J1.shape[1] + J2.shape[1]),
            like=J1,
            n_blocks=B1 if B1 == B2 else None,
            parameters=names[0] + names[1] if all(names) else (),
            name="[J₁ J₂]",
        )
        self.parts = (J1, J2)
        self.state_shape = state_shape(J1) if state_shape(J1) == state_shape(J2) else None
        self.feature_axis = feature_axis(J1)

    def __getattr__(self, name: str) -> Any:
        parts: tuple[Any, Any] = self.__dict__.get("parts", ())
        if parts and self._can(name, parts):
            return getattr(self, f"_{name}")
        raise AttributeError(
            f"[J₁ J₂] has no {name}; it has what both of its parts have, for the blocks that both have"
        )

    def _can(self, name: str, parts: tuple[Any, Any]) -> bool:
        if name in ("matmat", "rmatmat"):
            return all(hasattr(J, name) for J in parts)
        if name == "gram_matmat":
            return all(hasattr(J, name) or (hasattr(J, "rmatmat") and hasattr(J, "matmat")) for J in parts)
        if name == "grouped_gram":
            return self.n_blocks is not None and bool(self.parameters) and all(hasattr(J, name) for J in parts)
        return name in ABILITIES and self.n_blocks is not None and all(hasattr(J, "rmatmat") for J in parts)

    def _gram_matmat(self, V: Any) -> Any:
        return _total(J.gram_matmat(V) if hasattr(J, "gram_matmat") else J.matmat(J.rmatmat(V)) for J in self.parts)

    def _matmat(self, X: Any) -> Any:
        P1 = self.parts[0].shape[1]
        return self.parts[0].matmat(X[:P1, :]) + self.parts[1].matmat(X[P1:, :])

    def _rmatmat(self, V: Any) -> Any:
        return self._xp.concat([J.rmatmat(V) for J in self.parts], axis=0)

    def _block_rmatmat(self, V: Any) -> Any:
        return self._xp.concat([blocks.block_rmatmat(J, V) for J in self.parts], axis=-1)

    def _block_sqnorms(self, V: Any) -> Any:
        return _total(blocks.block_sqnorms(J, V) for J in self.parts)

    def _sketch_gram(self, V: Any) -> Any:
        return _total(blocks.sketch_gram(J, V) for J in self.parts)

    def _grouped_gram(self, V: Any, groups: tuple[tuple[int, ...], ...]) -> Any:
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


class Scaled(Operator):
    """s·J for a real number s, with all that J can do."""

    def __init__(self, J: Any, s: float) -> None:
        super().__init__(
            J.shape,
            like=J,
            n_blocks=getattr(J, "n_blocks", None),
            parameters=getattr(J, "parameters", ()),
            name="s·J",
        )
        self.of, self.s, self.state_shape, self.feature_axis = J, s, state_shape(J), feature_axis(J)

    def __getattr__(self, name: str) -> Any:
        if name not in ("matmat", "rmatmat", *ABILITIES):
            raise AttributeError(name)
        product: Callable[..., Any] = getattr(self.__dict__.get("of"), name)
        factor = self.s if name in ("matmat", "rmatmat", "block_rmatmat") else self.s**2
        return lambda X, *groups: factor * product(X, *groups)


def _total(arrays: Iterable[Any]) -> Any:
    """Σ without a 0 to start from, which would not be an array."""
    first, *rest = arrays
    return sum(rest, start=first)
