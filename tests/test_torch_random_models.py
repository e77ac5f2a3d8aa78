"""Random PyTorch models, trained and changed between questions: no answer is wrong, though some are refused."""

from __future__ import annotations

from collections import Counter

import pytest
from differential import PLAIN, Sizes, Tally, examine, for_minutes, not_refused, tally_of
from hypothesis import given, settings
from torch_blocks import BLOCKS, COUPLED
from torch_generator import Program, Session, programs

from traceest_adapters.torch.operator import TorchJacobian

tally = tally_of("random models in PyTorch")

FOUND = [
    Program(
        ("prelu",), sizes=Sizes(2, 1, 4), options=(("chunk_size", 2),), actions=("ask",), seed=1
    ),  # unit cotangents
    Program(
        ("einsum", "prelu", "class_token"), sizes=Sizes(2, 1, 4), actions=("ask", "ask")
    ),  # a gradient of another shape
    Program(("dense", "embedding"), sizes=Sizes(2, 1, 4), batches=True, actions=("ask", "ask")),
    Program(("batch_norm",), sizes=Sizes(2, 1, 4), batches=True, actions=("ask", "mode", "ask")),
]
"""What the slow test has found."""


@pytest.mark.parametrize("program", FOUND, ids=lambda program: "-".join(program.blocks))
def test_programs_that_were_found_wrong(program: Program, tally: Tally) -> None:
    examine(Session(program), tally)


@pytest.mark.parametrize("name", BLOCKS)
def test_every_part_alone(name: str, tally: Tally) -> None:
    """As many positions as examples, so that a place taken on trust is wrong; asked before training and after."""
    examine(
        Session(Program((name,), head="zero, time-major", sizes=Sizes(3, 3, 4), actions=("ask", "step", "ask"))), tally
    )
    examine(Session(Program((name,), head="pooled to one", sizes=Sizes(3, 2, 4), routes=4, seed=1)), tally)


@settings(max_examples=70, derandomize=True, **PLAIN)
@given(programs())
def test_random_models(tally: Tally, program: Program) -> None:
    examine(Session(program), tally)


@pytest.mark.slow
def test_random_models_for_minutes(tally: Tally) -> None:
    for_minutes(Session, programs(), tally, 200)


# -- the tests bite ------------------------------------------------------------------------------------------------
def test_models_that_are_alone_are_not_refused() -> None:
    not_refused({name: Session(Program((name,), sizes=Sizes(3, 2, 4))) for name in sorted(set(BLOCKS) - COUPLED)})


def test_a_product_that_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = TorchJacobian.sketch_gram
    monkeypatch.setattr(TorchJacobian, "sketch_gram", lambda J, V: honest(J, V) * (1 + 1e-4))
    with pytest.raises(AssertionError, match="sketch_gram"):
        examine(Session(Program(("dense",), actions=("ask", "ask", "ask"))), Counter())
