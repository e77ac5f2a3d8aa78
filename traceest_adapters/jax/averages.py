"""Running averages among the parameters: floating arrays that nobody trains."""

from __future__ import annotations

import warnings
from typing import Any

import jax

COLLECTION = "batch_stats"
"""Where Flax's linen keeps those of its batch norms."""

SHOWN = 6
"""Most paths that the warning lists."""


def warn(params: Any, names: list[str], chosen: list[bool]) -> None:
    """One warning if Flax's running averages are among the leaves that are differentiated by."""
    marked: list[bool] = []
    for node in jax.tree.leaves(params, is_leaf=_is_average):
        marked += [_is_average(node)] * len(jax.tree.leaves(node))
    found = [
        name
        for name, average, asked in zip(names, marked, chosen, strict=True)
        if asked and (average or COLLECTION in name.split("."))
    ]
    if found:
        more = f", … ({len(found) - SHOWN} more)" if len(found) > SHOWN else ""
        warnings.warn(
            f"jacobian: running averages are differentiated by as if trained: {', '.join(found[:SHOWN])}{more}; "
            'name the parameters that are, wrt="params" (Flax linen) or wrt=nnx.Param.',
            UserWarning,
            stacklevel=5,
        )


def _is_average(node: Any) -> bool:
    """Whether `node` is a variable of Flax's nnx for running averages."""
    return any(
        kind.__name__ == "BatchStat" and kind.__module__.partition(".")[0] == "flax" for kind in type(node).__mro__
    )
