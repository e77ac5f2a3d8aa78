"""Recurrent layers, their weights' products out of the time loop, against the dense Jacobian."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from traceest_adapters.torch import jacobian
from traceest_adapters.torch.operator import TorchJacobian

RECURRENCE, THROUGH_TIME, UNITS = (
    sys.modules[f"traceest_adapters.torch.per_example.{name}"] for name in ("rnn", "bptt", "recurrent_norms")
)
F64 = {"dtype": torch.float64}
B, T = 5, 6
pytestmark = pytest.mark.filterwarnings("ignore:this model cannot be mapped", "ignore:There is a performance drop")


class Everything(nn.Module):
    """All outputs of a recurrent layer, its last states too, example first, and after something that can be learnt."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.before, self.layer = nn.Linear(3, 3, **F64), layer
        parts = 2 if isinstance(layer, nn.LSTM) else 1
        depth = layer.num_layers * (2 if layer.bidirectional else 1)
        self.start = nn.ParameterList(nn.Parameter(torch.randn(depth, 1, 4, **F64)) for _ in range(parts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.layer.batch_first
        x, start = self.before(x).sin(), tuple(s.expand(-1, len(x), -1).contiguous() for s in self.start)
        out, last = self.layer(x if first else x.transpose(0, 1), start if len(start) > 1 else start[0])
        ends = last if isinstance(last, tuple) else (last,)
        return torch.cat(
            [y.flatten(1) for y in (out if first else out.transpose(0, 1), *(s.transpose(0, 1) for s in ends))], 1
        )


class Steps(nn.Module):
    """A cell in a loop that is written out."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state, found = None, []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            found.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(found, 1)


LAYERS = {
    f"{make.__name__}, {what}": Everything(make(3, 4, **options, **F64))
    for make in (nn.GRU, nn.LSTM, nn.RNN)
    for what, options in {
        "time first": {},
        "two layers and directions": {"num_layers": 2, "bidirectional": True, "batch_first": True},
        "no bias": {"bias": False},
    }.items()
}
LAYERS["RNN, relu"] = Everything(nn.RNN(3, 4, nonlinearity="relu", **F64))
CELLS = {make.__name__: Steps(make(3, 4, **F64)) for make in (nn.GRUCell, nn.LSTMCell, nn.RNNCell)}
MODELS: dict[str, nn.Module] = {**LAYERS, **CELLS}


def inputs() -> torch.Tensor:
    return torch.randn(B, T, 3, generator=torch.Generator().manual_seed(0), **F64)


def check(model: nn.Module, **options: Any) -> TorchJacobian:
    """Every product against one plain backward pass a row, and that no weight's gradient is formed for an example."""
    J = jacobian(model, inputs(), **options)
    state, params = model(inputs()), list(model.parameters())
    rows = [torch.autograd.grad(s, params, retain_graph=True, materialize_grads=True) for s in state.reshape(-1)]
    D = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
    V = torch.randn(len(D), 3, generator=torch.Generator().manual_seed(1), **F64)
    g = torch.einsum("bnp,bnk->bkp", D.unflatten(0, (B, -1)), V.unflatten(0, (B, -1)))
    torch.testing.assert_close(J.rmatmat(V), D.T @ V)
    torch.testing.assert_close(J.rmatmat(V[:, :1]), D.T @ V[:, :1])
    torch.testing.assert_close(J.block_sqnorms(V), g.square().sum(-1))
    torch.testing.assert_close(J.block_sqnorms(V.repeat(1, 5)), g.square().sum(-1).repeat(1, 5))
    torch.testing.assert_close(J.sketch_gram(V), torch.einsum("bip,cjp->bicj", g, g))
    torch.testing.assert_close(J.matmat(torch.eye(D.shape[1], **F64)), D)
    torch.testing.assert_close(J.matmat(torch.ones(D.shape[1], 1, **F64)), D.sum(1, keepdim=True))
    torch.testing.assert_close(J.gram_matmat(V), D @ (D.T @ V))
    assert not [name for name in J._ghost.rest if not name.startswith("start")]
    return J


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_products_norms_and_grams_are_those_of_the_dense_jacobian(name: str, differentiable: bool) -> None:
    check(MODELS[name], differentiable=differentiable)


def test_the_state_is_that_of_the_fused_layer() -> None:
    for model in MODELS.values():
        J = jacobian(model, inputs())
        torch.testing.assert_close(J._state, model(inputs()).flatten(1))


def test_a_projection_and_dropout_are_left_to_the_fused_layer() -> None:
    projected = nn.LSTM(3, 4, proj_size=2, batch_first=True, **F64)
    J = jacobian(projected, inputs(), output=0)
    assert set(J._ghost.rest) == {name for name, _ in projected.named_parameters()}
    args = inputs(), torch.zeros(2, B, 4, **F64), list(nn.GRU(3, 4, 2, **F64).parameters()), True, 2
    layers: list[Any] = []
    run = RECURRENCE.recurrent(torch.gru, False, layers.append)
    assert run(*args, 0.5, True, False, True) is None
    assert run(*args, 0.5, False, False, True) is not None
    assert len(layers) == 2


WAYS = ["by transitions and units", "by gates and weights"]


LOOK = sys.modules["traceest_adapters.torch.per_example.verify"]


def take(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is worth being made once for all probes, or all is."""
    by_units = way == WAYS[0]
    for module in (THROUGH_TIME, UNITS):
        monkeypatch.setattr(module, "worth", lambda numbers, c, itemsize: by_units)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LAYERS)
def test_both_ways_back_give_the_same(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take(way, monkeypatch)
    model = LAYERS[name]
    assert not check(model)._ghost.look.findings.failed  # no short cut was found wrong
    ghost = jacobian(model, inputs())._ghost
    assert len(ghost.layers) == model.layer.num_layers * (2 if model.layer.bidirectional else 1)
    assert all(units.fits(3) == (way == WAYS[0] and "RNN" not in name) for units in ghost.layers)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_same_product_has_the_same_bits_each_time(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LAYERS["GRU, no bias"]
    T, B, _, H = jacobian(model, inputs())._ghost.layers[0].layer.steps.adjoint.C.shape
    monkeypatch.setattr(THROUGH_TIME, "WORTH", B * T * min(T, H) * H // 6)  # transitions or forms are worth it, or not
    J = jacobian(model, inputs())
    V = torch.randn(J.shape[0], k, **F64)
    products = J.block_sqnorms, J.rmatmat, lambda V: J.gram_matmat(V), J.sketch_gram
    first = [product(V) for product in products]
    for _ in range(10):
        J.block_sqnorms(torch.randn(J.shape[0], 4, **F64))
        assert all(torch.equal(product(V), of_first) for product, of_first in zip(products, first, strict=True))


def test_what_is_made_once_is_worth_it_and_within_the_budget() -> None:
    worth, million = THROUGH_TIME.worth, 2**20
    later = THROUGH_TIME.LATER
    assert worth((8 + later) * million, 8, 4)
    assert not worth((9 + later) * million, 8, 4)
    assert not worth(33 * million, 32, 4)
    assert not worth(1, 1, 4)
    with THROUGH_TIME.memory.within(2**20):
        assert worth(2**16, 4, 4)
        assert not worth(2**17, 4, 4)


def test_a_layer_that_is_used_twice_is_not_taken_unit_by_unit() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.GRU(4, 4, batch_first=True, **F64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.layer(self.layer(F.pad(x, (0, 1)))[0])[0]
            return y.flatten(1)

    model = Twice()
    check(model)
    assert not jacobian(model, inputs())._ghost.layers


def test_all_probes_go_back_through_time_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    honest = THROUGH_TIME.Steps.by_states
    monkeypatch.setattr(THROUGH_TIME.Steps, "by_states", lambda s, d: passes.append(len(d[0])) or honest(s, d))
    J = jacobian(LAYERS["GRU, time first"], inputs(), check=False)
    J.rmatmat(torch.ones(J.shape[0], 7, **F64))
    assert passes == [7]
    assert J._ghost.uses  # which is verified with two
    passes.clear()
    J.block_sqnorms(torch.ones(J.shape[0], 7, **F64))
    assert passes == [7]


def test_a_jvp_goes_forward_through_time_once_for_all_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    honest = THROUGH_TIME.Steps.of_states
    monkeypatch.setattr(THROUGH_TIME.Steps, "of_states", lambda s, v: passes.append(len(v[0])) or honest(s, v))
    J = jacobian(LAYERS["LSTM, time first"], inputs())
    assert hasattr(J, "matmat")  # which is found out with one
    J.matmat(torch.ones(J.shape[1], 7, **F64))  # looked at
    passes.clear()
    J.matmat(torch.ones(J.shape[1], 7, **F64))
    assert passes == [7]


@pytest.mark.parametrize("name", ["of_states", "of_gates"])
def test_a_transpose_that_is_wrong_is_no_forward_side(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    honest = getattr(THROUGH_TIME.Steps, name)
    monkeypatch.setattr(THROUGH_TIME.Steps, name, lambda s, v: tuple(1.01 * x for x in honest(s, v)))
    assert not hasattr(jacobian(LAYERS["GRU, no bias"], inputs()), "matmat")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("field", ["keep", "last", "along"])
def test_a_part_of_the_adjoint_that_is_wrong_is_caught(monkeypatch: pytest.MonkeyPatch, field: str, way: str) -> None:
    take(way, monkeypatch)
    honest = THROUGH_TIME.Steps

    def wrong(W: Any, a: Any) -> Any:
        return honest(W, a._replace(**{field: 1.1 * getattr(a, field)}))

    monkeypatch.setattr(RECURRENCE, "Steps", wrong)
    model = LAYERS["LSTM, no bias" if field == "along" else "GRU, no bias"]
    with pytest.raises(ValueError, match="has another derivative than the model as it is"):
        check(model)
    believe(monkeypatch)
    with pytest.raises(AssertionError):
        check(model)


def believe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked at but ghost norms' rules."""
    monkeypatch.setattr(LOOK.Look, "due", lambda self, route: False)
    monkeypatch.setattr(LOOK.Look, "confirm", lambda self, names: None)


def test_wrong_forms_of_the_units_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    take(WAYS[0], monkeypatch)
    honest = UNITS.Units._inner
    monkeypatch.setattr(UNITS.Units, "_inner", lambda self, a, bias: honest(self, a, bias) + (bias is not None))
    check(LAYERS["LSTM, time first"])  # they are seen to be wrong, and not used
    believe(monkeypatch)
    with pytest.raises(AssertionError):
        check(LAYERS["LSTM, time first"])
