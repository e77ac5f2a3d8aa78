"""How the rows of a Jacobian lie: the shape of the state whose entries they are, and its axis of features."""

from __future__ import annotations

import math
from typing import Any, NamedTuple


def state_shape(J: Any) -> Any:
    """The shape of the state whose entries are J's rows, or None where it is not known."""
    return getattr(J, "state_shape", None)


def feature_axis(J: Any) -> int:
    """Which axis of the state is of features: the last, if J says nothing."""
    return getattr(J, "feature_axis", -1)


class Layout(NamedTuple):
    """A block's rows as an array of outer positions, features and inner positions."""

    outer: int
    features: int
    inner: int

    @property
    def positions(self) -> int:
        """T, of each feature."""
        return self.outer * self.inner

    @classmethod
    def of(cls, shape: tuple[int, ...], feature: int) -> Layout:
        """Of an array, by its axis of features; if that is the first one, of examples, all are positions of one."""
        features, inner = shape[feature] if feature else 1, math.prod(shape[feature + 1 :])
        return cls(math.prod(shape) // (features * inner), features, inner)


def layout(A: Any, n_blocks: int) -> Layout | None:
    """That of each of so many blocks of A's rows (of those of its factor), by `state_shape` and `feature_axis`."""
    J = getattr(A, "factor", A)
    shape: tuple[int, ...] | None = state_shape(J)
    if not shape or math.prod(shape) != A.shape[0] or shape[0] % n_blocks:
        return None
    return Layout.of((shape[0] // n_blocks, *shape[1:]), feature_axis(J) % len(shape))
