"""XTrace and XNysTrace: every probe serves the sketch and the residual, by leaving one out at a time.

Both take k probes Ω and give k estimates, one for each probe left out of the sketch and put into the residual.
Nothing is recomputed: leaving probes out is a low-rank downdate. Leaving two out gives what a run without probe j
would have given, hence a jackknife error which knows that all estimates share one basis; their plain spread does
not, and understates the error.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from traceest import _array_api as aa
from traceest import _validation as check
from traceest.estimate import Estimate
from traceest.estimators._metering import Meter, chunk_columns
from traceest.estimators.exact import cheapest, exact
from traceest.estimators.hutchpp import products
from traceest.estimators.ustatistics import Statistic, jackknife
from traceest.probes import Distribution, Probes


class LeftOut(NamedTuple):
    """Estimates with probe i left out of the sketch, (k,), and with i and j left out, (k, k), off its diagonal."""

    one: Any
    two: Any

    def statistic(self, xp: Any) -> Statistic:
        """The mean over i, and for every j what it would have been without probe j."""
        k = self.one.shape[0]
        off = 1 - xp.eye(k, dtype=self.two.dtype, device=aa.device(self.two))
        without = xp.sum(xp.where(off > 0, self.two, xp.zeros_like(self.two)), axis=0) / (k - 1)
        return Statistic(xp.sum(self.one) / k, without[None, :])


def xtrace(
    A: Any,
    n_matvecs: int | None = None,
    *,
    rng: Any = None,
    distribution: Distribution = "sphere",
    probes: Any = None,
    normalise: bool = True,
    chunk_size: int | None = None,
) -> Estimate:
    """Estimate tr A by XTrace: Hutch++ in which every probe plays both parts.

    With Y = AΩ, Q = orth(Y) and Q₍ᵢ₎ the basis without probe i, the estimate is the mean over i of
    tr(Q₍ᵢ₎ᴴAQ₍ᵢ₎) + ωᵢᴴ(I − Q₍ᵢ₎Q₍ᵢ₎ᴴ)A(I − Q₍ᵢ₎Q₍ᵢ₎ᴴ)ωᵢ. k probes cost 2k products; for a Gram operator
    K = JJᴴ, 2k vjps and k jvps.

    Choose it where the spectrum decays or has a step and A is not known to be PSD; if it is, `xnystrace` does
    with half the products. On flat spectra `hutchinson` is better.

    Parameters
    ----------
    A : operator, (n, n)
        Anything that `aslinearoperator` takes, with `matmat`; it need not be symmetric.
    n_matvecs : int
        At least 4; k = n_matvecs // 2. From the exact trace's cost on (n; less for a Gram operator), that is returned.
    rng, chunk_size
        As in `hutchinson`.
    distribution : {"sphere", "gaussian", "rademacher"}
        Law of the probes; `normalise` asks for a rotation-invariant one, which Rademacher is not.
    probes : array, (n, k), optional
        Explicit probes; 2k products are spent.
    normalise : bool
        Rescale what is left of each probe to the length that it should have ("improved" probes): less variance.
        Switched off for Rademacher probes.

    Returns
    -------
    Estimate
        With delete-one jackknife error. Memory O(n k).

    Raises
    ------
    ValueError
        If A is not square, the budget is below 4, or probes are orthogonal.
    TypeError
        If A has no `matmat`.

    References
    ----------
    Epperly, Tropp, Webber (2024), XTrace: Making the most of every sample in stochastic trace estimation.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = np.diag(0.7 ** np.arange(200.0))
    >>> abs(float(te.xtrace(A, 60, rng=0)) * 0.3 - 1) < 1e-3
    True
    """
    A, k, chunk = _prepare(A, n_matvecs, probes, distribution, 2, "xtrace")
    best = cheapest(A)
    if probes is None and best is not None and 2 * k >= best.cost:
        return exact(A, chunk_size=chunk_size)
    meter, xp, n = Meter(A), aa.namespace(A), A.shape[0]
    Omega = Probes(n, A, rng=rng, distribution=distribution, probes=probes).take(k)
    Y = products(xp, meter.op, Omega, chunk)
    scale = aa.safe_scale(xp, Y)
    Q, R = xp.linalg.qr(Y / scale)[:2]
    H, T = _compressed(xp, meter.op, Q, R, Omega, scale, chunk)
    left_out = _xtrace_left_out(xp, Omega, Q, R, H, T, normalise and distribution != "rademacher")
    bounds = (0.0, math.inf) if getattr(A, "psd", False) else (-math.inf, math.inf)
    statistic = left_out.statistic(xp).map(lambda x: x * xp.sum(scale))
    return jackknife(xp, statistic, method="xtrace", bounds=bounds, **meter.spent)


def xnystrace(
    A: Any,
    n_matvecs: int | None = None,
    *,
    rng: Any = None,
    distribution: Distribution = "sphere",
    probes: Any = None,
    normalise: bool = True,
    chunk_size: int | None = None,
) -> Estimate:
    """Estimate tr A of a positive semidefinite A by XNysTrace: a Nyström approximation, leaving one probe out.

    With Y = AΩ, H = ΩᴴY and the Nyström approximation Â = YH⁻¹Yᴴ, leaving probe i out takes uᵢuᵢᴴ/(H⁻¹)ᵢᵢ from Â,
    U = YH⁻¹, and the residual form ωᵢᴴ(A − Â₍ᵢ₎)ωᵢ is 1/(H⁻¹)ᵢᵢ. k probes cost k products. A tiny shift
    (of rounding size, taken off again) keeps H invertible for operators of any rank.

    The most accurate of all where the spectrum decays. Calling it declares A positive semidefinite.

    Parameters
    ----------
    A : operator, (n, n), positive semidefinite
        Anything that `aslinearoperator` takes, with `matmat`.
    n_matvecs : int
        At least 2; k = n_matvecs. From the exact trace's cost on, that is returned.
    rng, distribution, probes, normalise, chunk_size
        As in `xtrace`; with explicit probes k products are spent.

    Returns
    -------
    Estimate
        With delete-one jackknife error, bounded below by 0. Memory O(n k).

    Raises
    ------
    ValueError
        If A is not square, the budget is below 2, or probes are orthogonal.
    TypeError
        If A has no `matmat`.

    References
    ----------
    Epperly, Tropp, Webber (2024), XTrace: Making the most of every sample in stochastic trace estimation.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = np.diag(0.7 ** np.arange(200.0))
    >>> abs(float(te.xnystrace(A, 60, rng=0)) * 0.3 - 1) < 1e-7
    True
    """
    A, k, chunk = _prepare(A, n_matvecs, probes, distribution, 1, "xnystrace")
    best = cheapest(A)
    if probes is None and best is not None and k >= best.cost:
        return exact(A, chunk_size=chunk_size)
    meter, xp, n = Meter(A), aa.namespace(A), A.shape[0]
    Omega = Probes(n, A, rng=rng, distribution=distribution, probes=probes).take(k)
    Y = products(xp, meter.op, Omega, chunk)
    scale = aa.safe_scale(xp, Y)
    left_out = _xnystrace_left_out(xp, Omega, Y / scale, normalise and distribution != "rademacher")
    statistic = left_out.statistic(xp).map(lambda x: x * xp.sum(scale))
    return jackknife(xp, statistic, method="xnystrace", bounds=(0.0, math.inf), **meter.spent)


def _prepare(A: Any, m: int | None, probes: Any, distribution: str, each: int, caller: str) -> tuple[Any, int, int]:
    """The operator, the number of probes, and the chunk; a probe costs `each` products."""
    A = check.square(A, caller)
    check.require_side(A, "matmat", caller)
    check.check_probes(probes, A.shape[0], A, caller)
    if distribution == "orthogonal":
        raise ValueError(f"{caller}: leaving one out needs independent probes; choose sphere, gaussian or rademacher.")
    if probes is not None:
        spent = each * probes.shape[-1]
        if m is not None and m != spent:
            raise ValueError(f"{caller}: {probes.shape[-1]} probes spend {spent} products, not n_matvecs = {m}.")
        m = spent
    m = check.budget(m, None, 2 * each, "n_matvecs", caller)
    return A, m // each, chunk_columns(A, None)


def _compressed(xp: Any, A: Any, Q: Any, R: Any, Omega: Any, scale: Any, chunk: int) -> tuple[Any, Any]:
    """H = QᴴAQ and T = (AQ)ᴴΩ, over `scale`; where A is self-adjoint T is QᴴY = R, of K = JJᴴ H needs vjps alone."""
    if hasattr(A, "factor"):
        G = aa.concat_columns(
            xp, [A.factor.rmatmat(Q[:, i : min(i + chunk, Q.shape[1])]) for i in range(0, Q.shape[1], chunk)]
        )
        unit = xp.sqrt(scale)
        return aa.adjoint(xp, G / unit) @ (G / unit), R
    Z = products(xp, A, Q, chunk) / scale
    return aa.adjoint(xp, Q) @ Z, R if A.symmetric else aa.adjoint(xp, Z) @ Omega


def _xtrace_left_out(xp: Any, Omega: Any, Q: Any, R: Any, H: Any, T: Any, normalise: bool) -> LeftOut:
    """XTrace's estimates; S holds the unit vectors with Q₍ᵢ₎Q₍ᵢ₎ᴴ = Q(I − sᵢsᵢᴴ)Qᴴ, normalised columns of R⁻ᴴ."""
    n, k = Omega.shape
    S = _left_out_directions(xp, R)
    W = aa.adjoint(xp, Q) @ Omega
    X = W - S * aa.vdot(xp, S, W)[None, :]  # xᵢ = (I − sᵢsᵢᴴ)wᵢ
    HX, HS = H @ X, H @ S
    residual = aa.vdot(xp, W, R) - aa.vdot(xp, T, X) - aa.vdot(xp, X, R) + aa.vdot(xp, X, HX)
    length2 = xp.sum(aa.abs2(xp, Omega), axis=0) - xp.sum(aa.abs2(xp, X), axis=0)
    trace = xp.sum(xp.linalg.diagonal(H))
    SHS = xp.linalg.diagonal(aa.adjoint(xp, S) @ HS)
    one = trace - SHS + residual * _rescaling(xp, n - k + 1, length2, normalise)

    # Two left out, a = sᵢ (rows) and b = sⱼ (columns): b − a c, c = aᴴb, is orthogonal to a and has squared length d.
    c = aa.adjoint(xp, S) @ S
    d = 1 - aa.abs2(xp, c)
    parallel = d < 1e3 * xp.finfo(d.dtype).eps  # then leaving j out as well changes nothing
    d = xp.where(parallel, xp.ones_like(d), d)
    beta = xp.matrix_transpose(aa.adjoint(xp, S) @ X)  # bᴴxᵢ
    kept = xp.where(parallel, xp.zeros_like(beta), beta / d)
    conj_kept = aa.conj(xp, kept)

    def orthogonalised(M: Any) -> Any:
        """[rowᵢ · (b − a c)] of M = (rows)ᴴS, (i, j)."""
        return M - xp.linalg.diagonal(M)[:, None] * c

    Tb = orthogonalised(aa.adjoint(xp, T) @ S)
    Rb = aa.conj(xp, orthogonalised(aa.adjoint(xp, R) @ S))
    XHb = orthogonalised(aa.adjoint(xp, X) @ HS)
    HXb = aa.conj(xp, orthogonalised(aa.adjoint(xp, HX) @ S))
    SHb = aa.adjoint(xp, S) @ HS  # aᴴHb
    bHb = (
        xp.linalg.diagonal(SHb)[None, :]
        - c * xp.matrix_transpose(SHb)
        - aa.conj(xp, c) * SHb
        + _as(xp, aa.abs2(xp, c), SHb) * xp.linalg.diagonal(SHb)[:, None]
    )
    change = Tb * kept + conj_kept * Rb - XHb * kept - conj_kept * HXb + kept * conj_kept * bHb
    taken = xp.where(parallel, xp.zeros_like(bHb), bHb / _as(xp, d, bHb))
    length2 = length2[:, None] + aa.real(xp, beta * conj_kept)
    two = (trace - SHS)[:, None] - taken + (residual[:, None] + change) * _rescaling(xp, n - k + 2, length2, normalise)
    return LeftOut(one, two)


def _left_out_directions(xp: Any, R: Any) -> Any:
    """Columns of R⁻ᴴ, normalised; a vanishing diagonal entry is lifted to rounding size, which costs nothing else."""
    diagonal = xp.linalg.diagonal(R)
    size = xp.abs(diagonal)
    floor = xp.max(size) * (10 * xp.finfo(size.dtype).eps * R.shape[0])
    floor = xp.where(floor > 0, floor, xp.ones_like(floor))
    eye = xp.eye(R.shape[0], dtype=R.dtype, device=aa.device(R))
    lifted = R + xp.where(size < floor, _as(xp, floor, diagonal) - diagonal, xp.zeros_like(diagonal))[None, :] * eye
    S = xp.linalg.solve(aa.adjoint(xp, lifted), eye)
    S = S / xp.max(xp.abs(S), axis=0, keepdims=True)
    return S / xp.sqrt(xp.sum(aa.abs2(xp, S), axis=0, keepdims=True))


def _xnystrace_left_out(xp: Any, Omega: Any, Y: Any, normalise: bool) -> LeftOut:
    """XNysTrace's estimates, from H⁻¹, (ΩᴴΩ)⁻¹ and N = UᴴU with U = YH⁻¹."""
    n, k = Omega.shape
    eps = xp.finfo(Omega.dtype).eps
    shift = 10 * eps  # of Y, whose largest entry is 1
    eye = xp.eye(k, dtype=Omega.dtype, device=aa.device(Omega))
    Y = Y + shift * Omega
    H = aa.adjoint(xp, Omega) @ Y
    H = (H + aa.adjoint(xp, H)) / 2
    H_inv = xp.linalg.solve(H, eye)
    U = aa.adjoint(xp, xp.linalg.solve(H, aa.adjoint(xp, Y)))  # not Y @ H_inv, which loses what H's condition is
    N = aa.adjoint(xp, U) @ U
    trace = aa.real(xp, xp.sum(aa.conj(xp, U) * Y))
    G_inv = xp.linalg.solve(aa.adjoint(xp, Omega) @ Omega + (eps * n) * eye, eye)

    h, g, v = (aa.real(xp, xp.linalg.diagonal(M)) for M in (H_inv, G_inv, N))
    one = trace - v / h + _rescaling(xp, n - k + 1, 1 / g, normalise) / h

    # Two left out: 2×2 blocks of the inverses, [[hᵢ, hᵢⱼ], [h̄ᵢⱼ, hⱼ]] and so on.
    det_h = _determinants(xp, h, H_inv)
    det_g = _determinants(xp, g, G_inv)
    crossed = aa.real(xp, H_inv * aa.conj(xp, N))
    taken = (h[None, :] * v[:, None] + h[:, None] * v[None, :] - 2 * crossed) / det_h
    two = trace - taken + (h[None, :] / det_h) * _rescaling(xp, n - k + 2, g[None, :] / det_g, normalise)
    drop = shift * n
    return LeftOut(one - drop, two - drop)


def _determinants(xp: Any, diagonal: Any, M: Any) -> Any:
    """mᵢᵢmⱼⱼ − |mᵢⱼ|² of all pairs, 1 where i = j."""
    eye = xp.eye(M.shape[0], dtype=diagonal.dtype, device=aa.device(M))
    det = diagonal[:, None] * diagonal[None, :] - aa.abs2(xp, M)
    return xp.where(eye > 0, xp.ones_like(det), det)


def _rescaling(xp: Any, dimension: int, length2: Any, normalise: bool) -> Any:
    """(n − rank)/‖(I − P)ω‖²: what is left of a probe gets the length of an isotropic one of that dimension."""
    if not normalise:
        return xp.ones_like(length2)
    positive = length2 > 0
    return xp.where(positive, dimension / xp.where(positive, length2, xp.ones_like(length2)), xp.ones_like(length2))


def _as(xp: Any, x: Any, like: Any) -> Any:
    """Real numbers in the dtype of `like`, which may be complex."""
    return xp.astype(x, like.dtype)
