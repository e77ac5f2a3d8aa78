"""Statistics of kernels as functions of the model's parameters: their gradients, in both frameworks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from models import as_jax, jax_gru, jax_mlp, torch_gru, torch_mlp
from torch import nn

import traceest as te
from traceest_adapters import jax as in_jax
from traceest_adapters import torch as in_torch
from traceest_adapters.torch.per_example import ghost_norms

F64 = {"dtype": torch.float64}
RNG = np.random.default_rng(0)
X, SEQUENCES = RNG.standard_normal((7, 6)), RNG.standard_normal((4, 5, 3))
FIXED = RNG.standard_normal((80, 40))  # the factor of another kernel of as many states


def fixed(K: Any) -> Any:
    """Another kernel on the same states, that does not move."""
    J = torch.as_tensor(FIXED[: K.shape[0]]) if "torch" in str(K.dtype) else jnp.asarray(FIXED[: K.shape[0]])
    return te.gram(J, n_blocks=K.factor.n_blocks)


Statistic = Callable[[Any], te.Estimate]
STATISTICS: dict[str, Statistic] = {
    "trace": lambda K: te.rhutch(K, 2, rng=0),
    "exact trace": te.exact,
    "norm": lambda K: te.frobenius_norm(K, 2, rng=0),
    "exact norm": lambda K: te.frobenius_norm(K, method="exact"),
    "effective rank": lambda K: te.effective_rank(K, 3, rng=0),
    "alignment": lambda K: te.alignment(K, fixed(K), 3, rng=0),
    "summary's": lambda K: te.summary(K, n_probes=3, rng=0).effective_rank,
}
TWO_SIDED: dict[str, Statistic] = {
    "norm, two-sided": lambda K: te.frobenius_norm(K, n_matvecs=3, method="two-sided", rng=0),
    "hutchpp": lambda K: te.hutchpp(K, 6, rng=0),
}
EXACT: dict[str, Callable[[Any], Any]] = {
    "exact trace": torch.trace,
    "exact norm": torch.linalg.norm,
}
MODELS: dict[str, tuple[nn.Module, torch.Tensor, dict[str, Any]]] = {
    "mlp": (torch_mlp((6, 8, 5)), torch.as_tensor(X), {}),
    "gru": (torch_gru(3, 4), torch.as_tensor(SEQUENCES), {"batch_axis": 1, "output": 0}),
    "conv and batch norm": (
        nn.Sequential(
            nn.Conv2d(1, 3, 2, **F64), nn.BatchNorm2d(3, **F64), nn.Tanh(), nn.Flatten(), nn.Linear(12, 5, **F64)
        ).eval(),
        torch.as_tensor(RNG.standard_normal((7, 1, 3, 3))),
        {},
    ),
    "attention and layer norm": (
        nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, dropout=0.0, activation="gelu", **F64),
        torch.as_tensor(RNG.standard_normal((4, 3, 4))),
        {},
    ),
}


def torch_gradient(model: nn.Module, inputs: Any, options: dict[str, Any], statistic: Statistic) -> dict[str, Any]:
    K = in_torch.ntk(model, inputs, **options, differentiable=True)
    params = dict(model.named_parameters())
    grads = torch.autograd.grad(statistic(K).value, list(params.values()), materialize_grads=True)
    return dict(zip(params, grads, strict=True))


def slope(model: nn.Module, inputs: Any, options: dict[str, Any], statistic: Statistic, along: dict[str, Any]) -> float:
    """The derivative along a direction, by central differences of the fourth order."""

    def at(t: float) -> float:
        moved = {name: p.detach() + t * along[name] for name, p in model.named_parameters()}
        return float(statistic(in_torch.ntk(model, inputs, params=moved, check=False, **options)))

    h = 1e-3
    return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)


def check_gradient(model: str, statistic: Statistic) -> None:
    module, inputs, options = MODELS[model]
    random = torch.Generator().manual_seed(1)
    along = {name: torch.randn(p.shape, generator=random, **F64) for name, p in module.named_parameters()}
    got = torch_gradient(module, inputs, options, statistic)
    derivative = float(sum((got[name] * along[name]).sum() for name in along))
    assert derivative == pytest.approx(slope(module, inputs, options, statistic, along), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_gradients_agree_with_differences(model: str, statistic: str) -> None:
    check_gradient(model, STATISTICS[statistic])


@pytest.mark.parametrize("model", ["mlp", "gru"])
@pytest.mark.parametrize("statistic", TWO_SIDED)
def test_gradients_by_jvps_agree_with_differences(model: str, statistic: str) -> None:
    check_gradient(model, TWO_SIDED[statistic])


def test_jvps_whose_own_derivative_is_wrong_are_not_offered() -> None:
    """PyTorch's layer norm is differentiable twice, not three times, and does not say so."""
    module, inputs, _ = MODELS["attention and layer norm"]
    assert hasattr(in_torch.ntk(module, inputs), "matmat")
    K = in_torch.ntk(module, inputs, differentiable=True)
    assert not hasattr(K, "matmat")
    with pytest.raises(TypeError, match="needs matmat"):
        te.hutchpp(K, 6, rng=0)
    assert hasattr(in_torch.ntk(nn.Linear(6, 2, **F64), torch.as_tensor(X), differentiable=True), "matmat")


@pytest.mark.parametrize("statistic", EXACT)
def test_gradients_of_exact_statistics_are_those_of_the_dense_kernel(statistic: str) -> None:
    module, inputs, options = MODELS["mlp"]
    got = torch_gradient(module, inputs, options, STATISTICS[statistic])
    params = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    J = torch.func.jacrev(lambda p: torch.func.functional_call(module, p, (inputs,)).reshape(-1))(params)
    D = torch.cat([part.flatten(1) for part in J.values()], dim=1)
    expected = torch.autograd.grad(EXACT[statistic](D @ D.T), list(params.values()))
    for name, g in zip(params, expected, strict=True):
        torch.testing.assert_close(got[name], g, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("model", "statistic"),
    [("mlp", "trace"), ("mlp", "norm"), ("mlp", "effective rank"), ("mlp", "alignment"), ("gru", "norm")],
)
def test_the_same_probes_give_the_same_gradient_in_both_frameworks(model: str, statistic: str) -> None:
    module, inputs, options = MODELS[model]
    fn, axis = (jax_mlp, 0) if model == "mlp" else (jax_gru, 1)

    def value(p: Any) -> Any:
        return STATISTICS[statistic](in_jax.ntk(fn, p, jnp.asarray(inputs.numpy()), batch_axis=axis)).value

    in_the_other = jax.jit(jax.grad(value))(as_jax(module))
    for name, g in torch_gradient(module, inputs, options, STATISTICS[statistic]).items():
        np.testing.assert_allclose(g, in_the_other[name], rtol=1e-8, atol=1e-10)


def test_a_regulariser_reaches_the_parameters_grad_beside_the_loss() -> None:
    module, inputs, _ = MODELS["mlp"]
    module.zero_grad()
    norm = te.frobenius_norm(in_torch.ntk(module, inputs, differentiable=True, check=False), 2, rng=0).value
    (module(inputs).square().mean() + norm).backward()
    expected = torch_gradient(module, inputs, {}, STATISTICS["norm"])
    loss = torch.autograd.grad(module(inputs).square().mean(), list(module.parameters()))
    for (name, p), g in zip(module.named_parameters(), loss, strict=True):
        torch.testing.assert_close(p.grad, g + expected[name])
    module.zero_grad()


def test_functional_parameters_are_differentiated_through() -> None:
    """θ = s·θ₀ for a number s: parameters that are no leaves."""
    module, inputs, _ = MODELS["mlp"]
    s = torch.tensor(1.0, requires_grad=True, **F64)
    params = {name: s * p.detach() for name, p in module.named_parameters()}

    def fn(p: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, p, (x,))

    te.rhutch(in_torch.ntk(fn, inputs, params=params, differentiable=True), 2, rng=0).value.backward()
    along = {name: p.detach() for name, p in module.named_parameters()}
    expected = slope(module, inputs, {}, STATISTICS["trace"], along)
    assert float(s.grad) == pytest.approx(expected, rel=1e-6)


def test_without_being_asked_no_graph_is_kept() -> None:
    module, inputs, _ = MODELS["mlp"]
    assert not te.frobenius_norm(in_torch.ntk(module, inputs), 2, rng=0).value.requires_grad


def test_scaled_models_have_finite_gradients() -> None:
    for scale in (1e-12, 1e12):
        module = torch_mlp((6, 8, 5)).float()
        inputs = torch.as_tensor(X).float()

        class Scaled(nn.Module):
            def __init__(self, inner: nn.Module, scale: float) -> None:
                super().__init__()
                self.inner, self.scale = inner, scale

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.scale * self.inner(x)

        K = in_torch.ntk(Scaled(module, scale), inputs, differentiable=True)
        te.effective_rank(K, 3, rng=0).value.backward()
        plain = torch_gradient(module, inputs, {}, STATISTICS["effective rank"])
        for name, p in module.named_parameters():
            torch.testing.assert_close(p.grad, plain[name], rtol=2e-3, atol=1e-3 * float(plain[name].abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_the_example_steers_the_kernel(framework: str) -> None:
    example = Path(__file__).parent.parent / "docs" / "examples" / "ntk_regulariser.py"
    command = [sys.executable, str(example), "--quick", "--framework", framework]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in out.splitlines() if line.startswith(("plain", "norm", "rank"))]
    table = {row[0]: [float(x) for x in row[1:4]] for row in rows}
    assert table["norm"][1] < 0.8 * table["plain"][1]
    assert table["rank"][2] > 1.1 * table["plain"][2]


# -- the tests bite -----------------------------------------------------------------------------------------------
def test_an_input_without_its_graph_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a layer is δ aᵀ; with a held fixed, its derivative lacks the share of all layers before."""
    honest = ghost_norms._factor

    def wrong(use: Any, *args: Any) -> Any:
        return honest(use._replace(x=None if use.x is None else use.x.detach()), *args)

    monkeypatch.setattr(ghost_norms, "_factor", wrong)
    with pytest.raises(AssertionError):
        test_gradients_agree_with_differences("mlp", "norm")


def test_derivatives_by_outputs_without_their_graph_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = ghost_norms.grads
    monkeypatch.setattr(ghost_norms, "grads", lambda outputs, inputs, U, graph=False: honest(outputs, inputs, U))
    with pytest.raises(AssertionError):
        test_gradients_agree_with_differences("conv and batch norm", "trace")
