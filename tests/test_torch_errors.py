"""Models and batches that are wrong, each told what to change."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import traceest as te
from traceest_adapters.torch import jacobian, ntk


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


class Bare(nn.Module):
    """√(w·w), whose derivative at w = 0 is not there."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.w**2).sum().sqrt() * x


class Frozen(nn.Module):
    """A layer that is called without a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 3)

    @torch.no_grad()
    def _first(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self._first(x))


def quietly(make: Any) -> Any:
    """What is made by a part of PyTorch that warns of its age."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def with_nan() -> nn.Module:
    layer = nn.Linear(6, 3)
    nn.init.constant_(layer.weight, float("nan"))
    return nn.Sequential(layer, nn.Tanh())


with torch.inference_mode():
    INFERRED = torch.ones(7, 6)
    INFERRED_MODEL = nn.Linear(6, 3)
LENGTHS = torch.tensor([4, 3, 1])
PACKED = nn.utils.rnn.pack_padded_sequence(torch.ones(3, 4, 6), LENGTHS, batch_first=True)
NESTED = quietly(lambda: torch.nested.nested_tensor([torch.ones(2, 6), torch.ones(3, 6)]))
SCRIPTED = quietly(lambda: torch.jit.script(nn.Linear(6, 3)))
QUANTISED = quietly(lambda: torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(6, 3)), {nn.Linear}))
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
    "an unknown parameter": (nn.Linear(6, 3), X, {"wrt": ["wieght"]}, ValueError, "are weight, bias"),
    "mixed devices": (nn.Linear(6, 3), X.to("meta"), {}, TypeError, r"cpu, meta.*\.to\(device\)"),
    "a function without parameters": (lambda p, x: x, X, {}, TypeError, "params="),
    "no model": (3, X, {}, TypeError, "nn.Module or a function"),
    "a class": (nn.Linear, X, {}, TypeError, "the class Linear"),
    "a forward pass without a graph": (Of(torch.no_grad()(torch.sin)), X, {}, ValueError, "no_grad"),
    "a module without a graph": (Frozen(), X, {"output": "first"}, ValueError, "no_grad"),
    "an integer state of a module": (
        Frozen(),
        X,
        {"output": ("second", lambda z: z.argmax(-1))},
        TypeError,
        "real floating",
    ),
    "one example without its axis": (nn.Linear(6, 3), X[0], {}, ValueError, "6 examples go in and 3 come out"),
    "one sequence without its axis": (nn.GRU(6, 3), X, {"output": 0}, ValueError, "not independent"),
    "no examples": (nn.Linear(6, 3), X[:0], {}, ValueError, "the state is empty"),
    "a lazy module": (nn.LazyLinear(3), X, {}, TypeError, "lazy module has no shape yet; call the model once"),
    "a scripted module": (SCRIPTED, X, {}, TypeError, "give the original"),
    "a quantised module": (QUANTISED, X, {}, TypeError, "no trainable parameter.*quantised"),
    "complex parameters": (nn.Linear(6, 3, dtype=torch.cfloat), X.cfloat(), {}, TypeError, "only real floating"),
    "inputs from inference": (nn.Linear(6, 3), INFERRED, {}, TypeError, r"inference_mode.*\.clone\(\)"),
    "parameters from inference": (INFERRED_MODEL, X, {}, TypeError, r"'weight' was made in .*inference_mode"),
    "a packed batch": (nn.GRU(6, 3), PACKED, {}, TypeError, "padded tensor and the lengths"),
    "a nested batch": (nn.Linear(6, 3), NESTED, {}, TypeError, "pad it"),
    "a NumPy batch": (nn.Linear(6, 3), X.numpy(), {}, TypeError, r"torch\.as_tensor"),
    "no values": (nn.Linear(6, 3, device="meta"), X.to("meta"), {}, TypeError, "shapes but no values"),
    "NaN in the state": (with_nan(), X, {}, ValueError, "NaN or infinity in the state of example 0"),
    "NaN in a derivative": (Bare(), X[:, :3], {}, ValueError, "NaN or infinity in a product.*parameter 'w'"),
    "noise": (Of(lambda y: y + torch.randn_like(y)), X, {}, ValueError, "two evaluations of the model differ"),
    "unknown values": (nn.Linear(6, 3), X, {"params": {"wieght": X}}, ValueError, "did you mean .weight"),
    "values that are no tensors": (nn.Linear(6, 3), X, {"params": {"weight": [1.0]}}, TypeError, "must be a tensor"),
    "a batch axis that is none": (nn.Linear(6, 3), X, {"batch_axis": "0"}, TypeError, "an integer or None"),
    "no chunk": (nn.Linear(6, 3), X, {"chunk_size": 0}, ValueError, "at least 1"),
    "a wrong output": (nn.Linear(6, 3), X, {"output": 1.5}, TypeError, "output must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_model_or_batch_is_told_what_to_change(case: str) -> None:
    model, inputs, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        jacobian(model, inputs, **options)


def test_a_batch_norm_in_training_mode_is_one_block_if_asked_for() -> None:
    assert jacobian(CNN, IMAGES, batch_axis=None).n_blocks is None


def test_a_product_that_is_not_finite_is_named_with_its_column() -> None:
    K = ntk(Bare(), torch.ones(7, 3), check=False)
    with pytest.raises(ValueError, match=r"trace: NaN or infinity in the product .*, column 0"):
        te.trace(K, method="rhutch", rng=0)


@pytest.mark.parametrize("statistic", [te.frobenius_norm, te.effective_rank])
@pytest.mark.parametrize("n_probes", [2, 3])
def test_nothing_finite_is_said_of_a_kernel_that_is_not(statistic: Any, n_probes: int) -> None:
    e = statistic(ntk(Bare(), torch.ones(7, 3), check=False), n_probes, rng=0)
    assert torch.isnan(e.value)


def test_operators_of_two_dtypes_are_told_apart() -> None:
    K, L = ntk(nn.Linear(6, 3), X), ntk(nn.Linear(6, 3).double(), X.double())
    with pytest.raises(TypeError, match=r"torch\.float32 and torch\.float64 differ"):
        te.alignment(K, L, 2)


def test_a_packed_batch_is_one_block_if_asked_for() -> None:
    torch.manual_seed(0)
    J = jacobian(nn.GRU(6, 3), PACKED, output=(0, "data"), batch_axis=None)
    assert J.shape[0] == 3 * int(LENGTHS.sum())
    assert float(te.exact(te.gram(J))) > 0


def test_inference_mode_and_no_grad_do_not_matter() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    expected = [float(e) for e in _statistics(ntk(model, X))]
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            assert [float(e) for e in _statistics(ntk(model, X))] == expected


def _statistics(K: Any) -> list[te.Estimate]:
    return [te.exact(K), te.frobenius_norm(K, 2, rng=0), te.hutchpp(K, 7, rng=0), te.rhutch(K, 2, rng=0)]


def test_a_state_that_sums_to_one_depends_on_its_parameters() -> None:
    """Of a softmax at the end, the derivative of the sum is exactly zero."""
    J = jacobian(nn.Sequential(nn.Linear(6, 4), nn.Softmax(-1)).double(), X.double())
    assert float(J.block_sqnorms(torch.ones(J.shape[0], 1, dtype=torch.float64)).max()) < 1e-28
    assert J.n_blocks == len(X)
