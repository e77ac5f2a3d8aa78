"""Random JAX models, trained and changed between questions: no answer is wrong, though some are refused."""

from __future__ import annotations

from collections import Counter

import jax
import pytest
from differential import PLAIN, Sizes, Tally, examine, for_minutes, not_refused, tally_of
from hypothesis import given, settings
from jax_blocks import BLOCKS, COUPLED
from jax_generator import MANY, Program, Session, programs

from traceest_adapters.jax.operator import JaxJacobian

tally = tally_of("random models in JAX")
ALONE = [pytest.param(name, marks=() if i % 9 == 0 else pytest.mark.slow) for i, name in enumerate(sorted(BLOCKS))]


@pytest.mark.parametrize("name", ALONE)
def test_every_part_alone(name: str, tally: Tally) -> None:
    """As many positions as examples, so that a place taken on trust is wrong; asked before training and after."""
    examine(
        Session(Program((name,), head="zero, time-major", sizes=Sizes(3, 3, 4), actions=("ask", "step", "ask"))), tally
    )
    again = ("ask", "ask again", "ask again")
    examine(Session(Program((name,), sizes=Sizes(3, 2, 4), probes=MANY, actions=again, seed=1)), tally)


CHANGES = {
    "an attribute": Program(("dense",), actions=("ask", "closure", "ask")),
    "a global": Program(("dense",), call="function of a global", actions=("ask", "closure", "ask")),
    "an array in place": Program(("dense",), call="partial", actions=("ask", "closure in place", "ask")),
    "an array in place, of a kernel that is there": Program(
        ("dense",), actions=("ask", "closure in place", "ask again", "ask again", "ask again")
    ),
    "the input in place": Program(
        ("dense",), arrays="numpy", actions=("ask", "input in place", "ask again", "ask again", "ask again")
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_between_questions(what: str, tally: Tally) -> None:
    examine(Session(CHANGES[what]), tally)


@settings(max_examples=8, derandomize=True, **PLAIN)
@given(programs())
def test_random_models(tally: Tally, program: Program) -> None:
    examine(Session(program), tally)


@pytest.mark.slow
def test_random_models_for_minutes(tally: Tally) -> None:
    for_minutes(Session, programs(), tally, 50, between=jax.clear_caches)


# -- the tests bite ------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_models_that_are_alone_are_not_refused() -> None:
    not_refused({name: Session(Program((name,))) for name in sorted(set(BLOCKS) - COUPLED)})


def test_a_product_that_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = JaxJacobian.sketch_gram
    monkeypatch.setattr(JaxJacobian, "sketch_gram", lambda J, V: honest(J, V) * (1 + 1e-4))
    with pytest.raises(AssertionError, match="sketch_gram"):
        examine(Session(Program(("dense",), routes=0, actions=("ask", "ask", "ask"))), Counter())
