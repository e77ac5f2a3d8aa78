"""The Jacobian of a JAX function over all batches of an iterable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import traceest as te
from traceest_adapters import _batches as common
from traceest_adapters.jax.model import traced
from traceest_adapters.jax.operator import JaxJacobian


def batched(
    make: Callable[[Any, bool, bool], JaxJacobian], batches: Any, input: Any, blocks: common.Blocks, progress: bool
) -> te.Stack:
    """One Jacobian over all batches. See `traceest_adapters.jax.jacobian`."""
    data = common.Batches(batches, input, _inputs, _digest)
    begun: list[bool] = []

    def of(inputs: Any, p: int) -> JaxJacobian:
        first = not begun
        begun[:] = [True]
        return make(inputs, first, data.complete)

    parts = common.Parts(data, of)
    return common.stacked(parts, blocks, progress)


def _inputs(batch: Any) -> tuple[Any, ...]:
    """The inputs: a mapping is one of them, as any pytree."""
    several = isinstance(batch, (tuple, list)) and not hasattr(batch, "_fields")
    inputs = tuple(batch) if several else (dict(batch) if isinstance(batch, Mapping) else batch,)
    return jax.tree.map(jnp.asarray, inputs)


def _digest(inputs: Any) -> bytes | None:
    """Of all arrays, their shapes and dtypes; nothing is to be told of those without values."""
    if traced(inputs):
        return None
    found = hashlib.blake2b(digest_size=16)
    for x in jax.tree.leaves(inputs):
        found.update(f"{x.dtype}{x.shape}".encode())
        found.update(np.ascontiguousarray(x).tobytes())
    return found.digest()
