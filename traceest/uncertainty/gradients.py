"""The error of a mean of forms gᴴBg, by the gradients that the vectors Bg are.

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

from typing import Any

from traceest import _array_api as aa


def stderr(xp: Any, G: Any, BG: Any, forms: Any, sphere: bool, hermitian: bool) -> tuple[Any, Any]:
    """Standard error of the mean of `forms` = gᴴBg, and its degrees of freedom."""
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
    """The mean of squared gradients, along the last axis, and its degrees of freedom."""
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
