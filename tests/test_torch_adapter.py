"""PyTorch Jacobians against `torch.func.jacrev` or one backward pass a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from models import torch_gru, torch_mlp
from torch import nn

import traceest as te
from traceest_adapters.torch import jacobian, ntk
from traceest_adapters.torch.per_example import mapped

torch.manual_seed(0)
F64 = {"dtype": torch.float64}


class Twice(nn.Module):
    """A layer used twice, a bare parameter, a tied weight, and a parameter that nothing depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 4, **F64), nn.Parameter(torch.ones(4, **F64))
        self.head = nn.Linear(4, 4, bias=False, **F64)
        self.head.weight = self.layer.weight
        self.unused = nn.Parameter(torch.ones(2, **F64))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        h = torch.tanh(self.layer(torch.tanh(self.layer(x))) * self.scale)
        return {"hidden": h, "out": self.head(h)}


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 5, **F64), nn.Linear(5, 3, **F64)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.sin(self.embed(ids))).sum(1)


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, **F64), nn.BatchNorm2d(4, **F64), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3, **F64)
    ).eval()


def x(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), **F64)


CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "mlp": (torch_mlp(), x(7, 6), {}),
    "mlp, one block": (torch_mlp(), x(7, 6), {"batch_axis": None}),
    "gru, time-major": (torch_gru(3, 5), x(4, 6, 3), {"batch_axis": 1, "output": 0}),
    "gru and its last state, two layers": (nn.GRU(3, 4, num_layers=2, **F64), x(4, 6, 3), {"batch_axis": 1}),
    "gru, batch first": (nn.GRU(3, 5, batch_first=True, **F64), x(6, 4, 3), {"output": lambda out: out[0]}),
    "rnn, bidirectional": (nn.RNN(3, 5, batch_first=True, bidirectional=True, **F64), x(6, 4, 3), {"output": 0}),
    "lstm": (nn.LSTM(3, 5, batch_first=True, **F64), x(6, 4, 3), {"output": 0}),
    "lstm, projected": (nn.LSTM(3, 5, proj_size=2, batch_first=True, **F64), x(6, 4, 3), {"output": 0}),
    "conv and batch norm, eval": (cnn(), x(5, 2, 6, 6), {}),
    "transformer": (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0, **F64),
        x(4, 3, 8),
        {},
    ),
    "tokens": (Tokens(), torch.arange(12).reshape(4, 3) % 9, {}),
    "shared layers": (Twice(), x(5, 4), {}),
    "some parameters": (torch_mlp(), x(7, 6), {"wrt": ["2.weight", "0.bias"]}),
}


def dense(J: Any) -> np.ndarray:
    """The Jacobian by one plain backward pass a row, rows in the operator's order."""
    with torch.enable_grad():
        params = {k: p.detach().clone().requires_grad_() for k, p in J.params.items()}
        state = J.model.rows(params, J.inputs).reshape(-1)
    rows = [torch.autograd.grad(s, list(params.values()), retain_graph=True, materialize_grads=True) for s in state]
    return np.stack([torch.cat([g.to_dense().reshape(-1) for g in row]).numpy() for row in rows])


@pytest.mark.parametrize("case", CASES)
def test_products_are_those_of_the_dense_jacobian(case: str) -> None:
    model, inputs, options = CASES[case]
    J = jacobian(model, inputs, **options)
    D = dense(J)
    n, P = D.shape
    assert J.shape == (n, P)
    B = J.n_blocks or 1
    V, W = x(n, 11), x(P, 11)
    np.testing.assert_allclose(J.matmat(W), D @ W.numpy(), atol=1e-10)
    np.testing.assert_allclose(J.rmatmat(V), D.T @ V.numpy(), atol=1e-10)
    np.testing.assert_allclose(J.gram_matmat(V), D @ (D.T @ V.numpy()), atol=1e-9)
    g = np.einsum("bnp,bnk->bkp", D.reshape(B, -1, P), V.numpy().reshape(B, -1, 11))
    np.testing.assert_allclose(J.block_rmatmat(V), g, atol=1e-10)
    np.testing.assert_allclose(J.block_sqnorms(V), (g**2).sum(-1), atol=1e-9)
    np.testing.assert_allclose(J.sketch_gram(V), np.einsum("bip,cjp->bicj", g, g), atol=1e-9)


def test_rows_are_ordered_example_first() -> None:
    model, inputs, _ = CASES["gru, time-major"]
    out = model(inputs)[0]
    J = jacobian(model, inputs, batch_axis=1, output=0)
    torch.testing.assert_close(J._state.detach(), out.movedim(1, 0).reshape(6, -1).detach())


def test_a_function_of_a_dictionary_of_parameters_is_a_model_too() -> None:
    module, inputs, _ = CASES["mlp"]
    params = dict(module.named_parameters())

    def fn(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, p, (x,))

    torch.testing.assert_close(
        jacobian(fn, inputs, params=params).rmatmat(x(35, 2)), jacobian(module, inputs).rmatmat(x(35, 2))
    )


def test_a_function_that_calls_a_recurrent_layer_is_mapped_over_examples() -> None:
    gru, inputs, _ = CASES["gru, time-major"]
    params = dict(gru.named_parameters())

    def fn(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(gru, p, (x,))[0]

    V = x(120, 2)
    torch.testing.assert_close(
        jacobian(fn, inputs, params=params, batch_axis=1).block_sqnorms(V),
        jacobian(gru, inputs, output=0, batch_axis=1).block_sqnorms(V),
    )


def test_a_given_initial_state_is_kept() -> None:
    gru, inputs, _ = CASES["gru, time-major"]
    h0 = x(1, 6, 5)
    D = dense(jacobian(gru, inputs, h0, batch_axis=1, output=0))
    assert not np.allclose(D, dense(jacobian(gru, inputs, batch_axis=1, output=0)))
    V = x(120, 2)
    got = jacobian(gru, inputs, h0, batch_axis=1, output=0).block_rmatmat(V)
    np.testing.assert_allclose(got.sum(0).T, D.T @ V.numpy(), atol=1e-10)


def test_hooks_and_library_switches_are_put_back() -> None:
    lstm, inputs, options = CASES["lstm"]
    jacobian(lstm, inputs, **options).block_sqnorms(x(120, 2))
    assert not lstm._forward_pre_hooks
    assert not lstm._forward_hooks
    assert torch.backends.mkldnn.enabled
    assert torch.backends.cudnn.enabled


def test_a_group_of_layers_at_a_time_gives_the_same_gram(monkeypatch: pytest.MonkeyPatch) -> None:
    J, V = jacobian(torch_mlp(), x(7, 6)), x(35, 5)
    whole = J.sketch_gram(V)
    monkeypatch.setattr(mapped.memory, "BUDGET", 1)
    torch.testing.assert_close(J.sketch_gram(V), whole)
    torch.testing.assert_close(jacobian(torch_mlp(), x(7, 6), chunk_size=2).sketch_gram(V), whole)


def test_buffers_stay_untouched_in_training_mode() -> None:
    model = cnn().train()
    before = {name: b.clone() for name, b in model.named_buffers()}
    K = ntk(model, x(5, 2, 6, 6), batch_axis=None)
    assert float(te.hutchpp(K, 6, rng=0)) > 0
    for name, b in model.named_buffers():
        torch.testing.assert_close(b, before[name])
    assert all(p.grad is None for p in model.parameters())


def test_frozen_parameters_are_left_out_and_tied_ones_counted_once() -> None:
    model = Twice()
    assert jacobian(model, x(5, 4)).shape[1] == 16 + 4 + 4 + 2
    model.scale.requires_grad_(False)
    assert jacobian(model, x(5, 4)).shape[1] == 22
    assert jacobian(model, x(5, 4), wrt=lambda name, p: p.ndim == 2).shape[1] == 16
    assert jacobian(model, x(5, 4), output="out").shape[0] == 20


class Cube(torch.autograd.Function):
    """Differentiable once, and unknown to `vmap`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * g


class ReverseOnly(nn.Module):
    def __init__(self, also_linear: bool = False) -> None:
        super().__init__()
        self.layer, self.also_linear = nn.Linear(6, 3, **F64), also_linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        return Cube.apply(y) + y if self.also_linear else Cube.apply(y)


@pytest.mark.filterwarnings("ignore:this model cannot be mapped")
@pytest.mark.parametrize("also_linear", [False, True])
def test_a_model_with_reverse_mode_only_lacks_matmat_and_has_all_the_rest(also_linear: bool) -> None:
    K = ntk(ReverseOnly(also_linear), x(7, 6))
    assert not hasattr(K.factor, "matmat")
    assert not hasattr(K, "matmat")
    with pytest.raises(TypeError, match="needs matmat"):
        te.fhutch(K, 3)
    with pytest.raises(TypeError, match="needs matmat"):
        te.hutchpp(K, 3)
    D = dense(K.factor)
    np.testing.assert_allclose(float(te.exact(K)), (D**2).sum())
    np.testing.assert_allclose(float(te.frobenius_norm(K, method="exact")), np.linalg.norm(D @ D.T))
    assert te.rhutch(K, 2, rng=0).n_rmatvecs == 2


def test_a_model_that_cannot_be_mapped_says_so_once() -> None:
    J = jacobian(ReverseOnly(), x(7, 6))
    with pytest.warns(RuntimeWarning, match="one by one") as caught:
        J.block_rmatmat(x(21, 3))
    assert len(caught) == 1
    J.block_rmatmat(x(21, 2))  # a second warning would be an error here


def test_a_torch_generator_draws_the_probes() -> None:
    K = ntk(torch_mlp(), x(7, 6))
    first, second = (float(te.rhutch(K, 3, rng=torch.Generator().manual_seed(4))) for _ in range(2))
    assert first == second
