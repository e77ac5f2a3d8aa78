"""The one door through which a framework reaches the core, which imports none.

A framework's own random generators and its pytree registry cannot be reached through the Array
API. A plug-in supplies both. It is found by the entry point group ``traceest.backends``, whose
names are the packages the framework's objects come from (``torch``, ``jax``, ``jaxlib``); it is
loaded the first time such an object is seen.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any, Protocol

GROUP = "traceest.backends"
NATIVE = frozenset({"builtins", "numpy", "scipy"})


class Backend(Protocol):
    """What a framework's plug-in offers."""

    def random_source(self, rng: Any) -> Any:
        """A `traceest.probes.Source` for the framework's generator or key; None if `rng` is not one."""


_known: dict[str, Backend | None] = dict.fromkeys(NATIVE)


def register(package: str, backend: Backend) -> None:
    """Make `backend` answer for objects whose type lives in `package`."""
    _known[package] = backend


def find(obj: Any) -> Backend | None:
    """The plug-in that answers for `obj`, or None where the core needs none."""
    package = type(obj).__module__.partition(".")[0]
    if package not in _known:
        found = metadata.entry_points(group=GROUP, name=package)
        _known[package] = next(iter(found)).load() if len(found) else None
    return _known[package]
