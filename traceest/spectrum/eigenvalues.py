"""Extreme eigenvalues."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from traceest import _array_api as aa
from traceest import _validation as check
from traceest._boundary import public
from traceest.operators.abilities import can
from traceest.operators.densify import cost_of_all
from traceest.operators.metering import Meter
from traceest.probes import Probes
from traceest.spectrum import looks
from traceest.spectrum.krylov import KrylovSpace, Ritz, Which, rayleigh_ritz
from traceest.spectrum.plan import require_matmat

DENSE = 2048
"""Rows up to which `eigh` takes less than a second or two, as much as the looks of a Krylov space."""


@dataclass(frozen=True, eq=False, repr=False)
class Eigenvalues:
    """What `eigenvalues` returns.

    Attributes
    ----------
    values : array, (k,)
        Ritz values, the end of the spectrum that was asked for first. None is beyond the true eigenvalue of its
        rank: of the largest they are lower bounds, of the smallest upper ones.
    vectors : array, (n, k), or None
        Orthonormal Ritz vectors, if asked for.
    residuals : array, (k,)
        ‖Ax − θx‖: within that of θ there is an eigenvalue of A.
    bounds : array, (k,)
        On |θ − λ|: at most the residual, and of the order of its square over the gap where the other
        Ritz values show one; with what rounding adds. That λ is the eigenvalue of θ's rank is presumed, and
        not so sure with fewer than four blocks.
    n_matvecs, n_rmatvecs : int
        Products spent, as in `Estimate`.
    converged : bool or None
        Whether all bounds are within the tolerance; None for a fixed budget.
    method : str
        "block Krylov" or "exact".

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> np.round(te.eigenvalues(np.diag([1.0, 2.0, 3.0]), 2).values, 6).tolist()
    [3.0, 2.0]
    """

    values: Any
    vectors: Any
    residuals: Any
    bounds: Any
    n_matvecs: int = 0
    n_rmatvecs: int = 0
    converged: bool | None = None
    method: str = ""

    @public
    def __repr__(self) -> str:
        cost = f"n_matvecs={self.n_matvecs}, n_rmatvecs={self.n_rmatvecs}"
        tail = "" if self.converged is None else f", converged={self.converged}"
        return f"Eigenvalues({self.values}, method={self.method!r}, {cost}{tail})"


@public
def eigenvalues(
    A: Any,
    k: int = 6,
    *,
    n_matvecs: int | None = None,
    rtol: float | None = 1e-8,
    which: Which = "largest",
    vectors: bool = False,
    block_size: int | None = None,
    method: Literal["auto", "krylov", "exact"] = "auto",
    rng: Any = None,
) -> Eigenvalues:
    """The k extreme eigenvalues of a self-adjoint A by randomised block Krylov iteration.

    Rayleigh–Ritz on [Ω, AΩ, A²Ω, …] of a random Ω of `block_size` columns, grown a block at a time until the bounds on
    all k errors are within rtol times the largest |eigenvalue| seen, or the budget is spent. The block holds k
    columns, so that eigenvalues repeated up to k times are all found. If the space grows to all of Cⁿ, the answer is
    exact.

    Choose it for the edge of a spectrum; for sums over all of it see `trace_of_function`.

    Parameters
    ----------
    A : operator, (n, n), self-adjoint
        Anything that `aslinearoperator` takes; calling it declares A self-adjoint. The singular values of J are the
        roots of ``eigenvalues(gram(J))``, or of ``eigenvalues(gram(J.H))`` where that is smaller.
    k : int
        How many; n at most.
    n_matvecs : int, optional
        Most products, at least k; default n, where the answer is exact.
    rtol : float or None
        Tolerance on the bounds, relative to the largest |eigenvalue|; not below (64 + 8√n) ε. None: spend all of
        `n_matvecs` without looking at values, which can be traced by `jax.jit`.
    which : {"largest", "smallest", "magnitude"}
        The largest, the smallest, or the largest |λ|. The smallest of a spectrum that falls towards 0 are hard to find.
    vectors : bool
        Return eigenvectors.
    block_size : int, optional
        Columns of Ω; default k. Smaller ones converge in fewer products, and may miss copies of repeated eigenvalues.
    method : {"auto", "krylov", "exact"}
        "exact" forms A as an array, by n/B vjps for a Gram operator of B independent blocks, and takes `eigh`; "auto"
        does so where a Krylov space would be most of Cⁿ at once (n ≤ 3 · block_size, or a fixed budget of n), and for
        n up to 2048 where all of A costs no more than three blocks of products.
    rng
        As in `hutchinson`.

    Returns
    -------
    Eigenvalues
        With ``converged`` False where the budget ended first. Memory 2n·m, time about 6n·m² for m products.

    Raises
    ------
    ValueError
        If A is not square, k, n_matvecs or block_size are out of range, `which` is none of the three, or the products
        are those of no self-adjoint A (not seen inside `jax.jit`, nor from one column).
    TypeError
        If A has no `matmat` (of a Gram operator: if J lacks a side); method="exact" makes do with vjps.

    References
    ----------
    Musco, Musco (2015), Randomized block Krylov methods for stronger and faster approximate SVD; Tropp, Webber (2023),
    Randomized algorithms for low-rank matrix approximation, section 3; Li, Li (2005), A note on eigenvalues of
    perturbed Hermitian matrices, for the bounds.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = np.diag(1.0 / np.arange(1, 501) ** 2)
    >>> e = te.eigenvalues(A, 3, rng=0)
    >>> bool(np.all(np.abs(e.values - [1, 1 / 4, 1 / 9]) < 1e-8)), e.converged, e.n_matvecs < 100
    (True, True, True)
    """
    A = check.square(A, "eigenvalues")
    plan = make_plan(A, k, n_matvecs, rtol, which, block_size, method, "eigenvalues")
    ritz, meter, converged = solve(A, plan, rng, "eigenvalues")
    x = ritz.vectors if vectors else None
    way = "exact" if plan.exact else "block Krylov"
    return Eigenvalues(ritz.values, x, ritz.residuals, ritz.bounds, **meter.spent, converged=converged, method=way)


class Plan(NamedTuple):
    """k eigenvalues from at most `budget` products, b columns at a time; rtol None: from just as many."""

    k: int
    budget: int
    b: int
    rtol: float | None
    which: Which
    exact: bool
    first_look: int = 0  # products before which nothing has converged


def make_plan(
    A: Any, k: int, budget: int | None, rtol: float | None, which: Which, b: int | None, method: str, caller: str
) -> Plan:
    """What the arguments of `eigenvalues` ask for."""
    n = A.shape[0]
    k = check.budget(k, None, 1, "k", caller)
    if k > n:
        raise ValueError(f"{caller}: k = {k} eigenvalues of an operator that has {n}; ask for at most n.")
    if which not in get_args(Which):
        raise ValueError(f"{caller}: which must be one of {', '.join(get_args(Which))}, got {which!r}.")
    if method not in ("auto", "krylov", "exact"):
        raise ValueError(f"{caller}: method must be auto, krylov or exact, got {method!r}.")
    if rtol is None and budget is None and method != "exact":
        raise TypeError(f"{caller}: rtol=None spends a fixed budget; give n_matvecs, for instance {10 * k}.")
    if rtol is not None and not rtol > 0:
        raise ValueError(f"{caller}: rtol must be > 0, or None for a fixed budget; got {rtol!r}.")
    budget = n if budget is None else check.budget(budget, None, k, "n_matvecs", caller)
    b = k if b is None else check.budget(b, None, 1, "block_size", caller)
    cost = cost_of_all(A)
    affordable = cost is not None and cost <= budget
    exact = method == "exact" or (
        method == "auto" and affordable and (rtol is None or _small(n, cost, b) or not can(A, "matmat"))
    )
    if exact and not affordable:
        raise ValueError(
            f"{caller}: the exact eigenvalues cost {cost} products, n_matvecs = {budget} allows fewer; raise it, or "
            "choose another method."
        )
    if not exact:
        require_matmat(A, caller)
    return Plan(k, min(budget, n), min(b, budget, n), rtol, which, exact)


def _small(n: int, cost: int | None, b: int) -> bool:
    """Whether three blocks' products make up all of Cⁿ, or pay for all of A, of which `eigh` is cheap."""
    return n <= 3 * b or (cost is not None and cost <= 3 * b and n <= DENSE)


def solve(A: Any, p: Plan, rng: Any, caller: str) -> tuple[Ritz, Meter, bool | None]:
    """Ritz pairs, what they cost, and whether they have converged."""
    xp, meter, n = aa.namespace(A), Meter(A), A.shape[0]
    if p.exact:
        D = looks.dense(xp, meter.op, caller)
        if p.rtol is not None:
            check.finite(D, "A", 0, caller)
        eye = xp.eye(n, dtype=D.dtype, device=aa.device(D))
        return rayleigh_ritz(eye, D, p.k, 1, p.which), meter, None if p.rtol is None else True
    Omega = Probes(n, A, rng=rng, distribution="gaussian").take(p.b)
    space, looked = KrylovSpace(xp, meter.op, Omega), 0
    while True:
        m = space.columns
        if p.rtol is not None:
            check.finite(space.AV[:, looked:], "A V", looked, caller)
        # A look costs about what it took to come from the last one here.
        if m == p.budget or (p.rtol is not None and m >= max(p.k, p.first_look, looked + looked // 8)):
            ritz = rayleigh_ritz(space.V, space.AV, p.k, p.b, p.which)
            looks.symmetric(ritz.asymmetry, A, caller)
            looked = m
            tolerance = max(p.rtol or 0.0, (64 + 8 * n**0.5) * float(xp.finfo(A.dtype).eps))
            converged = None if p.rtol is None else bool(xp.max(ritz.bounds) <= tolerance * ritz.size)
            if converged or m == p.budget:
                return ritz, meter, converged
        space.grow(min(p.b, p.budget - m))
