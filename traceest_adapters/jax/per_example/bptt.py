"""Back through the steps of a scan, with all that is not sequential outside of the loop.

The carry of a scan, h_t = F_t(h₍t−1₎, θ_t), is taken apart into what a step makes of its own θ_t, the carry before it
being constant (s_t, for all steps together), and how carries depend on those before, which changes no values
(`chained`). With the transitions A_t = ∂F_t/∂h₍t−1₎, made once for all probes,

    λ_t = ∂/∂h_t + A₍t+1₎ᵀ λ₍t+1₎

is one product a step whatever F is, and derivatives by θ_t are taken of all steps at once, ∂/∂s_t being λ_t.

References: Werbos (1990), backpropagation through time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from traceest_adapters import _memory as memory


class Carry(NamedTuple):
    """The shapes of a carry, whose floating parts make up one vector."""

    shapes: tuple[tuple[int, ...], ...]
    floating: tuple[bool, ...]

    @classmethod
    def of(cls, avals: list[Any]) -> Carry:
        """That of values like `avals`."""
        return cls(tuple(a.shape for a in avals), tuple(jnp.issubdtype(a.dtype, jnp.floating) for a in avals))

    @property
    def size(self) -> int:
        """H, of the vector."""
        return sum(prod(shape) for shape, floating in zip(self.shapes, self.floating, strict=True) if floating)

    def flat(self, h: list[Any]) -> Any:
        """(H,) of one carry."""
        return jnp.concatenate([jnp.ravel(x) for x, floating in zip(h, self.floating, strict=True) if floating])

    def split(self, flat: Any, others: list[Any]) -> list[Any]:
        """The carry of a vector, and of the integers and keys among `others`."""
        parts, start = list(others), 0
        for i, (shape, floating) in enumerate(zip(self.shapes, self.floating, strict=True)):
            if floating:
                parts[i] = jnp.reshape(flat[start : start + prod(shape)], shape)
                start += prod(shape)
        return parts


def worth(avals: list[Any], weights: int, length: int, examples: int) -> bool:
    """Whether a loop's transitions are to be made, `weights` being how many numbers a step multiplies by.

    Not where they are more numbers, so that products with them would be more work, or too many to be held.
    """
    carry, dtypes = Carry.of(avals), {a.dtype for a in avals if jnp.issubdtype(a.dtype, jnp.floating)}
    if len(dtypes) != 1 or carry.size**2 > weights:
        return False
    return examples * length * carry.size**2 * dtypes.pop().itemsize <= memory.budget() // 4


def transitions(step: Callable[[list[Any]], list[Any]], carry: Carry, before: list[Any]) -> Any:
    """A = ∂ step/∂h at the carry `before`, (H, H): products of weights with unit vectors are the same for all steps."""
    return jax.jacfwd(lambda h: carry.flat(step(carry.split(h, before))))(carry.flat(before))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def chained(reverse: bool, A: Any, s: Any, start: Any) -> Any:
    """The carries that s_t are known to be, (T, H), as functions of all that came before, `start` included."""
    return s


def _chained_forward(reverse: bool, A: Any, s: Any, start: Any) -> Any:
    return s, A


def _chained_backward(reverse: bool, A: Any, d: Any) -> Any:
    return jnp.zeros_like(A), *adjoint(reverse, A, d)


chained.defvjp(_chained_forward, _chained_backward)


def adjoint(reverse: bool, A: Any, d: Any) -> tuple[Any, Any]:
    """λ, and the derivative by the first carry: (T, H, H), (T, H) → (T, H), (H,).

    Steps are numbers, so that mapped over examples and probes no array is turned around before the loop: a step is a
    product an example, for its probes together. A loop in `reverse` is gone through forwards here.
    """

    def step(later: Any, t: Any) -> tuple[Any, Any]:
        found = later + _at(d, t, 0)
        return found @ _at(A, t, 0), found

    start, out = jax.lax.scan(step, jnp.zeros_like(d[0]), jnp.arange(len(d)), reverse=not reverse)
    return out, start


def adjoint_of_many(reverse: bool, A: Any, d: Any) -> Any:
    """λ of all examples and probes, turned around step by step: (B, T, H, H), (c, B, T, H) → (B, H, T, c)."""

    def step(later: tuple[Any, Any], t: Any) -> tuple[Any, None]:
        found, out = later  # (B, c, H)
        found = found + jnp.swapaxes(_at(d, t, 2), 0, 1)
        out = jax.lax.dynamic_update_index_in_dim(out, jnp.swapaxes(found, 1, 2), t, 2)
        return (found @ _at(A, t, 1), out), None

    c, B, T, H = d.shape
    zeros = jnp.zeros((B, c, H), d.dtype), jnp.zeros((B, H, T, c), d.dtype)
    return jax.lax.scan(step, zeros, jnp.arange(T), reverse=not reverse)[0][1]


def _at(x: Any, t: Any, axis: int) -> Any:
    return jax.lax.dynamic_index_in_dim(x, t, axis, keepdims=False)
