"""The arithmetic on a sketch as one program, where the framework compiles: each operation alone is dear there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from traceest import _backends
from traceest.kernels.sketches.base import Sketch
from traceest.kernels.sketches.one_sided import Grams
from traceest.kernels.sketches.two_sided import LowRank, Plain


def fused(function: Callable[..., Any], s: Sketch | Grams, *options: Any) -> Any:
    """``function(s, *options)``, whose options are hashable; compiled once for all arrays of these shapes."""
    if not isinstance(s, (Grams, LowRank, Plain)) or (not isinstance(s, Grams) and s.groups):
        return function(s, *options)
    arrays, static = s.parts()
    return _backends.compiled(_of_parts, (type(s), function, static, options), arrays, s.like)


def _of_parts(kind: Any, function: Callable[..., Any], static: Any, options: Any, arrays: Any) -> Any:
    return function(kind.of_parts(arrays, static), *options)
