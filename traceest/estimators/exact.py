"""The exact trace, by the side that takes the fewest products."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from traceest import _array_api as aa
from traceest import _validation as check
from traceest._boundary import public
from traceest.operators.abilities import can
from traceest.operators.blocks import block_sqnorms, n_blocks, unit_probes
from traceest.operators.gram import shorter
from traceest.operators.metering import Meter, chunk_columns
from traceest.operators.products import form
from traceest.uncertainty.estimate import Estimate, certain, told, trace_bounds


class Route(NamedTuple):
    """A way to the exact trace: the operator multiplied, its side, and the number of products."""

    operator: Any
    side: str
    cost: int


def cheapest(A: Any, side: str = "auto") -> Route | None:
    """The cheapest way to the exact trace that `A` allows, or None.

    Of K = JJᴴ (or of J itself, where ‖J‖² is meant): n/B vjps with B independent blocks of rows, which a
    batch of examples is; or P jvps. Of any other square A: n products.
    """
    J = A.inner if A.factor is not None or A.shape[0] != A.shape[1] or side != "auto" else None
    if J is None:
        found = [Route(A, "matmat", A.shape[0])]
    else:
        found = [Route(J, "rmatmat", J.shape[0] // n_blocks(J)), Route(J, "matmat", J.shape[1])]
    # Sides are tested last, cheapest first: for some operators the test itself is expensive.
    return next(
        (r for r in sorted(found, key=lambda r: r.cost) if side in ("auto", r.side) and can(r.operator, r.side)),
        None,
    )


@public
def exact(A: Any, *, side: Literal["auto", "matmat", "rmatmat"] = "auto", chunk_size: int | None = None) -> Estimate:
    """The exact trace: Σ eᵢᴴAeᵢ, or ‖J‖² for a Gram operator K = JJᴴ, by the fewest products.

    A Jacobian of B independent examples of n_b states each needs only n_b vjps (one for each state, all
    examples at once), or P jvps where that is less. Any other square operator needs n products. With an
    oblong J the trace of JJᴴ is meant.

    Choose it when n_b, or P, is in the thousands at most: it is often cheaper than three digits by sampling.

    Parameters
    ----------
    A : operator, (n, n), or Jacobian, (n, P)
        Anything that `aslinearoperator` takes.
    side : {"auto", "matmat", "rmatmat"}
        For a Jacobian or Gram operator: force one side; a square J is taken as a Jacobian then.
    chunk_size : int, optional
        Columns multiplied at a time; chosen from memory if absent.

    Returns
    -------
    Estimate
        With stderr 0. Memory O((n + P) · chunk_size).

    Raises
    ------
    TypeError
        If the side asked for, or every side, is missing.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> te.exact(np.diag([1.0, 2.0, 3.0]))
    Estimate(6 ± 0, method='exact', n_matvecs=3, n_rmatvecs=0)
    """
    e, _, _ = _exactly(A, side, chunk_size)
    return e


def finite_exact(A: Any, chunk_size: int | None, caller: str) -> Estimate:
    """The exact trace, with `converged`; a value that is NaN or infinite raises, naming the column."""
    e, forms, side = _exactly(A, "auto", chunk_size)
    if not bool(aa.namespace(e.value).isfinite(e.value)):
        check.finite(aa.concat_columns(aa.namespace(e.value), forms), side, 0, caller)
        raise ValueError(
            f"{caller}: the sum of the exact trace overflows {A.dtype}; scale the operator, or use float64."
        )
    return replace(e, converged=True)


def _exactly(A: Any, side: str, chunk_size: int | None) -> tuple[Estimate, list[Any], str]:
    """The exact trace, what each column contributes to it, and the side multiplied from."""
    A = check.operator(A, "exact")
    if side not in ("auto", "matmat", "rmatmat"):
        raise ValueError(f"exact: side must be auto, matmat or rmatmat, got {side!r}.")
    if side != "auto":
        check.require_side(A.inner, side, "exact")
    A = shorter(A) if side == "auto" else A
    route = cheapest(A, side)
    if route is None:
        raise TypeError(f"exact: {A!r} has no product that gives the trace; a square operator needs matmat.")
    target, at_side, cost = route
    as_factor = side != "auto" or target is not A or A.shape[0] != A.shape[1]
    meter, xp = Meter(target), aa.namespace(A)
    chunk = chunk_columns(target, chunk_size)
    chunks = (unit_probes(target, i, min(i + chunk, cost), at_side) for i in range(0, cost, chunk))
    forms = [_contributions(xp, meter.op, E, at_side, as_factor) for E in chunks]
    total = sum((xp.sum(x) for x in forms[1:]), start=xp.sum(forms[0]))
    bounds = (0.0, math.inf) if as_factor else trace_bounds(A)
    e = certain(total, bounds=bounds, **meter.spent)
    return told(e, "trace", A), forms, at_side


def _contributions(xp: Any, op: Any, E: Any, side: str, as_factor: bool) -> Any:
    """The contribution of each column of E to the trace, along the last axis."""
    if side == "rmatmat":
        return block_sqnorms(op, E)
    product = op.matmat(E)
    return xp.sum(aa.abs2(xp, product), axis=0) if as_factor else form(xp, op, E, product)
