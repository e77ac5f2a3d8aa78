"""Parts of random PyTorch models that play tricks: on derivatives, on batching, between examples."""

from __future__ import annotations

from typing import Any

import torch
from differential import WORDS, Sizes
from torch.nn.utils import rnn
from torch_blocks import F64, Block, Context, block, coupled, linear, p


# -- zeros ------------------------------------------------------------------------------------------------------
@block
def zero_branch(s: Sizes) -> Block:
    return Block(lambda m, h, _: h + m.g(torch.tanh(m.f(h))), f=linear(s.C, s.C), g=linear(s.C, s.C, zero=True))


@block
def zero_gate(s: Sizes) -> Block:
    return Block(lambda m, h, _: h + m.g.tanh() * m.f(h).sin(), f=linear(s.C, s.C), g=p(zero=True))


@block
def zero_scale(s: Sizes) -> Block:
    def body(m: Any, h: torch.Tensor, _: Context) -> torch.Tensor:
        rows = torch.tanh(m.f(h.transpose(0, 1).reshape(-1, s.C))).reshape(s.T, -1, s.C)
        return h + m.g * rows.transpose(0, 1)

    return Block(body, f=linear(s.C, s.C), g=p(s.C, zero=True))


# -- derivatives by other ways ----------------------------------------------------------------------------------
@block
def straight_through(s: Sizes) -> Block:
    def body(m: Any, h: torch.Tensor, _: Context) -> torch.Tensor:
        z = m.f(h)
        return z + (z.round() - z).detach()

    return Block(body, f=linear(s.C, s.C))


@block
def stopped(s: Sizes) -> Block:
    return Block(lambda m, h, _: m.f(h) * m.f(h).detach() + m.f.weight.detach().sum(), f=linear(s.C, s.C))


@block
def force(s: Sizes) -> Block:
    def body(m: Any, h: torch.Tensor, _: Context) -> torch.Tensor:
        with torch.enable_grad():
            x = h if h.requires_grad else h.detach().requires_grad_()
            (found,) = torch.autograd.grad(torch.tanh(m.f(x)).sum(), x, create_graph=True)
        return found + h

    return Block(body, f=linear(s.C, s.C))


class _Doubled(torch.autograd.Function):
    """2h, whose backward pass is written by hand and says 3."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h: torch.Tensor) -> torch.Tensor:
        return 2 * h

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return 3 * g


class _Squared(torch.autograd.Function):
    """x² and its derivative, in the way of old, which cannot be mapped."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return 2 * g * ctx.saved_tensors[0]


@block
def by_hand(s: Sizes) -> Block:
    return Block(lambda m, h, _: m.f(_Doubled.apply(h)), f=linear(s.C, s.C))


@block
def by_hand_of_old(s: Sizes) -> Block:
    return Block(lambda m, h, _: _Squared.apply(torch.tanh(m.f(h))), f=linear(s.C, s.C))


@block
def hooked(s: Sizes) -> Block:
    """A forward hook of the layer's, and a hook by which the derivative is another than the function's."""

    def body(m: Any, h: torch.Tensor, _: Context) -> torch.Tensor:
        z = m.f(h)
        if z.requires_grad:
            z.register_hook(lambda g: 3 * g)
        return z

    found = Block(body, f=linear(s.C, s.C))
    found.f.register_forward_hook(lambda layer, inputs, output: 2 * output)
    return found


# -- in place, buffers ----------------------------------------------------------------------------------------------
@block
def in_place(s: Sizes) -> Block:
    def body(m: Any, h: torch.Tensor, _: Context) -> torch.Tensor:
        z = m.f(h)
        z[:, 0] = z[:, 0] * 2
        z.add_(m.b)
        return z.tanh_()

    return Block(body, f=linear(s.C, s.C), b=p(s.C))


@block
def input_overwritten(s: Sizes) -> Block:
    def body(m: Any, h: torch.Tensor, _: Context) -> torch.Tensor:
        rows = h.detach().clone()
        z = (rows + m.b) * m.a
        rows.zero_()
        return z * h

    return Block(body, a=p(s.C), b=p(s.C))


@block
def with_buffer(s: Sizes) -> Block:
    found = Block(lambda m, h, _: m.f(h) * m.scale, f=linear(s.C, s.C))
    found.register_buffer("scale", torch.rand(s.C, **F64) + 0.5)
    return found


@block
def attribute_set(s: Sizes) -> Block:
    def body(m: Any, h: torch.Tensor, _: Context) -> torch.Tensor:
        m.last = m.f(h)
        return torch.tanh(m.last)

    return Block(body, f=linear(s.C, s.C))


# -- functions that PyTorch may batch in a way of its own ------------------------------------------------------------
@block
def prototypes(s: Sizes) -> Block:
    return Block(lambda m, h, _: torch.cdist(m.f(h), m.c), f=linear(s.C, s.C), c=p(s.C, s.C))


@block
def solved(s: Sizes) -> Block:
    return Block(lambda m, h, _: torch.linalg.solve(m.a + 4 * torch.eye(s.C, **F64), h.mT).mT, a=p(s.C, s.C))


@block
def determinant(s: Sizes) -> Block:
    def body(m: Any, h: torch.Tensor, _: Context) -> torch.Tensor:
        orbitals = m.f(h)[..., None] * torch.tanh(m.e) + 2 * torch.eye(s.C, **F64)
        return h * torch.linalg.slogdet(orbitals)[1][..., None]

    return Block(body, f=linear(s.C, s.C), e=p(s.C))


@block
def cumulated(s: Sizes) -> Block:
    return Block(lambda m, h, _: torch.logcumsumexp(m.f(h), 1), f=linear(s.C, s.C))


@block
def sorted_by_value(s: Sizes) -> Block:
    return Block(lambda m, h, _: m.f(h).sort(1)[0] * m.a, f=linear(s.C, s.C), a=p(s.T, 1))


@block
def indexed(s: Sizes) -> Block:
    """A table that is read by indexing, not by a function for it."""
    return Block(lambda m, h, c: h + m.w[c["words"]], w=p(WORDS, s.C))


@block
def chosen_by_mask(s: Sizes) -> Block:
    return Block(lambda m, h, c: torch.where(c["mask"][..., None], m.f(h), m.w), f=linear(s.C, s.C), w=p(s.C))


@block
def matrix_and_vector(s: Sizes) -> Block:
    return Block(lambda m, h, _: torch.nn.functional.linear(h, m.w) + h * m.w[0], w=p(s.C, s.C))


@block
def packed(s: Sizes) -> Block:
    def body(m: Any, h: torch.Tensor, c: Context) -> torch.Tensor:
        lengths = c["mask"].sum(1)
        rows = rnn.pack_padded_sequence(h, lengths, batch_first=True, enforce_sorted=False)
        return rnn.pad_packed_sequence(m.f(rows)[0], batch_first=True, total_length=s.T)[0]

    return Block(body, f=torch.nn.GRU(s.C, s.C, batch_first=True, **F64))


@block
def einsum(s: Sizes) -> Block:
    return Block(lambda m, h, _: torch.einsum("btc,cde,bte->btd", h, m.w, h.tanh()), w=p(s.C, s.C, s.C))


@block
def matrix_on_the_left(s: Sizes) -> Block:
    return Block(lambda m, h, _: torch.tanh(m.w @ h), w=p(s.T, s.T))


# -- between examples -----------------------------------------------------------------------------------------------
@coupled
def batch_mean(s: Sizes) -> Block:
    return Block(lambda m, h, _: m.f(h - h.mean(0)), f=linear(s.C, s.C))


@coupled
def batch_norm(s: Sizes) -> Block:
    """Coupled while in training mode."""
    layer = torch.nn.BatchNorm1d(s.C, **F64)
    return Block(lambda m, h, _: m.f(h.transpose(1, 2)).transpose(1, 2), f=layer)


@coupled
def coupled_behind_a_zero_gate(s: Sizes) -> Block:
    def body(m: Any, h: torch.Tensor, _: Context) -> torch.Tensor:
        x = m.f(h).flatten(1)
        return h + m.g.tanh() * ((x @ x.T).softmax(-1) @ x).view_as(h)

    return Block(body, f=linear(s.C, s.C), g=p(zero=True))


@coupled
def coupled_in_the_derivative(s: Sizes) -> Block:
    def body(m: Any, h: torch.Tensor, _: Context) -> torch.Tensor:
        z = m.f(h)
        return z + (z.mean(0) - z.mean(0).detach())

    return Block(body, f=linear(s.C, s.C))


@coupled
def perturbed(s: Sizes) -> Block:
    return Block(lambda m, h, _: torch.tanh(m.f(h) + m.q[: len(h)]), f=linear(s.C, s.C), q=p(s.B, s.T, s.C, zero=True))


@coupled
def perturbed_by_broadcast(s: Sizes) -> Block:
    return Block(lambda m, h, _: torch.tanh(m.f(h)) + m.q, f=linear(s.C, s.C), q=p(s.B, s.T, s.C, zero=True))
