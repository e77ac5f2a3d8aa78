"""Products of a Jacobian block by block, as estimators ask for them."""

from __future__ import annotations

from typing import Any

from traceest import _array_api as aa
from traceest.operators.abilities import can


def n_blocks(J: Any) -> int:
    """Number of independent runs of rows that J's abilities tell apart; 1 without them."""
    if not J.n_blocks:
        return 1
    return J.n_blocks if any(can(J, p) for p in ("block_rmatmat", "block_sqnorms", "sketch_gram")) else 1


def block_rmatmat(J: Any, V: Any) -> Any:
    """J_bᴴ v_{b,i} for all blocks b and probes i: (n, k) → (B, k, P), k vjps."""
    return J.block_rmatmat(V)


def block_sqnorms(J: Any, V: Any) -> Any:
    """‖J_bᴴ v_{b,i}‖²: (n, k) → (B, k), k vjps."""
    return J.block_sqnorms(V)


def sketch_gram(J: Any, V: Any) -> Any:
    """⟨J_bᴴ v_{b,i}, J_cᴴ v_{c,j}⟩: (n, k) → (B, k, B, k), k vjps."""
    return J.sketch_gram(V)


def block_gram(J: Any, V: Any, d: int) -> Any:
    """⟨J_bᴴ v_{b,i}, J_bᴴ v_{b,j}⟩ within each block and each run of d columns: (n, c·d) → (B, c, d, d), c·d vjps."""
    xp, c = aa.namespace(V), V.shape[1] // d
    if not can(J, "sketch_gram"):
        g = J.block_rmatmat(V)
        g = xp.reshape(g, (g.shape[0], c, d, -1))
        return aa.conj(xp, g) @ xp.matrix_transpose(g)
    G = J.sketch_gram(V)
    B = G.shape[0]
    G = xp.permute_dims(xp.reshape(G, (B * c, d, B * c, d)), (1, 3, 0, 2))
    return xp.reshape(xp.permute_dims(xp.linalg.diagonal(G), (2, 0, 1)), (B, c, d, d))


def grouped_gram(J: Any, V: Any, groups: tuple[tuple[int, ...], ...] | None) -> list[Any]:
    """`sketch_gram` of the columns of each group of parameters and, last, of all columns; k vjps in all."""
    if not groups:
        return [J.sketch_gram(V)]
    rest = tuple(sorted(set(range(len(J.parameters))).difference(*groups)))
    parts = J.grouped_gram(V, (*groups, rest) if rest else groups)
    return [*(parts[g, ...] for g in range(len(groups))), aa.namespace(V).sum(parts, axis=0)]


def unit_probes(J: Any, start: int, stop: int, side: str = "rmatmat") -> Any:
    """Unit vectors start…stop−1 of every block at once (of the one block, on the column side): (n, stop − start)."""
    xp, dev = aa.namespace(J), aa.device(J)
    n, B = (J.shape[0], n_blocks(J)) if side == "rmatmat" else (J.shape[1], 1)
    d = n // B
    E = xp.eye(d, stop - start, k=-start, dtype=J.dtype, device=dev)
    return xp.tile(E, (B, 1)) if B > 1 else E
