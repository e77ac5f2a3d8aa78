"""Which modes of differentiation a model has: some loops have forward mode alone, some implicit layers reverse alone.

A side of the Jacobian that a mode is missing for is missing, and found out by a trace, without computing anything,
when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import jax

from traceest_adapters.jax import settings
from traceest_adapters.jax.model import Model

Mode = Literal["forward", "reverse"]
ADVICE = {
    "forward": "statistics by vjps alone do without: trace, rhutch, and all of kernels with n_probes=",
    "reverse": "statistics by jvps alone do without: trace, fhutch, and those of one kernel with n_probes=",
}


def lacking(model: Model, mode: Mode, trained: Any, fixed: Any, inputs: Any) -> str | None:
    """Why the model cannot be differentiated in this mode; None if it can."""
    leaves, treedef = jax.tree.flatten(jax.eval_shape(lambda *args: args, trained, fixed, inputs))
    return _lacking(model, mode, tuple(leaves), treedef)


@lru_cache(maxsize=64)
def _lacking(model: Model, mode: Mode, leaves: tuple[Any, ...], treedef: Any) -> str | None:
    args = jax.tree.unflatten(treedef, leaves)
    try:
        jax.eval_shape(lambda *args: _differentiated(model, mode, *args), *args)
    except Exception as error:  # the model itself could be traced, so whatever is raised, the mode is to blame
        return str(error).strip().split("\n")[0] or type(error).__name__
    return None


def _differentiated(model: Model, mode: Mode, trained: Any, fixed: Any, inputs: Any) -> Any:
    """A product of one column, mapped as in `steps`: some rules say only then that there is none."""
    f = lambda p: model.rows(p, fixed, inputs)  # noqa: E731
    state, push = jax.linearize(f, trained) if mode == "forward" else jax.vjp(f, trained)
    along = trained if mode == "forward" else state
    return jax.vmap(push)(jax.tree.map(lambda x: x[None], along))


class _Method:
    """A method that is an attribute only if the model has the modes that it needs."""

    def __init__(self, method: Callable[..., Any], modes: tuple[Mode, ...]) -> None:
        self.method, self.modes, self.__doc__ = settings.usual(method), modes, method.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, J: Any, owner: type | None = None) -> Any:
        if J is None:
            return self.method
        for mode in self.modes:
            if why := J.lacking(mode):
                raise AttributeError(
                    f"JaxJacobian has no {self.name}: the model has no {mode} mode ({why}); {ADVICE[mode]}"
                )
        return self.method.__get__(J, owner)


def needs(*modes: Mode) -> Callable[[Callable[..., Any]], Any]:
    """Of a method of `JaxJacobian`: the modes of differentiation without which there is no such method."""
    return lambda method: _Method(method, modes)
