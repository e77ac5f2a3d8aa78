"""`Estimate` and `Summary` as pytrees: their arrays are children, the rest is static."""

from __future__ import annotations

from typing import Any

from traceest.estimate import ARRAYS, STATIC, Estimate
from traceest.kernels.summary import Summary


def flatten(e: Estimate) -> tuple[list[Any], tuple[Any, ...]]:
    """Children and static part; an absent array is no child, since PyTorch takes None for a leaf."""
    present = tuple(name for name in ARRAYS if getattr(e, name) is not None)
    return [getattr(e, name) for name in present], (present, *(getattr(e, name) for name in STATIC))


def unflatten(static: tuple[Any, ...], children: Any) -> Estimate:
    """The inverse, in JAX's order of arguments."""
    present, *rest = static
    arrays: dict[str, Any] = dict.fromkeys(ARRAYS) | dict(zip(present, children, strict=True))
    return Estimate(**arrays, **dict(zip(STATIC, rest, strict=True)))


def flatten_summary(s: Summary) -> tuple[list[Any], tuple[Any, ...]]:
    """The Estimates that are there, then the groups."""
    estimates = s.estimates
    return [*estimates.values(), *s.groups.values()], (tuple(estimates), tuple(s.groups), s.names)


def unflatten_summary(static: tuple[Any, ...], children: Any) -> Summary:
    """The inverse, in JAX's order of arguments."""
    present, labels, names = static
    children = list(children)
    groups = dict(zip(labels, children[len(present) :], strict=True))
    return Summary(**dict(zip(present, children, strict=False)), groups=groups, names=names)
