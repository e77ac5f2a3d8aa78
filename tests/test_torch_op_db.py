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

import numpy as np
import pytest
import torch
from differential import Dense, Tally, compare, counted, named, routes, tally_of, told
from torch_ops import EXAMPLES, OneFunction, Varied, database, models, samples
from torch_reference import TORCH, dense

from traceest_adapters.torch import jacobian

OTHER_PRECISION = {"bfloat16", "half", "chalf", "float", "cfloat"}
STRIDED_VIEWS = {"as_strided", "as_strided_copy", "as_strided_scatter", "as_strided_partial_views"}
"""What is written through a view of another layout is not what autograd says, by PyTorch's own account."""

FOUND_WRONG = [
    "nn_functional_prelu", "linalg_solve", "linalg_solve_ex", "linalg_tensorsolve", "linalg_det", "linalg_slogdet",
    "logdet", "logcumsumexp", "cdist", "roll", "put",
]  # fmt: skip
"""Functions that PyTorch batches wrongly in one way or another, or that were found wrong here: tried in every run."""

EVERY, SHARDS, MOST = 12, 16, int(os.environ.get("TRACEEST_OP_SAMPLES", "16"))
ROUTES = ("rmatmat", "block_sqnorms", "sketch_gram", "block_rmatmat", "gram_matmat", "matmat", "exact", "norm")
tally = tally_of("PyTorch's functions")


def reference(model: OneFunction) -> Dense | str:
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
    return D if np.isfinite(D.matrix).all() else "without a finite derivative"


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
                every_route = named(routes(D, TORCH, (1, 2, EXAMPLES)), ROUTES)
                make = lambda m=model: jacobian(m.call, *m.inputs, params=m.params)  # noqa: E731
                for outcome in compare(make, D, every_route, TORCH):
                    counted(tally, outcome)
                    if outcome.wrong is not None:
                        yield f"{name}, sample {i}, {model.form}, {outcome.route}: {outcome.wrong}"


def names() -> list[str]:
    return [name for name in database() if name not in OTHER_PRECISION | STRIDED_VIEWS]


@pytest.mark.parametrize("name", FOUND_WRONG)
def test_functions_that_were_found_wrong(name: str, tally: Tally) -> None:
    wrong = list(examine(name, 6, tally))
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
