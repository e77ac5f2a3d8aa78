"""The protocols, and `Operator`: a bundle of products with lazy algebra on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import isfunction
from numbers import Number, Real
from typing import Any, Protocol, runtime_checkable

import numpy as np

from traceest import _array_api as aa
from traceest._boundary import public
from traceest._names import Names
from traceest.operators.boundary import Guarded, Promise, is_ours, plain_array

Array = Any
Product = Callable[[Array], Array]


class _Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    def dtype(self) -> Any:
        """Of the products."""

    @property
    def device(self) -> Any:
        """Where products are taken."""

    def __array_namespace__(self, *, api_version: str | None = None) -> Any: ...


@runtime_checkable
class LinearOperator(_Shaped, Protocol):
    """A matrix A, (n_rows, n_cols), known by its products alone.

    `shape`, `dtype`, `device` and `__array_namespace__` mean what they mean for an array.
    """

    def matmat(self, X: Array, /) -> Array:
        """A X: (n_cols, k) → (n_rows, k)."""


@runtime_checkable
class Jacobian(_Shaped, Protocol):
    """An operator J that may have only one of its sides.

    `matmat` is a forward-mode product (a jvp) a column and `rmatmat`, (n_rows, k) → (n_cols, k), a
    reverse-mode product (a vjp) a column. A side that an object has not got is not an attribute of it.

    Optional abilities, found by their presence:

    ``n_blocks``
        Rows fall into this many contiguous runs of equal length (one an example).
    ``block_rmatmat(V)``
        (n_rows, k) → (n_blocks, k, n_cols): J_bᴴ v_b of every block by itself, for the cost of k vjps.
    ``block_sqnorms(V)``
        (n_rows, k) → (n_blocks, k): ‖J_bᴴ v_b‖².
    ``sketch_gram(V)``
        (n_rows, k) → (n_blocks, k, n_blocks, k): ⟨J_bᴴ v_{b,i}, J_cᴴ v_{c,j}⟩, with no n_cols×k array.
    ``gram_matmat(V)``
        (n_rows, k) → (n_rows, k): J(Jᴴ V) in one go.
    ``parameters`` and ``grouped_gram(V, groups)``
        Names of runs of columns, one an array of parameters; and of V, (n_rows, k), and tuples of indices into
        them, (n_groups, n_blocks, k, n_blocks, k): the `sketch_gram` of each group's columns.
    ``block_sketch(V)`` and ``sketch_bytes``
        The J_bᴴ v_b in whatever form suits, for inner products between the parts of a stack (`vstack`), and what
        those of one probe take; see `traceest.operators.sketched.BlockSketch`.
    ``chunk_columns``
        How many columns at a time are multiplied with least time a column, where that is fewer than fit memory.
    """


SIDES = ("matmat", "rmatmat")
ABILITIES = ("block_rmatmat", "block_sqnorms", "sketch_gram", "grouped_gram", "gram_matmat")


class Operator:
    """A linear operator made of the products it is given; also the base class of all others here.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns.
    like : array or operator
        Gives namespace, dtype and device.
    matmat, rmatmat : callable, optional
        (n_cols, k) → (n_rows, k), and its adjoint. A side not given does not exist on the object.
    symmetric, psd : bool
        What is known of the operator: self-adjoint; and positive semidefinite too.
    n_blocks, parameters : optional
        See `Jacobian`.
    name : str
        For `repr`.
    **abilities : callable
        Optional abilities, see `Jacobian`.

    Notes
    -----
    ``A + B``, ``A - B``, ``c * A``, ``A / c``, ``A @ B``, ``A ** p``, ``A.T`` and ``A.H`` are lazy; ``A @ X`` with
    an array is a product.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = te.Operator((3, 3), like=np.zeros(0), matmat=lambda X: 2 * X, psd=True)
    >>> float(te.trace(A + A))
    12.0
    """

    __array_ufunc__ = None  # so that numpy_scalar * A comes to A.__rmul__
    shape: tuple[int, int]
    dtype: Any
    device: Any
    matmat: Product
    rmatmat: Product
    block_rmatmat: Product
    block_sqnorms: Product
    sketch_gram: Product
    grouped_gram: Callable[[Array, tuple[tuple[int, ...], ...]], Array]
    gram_matmat: Product

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Products run under a framework's default settings, whatever is set where they are asked for."""
        super().__init_subclass__(**kwargs)
        for name in (*SIDES, *ABILITIES):
            if isfunction(product := cls.__dict__.get(name)):
                setattr(cls, name, public(product, marks=False))

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        like: Any,
        matmat: Product | None = None,
        rmatmat: Product | None = None,
        symmetric: bool = False,
        psd: bool = False,
        n_blocks: int | None = None,
        parameters: Iterable[str] = (),
        name: str = "Operator",
        **abilities: Callable[..., Array] | None,
    ) -> None:
        self.shape = (int(shape[0]), int(shape[1]))
        self._xp, self.dtype, self.device = aa.namespace(like), like.dtype, aa.device(like)
        self.symmetric, self.psd, self.name = symmetric or psd, psd, name
        self.n_blocks, self.parameters = n_blocks, parameters if isinstance(parameters, Names) else Names(parameters)
        if unknown := abilities.keys() - set(ABILITIES):
            raise TypeError(
                f"Operator: unknown products {', '.join(sorted(unknown))}; known are matmat, rmatmat, "
                f"{', '.join(ABILITIES)}."
            )
        guard = type(self) is Operator or not is_ours(self)
        promise = Promise(self.shape, self.dtype, n_blocks, name)
        for side, product in {"matmat": matmat, "rmatmat": rmatmat, **abilities}.items():
            if product is not None:
                guarded = not guard or (isinstance(product, Guarded) and product.promise == promise)
                setattr(self, side, product if guarded else Guarded(product, side, promise))

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        return self._xp

    def __repr__(self) -> str:
        sides = ", ".join(s for s in ("matmat", "rmatmat") if hasattr(self, s)) or "no product"
        blocks = f", n_blocks={self.n_blocks}" if self.n_blocks else ""
        return f"<{self.name} {self.shape[0]}×{self.shape[1]}, {self.dtype}, {sides}{blocks}>"

    # -- lazy algebra --------------------------------------------------------------------------
    @property
    def H(self) -> Operator:
        """The adjoint: the two sides change places."""
        from traceest.operators.adjoint import Adjoint

        return Adjoint(self)

    @property
    def T(self) -> Operator:
        """The transpose (of a complex operator: not the adjoint, which is `H`)."""
        if not aa.is_complex(self._xp, self.dtype):
            return self.H
        conj = self._xp.conj
        adjoint = self.H
        return _build(f"{self.name}ᵀ", adjoint.shape, (adjoint,), lambda f: lambda X: conj(f(conj(X))))

    def __add__(self, other: Any) -> Operator:
        other = _operand(other)
        if other is NotImplemented:
            return NotImplemented
        check_addends(self, other)
        return _build(
            "A+B",
            self.shape,
            (self, other),
            lambda f, g: lambda X: f(X) + g(X),
            symmetric=self.symmetric and other.symmetric,
            psd=self.psd and other.psd,
        )

    __radd__ = __add__

    def __mul__(self, c: Any) -> Operator:
        if not (isinstance(c, Number) or getattr(c, "shape", None) == ()):
            return NotImplemented
        if isinstance(c, Number):
            number: Any = c  # `Number` promises no conjugate, though all numbers have one
            is_real, conj_c = isinstance(c, Real), number.conjugate()
        else:
            xp = aa.namespace(c)
            is_real, conj_c = not aa.is_complex(xp, c.dtype), aa.conj(xp, c)
        adjoint = public(lambda X: conj_c * self.rmatmat(X), marks=False)
        return Derived(
            self.shape,
            like=self,
            matmat=public(lambda X: c * self.matmat(X), marks=False) if hasattr(self, "matmat") else None,
            rmatmat=adjoint if hasattr(self, "rmatmat") else None,
            symmetric=self.symmetric and is_real,
            psd=self.psd and isinstance(c, Real) and float(c) >= 0,
            name="c·A",
        )

    __rmul__ = __mul__

    def __truediv__(self, c: Any) -> Operator:
        return self * (1 / c)

    def __neg__(self) -> Operator:
        return self * -1.0

    def __sub__(self, other: Any) -> Operator:
        other = _operand(other)
        return NotImplemented if other is NotImplemented else self + (-other)

    def __rsub__(self, other: Any) -> Operator:
        other = _operand(other)
        return other if other is NotImplemented else other - self

    @public(marks=False)
    def __rmatmul__(self, X: Array) -> Any:
        if getattr(X, "ndim", None) not in (1, 2):
            return NotImplemented
        if not aa.is_array(X):  # a sparse matrix
            other = _operand(X)
            return other if other is NotImplemented else other @ self
        X = plain_array(X, "X @ A") if isinstance(X, np.ndarray) else X
        if X.shape[-1] != self.shape[0]:
            raise ValueError(f"X @ A: X has {X.shape[-1]} columns, expected {self.shape[0]} (A is {self.shape}).")
        rows = X if X.ndim == 2 else X[None, :]
        product = aa.adjoint(self._xp, self.rmatmat(aa.adjoint(self._xp, rows)))
        return product if X.ndim == 2 else product[0, :]

    def __matmul__(self, other: Any) -> Any:
        if getattr(other, "ndim", None) in (1, 2) and aa.is_array(other):
            return self._apply(plain_array(other, "A @ X") if isinstance(other, np.ndarray) else other)
        other = _operand(other)
        if other is NotImplemented:
            return NotImplemented
        if self.shape[1] != other.shape[0]:
            raise ValueError(f"A @ B: {self.shape} and {other.shape} do not chain; A's columns must be B's rows.")
        check_compatible(self, other, "A @ B")
        from traceest.operators.algebra import Product

        return Product(self, other)

    def __pow__(self, p: Any) -> Operator:
        from traceest.operators.algebra import power

        return power(self, p)

    @public(marks=False)
    def _apply(self, X: Array) -> Array:
        if X.shape[0] != self.shape[1]:
            raise ValueError(f"A @ X: X has {X.shape[0]} rows, expected {self.shape[1]} (A is {self.shape}).")
        return self.matmat(X) if X.ndim == 2 else self.matmat(X[:, None])[:, 0]


class Derived(Operator):
    """Products made of those of other operators, which are guarded where they enter."""


def check_compatible(A: Any, B: Any, where: str) -> None:
    """Raise unless `A` and `B` share dtype and device: mixing would convert or copy silently."""
    if A.dtype != B.dtype:
        raise TypeError(f"{where}: dtypes {A.dtype} and {B.dtype} differ; convert one of them first.")
    if aa.devices_differ(A, B):
        raise TypeError(f"{where}: devices {aa.device(A)} and {aa.device(B)} differ; move one of them first.")


def check_addends(A: Any, B: Any) -> None:
    """Raise unless `A` and `B` can be added."""
    if A.shape != B.shape:
        raise ValueError(f"A + B: shapes {A.shape} and {B.shape} differ; operators are added shape to shape.")
    check_compatible(A, B, "A + B")


def _operand(other: Any) -> Any:
    from traceest.operators.convert import aslinearoperator, is_convertible

    return aslinearoperator(other) if is_convertible(other) else NotImplemented


def _build(
    name: str, shape: tuple[int, int], operands: tuple[Any, ...], combine: Callable[..., Product], **known: Any
) -> Operator:
    """An operator whose every side is `combine` of its operands' same sides, where all have it."""
    sides: dict[str, Any] = {
        side: public(combine(*(getattr(A, side) for A in operands)), marks=False)
        if all(hasattr(A, side) for A in operands)
        else None
        for side in SIDES
    }
    return Derived(shape, like=operands[0], name=name, **sides, **known)
