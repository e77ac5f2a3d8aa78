"""The same models in JAX and in PyTorch: PyTorch's parameters are the JAX functions' parameters."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch import nn


def random(*shape: int, seed: int = 0) -> Any:
    """Standard normal numbers in JAX."""
    return jax.random.normal(jax.random.key(seed), shape)


def per_example(fn: Callable[[Any, Any], Any], params: Any, x: Any, V: Any, batch_axis: int | None = 0) -> Any:
    """Gradients of a JAX function's state by its parameters, formed, for each example: (n, k) → (B, k, P)."""

    def state(p: Any) -> Any:
        leaves = jax.tree.leaves(fn(p, x))
        if batch_axis is None:
            return jnp.concatenate([leaf.ravel() for leaf in leaves])[None]
        return jnp.concatenate([jnp.moveaxis(a, batch_axis, 0).reshape(a.shape[batch_axis], -1) for a in leaves], 1)

    J = jax.tree.leaves(jax.jacrev(state)(params))
    B, n = J[0].shape[:2]
    return jnp.einsum("bnp,bnk->bkp", jnp.concatenate([leaf.reshape(B, n, -1) for leaf in J], 2), V.reshape(B, n, -1))


def as_jax(module: nn.Module) -> dict[str, Any]:
    """A module's parameters as a JAX pytree, in the module's order."""
    return {name: jnp.asarray(p.detach().numpy()) for name, p in module.named_parameters()}


def torch_gru(inputs: int = 10, hidden: int = 64, dtype: torch.dtype = torch.float64) -> nn.GRU:
    torch.manual_seed(0)
    return nn.GRU(inputs, hidden, dtype=dtype)


def jax_gru(p: dict[str, Any], x: Any) -> Any:
    """`nn.GRU` on a time-major input: every hidden state, (time, batch, hidden)."""

    def cell(h: Any, x_t: Any) -> tuple[Any, Any]:
        r_x, z_x, n_x = jnp.split(x_t @ p["weight_ih_l0"].T + p["bias_ih_l0"], 3, axis=-1)
        r_h, z_h, n_h = jnp.split(h @ p["weight_hh_l0"].T + p["bias_hh_l0"], 3, axis=-1)
        r, z = jax.nn.sigmoid(r_x + r_h), jax.nn.sigmoid(z_x + z_h)
        h = (1 - z) * jnp.tanh(n_x + r * n_h) + z * h
        return h, h

    return jax.lax.scan(cell, jnp.zeros((x.shape[1], p["weight_hh_l0"].shape[1]), x.dtype), x)[1]


def torch_mlp(sizes: tuple[int, ...] = (6, 12, 12, 5), dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b, dtype=dtype), nn.Tanh()]
    return nn.Sequential(*layers)


def jax_mlp(p: dict[str, Any], x: Any) -> Any:
    for i in range(0, len(p), 2):
        x = jnp.tanh(x @ p[f"{i}.weight"].T + p[f"{i}.bias"])
    return x
