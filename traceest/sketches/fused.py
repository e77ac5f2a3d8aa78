"""The arithmetic on a sketch as one program, where the framework compiles: each operation alone is dear there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from traceest import _backends
from traceest.sketches.base import Sketch
from traceest.sketches.one_sided import Grams


def fused(function: Callable[..., Any], s: Sketch | Grams, *options: Any) -> Any:
    """``function(s, *options)``, whose options are hashable; of Gram arrays compiled once for all of these shapes."""
    if isinstance(s, Sketch):
        return function(s, *options)
    arrays, static = s.parts()
    return _backends.compiled(_of_parts, (function, static, options), arrays, s.grams[0][0])


def _of_parts(function: Callable[..., Any], static: Any, options: Any, arrays: Any) -> Any:
    return function(Grams.of_parts(arrays, static), *options)
