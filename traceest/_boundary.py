"""Where a public call begins and ends: the settings that it runs under, and what its result was made of.

JAX lets its users ask for more care than NumPy's rules take: no broadcasting from fewer dimensions, no mixing of
dtypes, no NaN, no transfers but explicit ones, shardings as part of the types. They are meant for the user's own code
and stay in force there. Here a NaN means "unknown", a Python number next to an array is meant, and what moves between
host and device has been asked for by the call itself. So public calls run under the defaults, and give back results
that fit in with what was set.

In PyTorch a number that was computed outside of the graph has a gradient of zero, without a word. While a public call
runs, operators whose products leave the graph say so (`made_of`); the arrays that the call returns are handed to the
framework's plug-in with what was said, and it marks them so that asking for their gradient is an error.

Both are the business of the outermost call: one inside another is a plain function.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import fields, is_dataclass, replace
from functools import wraps
from typing import Any, TypeVar, overload

from traceest import _array_api as aa
from traceest import _backends

F = TypeVar("F", bound=Callable[..., Any])

PLAIN = {int, float, str, bool, type(None)}
UNMARKED = ("stderr", "df", "reach", "bounds")
"""Fields that tell how good a result is, of which nobody takes a gradient."""

_sources: ContextVar[dict[Any, Any] | None] = ContextVar("traceest sources", default=None)
"""What was told to the public call that is running; None outside of any."""


@overload
def public(call: F, *, marks: bool = ...) -> F: ...
@overload
def public(*, marks: bool) -> Callable[[F], F]: ...
def public(call: Any = None, *, marks: bool = True) -> Any:
    """`call` as its user calls it: under the frameworks' default settings, its result marked with its sources.

    Without `marks` the result is left as it is: products of operators give plain arrays.
    """
    if call is None:
        return lambda call: public(call, marks=marks)

    @wraps(call)
    def entered(*args: Any, **kwargs: Any) -> Any:
        if _sources.get() is not None:
            return call(*args, **kwargs)
        run, found = call, dict[Any, Any]()
        for wrapped in _backends.strict((*args, *kwargs.values())):
            run = wrapped(run)
        outside = _sources.set(found)
        try:
            result = run(*args, **kwargs)
        finally:
            _sources.reset(outside)
        return _marked(result, list(found.values())) if found and marks else result

    return entered


def made_of(source: Any) -> None:
    """Tell the public call that is running, if any, that its result comes from `source`, if that has a `key`."""
    found = _sources.get()
    if found is not None and source.key:
        found[source.key] = source


def _marked(result: Any, sources: list[Any]) -> Any:
    """The same with all its arrays marked: of a result, of results in it, or in a list, tuple or mapping of them."""
    if aa.is_plain_sequence(result):
        return type(result)(_marked(item, sources) for item in result)
    if isinstance(result, dict):
        return {key: _marked(item, sources) for key, item in result.items()}
    if is_dataclass(result) and not isinstance(result, type):
        parts = {f.name: vars(result)[f.name] for f in fields(result) if f.name not in UNMARKED}
        found = {name: _marked(part, sources) for name, part in parts.items() if type(part) not in PLAIN}
        return replace(result, **{name: part for name, part in found.items() if part is not parts[name]})
    backend = _backends.find(result)
    return result if backend is None else backend.marked(result, sources)
