"""What an operator declares: the products it has, what is known of it, and what stands in for a product it lacks."""

from __future__ import annotations

from collections.abc import Callable
from inspect import isfunction
from types import MethodType
from typing import Any

from traceest import _array_api as aa
from traceest._boundary import public
from traceest.operators.sketched import BlockSketch, Formed, Groups, itemsize

Array = Any
Product = Callable[[Array], Array]

SIDES = {"matmat": "matmat (forward mode, jvp)", "rmatmat": "rmatmat (reverse mode, vjp)"}
"""The two products of a matrix."""

ABILITIES = ("block_rmatmat", "block_sqnorms", "sketch_gram", "grouped_gram", "gram_matmat")
"""Further products, which an operator may declare; see `traceest.Jacobian`."""

PRODUCTS = (*SIDES, *ABILITIES)
DECLARED = (*PRODUCTS, "block_sketch")

WITHOUT = {
    "matmat": "rhutch, hutchinson of a Gram operator and the one-sided kernel statistics need rmatmat (vjps) alone",
    "rmatmat": "fhutch needs matmat (jvps) alone",
}
"""What can be estimated without a side."""


class MissingProduct(AttributeError, TypeError):
    """A product that an operator lacks was asked for: a TypeError, and an AttributeError, as any attribute's."""


def missing(A: Any, product: str, caller: str = "") -> str:
    """What an error says: the product, the reason why A lacks it, and the estimators that do without."""
    needs, reason = SIDES.get(product, product), A.lacks(product)
    found = f"{caller}: needs {needs}, which {A!r} lacks" if caller else f"{A!r} lacks {needs}"
    cure = f" {WITHOUT[product]}." if product in WITHOUT else ""
    return f"{found}{': ' if reason else ''}{reason}.{cure}"


class Declared:
    """A product as an attribute: the class's `own` where its operator does not lack it, or the `generic` one.

    Where there is no generic one either, reading the attribute raises `MissingProduct`.
    """

    def __init__(self, name: str, own: Any = None, generic: Any = None) -> None:
        self.name, self.own, self.__doc__ = name, own, own.__doc__
        self.generic = generic if isfunction(generic) else None

    def __get__(self, A: Any, owner: type | None = None) -> Any:
        if A is None:
            return self.own or self
        product = self.own if A.lacks(self.name) is None else self.generic
        if product is None:
            raise MissingProduct(missing(A, self.name))
        return MethodType(product, A)


class Abilities:
    """What every operator has: its products, and what is known of it, with None, False or 1 where nothing is.

    A subclass declares a product by defining it. Where it depends on the operator whether there is one, it says so by
    `lacks`. Products of blocks that are not declared are made of `rmatmat`, of all rows as one block.
    """

    shape: tuple[int, int]
    dtype: Any
    device: Any
    name: str
    symmetric: bool = False
    psd: bool = False
    factor: Any = None
    """J of a Gram operator JJᴴ."""
    n_blocks: int | None = None
    parameters: tuple[str, ...] = ()
    state_shape: tuple[int, ...] | None = None
    """Of the state whose entries the rows are, example first."""
    feature_axis: int = -1
    """Of `state_shape`, that of units or channels."""
    diagonal_blocks: int = 1
    """A is block diagonal with this many blocks of equal shape."""

    _products: frozenset[str] = frozenset()
    matmat: Product = Declared("matmat")  # type: ignore[assignment]
    rmatmat: Product = Declared("rmatmat")  # type: ignore[assignment]
    grouped_gram: Callable[[Array, Groups], Array] = Declared("grouped_gram")  # type: ignore[assignment]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Products run under a framework's default settings, whatever is set where they are asked for."""
        super().__init_subclass__(**kwargs)
        own = {name: cls.__dict__[name] for name in DECLARED if name in cls.__dict__}
        cls._products = cls._products | own.keys()
        for name, product in own.items():
            if isfunction(product):
                product = public(product, marks=False)
                depends = cls.lacks is not Abilities.lacks
                setattr(cls, name, Declared(name, product, Abilities.__dict__[name]) if depends else product)

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        raise NotImplementedError

    def lacks(self, product: str) -> str | None:
        """Why there is no such product of its own, "" if there is no more to say; None if there is one."""
        return None if product in self._products or product in self.__dict__ else ""

    @property
    def inner(self) -> Any:
        """What is multiplied by, and counted: J of a Gram operator JJᴴ, else the operator itself."""
        return self if self.factor is None else self.factor

    @property
    def chunk_columns(self) -> int | None:
        """How many columns at a time take the least time a column, where that is fewer than fit memory."""
        return None

    @property
    def sketch_bytes(self) -> int:
        """What the `block_sketch` of one probe takes."""
        return (self.n_blocks or 1) * self.shape[1] * itemsize(aa.namespace(self), self.dtype)

    def gram_matmat(self, V: Array) -> Array:
        """J(JᴴV): (n, k) → (n, k)."""
        return self.matmat(self.rmatmat(V))

    def block_rmatmat(self, V: Array) -> Array:
        """JᴴV of the one block: (n, k) → (1, k, P), k vjps."""
        return aa.namespace(V).matrix_transpose(self.rmatmat(V))[None, :, :]

    @public(marks=False)
    def block_sqnorms(self, V: Array) -> Array:
        """‖J_bᴴ v_{b,i}‖²: (n, k) → (B, k), k vjps."""
        xp = aa.namespace(V)
        return xp.sum(aa.abs2(xp, self.block_rmatmat(V)), axis=-1)

    @public(marks=False)
    def sketch_gram(self, V: Array) -> Array:
        """⟨J_bᴴ v_{b,i}, J_cᴴ v_{c,j}⟩: (n, k) → (B, k, B, k), k vjps."""
        xp = aa.namespace(V)
        g = self.block_rmatmat(V)
        B, k, P = g.shape
        g = xp.reshape(g, (B * k, P))
        return xp.reshape(aa.conj(xp, g) @ xp.matrix_transpose(g), (B, k, B, k))

    @public(marks=False)
    def block_sketch(self, V: Array) -> BlockSketch:
        """The J_bᴴ v_{b,i}, formed, for inner products between the parts of a stack."""
        return Formed(aa.namespace(V), self.block_rmatmat(V))


@public
def can(A: Any, product: str) -> bool:
    """Whether the operator A has the product named, as its own: ``can(J, "rmatmat")``.

    Parameters
    ----------
    A : Operator
        What `aslinearoperator` gives.
    product : str
        "matmat" or "rmatmat", or one of a Jacobian's abilities; see `Jacobian`.

    Returns
    -------
    bool
        False also where a generic product stands in for the ability. `A.lacks(product)` says why. A model may be
        traced, or run, to find out.

    Raises
    ------
    ValueError
        For another name.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = te.Operator((3, 3), like=np.zeros(0), matmat=lambda X: 2 * X)
    >>> te.can(A, "matmat"), te.can(A, "rmatmat")
    (True, False)
    """
    if product not in DECLARED:
        raise ValueError(f"can: unknown product {product!r}; known are {', '.join(DECLARED)}.")
    return bool(A.lacks(product) is None)


def lacked(*products: tuple[Any, str]) -> str | None:
    """What of these, pairs of an operator and a product, is lacking first, as `lacks` says it."""
    return next((why for A, product in products if (why := A.lacks(product)) is not None), None)
