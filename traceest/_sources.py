"""What a result was made of, for frameworks whose arrays remember that: told by operators, asked at the front door.

In PyTorch a number that was computed outside of the graph has a gradient of zero, without a word. While a public call
runs, operators whose products leave the graph say so (`made_of`); the arrays that the call returns are handed to the
framework's plug-in with what was said, and it marks them so that asking for their gradient is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import fields, is_dataclass, replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from traceest import _backends

P = ParamSpec("P")
R = TypeVar("R")

PLAIN = {int, float, str, bool, type(None)}
UNMARKED = ("stderr", "df", "reach", "bounds")
"""Fields that tell how good a result is, of which nobody takes a gradient."""

_told: ContextVar[dict[Any, Any] | None] = ContextVar("traceest sources", default=None)


def made_of(source: Any) -> None:
    """Tell the public call that is running, if any, that its result comes from `source`, if that has a `key`."""
    found = _told.get()
    if found is not None and source.key:
        found[source.key] = source


def door(call: Callable[P, R]) -> Callable[P, R]:
    """`call`, whose result is marked with what was told on the way."""

    @wraps(call)
    def marking(*args: P.args, **kwargs: P.kwargs) -> R:
        found: dict[Any, Any] = {}
        before = _told.set(found)
        try:
            result = call(*args, **kwargs)
        finally:
            _told.reset(before)
        return _marked(result, list(found.values())) if found else result

    marking.__module__ = "traceest"  # where pickle finds it
    return marking


def _marked(result: Any, sources: list[Any]) -> Any:
    """The same with all its arrays marked: of a result, of results in it, or in a list, tuple or mapping of them."""
    if isinstance(result, (list, tuple)) and not hasattr(result, "_fields"):
        return type(result)(_marked(item, sources) for item in result)
    if isinstance(result, dict):
        return {key: _marked(item, sources) for key, item in result.items()}
    if is_dataclass(result) and not isinstance(result, type):
        parts = {f.name: getattr(result, f.name) for f in fields(result) if f.name not in UNMARKED}
        found = {name: _marked(part, sources) for name, part in parts.items() if type(part) not in PLAIN}
        return replace(result, **{name: part for name, part in found.items() if part is not parts[name]})
    mark = getattr(_backends.find(result), "marked", None)
    return result if mark is None else mark(result, sources)
