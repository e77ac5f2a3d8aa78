"""Compiled models, autocast and low precision, against the exact kernel of the same parameters in float64."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from assertions import assert_close
from models import torch_mlp
from test_torch_adapter import dense
from torch import nn
from torch_zoo import ids, x

import traceest as te
from traceest_adapters.torch import jacobian, ntk

F32 = {"dtype": torch.float32}
BF16, F16 = torch.bfloat16, torch.float16
PLAIN = sys.modules["traceest_adapters.torch.execution"]


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.Flatten(), nn.Linear(64, 8))


def transformer() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    return nn.Sequential(nn.Embedding(9, 8), nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))


def mlp() -> nn.Module:
    return torch_mlp((6, 16, 16, 8), **F32)


MODELS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "mlp": (mlp, x(8, 6).float()),
    "convolutional": (convolutional, x(6, 2, 6, 6).float()),
    "transformer": (transformer, ids(9, 6, 4)),
}


def exact_of(model: nn.Module, inputs: torch.Tensor) -> np.ndarray:
    """The kernel of the same parameters in float64."""
    wide = copy.deepcopy(model).double().eval()
    D = dense(jacobian(wide, inputs.double() if inputs.is_floating_point() else inputs))
    return D @ D.T


def check_statistics(K: Any, exact: np.ndarray, bias: float) -> None:
    """Estimates are within four standard errors, and what the model itself rounds."""
    assert K.dtype == torch.float32
    norm, trace = np.linalg.norm(exact), np.trace(exact)
    for e, expected in {
        te.rhutch(K, 4, rng=0): trace,
        te.frobenius_norm(K, 4, rng=0): norm,
        te.effective_rank(K, 4, rng=0): trace**2 / norm**2,
        te.frobenius_norm(K, method="exact"): norm,
        te.exact(K): trace,
        te.hutchpp(K, 12, rng=0): trace,
        te.frobenius_norm(K, 6, method="two-sided", rng=0): norm,
    }.items():
        assert e.value.dtype == torch.float32
        assert abs(float(e) - expected) <= 4 * float(e.stderr) + bias * expected, f"{e!r}, expected {expected}"


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("name", MODELS)
def test_kernels_of_low_precision_models_are_float32(name: str, dtype: torch.dtype) -> None:
    make, inputs = MODELS[name]
    model = make().eval().to(dtype)
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    K = ntk(model, inputs)
    assert not K.factor._ghost.rest
    check_statistics(K, exact_of(model, inputs), torch.finfo(dtype).eps / 2)


@pytest.mark.filterwarnings("ignore:this model cannot be mapped")  # where norms have weights wider than their inputs
@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("inside", [False, True])
def test_autocast_is_remembered(name: str, dtype: torch.dtype, inside: bool) -> None:
    make, inputs = MODELS[name]
    model = make().eval()
    with torch.autocast("cpu", dtype=dtype):
        K = ntk(model, inputs)
        J = K.factor
        if inside:
            V, W = x(J.shape[0], 2).float(), x(J.shape[1], 2).float()
            kept = J.rmatmat(V), J.matmat(W), J.block_sqnorms(V), J.sketch_gram(V), J.block_rmatmat(V)
    if inside:  # the same in and out of it: what is cast is the model, not our arithmetic
        again = J.rmatmat(V), J.matmat(W), J.block_sqnorms(V), J.sketch_gram(V), J.block_rmatmat(V)
        for one, other in zip(kept, again, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert all(p.dtype == torch.float32 for p in K.factor.params.values())
    states = K.factor._examples.states()
    torch.testing.assert_close(states, K.factor._state.detach(), rtol=0, atol=4 * torch.finfo(dtype).eps)
    assert not torch.equal(K.factor._state, jacobian(model, inputs)._state)  # it was on
    check_statistics(K, exact_of(model, inputs), torch.finfo(dtype).eps / 2)


def test_a_later_autocast_does_not_touch_the_model() -> None:
    make, inputs = MODELS["mlp"]
    J, V = jacobian(make(), inputs), x(64, 2).float()
    outside = J.rmatmat(V), J.matmat(J.rmatmat(V)), J.sketch_gram(V), J.block_rmatmat(V)
    J = jacobian(make(), inputs)
    with torch.autocast("cpu", dtype=BF16):
        inside = J.rmatmat(V), J.matmat(J.rmatmat(V)), J.sketch_gram(V), J.block_rmatmat(V)
    for one, other in zip(outside, inside, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_mixed_precision_inside_a_model_is_what_the_widest_has() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high = nn.Linear(6, 8, dtype=BF16), nn.Linear(8, 8)

        def forward(self, a: torch.Tensor) -> torch.Tensor:
            return self.high(torch.tanh(self.low(a)).float())

    torch.manual_seed(0)
    model, inputs = Mixed(), x(8, 6).to(BF16)

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high = copy.deepcopy(model.low).double(), copy.deepcopy(model.high).double()

        def forward(self, a: torch.Tensor) -> torch.Tensor:
            return self.high(torch.tanh(self.low(a)))

    D = dense(jacobian(Wide(), inputs.double()))
    check_statistics(ntk(model, inputs), D @ D.T, torch.finfo(BF16).eps / 2)


compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, compiler])]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the compiler imports
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("part", ["whole", "a layer", "a function"])
def test_compiled_models_have_all_that_others_have(part: str, backend: str) -> None:
    torch._dynamo.reset()
    model, inputs = torch_mlp(), x(7, 6)
    plain = jacobian(torch_mlp(), inputs)
    if part == "whole":
        compiled: Any = torch.compile(model, backend=backend)
        torch.testing.assert_close(compiled(inputs), torch_mlp()(inputs))
        J = jacobian(compiled, inputs)
    elif part == "a layer":
        model[0] = torch.compile(model[0], backend=backend)
        compiled = model
        J = jacobian(compiled, inputs)
    else:
        compiled = torch.compile(lambda p, a: torch.func.functional_call(model, p, (a,)), backend=backend)
        J = jacobian(compiled, inputs, params=dict(model.named_parameters()))
    V, W = x(35, 2), x(plain.shape[1], 2)
    for product, U in {"rmatmat": V, "matmat": W, "block_sqnorms": V, "sketch_gram": V, "block_rmatmat": V}.items():
        assert_close(getattr(J, product)(U), getattr(plain, product)(U), 1e-12)
    assert not J._ghost.rest


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_fast_path_of_transformers_does_not_change_the_state() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0, dtype=torch.float64)
    model, inputs = nn.TransformerEncoder(layer, 2).eval(), x(4, 3, 8)
    padded = torch.tensor([[0, 0, 1], [0, 0, 0], [0, 1, 1], [0, 0, 0]], dtype=torch.bool)
    with torch.no_grad():
        assert (model(inputs, src_key_padding_mask=padded)[padded] == 0).all()  # which has no gradient
    J = jacobian(model, inputs, kwargs={"src_key_padding_mask": padded})
    torch.testing.assert_close(J._state.detach().reshape(4, 3, 8), model(inputs, src_key_padding_mask=padded).detach())
    torch.testing.assert_close(J._examples.states(), J._state.detach())
    assert torch.backends.mha.get_fastpath_enabled()


# -- the tests bite ----------------------------------------------------------------------------------------
def test_autocast_that_is_forgotten_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PLAIN.Autocast, "current", classmethod(lambda cls, device: cls(device, None)))
    with pytest.raises(AssertionError):
        test_autocast_is_remembered("mlp", BF16, False)
