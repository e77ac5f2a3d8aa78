"""The protocols; `Operator`, a bundle of products with lazy algebra on it; and `Delegating`, one made of another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Protocol, runtime_checkable

from traceest import _array_api as aa
from traceest._names import Names
from traceest.operators.abilities import ABILITIES, PRODUCTS, Abilities, Array, Declared, Product, can
from traceest.operators.boundary import Guarded, Promise, is_ours


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
    reverse-mode product (a vjp) a column. An object of a user's class lacks a side by not having the attribute;
    `aslinearoperator` reads once what there is, and what it returns says so to ``te.can(J, "rmatmat")``. Asking for a
    side that is missing raises a TypeError.

    Optional, and declared by being there:

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
    ``state_shape`` and ``feature_axis``
        The shape of the state whose entries the rows are, example first, and its axis of units or channels.
    ``chunk_columns``
        How many columns at a time are multiplied with least time a column, where that is fewer than fit memory.
    ``lacks(product)``
        Why a product that is an attribute does not exist all the same; None where it exists.
    """


class Operator(Abilities):
    """A linear operator made of the products it is given; also the base class of all others here.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns.
    like : array or operator
        Gives namespace, dtype and device.
    matmat, rmatmat : callable, optional
        (n_cols, k) → (n_rows, k), and its adjoint. A side that is not given is missing: ``te.can(A, "rmatmat")`` is
        False, and asking for it raises a TypeError.
    symmetric, psd : bool
        What is known of the operator: self-adjoint; and positive semidefinite too.
    n_blocks, parameters, state_shape, feature_axis : optional
        See `Jacobian`.
    name : str
        For `repr`.
    **abilities : callable
        Optional products, see `Jacobian`.

    Notes
    -----
    ``A + B``, ``A - B``, ``c * A``, ``A / c``, ``A @ B``, ``A ** p``, ``A.T`` and ``A.H`` are lazy; ``A @ X`` with
    an array is a product. They keep what is true of the result: ``P @ K @ P.H`` is symmetric, positive semidefinite,
    and a Gram operator, where K is.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = te.Operator((3, 3), like=np.zeros(0), matmat=lambda X: 2 * X, psd=True)
    >>> float(te.trace(A + A))
    12.0
    """

    __array_ufunc__ = None  # so that numpy_scalar * A comes to A.__rmul__
    algebra: ClassVar[Any]
    """`traceest.operators.algebra`, which enters itself here: what it makes are operators, and it needs this module."""

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
        state_shape: tuple[int, ...] | None = None,
        feature_axis: int = -1,
        name: str = "Operator",
        **abilities: Callable[..., Array] | None,
    ) -> None:
        self.shape = (int(shape[0]), int(shape[1]))
        self._xp, self.dtype, self.device = aa.namespace(like), like.dtype, aa.device(like)
        self.symmetric, self.psd, self.name = symmetric or psd, psd, name
        self.n_blocks, self.parameters = n_blocks, parameters if isinstance(parameters, Names) else Names(parameters)
        if state_shape is not None:
            self.state_shape, self.feature_axis = state_shape, feature_axis
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
        sides = ", ".join(s for s in ("matmat", "rmatmat") if can(self, s)) or "no product"
        blocks = f", n_blocks={self.n_blocks}" if self.n_blocks else ""
        return f"<{self.name} {self.shape[0]}×{self.shape[1]}, {self.dtype}, {sides}{blocks}>"

    # -- lazy algebra --------------------------------------------------------------------------
    @property
    def H(self) -> Any:
        """The adjoint: the two sides change places."""
        return self.algebra.Adjoint(self)

    @property
    def T(self) -> Any:
        """The transpose (of a complex operator: not the adjoint, which is `H`)."""
        return self.algebra.Transpose(self) if aa.is_complex(self._xp, self.dtype) else self.H

    def __add__(self, other: Any) -> Any:
        return self.algebra.add(self, other)

    __radd__ = __add__

    def __mul__(self, c: Any) -> Any:
        return self.algebra.multiply(self, c)

    __rmul__ = __mul__

    def __truediv__(self, c: Any) -> Any:
        return self * (1 / c)

    def __neg__(self) -> Any:
        return self * -1.0

    def __sub__(self, other: Any) -> Any:
        return self.algebra.subtract(self, other)

    def __rsub__(self, other: Any) -> Any:
        return self.algebra.subtract(other, self)

    def __matmul__(self, other: Any) -> Any:
        return self.algebra.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return self.algebra.rmatmul(self, other)

    def congruent(self, P: Any) -> Any:
        """P A Pᴴ, which is self-adjoint, or positive semidefinite, where A is."""
        return self.algebra.Product(
            self.algebra.Product(P, self), self.algebra.Adjoint(P), symmetric=self.symmetric, psd=self.psd
        )

    def __pow__(self, p: Any) -> Any:
        return self.algebra.power(self, p)


class Derived(Operator):
    """Products made of those of other operators, which are guarded where they enter."""


def _passed_on(name: str) -> Any:
    return Declared(name, lambda self, X, *groups: self._product(name, X, *groups), Abilities.__dict__[name])


class Delegating(Operator):
    """An operator made of another, `of`: it has the products that `of` has, and each is made by `_product`.

    Parameters
    ----------
    of : Operator
    shape : (int, int), optional
        Where it is not that of `of`.
    **known
        What is known of the one made, where it is not what is known of `of`; see `Operator`.
    """

    def __init__(self, of: Any, shape: tuple[int, int] | None = None, **known: Any) -> None:
        super().__init__(shape or of.shape, like=of, **{**known_of(of), **known})
        self.of = of

    def lacks(self, product: str) -> str | None:
        """As `of` does."""
        return self.of.lacks(product) if product in PRODUCTS else super().lacks(product)

    @property
    def chunk_columns(self) -> int | None:
        """As many as `of` prefers."""
        return self.of.chunk_columns

    def _product(self, name: str, X: Array, *groups: Any) -> Array:
        """The product `name` with X."""
        return getattr(self.of, name)(X, *groups)

    matmat, rmatmat, block_rmatmat, block_sqnorms, sketch_gram, grouped_gram, gram_matmat = map(_passed_on, PRODUCTS)


def known_of(A: Any) -> dict[str, Any]:
    """What is known of A, as arguments of `Operator`."""
    return {
        "symmetric": A.symmetric,
        "psd": A.psd,
        "n_blocks": A.n_blocks,
        "parameters": A.parameters,
        "state_shape": A.state_shape,
        "feature_axis": A.feature_axis,
        "name": A.name,
    }


def check_compatible(A: Any, B: Any, where: str) -> None:
    """Raise unless `A` and `B` share dtype and device: mixing would convert or copy silently."""
    if A.dtype != B.dtype:
        raise TypeError(f"{where}: dtypes {A.dtype} and {B.dtype} differ; convert one of them first.")
    if aa.devices_differ(A, B):
        raise TypeError(f"{where}: devices {aa.device(A)} and {aa.device(B)} differ; move one of them first.")
