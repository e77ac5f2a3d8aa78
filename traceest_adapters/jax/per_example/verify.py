"""Every kernel's own look: what its routes give for each example, against a plain pass of the model as it is.

For random cotangents v, and signs s that are −1 for a random half of the examples, one backward pass of the whole batch
gives

    Σ_b s_b J_bᵀ v_b

for each parameter. The factors of ghost norms, or gradients made example by example, all from v, have to add up to
the same. Examples that influence each other, in values or in derivatives alone, a grouping that is not by examples,
batching rules that are wrong, and rules of ours that do not fit are all seen by this. A parameter that fails is treated
by the next plainer route: a scan over examples, in the end with one probe after another; if that fails too, the
examples are not independent.

Where both sides are exactly zero they are so for every cotangent of this kernel, since both are linear in it; nothing
is believed of another one. What is not finite shows nothing. Under `jax.jit`, where there are no values, nothing is
looked at.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from traceest_adapters import _memory as memory
from traceest_adapters import _state as common
from traceest_adapters.jax.per_example import compiled, ghost_norms
from traceest_adapters.jax.per_example.plan import Plan
from traceest_adapters.jax.per_example.routes import gap, rounding
from traceest_adapters.jax.states import first_line

ROUNDING = 1e-5
"""Least difference, relative to the largest entry, that tells: parts of a float64 model may be of float32."""
SAFE = 16
"""Times a model's own rounding, as it is measured, that a difference may be."""
UNSURE = 0.1
"""Where a model's own rounding may be as much of the largest entry, nothing is shown."""
LITTLE = 1e-2
"""Derivatives that are zero but for rounding are known to be, if that is so little of those by other parameters."""
NAMED = 3
"""Parameters that a message names."""
ALSO = "dropout that draws one mask for the whole batch (switch it off, or give each example a key of its own)"


class Look:
    """One kernel's plain pass, and how far from it a difference tells."""

    def __init__(self, J: Any) -> None:
        self.J = J
        rng, B = np.random.default_rng(0), J._B
        signs = np.ones(B)
        signs[rng.permutation(B)[: B // 2]] = -1
        v = rng.standard_normal((B, J.shape[0] // B)).astype(np.float32)
        self.signs, self.U, self.signed = (jnp.asarray(x, J._state_dtype) for x in (signs, v[None], signs[:, None] * v))
        self.state, self.expected, self._sizes = self._plain(J.trained, self.signed)

    def _plain(self, trained: list[Any], u: Any) -> Any:
        return compiled.plain(self.J.model, trained, self.J.fixed, self.J.inputs, u)

    @cached_property
    def sizes(self) -> Any:
        """The largest entry by each parameter."""
        return np.asarray(self._sizes, np.float64)

    @cached_property
    def noise(self) -> Any:
        """How far the plain pass is from itself, with every parameter changed in its last digit."""
        rng = np.random.default_rng(1)
        signs = [rng.integers(0, 2, p.shape, np.int8) for p in self.J.trained]
        _, again, _ = self._plain(_moved(self.J.trained, signs), (1.25 * self.signed).astype(self.signed.dtype))
        return np.asarray(_distances(again, self.expected), np.float64)

    def alike(self, states: Any) -> bool:
        """Whether states computed by other means are those of the plain pass."""
        return alike(self.J, self.apart(states))

    def apart(self, states: Any) -> Any:
        """How far from the plain pass' states are."""
        return compiled.apart(states, self.state)

    def wrong(self, plan: Plan, leaves: tuple[int, ...], gaps: Any) -> tuple[set[int], set[int]]:
        """The parameters whose gaps, (leaves, …, 2), are more than rounding, and those of which nothing is shown.

        The first gap of each is that of the sums. It may be as large as the model's own rounding, if that is little.
        """
        gaps = np.asarray(gaps, np.float64).reshape(len(leaves), -1, 2)
        off = ~(gaps[..., 0] <= _rounding(plan, self.J.trained) * gaps[..., 1])  # NaN is off
        wrong, unknown = set(), set()
        for leaf, some, ((apart, size), *_) in zip(leaves, off, gaps, strict=True):
            if not np.isfinite(self.sizes[leaf]):
                unknown.add(leaf)
            elif some[1:].any() or (some[0] and not apart <= SAFE * self.noise[leaf]):
                wrong.add(leaf)
            elif some[0] and not SAFE * self.noise[leaf] <= UNSURE * max(size, LITTLE * self.sizes.max()):
                unknown.add(leaf)
        return wrong, unknown


def verified(plan: Plan, J: Any) -> Plan:
    """The plan, with parameters that it is not right for moved to `rest`, whose passes are right then.

    Raises
    ------
    ValueError
        If examples are not independent, or the state depends on no parameter.
    """
    look = Look(J)
    plan, why = _with_right_ghosts(plan, look)
    if not np.any(look.sizes != 0):
        raise common.no_dependence()
    if plan.rest:
        why = _look_at_rest(plan, look) or why
    if why:
        J.routes.warn(why)
    return plan


def _with_right_ghosts(plan: Plan, look: Look) -> tuple[Plan, str]:
    """The plan with what ghost norms are right for, and why there is less of it."""
    J, simpler = look.J, plan.stepwise
    leaves = (*simpler.weights, *simpler.small)
    if not leaves:
        return plan, ""
    try:
        tapped, states = J._tapped(simpler)
        values = look.apart(states)
        gaps = ghost_norms.gaps(simpler, J.dtype, *tapped[:2], look.U, look.signs, look.expected)
    except Exception as error:  # a rule that cannot be mapped may raise anything
        if memory.ran_out(error):
            raise
        why = f"ghost norms do not work here, so that examples are treated one by one ({first_line(error)})"
        return Plan((), (), (), tuple(sorted({*plan.rest, *leaves})), (), plan.budget), why
    wrong, unknown = look.wrong(simpler, leaves, gaps) if alike(J, values) else (set(leaves), set())
    if not (wrong or unknown):
        J.__dict__["_stepwise"] = tapped
        return plan, ""
    why = (
        f"of {_named(J, wrong)} gradients made for all examples at once are not those of a plain pass (a batching rule "
        "is wrong, or what is known here does not fit this model), so that they are made example by example"
    )
    return plan.without(wrong | unknown), why if wrong else ""


def _look_at_rest(plan: Plan, look: Look) -> str:
    """The scan over examples, its probes at once, or else one by one; why, if so."""
    J, leaves = look.J, plan.rest
    for mapped in (True, False) if J.routes.maps("examples") else (False,):
        J.routes.mapped["examples"] = mapped
        arrays = J.trained, J.fixed, J._examples, look.U, look.signs
        states, found = compiled.signed_grads(J.model, leaves, J._lanes if mapped else 1, *arrays, mapped)
        raise_unless_alike(J, look.apart(states))
        gaps = jnp.stack([gap(g, look.expected[leaf]) for leaf, g in zip(leaves, found, strict=True)])
        wrong, _ = look.wrong(plan, leaves, gaps)
        if not wrong:
            return "" if mapped else "examples and probes are gone through one by one: mapped, they give other results"
    of = {i: g / s if s else np.inf for i, (g, s) in zip(leaves, np.asarray(gaps, np.float64), strict=True)}
    named, off = _named(J, wrong), max(of[i] for i in wrong)
    if J.model.batch_axis is None:
        raise ValueError(f"jacobian: the model gives other derivatives by {named} each time it is called.")
    why = (
        f"derivatives by {named}, made one by one, differ from those of the batch by {off:.2g} of the largest, though "
        "the states may be the same"
    )
    raise common.not_independent(J.model.batch_axis, why, "a parameter with a row for each example, or " + ALSO)


def units_are_right(plan: Plan, J: Any) -> bool:
    """Whether loops taken unit by unit give the norms that going through them step by step gives."""
    U = jnp.asarray(np.random.default_rng(0).standard_normal((1, J._B, J.shape[0] // J._B)), J._state_dtype)
    cells, of_leaves = ghost_norms.squares_apart(plan, J.dtype, *J._unrolled, U)
    _, expected = ghost_norms.squares_apart(plan.stepwise, J.dtype, *J._stepwise, U)
    expected = {leaf: np.asarray(squares, np.float64) for leaf, squares in expected.items()}
    pairs = [(squares, sum(expected[i] for i in cell.leaves)) for cell, squares in zip(plan.cells, cells, strict=True)]
    pairs += [(squares, expected[leaf]) for leaf, squares in of_leaves.items()]
    rtol = 2 * _rounding(plan, J.trained)
    if all(np.all(np.abs(np.asarray(x, np.float64) - y) <= rtol * np.max(y)) for x, y in pairs):
        return True
    if all(np.all(np.isfinite(y)) for _, y in pairs):
        J.routes.warn("norms made unit by unit are not those of a loop's steps, which are gone through one by one")
    return False


def alike(J: Any, apart: Any) -> bool:
    """Whether states are those of the whole batch, from how far `apart` they are."""
    difference, scale = np.asarray(apart, np.float64)
    return bool(difference <= common.tolerance(float(jnp.finfo(J._state_dtype).eps)) * scale)


def raise_unless_alike(J: Any, apart: Any) -> None:
    """Raise a ValueError unless the states of examples by themselves are those of the batch."""
    if not alike(J, apart):
        why = f"computed one by one their states differ from those of the batch by up to {float(apart[0]):.2g}"
        raise common.not_independent(J.model.batch_axis, why, ALSO)


@jax.jit
def _moved(arrays: list[Any], up: list[Any]) -> list[Any]:
    """All entries a last digit larger or smaller."""
    both = zip(arrays, up, strict=True)
    return [p * (1 + float(jnp.finfo(p.dtype).eps) * (2 * s.astype(p.dtype) - 1)) for p, s in both]


@jax.jit
def _distances(again: list[Any], expected: list[Any]) -> Any:
    return jnp.stack([gap(a / 1.25, b)[0].astype(jnp.float32) for a, b in zip(again, expected, strict=True)])


def _rounding(plan: Plan, trained: list[Any]) -> float:
    eps = max(float(jnp.finfo(dtype).eps) for dtype in (*(p.dtype for p in trained), *_dtypes(plan)))
    return float(max(ROUNDING, rounding(eps, max(1, len(plan.uses)))))


def _dtypes(plan: Plan) -> list[Any]:
    return [use.result[1] for use in plan.uses]


def _named(J: Any, leaves: set[int]) -> str:
    names = [repr(J.parameters[leaf]) for leaf in sorted(leaves)]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
