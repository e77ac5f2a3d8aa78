"""Rows of a Jacobian combined within each block: what turns a model's Jacobian into that of its loss."""

from __future__ import annotations

from typing import Any

from traceest.operators.base import ABILITIES, Operator, Product


class Weighted(Operator):
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
        super().__init__(
            (m, J.shape[1]),
            like=J,
            n_blocks=getattr(J, "n_blocks", None),
            parameters=getattr(J, "parameters", ()),
            name=f"Lᴴ·{getattr(J, 'name', type(J).__name__)}",
        )
        self.of, self._times, self._adjoint = J, times, adjoint

    def __getattr__(self, name: str) -> Any:
        if name not in ("matmat", "rmatmat", "block_sketch", "sketch_bytes", *ABILITIES):
            raise AttributeError(name)
        product = getattr(self.__dict__.get("of"), name)
        if name == "sketch_bytes":
            return product
        if name == "matmat":
            return lambda X: self._adjoint(product(X))
        if name == "gram_matmat":
            return lambda V: self._adjoint(product(self._times(V)))
        return lambda V, *groups: product(self._times(V), *groups)
