"""What a JAX function and its arguments are not, said before they are traced."""

from __future__ import annotations

from typing import Any, SupportsIndex

import jax

from traceest_adapters import _foreign


def check(fn: Any, params: Any, shared: Any, batch_axis: Any, chunk_size: Any) -> None:
    """Raise unless `fn` can be called, arrays of parameters are JAX's or NumPy's, and options are integers."""
    if not callable(fn) or isinstance(fn, type):
        what = f"the class {fn.__name__}" if isinstance(fn, type) else f"a {type(fn).__name__}"
        raise TypeError(f"jacobian: fn must be a function of parameters and inputs, got {what}.")
    if hasattr(fn, "named_parameters"):
        raise TypeError(
            f"jacobian: fn is a PyTorch module ({type(fn).__name__}); take traceest_adapters.torch.jacobian or .ntk."
        )
    for name, value, least in (("batch_axis", batch_axis, None), ("chunk_size", chunk_size, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, SupportsIndex))):
            raise TypeError(f"jacobian: {name} must be an integer or None, got {value!r}.")
        if value is not None and least is not None and int(value) < least:
            raise ValueError(f"jacobian: {name} must be at least {least}, got {value}.")
    _check_arrays("a leaf of params", params)
    _check_arrays("an input in shared", shared)


def check_inputs(inputs: Any, batch_axis: Any, in_axes: Any) -> None:
    """Raise unless arrays are JAX's, or NumPy's without masks, and none that is to be cut into examples is sparse."""
    _check_arrays("an input", inputs)
    if batch_axis is not None and in_axes == "batch_axis":
        for x in jax.tree.leaves(inputs, is_leaf=_sparse):
            if _sparse(x):
                raise TypeError(
                    f"jacobian: an input is sparse ({type(x).__name__}), and examples cannot be taken out of it; give "
                    "x.todense(), or as shared= what all examples share, such as the edges of a graph."
                )


def _check_arrays(what: str, tree: Any) -> None:
    for leaf in jax.tree.leaves(tree):
        _foreign.check(leaf, what, "jax")


def _sparse(x: Any) -> bool:
    return type(x).__module__.startswith("jax.experimental.sparse")
