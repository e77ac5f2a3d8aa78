"""Per-block products of a Jacobian, by its own ability or by the generic fallback.

With B blocks of n_b rows, ``block_rmatmat`` is the ability from which the other two follow; an
adapter that can do better (no P-sized array a probe) brings its own. An operator with `rmatmat`
alone is one block.
"""

from __future__ import annotations

from typing import Any

from traceest import _array_api as aa


def n_blocks(J: Any) -> int:
    """Number of independent runs of rows that J's abilities tell apart; 1 without them."""
    able = any(hasattr(J, ability) for ability in ("block_rmatmat", "block_sqnorms", "sketch_gram"))
    return (getattr(J, "n_blocks", None) or 1) if able else 1


def block_rmatmat(J: Any, V: Any) -> Any:
    """J_bᴴ v_{b,i} for all blocks b and probes i: (n, k) → (B, k, P), k vjps."""
    if hasattr(J, "block_rmatmat"):
        return J.block_rmatmat(V)
    return aa.namespace(V).matrix_transpose(J.rmatmat(V))[None, :, :]


def block_sqnorms(J: Any, V: Any) -> Any:
    """‖J_bᴴ v_{b,i}‖²: (n, k) → (B, k), k vjps."""
    if hasattr(J, "block_sqnorms"):
        return J.block_sqnorms(V)
    xp = aa.namespace(V)
    return xp.sum(aa.abs2(xp, block_rmatmat(J, V)), axis=-1)


def sketch_gram(J: Any, V: Any) -> Any:
    """⟨J_bᴴ v_{b,i}, J_cᴴ v_{c,j}⟩: (n, k) → (B, k, B, k), k vjps."""
    if hasattr(J, "sketch_gram"):
        return J.sketch_gram(V)
    xp = aa.namespace(V)
    g = block_rmatmat(J, V)
    B, k, P = g.shape
    g = xp.reshape(g, (B * k, P))
    return xp.reshape(aa.conj(xp, g) @ xp.matrix_transpose(g), (B, k, B, k))


def block_gram(J: Any, V: Any, d: int) -> Any:
    """⟨J_bᴴ v_{b,i}, J_bᴴ v_{b,j}⟩ within each block and each run of d columns: (n, c·d) → (B, c, d, d), c·d vjps."""
    xp, c = aa.namespace(V), V.shape[1] // d
    if not hasattr(J, "sketch_gram"):
        g = block_rmatmat(J, V)
        g = xp.reshape(g, (g.shape[0], c, d, -1))
        return aa.conj(xp, g) @ xp.matrix_transpose(g)
    G = J.sketch_gram(V)
    B = G.shape[0]
    G = xp.permute_dims(xp.reshape(G, (B * c, d, B * c, d)), (1, 3, 0, 2))
    return xp.reshape(xp.permute_dims(xp.linalg.diagonal(G), (2, 0, 1)), (B, c, d, d))


def grouped_gram(J: Any, V: Any, groups: tuple[tuple[int, ...], ...] | None) -> list[Any]:
    """`sketch_gram` of the columns of each group of parameters and, last, of all columns; k vjps in all."""
    if not groups:
        return [sketch_gram(J, V)]
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
