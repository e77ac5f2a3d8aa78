"""Samples of a partial trace: the same signs over the traced axes for every index of the kept ones.

A state of shape (d₀, d₁, …) has indices (κ, τ), kept and traced. For isotropic s over τ,
(s⊗e_κ)ᴴ K (s⊗e_κ′) is unbiased for M[κ, κ′] = Σ_τ K[(κ, τ), (κ′, τ)].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, NamedTuple

from traceest import _array_api as aa
from traceest.operators.abilities import can
from traceest.operators.blocks import block_gram, n_blocks
from traceest.operators.layout import Layout
from traceest.operators.metering import Meter, chunk_columns

COLUMNS = 16
"""Columns sent through a factor at a time, where its Gram matrix of all pairs of them is made and few are wanted."""


class Axes(NamedTuple):
    """A state of B blocks of `inner` shape; its first axis is cut by the blocks, where there is more than one."""

    B: int
    inner: tuple[int, ...]
    kept: tuple[int, ...]

    @classmethod
    def of(cls, shape: tuple[int, ...], kept: tuple[int, ...], J: Any) -> Axes:
        """Blocks are those of J, where they are whole runs of the first axis; otherwise all is one."""
        B = 1 if J is None else n_blocks(J)
        B = B if shape[0] % B == 0 else 1
        return cls(B, (shape[0] // B, *shape[1:]), kept)

    @property
    def traced(self) -> tuple[int, ...]:
        """The other axes."""
        return tuple(a for a in range(len(self.inner)) if a not in self.kept)

    @property
    def d_kept(self) -> int:
        """Kept indices inside a block."""
        return prod(self.inner[a] for a in self.kept)

    @property
    def d_traced(self) -> int:
        """Traced indices inside a block."""
        return prod(self.inner[a] for a in self.traced)

    @property
    def between(self) -> bool:
        """Whether M tells blocks apart."""
        return self.B > 1 and 0 in self.kept

    @property
    def runs(self) -> int:
        """Independent runs of signs: one a block, where blocks are traced over and their samples added up."""
        return 1 if self.between else self.B

    def layout(self, feature: int | None) -> Layout | None:
        """The traced indices as positions and features, by the state's axis of these, where it is known."""
        traced = tuple(1 if a in self.kept else d for a, d in enumerate(self.inner))
        return None if feature is None else Layout.of(traced, feature)

    def columns(self, xp: Any, S: Any) -> Any:
        """s⊗e_κ for all κ: signs (runs, d_traced, c) → (n, c·d_kept)."""
        runs, _, c = S.shape
        E = xp.eye(self.d_kept, dtype=S.dtype, device=aa.device(S))
        V = S[:, :, None, :, None] * E[None, None, :, None, :]
        order = (*self.traced, *self.kept)
        V = xp.reshape(V, (runs, *(self.inner[a] for a in order), c, self.d_kept))
        natural = (0, *(1 + order.index(a) for a in range(len(order))), len(order) + 1, len(order) + 2)
        V = xp.reshape(xp.permute_dims(V, natural), (runs, -1, c * self.d_kept))
        V = xp.broadcast_to(V, (self.B, *V.shape[1:])) if runs < self.B else V
        return xp.reshape(V, (-1, V.shape[-1]))

    def gathered(self, xp: Any, X: Any) -> Any:
        """Rows by their indices, of a state that is one block: (n, k) → (d_traced, d_kept, k)."""
        X = xp.reshape(X, (*self.inner, X.shape[1]))
        X = xp.permute_dims(X, (*self.traced, *self.kept, len(self.inner)))
        return xp.reshape(X, (self.d_traced, self.d_kept, -1))


class PartialRoute(NamedTuple):
    """A way to samples of M: probes are `rows` long, of which `n_exact` unit vectors make it exact."""

    operator: Any
    rows: int
    runs: int
    n_exact: int
    chunk: int
    sample: Callable[[Any, Any], Any]  # (operator, probes (rows, c)) ↦ (runs, c, d, d)
    method: str
    sample_rank: int
    layout: Layout | None = None

    def exact(self, op: Any) -> Iterator[Any]:
        """The summands of M, a chunk at a time."""
        xp = aa.namespace(op)
        for i in range(0, self.n_exact, self.chunk):
            E = xp.eye(self.n_exact, min(self.chunk, self.n_exact - i), k=-i, dtype=op.dtype, device=aa.device(op))
            yield self.sample(op, xp.tile(E, (self.runs, 1)) if self.runs > 1 else E)


def reverse(J: Any, axes: Axes) -> PartialRoute:
    """By vjps of K = JJᴴ, d_kept a probe: ⟨Jᴴ(s⊗e_κ), Jᴴ(s⊗e_κ′)⟩, in each block or between all blocks."""
    xp, d, across = aa.namespace(J), axes.d_kept, n_blocks(J) != axes.B

    def within(op: Any, S: Any) -> Any:
        V = axes.columns(xp, xp.reshape(S, (axes.B, axes.d_traced, -1)))
        return _all_blocks(xp, op, V, d) if across else block_gram(op, V, d)

    def between(op: Any, S: Any) -> Any:
        G = op.sketch_gram(axes.columns(xp, S[None, :, :]))
        G = xp.reshape(G, (axes.B, -1, d, axes.B, G.shape[1] // d, d))
        G = xp.linalg.diagonal(xp.permute_dims(G, (0, 2, 3, 5, 1, 4)))  # the same probe on both sides
        return xp.reshape(xp.permute_dims(G, (4, 0, 1, 2, 3)), (1, -1, axes.B * d, axes.B * d))

    pairs = axes.between or across or can(J, "sketch_gram")
    chunk = max(1, (COLUMNS if pairs else chunk_columns(J, None)) // d)
    name = "vjps" if axes.B == 1 else "vjps of all blocks" if axes.between else "vjps per block"
    sample = between if axes.between else within
    return PartialRoute(J, axes.runs * axes.d_traced, axes.runs, axes.d_traced, chunk, sample, name, d * axes.B)


def forward(J: Any, axes: Axes) -> PartialRoute:
    """By jvps of K = JJᴴ, one a probe w: Y Yᴴ with Y[κ, τ] = (Jw)[(κ, τ)]."""
    xp = aa.namespace(J)

    def sample(op: Any, W: Any) -> Any:
        Y = xp.permute_dims(axes.gathered(xp, op.matmat(W)), (2, 1, 0))
        return (Y @ aa.adjoint(xp, Y))[None, ...]

    return PartialRoute(J, J.shape[1], 1, J.shape[1], chunk_columns(J, None), sample, "jvps", axes.d_traced)


def two_sided(A: Any, axes: Axes) -> PartialRoute:
    """By products with A, d_kept a probe: (s⊗e_κ)ᴴ A (s⊗e_κ′)."""
    xp, d = aa.namespace(A), axes.d_kept

    def sample(op: Any, S: Any) -> Any:
        c = S.shape[1]
        AV = axes.gathered(xp, op.matmat(axes.columns(xp, S[None, :, :])))
        AV = xp.reshape(AV, (axes.d_traced, d, c, d))
        M = xp.sum(aa.conj(xp, S)[:, None, :, None] * AV, axis=0)  # (κ, c, κ′)
        return xp.permute_dims(M, (1, 0, 2))[None, ...]

    return PartialRoute(A, axes.d_traced, 1, axes.d_traced, max(1, chunk_columns(A, None) // d), sample, "two-sided", d)


def samples(route: PartialRoute, meter: Meter, probes: Iterator[Any] | None) -> Any:
    """Independent samples (runs, m, d, d), whose means over m add up to M; without probes M itself, (1, 1, d, d)."""
    xp, op = aa.namespace(route.operator), meter.op
    if probes is not None:
        parts = [route.sample(op, S) for S in probes]
        return parts[0] if len(parts) == 1 else xp.concat(parts, axis=1)
    total: Any = 0.0
    for part in route.exact(op):
        total = total + xp.sum(part, axis=(0, 1), keepdims=True)
    return total


def _all_blocks(xp: Any, J: Any, V: Any, d: int) -> Any:
    """Runs of d columns of an operator whose blocks cut across the state's first axis: (1, c, d, d)."""
    G = xp.sum(J.sketch_gram(V), axis=(0, 2))
    G = xp.permute_dims(xp.reshape(G, (-1, d, V.shape[1] // d, d)), (1, 3, 0, 2))
    return xp.permute_dims(xp.linalg.diagonal(G), (2, 0, 1))[None, ...]
