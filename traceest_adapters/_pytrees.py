"""`Estimate` as a pytree: its arrays are children, the rest is static."""

from __future__ import annotations

from typing import Any

from traceest.estimate import ARRAYS, STATIC, Estimate


def flatten(e: Estimate) -> tuple[list[Any], tuple[Any, ...]]:
    """Children and static part; an absent array is no child, since PyTorch takes None for a leaf."""
    present = tuple(name for name in ARRAYS if getattr(e, name) is not None)
    return [getattr(e, name) for name in present], (present, *(getattr(e, name) for name in STATIC))


def unflatten(static: tuple[Any, ...], children: Any) -> Estimate:
    """The inverse, in JAX's order of arguments."""
    present, *rest = static
    arrays: dict[str, Any] = dict.fromkeys(ARRAYS) | dict(zip(present, children, strict=True))
    return Estimate(**arrays, **dict(zip(STATIC, rest, strict=True)))
