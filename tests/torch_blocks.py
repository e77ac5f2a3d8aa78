"""Parts that random PyTorch models are put together of: each takes (B, T, C) and gives (B, T, C)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from differential import WORDS, Sizes
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

F64 = {"dtype": torch.float64}


Context = dict[str, torch.Tensor]
Body = Callable[[Any, torch.Tensor, Context], torch.Tensor]


class Block(nn.Module):
    """Some layers and bare parameters, and what is done with them."""

    def __init__(self, body: Body, **parts: Any) -> None:
        super().__init__()
        self.body = body
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, h: torch.Tensor, context: Context) -> torch.Tensor:
        return self.body(self, h, context)


def p(*shape: int, zero: bool = False) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, **F64) if zero else torch.randn(shape, **F64) / 2)


def linear(i: int, o: int, zero: bool = False) -> nn.Linear:
    layer = nn.Linear(i, o, **F64)
    if zero:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return layer


def affine(norm: Any) -> Any:
    """A norm whose scale, shift and buffers are not the ones it starts from."""
    for x in (*norm.parameters(), *(b for b in norm.buffers() if b.is_floating_point())):
        nn.init.uniform_(x, 0.5, 1.5)
    return norm


def channels_first(layer: Callable[[torch.Tensor], torch.Tensor], h: torch.Tensor) -> torch.Tensor:
    return layer(h.transpose(1, 2)).transpose(1, 2)


Maker = Callable[[Sizes], Block]
BLOCKS: dict[str, Maker] = {}
COUPLED: set[str] = set()
"""Those in which examples influence each other, or that hold a row for each: to be refused, or taken as one block."""


def block(f: Maker) -> Maker:
    BLOCKS[f.__name__] = f
    return f


def coupled(f: Maker) -> Maker:
    COUPLED.add(f.__name__)
    return block(f)


# -- layers -----------------------------------------------------------------------------------------------------
@block
def dense(s: Sizes) -> Block:
    return Block(lambda m, h, _: torch.tanh(m.f(h)), f=linear(s.C, s.C))


@block
def dense_over_positions(s: Sizes) -> Block:
    return Block(lambda m, h, _: m.f(h.transpose(1, 2)).transpose(1, 2).sin(), f=linear(s.T, s.T))


@block
def dense_over_all(s: Sizes) -> Block:
    return Block(lambda m, h, _: m.f(h.flatten(1)).view_as(h).tanh(), f=linear(s.T * s.C, s.T * s.C))


@block
def time_major_rows(s: Sizes) -> Block:
    def body(m: Any, h: torch.Tensor, _: Context) -> torch.Tensor:
        rows = m.f(h.transpose(0, 1).reshape(-1, s.C))
        return torch.tanh(rows).reshape(s.T, -1, s.C).transpose(0, 1)

    return Block(body, f=linear(s.C, s.C))


@block
def rows(s: Sizes) -> Block:
    return Block(lambda m, h, _: torch.tanh(m.f(h.reshape(-1, s.C))).reshape(h.shape), f=linear(s.C, s.C))


@block
def tied_transpose(s: Sizes) -> Block:
    return Block(lambda m, h, _: F.linear(torch.tanh(F.linear(h, m.w)), m.w.T), w=p(s.C + 1, s.C))


@block
def conv(s: Sizes) -> Block:
    return Block(lambda m, h, _: channels_first(m.f, h).tanh(), f=nn.Conv1d(s.C, s.C, 3, padding=1, **F64))


@block
def conv_grouped(s: Sizes) -> Block:
    return Block(lambda m, h, _: channels_first(m.f, h), f=nn.Conv1d(s.C, s.C, 3, padding="same", groups=2, **F64))


@block
def conv_as_image(s: Sizes) -> Block:
    return Block(lambda m, h, _: m.f(h[:, None]).mean(1).sin(), f=nn.Conv2d(1, 2, 3, padding=1, **F64))


@block
def conv_transposed(s: Sizes) -> Block:
    return Block(lambda m, h, _: channels_first(m.f, h), f=nn.ConvTranspose1d(s.C, s.C, 3, padding=1, **F64))


@block
def bilinear(s: Sizes) -> Block:
    return Block(lambda m, h, _: m.f(h, h.flip(1).tanh()), f=nn.Bilinear(s.C, s.C, s.C, **F64))


@block
def prelu(s: Sizes) -> Block:
    return Block(lambda m, h, _: m.f(h), f=nn.PReLU(**F64))


@block
def prelu_by_channel(s: Sizes) -> Block:
    return Block(lambda m, h, _: channels_first(m.f, h), f=nn.PReLU(s.C, **F64))


@block
def layer_norm(s: Sizes) -> Block:
    return Block(lambda m, h, _: m.f(h), f=affine(nn.LayerNorm(s.C, **F64)))


@block
def rms_norm(s: Sizes) -> Block:
    return Block(lambda m, h, _: m.f(h), f=affine(nn.RMSNorm((s.T, s.C), **F64)))


@block
def group_norm(s: Sizes) -> Block:
    return Block(lambda m, h, _: channels_first(m.f, h), f=affine(nn.GroupNorm(2, s.C, **F64)))


@block
def weight_norm(s: Sizes) -> Block:
    return Block(lambda m, h, _: m.f(h), f=nn.utils.parametrizations.weight_norm(linear(s.C, s.C)))


@block
def scales(s: Sizes) -> Block:
    return Block(lambda m, h, _: (h * m.a + m.b) * m.c - m.d, a=p(s.C), b=p(s.T, 1), c=p(1), d=p())


# -- words, positions, attention, recurrence ------------------------------------------------------------------------
@block
def embedding(s: Sizes) -> Block:
    return Block(lambda m, h, c: h + m.f(c["words"]), f=nn.Embedding(WORDS, s.C, padding_idx=0, **F64))


@block
def positions(s: Sizes) -> Block:
    return Block(lambda m, h, _: h + m.f(torch.arange(h.shape[1])), f=nn.Embedding(s.T, s.C, **F64))


@block
def embedding_bag(s: Sizes) -> Block:
    return Block(lambda m, h, c: h + m.f(c["words"])[:, None], f=nn.EmbeddingBag(WORDS, s.C, mode="sum", **F64))


@block
def class_token(s: Sizes) -> Block:
    return Block(lambda m, h, _: torch.cat([m.t.expand(len(h), -1, -1), h], 1)[:, : s.T], t=p(1, 1, s.C))


@block
def attention(s: Sizes) -> Block:
    layer = nn.MultiheadAttention(s.C, 2, batch_first=True, **F64)
    return Block(lambda m, h, _: h + m.f(h, h, h, need_weights=False)[0], f=layer)


@block
def attention_masked(s: Sizes) -> Block:
    def body(m: Any, h: torch.Tensor, c: Context) -> torch.Tensor:
        x = h.transpose(0, 1)
        return h + m.f(x, x, x, key_padding_mask=~c["mask"])[0].transpose(0, 1)

    return Block(body, f=nn.MultiheadAttention(s.C, 2, **F64))


@block
def attention_by_hand(s: Sizes) -> Block:
    def body(m: Any, h: torch.Tensor, c: Context) -> torch.Tensor:
        scores = (m.q(h) @ m.k(h).mT / math.sqrt(s.C)).masked_fill(~c["mask"][:, None, :], -1e9)
        return h + scores.softmax(-1) @ h

    return Block(body, q=linear(s.C, s.C), k=linear(s.C, s.C))


@block
def attention_fused(s: Sizes) -> Block:
    def body(m: Any, h: torch.Tensor, _: Context) -> torch.Tensor:
        q, k, v = m.f(h).unflatten(2, (2, -1)).transpose(1, 2).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(h.shape)

    return Block(body, f=linear(s.C, 3 * s.C))


@block
def encoder_layer(s: Sizes) -> Block:
    layer = nn.TransformerEncoderLayer(s.C, 2, 4, dropout=0.0, batch_first=True, **F64)
    return Block(lambda m, h, c: m.f(h, src_key_padding_mask=~c["mask"]), f=layer)


@block
def gru(s: Sizes) -> Block:
    return Block(lambda m, h, _: m.f(h)[0], f=nn.GRU(s.C, s.C, batch_first=True, **F64))


@block
def gru_time_major(s: Sizes) -> Block:
    return Block(lambda m, h, _: m.f(h.transpose(0, 1))[0].transpose(0, 1), f=nn.GRU(s.C, s.C, num_layers=2, **F64))


@block
def lstm(s: Sizes) -> Block:
    layer = nn.LSTM(s.C, s.C // 2, batch_first=True, bidirectional=True, **F64)
    return Block(lambda m, h, _: m.f(h)[0], f=layer)


@block
def lstm_from_a_learned_state(s: Sizes) -> Block:
    def body(m: Any, h: torch.Tensor, _: Context) -> torch.Tensor:
        start = tuple(x.expand(-1, len(h), -1).contiguous() for x in (m.h0, m.c0))
        return m.f(h, start)[0]

    return Block(body, f=nn.LSTM(s.C, s.C, batch_first=True, **F64), h0=p(1, 1, s.C), c0=p(1, 1, s.C))


@block
def rnn_relu(s: Sizes) -> Block:
    return Block(lambda m, h, _: m.f(h)[0], f=nn.RNN(s.C, s.C, nonlinearity="relu", batch_first=True, **F64))


@block
def rnn_last_state(s: Sizes) -> Block:
    return Block(lambda m, h, _: h * m.f(h)[1].transpose(0, 1), f=nn.RNN(s.C, s.C, batch_first=True, **F64))


@block
def gru_cell(s: Sizes) -> Block:
    def body(m: Any, h: torch.Tensor, _: Context) -> torch.Tensor:
        state, found = {"h": torch.zeros_like(h[:, 0])}, []
        for t in range(h.shape[1]):
            state = {"h": m.f(h[:, t], state["h"])}
            found.append(state["h"])
        return torch.stack(found, 1)

    return Block(body, f=nn.GRUCell(s.C, s.C, **F64))


@block
def leaky_loop(s: Sizes) -> Block:
    def body(m: Any, h: torch.Tensor, _: Context) -> torch.Tensor:
        state, found = (h.new_zeros(len(h), s.C), m.h0), []
        for x in h.unbind(1):
            state = (torch.tanh(state[0] @ m.w + x + state[1]), state[1] * m.leak)
            found.append(state[0])
        return torch.stack(found, 1)

    return Block(body, w=p(s.C, s.C), h0=p(s.C), leak=p())


# -- masks ----------------------------------------------------------------------------------------------------------
@block
def masked(s: Sizes) -> Block:
    return Block(lambda m, h, c: m.f(h) * c["mask"][..., None], f=linear(s.C, s.C))


@block
def unpadded(s: Sizes) -> Block:
    def body(m: Any, h: torch.Tensor, c: Context) -> torch.Tensor:
        out = torch.zeros_like(h)
        out[c["mask"]] = torch.tanh(m.f(h[c["mask"]]))
        return out

    return Block(body, f=linear(s.C, s.C))


@block
def pooled(s: Sizes) -> Block:
    return Block(
        lambda m, h, c: h + m.f((h * c["mask"][..., None]).sum(1) / c["mask"].sum(1, keepdim=True))[:, None],
        f=linear(s.C, s.C),
    )


@block
def checkpointed(s: Sizes) -> Block:
    return Block(lambda m, h, _: checkpoint(lambda x: m.f(x).tanh(), h, use_reentrant=False), f=linear(s.C, s.C))
