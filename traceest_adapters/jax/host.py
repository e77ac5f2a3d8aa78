"""Outside of a trace, arithmetic on few numbers is done by NumPy: to compile it takes a thousand times as long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from traceest_adapters.jax.compiling import few
from traceest_adapters.jax.model import traced

TYPES = frozenset(map(np.dtype, ("bool", "int32", "int64", "float32", "float64", "complex64", "complex128")))
"""Those that NumPy knows by itself and has linear algebra for."""

REFUSED = (np.linalg.LinAlgError, jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError)
"""What NumPy raises where JAX gives NaN, and what a function raises that closes over traced values."""


def run(f: Callable[..., Any], static: tuple[Any, ...], arrays: Any, most: int) -> Any:
    """``f(*static, arrays)`` of arrays of at most `most` numbers in all; NotImplemented of others, and where it fails.

    `f` takes its namespace from its arrays, which are in this process' memory: on a CPU they are not even copied.
    """
    if traced(arrays) or not (few(arrays, most) and _here(arrays)):
        return NotImplemented
    try:
        with np.errstate(all="ignore"):
            found = f(*static, jax.tree.map(_numpys, arrays))
    except REFUSED:
        return NotImplemented
    return jax.tree.map(jnp.asarray, found)


def _numpys(x: Any) -> Any:
    """Python's numbers stay what they are, for as arrays they would bring a precision of their own."""
    return np.asarray(x) if isinstance(x, jax.Array) else x


def _here(arrays: Any) -> bool:
    """Whether all are on the device that new arrays go to, a CPU."""
    device = jax.config.jax_default_device or jax.local_devices()[0]
    ours = [x for x in jax.tree.leaves(arrays) if isinstance(x, jax.Array)]
    return (device if isinstance(device, str) else device.platform) == "cpu" and all(
        x.dtype in TYPES and x.devices() == {device} for x in ours
    )
