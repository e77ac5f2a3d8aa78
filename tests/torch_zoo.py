"""PyTorch models of every kind, small, each with its state as plain PyTorch computes it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from models import torch_mlp
from torch import nn

from traceest_adapters.torch import jacobian

F64 = {"dtype": torch.float64}


def x(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **F64)


def ids(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(0))


@dataclass
class Case:
    """A model and its batch; `state` is the state by a plain call, examples first."""

    model: nn.Module
    inputs: tuple[Any, ...]
    state: Callable[..., torch.Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    forward: bool = True  # has jvps
    rounding: float = 1e-10  # of the model's own, relative

    def jacobian(self, model: nn.Module | None = None, **options: Any) -> Any:
        return jacobian(model or self.model, *self.inputs, **{**self.options, **options})

    def dense(self, model: nn.Module | None = None) -> np.ndarray:
        """One plain backward pass a row."""
        model = model or self.model
        params = [p for p in model.parameters() if p.requires_grad]
        with torch.enable_grad():
            state = self.state(model, *self.inputs)
        rows = [torch.autograd.grad(s, params, retain_graph=True, materialize_grads=True) for s in state.reshape(-1)]
        return np.stack([torch.cat([g.reshape(-1) for g in row]).double().numpy() for row in rows])

    def moved(self) -> nn.Module:
        """The model at other parameters."""
        other = copy.deepcopy(self.model)
        with torch.no_grad():
            for i, p in enumerate(other.parameters()):
                p += 0.3 * x(*p.shape, seed=i + 1).to(p.dtype) * p.std().nan_to_num(0.1)
        return other


class Twice(nn.Module):
    """A layer used twice, and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(7, 7, **F64), nn.Parameter(1 + 0.1 * x(7))

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(torch.tanh(self.layer(a)))) * self.scale


class FixedPoint(torch.autograd.Function):
    """z = tanh(z Wᵀ + u), differentiated implicitly."""

    generate_vmap_rule = True

    @staticmethod
    def forward(W: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        z = torch.zeros_like(u)
        for _ in range(80):
            z = torch.tanh(z @ W.T + u)
        return z

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        W, z = ctx.saved_tensors
        slope = 1 - z**2
        A = torch.eye(len(W), dtype=W.dtype) - slope[:, :, None] * W
        d = torch.linalg.solve(A.mT, g[:, :, None])[:, :, 0] * slope
        return d.T @ z, d


class DEQ(nn.Module):
    """A deep equilibrium model, its fixed point implicit or unrolled."""

    def __init__(self, implicit: bool) -> None:
        super().__init__()
        self.implicit = implicit
        self.read, self.W = nn.Linear(3, 4, **F64), nn.Parameter(0.2 * x(4, 4))
        self.out = nn.Linear(4, 7, **F64)

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        u = self.read(a)
        return self.out(FixedPoint.apply(self.W, u) if self.implicit else FixedPoint.forward(self.W, u))


class Bag(nn.Module):
    """An embedding bag of three words an example, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(9, 4, **F64), nn.Linear(4, 7, **F64)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.bag(words)))


class Attention(nn.Module):
    """Self-attention whose weights are part of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **F64)

    def forward(self, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.attention(a, a, a, need_weights=True)


def call(model: nn.Module, *inputs: Any) -> torch.Tensor:
    return model(*inputs)


def mlp() -> Case:
    return Case(torch_mlp((6, 8, 7)), (x(7, 6),), call)


def cnn() -> Case:
    norm = nn.BatchNorm2d(3, **F64)
    with torch.no_grad():
        norm.running_mean.copy_(x(3)), norm.running_var.copy_(1 + x(3) ** 2)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, **F64), norm, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(27, 7, **F64))
    return Case(model.eval(), (x(5, 2, 5, 5),), call)


def gru() -> Case:
    return Case(nn.GRU(3, 4, num_layers=2, **F64), (x(4, 5, 3),), lambda m, a: m(a)[0].transpose(0, 1), _time_major())


def lstm() -> Case:
    model = nn.LSTM(3, 4, batch_first=True, bidirectional=True, proj_size=2, **F64)
    return Case(model, (x(5, 3, 3),), lambda m, a: m(a)[0], {"output": 0})


def _time_major() -> dict[str, Any]:
    return {"batch_axis": 1, "output": 0}


def encoder() -> Case:
    """Two layers with a causal mask and padding; examples 0 and 3 are padded."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0, **F64)
    model = nn.TransformerEncoder(layer, 2).eval()
    padded = torch.zeros(5, 4, dtype=torch.bool)
    padded[0, 2:] = padded[3, 3:] = True
    causal = nn.Transformer.generate_square_subsequent_mask(4, **F64).isinf()
    return Case(
        model,
        (x(5, 4, 4),),
        lambda m, a: m(a, mask=causal, src_key_padding_mask=padded),
        {"kwargs": {"src_key_padding_mask": padded}, "shared": {"mask": causal}},
    )


def attention() -> Case:
    return Case(Attention(), (x(4, 3, 4),), lambda m, a: torch.cat([y.flatten(1) for y in m(a)], 1))


def twice() -> Case:
    return Case(Twice(), (x(6, 7),), call)


def deq() -> Case:
    return Case(DEQ(implicit=False), (x(6, 3),), call)


def implicit_deq() -> Case:
    return Case(DEQ(implicit=True), (x(6, 3),), call)


def bag() -> Case:
    return Case(Bag(), (ids(9, 6, 3),), call, forward=False)  # PyTorch has no second derivative of it


def weight_norm() -> Case:
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4, **F64)),
        nn.Tanh(),
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 7, **F64)),
    )
    return Case(model.eval(), (x(6, 4),), call)


def _hugging_face(name: str, attention: str, head: str = "Model", **sizes: Any) -> Any:
    """A model of that name from a configuration, float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import transformers

            model, config = (getattr(transformers, name + end) for end in (head, "Config"))
        except ImportError as error:
            pytest.skip(f"transformers and what it imports have to be there: {error}")
        torch.manual_seed(0)
        transformers.logging.set_verbosity_error()
        return model._from_config(config(**sizes), attn_implementation=attention).double().eval()


SMALL = {"hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
WORDS, MASK = ids(11, 5, 4), torch.tensor([[1, 1, 0, 0], [1] * 4, [1] * 4, [1, 1, 1, 0], [1] * 4])


def gpt2(attention: str = "sdpa", output: Any = "logits") -> Case:
    sizes = {"n_positions": 6, "n_embd": 4, "n_layer": 2, "n_head": 2}
    model = _hugging_face("GPT2", attention, "LMHeadModel", vocab_size=11, bos_token_id=0, eos_token_id=0, **sizes)
    return Case(model, (WORDS,), lambda m, a: m(a).logits, {"output": output})


def llama(attention: str = "sdpa") -> Case:
    """Rotary positions, grouped queries, and norms that are taken in float32."""
    sizes = {**SMALL, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 0}
    model = _hugging_face("Llama", attention, "ForCausalLM", vocab_size=11, **sizes)
    return Case(model, (WORDS,), lambda m, a: m(a).logits, {"output": "logits"}, rounding=1e-5)


def bert(attention: str = "sdpa") -> Case:
    model = _hugging_face("Bert", attention, vocab_size=11, max_position_embeddings=6, **SMALL)
    return Case(
        model,
        (WORDS,),
        lambda m, a: m(a, attention_mask=MASK).last_hidden_state,
        {"output": "last_hidden_state", "kwargs": {"attention_mask": MASK}},
    )


def vit(attention: str = "sdpa") -> Case:
    model = _hugging_face("ViT", attention, image_size=4, patch_size=2, **SMALL)
    return Case(model, (x(5, 3, 4, 4),), lambda m, a: m(a).last_hidden_state, {"output": "last_hidden_state"})


MODELS: dict[str, Callable[[], Case]] = {
    "mlp": mlp,
    "conv and batch norm": cnn,
    "gru, time-major, two layers": gru,
    "lstm, bidirectional, projected": lstm,
    "transformer encoder, masked": encoder,
    "attention and its weights": attention,
    "a layer used twice and a bare parameter": twice,
    "fixed point, unrolled": deq,
    "fixed point, implicit": implicit_deq,
    "embedding bag": bag,
    "weight norm and spectral norm": weight_norm,
    "gpt-2": gpt2,
    "bert, masked": bert,
    "vit": vit,
}


@lru_cache
def case(name: str) -> Case:
    torch.manual_seed(0)
    return MODELS[name]()


@lru_cache
def truth(name: str) -> tuple[np.ndarray, nn.Module, np.ndarray]:
    """The dense Jacobian; the model at other parameters, and its Jacobian."""
    moved = case(name).moved()
    return case(name).dense(), moved, case(name).dense(moved)
