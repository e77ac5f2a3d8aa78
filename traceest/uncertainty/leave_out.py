"""Leaving one or two probes out of a sketch: the algebra of XTrace and XNysTrace, and their error bars.

Both take k probes Ω and give k estimates eᵢ, one for each probe left out of the sketch and put into the residual, and
their mean θ. Nothing is recomputed: leaving probes out is a low-rank downdate.

The eᵢ share most of a sketch, and their plain spread understates the error several times over. Leaving out two
tells how much: let eᵢⱼ have j out of the sketch as well, and δᵢⱼ = eᵢ − eᵢⱼ. Given the k − 2 others, eᵢⱼ and eⱼᵢ are
independent with mean tr A; and given all but ωⱼ, δⱼᵢ has mean 0. So Cov(eᵢ, eⱼ) = E[δᵢⱼδⱼᵢ] and

    Var θ = E[ spread/k + mean δᵢⱼδⱼᵢ ],   spread = Σ|eᵢ − θ|²/(k − 1),

with no bias: leaving two out is all that an honest error bar takes. The second mean is noisy where the spectrum
falls fast, and may be negative: half of mean ½|eᵢⱼ − eⱼᵢ|²/k, the independent pairs' own variance, is a floor. What
rounding leaves of sums of k terms is added, so that an answer exact to rounding has an error bar of that size.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from traceest import _array_api as aa
from traceest import _backends
from traceest.uncertainty.estimate import Estimate
from traceest.uncertainty.moments import degrees_of_freedom

Mean = tuple[Any, Any, Any]
"""Value, standard error, and its degrees of freedom."""


class LeftOut(NamedTuple):
    """Estimates with probe i left out of the sketch, (…, k), and with i and j left out, (…, k, k), off its diagonal.

    `magnitude`, (…), is the size of the terms that were added up to give them.
    """

    one: Any
    two: Any
    magnitude: Any

    def real(self, xp: Any) -> LeftOut:
        """Of a self-adjoint operator the imaginary parts are rounding."""
        return LeftOut(aa.real(xp, self.one), aa.real(xp, self.two), self.magnitude)

    def estimate(self, xp: Any, size: Any, **fields: Any) -> Estimate:
        """Their mean, with the standard error that the module's head derives, times `size`."""
        value, stderr, df = self.mean(xp, size)
        return Estimate(value, stderr, df, None, **fields)

    def mean(self, xp: Any, size: Any) -> Mean:
        """The same as value, standard error and degrees of freedom."""
        k, pairs = self.one.shape[-1], (-2, -1)
        theta = xp.sum(self.one, axis=-1, keepdims=True) / k
        deviations = self.one - theta
        delta = (self.one[..., :, None] - self.two) * (1 - xp.eye(k, dtype=self.two.dtype, device=aa.device(self.two)))
        known = xp.finfo(self.magnitude.dtype)
        rounding = k**0.5 * known.eps * self.magnitude[..., None, None] + known.smallest_normal  # never 0
        # Squares of small errors stay in range, those of eᵢⱼ − eⱼᵢ = (eᵢ − θ) − (eⱼ − θ) − δᵢⱼ + δⱼᵢ among them.
        unit = aa.largest(xp, deviations, -1, keepdims=True)[..., None] + rounding
        unit = unit + aa.largest(xp, delta, pairs, keepdims=True)
        squares = aa.abs2(xp, deviations / unit[..., 0])
        apart = (self.two - xp.matrix_transpose(self.two)) / unit
        delta = delta / unit
        product = aa.real(xp, delta * aa.adjoint(xp, delta))
        covariance = xp.sum(product, axis=pairs) / (k * (k - 1))
        independent = xp.sum(aa.abs2(xp, apart), axis=pairs) / (2 * k * k * (k - 1))
        variance = xp.maximum(xp.sum(squares, axis=-1) / (k * (k - 1)) + covariance, independent / 2)
        variance = variance + ((rounding / unit) ** 2)[..., 0, 0]
        stderr = aa.root(xp, variance) * unit[..., 0, 0]
        return theta[..., 0] * size, stderr * size, degrees_of_freedom(xp, squares)


class Basis(NamedTuple):
    """A sketch's basis Q and its probes, and what leaving one or two of them out takes away.

    Q₍ᵢ₎Q₍ᵢ₎ᴴ = Q(I − sᵢsᵢᴴ)Qᴴ, sᵢ the normalised columns of R⁻ᴴ; xᵢ = (I − sᵢsᵢᴴ)Qᴴωᵢ, and ‖ωᵢ − Qxᵢ‖² is `length2`.
    Of two left out, a = sᵢ (rows) and b = sⱼ (columns): b − a c, c = aᴴb, is orthogonal to a, and `weight` is one over
    its squared length, or 0 where they are parallel: then leaving j out as well changes nothing.
    """

    n: int
    W: Any
    S: Any
    X: Any
    length2: Any
    c: Any
    weight: Any

    @classmethod
    def of(cls, xp: Any, Omega: Any, Q: Any, R: Any) -> Basis:
        """From Q, R = qr(AΩ)."""
        S, W = left_out_directions(xp, R), aa.adjoint(xp, Q) @ Omega
        X = W - S * aa.vdot(xp, S, W)[None, :]
        length2 = xp.sum(aa.abs2(xp, Omega), axis=0) - xp.sum(aa.abs2(xp, X), axis=0)
        c = aa.adjoint(xp, S) @ S
        return cls(Omega.shape[0], W, S, X, length2, c, pair_weights(xp, c))

    def traces(self, xp: Any, forms: Any, r: Any, t: Any, H: Any, normalise: bool) -> LeftOut:
        """Estimates of tr C, for any C, from ωᵢᴴCωᵢ, rᵢ = QᴴCωᵢ, tᵢ = QᴴCᴴωᵢ and H = QᴴCQ.

        eᵢ = tr(Q₍ᵢ₎ᴴCQ₍ᵢ₎) + uᵢᴴCuᵢ with uᵢ = ωᵢ − Qxᵢ. XTrace has C = A; the sketch may be of another operator. C
        is self-adjoint where t is r itself.
        """
        _, _, S, X, length2, c, weight = self
        n, k, Sh = self.n, S.shape[1], aa.adjoint(xp, S)
        rest = r - H @ X  # QᴴCuᵢ
        rest_h = rest if t is r else t - aa.adjoint(xp, H) @ X  # QᴴCᴴuᵢ
        residual = forms - aa.vdot(xp, rest_h, X) - aa.vdot(xp, X, r)
        diagonal, aHb = xp.linalg.diagonal(H), Sh @ (H @ S)
        aHa = xp.linalg.diagonal(aHb)
        trace = xp.sum(diagonal)
        without = trace - aHa
        one = without + residual * _rescaling(xp, n - k + 1, length2, normalise)

        beta = xp.matrix_transpose(Sh @ X)  # bᴴxᵢ
        kept = beta * _as(xp, weight, beta)
        conj_kept = aa.conj(xp, kept)

        def along(M: Any) -> Any:
            """[mᵢᴴ(b − a c)], (i, j)."""
            MS = aa.adjoint(xp, M) @ S
            return (MS - xp.linalg.diagonal(MS)[:, None] * c) * kept

        change = along(rest_h)
        change = change + aa.conj(xp, change if t is r else along(rest))
        cross = c * xp.matrix_transpose(aHb)  # (b − a c)ᴴH(b − a c) = bᴴHb − …
        cross = cross + (aa.conj(xp, cross) if t is r else aa.conj(xp, c) * aHb)
        bHb = aHa[None, :] - cross + _as(xp, aa.abs2(xp, c), c) * aHa[:, None]
        gained = beta * conj_kept
        residual = residual[:, None] + change + kept * conj_kept * bHb
        residual = residual * _rescaling(xp, n - k + 2, length2[:, None] + aa.real(xp, gained), normalise)
        two = without[:, None] - bHb * _as(xp, weight, bHb) + residual
        return LeftOut(one, two, xp.sum(xp.abs(diagonal)))


def xtrace_left_out(
    xp: Any, Omega: Any, Q: Any, R: Any, QY: Any, H: Any, T: Any, normalise: bool, forms: Any = None
) -> LeftOut:
    """XTrace's estimates; T = QᴴAᴴΩ, and since Aωᵢ = QQᴴyᵢ the forms ωᵢᴴAωᵢ are those of QᴴΩ with QᴴY.

    They are to be given where they are differentiated: Y may be on its way out of the span of Q.
    """
    basis = Basis.of(xp, Omega, Q, R)
    return basis.traces(xp, aa.vdot(xp, basis.W, QY) if forms is None else forms, QY, T, H, normalise)


def xtrace(normalise: bool, arrays: tuple[Any, ...]) -> Mean:
    """XTrace's answer from Ω, Q, R, QᴴY, H and T, what they are in units of, and the forms, if they are given.

    T is None, for QᴴY, of a self-adjoint A.
    """
    Omega, Q, R, QY, H, T, top, forms = arrays
    xp = aa.namespace(R)
    left_out = xtrace_left_out(xp, Omega, Q, R, QY, H, QY if T is None else T, normalise, forms)
    return (left_out.real(xp) if T is None else left_out).mean(xp, top)


def xnystrace(normalise: bool, differentiated: bool, arrays: tuple[Any, Any]) -> Mean:
    """XNysTrace's answer from Ω and Y.

    Where that is differentiated, the unit of Y = 0 is 1: an answer times 0 would have no derivative.
    """
    Omega, Y = arrays
    xp = aa.namespace(Y)
    scale = aa.safe_scale(xp, Y)
    top, size = aa.largest(xp, Y), xp.sum(scale)
    value, stderr, df = xnystrace_left_out(xp, Omega, Y / scale, normalise).mean(xp, size if differentiated else top)
    if not differentiated:
        return value, stderr, df
    of_zero = xp.where(top > 0, 0.0, _backends.constant(value))  # what rounding makes of it
    return value - of_zero, stderr * (top / size), df


def pair_weights(xp: Any, c: Any) -> Any:
    """1/(1 − |c|²) of all pairs of directions, 0 of those that are parallel."""
    d = 1 - aa.abs2(xp, c)
    return 1 / xp.where(d < 1e3 * xp.finfo(d.dtype).eps, math.inf, d)


def left_out_directions(xp: Any, R: Any) -> Any:
    """Columns of R⁻ᴴ, normalised; a vanishing diagonal entry is lifted to rounding size, which costs nothing else."""
    diagonal = xp.linalg.diagonal(R)
    size = xp.abs(diagonal)
    floor = xp.max(size) * (10 * xp.finfo(size.dtype).eps * R.shape[0])
    floor = xp.where(floor > 0, floor, 1.0)
    eye = xp.eye(R.shape[0], dtype=R.dtype, device=aa.device(R))
    lifted = R + xp.where(size < floor, _as(xp, floor, diagonal) - diagonal, 0.0) * eye
    S = xp.linalg.solve(aa.adjoint(xp, lifted), eye)
    S = S / _as(xp, aa.largest(xp, S, 0, keepdims=True), S)
    return S / _as(xp, xp.sqrt(xp.sum(aa.abs2(xp, S), axis=0, keepdims=True)), S)


def xnystrace_left_out(xp: Any, Omega: Any, Y: Any, normalise: bool) -> LeftOut:
    """XNysTrace's estimates, from H⁻¹, (ΩᴴΩ)⁻¹ and N = UᴴU with U = YH⁻¹."""
    n, k = Omega.shape
    eps = xp.finfo(Omega.dtype).eps
    shift = eps  # of Y, whose largest entry is 1
    eye = xp.eye(k, dtype=Omega.dtype, device=aa.device(Omega))
    Y = Y + shift * Omega
    H = aa.adjoint(xp, Omega) @ Y
    H = (H + aa.adjoint(xp, H)) / 2
    H_inv = xp.linalg.solve(H, eye)
    Uh = xp.linalg.solve(H, aa.adjoint(xp, Y))  # not H_inv @ Yᴴ, which loses what H's condition is
    N = Uh @ aa.adjoint(xp, Uh)
    trace = aa.real(xp, xp.sum(H * aa.conj(xp, N)))  # tr UYᴴ = tr HN
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
    return LeftOut(one - drop, two - drop, trace)


def _determinants(xp: Any, diagonal: Any, M: Any) -> Any:
    """mᵢᵢmⱼⱼ − |mᵢⱼ|² of all pairs, 1 where i = j."""
    det = diagonal[:, None] * diagonal[None, :] - aa.abs2(xp, M)
    return xp.where(xp.eye(M.shape[0], dtype=xp.bool, device=aa.device(M)), 1.0, det)


def _rescaling(xp: Any, dimension: int, length2: Any, normalise: bool) -> Any:
    """(n − rank)/‖(I − P)ω‖²: what is left of a probe gets the length of an isotropic one of that dimension."""
    if not normalise:
        return 1.0
    return dimension / xp.where(length2 > 0, length2, float(dimension))


def _as(xp: Any, x: Any, like: Any) -> Any:
    """Real numbers in the dtype of `like`, which may be complex."""
    return x if x.dtype == like.dtype else xp.astype(x, like.dtype)
