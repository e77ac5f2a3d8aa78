"""What a JAX function of one example does with each parameter: a walk through its jaxpr.

A value that is a parameter up to the order of its entries (transposed, reshaped, broadcast, cast, times a scalar) is
followed as a `View`. Where one enters an equation whose derivative by it is known (`rules`), the other operand is
kept and a tap of zeros is added to the result: the derivative by the tap is δ, and δ and the operand make up the
gradient. A parameter that enters anything else is `spoiled`, and not understood. Weights are followed into the body of
a `scan`, so that products with them are hoisted out of the loop, and each step has a tap of its own.

Walking through the function of one example, mapped over examples afterwards, makes it certain where an example is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal

from traceest_adapters.jax.rules import RULES, Use, View, in_scan

INLINED = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat2": "jaxpr"}
"""Calls that are walked into, with the name of what they call. Those with derivatives of their own are not."""


class Known(NamedTuple):
    """A value, whether it may differ between examples, and which parameter it is."""

    value: Any
    varies: bool
    view: View | None = None
    sources: frozenset[int] = frozenset()  # the parameters that a value common to all examples is made from


def _sources(inputs: list[Known]) -> frozenset[int]:
    return frozenset().union(*(known.sources for known in inputs))


class Tape:
    """The uses met in a walk, in order, with the operand kept for each; `taps`, if given, are added on the way.

    `made` says how large the largest value is that is made from a parameter and is common to all examples.
    """

    def __init__(self, taps: Iterator[Any] | None = None) -> None:
        self.taps = taps
        self.uses: list[Use] = []
        self.operands: list[Any] = []
        self.spoiled: set[int] = set()
        self.made: dict[int, int] = {}

    def use(self, use: Use, operand: Any, z: Any) -> Any:
        """Note a product of a parameter's view with `operand`, and put a tap on its result `z`."""
        self.uses.append(use)
        self.operands.append(operand)
        return z if self.taps is None else z + next(self.taps)

    def common(self, values: list[Any], sources: frozenset[int]) -> frozenset[int]:
        """Note that all examples have these values in common."""
        for leaf in sources:
            self.made[leaf] = max(self.made.get(leaf, 0), *(jnp.size(value) for value in values))
        return sources

    def include(self, inner: Tape, uses: list[Use]) -> None:
        """Take over what was found inside a loop."""
        self.uses += uses
        self.spoiled |= inner.spoiled
        self.made = {a: max(self.made.get(a, 0), inner.made.get(a, 0)) for a in {*self.made, *inner.made}}

    def spoil(self, *inputs: Known) -> None:
        """Leave the parameters that reach an equation which is not understood to be treated example by example."""
        self.spoiled.update(known.view.leaf for known in inputs if known.view is not None)


def walk(jaxpr: Jaxpr, consts: list[Any], inputs: list[Known], tape: Tape) -> list[Known]:
    """The outputs of `jaxpr`, with every use of a parameter on the tape."""
    env: dict[Any, Known] = {}

    def read(atom: Any) -> Known:
        return Known(atom.val, False) if isinstance(atom, Literal) else env[atom]

    env.update(zip(jaxpr.constvars, (Known(c, False) for c in consts), strict=True))
    env.update(zip(jaxpr.invars, inputs, strict=True))
    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, _step(eqn, [read(atom) for atom in eqn.invars], tape), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _step(eqn: Any, inputs: list[Known], tape: Tape) -> list[Known]:
    name = eqn.primitive.name
    followed = any(known.view is not None for known in inputs)
    if followed and name in INLINED:
        inner = eqn.params[INLINED[name]]
        return _checkpoint(eqn, inputs, tape) if name == "remat2" else walk(inner.jaxpr, inner.consts, inputs, tape)
    if followed and name == "scan":
        return _scan(eqn, inputs, tape)
    out = _evaluate(eqn, [known.value for known in inputs])
    view = _reordered(eqn, inputs) if followed else None
    if followed and view is None:
        if name in RULES:
            out = [_tapped(eqn, inputs, out[0], tape)]
        else:
            tape.spoil(*inputs)
    return _known(out, inputs, tape, view)


def _known(out: list[Any], inputs: list[Known], tape: Tape, view: View | None = None) -> list[Known]:
    """What is known of values that are made from those inputs."""
    varies = any(known.varies for known in inputs)
    sources = frozenset() if varies or not out else tape.common(out, _sources(inputs))
    return [Known(value, varies, view, sources) for value in out]


def _evaluate(eqn: Any, values: list[Any]) -> list[Any]:
    bound = eqn.primitive.get_bind_params(eqn.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # up to JAX 0.9, functions come apart
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*functions, *values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _tapped(eqn: Any, inputs: list[Known], z: Any, tape: Tape) -> Any:
    """The result with a tap for the one parameter in it, unless that would give each example a copy of a weight.

    Hence the other operand is an example's own, or a constant for which the result is smaller than the parameter.
    """
    which = [i for i, known in enumerate(inputs) if known.view is not None]
    others = [known for i, known in enumerate(inputs) if i != which[0]]
    found = None
    small = jnp.size(z) < jnp.size(inputs[which[0]].value) and not _sources(others)
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


# -- loops and checkpoints ----------------------------------------------------------------------------------
def _checkpoint(eqn: Any, inputs: list[Known], tape: Tape) -> list[Known]:
    """A call whose inside is computed again on the way back, as it would be without taps."""

    def call(values: list[Any], inner: Tape) -> list[Known]:
        return walk(eqn.params["jaxpr"], [], [k._replace(value=v) for k, v in zip(inputs, values, strict=True)], inner)

    values = [known.value for known in inputs]
    seen = _seen(call, values)
    taps = [] if tape.taps is None else [next(tape.taps) for _ in seen.uses]

    def run(values: list[Any], taps: list[Any]) -> Any:
        inner = Tape(None if tape.taps is None else iter(taps))
        out = call(values, inner)
        inner.spoil(*out)
        return [known.value for known in out], inner.operands

    remembered = jax.checkpoint(run, policy=eqn.params["policy"], prevent_cse=eqn.params["prevent_cse"])
    out, operands = remembered(values, taps)
    tape.include(seen, seen.uses)
    tape.operands += operands
    return _known(out, inputs, tape)


def _scan(eqn: Any, inputs: list[Known], tape: Tape) -> list[Known]:
    """A loop: weights that all steps share are followed inside, and those of which each step has a slice."""
    n, m, length = (eqn.params[name] for name in ("num_consts", "num_carry", "length"))
    body = eqn.params["jaxpr"]
    consts, carry, xs = inputs[:n], inputs[n : n + m], inputs[n + m :]
    tape.spoil(*carry)
    (like,) = _known([()], inputs, Tape())
    shared = [known._replace(view=in_scan(known.view, None)) for known in consts]
    sliced = [_slice(known, tape) for known in xs]

    def call(h: list[Any], x: list[Any], inner: Tape) -> list[Known]:
        state = [like._replace(value=value) for value in h]
        steps = [known._replace(value=value) for known, value in zip(sliced, x, strict=True)]
        return walk(body.jaxpr, body.consts, [*shared, *state, *steps], inner)

    first, stacked = [known.value for known in carry], [known.value for known in xs]
    one = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in body.jaxpr.invars[n + m :]]
    seen = _seen(call, first, one)
    taps = None if tape.taps is None else [next(tape.taps) for _ in seen.uses]

    def step(h: list[Any], x_and_taps: Any) -> Any:
        x, t = x_and_taps
        inner = Tape(None if t is None else iter(t))
        values = [known.value for known in call(h, x, inner)]
        return values[:m], (values[m:], inner.operands)

    options = {name: eqn.params[name] for name in ("reverse", "unroll")}
    last, (ys, operands) = jax.lax.scan(step, first, (stacked, taps), length=length, **options)
    tape.include(seen, [use.looped(length) for use in seen.uses])
    tape.operands += operands
    return _known([*last, *ys], inputs, tape)


def _slice(known: Known, tape: Tape) -> Known:
    """What each step sees of an array that is scanned over."""
    if known.view is None:
        return known
    axis, *axes = known.view.axes
    if axis is None:
        tape.spoil(known)
        return known._replace(view=None)
    return known._replace(view=in_scan(known.view._replace(axes=tuple(axes)), axis))


def _seen(call: Callable[..., list[Known]], *args: Any) -> Tape:
    """What a walk would find, without computing anything; a parameter that it returns is spoiled."""
    found: list[Tape] = []

    def run(*args: Any) -> None:
        found.append(Tape())
        found[-1].spoil(*call(*args, found[-1]))

    jax.eval_shape(run, *args)
    return found[-1]
