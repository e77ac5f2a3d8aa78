"""Batches of data that a model's Jacobian goes through again for every product, and finds the same each time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Literal

import traceest as te
from traceest import _array_api as aa
from traceest_adapters import _state as common
from traceest_adapters._calls import OURS

Blocks = Literal["example", "batch"]


class Batches:
    """What `select` takes of each batch of an iterable, as `convert` makes it.

    `digest` of it tells whether a later pass yields the same batches as the first. A list or tuple is not asked twice
    for its first batch before that, but what it holds may be overwritten. `whole` says that all of a batch goes to the
    model.

    Raises
    ------
    TypeError
        If the iterable can be gone through only once.
    ValueError
        If it is empty, or yields other batches when asked again.
    """

    def __init__(
        self,
        data: Any,
        select: Callable[[Any], Any],
        convert: Callable[[Any], Any],
        digest: Callable[[Any], Any],
        whole: bool = False,
    ) -> None:
        if isinstance(data, (Mapping, str)) or not (isinstance(data, Iterable) or aa.is_indexed(data)):
            raise TypeError(
                f"batches: expected an iterable of batches, a list or a data loader, got {type(data).__name__}."
            )
        if iter(data) is data:
            raise TypeError(
                f"batches: a {type(data).__name__} can be gone through only once, and every product needs all batches "
                "again; give list(...) of it, or a data loader."
            )
        self.data, self.select, self.convert, self.digest, self.whole = data, select, convert, digest, whole
        self.seen: list[Any] = []
        self.complete = False
        if not isinstance(data, (list, tuple)) and (first := self._look()) is not None and self._look() != first:
            raise _changed(0)  # before any work is done in vain

    def starting_at(self, p: int) -> Iterator[Any]:
        """The inputs of batch p and of those after it."""
        for batch in self._raw(p):
            inputs = self.convert(self.select(batch))
            self._recognise(p, inputs)
            del batch
            yield inputs
            del inputs  # before the next is made
            p += 1
        if p == 0:
            raise ValueError("batches: there is no batch; give at least one, of at least one example.")
        if self.complete and p != len(self.seen):
            raise _changed(p)
        self.complete = True

    def given_to_the_model(self) -> int:
        """How many inputs by position a batch gives where all of it goes to the model; else 0."""
        first = next(iter(self._raw(0)), None) if self.whole else None
        return len(first) if first is not None and aa.is_plain_sequence(first) else 0

    def _raw(self, p: int) -> Iterator[Any]:
        if aa.is_indexed(self.data):
            return (self.data[i] for i in range(p, len(self.data)))
        return islice(self.data, p, None)

    def _look(self) -> Any:
        return next((self.digest(self.convert(self.select(batch))) for batch in self._raw(0)), None)

    def _recognise(self, p: int, inputs: Any) -> None:
        digest = self.digest(inputs)
        if p == len(self.seen) and not self.complete:
            self.seen.append(digest)
        elif p >= len(self.seen) or digest != self.seen[p]:
            raise _changed(p)


class Parts:
    """The Jacobian of each batch, made when its turn comes: ``make(inputs, p)`` of the p-th."""

    alike = True
    """What one part can do, all can: they are of one model."""

    def __init__(self, batches: Batches, make: Callable[[Any, int], Any]) -> None:
        self.batches, self.make = batches, make

    def starting_at(self, p: int) -> Iterator[Any]:
        """The Jacobians of batch p and of those after it."""
        for i, inputs in enumerate(self.batches.starting_at(p), p):
            yield self.make(inputs, i)
            del inputs


def stacked(parts: Parts, blocks: Blocks, progress: bool) -> te.Stack:
    """The Jacobians of all batches, one below the other.

    Raises
    ------
    ValueError
        If batches are to be blocks and differ in size.
    TypeError
        If a batch is several inputs, which the model does not take.
    """
    try:
        J = te.Stack(parts, progress)
    except Exception as error:
        if (given := parts.batches.given_to_the_model()) > 1 and not OURS.match(str(error)):
            raise _pairs(given, error) from error
        raise
    if J.n_blocks is None and blocks == "batch":
        raise ValueError(
            "blocks='batch' needs batches of equal size, and these differ (the last is smaller, probably); choose a "
            "size that divides the number of examples, or leave the last out (drop_last=True)."
        )
    if J.n_blocks is None:
        warnings.warn(
            "the states of an example have other sizes in other batches, so that examples cannot be told apart as "
            "blocks of equal size: all are one block, and estimates need more probes. Pad all batches to one size.",
            RuntimeWarning,
            stacklevel=3,
        )
    return J


def of_inputs(data: Any, input: Any, convert: Callable[[Any], Any], digest: Callable[[Any], Any]) -> Batches:
    """Batches that are inputs, or of which `input` picks them."""
    return Batches(data, common.selector(input, "input"), convert, digest, whole=input is None)


def check_arguments(inputs: tuple[Any, ...], batches: Any, input: Any, blocks: str, progress: bool) -> None:
    """Raise unless the arguments that belong to `batches` come with it, and inputs without."""
    if blocks not in ("example", "batch"):
        raise ValueError(f"blocks must be 'example' or 'batch', got {blocks!r}.")
    if batches is not None and inputs:
        raise TypeError("jacobian: give inputs or batches=, not both; batches= holds all inputs.")
    if batches is None and (input is not None or blocks != "example" or progress):
        raise TypeError(
            "jacobian: input=, blocks= and progress= are for batches=; one batch takes no input= to be picked from it, "
            "and batch_axis=None makes it one block."
        )


def _pairs(n: int, error: Exception) -> TypeError:
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return TypeError(
        f"batches: each batch is a tuple of {n}, all given to the model as inputs, and it fails ({said}). "
        "Where a loader yields (input, target) pairs give input=0, which picks the input; of others an index, a key, "
        "or a function of the batch."
    )


def _changed(p: int) -> ValueError:
    return ValueError(
        f"batches: batch {p} is not what it was in the pass before, and every product needs the same data in the same "
        "order; give a loader with shuffle=False and without random augmentation (or a list of its batches, if they "
        "fit into memory)."
    )
