"""Scans of JAX functions: transitions of the carry, and norms unit by unit, for every kind of loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import as_jax, jax_gru, per_example, random, torch_gru

import traceest as te
from traceest_adapters import _memory as memory
from traceest_adapters.jax import jacobian
from traceest_adapters.jax.per_example import bptt, ghost_norms, recurrent_norms, verify
from traceest_adapters.jax.per_example.plan import Plan

H, T, INPUTS = 4, 6, 3
X = random(5, T, INPUTS)
ONE = {"w": random(H, H, seed=1) / 2, "u": random(INPUTS, H, seed=2), "b": random(H, seed=3)}
GATES = {"w": random(H, 3 * H, seed=1) / 2, "u": random(INPUTS, 3 * H, seed=2), "b": random(3 * H, seed=3)}
FOUR = {"w": random(2 * H + INPUTS, 4 * H, seed=1) / 2, "b": random(4 * H, seed=3), "h": random(H, H, seed=4)}


def over(cell: Callable[..., Any], **options: Any) -> Callable[[Any, Any], Any]:
    """A function of parameters and (batch, time, inputs): what `cell(p, h, x)` makes of h = 0."""

    def fn(p: Any, x: Any) -> Any:
        h = options.get("start", lambda p, x: jnp.zeros((x.shape[0], H)))(p, x)
        last, ys = jax.lax.scan(
            lambda h, x: cell(p, h, x), h, jnp.swapaxes(x, 0, 1), reverse=options.get("reverse", False)
        )
        return options.get("out", lambda last, ys: jnp.swapaxes(ys, 0, 1))(last, ys)

    return fn


def plain(p: Any, h: Any, x: Any) -> Any:
    h = jnp.tanh(h @ p["w"] + x @ p["u"] + p["b"])
    return h, h


def minimal(p: Any, h: Any, x: Any) -> Any:
    """Three gates; the bias is subtracted."""
    a = h @ p["w"] + x @ p["u"]
    a, b, c = jnp.split(a - p["b"], 3, -1)
    h = jax.nn.sigmoid(a) * h + jax.nn.softplus(b) * jnp.tanh(c)
    return h, h


def carried(p: Any, h: Any, x: Any) -> Any:
    """What comes out of a step is made of the carry before."""
    return minimal(p, h, x)[0], jnp.sin(h)


def gates_out(p: Any, h: Any, x: Any) -> Any:
    """The results are not the states alone."""
    a, b, c = jnp.split(h @ p["w"] + x @ p["u"] + p["b"], 3, -1)
    h = jax.nn.sigmoid(a) * h + jax.nn.relu(b) * jnp.tanh(c)
    return h, (h**2, jnp.cos(b))


def read_out(p: Any, h: Any, x: Any) -> Any:
    h, _ = minimal(p, h, x)
    return h, jnp.sin(h @ p["w"][:, :H]) + x[..., :1]


def read_out_apart(p: Any, h: Any, x: Any) -> Any:
    h, _ = minimal(p["cell"], h, x)
    return h, jnp.sin(h @ p["out"])


def lstm(p: Any, carry: Any, x: Any) -> Any:
    h, c = carry
    i, f, g, o = jnp.split(jnp.concatenate([h, x, c], -1) @ p["w"] + p["b"] + h @ jnp.tile(p["h"], 4), 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def normalised(p: Any, h: Any, x: Any) -> Any:
    """Units are not by themselves."""
    a, b, c = jnp.split(h @ p["w"] + x @ p["u"] + p["b"], 3, -1)
    h = jax.nn.sigmoid(a) * h + jax.nn.softmax(b) * jnp.tanh(c)
    return h, h


def two_cells(p: Any, carry: Any, x: Any) -> Any:
    """The second is fed by the first's new state."""
    h, g = carry
    h, _ = minimal(p["a"], h, x)
    g, _ = minimal(p["b"], g, h)
    return (h, g), g


def counted(p: Any, carry: Any, x: Any) -> Any:
    h, i, before = carry
    new, _ = minimal(p, h, x * (1 + i))
    return (new, i + 1, h), (new + before, i)


def passed_on(p: Any, carry: Any, x: Any) -> Any:
    """Part of the carry is the input, and part is never changed."""
    h, last, always = carry
    new, _ = minimal(p, h + always, x + last)
    return (new, x, always), new


def attending(p: Any, x: Any) -> Any:
    """All steps share what depends on the parameters and differs between examples."""
    keys = jnp.sin(x @ p["k"])

    def cell(h: Any, x: Any) -> Any:
        a = jax.nn.softmax(jnp.einsum("bh,bth->bt", h, keys))
        h, _ = minimal(p, h + jnp.einsum("bt,bth->bh", a, keys), x)
        return h, h

    return jax.lax.scan(cell, jnp.zeros((x.shape[0], H)), jnp.swapaxes(x, 0, 1))[0]


def low_rank(p: Any, h: Any, x: Any) -> Any:
    """Transitions would be more numbers than weights."""
    h = jnp.tanh((h @ p["u"]) @ p["v"] + x[..., :1])
    return h, h


def no_forward_mode(p: Any, h: Any, x: Any) -> Any:
    return (only_backward(minimal(p, h, x)[0]),) * 2


@jax.custom_vjp
def only_backward(x: Any) -> Any:
    return jnp.sin(x)


only_backward.defvjp(lambda x: (jnp.sin(x), x), lambda x, d: (jnp.cos(x) * d,))


def of_loops(p: Any, x: Any) -> Any:
    """One after the other, and once more the first."""
    first, second = over(minimal), over(minimal, reverse=True)
    return first(p["a"], second(p["b"], first(p["a"], x)[..., :INPUTS])[..., :INPUTS])


def counted_loop(p: Any, x: Any) -> Any:
    return jax.lax.fori_loop(0, T, lambda i, h: minimal(p, h, x[:, i])[0], jnp.zeros((x.shape[0], H)))


class Case(NamedTuple):
    """A function with its parameters; by scan, whether it has transitions and how many leaves its units cover."""

    fn: Callable[..., Any]
    params: Any
    expected: tuple[tuple[bool, int], ...]
    axis: int | None = 0


LAST = {"out": lambda last, ys: last}
PAIR = {"start": lambda p, x: (jnp.zeros((x.shape[0], H)),) * 2}
CASES = {
    "plain": Case(over(plain), ONE, ((True, 3),)),
    "minimal": Case(over(minimal), GATES, ((True, 3),)),
    "backwards": Case(over(minimal, reverse=True), GATES, ((True, 3),)),
    "the last state": Case(over(minimal, **LAST), GATES, ((True, 3),)),
    "backwards, of the carries before and the last": Case(
        over(carried, reverse=True, out=lambda last, ys: jnp.swapaxes(ys, 0, 1) + last[:, None]), GATES, ((True, 3),)
    ),
    "backwards, the last": Case(over(minimal, reverse=True, **LAST), GATES, ((True, 3),)),
    "gates are results": Case(over(gates_out, out=lambda last, ys: [jnp.swapaxes(y, 0, 1) for y in ys]), GATES,
                              ((False, 0),)),
    "weights read out too": Case(over(read_out), GATES, ((True, 2),)),
    "read out": Case(over(read_out_apart), {"cell": GATES, "out": random(H, 2)}, ((True, 3),)),
    "lstm": Case(over(lstm, **PAIR), FOUR, ((False, 0),)),
    "normalised": Case(over(normalised), GATES, ((False, 0),)),
    "two cells": Case(over(two_cells, **PAIR), {"a": GATES, "b": {**GATES, "u": random(H, 3 * H, seed=5)}},
                      ((False, 0),)),
    "with a count": Case(over(counted, start=lambda p, x: (jnp.zeros((x.shape[0], H)), 0, jnp.zeros((x.shape[0], H))),
                              out=lambda last, ys: (last[0], jnp.swapaxes(ys[0], 0, 1))), GATES, ((True, 3),)),
    "passed on": Case(over(passed_on, start=lambda p, x: (jnp.zeros((len(x), H)), x[:, 0], jnp.ones((len(x), H)))),
                      {**GATES, "w": random(H, 3 * H)}, ((True, 3),)),
    "too wide a carry": Case(over(low_rank), {"u": random(H, 1), "v": random(1, H)}, ((False, 0),)),
    "learned start": Case(over(minimal, start=lambda p, x: jnp.sin(p["h"]) * jnp.ones((x.shape[0], 1))),
                          {**GATES, "h": random(H)}, ((True, 3),)),
    "attention": Case(attending, {**GATES, "k": random(INPUTS, H)}, ((True, 3),)),
    "no forward mode": Case(over(no_forward_mode), GATES, ((False, 0),)),
    "several loops": Case(of_loops, {"a": GATES, "b": GATES}, ((False, 0), (True, 3), (False, 0))),
    "a counted loop": Case(counted_loop, GATES, ((True, 3),)),
    "gru": Case(lambda p, x: jax_gru(p, jnp.swapaxes(x, 0, 1)), as_jax(torch_gru(INPUTS, H)), ((True, 4),), 1),
    "one block": Case(over(minimal), GATES, ((False, 0),), None),
}  # fmt: skip


def formed(case: Case, V: Any, params: Any = None) -> Any:
    return per_example(case.fn, case.params if params is None else params, X, V, case.axis)


def of(case: Case, params: Any = None, check: bool = False) -> Any:
    axes = {"batch_axis": None} if case.axis is None else {"batch_axis": case.axis, "in_axes": 0}
    return jacobian(case.fn, case.params if params is None else params, X, check=check, **axes)


def assert_right(case: Case, check: bool = False) -> Any:
    """With few probes, and with many."""
    J = of(case, check=check)
    for k in (3, 14):
        V = random(J.shape[0], k, seed=7)
        g = jax.jit(lambda V: formed(case, V))(V)
        np.testing.assert_allclose(J.block_sqnorms(V), (g**2).sum(-1), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(J.sketch_gram(V), np.einsum("bip,cjp->bicj", g, g), rtol=1e-10, atol=1e-10)
    return J


def loops_of(plan: Plan) -> tuple[tuple[bool, int], ...]:
    cells = [None if loop.unrolled is None else loop.unrolled.cell for loop in plan.loops]
    return tuple((cell is not None, 0 if cell is None else len(cell.leaves)) for cell in cells)


SLOW = ("the last state", "backwards, the last", "with a count", "normalised", "two cells", "one block")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CASES])
def test_norms_and_grams_are_those_of_the_formed_gradients(name: str) -> None:
    plan = assert_right(CASES[name])._plan
    assert loops_of(plan) == CASES[name].expected
    assert not plan.rest


def test_loops_whose_transitions_fit_no_memory_are_gone_through_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    ghost_norms._plan.cache_clear()
    monkeypatch.setattr(memory, "BUDGET", 4 * len(X) * T * H * H * 8 - 1)
    plan = assert_right(CASES["minimal"])._plan
    ghost_norms._plan.cache_clear()
    assert loops_of(plan) == ((False, 0),)


# -- inside transformations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["minimal", *(pytest.param(n, marks=pytest.mark.slow) for n in ("attention", "backwards"))]
)
def test_they_are_differentiable_under_jit(name: str) -> None:
    """Transitions and forms depend on the parameters, too."""
    case = CASES[name]
    V = random(of(case).shape[0], 9, seed=3) / 10

    def statistic(g2: Any, G: Any) -> Any:
        return jnp.sum(jnp.sin(g2)) + jnp.sum(jnp.cos(G))

    def found(p: Any) -> Any:
        J = of(case, p, check=True)
        return statistic(J.block_sqnorms(V), J.sketch_gram(V))

    def by_hand(p: Any) -> Any:
        g = formed(case, V, p)
        return statistic(jnp.sum(g**2, -1), jnp.einsum("bip,cjp->bicj", g, g))

    value, grad = jax.jit(jax.value_and_grad(found))(case.params)
    expected, right = jax.jit(jax.value_and_grad(by_hand))(case.params)
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), grad, right)


def test_they_can_be_mapped_over_parameters_and_differentiated_by_probes() -> None:
    case = CASES["minimal"]
    V, scales = random(of(case).shape[0], 9, seed=3), jnp.asarray([0.5, 1.0])
    scaled = lambda s: jax.tree.map(lambda p: s * p, case.params)  # noqa: E731
    norms = jax.vmap(lambda s: of(case, scaled(s)).block_sqnorms(V))(scales)
    np.testing.assert_allclose(norms, [(formed(case, V, scaled(s)) ** 2).sum(-1) for s in scales], rtol=1e-10)
    J = of(case)
    by_probes = jax.grad(lambda V: jnp.sum(J.block_sqnorms(V)))(V)
    np.testing.assert_allclose(by_probes, jax.grad(lambda V: jnp.sum(formed(case, V) ** 2))(V), rtol=1e-8, atol=1e-10)


def test_a_statistic_is_the_same_with_units_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["minimal"]
    with_units = te.rhutch(of(case), 9, rng=0)
    monkeypatch.setattr(recurrent_norms, "cell", lambda *_: None)
    ghost_norms._plan.cache_clear()
    without = te.rhutch(of(case), 9, rng=0)
    ghost_norms._plan.cache_clear()
    np.testing.assert_allclose(with_units.value, without.value, rtol=1e-10)


# -- precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_slopes_and_operands_may_be_as_large_or_small_as_their_product_allows(scale: float) -> None:
    def cell(p: Any, h: Any, x: Any) -> Any:
        a, b = jnp.split(scale * x @ p["w"] / scale, 2, -1)
        h = jnp.sin(a) * h + jnp.cos(b)
        return h, h + h @ p["mix"]

    params = {"w": random(INPUTS, 2 * H), "mix": random(H, H)}
    exact = jacobian(over(cell), params, X)
    V = random(exact.shape[0], 9)
    to32 = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float32), tree)  # noqa: E731
    found = jacobian(over(cell), to32(params), to32(X)).block_sqnorms(V.astype(jnp.float32))
    np.testing.assert_allclose(found, exact.block_sqnorms(V), rtol=1e-4)


# -- bite ----------------------------------------------------------------------------------------------------------

MUTATIONS: dict[str, tuple[str, Any, str, Callable[[Any], Any]]] = {
    "transitions turned around": ("minimal", bptt, "transitions", lambda f: lambda *a: f(*a).T),
    "steps are independent": ("minimal", bptt, "transitions", lambda f: lambda *a: 0 * f(*a)),
    "always forwards": ("several loops", bptt, "adjoint", lambda f: lambda reverse, *a: f(False, *a)),
    "many always forwards": ("backwards", bptt, "adjoint_of_many", lambda f: lambda reverse, *a: f(False, *a)),
    "a gate is missed": ("minimal", recurrent_norms, "forms", lambda f: lambda cell, factors: f(
        cell._replace(entries=tuple((leaf, tuple(e[:2] for e in es)) for leaf, es in cell.entries)), factors)),
    "what leaks is a unit's": ("gates are results", recurrent_norms, "made_of", lambda f: lambda made: (
        f(made)[0], f(made)[1][:1])),
    "units are by themselves": ("normalised", recurrent_norms, "_mixed", lambda f: lambda eqn, inputs, joined: [
        np.full(v.aval.shape, -1) for v in eqn.outvars]),
    "units in another order": ("minimal", recurrent_norms, "_arranged",
                                lambda f: lambda use, label: f(use, label)[::-1]),
}  # fmt: skip


@pytest.fixture
def mutated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    """Plans and compiled steps are made anew, and forgotten afterwards."""
    case, owner, attribute, change = MUTATIONS[request.param]
    ghost_norms._plan.cache_clear()
    jax.clear_caches()
    monkeypatch.setattr(owner, attribute, change(getattr(owner, attribute)))
    yield CASES[case]
    ghost_norms._plan.cache_clear()
    jax.clear_caches()


@pytest.mark.parametrize(
    "mutated",
    [pytest.param(n, marks=[pytest.mark.slow] if i % 2 else []) for i, n in enumerate(MUTATIONS)],
    indirect=True,
)
def test_a_fault_is_caught(mutated: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "verified", lambda plan, *_: plan)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_right(mutated)


@pytest.mark.parametrize(
    "mutated",
    [pytest.param(n, marks=[pytest.mark.slow] if i % 4 else []) for i, n in enumerate(MUTATIONS)],
    indirect=True,
)
def test_a_fault_is_seen_from_values_and_the_loop_treated_otherwise(mutated: Case) -> None:
    with pytest.warns(RuntimeWarning, match=r"example by example|unit by unit"):
        plan = assert_right(mutated, check=True)._plan
    assert plan.rest or not plan.cells
