"""Probe vectors, and the meaning of `rng`.

Every distribution here is isotropic, E[v vᴴ] = I, so that E[vᴴ A v] = tr A. `rng` may be

* an int or a `numpy.random.Generator`: numbers are drawn on the host, so that one seed gives the same
  probes on every backend; a Generator moves on as it is used;
* a JAX key or a `torch.Generator`: numbers are drawn on its device;
* None: fresh entropy. There is no global random state.

Draws do not depend on how they are chunked: probe i is the same whether asked for alone or among many.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from traceest._boundary import public
from traceest.operators.layout import Layout
from traceest.probes.laws import ORTHOGONAL, SIGNS, Distribution, directions, independent, of_pairs
from traceest.probes.sources import Source, random_source
from traceest.probes.stream import Probes

__all__ = [
    "ORTHOGONAL",
    "SIGNS",
    "Distribution",
    "Layout",
    "Probes",
    "Source",
    "balanced",
    "directions",
    "gaussian",
    "hadamard",
    "independent",
    "of_pairs",
    "orthogonal",
    "rademacher",
    "random_source",
    "sphere",
]


def _drawn(name: Distribution, n: int, k: int, rng: Any, like: Any, n_blocks: int, layout: Layout | None = None) -> Any:
    like = np.empty(0) if like is None else like
    if n % n_blocks:
        raise ValueError(f"{name}: n = {n} rows do not fall into n_blocks = {n_blocks} equal blocks.")
    return Probes(n, like, rng=rng, distribution=name, n_blocks=n_blocks, layout=layout).take(k)


def _distribution(name: Distribution, doc: str) -> Any:
    def draw(n: int, k: int, *, rng: Any = None, like: Any = None, n_blocks: int = 1) -> Any:
        return _drawn(name, n, k, rng, like, n_blocks)

    draw.__name__ = draw.__qualname__ = name
    draw.__doc__ = f"""{doc}

    Parameters
    ----------
    n, k : int
        Length and number of the probes.
    rng : int, numpy.random.Generator, JAX key, torch.Generator or None
        See the head of `traceest.probes`.
    like : array or operator, optional
        Gives namespace, dtype and device; NumPy float64 if absent.
    n_blocks : int
        Number of contiguous runs of rows that are normalised (and orthogonalised) apart.

    Returns
    -------
    array, (n, k)
        One probe a column.

    Examples
    --------
    >>> import traceest as te
    >>> te.probes.{name}(6, 3, rng=0).shape
    (6, 3)
    """
    return public(draw)


rademacher = _distribution("rademacher", "Independent fair signs ±1 (complex: (±1 ± i)/√2). Variance 2(‖A‖² − Σ aᵢᵢ²).")
gaussian = _distribution("gaussian", "Independent standard normals. Variance 2‖A‖².")
sphere = _distribution("sphere", "Uniform on the sphere of radius √n. Variance 2n/(n+2)·(‖A‖² − (tr A)²/n).")
orthogonal = _distribution(
    "orthogonal",
    "Haar-random orthogonal vectors of length √n: standard deviation of the sphere's times √((n−k)/(n−1)).",
)
hadamard = _distribution(
    "hadamard",
    "Signs that are orthogonal to each other, drawn without replacement from N of them, N the next power of two: "
    "Rademacher's standard deviation times √((N−k)/(N−1)).",
)


@public
def balanced(
    n: int,
    k: int,
    *,
    rng: Any = None,
    like: Any = None,
    n_blocks: int = 1,
    layout: tuple[int, int, int] | None = None,
) -> Any:
    """Independent probes of signs whose sum over the positions of each feature is ±√T, or one of two integers around.

    What A has in common on the T positions of a feature, c between any two, adds nothing to the variance of vᵀAv, where
    fair signs pay 2c²T² for it; see `traceest.probes.balanced_signs` for all other A. Traces of models with features at
    many positions (time, tokens, pixels) have a third to a tenth of the variance at initialisation.

    Parameters
    ----------
    n, k : int
        Length and number of the probes.
    rng : int, numpy.random.Generator, JAX key, torch.Generator or None
        See the head of `traceest.probes`.
    like : array or operator, optional
        Gives namespace, dtype and device; NumPy float64 if absent.
    n_blocks : int
        Number of contiguous runs of rows that are balanced apart.
    layout : (int, int, int), optional
        The rows of a block as an array of outer positions, features and inner positions: (T, H, 1) of a sequence of
        hidden states, (1, C, H·W) of images with channels first. Default: all are positions of one feature.

    Returns
    -------
    array, (n, k)
        One probe a column.

    Raises
    ------
    ValueError
        If blocks or layout do not fit n.

    Examples
    --------
    >>> import traceest as te
    >>> v = te.probes.balanced(16 * 3, 1, rng=0, layout=(16, 3, 1))
    >>> sorted({abs(s) for s in v.reshape(16, 3).sum(0).tolist()})
    [4.0]
    """
    return _drawn("balanced", n, k, rng, like, n_blocks, None if layout is None else Layout(*layout))
