"""Arrays that belong to another framework, or that hold more than numbers, told before they are taken for constants."""

from __future__ import annotations

from typing import Any

import numpy as np

CONVERT = {"jax": "jnp.asarray", "torch": "torch.as_tensor"}
NAMES = {"jax": "a JAX array", "torch": "a PyTorch tensor", "tensorflow": "a TensorFlow tensor", "cupy": "a CuPy array"}


def check(leaf: Any, what: str, ours: str, caller: str = "jacobian") -> None:
    """Raise if `leaf`, part of `what`, is an array that a model in `ours` ("jax", "torch") is not given as it is.

    Raises
    ------
    TypeError
        If it is of another framework, sparse in SciPy's way, or masked.
    """
    package = type(leaf).__module__.partition(".")[0].replace("jaxlib", "jax")
    convert = CONVERT[ours]
    if isinstance(leaf, np.ma.MaskedArray):
        raise TypeError(
            f"{caller}: {what} is a masked array, of which a model would see the masked numbers too; fill it, and give "
            "the mask as an input of its own."
        )
    if package == "scipy" and hasattr(leaf, "toarray"):
        raise TypeError(f"{caller}: {what} is a SciPy sparse matrix; give {convert}(x.toarray()).")
    if package in NAMES and package != ours and hasattr(leaf, "dtype"):
        other = f"traceest_adapters.{package} takes models in that framework; " if package in CONVERT else ""
        raise TypeError(
            f"{caller}: {what} is {NAMES[package]}, expected {NAMES[ours]}; {other}give {convert}(np.asarray(x))."
        )
