"""Probe vectors, and the meaning of `rng`.

Every distribution here is isotropic, E[v vᴴ] = I, so that E[vᴴ A v] = tr A. `rng` may be

* an int or a `numpy.random.Generator`: numbers are drawn on the host, so that one seed gives the same
  probes on every backend; a Generator moves on as it is used;
* a JAX key or a `torch.Generator`: numbers are drawn on its device;
* None: fresh entropy. There is no global random state.

Real draws do not depend on how they are chunked: probe i is the same whether asked for alone or among many.

Each law of `LAWS` is a function here, ``traceest.probes.NAME(n, k, *, rng=None, like=None, n_blocks=1, layout=None)``:
k probes of length n, (n, k), one a column. `like`, an array or operator, gives namespace, dtype and device (if absent,
those of NumPy's float64). Each of `n_blocks` equal runs of rows is normalised, orthogonalised and balanced by itself.
`layout`, three ints, says that the rows of a block are an array of outer positions, features and inner positions, for
laws that balance signs over positions: (T, H, 1) of a sequence of hidden states, (1, C, H·W) of images with channels
first; by default all are positions of one feature. Rows that do not fit blocks or layout raise a ValueError.

>>> import traceest as te
>>> te.probes.rademacher(6, 3, rng=0).shape
(6, 3)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from traceest._boundary import public
from traceest.operators.layout import Layout
from traceest.probes.laws import LAWS, Distribution, Law, named, of_pairs, require_independent
from traceest.probes.sources import Source, random_source
from traceest.probes.stream import Probes

__all__ = [
    "LAWS",
    "Distribution",
    "Law",
    "Layout",
    "Probes",
    "Source",
    "named",
    "of_pairs",
    "random_source",
    "require_independent",
]


def __getattr__(name: str) -> Callable[..., Any]:
    """The function that draws from the law of that name."""
    if name not in LAWS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its laws are {', '.join(LAWS)}.")
    return _drawing(name)


def __dir__() -> list[str]:
    return [*globals(), *LAWS]


@cache
def _drawing(name: str) -> Callable[..., Any]:
    def draw(n: int, k: int, *, rng: Any = None, like: Any = None, n_blocks: int = 1, layout: Any = None) -> Any:
        if n % n_blocks:
            raise ValueError(f"{name}: n = {n} rows do not fall into n_blocks = {n_blocks} equal blocks.")
        like, layout = np.empty(0) if like is None else like, None if layout is None else Layout(*layout)
        return Probes(n, like, rng=rng, distribution=name, n_blocks=n_blocks, layout=layout).take(k)

    draw.__name__ = draw.__qualname__ = name
    draw.__doc__ = f"{LAWS[name].__doc__}\n\nSee `traceest.probes` for the arguments.\n"
    return public(draw)
