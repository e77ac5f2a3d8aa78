"""Guards of the ghost norms that only rare models need: inputs overwritten, groups with one position, no dependence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from differential import Dense, Outcome, compare, routes
from torch import nn
from torch_reference import TORCH, dense, normal, stacked

from traceest_adapters.torch import jacobian

F64 = {"dtype": torch.float64}


def compared(make: Any, D: Dense) -> list[Outcome]:
    return compare(make, D, routes(D, TORCH, (1, 2, D.B)), TORCH)


def agree(model: nn.Module, x: torch.Tensor) -> None:
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = compared(lambda: jacobian(model, x), dense(model(x), params))
    assert not [outcome for outcome in found if outcome.wrong or outcome.refused]


class Overwriting(nn.Module):
    """A layer whose input is overwritten behind it, where told so; autograd keeps a copy of what it needs."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g, self.overwrite = nn.Linear(3, 4, **F64), nn.Linear(4, 2, **F64), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.detach):
            rows = x.clone()
            z = torch.tanh(self.f(rows))
            y = self.g(z)
            if self.overwrite:
                with torch.no_grad():
                    rows.copy_(-2 * rows)
                    z.mul_(0.5)
        return y


def test_an_input_that_a_later_forward_pass_overwrites_is_not_used_as_it_is_then() -> None:
    model, x = Overwriting(), normal(0, 5, 3)
    agree(model, x)
    model.overwrite = True
    agree(model, x)


@pytest.mark.parametrize("side", [3, 4], ids=["one position", "four positions"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups_of_channels_are_summed_over_where_gradients_are_not_formed(groups: int, side: int) -> None:
    """Wide enough for products of positions to cost less than the gradients."""
    conv = nn.Conv2d(16, 24, 3, groups=groups, **F64)
    agree(
        nn.Sequential(conv, nn.Tanh(), nn.Flatten(), nn.Linear(24 * (side - 2) ** 2, 2, **F64)),
        normal(0, 3, 16, side, side),
    )


class TwoLayouts(nn.Module):
    """Two layers of one shape, as many positions as examples: one has examples first, the other one positions."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.Linear(4, 4, **F64), nn.Linear(4, 4, **F64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.tanh(self.f(x))
        return torch.tanh(self.g(rows.transpose(0, 1))).transpose(0, 1)


def test_layers_of_one_shape_and_two_layouts_are_not_taken_together() -> None:
    agree(TwoLayouts(), normal(0, 3, 3, 4))


class EachTwice(nn.Module):
    """Two layers of one shape, each used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.Linear(4, 4, **F64), nn.Linear(4, 4, **F64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.f, self.g, self.f, self.g):
            x = torch.tanh(layer(x))
        return x


def test_layers_that_are_used_twice_are_not_taken_together() -> None:
    agree(EachTwice(), normal(0, 3, 2, 4))


def flat(p: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
    return torch.round(x @ p["w"])


def through_nothing(p: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
    return x * (p["w"] * 0).sum()


def saturated(p: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x @ p["w"] - 1e3)


def without_parameters(p: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
    return x * 2


@pytest.mark.parametrize("f", [without_parameters, flat, through_nothing, saturated])
def test_a_state_whose_derivative_is_zero_everywhere_is_refused(f: Any) -> None:
    with pytest.raises(ValueError, match="does not depend on the parameters"):
        jacobian(f, normal(0, 4, 3), params={"w": normal(1, 3, 2)})


def test_a_parameter_that_is_not_used_beside_one_that_is_is_no_error() -> None:
    J = jacobian(
        lambda p, x: x @ p["w"] + 0 * p["v"], normal(0, 4, 3), params={"w": normal(1, 3, 2), "v": normal(2, 2)}
    )
    assert float(J.rmatmat(normal(3, 8, 1))[6:].abs().max()) == 0


class Positions(nn.Module):
    """A table of positions that all examples share, and words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(5, 3, **F64), nn.Embedding(4, 3, **F64)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.words(words) + self.positions(torch.arange(words.shape[1])))


@pytest.mark.parametrize("length", [2, 4])
def test_tables_are_multiplied_across_batches(length: int) -> None:
    words = torch.randint(0, 5, (5, length), generator=torch.Generator().manual_seed(0))
    model = Positions()
    batches = [words[:2], words[2:]]
    D = stacked([dense(model(some), dict(model.named_parameters())) for some in batches])
    found = compared(lambda: jacobian(model, batches=batches), D)
    assert not [outcome for outcome in found if outcome.wrong]
