"""What a JAX function of one example does with each parameter: a walk through its jaxpr.

A value that is a parameter up to the order of its entries (transposed, reshaped, broadcast, cast, times a scalar) is
followed as a `View`. Where one enters an equation whose derivative by it is known (`rules`), the other operand is
kept and a tap of zeros is added to the result: the derivative by the tap is δ, and δ and the operand make up the
gradient. A parameter that enters anything else is `spoiled`, and not understood. Weights are followed into the body of
a `scan` (`loops`), so that products with them are hoisted out of the loop, and each step has a tap of its own.

Walking through the function of one example, mapped over examples afterwards, makes it certain where an example is.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal

from traceest_adapters.jax.per_example import scan
from traceest_adapters.jax.per_example.records import Known, Tape, known_of, sources_of
from traceest_adapters.jax.per_example.rules import RULES, View
from traceest_adapters.jax.program import evaluated

INLINED = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat2": "jaxpr"}
"""Calls that are walked into, with the name of what they call. Those with derivatives of their own are not."""


def walk(
    jaxpr: Jaxpr, consts: list[Any], inputs: list[Known], tape: Tape, given: dict[Any, Any] | None = None
) -> list[Known]:
    """The outputs of `jaxpr`, with every use of a parameter on the tape; some results are `given` by variable."""
    env: dict[Any, Known] = {}

    def read(atom: Any) -> Known:
        return Known(atom.val, False) if isinstance(atom, Literal) else env[atom]

    env.update(zip(jaxpr.constvars, (Known(c, False) for c in consts), strict=True))
    env.update(zip(jaxpr.invars, inputs, strict=True))
    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, _step(eqn, [read(atom) for atom in eqn.invars], tape), strict=True))
        env.update({var: env[var]._replace(value=given[var]) for var in eqn.outvars if given and var in given})
    return [read(atom) for atom in jaxpr.outvars]


def _step(eqn: Any, inputs: list[Known], tape: Tape) -> list[Known]:
    name = eqn.primitive.name
    followed = any(known.view is not None for known in inputs)
    if followed and name in INLINED:
        inner = eqn.params[INLINED[name]]
        again = name == "remat2"
        return scan.checkpoint(walk, eqn, inputs, tape) if again else walk(inner.jaxpr, inner.consts, inputs, tape)
    if followed and name == "scan":
        return scan.scan(walk, eqn, inputs, tape)
    out = evaluated(eqn, [known.value for known in inputs])
    view = _reordered(eqn, inputs) if followed else None
    if followed and view is None:
        if name in RULES:
            out = [_tapped(eqn, inputs, out[0], tape)]
        else:
            tape.spoil(*inputs)
    return known_of(out, inputs, tape, view)


def _tapped(eqn: Any, inputs: list[Known], z: Any, tape: Tape) -> Any:
    """The result with a tap for the one parameter in it, unless that would give each example a copy of a weight.

    Hence the other operand is an example's own, or a constant for which the result is smaller than the parameter.
    """
    which = [i for i, known in enumerate(inputs) if known.view is not None]
    others = [known for i, known in enumerate(inputs) if i != which[0]]
    found = None
    small = jnp.size(z) < jnp.size(inputs[which[0]].value) and not sources_of(others)
    if len(which) == 1 and (small or any(known.varies for known in others)):
        view = inputs[which[0]].view
        found = None if view is None else RULES[eqn.primitive.name](eqn, which[0], view, others[0].value)
    if found is None:
        tape.spoil(*inputs)
        return z
    return tape.use(*found, z)


def _reordered(eqn: Any, inputs: list[Known]) -> View | None:
    """The view that the result of an equation is, if it only moves a parameter's entries or scales all alike."""
    name, view = eqn.primitive.name, inputs[0].view
    if name in ("mul", "div") and len(inputs) == 2:
        return _scaled(name, eqn, *inputs)
    if view is None or len(inputs) != 1:
        return None
    if name == "transpose":
        return view._replace(axes=tuple(view.axes[i] for i in eqn.params["permutation"]))
    if name == "convert_element_type":
        return view if jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating) else None
    if name == "squeeze":
        gone = eqn.params["dimensions"]
        return view._replace(axes=tuple(a for i, a in enumerate(view.axes) if i not in gone))
    if name == "broadcast_in_dim":
        at = dict(zip(eqn.params["broadcast_dimensions"], view.axes, strict=True))
        return view._replace(axes=tuple(at.get(i) for i in range(len(eqn.params["shape"]))))
    if name == "reshape" and eqn.params["dimensions"] is None:
        return _reshaped(view, eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape)
    return None


def _reshaped(view: View, old: tuple[int, ...], new: tuple[int, ...]) -> View | None:
    core = tuple(n for n in new if n != 1)
    axes = [a for a, n in zip(view.axes, old, strict=True) if n != 1]
    if core != tuple(n for n in old if n != 1):  # a new shape, of a parameter whose entries are in order
        if axes != list(range(len(view.shape))):
            return None
        view, axes = view._replace(shape=core), list(range(len(core)))
    remaining = iter(axes)
    return view._replace(axes=tuple(None if n == 1 else next(remaining) for n in new))


def _scaled(name: str, eqn: Any, a: Known, b: Known) -> View | None:
    view, scalar = (a.view, b) if a.view is not None else (b.view, a)
    if view is None or scalar.view is not None or jnp.size(scalar.value) != 1 or (name == "div" and a.view is None):
        return None
    if eqn.outvars[0].aval.ndim != len(view.axes):
        return None
    s = jnp.reshape(scalar.value, ())
    s = 1 / s if name == "div" else s
    return view._replace(scale=s if view.scale is None else view.scale * s)
