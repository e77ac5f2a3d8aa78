"""⟨A, B⟩ = tr(AᴴB): the trace of a product from one product with each of its factors."""

from __future__ import annotations

import math
from collections.abc import Callable
from os import PathLike
from typing import Any

from traceest._boundary import public
from traceest.adaptive import Stop
from traceest.kernels import statistics
from traceest.kernels.adaptive import answer
from traceest.kernels.sketches import Method, Request, kernels_of_one_state
from traceest.operators.abilities import can
from traceest.operators.algebra import Product
from traceest.operators.blocks import n_blocks
from traceest.probes import Distribution
from traceest.uncertainty.estimate import Estimate


@public
def inner_product(
    A: Any,
    B: Any,
    n_probes: int | None = None,
    *,
    n_matvecs: int | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    confidence: float = 0.95,
    max_matvecs: int | None = None,
    callback: Callable[[Estimate], Any] | None = None,
    progress: bool = False,
    explain: bool | Callable[[str], Any] = False,
    checkpoint: str | PathLike[str] | None = None,
    method: Method = "auto",
    rng: Any = None,
    distribution: Distribution | None = None,
    probes: Any = None,
) -> Estimate:
    """Estimate the Frobenius inner product ⟨A, B⟩ = tr(AᴴB), of complex operators its real part.

    For self-adjoint A it is tr(AB); for any other with both sides tr(AB) is ``inner_product(A.H, B)``. The products Av
    and Bv stand beside each other, E⟨Av, Bv⟩, instead of one behind the other, and what is known of the two is used:

    * of two Gram operators with blocks, or with one side alone, the block U-statistic Σ_{b≠c} mean G⁽¹⁾G⁽²⁾ +
      Σ_b mean_{i≠j} G⁽¹⁾G⁽²⁾ of sketched Gram entries: vjps alone, one with each where Hutchinson's estimator of
      K₁K₂ takes one of each kind with each, and (Bm)² pairs from m probes;
    * otherwise a low-rank part that one basis holds of both, and what it leaves, as in `frobenius_norm`.

    `alignment` is the ratio ⟨A, B⟩ / (‖A‖ ‖B‖), with the error of the ratio.

    Parameters
    ----------
    A, B : operator, (n, n)
        Anything square that `aslinearoperator` takes.
    n_probes, n_matvecs, method, rng, distribution, probes
        As in `frobenius_norm`; the budget is spent on each operator, and the counts are the sum.
    rtol, atol, confidence, max_matvecs, callback, progress, explain, checkpoint
        As in `frobenius_norm`.

    Returns
    -------
    Estimate
        Bounded below by 0 where both are known to be positive semidefinite. Nominal 95 % intervals covered 95–99 % by
        the low-rank route and by 16 and more blocks; less by few probes without either: 87–94 % with one block or four,
        84–97 % two-sided below 8 products (600 runs each).

    Raises
    ------
    ValueError, TypeError
        As `alignment`. (Of rectangular A and B, tr AᴴB is ``trace(A.H @ B)``, A being an operator.)

    References
    ----------
    As `frobenius_norm`.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A, B = np.diag([1.0, 2.0, 3.0]), np.ones((3, 3))
    >>> float(te.inner_product(A, B, 3, rng=0))
    6.0
    """
    stop = Stop.asked("inner_product", rtol, atol, confidence, max_matvecs, callback, progress, explain, checkpoint)
    request = Request("inner_product", n_probes, n_matvecs, stop, method, rng, distribution, probes)
    Ks = kernels_of_one_state([A, B], request.caller)
    low = 0.0 if all(K.psd for K in Ks) else -math.inf
    return answer(Ks, request, statistics.inner_product, 0, 1, low)


def one_sided_pair(A: Any) -> tuple[Any, Any] | None:
    """K₁ and K₂ of A = K₁K₂ where vjps with both serve the trace better than products with A, or are all there is."""
    if not isinstance(A, Product):
        return None
    factors = [K.factor for K in A.operands]
    if not all(J is not None and can(J, "rmatmat") for J in factors):
        return None
    blocks = {n_blocks(J) for J in factors}
    return A.operands if (len(blocks) == 1 and max(blocks) > 1) or not can(A, "matmat") else None
