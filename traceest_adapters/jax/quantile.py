"""Student's quantile inside of a trace: SciPy's, called when the program runs."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

STEP = 1e-4
"""Relative, of the degrees of freedom: their difference quotient is right to about its square."""


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def student(p: float, df: Any) -> Any:
    """The quantile of probability `p`, of the shape and dtype of `df`."""
    return _on_host(_quantile, p, df)


@student.defjvp
def _along(p: float, primals: Any, tangents: Any) -> Any:
    (df,), (direction,) = primals, tangents
    return student(p, df), _on_host(_slope, p, df) * direction


def _on_host(f: Any, p: float, df: Any) -> Any:
    shape = jax.ShapeDtypeStruct(jnp.shape(df), df.dtype)
    return jax.pure_callback(partial(f, p), shape, df, vmap_method="expand_dims")


def _quantile(p: float, df: Any) -> np.ndarray:
    from scipy.special import stdtrit

    df = np.asarray(df)
    return np.asarray(stdtrit(df.astype(np.float64), p), df.dtype)


def _slope(p: float, df: Any) -> np.ndarray:
    from scipy.special import stdtrit

    df = np.asarray(df)
    wide, h = df.astype(np.float64), STEP * df.astype(np.float64)
    return np.asarray((stdtrit(wide + h, p) - stdtrit(wide - h, p)) / (2 * h), df.dtype)
