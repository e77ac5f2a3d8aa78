"""Norms and Grams of per-example gradients that are not formed, against the dense Jacobian, layer by layer."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from models import torch_mlp
from test_torch_adapter import Twice, dense, x
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from traceest_adapters import _memory
from traceest_adapters.torch import TorchJacobian, jacobian
from traceest_adapters.torch.per_example import mapped

LAYERS = sys.modules["traceest_adapters.torch.per_example.factors"]
LOOKUP = sys.modules["traceest_adapters.torch.per_example.lookup"]
GHOST = sys.modules["traceest_adapters.torch.per_example.ghost_norms"]
ALIKE = sys.modules["traceest_adapters.torch.per_example.stacked_layers"]
FUNCTIONS = sys.modules["traceest_adapters.torch.per_example.rules"]
ADAPTER = sys.modules["traceest_adapters.torch.operator"]
F64 = {"dtype": torch.float64}
torch.manual_seed(0)


class Of(nn.Module):
    """Some layers, and what is done with them."""

    def __init__(self, f: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        self.f = f
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.f(self, *inputs)


@dataclass
class Case:
    """A model, its batch, and the parameters whose per-example gradients have to be formed."""

    model: Any
    inputs: Any
    rest: set[str] = field(default_factory=set)
    options: dict[str, Any] = field(default_factory=dict)

    def jacobian(self) -> TorchJacobian:
        return jacobian(self.model, self.inputs, **self.options)


def linear(i: int, o: int, bias: bool = True) -> nn.Linear:
    return nn.Linear(i, o, bias=bias, **F64)


def weights(*shape: int) -> nn.Parameter:
    return nn.Parameter(x(*shape) / 3 + 0.1)


def then(*layers: nn.Module) -> nn.Module:
    """With something after it, so that derivatives differ from cotangents."""
    return nn.Sequential(*layers, nn.Tanh(), nn.Flatten()).eval()


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, 9, shape, generator=torch.Generator().manual_seed(0))


def batch_norm(norm: Any) -> Any:
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return affine(norm)


def affine(norm: Any) -> Any:
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def tied() -> nn.Module:
    def forward(m: Any, words: torch.Tensor) -> torch.Tensor:
        h = torch.sin(m.embed(words))
        return m.head(torch.tanh(m.mix(h)))

    model = Of(forward, embed=nn.Embedding(9, 5, **F64), mix=linear(5, 5), head=linear(5, 9))
    model.head.weight = model.embed.weight
    return model


TOKENS = ids(5, 4)
CASES: dict[str, Case] = {
    "mlp": Case(torch_mlp(), x(7, 6)),
    "one example": Case(torch_mlp(), x(1, 6)),
    "one block": Case(torch_mlp(), x(7, 6), options={"batch_axis": None}),
    "positions": Case(then(linear(3, 4), nn.Tanh(), linear(4, 2)), x(5, 6, 3)),
    "many positions, narrow": Case(then(linear(2, 2), nn.Tanh(), linear(2, 2)), x(5, 30, 2)),
    "few positions, wide": Case(then(linear(20, 30), nn.Tanh(), linear(30, 2)), x(5, 2, 20)),
    "layers alike": Case(
        then(
            linear(3, 4), nn.Tanh(), linear(4, 4), affine(nn.LayerNorm(4, **F64)), linear(4, 4), nn.Tanh(), linear(4, 4)
        ),
        x(5, 6, 3),
    ),
    "tables alike": Case(
        Of(lambda m, a: m.u(a).tanh() * m.v(a) + m.w(a), **{name: nn.Embedding(9, 3, **F64) for name in "uvw"}), TOKENS
    ),
    "time-major": Case(Of(lambda m, a: m.l(a).tanh(), l=linear(3, 2)), x(6, 5, 3), options={"batch_axis": 1}),
    "time-major, square": Case(Of(lambda m, a: m.l(a).tanh(), l=linear(3, 2)), x(5, 5, 3), options={"batch_axis": 1}),
    "rows and examples in one axis": Case(
        Of(lambda m, a: m.l(a.flatten(0, 1)).tanh().unflatten(0, (-1, 6)), l=linear(3, 2)), x(5, 6, 3)
    ),
    "the same, time-major": Case(
        Of(lambda m, a: m.l(a.movedim(1, 0).flatten(0, 1)).tanh().unflatten(0, (6, -1)).movedim(1, 0), l=linear(3, 2)),
        x(5, 6, 3),
    ),
    "examples last": Case(Of(lambda m, a: m.l(a.movedim(0, -2)).tanh().movedim(-2, 0), l=linear(3, 2)), x(5, 4, 6, 3)),
    "conv1d": Case(then(nn.Conv1d(2, 4, 3, stride=2, padding=1, dilation=2, **F64)), x(5, 2, 9)),
    "conv2d": Case(then(nn.Conv2d(2, 4, (3, 2), padding=(1, 0), **F64), nn.Conv2d(4, 2, 3, **F64)), x(5, 2, 5, 6)),
    "conv2d, grouped": Case(then(nn.Conv2d(4, 6, 3, groups=2, stride=2, bias=False, **F64)), x(5, 4, 5, 6)),
    "conv2d, depthwise": Case(then(nn.Conv2d(3, 6, 3, groups=3, padding="same", **F64)), x(5, 3, 5, 4)),
    "conv2d, an even kernel": Case(
        then(nn.Conv2d(2, 3, 2, padding="same", **F64), nn.Conv2d(3, 2, 3, padding="valid", **F64)), x(5, 2, 5, 4)
    ),
    "conv2d, circular": Case(then(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", **F64)), x(5, 2, 5, 4)),
    "conv3d": Case(then(nn.Conv3d(2, 3, 2, **F64)), x(4, 2, 3, 3, 4)),
    "transposed conv": Case(then(nn.ConvTranspose2d(2, 3, 2, **F64)), x(4, 2, 3, 3), {"0.weight", "0.bias"}),
    "conv and batch norm": Case(then(nn.Conv2d(2, 4, 3, **F64), batch_norm(nn.BatchNorm2d(4, **F64))), x(5, 2, 6, 6)),
    "conv, then in place": Case(
        then(nn.Conv2d(2, 4, 3, **F64), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3, **F64)), x(5, 2, 6, 6)
    ),
    "batch norm of vectors": Case(then(linear(3, 4), batch_norm(nn.BatchNorm1d(4, **F64))), x(5, 3)),
    "group norm": Case(then(nn.Conv2d(2, 4, 3, **F64), affine(nn.GroupNorm(2, 4, **F64))), x(5, 2, 6, 6)),
    "instance norm": Case(then(affine(nn.InstanceNorm1d(3, affine=True, **F64))), x(5, 3, 6)),
    "layer norm": Case(then(linear(3, 4), affine(nn.LayerNorm(4, **F64))), x(5, 6, 3)),
    "layer norm over two axes": Case(
        then(affine(nn.LayerNorm((6, 3), **F64)), nn.Flatten(), linear(18, 3)), x(5, 6, 3)
    ),
    "rms norm": Case(then(linear(3, 4), nn.RMSNorm(4, **F64)), x(5, 6, 3)),
    "embedding": Case(then(nn.Embedding(9, 3, **F64)), TOKENS),
    "embedding, padded": Case(then(nn.Embedding(9, 3, padding_idx=2, **F64)), TOKENS),
    "embedding, time-major": Case(
        Of(lambda m, a: m.e(a).tanh(), e=nn.Embedding(9, 3, **F64)), ids(4, 5), options={"batch_axis": 1}
    ),
    "embedding, by frequency": Case(
        then(nn.Embedding(9, 3, scale_grad_by_freq=True, **F64)), TOKENS[:, :1], {"0.weight"}
    ),
    "embedding, sparse": Case(then(nn.Embedding(9, 3, sparse=True, **F64)), TOKENS),
    "embedding used twice": Case(
        Of(lambda m, a: (m.e(a) * m.e(a.flip(1))[:, :2].sum(1, keepdim=True)).tanh(), e=nn.Embedding(9, 3, **F64)),
        TOKENS,
    ),
    "embedding tied to the head": Case(tied(), TOKENS),
    "layer used twice, tied, scaled": Case(Twice(), x(5, 4)),
    "weight tied to its transpose": Case(
        Of(lambda m, a: F.linear(torch.tanh(F.linear(a, m.w)), m.w.T).tanh(), w=weights(5, 3)), x(6, 4, 3)
    ),
    "weight also used by hand": Case(Of(lambda m, a: m.l(a).tanh() @ m.l.weight, l=linear(3, 4)), x(5, 3)),
    "weight also used in ways not known": Case(
        Of(lambda m, a: m.l(a).tanh() * m.l.weight.square().sum(), l=linear(3, 4)), x(5, 3), {"l.weight"}
    ),
    "weight used as matrix and as vector": Case(
        Of(lambda m, a: m.l(a)[:, :, None] * m.l.weight, l=linear(3, 4)), x(5, 3), {"l.weight"}
    ),
    "weight changed on the way": Case(
        nn.utils.parametrize.register_parametrization(linear(3, 4), "weight", nn.Softplus()),
        x(5, 3),
        {"parametrizations.weight.original"},
    ),
    "compiled": Case(torch.compile(torch_mlp(), backend="eager"), x(7, 6)),
    "matrices by hand": Case(
        Of(lambda m, a: torch.addmm(m.b, torch.tanh(a @ m.v), m.w), v=weights(3, 4), w=weights(4, 2), b=weights(2)),
        x(5, 3),
    ),
    "matrix on the left": Case(Of(lambda m, a: torch.tanh(m.w @ a.mT), w=weights(4, 3)), x(5, 6, 3), {"w"}),
    "scales and shifts": Case(
        Of(
            lambda m, a: torch.tanh(m.s * (a * m.c + m.t) + m.one),
            s=weights(4, 3),
            c=weights(4, 1),
            t=weights(1, 4, 3),
            one=nn.Parameter(torch.tensor(0.3, **F64)),
        ),
        x(5, 4, 3),
    ),
    "class token": Case(
        Of(
            lambda m, a: m.l(torch.cat([m.cls.expand(len(a), -1, -1), a], 1)).tanh(),
            cls=weights(1, 1, 3),
            l=linear(3, 2),
        ),
        x(5, 4, 3),
    ),
    "positions, shared by all examples": Case(
        Of(
            lambda m, a: torch.tanh(m.e(a) + m.p(torch.arange(4))),
            e=nn.Embedding(9, 3, **F64),
            p=nn.Embedding(4, 3, **F64),
        ),
        TOKENS,
    ),
    "as many positions as examples": Case(
        Of(
            lambda m, a: torch.tanh(m.e(a) + m.p(torch.arange(4))),
            e=nn.Embedding(9, 3, **F64),
            p=nn.Embedding(4, 3, **F64),
        ),
        ids(4, 4),
    ),
    "as many positions as examples, time-major": Case(
        Of(
            lambda m, a: torch.tanh(m.e(a) + m.p(torch.arange(4)).unsqueeze(1)),
            e=nn.Embedding(9, 3, **F64),
            p=nn.Embedding(4, 3, **F64),
        ),
        ids(4, 4),
        options={"batch_axis": 1},
    ),
    "slopes, one and one a channel": Case(
        then(linear(4, 6), nn.PReLU(**F64), linear(6, 3), nn.PReLU(3, **F64), linear(3, 2)), x(5, 4)
    ),
    "positions, expanded": Case(
        Of(
            lambda m, a: torch.tanh(m.e(a) * m.p(torch.arange(4)[None]).expand(len(a), -1, -1)),
            e=nn.Embedding(9, 3, **F64),
            p=nn.Embedding(4, 3, **F64),
        ),
        TOKENS,
    ),
    "positions, added in place and again": Case(
        Of(lambda m, a: _positions_in_place(m, a), e=nn.Embedding(9, 3, **F64), p=nn.Embedding(4, 3, **F64)), TOKENS
    ),
    "positions, time-major": Case(
        Of(
            lambda m, a: torch.tanh(m.e(a) + m.p(torch.arange(4)).unsqueeze(1)),
            e=nn.Embedding(9, 3, **F64),
            p=nn.Embedding(4, 3, **F64),
        ),
        ids(4, 5),
        options={"batch_axis": 1},
    ),
    "positions, tied to the words": Case(
        Of(lambda m, a: torch.tanh(m.e(a) + m.e(torch.arange(4))), e=nn.Embedding(9, 3, **F64)), TOKENS
    ),
    "positions, also used in ways not known": Case(
        Of(lambda m, a: _positions_in_two_ways(m, a), e=nn.Embedding(9, 3, **F64), p=nn.Embedding(4, 3, **F64)),
        TOKENS,
        {"p.weight"},
    ),
    "positions, overwritten": Case(
        Of(
            lambda m, a: torch.tanh(m.e(a) + m.p(torch.arange(4)).mul_(2)),
            e=nn.Embedding(9, 3, **F64),
            p=nn.Embedding(4, 3, **F64),
        ),
        TOKENS,
        {"p.weight"},
    ),
    "attention by hand, with a bias of its keys": Case(
        Of(lambda m, a: _attention(m, a), q=linear(3, 4), k=linear(3, 4)), x(5, 6, 3)
    ),
    "attention": Case(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0, **F64), 2).eval(),
        x(4, 3, 8),
    ),
    "attention, time-major, as many positions": Case(
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, **F64), x(4, 4, 8), options={"batch_axis": 1}
    ),
    "attention with other keys": Case(
        Of(lambda m, a: m.a(a, a[:, :2], a[:, :2])[0], a=nn.MultiheadAttention(8, 2, batch_first=True, **F64)),
        x(4, 3, 8),
        {"a.in_proj_weight", "a.in_proj_bias"},
    ),
    "recurrent, and a head": Case(
        Of(lambda m, a: m.head(m.rnn(a)[0]), rnn=nn.GRU(3, 4, batch_first=True, **F64), head=linear(4, 2)),
        x(5, 4, 3),
    ),
    "recurrent, projected": Case(
        Of(lambda m, a: m.rnn(a)[0], rnn=nn.LSTM(3, 4, batch_first=True, bias=False, proj_size=2, **F64)),
        x(5, 4, 3),
        {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.weight_hr_l0"},
    ),
    "recurrent by hand": Case(Of(lambda m, a: _unrolled(m, a), cell=linear(6, 4)), x(5, 3, 2)),
    "frozen in part": Case(torch_mlp(), x(7, 6), options={"wrt": ["0.bias", "2.weight"]}),
    "unused": Case(Of(lambda m, a: m.used(a).tanh(), used=linear(3, 2), unused=linear(3, 2)), x(5, 3)),
    "detached": Case(Of(lambda m, a: m.l(a).tanh() + m.l(a).detach(), l=linear(3, 2)), x(5, 3)),
    "overwritten output": Case(Of(lambda m, a: m.l(a).mul_(2).tanh(), l=linear(3, 2)), x(5, 3)),
    "partly overwritten output": Case(Of(lambda m, a: _first_doubled(m.l(a)).tanh(), l=linear(3, 2)), x(5, 3)),
    "output of several positions overwritten": Case(
        Of(lambda m, a: m.l(a).relu_() + m.h(a), l=linear(3, 2), h=linear(3, 2)), x(5, 4, 3), {"l.weight", "l.bias"}
    ),
    "examples in another order": Case(
        Of(lambda m, a: m.h(m.l(a.flip(0)).tanh().flip(0)), l=linear(3, 2), h=linear(2, 2)),
        x(5, 4, 3),
        {"l.weight", "l.bias"},
    ),
    "two examples exchanged": Case(
        Of(lambda m, a: _exchanged(m.l(_exchanged(a)).tanh()), l=linear(3, 2)), x(9, 4, 3), {"l.weight", "l.bias"}
    ),
    "mapped inside": Case(
        Of(lambda m, a: torch.func.vmap(lambda one: F.linear(one, m.w).tanh())(a), w=weights(2, 3)), x(5, 4, 3), {"w"}
    ),
    "checkpointed": Case(
        Of(
            lambda m, a: m.h(checkpoint(lambda b: m.l(b).tanh(), a, use_reentrant=False)),
            l=linear(3, 4),
            h=linear(4, 2),
        ),
        x(5, 4, 3),
    ),
    "dead units": Case(nn.Sequential(linear(3, 4), nn.ReLU(), linear(4, 2)), -100 * x(5, 3).abs()),
}


def _unrolled(m: Any, a: torch.Tensor) -> torch.Tensor:
    h = a.new_zeros(len(a), 4)
    for t in range(a.shape[1]):
        h = torch.tanh(m.cell(torch.cat([a[:, t], h], 1)))
    return h


def _positions_in_place(m: Any, a: torch.Tensor) -> torch.Tensor:
    p = m.p(torch.arange(4))
    z = m.e(a) * 1.5
    z += p
    return torch.tanh(z) + p


def _positions_in_two_ways(m: Any, a: torch.Tensor) -> torch.Tensor:
    p = m.p(torch.arange(4))
    return torch.tanh((m.e(a) + p) @ p.T)


def _attention(m: Any, a: torch.Tensor) -> torch.Tensor:
    return torch.softmax(m.q(a) @ m.k(a).mT, dim=-1) @ a


def _first_doubled(z: torch.Tensor) -> torch.Tensor:
    z[:, 0] *= 2
    return z


def _exchanged(a: torch.Tensor) -> torch.Tensor:
    """The first two examples change places, where there are two."""
    return torch.cat([a[:2].flip(0), a[2:]])


def check(J: TorchJacobian, k: int = 3, atol: float = 1e-10) -> None:
    """Norms and Grams, whole and of each parameter, are those of the dense Jacobian."""
    D, B = dense(J), len(J._state)
    V = x(len(D), k)
    g = np.einsum("bnp,bnk->bkp", D.reshape(B, -1, D.shape[1]), V.numpy().reshape(B, -1, k))
    gram = np.einsum("bip,cjp->bicj", g, g)
    scale = np.abs(gram).max()
    np.testing.assert_allclose(J.block_sqnorms(V), (g**2).sum(-1), rtol=0, atol=atol * scale)
    np.testing.assert_allclose(J.sketch_gram(V), gram, rtol=0, atol=atol * scale)
    each = J.grouped_gram(V, tuple((i,) for i in range(len(J.parameters))))
    stops = np.cumsum([p.numel() for p in J.params.values()])
    for G, part in zip(each, np.split(g, stops[:-1], axis=2), strict=True):
        np.testing.assert_allclose(G, np.einsum("bip,cjp->bicj", part, part), rtol=0, atol=atol * scale)


@pytest.mark.filterwarnings("ignore:this model cannot be mapped")
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", CASES)
def test_norms_and_grams_are_those_of_the_dense_jacobian(case: str) -> None:
    J = CASES[case].jacobian()
    check(J)
    assert set(J._ghost.rest) == CASES[case].rest


SEVERAL_KINDS = [
    "mlp",
    "layers alike",
    "tables alike",
    "many positions, narrow",
    "few positions, wide",
    "conv2d, grouped",
    "embedding used twice",
    "embedding tied to the head",
    "layer used twice, tied, scaled",
    "recurrent, and a head",
    "recurrent, projected",
]


@pytest.mark.parametrize("bytes_held", [600, 3000])
@pytest.mark.parametrize("case", SEVERAL_KINDS)
def test_results_do_not_depend_on_the_memory_allowed(
    monkeypatch: pytest.MonkeyPatch, case: str, bytes_held: int
) -> None:
    monkeypatch.setattr(_memory, "BUDGET", bytes_held)
    check(CASES[case].jacobian(), k=5)


@pytest.mark.parametrize("case", ["mlp", "conv and batch norm", "embedding tied to the head", "attention"])
def test_nothing_is_done_example_by_example(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    J = CASES[case].jacobian()

    def refuse(*_: Any) -> None:
        raise AssertionError("gradients are formed example by example")

    monkeypatch.setattr(mapped.PerExample, "_reduced", refuse)
    check(J)


class Largest(TorchDispatchMode):
    """Watches how many numbers the largest new tensor has."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor):
                self.numbers = max(self.numbers, t.untyped_storage().nbytes() // t.dtype.itemsize)
        return out


def largest(case: Case, k: int) -> int:
    J = case.jacobian()
    V = x(J.shape[0], k)
    assert not J._ghost.rest
    with Largest() as watched:
        J.block_sqnorms(V)
        J.sketch_gram(V)
    return watched.numbers


def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where it is noted that a gradient was compared with PyTorch's."""
    seen: list[str] = []
    broken(monkeypatch, GHOST.Ghost, "_is_gradient", lambda honest, *args: seen.append("one") or honest(*args))
    return seen


def test_a_model_is_verified_anew_for_every_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, model = verified(monkeypatch), torch_mlp()
    for i in range(1, 4):
        check(jacobian(model, x(7, 6)))
        assert len(seen) == i * len(list(model.parameters()))


def test_a_function_is_verified_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, p = verified(monkeypatch), {"w": torch.nn.Parameter(x(6, 3))}
    for _ in range(2):
        check(jacobian(lambda p, a: torch.tanh(a @ p["w"]), x(7, 6), params=p))
    assert len(seen) == 2


def test_inputs_out_of_range_are_seen_by_a_model_that_is_known() -> None:
    model = torch_mlp()
    assert not jacobian(model, x(7, 6))._ghost.rest
    assert jacobian(model, 1e15 * x(7, 6))._ghost.rest == ["0.weight"]


def test_small_layers_that_are_alike_are_one_with_more_examples() -> None:
    ghost = CASES["layers alike"].jacobian()._ghost
    together, alone = ghost._alike(frozenset())
    assert sorted(len(some.uses) for some in together) == [3, 5]  # weights; biases and a shift
    assert len(alone) == 2
    assert all(some.fits(8) and not some.fits(8000) for some in together)


def shared_bias() -> nn.Module:
    """Layers with one row an example: with a bias, without one, and two that share theirs."""
    model = then(linear(3, 4), nn.Tanh(), linear(4, 4, bias=False), linear(4, 4), nn.Tanh(), linear(4, 4))
    model[5].bias = model[3].bias
    return model


def test_a_bias_is_a_column_of_its_weight() -> None:
    case = Case(shared_bias(), x(5, 3))
    J = case.jacobian()
    check(J)
    found = ALIKE.with_biases(J._ghost.uses.values(), 5)
    assert [len(uses) for uses in found] == [1, 1, 1, 2, 1]  # all weights, and the bias that is not of one layer
    (one,) = found[0]
    assert one.factor(torch.ones(5, 1, 3, **F64), torch.ones(2, 5, 1, 4, **F64)).right.shape[-1] == 4
    several = CASES["positions"].jacobian()._ghost
    assert len(ALIKE.with_biases(several.uses.values(), 5)) == len(several.uses) == 4


def test_a_bias_whose_input_is_not_one_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    J = Case(shared_bias(), x(5, 3)).jacobian()
    check(J)
    J._ghost._found_alike.clear()
    honest = nn.functional.pad
    monkeypatch.setattr(FUNCTIONS.F, "pad", lambda x, sides, value: honest(x, sides, value=2 * value))
    with pytest.raises(AssertionError):
        check(J)


def test_inputs_of_another_layer_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def turned(honest: Any, self: Any, of_each: list[Any], lead: int) -> torch.Tensor:
        return honest(self, of_each[::-1] if lead == 1 else of_each, lead)

    broken(monkeypatch, ALIKE.Alike, "_arranged", turned)
    with pytest.raises(AssertionError):
        check(CASES["layers alike"].jacobian())


def test_no_gradient_of_an_example_is_formed() -> None:
    case = Case(then(linear(300, 200), nn.Tanh(), linear(200, 5)), x(6, 300))
    assert largest(case, 4) < 10_000  # an example's gradient has 61 205


def test_tables_are_not_formed_for_each_example() -> None:
    case = Case(then(nn.Embedding(20_000, 8, **F64), nn.Tanh(), linear(8, 2)), 2000 * TOKENS)
    assert largest(case, 4) < 10_000


def test_the_memory_does_not_grow_with_the_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(then(linear(20, 30), nn.Tanh(), linear(30, 10)), x(3, 50, 20))
    monkeypatch.setattr(_memory, "BUDGET", 8 * 60_000)
    few, many = (largest(case, k) for k in (2, 24))
    assert few <= many <= 60_000


@pytest.mark.parametrize("scale", [1e-18, 1e18])
@pytest.mark.parametrize("case", ["mlp", "positions", "embedding", "layer norm"])
def test_outputs_of_any_size_are_squared_in_float32(case: str, scale: float) -> None:
    model, inputs = copy.deepcopy(CASES[case].model).float(), CASES[case].inputs
    inputs = inputs.float() if inputs.is_floating_point() else inputs
    one, J = (jacobian(Of(lambda m, a, s=s: s * m.model(a), model=model), inputs) for s in (1.0, scale))
    V = x(J.shape[0], 3).float() / 64
    assert not J._ghost.rest
    for product in ("block_sqnorms", "sketch_gram"):
        expected = getattr(one, product)(V).double() * scale**2
        torch.testing.assert_close(
            getattr(J, product)(V).double(), expected, rtol=1e-4, atol=1e-5 * float(expected.max())
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision_is_accumulated_in_float32(dtype: torch.dtype) -> None:
    model, V = torch_mlp().to(dtype), x(35, 3).to(dtype)
    J = jacobian(model, x(7, 6).to(dtype))
    D = jacobian(copy.deepcopy(model).double(), x(7, 6).to(dtype).double())
    assert not J._ghost.rest
    assert J._ghost.dtype == torch.float32
    expected = D.sketch_gram(V.double())
    got = J.sketch_gram(V)
    assert got.dtype == torch.float32
    torch.testing.assert_close(
        got.double(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps * float(expected.abs().max())
    )


def test_a_function_of_a_dictionary_of_parameters_is_understood() -> None:
    params = {"w": x(3, 4), "b": x(4), "v": x(4, 2)}

    def fn(p: dict[str, torch.Tensor], a: torch.Tensor) -> torch.Tensor:
        return torch.tanh(a @ p["w"] + p["b"]) @ p["v"]

    J = jacobian(fn, x(5, 3), params=params)
    check(J)
    assert not J._ghost.rest


def test_groups_may_overlap_and_leave_out() -> None:
    J = CASES["recurrent, and a head"].jacobian()
    V = x(J.shape[0], 2)
    each = J.grouped_gram(V, tuple((i,) for i in range(len(J.parameters))))
    torch.testing.assert_close(
        J.grouped_gram(V, ((0, 4), (), (4, 5, 0))),
        torch.stack([each[0] + each[4], torch.zeros_like(each[0]), each[0] + each[4] + each[5]]),
    )
    torch.testing.assert_close(each.sum(0), J.sketch_gram(V))


def test_the_model_is_left_as_it_was() -> None:
    model = CASES["conv and batch norm"].model
    before = {name: b.clone() for name, b in model.state_dict().items()}
    check(CASES["conv and batch norm"].jacobian())
    assert all(torch.equal(b, before[name]) for name, b in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("case", ["conv and batch norm", "layer used twice, tied, scaled"])
def test_coupled_examples_are_one_block(case: str) -> None:
    model = CASES[case].model.train()
    try:
        check(jacobian(model, CASES[case].inputs, batch_axis=None))
    finally:
        model.eval()


# -- the tests bite ----------------------------------------------------------------------------------------
def broken(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, by: Callable[..., Any]) -> None:
    """`module.name` replaced by a function that is given the honest one first."""
    honest = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args: by(honest, *args))


def believe_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GHOST.Ghost, "_is_gradient", lambda *_: True)


@pytest.mark.parametrize(
    "case",
    ["time-major, square", "as many positions as examples, time-major", "attention, time-major, as many positions"],
)
def test_an_example_axis_that_is_taken_on_trust_is_caught(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    believe_the_gradients(monkeypatch)  # of the first of the ways in which examples may lie
    with pytest.raises(AssertionError):
        check(CASES[case].jacobian())


@pytest.mark.parametrize(
    "case",
    [
        "weight also used in ways not known",
        "positions, also used in ways not known",
        "conv2d",
        "layer used twice, tied, scaled",
        "embedding, padded",
    ],
)
def test_a_gradient_that_is_taken_on_trust_is_caught(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    believe_the_gradients(monkeypatch)
    if "in ways not known" not in case:
        check(CASES[case].jacobian())
        broken(monkeypatch, GHOST, "merge", lambda honest, factors: honest(factors[:1]))
        functions = sys.modules["traceest_adapters.torch.per_example.rules"]
        monkeypatch.setattr(functions, "_padding", lambda padding, kernel, _: [(0, 2 * p) for p in padding])
        broken(monkeypatch, LOOKUP._Rows, "of", lambda honest, f: honest(f._replace(right=f.right * 1.001)))
    with pytest.raises(AssertionError):
        check(CASES[case].jacobian())


@pytest.mark.parametrize(
    ("name", "case"),
    [("_ghost", "few positions, wide"), ("_formed", "many positions, narrow"), ("lookup_gram", "embedding")],
)
def test_inner_products_that_are_off_by_a_millionth_are_caught(
    monkeypatch: pytest.MonkeyPatch, name: str, case: str
) -> None:
    broken(monkeypatch, LAYERS, name, lambda honest, *args: honest(*args) * (1 + 1e-6))
    with pytest.raises(AssertionError):
        check(CASES[case].jacobian())


def test_positions_that_are_not_crossed_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def same(honest: Any, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        products = honest(left, right)
        eye = torch.eye(products.shape[3], dtype=products.dtype)
        return products * eye[:, None, None, :]

    broken(monkeypatch, LAYERS, "_products", same)
    with pytest.raises(AssertionError):
        check(CASES["few positions, wide"].jacobian())


@pytest.mark.parametrize(("module", "case"), [(GHOST, "mlp"), (ADAPTER, "recurrent, projected")])
def test_pairs_of_chunks_that_are_left_out_are_caught(monkeypatch: pytest.MonkeyPatch, module: Any, case: str) -> None:
    monkeypatch.setattr(_memory, "BUDGET", 1)
    broken(monkeypatch, module, "pairs", lambda honest, *args: (pair for pair in honest(*args) if pair[0] == pair[1]))
    with pytest.raises(AssertionError):
        check(CASES[case].jacobian())
