"""Walking through loops and checkpoints.

Weights that all steps of a scan share are followed inside, and those of which each step has a slice. One of the
outermost scans whose transitions are worth making (`through_time`) is walked through for all its steps at once.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal, jaxpr_as_fun

from traceest_adapters.jax.per_example import bptt, recurrent_norms
from traceest_adapters.jax.per_example.records import Known, Loop, Prepared, Ready, Tape, Unrolled, known_of
from traceest_adapters.jax.per_example.rules import in_scan

Walk = Callable[..., list[Known]]


def checkpoint(walk: Walk, eqn: Any, inputs: list[Known], tape: Tape) -> list[Known]:
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
    return known_of(out, inputs, tape)


class _Scan(NamedTuple):
    """A scan with what goes into it, and its body as a function of carry and slices.

    In the body, some of the new carry may be `given` instead of what it is (None: as it is).
    """

    walk: Walk
    eqn: Any
    like: Known  # what is known of the carry
    shared: list[Known]
    sliced: list[Known]
    carry: list[Any]
    stacked: list[Any]

    @property
    def length(self) -> int:
        return int(self.eqn.params["length"])

    @property
    def body(self) -> Any:
        return self.eqn.params["jaxpr"]

    def step(self, h: list[Any], x: list[Any], inner: Tape, given: list[Any] | None = None) -> list[Known]:
        """The new carry, then what else the step returns."""
        state = [self.like._replace(value=value) for value in h]
        slices = [known._replace(value=value) for known, value in zip(self.sliced, x, strict=True)]
        new = zip(self.body.jaxpr.outvars, given or [], strict=False)
        instead = {var: y for var, y in new if y is not None and not isinstance(var, Literal)}
        return self.walk(self.body.jaxpr, self.body.consts, [*self.shared, *state, *slices], inner, instead)

    def new(self, h: list[Any], x: list[Any], taps: list[Any]) -> list[Any]:
        """The new carry's values."""
        return [known.value for known in self.step(h, x, Tape(iter(taps)))][: len(h)]

    def states(self, carry: bptt.Carry, before: list[Any], taps: list[Any]) -> Any:
        """The new carries of all steps as vectors, (T, H), each from the one before as it is given."""
        return jax.vmap(lambda h, x, t: carry.flat(self.new(h, x, t)))(before, self.stacked, taps)

    def slices(self) -> list[Any]:
        """Of one step, as shapes."""
        avals = [v.aval for v in self.body.jaxpr.invars[len(self.shared) + len(self.carry) :]]
        return [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals]


def scan(walk: Walk, eqn: Any, inputs: list[Known], tape: Tape) -> list[Known]:
    """A loop: weights that all steps share are followed inside, and those of which each step has a slice."""
    n, m = (eqn.params[name] for name in ("num_consts", "num_carry"))
    tape.spoil(*inputs[n : n + m])
    (like,) = known_of([()], inputs, Tape())
    shared = [known._replace(view=in_scan(known.view, None)) for known in inputs[:n]]
    sliced = [_slice(known, tape) for known in inputs[n + m :]]
    values = [known.value for known in inputs]
    it = _Scan(walk, eqn, like, shared, sliced, values[n : n + m], values[n + m :])
    seen = _seen(it.step, it.carry, it.slices())
    if tape.given is not None:
        loop = next(tape.given)
    else:
        loop = Loop(tuple(sorted({known.view.leaf for known in inputs if known.view is not None})))
        if tape.examples:
            loop = _found(it, seen, loop, tape.examples)
            tape.loops.append(loop)
    taps = None if tape.taps is None else [next(tape.taps) for _ in seen.uses]
    if loop.unrolled is not None and taps is not None and tape.ready is not None:
        out, operands = _unrolled(it, taps, loop.unrolled.carry, next(tape.ready), next(tape.states))
    else:
        out, operands = _stepwise(it, taps)
        if loop.unrolled is not None and taps is not None:
            tape.prepared.append(_prepared(it, taps, loop.unrolled.carry, len(tape.uses)))
    tape.include(seen, [use.looped(it.length) for use in seen.uses])
    tape.operands += operands
    return known_of(out, inputs, tape)


def _stepwise(it: _Scan, taps: list[Any] | None) -> tuple[list[Any], list[Any]]:
    """The last carry and the stacked results, and the operands: a scan again."""

    def step(h: list[Any], x_and_taps: Any) -> Any:
        x, t = x_and_taps
        inner = Tape(None if t is None else iter(t))
        values = [known.value for known in it.step(h, x, inner)]
        return values[: len(h)], (values[len(h) :], inner.operands)

    options = {name: it.eqn.params[name] for name in ("length", "reverse", "unroll")}
    last, (ys, operands) = jax.lax.scan(step, it.carry, (it.stacked, taps), **options)
    return [*last, *ys], operands


def _found(it: _Scan, seen: Tape, plain: Loop, examples: int) -> Loop:
    """What is to be done with one of the outermost scans."""
    avals = [jax.typeof(h) for h in it.carry]
    weights = {use.leaf: prod(use.shape) for use in seen.uses if use.into and use.loops[-1] is None}
    if it.length < 2 or not bptt.worth(avals, sum(weights.values()), it.length, examples):
        return plain
    carry = bptt.Carry.of(avals)
    states = jax.ShapeDtypeStruct((it.length, carry.size), avals[carry.floating.index(True)].dtype)
    zeros = [jnp.zeros(*use.result) for use in seen.uses]
    found: list[recurrent_norms.Cell | None] = []

    def parts(taps: list[Any], h: list[Any], x: list[Any]) -> Any:
        """The new carry, and what else the step makes of its taps: the new carry being anything, its own is in it."""
        others = [known.value for known in it.step(h, x, Tape(iter(taps)), given=h)][len(h) :]
        return carry.flat(it.new(h, x, taps)), [y for y in others if jnp.issubdtype(jnp.result_type(y), jnp.floating)]

    def look(h: list[Any], x: list[Any]) -> None:
        bptt.transitions(lambda h: it.new(h, x, zeros), carry, h)
        made = jax.make_jaxpr(lambda taps: parts(taps, h, x))(zeros)
        itemsize = jnp.promote_types(states.dtype, jnp.float32).itemsize
        found.append(recurrent_norms.cell(seen.uses, made, it.length, it.eqn.params["reverse"], examples, itemsize))

    try:
        jax.eval_shape(look, it.carry, it.slices())
    except (TypeError, NotImplementedError):  # no forward mode
        return plain
    if found[-1] is None:  # then what is outside of the loop would take as long as it
        return plain
    return plain._replace(unrolled=Unrolled(found[-1], carry, states))


def _prepared(it: _Scan, taps: list[Any], carry: bptt.Carry, first: int) -> Prepared:
    """What the walk with taps needs, made where nothing depends on them yet."""
    body, shared, m = jaxpr_as_fun(it.body), [known.value for known in it.shared], len(it.carry)

    def values(h: list[Any], x: list[Any]) -> Any:
        return body(*shared, *h, *x)[:m], h

    options = {"length": it.length, "reverse": it.eqn.params["reverse"]}
    before = jax.lax.scan(values, it.carry, it.stacked, **options)[1]
    zeros = [jnp.zeros_like(t[0]) for t in taps]
    A = jax.vmap(lambda h, x: bptt.transitions(lambda h: it.new(h, x, zeros), carry, h))(before, it.stacked)
    s, pullback = jax.vjp(lambda t: it.states(carry, before, t), taps)
    slopes = dict(enumerate(pullback(jnp.ones_like(s))[0], first))
    return Prepared(Ready(before, A), slopes)


def _unrolled(
    it: _Scan, taps: list[Any], carry: bptt.Carry, ready: Ready, at_states: Any
) -> tuple[list[Any], list[Any]]:
    """The same with `through_time.chained` carries, and a tap at them."""
    m, reverse, start = len(it.carry), it.eqn.params["reverse"], carry.flat(it.carry)
    states = bptt.chained(reverse, ready.A, it.states(carry, ready.before, taps), start) + at_states
    earlier = jnp.concatenate([states[1:], start[None]] if reverse else [start[None], states[:-1]])

    def rest(earlier: Any, others: list[Any], h: Any, x: list[Any], t: list[Any]) -> Any:
        inner = Tape(iter(t))
        known = it.step(carry.split(earlier, others), x, inner, given=carry.split(h, [None] * m))
        return [k.value for k in known], inner.operands

    out, operands = jax.vmap(rest)(earlier, ready.before, states, it.stacked, taps)
    return [*(x[0 if reverse else -1] for x in out[:m]), *out[m:]], operands


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
