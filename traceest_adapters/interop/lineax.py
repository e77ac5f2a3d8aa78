"""Lineax' operators in and out (lineax ≥ 0.1).

>>> import jax.numpy as jnp, lineax as lx, traceest as te
>>> A = lx.MatrixLinearOperator(jnp.diag(jnp.arange(1.0, 5.0)), lx.positive_semidefinite_tag)
>>> float(te.trace(A))
10.0
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree

import traceest as te
from traceest import _array_api as aa
from traceest_adapters.interop._export import known_of, outgoing

UNTRANSPOSABLE = (NotImplementedError, TypeError, ValueError, AssertionError)
"""What JAX raises of a function that has no transpose: a callback, say, or a rule that is missing."""


def from_lineax(A: lx.AbstractLinearOperator) -> te.Operator:
    """A Lineax operator as one of traceest's, on JAX arrays; works inside `jax.jit` too.

    What `traceest.aslinearoperator`, and with it every estimator, calls when it is given one. Vectors are the
    structures' leaves one after the other, as in `A.as_matrix()`. A product of k columns is `jax.vmap` of `mv`; a
    `JacobianLinearOperator` is linearised once, at the cost of one evaluation of its function. The adjoint side is that
    of `A.T`, conjugated; where JAX cannot transpose, it is not there.

    Parameters
    ----------
    A : lineax.AbstractLinearOperator
        With structures of one floating dtype.

    Returns
    -------
    traceest.Operator, (out_size, in_size)
        Positive semidefinite if tagged so; self-adjoint if that, or tagged negative semidefinite, or symmetric and
        real.

    Raises
    ------
    TypeError
        If the leaves of its structures have several dtypes, or A is no operator.

    Examples
    --------
    >>> import jax.numpy as jnp, lineax as lx
    >>> A = from_lineax(lx.DiagonalLinearOperator({"a": jnp.ones(2), "b": jnp.zeros((3, 1))}))
    >>> A.shape, A.symmetric
    ((5, 5), True)
    """
    if not isinstance(A, lx.AbstractLinearOperator):
        raise TypeError(f"from_lineax: expected a lineax.AbstractLinearOperator, got {type(A).__name__}.")
    inside, outside = A.in_structure(), A.out_structure()
    dtype = _dtype(inside, outside)
    A = lx.linearise(A)
    psd = bool(lx.is_positive_semidefinite(A))
    real = not jnp.issubdtype(dtype, jnp.complexfloating)
    symmetric = psd or bool(lx.is_negative_semidefinite(A)) or (real and bool(lx.is_symmetric(A)))
    matmat = _columns(A.mv, inside)
    op = te.Operator(
        (A.out_size(), A.in_size()),
        like=jnp.zeros(0, dtype),
        matmat=matmat,
        rmatmat=matmat if symmetric else _adjoint(A, outside),
        symmetric=symmetric,
        psd=psd,
        name=type(A).__name__,
    )
    arrays = [x for x in jax.tree.leaves(A) if isinstance(x, jax.Array)]
    if arrays:
        op.device = aa.device(arrays[0])
    return op


def _dtype(*structures: Any) -> Any:
    found = {leaf.dtype for leaf in jax.tree.leaves(structures)}
    if len(found) != 1:
        raise TypeError(
            f"from_lineax: the operator's structures have leaves of {', '.join(sorted(map(str, found))) or 'no'} "
            "dtype, expected one for all; convert the arrays that it is made of to one dtype first."
        )
    return found.pop()


def _columns(mv: Callable[[Any], Any], structure: Any) -> Callable[[Any], Any]:
    """`mv` of every column, laid out as `structure`."""
    leaves, treedef = jax.tree.flatten(structure)
    ends = list(accumulate(leaf.size for leaf in leaves))[:-1]

    def vector(x: Any) -> Any:
        parts = [jnp.reshape(part, leaf.shape) for part, leaf in zip(jnp.split(x, ends), leaves, strict=True)]
        return ravel_pytree(mv(jax.tree.unflatten(treedef, parts)))[0]

    return jax.vmap(vector, in_axes=1, out_axes=1)


def _adjoint(A: Any, structure: Any) -> Callable[[Any], Any] | None:
    """X ↦ Aᴴ X = conj(Aᵀ conj X), or None where JAX cannot transpose A."""
    try:
        transposed = _columns(A.transpose().mv, structure)
    except UNTRANSPOSABLE:
        return None
    return lambda X: jnp.conj(transposed(jnp.conj(X)))


def to_lineax(A: Any) -> lx.FunctionLinearOperator:
    """A as a Lineax operator, for its solvers; works inside `jax.jit`, and derivatives pass through.

    ``lx.linear_solve(to_lineax(K + 0.1 * te.identity(n, like=K)), y, lx.CG(rtol=1e-6, atol=1e-6))``. Its transpose is
    JAX's of `A.matmat`.

    Parameters
    ----------
    A : operator, (n_rows, n_cols)
        Anything that `traceest.aslinearoperator` takes, of JAX arrays, with `matmat`.

    Returns
    -------
    lineax.FunctionLinearOperator
        Of vectors (n_cols,); tagged positive semidefinite, or symmetric, where A is known to be.

    Raises
    ------
    TypeError
        If A is not of JAX arrays, or has no `matmat`.

    Examples
    --------
    >>> import jax.numpy as jnp, lineax as lx, traceest as te
    >>> K = te.gram(jnp.eye(3)) + te.identity(3, like=jnp.zeros(0))
    >>> lx.linear_solve(to_lineax(K), jnp.ones(3), lx.CG(rtol=1e-6, atol=1e-6)).value.round(3).tolist()
    [0.5, 0.5, 0.5]
    """
    A = outgoing(A, "to_lineax", "JAX")
    known, real = known_of(A), not aa.is_complex(aa.namespace(A), A.dtype)
    tags = [lx.positive_semidefinite_tag] if known["psd"] else []
    if known["symmetric"] and real:  # Lineax means A = Aᵀ
        tags.append(lx.symmetric_tag)
    structure = jax.ShapeDtypeStruct((A.shape[1],), A.dtype)
    return lx.FunctionLinearOperator(lambda x: A.matmat(x[:, None])[:, 0], structure, tags)
