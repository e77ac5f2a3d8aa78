"""Exact traces and inner products of kernels, on the smaller side of their factors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from traceest import _array_api as aa
from traceest import _validation as check
from traceest.kernels.sketches.base import Sketch, constant
from traceest.kernels.sketches.diagonal_blocks import column_masks
from traceest.kernels.sketches.request import Request
from traceest.operators.abilities import can
from traceest.operators.blocks import block_rmatmat, grouped_gram, n_blocks, unit_probes
from traceest.operators.densify import dense_bytes, to_dense
from traceest.operators.metering import Meter, chunk_columns
from traceest.uncertainty.estimate import Estimate, certain
from traceest.uncertainty.ustatistics import Statistic

Pairs = dict[tuple[int, int], Any]


@dataclass
class Exact(Sketch):
    """Traces by block, (B,), and real inner products of all pairs, in the kernels' units."""

    xp: Any
    traces: list[Any]
    products: Pairs
    units: list[Any]
    targets: list[Any]
    fields: dict[str, Any] = field(default_factory=dict)
    groups: list[Sketch] = field(default_factory=list)

    def trace(self, a: int) -> Statistic:
        """Tr K_a."""
        return constant(self.xp.sum(self.traces[a]))

    def squared_trace(self, a: int) -> Statistic:
        """(tr K_a)²."""
        return constant(self.xp.sum(self.traces[a]) ** 2)

    def _product(self, a: int, b: int) -> Statistic:
        """⟨K_a, K_b⟩."""
        return constant(self.products[min(a, b), max(a, b)])

    def _squared_distance(self, a: int, b: int) -> tuple[Statistic, Any]:
        """‖K_a‖² − 2⟨K_a, K_b⟩ + ‖K_b‖², in the larger unit."""
        unit = self.xp.maximum(self.units[a], self.units[b])
        s, t = self.units[a] / unit, self.units[b] / unit
        value = self.products[a, a] * s**2 - 2 * self.product(a, b).value * s * t + self.products[b, b] * t**2
        return constant(value), unit

    def example_traces(self, a: int) -> Estimate | None:
        """As they are."""
        return certain(self.traces[a] * self.units[a], **self.fields)

    def estimate(self, statistic: Statistic, size: Any = 1.0, **fields: Any) -> Estimate:
        """With stderr 0."""
        return certain(statistic.value * size, **self.fields, **fields)


def exact(Ks: list[Any], request: Request) -> Exact:
    """Every statistic without an error.

    With factors and P < n columns, ⟨K_a, K_b⟩ = ‖J_aᴴJ_b‖², accumulated over chunks of rows in P×P, n/B vjps each.
    Otherwise from the dense kernels, n×n: of a Gram operator by n/B vjps, of any other by n products.
    """
    xp, meters = aa.namespace(Ks[0]), [Meter(K) for K in Ks]
    ops = [meter.op for meter in meters]
    Js: list[Any] = [K.factor for K in ops]
    one_sided = all(J is not None and can(J, "rmatmat") for J in Js)
    smaller = one_sided and max(J.shape[1] for J in Js) < Ks[0].shape[0] and len({n_blocks(J) for J in Js}) == 1
    extra = request.extra_columns(xp, Ks[0])
    if smaller and not request.groups:
        found = _column_side(xp, Js, request, extra)
    else:
        dense = [_dense(xp, K, request) for K in ops]
        found = _row_side(xp, [D[-1] for D in dense], _blocks(Js), request, extra)
        for g in range(len(request.groups or ())):
            parts = [D[g] for D in dense] + [D[-1] for D in dense]
            found.groups.append(_row_side(xp, parts, _blocks(Js), request, extra))
    spent = {"n_matvecs": sum(k.n_matvecs for k in meters), "n_rmatvecs": sum(k.n_rmatvecs for k in meters)}
    for s in (found, *found.groups):
        s.fields |= {"method": "exact", **spent}
    return found


def dense_kernel(K: Any, caller: str) -> tuple[Any, dict[str, int]]:
    """The n×n kernel, and the products it took."""
    meter = Meter(K)
    (D,) = _dense(aa.namespace(K), meter.op, Request(caller))
    return D, meter.spent


def of_dense_kernels(dense: list[Any], n_blocks: int) -> Exact:
    """Every statistic of kernels that are there as arrays."""
    found = _row_side(aa.namespace(dense[0]), dense, n_blocks, Request(""), None)
    found.fields["method"] = "exact"
    return found


def _column_side(xp: Any, Js: list[Any], request: Request, extra: Any) -> Exact:
    """C_ab = J_aᴴJ_b, and F_a = J_aᴴE of the extra columns E, from the rows of J, a chunk of unit vectors at a time."""
    B, (n, P) = n_blocks(Js[0]), Js[0].shape
    n_b = n // B
    # A chunk of c unit vectors gives the B·c rows that `block_rmatmat` returns.
    chunk = min(n_b, max(1, chunk_columns(Js[0], None) * sum(Js[0].shape) // (4 * B * P)))
    C: Pairs = {}
    F: list[Any] = [0.0] * len(Js)
    traces: list[Any] = [0.0] * len(Js)
    for i in range(0, n_b, chunk):
        stop = min(i + chunk, n_b)
        g = [block_rmatmat(J, unit_probes(J, i, stop)) for J in Js]
        traces = [t + xp.sum(aa.abs2(xp, x), axis=(1, 2)) for t, x in zip(traces, g, strict=True)]
        rows = [xp.reshape(x, (-1, x.shape[-1])) for x in g]
        part = _pairs(len(Js), lambda a, b, rows=rows: xp.matrix_transpose(rows[a]) @ aa.conj(xp, rows[b]))
        C = {k: C[k] + part[k] if C else part[k] for k in part}
        if extra is not None:
            E = xp.reshape(xp.reshape(extra, (B, n_b, -1))[:, i:stop, :], (B * (stop - i), -1))
            F = [f + xp.matrix_transpose(r) @ E for f, r in zip(F, rows, strict=True)]
    if request.centred:
        C = {(a, b): c - F[a][:, :1] @ aa.adjoint(xp, F[b][:, :1]) / n for (a, b), c in C.items()}
        traces = [aa.real(xp, xp.sum(xp.linalg.diagonal(C[a, a])))[None] for a in range(len(Js))]
    units = [xp.sum(aa.safe_scale(xp, C[a, a])) for a in range(len(Js))]
    roots = [xp.sqrt(u) for u in units]
    targets = []
    if request.targets is not None:
        squares = [xp.sum(aa.abs2(xp, f[:, int(request.centred) :] / r)) for f, r in zip(F, roots, strict=True)]
        targets = [square / request.target_norm for square in squares]
    products = {(a, b): xp.sum(aa.abs2(xp, c / (roots[a] * roots[b]))) for (a, b), c in C.items()}
    return Exact(xp, [t / u for t, u in zip(traces, units, strict=True)], products, units, targets)


def _row_side(xp: Any, dense: list[Any], B: int, request: Request, extra: Any) -> Exact:
    """From the n×n kernels."""
    units = [xp.sum(aa.safe_scale(xp, D)) for D in dense]
    dense, targets = [D / u for D, u in zip(dense, units, strict=True)], []
    if request.targets is not None:
        Y = extra[:, int(request.centred) :]
        targets = [aa.real(xp, xp.sum(aa.conj(xp, Y) * (D @ Y))) / request.target_norm for D in dense]
    if request.centred:
        dense = [_doubly_centred(xp, D) for D in dense]
    traces = [aa.real(xp, xp.sum(xp.reshape(xp.linalg.diagonal(D), (B, -1)), axis=1)) for D in dense]
    products = _pairs(len(dense), lambda a, b: aa.real(xp, xp.sum(aa.conj(xp, dense[a]) * dense[b])))
    return Exact(xp, traces, products, units, targets)


def _doubly_centred(xp: Any, D: Any) -> Any:
    """HDH, H = I − 11ᵀ/n."""
    D = D - xp.sum(D, axis=0, keepdims=True) / D.shape[0]
    return D - xp.sum(D, axis=1, keepdims=True) / D.shape[0]


def _blocks(Js: list[Any]) -> int:
    """The blocks that all kernels agree on, else one."""
    counts = {1 if J is None else n_blocks(J) for J in Js}
    return counts.pop() if len(counts) == 1 else 1


def _dense(xp: Any, K: Any, request: Request) -> list[Any]:
    """The n×n kernels of every group of columns and, last, of all."""
    n, J = K.shape[0], K.factor
    if request.groups and J is not None:
        parts = grouped_gram(J, unit_probes(J, 0, n // n_blocks(J)), request.groups)
        return [xp.reshape(G, (n, n)) for G in parts]
    if J is None:
        check.require_side(K, "matmat", request.caller)
    D = to_dense(K, max_bytes=dense_bytes(K))
    return [*(D * mask * xp.matrix_transpose(mask) for mask in column_masks(K, request.groups)), D]


def _pairs(count: int, f: Callable[..., Any]) -> Pairs:
    return {(a, b): f(a, b) for a in range(count) for b in range(a, count)}
