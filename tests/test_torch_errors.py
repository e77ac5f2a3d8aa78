"""Models and batches that are wrong, each told what to change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from traceest_adapters.torch import jacobian


class Of(nn.Module):
    """A linear layer and a function of its output."""

    def __init__(self, f: Any) -> None:
        super().__init__()
        self.layer, self.f = nn.Linear(6, 3), f

    def forward(self, x: torch.Tensor) -> Any:
        return self.f(self.layer(x))


X = torch.linspace(-1, 1, 42).reshape(7, 6)
IMAGES = torch.linspace(-1, 1, 180).reshape(5, 1, 6, 6)
TIME_MAJOR = torch.linspace(-1, 1, 72).sin().reshape(4, 3, 6)
CNN = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
BAD: dict[str, tuple[Any, Any, dict[str, Any], type[Exception], str]] = {
    "active dropout": (nn.Sequential(nn.Linear(6, 3), nn.Dropout()), X, {}, ValueError, r"dropout.*model\.eval\(\)"),
    "batch norm in training mode": (CNN, IMAGES, {}, ValueError, r"model\.eval\(\).*batch_axis=None"),
    "batch norm of vectors": (
        nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)),
        X,
        {},
        ValueError,
        "batch norm",
    ),
    "a time-major batch": (nn.GRU(6, 3), TIME_MAJOR, {"output": 0}, ValueError, "batch_axis=1"),
    "a state with the batch elsewhere": (nn.GRU(6, 3), TIME_MAJOR, {}, ValueError, "output="),
    "no such axis": (nn.Linear(6, 3), X, {"batch_axis": 2}, ValueError, "no such axis"),
    "a state without the batch": (Of(lambda y: y.sum(0)), X, {}, ValueError, "7 examples go in and 3 come out"),
    "a detached output": (Of(lambda y: y.detach()), X, {}, ValueError, "detached"),
    "an integer output": (Of(lambda y: y.argmax(-1)), X, {}, TypeError, "real floating"),
    "no tensor": (Of(lambda y: None), X, {}, TypeError, "no tensor"),
    "only frozen parameters": (nn.Linear(6, 3).requires_grad_(False), X, {}, TypeError, "no trainable parameter"),
    "an unknown parameter": (nn.Linear(6, 3), X, {"params": ["wieght"]}, ValueError, "it has weight, bias"),
    "mixed devices": (nn.Linear(6, 3), X.to("meta"), {}, TypeError, r"cpu, meta.*\.to\(device\)"),
    "a function without parameters": (lambda p, x: x, X, {}, TypeError, "params="),
    "no model": (3, X, {}, TypeError, "nn.Module or a function"),
    "a wrong output": (nn.Linear(6, 3), X, {"output": 1.5}, TypeError, "output must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_model_or_batch_is_told_what_to_change(case: str) -> None:
    model, inputs, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        jacobian(model, inputs, **options)


def test_a_batch_norm_in_training_mode_is_one_block_if_asked_for() -> None:
    assert jacobian(CNN, IMAGES, batch_axis=None).n_blocks is None
