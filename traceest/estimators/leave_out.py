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

from typing import Any, NamedTuple

from traceest import _array_api as aa
from traceest.estimate import Estimate, degrees_of_freedom


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
        k, pairs = self.one.shape[-1], (-2, -1)
        off = 1 - xp.eye(k, dtype=self.two.dtype, device=aa.device(self.two))
        theta = xp.sum(self.one, axis=-1) / k
        delta = (self.one[..., :, None] - self.two) * off
        apart = (self.two - xp.matrix_transpose(self.two)) * off
        rounding = k**0.5 * xp.finfo(self.magnitude.dtype).eps * self.magnitude[..., None, None]
        # Squares of small errors stay in range.
        unit = aa.safe_scale(xp, delta, pairs) + aa.safe_scale(xp, apart, pairs) + rounding
        squares = aa.abs2(xp, (self.one - theta[..., None]) / unit[..., 0])
        product = aa.real(xp, delta * aa.conj(xp, xp.matrix_transpose(delta)) / unit**2)
        covariance = xp.sum(product, axis=pairs) / (k * (k - 1))
        independent = xp.sum(aa.abs2(xp, apart / unit), axis=pairs) / (2 * k * k * (k - 1))
        variance = xp.maximum(xp.sum(squares, axis=-1) / (k * (k - 1)) + covariance, independent / 2)
        variance = variance + (rounding / unit)[..., 0, 0] ** 2
        stderr = aa.root(xp, variance)
        df = degrees_of_freedom(xp, squares)
        return Estimate(theta * size, stderr * unit[..., 0, 0] * size, df, None, **fields)


class Basis(NamedTuple):
    """A sketch's basis Q and its probes, and what leaving one or two of them out takes away.

    Q₍ᵢ₎Q₍ᵢ₎ᴴ = Q(I − sᵢsᵢᴴ)Qᴴ, sᵢ the normalised columns of R⁻ᴴ; xᵢ = (I − sᵢsᵢᴴ)Qᴴωᵢ, and ‖ωᵢ − Qxᵢ‖² is `length2`.
    Of two left out, a = sᵢ (rows) and b = sⱼ (columns): b − a c, c = aᴴb, is orthogonal to a, of squared length d.
    """

    n: int
    W: Any
    S: Any
    X: Any
    length2: Any
    c: Any
    d: Any
    parallel: Any

    @classmethod
    def of(cls, xp: Any, Omega: Any, Q: Any, R: Any) -> Basis:
        """From Q, R = qr(AΩ)."""
        S, W = left_out_directions(xp, R), aa.adjoint(xp, Q) @ Omega
        X = W - S * aa.vdot(xp, S, W)[None, :]
        length2 = xp.sum(aa.abs2(xp, Omega), axis=0) - xp.sum(aa.abs2(xp, X), axis=0)
        c = aa.adjoint(xp, S) @ S
        d = 1 - aa.abs2(xp, c)
        parallel = d < 1e3 * xp.finfo(d.dtype).eps  # then leaving j out as well changes nothing
        return cls(Omega.shape[0], W, S, X, length2, c, xp.where(parallel, xp.ones_like(d), d), parallel)

    def traces(self, xp: Any, forms: Any, r: Any, t: Any, H: Any, normalise: bool) -> LeftOut:
        """Estimates of tr C, for any C, from ωᵢᴴCωᵢ, rᵢ = QᴴCωᵢ, tᵢ = QᴴCᴴωᵢ and H = QᴴCQ.

        eᵢ = tr(Q₍ᵢ₎ᴴCQ₍ᵢ₎) + uᵢᴴCuᵢ with uᵢ = ωᵢ − Qxᵢ. XTrace has C = A; the sketch may be of another operator.
        """
        _, _, S, X, length2, c, d, parallel = self
        n, k = self.n, S.shape[1]
        HX, HS = H @ X, H @ S
        residual = forms - aa.vdot(xp, t, X) - aa.vdot(xp, X, r) + aa.vdot(xp, X, HX)
        trace = xp.sum(xp.linalg.diagonal(H))
        SHS = xp.linalg.diagonal(aa.adjoint(xp, S) @ HS)
        one = trace - SHS + residual * _rescaling(xp, n - k + 1, length2, normalise)

        beta = xp.matrix_transpose(aa.adjoint(xp, S) @ X)  # bᴴxᵢ
        kept = xp.where(parallel, xp.zeros_like(beta), beta / d)
        conj_kept = aa.conj(xp, kept)

        def orthogonalised(M: Any) -> Any:
            """[rowᵢ · (b − a c)] of M = (rows)ᴴS, (i, j)."""
            return M - xp.linalg.diagonal(M)[:, None] * c

        tb = orthogonalised(aa.adjoint(xp, t) @ S)
        rb = aa.conj(xp, orthogonalised(aa.adjoint(xp, r) @ S))
        XHb = orthogonalised(aa.adjoint(xp, X) @ HS)
        HXb = aa.conj(xp, orthogonalised(aa.adjoint(xp, HX) @ S))
        SHb = aa.adjoint(xp, S) @ HS  # aᴴHb
        bHb = (
            xp.linalg.diagonal(SHb)[None, :]
            - c * xp.matrix_transpose(SHb)
            - aa.conj(xp, c) * SHb
            + _as(xp, aa.abs2(xp, c), SHb) * xp.linalg.diagonal(SHb)[:, None]
        )
        change = tb * kept + conj_kept * rb - XHb * kept - conj_kept * HXb + kept * conj_kept * bHb
        taken = xp.where(parallel, xp.zeros_like(bHb), bHb / _as(xp, d, bHb))
        length2 = length2[:, None] + aa.real(xp, beta * conj_kept)
        residual = (residual[:, None] + change) * _rescaling(xp, n - k + 2, length2, normalise)
        two = (trace - SHS)[:, None] - taken + residual
        return LeftOut(one, two, xp.sum(xp.abs(xp.linalg.diagonal(H))))


def xtrace_left_out(xp: Any, Omega: Any, Q: Any, R: Any, H: Any, T: Any, normalise: bool) -> LeftOut:
    """XTrace's estimates; T = QᴴAᴴΩ, and since Aωᵢ = Qrᵢ the forms ωᵢᴴAωᵢ are those of QᴴΩ with R."""
    basis = Basis.of(xp, Omega, Q, R)
    return basis.traces(xp, aa.vdot(xp, basis.W, R), R, T, H, normalise)


def left_out_directions(xp: Any, R: Any) -> Any:
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
    return LeftOut(one - drop, two - drop, trace)


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
