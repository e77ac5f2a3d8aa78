"""Why an example's state is another one when it is computed by itself: the reason, and not what it looks like."""

from __future__ import annotations

from typing import Any

from traceest_adapters import _state as common
from traceest_adapters.jax.states import FAILS


def not_alone(axis: int | None, why: str) -> ValueError:
    """The error for a model of which there is no state of one example, for the reason found when it was traced."""
    if why.startswith(FAILS):
        return common.fails_alone(axis, why.removeprefix(FAILS).strip(" ()"))
    return ValueError(f"batch_axis={axis}: {why}.")


def same_size(J: Any) -> None:
    """Raise if an example's state has another size by itself than in the batch."""
    alone, n = J.model.alone.jaxpr.outvars[0].aval.shape[1], J.shape[0] // J._B
    if alone != n:
        raise common.other_size(J.model.batch_axis, n, alone, J._B)
