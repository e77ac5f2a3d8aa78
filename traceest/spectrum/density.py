"""The spectral density: where the eigenvalues are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from traceest import _array_api as aa
from traceest import _validation as check
from traceest._boundary import public
from traceest.spectrum.quadrature import Quadrature, quadrature
from traceest.uncertainty.estimate import Estimate, _to_host


@dataclass(frozen=True, eq=False, repr=False)
class SpectralDensity:
    """What `spectral_density` returns.

    Attributes
    ----------
    grid : array, (n_points,)
        Eigenvalues λ at which the density is given.
    density : array, (n_points,)
        φ(λ), of integral 1: the share of the eigenvalues near λ, broadened by a Gaussian.
    stderr, df : array, (n_points,)
        Standard error of `density`, point by point, and its degrees of freedom.
    width : array, 0-d
        Standard deviation of the Gaussian.
    nodes, weights : array, (n_probes, steps)
        The quadrature itself: each probe's nodes, and weights of sum 1.
    n_matvecs, n_rmatvecs : int
        Products spent, as in `Estimate`.
    method : str
        "Lanczos quadrature" or "exact".

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> d = te.spectral_density(np.diag(np.linspace(1.0, 3.0, 400)), 60, rng=0)
    >>> abs(float(d.cumulative(2.0)) - 0.5) < 0.1
    True
    """

    grid: Any
    density: Any
    stderr: Any
    df: Any
    width: Any
    nodes: Any
    weights: Any
    n_matvecs: int = 0
    n_rmatvecs: int = 0
    method: str = ""

    @public
    def __repr__(self) -> str:
        shape = "×".join(str(i) for i in self.nodes.shape)
        cost = f"n_matvecs={self.n_matvecs}, n_rmatvecs={self.n_rmatvecs}"
        return f"SpectralDensity({self.grid.shape[0]} points, {shape} nodes, method={self.method!r}, {cost})"

    @public
    def cumulative(self, x: Any) -> Any:
        """The share of eigenvalues up to x, broadened likewise; on the host, x a number or an array."""
        from scipy.special import ndtr  # not needed, and not paid for, before it is asked for

        nodes, weights, width = (_to_host(a) for a in (self.nodes, self.weights, self.width))
        x = np.asarray(_to_host(x), dtype=np.float64)
        return np.sum(weights * ndtr((x[..., None, None] - nodes) / width), axis=(-2, -1)) / nodes.shape[0]

    @public
    def band(self, confidence: float = 0.95) -> tuple[Any, Any]:
        """Lower and upper end, (n_points,), of the pointwise intervals of `density`."""
        return Estimate(self.density, self.stderr, self.df, bounds=(0.0, np.inf)).confidence_interval(confidence)

    @public
    def plot(self, ax: Any = None, **kwargs: Any) -> Any:
        """Draw the density and its 95 % band (needs matplotlib); returns the axes.

        Parameters
        ----------
        ax : matplotlib axes, optional
            Where to draw; a new figure if absent.
        **kwargs
            For the line, as `Axes.plot` takes them.
        """
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.subplots()[1]
        grid = _to_host(self.grid)
        (line,) = ax.plot(grid, _to_host(self.density), **kwargs)
        ax.fill_between(grid, *self.band(), color=line.get_color(), alpha=0.25, linewidth=0)
        ax.set_xlabel("eigenvalue")
        ax.set_ylabel("density")
        return ax


@public
def spectral_density(
    A: Any,
    n_matvecs: int | None = None,
    *,
    n_probes: int | None = None,
    steps: int | None = None,
    n_points: int = 200,
    grid: Any = None,
    width: float | None = None,
    rng: Any = None,
    probes: Any = None,
    chunk_size: int | None = None,
) -> SpectralDensity:
    """The density of the eigenvalues of a self-adjoint A, φ(x) = (1/n) Σ N(x; λᵢ, width²), with error bands.

    tr f(A)/n by stochastic Lanczos quadrature with the Gaussian about x for f, all x from the same nodes.

    Choose it to see the shape of a spectrum: bulk, outliers, the weight at 0.

    Parameters
    ----------
    A : operator, (n, n), self-adjoint
        Calling it declares A self-adjoint.
    n_matvecs, n_probes, steps, rng, probes, chunk_size
        As in `trace_of_function`; probes lie on the sphere.
    n_points : int
        Points of the grid, from three widths below the smallest node to three above the largest.
    grid : array, optional
        Points of your own.
    width : float, optional
        Standard deviation of the Gaussian; default: the range of the nodes over `steps` (of an exact spectrum, over
        5/2·√n), which so many steps resolve: what they miss is of relative size exp(−8). Narrower ones show the nodes
        and not the spectrum, and the bands grow with what further steps are expected to change.

    Returns
    -------
    SpectralDensity
        Memory n · steps · chunk_size + n_points · n_probes · steps.

    Raises
    ------
    ValueError
        If n_points < 2 or width ≤ 0, if A is not self-adjoint but for rounding, or as `trace_of_function`.
    TypeError
        As `trace_of_function`.

    References
    ----------
    Lin, Saad, Yang (2016), Approximating spectral densities of large matrices. SIAM Review 58(1), section 3.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> d = te.spectral_density(np.diag(np.linspace(1.0, 3.0, 400)), 60, rng=0)
    >>> low, high = d.band()
    >>> bool(np.mean((low <= 0.5) & (0.5 <= high) | (np.abs(d.grid - 2) > 0.8)) > 0.9)
    True
    """
    A = check.square(A, "spectral_density")
    n_points = check.budget(n_points, None, 2, "n_points", "spectral_density")
    if width is not None and not width > 0:
        raise ValueError(f"spectral_density: width must be > 0, got {width!r}.")
    q = quadrature(
        A, n_matvecs, caller="spectral_density", n_probes=n_probes, steps=steps, rng=rng, probes=probes,
        chunk_size=chunk_size,
    )  # fmt: skip
    grid, e, sigma = q.asked(_smoothed, (n_points,), (width, grid))
    return SpectralDensity(grid, e.value, e.stderr, e.df, sigma, *q.fine, **q.fields, method=e.method)


def _smoothed(q: Quadrature, n_points: int, width: Any, grid: Any) -> tuple[Any, Estimate, Any]:
    """The grid, φ = (1/n) tr N((λ − A)/σ)/σ on it, and σ."""
    xp, nodes = q.xp, q.fine[0]
    low, high = xp.min(nodes), xp.max(nodes)
    size = xp.maximum(xp.abs(low), xp.abs(high))
    size = xp.where(size > 0, size, xp.ones_like(size))
    t = max(2.0, 2.5 * nodes.shape[1] ** 0.5) if q.exact else nodes.shape[1]
    # Of a single eigenvalue the range is rounding; it gets the width that a range of its size would have.
    spread = xp.where(high - low > size * xp.finfo(nodes.dtype).eps ** 0.5, high - low, size)
    sigma = spread / t if width is None else xp.ones_like(low) * width
    if grid is None:
        unit = xp.linspace(0.0, 1.0, n_points, dtype=nodes.dtype, device=aa.device(nodes))
        grid = (low - 3 * sigma) + unit * (high - low + 6 * sigma)
    height = 1 / (q.n * (2 * np.pi) ** 0.5 * sigma)
    e = q.trace(lambda x: height * xp.exp(-0.5 * ((grid[:, None, None] - x[None, :, :]) / sigma) ** 2))
    return grid, e, sigma
