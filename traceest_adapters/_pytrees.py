"""Results as pytrees: their arrays are children, the rest is static."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from traceest import Eigenvalues, Estimate, PartialTrace, SpectralDensity, Summary
from traceest.uncertainty.estimate import ARRAYS, STATIC

RESULTS: dict[type, tuple[tuple[str, ...], tuple[str, ...]]] = {
    Estimate: (ARRAYS, STATIC),
    Eigenvalues: (
        ("values", "vectors", "residuals", "bounds"),
        ("n_matvecs", "n_rmatvecs", "converged", "method"),
    ),
    SpectralDensity: (
        ("grid", "density", "stderr", "df", "width", "nodes", "weights"),
        ("n_matvecs", "n_rmatvecs", "method"),
    ),
    PartialTrace: (
        ("samples", "unit"),
        ("kept_shape", "symmetric", "psd", "sample_rank", "n_matvecs", "n_rmatvecs", "method"),
    ),
    Summary: (tuple(f.name for f in fields(Summary) if f.name != "names"), ("names",)),
}
"""Each kind of result, with the fields that are arrays and those that stay outside of traces."""


def flatten(result: Any) -> tuple[list[Any], tuple[Any, ...]]:
    """Children and static part; an absent array is no child, since PyTorch takes None for a leaf."""
    arrays, static = RESULTS[type(result)]
    parts = vars(result)
    present = tuple(name for name in arrays if parts[name] is not None)
    return [parts[name] for name in present], (present, *(parts[name] for name in static))


def unflatten(kind: type) -> Callable[[tuple[Any, ...], Any], Any]:
    """The inverse for one kind of result, in JAX's order of arguments."""
    arrays, names = RESULTS[kind]

    def build(static: tuple[Any, ...], children: Any) -> Any:
        present, *rest = static
        given: dict[str, Any] = dict.fromkeys(arrays) | dict(zip(present, children, strict=True))
        return kind(**given, **dict(zip(names, rest, strict=True)))

    return build
