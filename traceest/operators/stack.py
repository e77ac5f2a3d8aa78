"""One operator below the other: the Jacobian of more examples than fit into memory, from those of its batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, islice, pairwise
from typing import Any, NamedTuple

from traceest import _array_api as aa
from traceest import _progress
from traceest._boundary import public
from traceest.operators.abilities import can
from traceest.operators.base import Operator, check_compatible
from traceest.operators.blocks import n_blocks
from traceest.operators.convert import aslinearoperator
from traceest.operators.sketched import stacked_gram

COLUMNS_BYTES = 2**28
"""What the (n_cols, c) array between the two sides of ``gram_matmat`` may take."""

GRAM_BYTES = 2**36
"""The largest Gram array of sketches that is begun: 64 GiB."""


class Stack(Operator):
    """[J₁; J₂; …], see `vstack`."""

    def __init__(self, parts: Any, progress: bool = False) -> None:
        looks = list(map(_Look.of, _shown(parts.starting_at(0), progress, None)))
        if not looks:
            raise ValueError("vstack: there is nothing to stack; give at least one operator.")
        first = looks[0]
        for p, look in enumerate(looks):
            if look.like.shape[1] != first.like.shape[1]:
                raise ValueError(
                    f"vstack: part {p} has {look.like.shape[1]} columns and the first {first.like.shape[1]}; "
                    "operators that are stacked share their columns."
                )
            check_compatible(first.like, look.like, f"vstack, parts 0 and {p}")
        lengths = [look.like.shape[0] for look in looks]
        per_block = {n / look.n_blocks for n, look in zip(lengths, looks, strict=True)}
        names = {look.parameters for look in looks}
        super().__init__(
            (sum(lengths), first.like.shape[1]),
            like=first.like,
            n_blocks=sum(look.n_blocks for look in looks) if len(per_block) == 1 else None,
            parameters=names.pop() if len(names) == 1 else (),
            state_shape=_state_shape([look.state_shape for look in looks]),
            feature_axis=first.feature_axis,
            name="Stack",
        )
        self.parts, self.progress = parts, progress
        self._rows = list(pairwise(accumulate(lengths, initial=0)))
        self._sides = {"rmatmat": all(look.reverse for look in looks)}
        self._grouped = bool(self.parameters) and all(look.grouped for look in looks)

    def lacks(self, product: str) -> str | None:
        """As a part does."""
        if product not in ("matmat", "rmatmat", "gram_matmat", *_BLOCKWISE):
            return ""
        return None if self._has(product) else "a part lacks it, or blocks are not of equally many rows"

    def __repr__(self) -> str:  # without finding out what is not known yet
        blocks = f", n_blocks={self.n_blocks}" if self.n_blocks else ""
        return f"<Stack of {len(self._rows)}, {self.shape[0]}×{self.shape[1]}, {self.dtype}{blocks}>"

    def _has(self, product: str) -> bool:
        if product == "gram_matmat":
            return self._has("rmatmat") and self._has("matmat")
        if product in _BLOCKWISE:
            return self.n_blocks is not None and self._has("rmatmat") and (product != "grouped_gram" or self._grouped)
        if product not in self._sides:  # found when it is to be known: some parts pay for finding out
            some = islice(self.parts.starting_at(0), 1 if self.parts.alike else None)
            self._sides[product] = all(map(lambda J: can(J, product), some))  # noqa: C417 — a loop's name would keep it
        return self._sides[product]

    # -- a pass over the parts, of which one is there at a time ------------------------------------------
    def _each(self, start: int = 0) -> Iterator[Any]:
        return _shown(self.parts.starting_at(start), self.progress, len(self._rows) - start)

    def _by_part(self, product: Callable[[Any, Any], Any], V: Any) -> Iterator[Any]:
        """`product` of each part and its rows of V."""
        rows = iter(self._rows)
        for J in self._each():
            yield product(J, V[slice(*next(rows)), :])
            del J  # before the next one is made

    def matmat(self, X: Any) -> Any:
        """J X: every part's, one below the other."""
        found = []
        for J in self._each():
            found.append(J.matmat(X))
            del J
        return self._xp.concat(found, axis=0)

    def rmatmat(self, V: Any) -> Any:
        """Jᴴ V = Σ J_pᴴ V_p."""
        total = None
        for product in self._by_part(lambda J, v: J.rmatmat(v), V):
            total = product if total is None else total + product
        return total

    def gram_matmat(self, V: Any) -> Any:
        """J (Jᴴ V), as many columns at a time as leave the array between the two small; two passes each."""
        step = max(1, COLUMNS_BYTES // (self.shape[1] * self._xp.finfo(self.dtype).bits // 8))
        pieces = (V[:, i : min(i + step, V.shape[1])] for i in range(0, V.shape[1], step))
        return aa.concat_columns(self._xp, [self.matmat(self.rmatmat(U)) for U in pieces])

    # -- block by block ------------------------------------------------------------------------------------
    def block_rmatmat(self, V: Any) -> Any:
        """J_bᴴ v_b of the blocks of all parts."""
        return self._xp.concat(list(self._by_part(lambda J, v: J.block_rmatmat(v), V)), axis=0)

    def block_sqnorms(self, V: Any) -> Any:
        """Their squared norms."""
        return self._xp.concat(list(self._by_part(lambda J, v: J.block_sqnorms(v), V)), axis=0)

    def sketch_gram(self, V: Any) -> Any:
        """Their inner products, within and between the parts."""
        return self._gram(V, None)[0, ...]

    def grouped_gram(self, V: Any, groups: tuple[tuple[int, ...], ...]) -> Any:
        """The same over each group of columns."""
        return self._gram(V, groups)

    def _gram(self, V: Any, groups: tuple[tuple[int, ...], ...] | None) -> Any:
        B, k = self.n_blocks or 1, V.shape[1]
        size = (B * k) ** 2 * len(groups or (0,)) * self._xp.finfo(self.dtype).bits // 8
        if size > GRAM_BYTES:
            raise ValueError(
                f"the Gram array of {k} probes in {B:,} blocks would take {size / 2**30:,.0f} GiB; tell fewer blocks "
                "apart (of a model's batches, blocks='batch' makes each of them one), or take fewer probes. Traces "
                "need no such array."
            )
        return stacked_gram(self._xp, self._each, self._rows, V, groups)


_BLOCKWISE = ("block_rmatmat", "block_sqnorms", "sketch_gram", "grouped_gram")


@public
def vstack(operators: Iterable[Any], *, progress: bool = False) -> Stack:
    """[J₁; J₂; …], lazily: operators with the same columns, one below the other.

    A product goes through the parts one after the other, so that only one of them need exist at a time. Parts that are
    made on demand are: any iterable will do that can be gone through again, and gives equal operators each time. Of
    models and their batches, `jacobian(…, batches=…)` of the adapters makes it.

    * ``rmatmat`` is the sum of the parts', ``matmat`` has theirs below each other; ``gram_matmat`` is one after the
      other, two passes.
    * Blocks of rows are those of the parts (a part without any is one block), where all have equally many rows; else
      all rows are one block, and errors are larger for as many products.
    * Inner products of blocks' sketches, for norms and effective ranks, are of all pairs of parts. A GiB of sketches
      is held; where there are more, parts are gone through again for each further GiB.

    Parameters
    ----------
    operators : iterable
        Anything that `aslinearoperator` takes, (n_p, P) each. Not an iterator, which can be gone through only once.
    progress : bool
        Show a bar over the parts, one a pass (needs tqdm).

    Returns
    -------
    Stack, (Σ n_p, P)
        With the sides that all parts have. A pass over all parts is made to find out their shapes.

    Raises
    ------
    TypeError
        If `operators` is an iterator, or dtypes or devices differ.
    ValueError
        If there are none, or their columns differ; later, if sketches are asked for whose Gram array would take more
        than 64 GiB.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> J = np.random.default_rng(0).standard_normal((80, 30))
    >>> parts = [te.aslinearoperator(J[i : i + 32], n_blocks=len(J[i : i + 32]) // 4) for i in (0, 32, 64)]
    >>> K = te.gram(te.vstack(parts))
    >>> K.shape, K.factor.n_blocks
    ((80, 80), 20)
    >>> bool(np.isclose(float(te.frobenius_norm(K, 4)), np.linalg.norm(J @ J.T)))
    True
    """
    return Stack(_Parts.of(operators), progress)


class _Parts(NamedTuple):
    """The operators of an iterable, made anew in every pass; not `alike`: one may lack what another has."""

    operators: Any
    alike: bool = False

    @classmethod
    def of(cls, operators: Any) -> _Parts:
        if not (isinstance(operators, Iterable) or aa.is_indexed(operators)):
            raise TypeError(f"vstack: expected a sequence of operators, got {type(operators).__name__}.")
        if iter(operators) is operators:
            raise TypeError(
                f"vstack: a {type(operators).__name__} can be gone through only once, and every product goes through "
                "all parts; give list(...) of it, or a sequence that makes its items on demand."
            )
        return cls(operators)

    def starting_at(self, p: int) -> Iterator[Any]:
        """Part p and those after it."""
        if aa.is_indexed(self.operators):
            return map(aslinearoperator, (self.operators[i] for i in range(p, len(self.operators))))
        return map(aslinearoperator, islice(self.operators, p, None))


class _Shape(NamedTuple):
    """What remains of a part that was looked at: as `like`, without its products."""

    shape: tuple[int, int]
    dtype: Any
    device: Any
    xp: Any

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        return self.xp


class _Look(NamedTuple):
    """What is to be known of a part before any product."""

    like: _Shape
    n_blocks: int
    parameters: tuple[str, ...]
    state_shape: tuple[int, ...] | None
    feature_axis: int
    reverse: bool
    grouped: bool

    @classmethod
    def of(cls, J: Any) -> _Look:
        return cls(
            _Shape(tuple(J.shape), J.dtype, aa.device(J), aa.namespace(J)),
            n_blocks(J),
            J.parameters,
            J.state_shape,
            J.feature_axis,
            can(J, "rmatmat"),
            can(J, "block_sketch"),
        )


def _state_shape(shapes: list[Any]) -> tuple[int, ...] | None:
    """Of all examples, where they come first and all else is equal."""
    if any(not shape for shape in shapes) or len({tuple(shape[1:]) for shape in shapes}) > 1:
        return None
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _shown(parts: Iterator[Any], progress: bool, total: int | None) -> Iterator[Any]:
    """The same, with a bar that moves as they are done."""
    with _progress.bar(progress, total=total, unit="part") as bar:
        for J in parts:
            yield J
            del J  # before the next one is made
            bar.update(1)
