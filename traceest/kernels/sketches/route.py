"""Which side of the kernels a sketch is made from, by which route, and at what cost."""

from __future__ import annotations

from typing import Any

from traceest.kernels.sketches.base import Sketch
from traceest.kernels.sketches.exact import exact
from traceest.kernels.sketches.one_sided import Grams
from traceest.kernels.sketches.one_sided_sampler import one_sided
from traceest.kernels.sketches.request import Request
from traceest.kernels.sketches.two_sided_sampler import two_sided
from traceest.operators.abilities import can
from traceest.operators.blocks import n_blocks
from traceest.operators.densify import dense_bytes
from traceest.operators.gram import shorter

HELD = 2**30
"""Bytes of a Jacobian as an array."""


def route(Ks: list[Any], request: Request) -> str:
    """Which side of the kernels to take, "one-sided" or "two-sided", by the rules that `frobenius_norm` documents.

    Raises
    ------
    TypeError
        If one-sided products are asked for of kernels without factors.
    """
    factors = [K.factor for K in Ks]
    factored = all(J is not None for J in factors)
    if request.method in ("two-sided", "hutchinson"):
        return "two-sided"
    if request.method == "one-sided" and not factored:
        raise TypeError(f"{request.caller}: method='one-sided' needs Gram operators, gram(J); got {Ks!r}.")
    if not factored:
        return "two-sided"
    blocks = min(n_blocks(J) for J in factors) > 1
    counts_one_side = request.n_matvecs is None and (request.n_probes is not None or request.probes is not None)
    both = all(can(K, "matmat") for K in Ks) if not (blocks or counts_one_side) else False
    return "two-sided" if both and request.method == "auto" and not request.groups else "one-sided"


def by_blocks(Ks: list[Any], request: Request) -> list[Any]:
    """A single kernel JᴴJ whose J has blocks as JJᴴ, where all that is asked for are functions of its eigenvalues."""
    plain = request.probes is None and request.n_matvecs is None and request.method in ("auto", "one-sided", "exact")
    return [shorter(Ks[0])] if plain and len(Ks) == 1 and not request.n_extra else Ks


def by_columns(Ks: list[Any], request: Request) -> list[Any]:
    """A single kernel JJᴴ as JᴴJ, where products with both are to meet a tolerance and J has fewer columns than rows.

    The eigenvalues are the same but for zeros, the vectors shorter, and P jvps give the exact answer in place of n
    vjps: by J as an array, which has to be of a size that can be held.
    """
    plain = request.stop is not None and request.probes is None and request.method in ("auto", "two-sided")
    if not plain or len(Ks) > 1 or request.n_extra or route(Ks, request) != "two-sided":
        return Ks
    J = Ks[0].factor
    narrow = J is not None and J.shape[1] < J.shape[0] // n_blocks(J) and dense_bytes(J) <= HELD
    return [Ks[0].dual] if narrow else Ks


def exact_cost(Ks: list[Any], request: Request) -> int:
    """The budget at which the exact answer costs no more."""
    J = Ks[0].factor
    if J is None or route(Ks, request) == "two-sided":
        return int(Ks[0].shape[0])
    if not can(J, "rmatmat"):
        return int(J.shape[1])
    counts = {n_blocks(K.factor) for K in Ks}
    return int(J.shape[0]) // (counts.pop() if len(counts) == 1 else 1)


def sketch(Ks: list[Any], request: Request) -> Sketch | Grams:
    """Spend the budget, on the side and by the route that fits."""
    if request.method == "exact":
        return exact(Ks, request)
    by = route(Ks, request)
    if request.probes is None:
        cost = exact_cost(Ks, request)
        if request.n_drawn(min(2, cost)) + request.n_extra >= cost:
            return exact(Ks, request)
    return one_sided(Ks, request) if by == "one-sided" else two_sided(Ks, request)
