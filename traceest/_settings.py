"""The library's own arithmetic under the settings that a framework has by default.

JAX lets its users ask for more care than NumPy's rules take: no broadcasting from fewer dimensions, no mixing of
dtypes, no NaN, no transfers but explicit ones, shardings as part of the types. They are meant for the user's own code
and stay in force there. Here a NaN means "unknown", a Python number next to an array is meant, and what moves between
host and device has been asked for by the call itself. So public calls run under the defaults, and give back results
that fit in with what was set.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from traceest import _backends

F = TypeVar("F", bound=Callable[..., Any])


def usual(f: F) -> F:
    """`f`, called under the default settings of the frameworks of its arguments and of those in use."""

    @wraps(f)
    def called(*args: Any, **kwargs: Any) -> Any:
        run: Callable[..., Any] = f
        for wrapped in _backends.strict((*args, *kwargs.values())):
            run = wrapped(run)
        return run(*args, **kwargs)

    return called  # type: ignore[return-value]
