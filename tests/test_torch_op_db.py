"""PyTorch's own database of its functions: kernels of y_b = f(x_b, w) by every route, against plain backward passes.

A batching rule of PyTorch's that is wrong, and there are several, makes a product wrong without a word; so does a rule
here that does not fit. An error that says what is the matter is an answer, a wrong number is none.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch_ops import EXAMPLES, OneFunction, Varied, database, models, samples
from torch_reference import Outcome, compare, dense

from traceest_adapters.torch import jacobian

OTHER_PRECISION = {"bfloat16", "half", "chalf", "float", "cfloat"}
STRIDED_VIEWS = {"as_strided", "as_strided_copy", "as_strided_scatter", "as_strided_partial_views"}
"""What is written through a view of another layout is not what autograd says, by PyTorch's own account."""

FOUND_WRONG = [
    "nn_functional_prelu", "linalg_solve", "linalg_solve_ex", "linalg_tensorsolve", "linalg_det", "linalg_slogdet",
    "logdet", "logcumsumexp", "cdist", "roll", "put",
]  # fmt: skip
"""Functions that PyTorch batches wrongly in one way or another, or that were found wrong here: tried in every run."""

EVERY, SHARDS, MOST = 5, 16, int(os.environ.get("TRACEEST_OP_SAMPLES", "16"))
Tally = Counter[str]


@pytest.fixture(scope="module")
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """What was compared, and what was not and why, told at the end."""
    found: Tally = Counter()
    yield found
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\nPyTorch's functions:", ", ".join(f"{n} {what}" for what, n in found.most_common()))


def reference(model: OneFunction) -> torch.Tensor | str:
    """The dense Jacobian, or why there is none."""
    try:
        state = model.call(model.params, *model.inputs)
        if not state.requires_grad or not state.numel() or not sum(p.numel() for p in model.params.values()):
            return "without a derivative"
        if not torch.allclose(state, model.call(model.params, *model.inputs), equal_nan=True):
            return "random"
        D = dense(state, model.params)
    except Exception:  # of a function that cannot be called or differentiated so by PyTorch itself
        return "not differentiable by PyTorch itself"
    return D if bool(D.isfinite().all()) else "without a finite derivative"


def examine(name: str, most: int, tally: Tally) -> Iterator[str]:
    """What is wrong of a function, in words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i, drawn in samples(database()[name], most):
            try:
                every = list(models(database()[name], drawn))
            except Varied:
                tally["samples that differ in kind"] += 1
                continue
            for model in every:
                D = reference(model)
                if isinstance(D, str):
                    tally[f"models {D}"] += 1
                    continue
                tally["models"] += 1
                for outcome in compare(lambda m=model: jacobian(m.call, *m.inputs, params=m.params), D, EXAMPLES):
                    yield from _counted(outcome, f"{name}, sample {i}, {model.form}", tally)


def _counted(outcome: Outcome, of: str, tally: Tally) -> Iterator[str]:
    if outcome.refused is None:
        tally["comparisons"] += 1
    else:
        tally[f"refused ({outcome.route.split(',')[0]}: {outcome.refused})"] += 1
    if outcome.wrong is not None:
        yield f"{of}, {outcome.route}: {outcome.wrong}"


def names() -> list[str]:
    return [name for name in database() if name not in OTHER_PRECISION | STRIDED_VIEWS]


def told(wrong: list[str]) -> str:
    return "\n".join([f"{len(wrong)} wrong:", *wrong[:200]])


@pytest.mark.parametrize("name", FOUND_WRONG)
def test_functions_that_were_found_wrong(name: str, tally: Tally) -> None:
    wrong = list(examine(name, 18, tally))
    assert not wrong, told(wrong)


def test_a_sample_of_all_functions(tally: Tally) -> None:
    chosen = [name for name in names()[::EVERY] if name not in FOUND_WRONG]
    wrong = [text for name in chosen for text in examine(name, 1, tally)]
    assert not wrong, told(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_all_functions(shard: int, tally: Tally) -> None:
    wrong = [text for name in names()[shard::SHARDS] for text in examine(name, MOST, tally)]
    assert not wrong, told(wrong)


def test_a_wrong_rule_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from traceest_adapters.torch.operator import TorchJacobian

    honest: Any = TorchJacobian.rmatmat
    monkeypatch.setattr(TorchJacobian, "rmatmat", lambda J, V: honest(J, V) * (1 + 1e-4))
    assert any("rmatmat" in text for text in examine("tanh", 1, Counter()))
