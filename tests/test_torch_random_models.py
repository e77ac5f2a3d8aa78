"""Random PyTorch models, trained and changed between questions: no answer is wrong, though some are refused."""

from __future__ import annotations

import os
import time
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, seed, settings
from torch_blocks import BLOCKS, COUPLED, Sizes
from torch_generator import Program, Session, programs

from traceest_adapters.torch.operator import TorchJacobian

MINUTES = float(os.environ.get("TRACEEST_RANDOM_MINUTES", "20"))
TALLY: Counter[str] = Counter()
PLAIN = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck), "print_blob": False}


def examine(program: Program) -> None:
    session = Session(program).run()
    TALLY.update(session.tally, models=1)
    assert not session.wrong, "\n".join([repr(program), *session.wrong])


@pytest.fixture(scope="module", autouse=True)
def told(request: pytest.FixtureRequest) -> object:
    """What was compared, told at the end."""
    TALLY.clear()
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\nrandom models:", ", ".join(f"{n} {what}" for what, n in TALLY.most_common(12)))


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
def test_programs_that_were_found_wrong(program: Program) -> None:
    examine(program)


@pytest.mark.parametrize("name", BLOCKS)
def test_every_part_alone(name: str) -> None:
    """As many positions as examples, so that a place taken on trust is wrong; asked before training and after."""
    examine(Program((name,), head="zero, time-major", sizes=Sizes(3, 3, 4), actions=("ask", "step", "ask")))
    examine(Program((name,), head="pooled to one", sizes=Sizes(3, 2, 4), routes=4, seed=1))


@settings(max_examples=100, derandomize=True, **PLAIN)
@given(programs())
def test_random_models(program: Program) -> None:
    examine(program)


@pytest.mark.slow
def test_random_models_for_minutes() -> None:
    """TRACEEST_RANDOM_MINUTES of models that nobody has seen before; a mismatch is made small, its seed is told."""
    end = time.monotonic() + 60 * MINUTES
    while time.monotonic() < end:
        number = int.from_bytes(os.urandom(4), "big")

        @seed(number)
        @settings(max_examples=200, **PLAIN)
        @given(programs())
        def some(program: Program) -> None:
            examine(program)

        try:
            some()
        except AssertionError as error:
            raise AssertionError(f"seed {number}: {error}") from error


# -- the tests bite ------------------------------------------------------------------------------------------------
def test_models_that_are_alone_are_not_refused() -> None:
    """A generator that everything is refused of would prove nothing."""
    for name in sorted(set(BLOCKS) - COUPLED):
        session = Session(Program((name,), sizes=Sizes(3, 2, 4))).run()
        assert not any("make" in what for what in session.tally), (name, session.tally)


def test_a_product_that_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = TorchJacobian.sketch_gram
    monkeypatch.setattr(TorchJacobian, "sketch_gram", lambda J, V: honest(J, V) * (1 + 1e-4))
    with pytest.raises(AssertionError, match="sketch_gram"):
        examine(Program(("dense",), actions=("ask", "ask", "ask")))
