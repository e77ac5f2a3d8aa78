"""Nyström++ and NA-Hutch++: a low-rank approximation Ã from products made in one pass, plus Hutchinson on A − Ã.

Hutch++ multiplies A again by a basis that it first had to find. Here all products may be made at once, and they are
used three times over: for Ã, for the forms gᴴBg of what is left, B = A − Ã, and for the error of their mean.

The forms of a B with few large eigenvalues are like chi-squared numbers of few degrees of freedom: skewed, and ten or
twenty of them tell their own variance badly. With s − 1 degrees of freedom an interval from their spread holds in 89 to
93 % of cases instead of 95. But the vectors Bg are there, and they know more. For Hermitian B and g uniform on the
sphere of radius √n, gᴴBg − tr B is a spherical harmonic of degree two, an eigenfunction of the Laplacian, so that its
variance is its mean squared gradient up to a factor:

    Var gᴴBg = 2 E‖Bg − g·gᴴBg/n‖²    (of complex g, and then for any B, without the 2).

For Gaussian g it is 2 E‖Bg‖². Over s probes that mean has a relative variance of at most 2/s, reached where B has one
eigenvalue; there the spread of the forms has 14/s. Student's degrees of freedom are 2 over the relative variance that
the squared gradients show (Satterthwaite), and at least s, which is what 2/s gives.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from traceest import _array_api as aa
from traceest import _backends
from traceest import _validation as check
from traceest._boundary import public
from traceest.estimators.exact import cheapest, exact
from traceest.operators.metering import Meter, chunk_columns
from traceest.operators.products import products, quadratic_forms
from traceest.probes import Distribution, Probes
from traceest.uncertainty.estimate import Estimate, from_samples, told, trace_bounds


@public
def nystrompp(
    A: Any,
    n_matvecs: int | None = None,
    *,
    rng: Any = None,
    distribution: Distribution = "sphere",
    probes: Any = None,
    n_sketch: int | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    """Estimate tr A of a positive semidefinite A as tr Â + mean of gᴴ(A − Â)g, Â = AΩ(ΩᴴAΩ)⁺(AΩ)ᴴ.

    q sketch columns Ω and s residual probes g cost q + s = `n_matvecs` products; of a Gram operator K = JJᴴ, as many
    vjps and as many jvps. It is unbiased, and exact to rounding where the rank of A is at most q.

    Choose it over `hutchpp` for PSD operators whose spectrum decays: the sketch costs half. `xnystrace` is more
    accurate still where the decay is fast; this one has residual samples independent of each other, and with them
    error bars that hold from few products. Calling it declares A positive semidefinite.

    Parameters
    ----------
    A : operator, (n, n), positive semidefinite
        Anything that `aslinearoperator` takes, with `matmat`.
    n_matvecs : int
        At least 2. From the exact trace's cost on (n; less for a Gram operator), that is returned.
    rng
        As in `hutchinson`.
    distribution : {"sphere", "gaussian", "rademacher", "orthogonal", "hadamard", "balanced"}
        Law of the probes. With the last three the error is that of the samples' spread, which is noisier where few
        eigenvalues hold what the sketch leaves; but then the residual of a Gram operator needs vjps alone.
    probes : array, (n, q + s), optional
        Explicit probes of that law: the first q = `n_sketch` are the sketch Ω, the others the residual's g.
    n_sketch : int, optional
        q; default 3/5 of n_matvecs.
    chunk_size : int, optional
        Columns multiplied at a time. Memory is O(n · n_matvecs).

    Returns
    -------
    Estimate
        The error is that of the residual (Student-t; the module's head says how), bounded below by 0.

    Raises
    ------
    ValueError
        If A is not square, or the budget leaves no sketch or no residual.
    TypeError
        If A has no `matmat` (of a Gram operator: if J lacks either side).

    References
    ----------
    Persson, Cortinovis, Kressner (2022), Improved variants of the Hutch++ algorithm for trace estimation, section 3.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = np.diag(0.5 ** np.arange(200.0))
    >>> abs(float(te.nystrompp(A, 60, rng=0)) - 2) < 1e-6
    True
    """
    plan = _plan(A, n_matvecs, 1, "nystrompp", rng, distribution, probes, n_sketch, chunk_size)
    if isinstance(plan, Estimate):
        return plan
    xp, Omega = plan.stream.xp, plan.stream.take(plan.q)
    Y = products(xp, plan.meter.op, Omega, plan.chunk)
    L, R = _backends.compiled(_factors, (), (Omega, Y, Y), Y)
    return _plus_residual(plan, L, R, True, method="nystrompp", bounds=(0.0, math.inf))


@public
def na_hutchpp(
    A: Any,
    n_matvecs: int | None = None,
    *,
    rng: Any = None,
    distribution: Distribution = "sphere",
    probes: Any = None,
    n_sketch: int | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    """Estimate tr A as tr Ã + mean of gᴴ(A − Ã)g, Ã = AR(SᴴAR)⁺SᴴA: Hutch++ in one pass.

    With q columns of S, 2q of R and s residual probes g the cost is 3q + s = `n_matvecs` products: AR, Ag, and AᴴS
    for SᴴA (by `rmatmat`, unless A is known to be symmetric); of a Gram operator K = JJᴴ, as many vjps and as many
    jvps. It is unbiased for every square A.

    Choose it where products are only to be had in one batch, and A is not PSD; else `hutchpp` is more accurate,
    and for PSD operators `nystrompp`.

    Parameters
    ----------
    A : operator, (n, n)
        Anything that `aslinearoperator` takes, with `matmat`, and `rmatmat` unless it is known to be symmetric.
    n_matvecs : int
        At least 4. From the exact trace's cost on (n; less for a Gram operator), that is returned.
    rng, distribution, chunk_size
        As in `nystrompp`.
    probes : array, (n, 3q + s), optional
        Explicit probes: the first q = `n_sketch` are S, the next 2q are R, the others the residual's g.
    n_sketch : int, optional
        q; default n_matvecs // 5, so that S, R and g have about 1/5, 2/5 and 2/5 of the budget (the paper's
        c₁, c₂, c₃).

    Returns
    -------
    Estimate
        The error is that of the residual (Student-t; the module's head says how). Memory O(n · n_matvecs).

    Raises
    ------
    ValueError
        If A is not square, or the budget leaves no sketch or no residual.
    TypeError
        If A has no `matmat`, or no `rmatmat` and is not known to be symmetric (of a Gram operator: if J lacks either).

    References
    ----------
    Meyer, Musco, Musco, Woodruff (2021), Hutch++: Optimal Stochastic Trace Estimation, Algorithm 2.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = np.diag(0.5 ** np.arange(200.0))
    >>> abs(float(te.na_hutchpp(A, 60, rng=0)) - 2) < 1e-2
    True
    """
    plan = _plan(A, n_matvecs, 3, "na_hutchpp", rng, distribution, probes, n_sketch, chunk_size)
    if isinstance(plan, Estimate):
        return plan
    op, xp = plan.meter.op, plan.stream.xp
    S, R = plan.stream.take(plan.q), plan.stream.take(2 * plan.q)
    W = products(xp, op if op.symmetric else op.H, S, plan.chunk)
    Z = products(xp, op, R, plan.chunk)
    L, R = _backends.compiled(_factors, (), (S, W, Z), Z)
    return _plus_residual(plan, L, R, op.symmetric, method="na_hutchpp", bounds=trace_bounds(op))


class _Plan(NamedTuple):
    """What is to be spent on what: q columns of sketch, s of residual."""

    meter: Meter
    stream: Probes
    q: int
    s: int
    chunk: int


def _plan(
    A: Any,
    m: int | None,
    each: int,
    caller: str,
    rng: Any,
    distribution: Distribution,
    probes: Any,
    q: int | None,
    chunk_size: int | None,
) -> Estimate | _Plan:
    """The plan, or the exact trace if m affords it. A sketch column costs `each` products."""
    A = check.square(A, caller)
    check.require_side(A, "matmat", caller)
    if each > 1 and not (getattr(A, "symmetric", False) or hasattr(A, "rmatmat")):
        raise TypeError(
            f"{caller}: needs rmatmat (reverse mode, vjp) for SᴴA, which {A!r} has not got; give it one, or say "
            "aslinearoperator(…, symmetric=True) if it is."
        )
    n = A.shape[0]
    m = check.budget(m, probes, each + 1, "n_matvecs", caller)
    check.check_probes(probes, n, A, caller)
    # Mean error at n = 1000, m = 60 and 120, against the papers' m/2 (Nyström++) and m/6 (NA-Hutch++): 3m/5 and m/5 are
    # 5 to 24 % worse on λ = 1…3; 15 to 19 % better on i⁻², 3 to 59 % on 0.9^i, 38 to 98 % on 0.7^i, 7 to 22 % on an
    # NTK, and from 4 % worse to 70 % better on steps.
    q = max(1, 3 * m // 5 if each == 1 else m // 5) if q is None else q
    if q < 1 or m - each * q < 1:
        cost = "q + s" if each == 1 else f"{each}q + s"
        raise ValueError(
            f"{caller}: n_sketch = {q} of n_matvecs = {m} leaves {m - each * q} for the residual; {cost} = n_matvecs "
            "with q ≥ 1 and s ≥ 1 is needed."
        )
    chunk = chunk_columns(A, chunk_size)
    best = cheapest(A)
    if probes is None and best is not None and m >= best.cost:
        return exact(A, chunk_size=chunk)
    stream = Probes(n, A, rng=rng, distribution=distribution, probes=probes)
    return _Plan(Meter(A), stream, q, m - each * q, chunk)


def _factors(arrays: tuple[Any, Any, Any]) -> tuple[Any, Any]:
    """L and R of Ã = Z(SᴴZ)⁺Wᴴ = LRᴴ, by QR of (SᴴZ)ᴴ, from S, W and Z.

    The floor, of the size of rounding, gives QR full rank, and so a derivative, whatever the rank of A and however
    unlucky S. It moves singular values σ of SᴴZ by a fraction (floor/σ)² only, and the residual sees by how much.
    """
    S, W, Z = arrays
    xp = aa.namespace(Z)
    scale = aa.safe_scale(xp, Z)
    M = aa.adjoint(xp, S) @ (Z / scale)
    q, p = M.shape
    floor = 10 * S.shape[0] * xp.finfo(M.dtype).eps * xp.eye(q, dtype=M.dtype, device=aa.device(M))
    V, T = xp.linalg.qr(xp.concat([aa.adjoint(xp, M), floor], axis=0))[:2]
    return Z @ V[:p, :], aa.adjoint(xp, xp.linalg.solve(aa.adjoint(xp, T), aa.adjoint(xp, W / scale)))


def _plus_residual(plan: _Plan, L: Any, R: Any, hermitian: bool, **fields: Any) -> Estimate:
    """Tr Ã + mean gᴴ(A − Ã)g for Ã = LRᴴ, of which the Hermitian part is taken where A is Hermitian."""
    xp, op, law = plan.stream.xp, plan.meter.op, plan.stream.distribution
    G = plan.stream.take(plan.s)
    if law in ("sphere", "gaussian"):
        arrays = L, R, G, products(xp, op, G, plan.chunk)
        value, stderr, df = _backends.compiled(_mean, (law == "sphere", bool(hermitian)), arrays, G)
        return told(Estimate(value, stderr, df, None, **plan.meter.spent, **fields), "trace", op, plan.stream.marks)
    RG, LG = aa.adjoint(xp, R) @ G, aa.adjoint(xp, L) @ G
    chunks = (G[:, i : min(i + plan.chunk, plan.s)] for i in range(0, plan.s, plan.chunk))
    forms = _part(xp, quadratic_forms(xp, op, chunks) - aa.vdot(xp, LG, RG), hermitian)
    e = from_samples(forms[None, :], population=plan.stream.population, **plan.meter.spent, **fields)
    e = Estimate(_trace(xp, L, R, hermitian) + e.value, e.stderr, e.df, None, **plan.meter.spent, **fields)
    return told(e, "trace", op, plan.stream.marks)


def _mean(sphere: bool, hermitian: bool, arrays: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    """The same with its standard error and degrees of freedom, from L, R, G and AG."""
    L, R, G, AG = arrays
    xp = aa.namespace(G)
    seen = L @ (aa.adjoint(xp, R) @ G)
    if hermitian or not aa.is_complex(xp, G.dtype):  # of real A, real forms see the Hermitian part alone
        seen = (seen + R @ (aa.adjoint(xp, L) @ G)) / 2
    BG = AG - seen
    forms = aa.vdot(xp, G, BG)
    value = _trace(xp, L, R, hermitian) + _part(xp, xp.sum(forms) / G.shape[1], hermitian)
    return value, *_stderr(xp, G, BG, forms, sphere, hermitian)


def _trace(xp: Any, L: Any, R: Any, hermitian: bool) -> Any:
    """Tr LRᴴ."""
    return _part(xp, xp.sum(aa.vdot(xp, R, L)), hermitian)


def _part(xp: Any, x: Any, hermitian: bool) -> Any:
    """What is not rounding of it."""
    return aa.real(xp, x) if hermitian else x


def _stderr(xp: Any, G: Any, BG: Any, forms: Any, sphere: bool, hermitian: bool) -> tuple[Any, Any]:
    """Standard error of the mean of `forms` = gᴴBg, and its degrees of freedom, as the module's head says."""
    n, s = G.shape
    slope = BG - G * (forms / n)[None, :] if sphere else BG
    unit = aa.safe_scale(xp, slope)  # squares stay in range
    squares = xp.sum(aa.abs2(xp, slope / unit), axis=0)
    variance, df = mean_square(xp, squares)
    if not aa.is_complex(xp, G.dtype):
        variance = 2 * variance
        if not hermitian:
            variance = variance * _symmetric_share(xp, G, (BG - G * (xp.sum(forms) / (s * n))) / unit)
    return xp.sqrt(variance / s) * xp.sum(unit), df


def mean_square(xp: Any, squares: Any) -> tuple[Any, Any]:
    """The mean of squared gradients, along the last axis, and its degrees of freedom, as the module's head says."""
    s = squares.shape[-1]
    variance = xp.sum(squares, axis=-1, keepdims=True) / s
    spread = xp.sum((squares - variance) ** 2, axis=-1) / max(s - 1, 1)
    variance = variance[..., 0]
    least = (spread == 0) | (spread > 2 * variance**2)
    df = s * xp.where(least, xp.ones_like(spread), 2 * variance**2 / xp.where(least, xp.ones_like(spread), spread))
    return variance, df


def _symmetric_share(xp: Any, G: Any, BG: Any) -> Any:
    """‖(B + Bᵀ)/2‖²/‖B‖², by gᵢᵀBgⱼ of different probes: the skew part of a real B is in Bg, but in no gᵀBg."""
    P = aa.adjoint(xp, G) @ BG
    P = P * (1 - xp.eye(P.shape[0], dtype=P.dtype, device=aa.device(P)))
    whole, symmetric = xp.sum(P**2), xp.sum((P + xp.matrix_transpose(P)) ** 2) / 4
    return xp.where(whole > 0, symmetric / xp.where(whole > 0, whole, xp.ones_like(whole)), xp.ones_like(whole))
