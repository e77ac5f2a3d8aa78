"""Four models, written in PyTorch and in JAX, of the sizes at which a pass is matrix products rather than overhead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Sizes:
    """Of all four: `quick` ones take a second each."""

    examples: int = 128
    width: int = 1024
    images: int = 32
    channels: int = 32
    tokens: int = 64
    sequences: int = 8
    model: int = 512
    heads: int = 8
    time: int = 50
    batch: int = 15
    hidden: int = 64


QUICK = Sizes(8, 32, 4, 8, 8, 4, 32, 4, 6, 5, 8)


# -- PyTorch --------------------------------------------------------------------------------------------------------
class Convolutional(nn.Module):
    """Three convolutions with batch norm, the last two with stride two, mean over positions, and a head of ten."""

    def __init__(self, c: int) -> None:
        super().__init__()
        widths, layers = [3, c, 2 * c, 4 * c], []
        for i in range(3):
            conv = nn.Conv2d(widths[i], widths[i + 1], 3, stride=1 + (i > 0), padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(widths[i + 1]), nn.ReLU()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(4 * c, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(torch.tanh(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Two blocks; the state is the mean over tokens."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(d, heads), Block(d, heads))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x).mean(1)


def _mlp(s: Sizes) -> nn.Module:
    w = s.width
    layers = [nn.Linear(784, w), nn.Tanh(), nn.Linear(w, w), nn.Tanh(), nn.Linear(w, w), nn.Tanh(), nn.Linear(w, 10)]
    return nn.Sequential(*layers)


def _torch_models(s: Sizes) -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]]:
    return {
        "MLP": (lambda: _mlp(s), (s.examples, 784), {}),
        "CNN": (lambda: Convolutional(s.channels), (s.images, 3, 32, 32), {}),
        "GRU": (lambda: nn.GRU(10, s.hidden), (s.time, s.batch, 10), {"batch_axis": 1, "output": 0}),
        "transformer": (lambda: Transformer(s.model, s.heads), (s.sequences, s.tokens, s.model), {}),
    }


NAMES = tuple(_torch_models(Sizes()))


def in_torch(name: str, s: Sizes) -> tuple[nn.Module, torch.Tensor, dict[str, Any]]:
    """The model in eval mode, a batch, and the adapter's options."""
    make, shape, options = _torch_models(s)[name]
    torch.manual_seed(0)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    return make().eval(), x.to(torch.get_default_device()), options


# -- JAX ------------------------------------------------------------------------------------------------------------
def _jax_functions(s: Sizes) -> dict[str, Callable[[dict[str, Any], Any], Any]]:
    import jax
    import jax.numpy as jnp

    def linear(p: Any, name: str, x: Any) -> Any:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def mlp(p: Any, x: Any) -> Any:
        for i in (0, 2, 4):
            x = jnp.tanh(linear(p, str(i), x))
        return linear(p, "6", x)

    def cnn(p: Any, x: Any) -> Any:  # at initialisation a batch norm in eval mode divides by √(1 + ε)
        for i in range(3):
            kernel, stride = p[f"body.{3 * i}.weight"], (1 + (i > 0),) * 2
            x = jax.lax.conv_general_dilated(x, kernel, stride, ((1, 1), (1, 1)))
            scale, shift = (p[f"body.{3 * i + 1}.{a}"][:, None, None] for a in ("weight", "bias"))
            x = jax.nn.relu(x / (1 + 1e-5) ** 0.5 * scale + shift)
        return linear(p, "head", x.mean((2, 3)))

    def gru(p: Any, x: Any) -> Any:
        def cell(h: Any, x_t: Any) -> tuple[Any, Any]:
            r_x, z_x, n_x = jnp.split(x_t @ p["weight_ih_l0"].T + p["bias_ih_l0"], 3, axis=-1)
            r_h, z_h, n_h = jnp.split(h @ p["weight_hh_l0"].T + p["bias_hh_l0"], 3, axis=-1)
            r, z = jax.nn.sigmoid(r_x + r_h), jax.nn.sigmoid(z_x + z_h)
            h = (1 - z) * jnp.tanh(n_x + r * n_h) + z * h
            return h, h

        return jax.lax.scan(cell, jnp.zeros((x.shape[1], s.hidden), x.dtype), x)[1]

    def norm(p: Any, name: str, x: Any) -> Any:
        x = x - x.mean(-1, keepdims=True)
        x = x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)
        return x * p[f"{name}.weight"] + p[f"{name}.bias"]

    def transformer(p: Any, x: Any) -> Any:
        for i in ("blocks.0", "blocks.1"):
            heads = linear(p, f"{i}.qkv", norm(p, f"{i}.norm1", x))
            q, k, v = (jnp.reshape(y, (*y.shape[:2], s.heads, -1)) for y in jnp.split(heads, 3, axis=-1))
            scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
            mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
            x = x + linear(p, f"{i}.out", jnp.reshape(mixed, x.shape))
            x = x + linear(p, f"{i}.down", jnp.tanh(linear(p, f"{i}.up", norm(p, f"{i}.norm2", x))))
        return x.mean(1)

    return {"MLP": mlp, "CNN": cnn, "GRU": gru, "transformer": transformer}


def in_jax(name: str, s: Sizes) -> tuple[Callable[[dict[str, Any], Any], Any], dict[str, Any], Any, dict[str, Any]]:
    """The same model as a function, PyTorch's parameters, the same batch, and the adapter's options."""
    import jax.numpy as jnp

    module, x, options = in_torch(name, s)
    params = {name: jnp.asarray(p.detach().cpu().numpy()) for name, p in module.named_parameters()}
    options = {key: value for key, value in options.items() if key == "batch_axis"}
    return _jax_functions(s)[name], params, jnp.asarray(x.cpu().numpy()), options
