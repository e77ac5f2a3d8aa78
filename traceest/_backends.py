"""The doors through which frameworks and other libraries reach the core, which imports none.

What cannot be reached through the Array API, a plug-in supplies. It is found by an entry point, whose name is the
package that an object's type comes from, and is loaded the first time such an object is seen:

* group ``traceest.backends`` (``torch``, ``jax``, ``jaxlib``): a framework's own random generators, its pytree
  registry, and its compiler where small operations are dear without one;
* group ``traceest.operators`` (``lineax``, ``cola``, …): another library's linear operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from importlib import metadata
from typing import Any, Generic, Protocol, TypeVar

NATIVE = frozenset({"builtins", "numpy", "scipy"})
Plugin = TypeVar("Plugin")
Compiled = Callable[[Callable[..., Any], tuple[Any, ...], Any], Any]


class Backend(Protocol):
    """What a framework's plug-in offers."""

    def random_source(self, rng: Any) -> Any:
        """A `traceest.probes.Source` for the framework's generator or key; None if `rng` is not one."""

    def copied(self, x: Any) -> Any:
        """A copy of the framework's array `x`, or `x` itself where its arrays cannot be changed."""

    def like(self, A: Any) -> Any:
        """An array of the namespace, dtype and device of the framework's own object `A` with products, or None."""

    @property
    def compiled(self) -> Compiled | None:
        """``compiled(f, static, arrays)`` is ``f(*static, arrays)`` as one program, kept for arrays of these shapes."""

    def differentiated(self, x: Any) -> bool:
        """Whether something may be differentiated by `x`, or by what it was made of."""

    def constant(self, x: Any) -> Any:
        """`x`, which nothing is differentiated by."""

    def marked(self, x: Any, sources: list[Any]) -> Any:
        """The array `x`, of which a gradient is an error if the framework has to be told: `sources` are not in it."""

    @property
    def strict(self) -> Callable[[Callable[..., Any]], Callable[..., Any]] | None:
        """What makes of a call one under the framework's default settings; None where these are in force."""

    def without_values(self, arrays: Any) -> bool:
        """Whether some of them are known in shape alone, inside a trace, and `student_quantile` is there for them."""

    def student_quantile(self, df: Any, p: float) -> Any:
        """Student's quantile of degrees of freedom without values."""


class Conversion(Protocol):
    """What the plug-in of a library of operators offers."""

    def __call__(self, A: Any) -> Any:
        """The library's operator `A` as a `LinearOperator` or `Jacobian`, with what is known of it."""


class Door(Generic[Plugin]):
    """The plug-ins of one group, by package."""

    def __init__(self, group: str, native: Iterable[str] = NATIVE) -> None:
        self.group, self._known = group, dict[str, Plugin | None](dict.fromkeys(native))
        self.loaded: list[Plugin] = []  # in use, each once

    @cached_property
    def _offered(self) -> dict[str, metadata.EntryPoint]:
        return {point.name: point for point in metadata.entry_points(group=self.group)}

    def register(self, package: str, plugin: Plugin) -> None:
        """Make `plugin` answer for objects whose type lives in `package`."""
        self._known[package] = plugin
        if not any(plugin is other for other in self.loaded):
            self.loaded.append(plugin)

    def of(self, kind: type) -> Plugin | None:
        """The plug-in of the package that the class `kind` comes from, or None where there is none."""
        package = kind.__module__.partition(".")[0]
        if package not in self._known:
            if package in self._offered:
                self.register(package, self._offered[package].load())
            else:
                self._known[package] = None
        return self._known[package]


backends: Door[Backend] = Door("traceest.backends")
operators: Door[Conversion] = Door("traceest.operators")
register = backends.register


def find(obj: Any) -> Backend | None:
    """The plug-in that answers for the framework's `obj`, or None where the core needs none."""
    return backends.of(type(obj))


def strict(arguments: Iterable[Any]) -> list[Callable[[Callable[..., Any]], Callable[..., Any]]]:
    """What makes of a call one under default settings, of each framework whose settings are stricter."""
    for x in arguments:  # the first array that is ever seen of a framework introduces it
        for one in x if isinstance(x, (list, tuple)) else (x,):
            find(one)
    return [wrap for plugin in backends.loaded if (wrap := plugin.strict) is not None]


def compiled(f: Callable[..., Any], static: tuple[Any, ...], arrays: Any, like: Any) -> Any:
    """``f(*static, arrays)``, `static` being hashable; as one program where the framework of `like` is slow without."""
    plugin = find(like)
    run = None if plugin is None else plugin.compiled
    return f(*static, arrays) if run is None else run(f, static, arrays)


def differentiated(x: Any) -> bool:
    """Whether something may be differentiated by the array `x`, or by what it was made of."""
    plugin = find(x)
    return plugin is not None and plugin.differentiated(x)


def constant(x: Any) -> Any:
    """The array `x`, which nothing is differentiated by."""
    plugin = find(x)
    return x if plugin is None else plugin.constant(x)


def conversion(obj: Any) -> Conversion | None:
    """The plug-in that makes an operator of `obj`, or None.

    Of any class that it derives from: a library's operators are made to be subclassed elsewhere.
    """
    return next((plugin for kind in type(obj).__mro__ if (plugin := operators.of(kind)) is not None), None)
