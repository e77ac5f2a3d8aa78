"""How the rows of a Jacobian lie: the shape of the state whose entries they are, and its axis of features."""

from __future__ import annotations

import math
from typing import Any, NamedTuple


def common_state(A: Any, B: Any) -> dict[str, Any]:
    """The state that the rows of both are of, as arguments of `Operator`; none where the two tell of different ones."""
    told = [J for J in (A, B) if J.state_shape is not None]
    states = [{"state_shape": J.state_shape, "feature_axis": J.feature_axis} for J in told]
    return states[0] if states and states[0] == states[-1] else {}


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
    """That of each of so many blocks of A's rows, by `state_shape` and `feature_axis`."""
    shape: tuple[int, ...] | None = A.state_shape
    if not shape or math.prod(shape) != A.shape[0] or shape[0] % n_blocks:
        return None
    return Layout.of((shape[0] // n_blocks, *shape[1:]), A.feature_axis % len(shape))
