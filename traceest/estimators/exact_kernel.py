"""Exact traces and inner products of kernels, on the smaller side of their factors."""

from __future__ import annotations

from typing import Any

from traceest import _array_api as aa
from traceest import _validation as check
from traceest.estimators._metering import chunk_columns
from traceest.operators.blocks import block_rmatmat, n_blocks, sketch_gram, unit_probes


def traces_and_products(Ks: list[Any], caller: str) -> tuple[list[Any], dict[tuple[int, int], Any]]:
    """Tr K_a of every kernel, and tr(K_a K_bᴴ) of every pair.

    With factors and P < n columns: ⟨K_a, K_b⟩ = ‖J_aᴴJ_b‖², accumulated over chunks of rows in P×P, n/B vjps each.
    Otherwise from the dense kernels, n×n: of a Gram operator by n/B vjps, of any other by n products.
    """
    xp = aa.namespace(Ks[0])
    Js: list[Any] = [getattr(K, "factor", None) for K in Ks]
    n = Ks[0].shape[0]
    one_sided = all(J is not None and hasattr(J, "rmatmat") for J in Js)
    if one_sided and max(J.shape[1] for J in Js) < n and len({n_blocks(J) for J in Js}) == 1:
        return _column_side(xp, Js)
    dense = [_dense(xp, K, caller) for K in Ks]
    traces = [aa.real(xp, xp.sum(xp.linalg.diagonal(D))) for D in dense]
    return traces, _pairs(len(Ks), lambda a, b: aa.real(xp, xp.sum(aa.conj(xp, dense[a]) * dense[b])))


def _column_side(xp: Any, Js: list[Any]) -> tuple[list[Any], dict[tuple[int, int], Any]]:
    """C_ab = J_aᴴJ_b from the rows of J, a chunk of unit vectors at a time."""
    n_b = Js[0].shape[0] // n_blocks(Js[0])
    # A chunk of c unit vectors gives the B·c rows that `block_rmatmat` returns.
    chunk = min(n_b, max(1, chunk_columns(Js[0], None) * sum(Js[0].shape) // (4 * n_blocks(Js[0]) * Js[0].shape[1])))
    C: dict[tuple[int, int], Any] = {}
    for i in range(0, n_b, chunk):
        rows = []
        for J in Js:
            g = block_rmatmat(J, unit_probes(J, i, min(i + chunk, n_b)))
            rows.append(xp.reshape(g, (-1, J.shape[1])))
        part = _pairs(len(Js), lambda a, b, rows=rows: xp.matrix_transpose(rows[a]) @ aa.conj(xp, rows[b]))
        C = {k: C[k] + part[k] if C else part[k] for k in part}
    traces = [aa.real(xp, xp.sum(xp.linalg.diagonal(C[a, a]))) for a in range(len(Js))]
    return traces, {k: xp.sum(aa.abs2(xp, c)) for k, c in C.items()}


def _dense(xp: Any, K: Any, caller: str) -> Any:
    """The n×n kernel."""
    n, J = K.shape[0], getattr(K, "factor", None)
    if J is not None and hasattr(J, "rmatmat"):
        G = sketch_gram(J, unit_probes(J, 0, n // n_blocks(J)))
        return xp.reshape(G, (n, n))
    if J is not None and hasattr(J, "matmat"):
        JI = J.matmat(xp.eye(J.shape[1], dtype=J.dtype, device=aa.device(J)))
        return JI @ aa.adjoint(xp, JI)
    check.require_side(K, "matmat", caller)
    return K.matmat(xp.eye(n, dtype=K.dtype, device=aa.device(K)))


def _pairs(count: int, f: Any) -> dict[tuple[int, int], Any]:
    return {(a, b): f(a, b) for a in range(count) for b in range(a, count)}
