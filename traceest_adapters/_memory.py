"""How many probes to a pass, from what they take; and going on with fewer where memory runs out all the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

BUDGET = 2**29
"""Bytes for what a product holds beside the model, its graph and the answer, if none is given."""

LEAST = 2**20
"""A budget is not halved below this: what is too much for so little does not come in pieces."""

FAST = 2**25
"""Bytes in which columns are drawn and turned around without being fetched anew."""

_budget: ContextVar[int | None] = ContextVar("memory_budget", default=None)


def budget() -> int:
    """Bytes that the product under way may hold."""
    given = _budget.get()
    return BUDGET if given is None else given


@contextmanager
def within(n_bytes: int | None) -> Iterator[None]:
    """Products made inside hold about `n_bytes`; None: the default."""
    token = _budget.set(n_bytes)
    try:
        yield
    finally:
        _budget.reset(token)


def given(memory_budget: Any) -> int | None:
    """A number of bytes as the user gave it.

    Raises
    ------
    TypeError, ValueError
        Unless it is a positive integer, or None.
    """
    if memory_budget is None:
        return None
    if isinstance(memory_budget, bool) or int(memory_budget) != memory_budget:
        raise TypeError(f"memory_budget must be a number of bytes, got {memory_budget!r}.")
    if memory_budget < 1:
        raise ValueError(f"memory_budget must be a positive number of bytes, got {memory_budget!r}.")
    return int(memory_budget)


def probes_to_a_pass(per_probe: int, largest: int, cache: int, most: int) -> int:
    """How many probes go through the model at once, 1 to `most`.

    A probe holds `per_probe` bytes on its way, and its largest value has `largest`. Enough of them that calls of small
    functions do not count, and no more than the fast memory and the budget hold: what does not fit `cache` is fetched
    anew by every elementwise function, at no gain.
    """
    return max(1, min(most, cache // max(1, largest), budget() // max(1, per_probe)))


def columns(column: int, piece: int) -> int:
    """How many columns of `column` bytes to ask for at a time: whole pieces of those that go through the model at once.

    No more than are drawn, converted and turned around, four arrays of that size, within the fast memory.
    """
    return piece * max(1, FAST // (4 * column * piece))


def ran_out(error: BaseException) -> bool:
    """Whether `error` is an array library's word for having no memory left."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and any(
        words in said for words in ("RESOURCE_EXHAUSTED", "can't allocate memory", "not enough memory", "ut of memory")
    )


def recovering(product: Callable[..., Any]) -> Callable[..., Any]:
    """The product of a Jacobian within its budget; one that runs out of memory is made again, in smaller pieces."""

    @wraps(product)
    def run(J: Any, *args: Any) -> Any:
        while True:
            try:
                with within(J.memory_budget):
                    return product(J, *args)
            except Exception as error:
                if not ran_out(error) or not _halve(J):
                    raise

    return run


def _halve(J: Any) -> bool:
    """Whether there was something to halve."""
    held = BUDGET if J.memory_budget is None else J.memory_budget
    if J.chunk_size == 1 and held // 2 < LEAST:
        return False
    J.chunk_size, J.memory_budget = max(1, J.chunk_size // 2), max(LEAST, held // 2)
    warnings.warn(
        f"out of memory: going on with chunk_size={J.chunk_size} and memory_budget={J.memory_budget}. Give these "
        "from the start to save the attempts.",
        RuntimeWarning,
        stacklevel=4,
    )
    return True
