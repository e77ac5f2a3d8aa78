"""Models that are differentiable in reverse mode alone: every statistic takes vjps, and says the truth."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from test_torch_models import ESTIMATES, exact_statistics
from torch import nn
from torch_zoo import Case, call, x

import traceest as te

F64 = {"dtype": torch.float64}


class Numpy(torch.autograd.Function):
    """Both passes leave PyTorch."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(a)
        return torch.from_numpy(np.sin(a.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.cos(ctx.saved_tensors[0].detach().numpy()) * g.numpy())


class Silent(torch.autograd.Function):
    """The same, whose backward pass cuts itself off without a word."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(a)
        return torch.sin(a)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return torch.cos(ctx.saved_tensors[0]) * g.detach()


class Once(torch.autograd.Function):
    @staticmethod
    def forward(a: torch.Tensor) -> torch.Tensor:
        return torch.sin(a)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return torch.cos(ctx.saved_tensors[0]) * g


class Picky(torch.autograd.Function):
    """An error of its own where it is mapped or differentiated twice."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(a)
        return torch.sin(a)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        if g.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(g):
            raise LookupError("plain cotangents only")
        return torch.cos(ctx.saved_tensors[0]) * g


class Twofold(torch.autograd.Function):
    """Without a jvp or a rule for vmap, and differentiable as often as one likes."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(a)
        return torch.sin(a)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return torch.cos(ctx.saved_tensors[0]) * g


class Through(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.layer, self.scale = function, nn.Linear(4, 4, **F64), nn.Parameter(1 + 0.1 * x(4))
        self.head = nn.Linear(4, 7, **F64)

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        return self.head(self.function.apply(self.layer(a)) * self.function.apply(self.scale))


FUNCTIONS = [Numpy, Silent, Once, Picky]


def kernels(function: Any) -> tuple[Any, Any, Any, np.ndarray, np.ndarray]:
    torch.manual_seed(0)
    case = Case(Through(function), (x(6, 4),), call)
    moved = case.moved()
    K, L = te.gram(case.jacobian()), te.gram(case.jacobian(moved))
    return K, L, x(42, seed=5), case.dense(), case.dense(moved)


@pytest.mark.filterwarnings("ignore:this model cannot be mapped")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_statistic_takes_vjps_alone(function: Any) -> None:
    K, L, y, D, E = kernels(function)
    assert not hasattr(K.factor, "matmat")
    exact = exact_statistics(D @ D.T, E @ E.T, y.numpy())
    with pytest.raises(TypeError, match="the exact diagonal takes 7 vjps"):
        te.diagonal(K, 4, rng=0)
    for name, estimate in {**ESTIMATES, "diagonal": lambda K, L, y: te.diagonal(K, 7)}.items():
        e = estimate(K, L, y)
        assert e.n_matvecs == 0
        assert e.n_rmatvecs > 0
        if name == "eigenvalues":
            np.testing.assert_allclose(e.values, exact[name], rtol=1e-8)
        elif name == "diagonal":
            np.testing.assert_allclose(e.value, exact[name], rtol=1e-10)
        else:
            assert abs(float(e) - exact[name]) <= 4 * float(e.stderr) + 1e-10 * abs(exact[name])


def test_a_function_that_can_be_differentiated_twice_has_both_sides() -> None:
    K, _, _, D, _ = kernels(Twofold)
    V = x(42, 3)
    np.testing.assert_allclose(K @ V, D @ (D.T @ V.numpy()), atol=1e-12)


@pytest.mark.parametrize("function", [*FUNCTIONS, Twofold])
def test_what_cannot_be_mapped_is_said_once(function: Any) -> None:
    case = Case(Through(function), (x(6, 4),), call)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        J = case.jacobian()
        J.block_rmatmat(x(42, 2))
        J.block_rmatmat(x(42, 2))
    assert [str(w.message)[:35] for w in caught] == ["this model cannot be mapped over ex"]
