"""The arithmetic on a sketch as one program, where the framework compiles: each operation alone is dear there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from traceest import _backends
from traceest.sketches.base import Sketch


def fused(function: Callable[..., Any], s: Sketch, *options: Any) -> Any:
    """``function(s, *options)``, whose options are hashable, compiled once for all sketches of these shapes."""
    parts, compiled = s.parts(), _backends.compiler(s.units[0])
    if parts is None or compiled is None:
        return function(s, *options)
    arrays, static = parts
    return compiled(_of_parts, (function, type(s), static, options), arrays)


def _of_parts(function: Callable[..., Any], kind: type[Sketch], static: Any, options: Any, arrays: Any) -> Any:
    return function(kind.of_parts(arrays, static), *options)
