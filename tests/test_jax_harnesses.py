"""JAX's own primitive harnesses: kernels of y_b = op(x_b, w) by every route, against plain backward passes.

A rule here that does not fit a primitive, or a batching rule of JAX that is wrong, makes a product wrong without a
word. An error that says what is the matter is an answer, a wrong number is none. Several harnesses of one primitive are
one model, each with a parameter of its own, for most of the time is compilation.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import pytest
from differential import Dense, Tally, compare, counted, routes, tally_of, told
from jax_ops import FORMS, Op, chunks, harnesses, model, op, reference, together
from jax_reference import JAX

from traceest_adapters.jax import jacobian
from traceest_adapters.jax.operator import JaxJacobian

SHARDS, TOGETHER, EVERY = 16, 12, 40
RULED = {
    "products": {"dot_general": 20},
    "convolutions": {"conv_general_dilated": 60},
    "others": {"gather": 150, "add": 6, "sub": 6, "div": 14, "reshape": 10},
}
"""Primitives that the adapter knows itself, of which one harness in so many is tried in every run."""

tally = tally_of("JAX's harnesses")


def examine(some: list[Any], forms: tuple[str, ...], tally: Tally, probes: tuple[int, ...] = (3,)) -> list[str]:
    """What is wrong of some harnesses, in words."""
    found: list[tuple[Op, Dense]] = []
    for harness in some:
        for form in forms:
            one = op(harness, form)
            D = one if isinstance(one, str) else reference(one)
            if isinstance(D, str):
                tally[f"{D}"] += 1
            elif isinstance(one, Op):
                found.append((one, D))
    tally["models"] += len(found)
    wrong = []
    for i, part in enumerate(chunks(found, TOGETHER)):
        wrong += _compared(part, bool(i % 3 != 1), tally, probes)
    return wrong


def _compared(found: list[tuple[Op, Dense]], mapped: bool, tally: Tally, probes: tuple[int, ...]) -> list[str]:
    """All as one model; where that is refused or wrong, in halves, and at last one by one."""
    ops, D = [one for one, _ in found], together(*map(list, zip(*found, strict=True)))
    params, inputs, fn = [one.parameter for one in ops], [one.inputs for one in ops], model(ops, mapped)
    every = routes(D, JAX, probes, statistics=False)
    outcomes = compare(lambda: jacobian(fn, params, inputs), D, every, JAX)
    if len(found) > 1 and any(outcome != (outcome.route, None, None) for outcome in outcomes):
        half = len(found) // 2
        return [text for part in (found[:half], found[half:]) for text in _compared(part, mapped, tally, probes)]
    wrong = []
    for outcome in outcomes:
        counted(tally, outcome, f"{ops[0].name.split('_')[0]}, ", len(found))
        if outcome.wrong is not None:
            how = "mapped" if mapped else "stacked"
            wrong.append(f"{ops[0].name}, {ops[0].form}, {how}, {outcome.route}: {outcome.wrong}")
    return wrong


@pytest.mark.parametrize("kind", RULED)
def test_primitives_that_are_understood(kind: str, tally: Tally) -> None:
    some = [h for name, every in RULED[kind].items() for h in harnesses()[name][::every]]
    wrong = examine(some, FORMS, tally)
    assert not wrong, told(wrong)


def test_a_sample_of_all_primitives(tally: Tally) -> None:
    chosen = [some[0] for _, some in sorted(harnesses().items())]
    wrong = [text for i in range(3) for text in examine(chosen[i::EVERY], (FORMS[i],), tally)]
    assert not wrong, told(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_all_primitives(shard: int, tally: Tally) -> None:
    names = sorted(harnesses())[shard::SHARDS]
    wrong = []
    for name in names:
        for some in chunks(harnesses()[name], 2 * TOGETHER):
            wrong += examine(some, FORMS, tally, (1, 2, 3))
            jax.clear_caches()  # each program holds memory maps, of which a process may have 65,530
    assert not wrong, told(wrong)


def test_a_wrong_product_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest: Any = JaxJacobian.rmatmat
    monkeypatch.setattr(JaxJacobian, "rmatmat", lambda J, V: honest(J, V) * (1 + 1e-4))
    assert any("rmatmat" in text for text in examine(harnesses()["tanh"], FORMS[1:2], Counter()))
