"""The call."""

from __future__ import annotations

import math
from typing import Any, Literal, SupportsIndex

from traceest import _array_api as aa
from traceest import _validation as check
from traceest._boundary import public
from traceest.operators.abilities import can
from traceest.operators.metering import Meter
from traceest.partial.result import PartialTrace
from traceest.partial.routes import Axes, PartialRoute, forward, reverse, samples, two_sided
from traceest.probes import Distribution, Probes, of_pairs, require_independent

Side = Literal["auto", "matmat", "rmatmat"]


@public
def partial_trace(
    K: Any,
    n_probes: int | None = None,
    *,
    keep: int | tuple[int, ...],
    shape: tuple[int, ...] | None = None,
    side: Side = "auto",
    rng: Any = None,
    distribution: Distribution | None = None,
    probes: Any = None,
) -> PartialTrace:
    """Estimate the partial trace M[κ, κ′] = Σ_τ K[(κ, τ), (κ′, τ)] of a kernel on a state of several axes.

    K's rows are the entries of a state of the given shape, row by row (example first); τ runs over the traced axes and
    κ over the kept ones. Of a recurrent model's kernel on (examples, time, units), ``keep=1`` gives the kernel of time
    steps and ``keep=2`` that of units: their effective ranks tell how many time modes and how many unit modes there
    are. Every example's own diagonal block is summed, not all pairs of blocks: Σ_{τ,τ′} would be another matrix.

    * K = JJᴴ by vjps: ⟨Jᴴ(s⊗e_κ), Jᴴ(s⊗e_κ′)⟩ with signs s over τ and unit vectors e_κ, d_kept vjps a probe. Where J
      tells examples apart and they are traced over, each has signs of its own and only its own Gram matrix is taken: no
      noise between examples enters, and a probe brings B samples. Where they are kept, the same signs go into each and
      one vjp serves all of them: d_kept then counts the other kept indices.
    * K = JJᴴ by jvps, where J has no vjps or ``side="matmat"`` asks for it: Y Yᴴ with Y[κ, τ] = (Jw)[(κ, τ)]. One
      jvp a probe, whatever is kept; all rows share its noise.
    * any other square K: (s⊗e_κ)ᴴ K (s⊗e_κ′), d_kept products a probe, d_kept all kept indices.

    Parameters
    ----------
    K : operator, (n, n)
        A Gram operator (`gram`, `ntk`), or anything square that `aslinearoperator` takes; it may be non-symmetric.
    n_probes : int
        At least 2 unless that is exact. From the number of traced indices on (of one example, where J tells them apart;
        by jvps from P on) M is exact.
    keep : int or tuple of int
        Axes of the state to keep; negative ones count from the last. M's indices run over them in ascending order.
    shape : tuple of int, optional
        Of the state; default: K's own `state_shape`, where it is known.
    side : {"auto", "matmat", "rmatmat"}
        For a Gram operator: force one side.
    rng : int, numpy.random.Generator, JAX key, torch.Generator or None
        See `traceest.probes`.
    distribution : {"balanced", "rademacher", "gaussian", "sphere"}, optional
        Law of s; default: balanced over the positions traced over where the state's are known, else Rademacher.
    probes : array, optional
        Explicit s, one a column, over the traced indices of the whole state (of one example, where examples are kept);
        for jvps (P, m).

    Returns
    -------
    PartialTrace
        With `matrix`, `trace`, `frobenius_norm`, `effective_rank` and `eigenvalues` as Estimates. Nominal 95 %
        intervals covered 93–97 % for the matrix's entries, 92–99 % for the trace, 90–98 % for the norm (least where few
        directions of the parameters make up most of K) and 96–100 % for the effective rank (300 to 400 runs each); for
        the eigenvalues, see there. Memory O(B·m·d²), and (B·m)² for the norm; B = 1 where examples are kept or not told
        apart.

    Raises
    ------
    ValueError
        If K is not square, the shape does not fit it, `keep` names no axis, or the budget is too small.
    TypeError
        If a needed product, or the shape, is missing.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A, B = np.diag([1.0, 2.0]), np.ones((3, 3)) + np.eye(3)
    >>> M = te.partial_trace(np.kron(A, B), 3, shape=(2, 3), keep=0)
    >>> M.matrix.value  # tr(B)·A
    array([[ 6.,  0.],
           [ 0., 12.]])
    """
    K = check.square(K, "partial_trace")
    J = K.factor
    shape = _checked_shape(shape, K)
    kept = _checked_axes(keep, shape)
    if distribution is not None:
        require_independent(distribution, "partial_trace")
    route = _route(K, J, shape, kept, side)
    m = check.budget(n_probes, probes, min(2, route.n_exact), "n_probes", "partial_trace")
    check.check_probes(probes, route.rows, K, "partial_trace")
    xp, meter = aa.namespace(K), Meter(route.operator)
    exactly = probes is None and m >= route.n_exact
    law, rows = distribution or of_pairs(route.layout), route.layout
    stream = Probes(route.rows, K, rng=rng, distribution=law, n_blocks=route.runs, layout=rows, probes=probes)
    X = samples(route, meter, None if exactly else stream.chunks(m, route.chunk))
    unit = aa.safe_scale(xp, X)
    return PartialTrace(
        X / unit,
        xp.sum(unit),
        kept_shape=tuple(shape[a] for a in kept),
        symmetric=K.symmetric,
        psd=K.psd,
        sample_rank=route.sample_rank,
        method="exact" if exactly else route.method,
        **meter.spent,
    )


def _route(K: Any, J: Any, shape: tuple[int, ...], kept: tuple[int, ...], side: Side) -> PartialRoute:
    if side not in ("auto", "matmat", "rmatmat"):
        raise ValueError(f"partial_trace: side must be auto, matmat or rmatmat, got {side!r}.")
    if J is None:
        if side == "rmatmat":
            raise TypeError(f"partial_trace: side='rmatmat' needs a Gram operator, gram(J); got {K!r}.")
        check.require_side(K, "matmat", "partial_trace")
        axes = Axes.of(shape, kept, None)
        return two_sided(K, axes)._replace(layout=axes.layout(_features(K, shape)))
    if side == "auto":
        side = "rmatmat" if can(J, "rmatmat") else "matmat"
    check.require_side(J, side, "partial_trace")
    if side == "matmat":
        return forward(J, Axes.of(shape, kept, None))
    axes = Axes.of(shape, kept, J)
    return reverse(J, axes)._replace(layout=axes.layout(_features(J, shape)))


def _features(A: Any, shape: tuple[int, ...]) -> int | None:
    """The axis of features of a state that A tells of."""
    return A.feature_axis % len(shape) if A.state_shape == shape else None


def _checked_shape(shape: Any, K: Any) -> tuple[int, ...]:
    found = K.state_shape if shape is None else shape
    if found is None:
        raise TypeError(
            f"partial_trace: give shape=, the state's axes, example first, with a product of {K.shape[0]}; {K!r} does "
            "not tell it."
        )
    found = tuple(int(d) for d in found)
    if min(found, default=0) < 1 or math.prod(found) != K.shape[0]:
        raise ValueError(
            f"partial_trace: shape {found} has {math.prod(found)} entries, the operator {K.shape[0]} rows; "
            "they must agree."
        )
    return found


def _checked_axes(keep: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    axes = keep if isinstance(keep, tuple | list) else (keep,)
    for a in axes:
        if isinstance(a, bool) or not isinstance(a, (int, SupportsIndex)):
            raise TypeError(f"partial_trace: keep must be an axis or a tuple of them, got {keep!r}.")
        if not -len(shape) <= int(a) < len(shape):
            raise ValueError(f"partial_trace: keep = {keep!r} is no axis of a state of shape {shape}.")
    kept = tuple(sorted({int(a) % len(shape) for a in axes}))
    if len(kept) < len(axes):
        raise ValueError(f"partial_trace: keep = {keep!r} names an axis twice.")
    return kept
