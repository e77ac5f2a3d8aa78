"""How a budget of products is split: directions deflated, probes, and steps of each."""

from __future__ import annotations

from typing import Any, NamedTuple

from traceest import _validation as check
from traceest.operators.abilities import can
from traceest.operators.densify import cost_of_all

DEFLATION = 7
"""Products that a deflated direction costs at least: so many blocks has the Krylov space that it is found in."""

SHARE, ENOUGH = 0.3, 30
"""Part of the budget that deflation may take where fewer directions would have less, and what is enough."""


class Plan(NamedTuple):
    """s probes, t steps of each, q deflated by `blocks` products each; exact where that costs no more."""

    probes: int
    steps: int
    deflated: int
    blocks: int
    exact: bool
    free: int  # products that a pilot may split otherwise; 0 where the split is given


def plan(
    A: Any,
    n_matvecs: int | None,
    n_probes: int | None,
    steps: int | None,
    n_deflate: int | None,
    probes: Any,
    caller: str,
) -> Plan:
    """Split the budget: `n_probes` = 2/5 √n_matvecs, `steps` = n_matvecs / n_probes, where they are not given.

    Before that, the `n_deflate` directions take `DEFLATION` products each, or up to `ENOUGH` in all where the budget is
    larger; None is one of sixteen products.
    """
    for name, x, least in (("n_matvecs", n_matvecs, 2), ("n_probes", n_probes, 1), ("steps", steps, 2)):
        if x is not None:
            check.budget(x, None, least, name, caller)
    if probes is not None:
        q = n_deflate or 0
        drawn = check.budget(None if n_probes is None else n_probes + q, probes, 1 + q, "n_probes", caller)
        n_deflate, n_probes = q, drawn - q
    if n_matvecs is None:
        if n_probes is None or steps is None:
            raise TypeError(f"{caller}: give a budget, n_matvecs=100 for instance, or both n_probes= and steps=.")
        n_matvecs = n_probes * steps + DEFLATION * (n_deflate or 0)
    total = n_matvecs
    if n_deflate is None:  # what the split leaves, where it is given
        n_deflate = n_matvecs // 16
        if n_probes is not None and steps is not None:
            n_deflate = max(0, min(n_deflate, (n_matvecs - n_probes * steps) // DEFLATION))
    q = min(check.budget(n_deflate, None, 0, "n_deflate", caller), A.shape[0] // 3)
    spare = total - n_probes * steps if n_probes is not None and steps is not None else min(ENOUGH, SHARE * total)
    blocks = min(max(DEFLATION, int(min(spare, ENOUGH)) // q), A.shape[0] // q) if q else 0
    n_matvecs -= blocks * q
    if n_matvecs < 2:
        raise ValueError(
            f"{caller}: n_deflate = {q} directions take {blocks * q} products, n_matvecs = {total} leaves "
            f"{max(0, n_matvecs)} for the rest; raise it, or deflate fewer."
        )
    free = n_matvecs if n_probes is None and steps is None else 0
    if n_probes is not None:
        s = n_probes
    elif steps is not None:
        s = max(1, n_matvecs // steps)
    else:
        s = max(1, round(n_matvecs**0.5 / 2.5))
    steps = max(2, n_matvecs // s) if steps is None else steps
    if s * steps > n_matvecs:
        raise ValueError(
            f"{caller}: n_probes = {s} times steps = {steps} make {s * steps} products, n_matvecs = {n_matvecs} allows "
            "fewer; give two of the three."
        )
    cost = cost_of_all(A)
    exact = probes is None and cost is not None and total >= cost
    if not exact:
        require_matmat(A, caller)
    return Plan(s, min(steps, A.shape[0]), q, blocks, exact, free)


def require_matmat(A: Any, caller: str) -> None:
    """Raise unless A can be multiplied again and again."""
    if can(A, "matmat"):
        return
    if A.factor is not None:
        raise TypeError(
            f"{caller}: Krylov spaces need K V = J(Jᴴ V), and {A.factor!r} has one side alone; give J both sides (jvp "
            f"and vjp), or, of a kernel that fits in memory, a budget of {cost_of_all(A) or A.shape[0]} products, for "
            "which all of it is made by vjps."
        )
    check.require_side(A, "matmat", caller)
