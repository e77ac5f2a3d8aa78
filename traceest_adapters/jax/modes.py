"""Which modes of differentiation a model has: some loops have forward mode alone, some implicit layers reverse alone.

A side of the Jacobian that a mode is missing for is missing, and found out by a trace, without computing anything,
when it is asked for.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, NamedTuple

import jax

from traceest_adapters.jax import jaxprs
from traceest_adapters.jax.model import Model
from traceest_adapters.jax.program import registered

Mode = Literal["forward", "reverse", "alone"]
"""The last one is reverse mode of an example by itself."""

ADVICE = {
    "forward": "statistics by vjps alone do without: trace, rhutch, and all of kernels with n_probes=",
    "reverse": "statistics by jvps alone do without: trace, fhutch, and those of one kernel with n_probes=",
}

REVERSE: tuple[Mode, ...] = ("reverse",)
NEEDED: dict[str, tuple[Mode, ...]] = {"matmat": ("forward",), "gram_matmat": ("reverse", "forward")}
"""The modes that a product of `JaxJacobian` takes; all others take reverse mode alone."""


class Found(NamedTuple):
    """Of a mode: why a model does not have it, and why its passes cannot be mapped over probes; None where it can."""

    lacking: str | None
    unmapped: str | None = None


def found(model: Model, mode: Mode, trained: Any, fixed: Any, inputs: Any) -> Found:
    """What a trace tells of a mode."""
    leaves, treedef = jax.tree.flatten(jax.eval_shape(lambda *args: args, trained, fixed, inputs))
    return _found(model, mode, tuple(leaves), treedef)


@registered
@lru_cache(maxsize=64)
def _found(model: Model, mode: Mode, leaves: tuple[Any, ...], treedef: Any) -> Found:
    args = jax.tree.unflatten(treedef, leaves)
    mapped = _reason(model, mode, True, args)
    if mapped is None:
        return Found(None)
    plain = _reason(model, mode, False, args)
    return Found(plain) if plain is not None else Found(None, mapped)


def _reason(model: Model, mode: Mode, mapped: bool, args: Any) -> str | None:
    try:
        made = jax.make_jaxpr(lambda *args: _differentiated(model, mode, mapped, *args))(*args)
    except Exception as error:  # the model itself could be traced, so whatever is raised, the mode is to blame
        return str(error).strip().split("\n")[0] or type(error).__name__
    if jaxprs.has(made.jaxpr, "custom_lin"):  # JAX says so when it is run, or mapped
        return "a jax.custom_vjp has no forward mode"
    return None


def _differentiated(model: Model, mode: Mode, mapped: bool, trained: Any, fixed: Any, inputs: Any) -> Any:
    """A product of one column, mapped as in `steps` or not: some rules say only then that there is none."""
    f = lambda p: (model.row if mode == "alone" else model.rows)(p, fixed, inputs)  # noqa: E731
    state, push = jax.linearize(f, trained) if mode == "forward" else jax.vjp(f, trained)
    along = trained if mode == "forward" else state
    return jax.vmap(push)(jax.tree.map(lambda x: x[None], along)) if mapped else push(along)


def reason(mode: Mode, why: str) -> str:
    """What a Jacobian says of a product that it lacks."""
    return f"the model has no {mode} mode ({why}); {ADVICE[mode]}"
