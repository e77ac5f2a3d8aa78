"""Jacobians and Neural Tangent Kernels of JAX functions.

>>> import jax, jax.numpy as jnp, traceest as te
>>> from traceest_adapters.jax import ntk
>>> def apply(params, x):
...     return jnp.tanh(x @ params["w"]) @ params["v"]
>>> k1, k2, k3 = jax.random.split(jax.random.key(0), 3)
>>> params = {"w": jax.random.normal(k1, (5, 16)), "v": jax.random.normal(k2, (16, 3))}
>>> K = ntk(apply, params, jax.random.normal(k3, (20, 5)))
>>> K.shape
(60, 60)
>>> te.effective_rank(K, n_probes=2, rng=0).n_rmatvecs
2
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr

import traceest as te
from traceest_adapters import _jax_backend  # noqa: F401  (registers itself)
from traceest_adapters import _jax_checks as checks
from traceest_adapters import _jax_steps as steps
from traceest_adapters import _state as common
from traceest_adapters._jax_model import Model, traced

CHUNK = 4
"""Probes to a compiled step. On a CPU more gain little, since the examples fill the matrix products already."""


class JaxJacobian(te.Operator):
    """The Jacobian of a state with respect to parameters, (n, P), by vjps and jvps; see `jacobian`."""

    state_shape: tuple[int, ...] | None = None
    """Of the state, example first, where it is one array."""

    def __init__(
        self,
        model: Model,
        names: list[str],
        trained: list[Any],
        fixed: list[Any],
        inputs: Any,
        chunk_size: int | None,
    ) -> None:
        self.model, self.trained, self.fixed, self.inputs = model, trained, fixed, inputs
        state = jax.eval_shape(model.rows, trained, fixed, inputs)
        dtype = jnp.result_type(state.dtype, *trained)
        P = sum(p.size for p in trained)
        like = jnp.zeros((), dtype)
        n_blocks = None if model.batch_axis is None else state.shape[0]
        super().__init__((state.size, P), like=like, n_blocks=n_blocks, parameters=names, name="JaxJacobian")
        if not traced(trained):
            self.device = trained[0].device
        self.chunk_size = CHUNK if chunk_size is None else chunk_size
        self._B, self._state_dtype = state.shape[0], state.dtype

    # -- linearisations: computed once, used by every probe -----------------------------------------
    @cached_property
    def _vjp(self) -> Any:
        return steps.linearise_reverse(self.model, self.trained, self.fixed, self.inputs)

    @cached_property
    def _jvp(self) -> Any:
        return steps.linearise_forward(self.model, self.trained, self.fixed, self.inputs)

    @cached_property
    def _examples(self) -> Any:
        return self.model.example_first(self.inputs) if self.model.batch_axis is not None else self._alone

    @property
    def _alone(self) -> Any:
        return jax.tree.map(lambda x: jnp.asarray(x)[None], self.inputs)

    # -- products -----------------------------------------------------------------------------------
    def rmatmat(self, V: Any) -> Any:
        """Jᵀ V: (n, k) → (P, k), a vjp a column."""
        return self._by_chunks(lambda U: steps.rmatmat(self._vjp, U).astype(self.dtype), self._cotangents(V))

    def matmat(self, W: Any) -> Any:
        """J W: (P, k) → (n, k), a jvp a column."""
        leaves = self._tangents(W)
        return self._by_chunks(lambda T: steps.matmat(self._jvp, T).astype(self.dtype), leaves)

    def gram_matmat(self, V: Any) -> Any:
        """J Jᵀ V: (n, k) → (n, k), with no flat P×k array between the two."""
        step = lambda U: steps.gram_matmat(self._vjp, self._jvp, U).astype(self.dtype)  # noqa: E731
        return self._by_chunks(step, self._cotangents(V))

    def block_sqnorms(self, V: Any) -> Any:
        """‖J_bᵀ v_b‖²: (n, k) → (n_blocks, k), a scan over examples with the probes mapped inside."""
        if self._B == 1:
            return self._by_chunks(lambda U: steps.sqnorms(self._vjp, U).astype(self.dtype), self._cotangents(V))
        step = partial(steps.block_sqnorms, self.model, self.trained, self.fixed, self._examples)
        return self._by_chunks(lambda U: step(U).astype(self.dtype), self._cotangents(V))

    def block_rmatmat(self, V: Any) -> Any:
        """J_bᵀ v_b: (n, k) → (n_blocks, k, P); the one product that is as large as it says."""
        k, U = V.shape[1], self._cotangents(V)
        everything = tuple(range(len(self.trained)))
        parts = [self._block_grads(everything, piece) for piece in self._pieces(U)]
        return jnp.concatenate(parts, axis=1)[:, :k].astype(self.dtype)

    def sketch_gram(self, V: Any) -> Any:
        """⟨J_bᵀ v_{b,i}, J_cᵀ v_{c,j}⟩: (n, k) → (B, k, B, k), summed over all parameters."""
        return self.grouped_gram(V, (tuple(range(len(self.trained))),))[0]

    def grouped_gram(self, V: Any, groups: tuple[tuple[int, ...], ...]) -> Any:
        """The same over each group of parameters: (n, k) → (n_groups, B, k, B, k).

        Held at a time: the gradients of a run of parameters, chosen to fit half a GiB, for every example and probe; of
        one that is larger by itself, those of two pieces of the probes.
        """
        B, k, c = self._B, V.shape[1], self.chunk_size
        pieces = list(self._pieces(self._cotangents(V)))
        G = jnp.stack([self._gram(group, pieces) for group in groups])  # (n_groups, pieces, pieces, B, c, B, c)
        G = jnp.reshape(jnp.transpose(G, (0, 3, 1, 4, 5, 2, 6)), (-1, B, c * len(pieces), B, c * len(pieces)))
        return G[:, :, :k, :, :k].astype(self.dtype)

    def _gram(self, group: tuple[int, ...], pieces: list[Any]) -> Any:
        sizes, rows = [self.trained[i].size for i in group], self._B * self.chunk_size * len(pieces)
        G: Any = 0.0
        for run in common.groups(sizes, rows, self.dtype.itemsize):
            chosen = tuple(group[i] for i in run)
            fits = rows * sum(sizes[i] for i in run) * self.dtype.itemsize <= common.GROUP_BYTES
            grads = lambda piece, chosen=chosen: self._block_grads(chosen, piece)  # noqa: E731
            G = G + (_inner_products if fits else _inner_products_by_pairs)(grads, pieces)
        return G

    def _block_grads(self, group: tuple[int, ...], U: Any) -> Any:
        return steps.block_grads(self.model, group, self.trained, self.fixed, self._examples, U)

    # -- columns in chunks of one size, so that a new number of probes compiles nothing ----------------
    def _cotangents(self, V: Any) -> Any:
        """(n, k) → (k, B, n_b): probes lead, in the state's own dtype."""
        return jnp.reshape(V.T, (V.shape[1], self._B, -1)).astype(self._state_dtype)

    def _tangents(self, W: Any) -> list[Any]:
        """(P, k) → a (k, …) array for each parameter."""
        leaves, start = [], 0
        for p in self.trained:
            leaves.append(jnp.reshape(W[start : start + p.size].T, (W.shape[1], *p.shape)).astype(p.dtype))
            start += p.size
        return leaves

    def _pieces(self, U: Any) -> Iterator[Any]:
        """The probes of the pytree `U` in pieces of the chunk size, the last one filled up with zeros."""
        k, c = jax.tree.leaves(U)[0].shape[0], self.chunk_size
        fill = -k % c
        if fill:
            U = jax.tree.map(lambda u: jnp.concatenate([u, jnp.zeros((fill, *u.shape[1:]), u.dtype)]), U)
        for i, j in common.chunks(k + fill, c):
            yield jax.tree.map(lambda u, i=i, j=j: u[i:j], U)

    def _by_chunks(self, step: Callable[[Any], Any], U: Any) -> Any:
        """`step` of every piece, (…, c) each, joined to (…, k)."""
        k = jax.tree.leaves(U)[0].shape[0]
        parts = [step(piece) for piece in self._pieces(U)]
        return (parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1))[..., :k]


def _inner_products(grads: Callable[[Any], Any], pieces: list[Any]) -> Any:
    """⟨g_a, g_b⟩ for all pairs of pieces, whose gradients are all held: (pieces, pieces, B, c, B, c)."""
    g = [grads(piece) for piece in pieces]
    return jnp.stack([jnp.stack([steps.inner(a, b) for b in g]) for a in g])


def _inner_products_by_pairs(grads: Callable[[Any], Any], pieces: list[Any]) -> Any:
    """The same, two pieces' gradients held at a time and those of the second computed again for each first."""
    G: list[list[Any]] = [[None] * len(pieces) for _ in pieces]
    for i, piece in enumerate(pieces):
        g = grads(piece)
        for j in range(i, len(pieces)):
            G[i][j] = steps.inner(g, g if i == j else grads(pieces[j]))
            G[j][i] = jnp.transpose(G[i][j], (2, 3, 0, 1))
    return jnp.stack([jnp.stack(row) for row in G])


# -- the public calls -------------------------------------------------------------------------------------
def jacobian(
    fn: Callable[..., Any],
    params: Any,
    *inputs: Any,
    batch_axis: int | None = 0,
    output: Any = None,
    chunk_size: int | None = None,
    check: bool = True,
) -> JaxJacobian:
    """The Jacobian of ``fn(params, *inputs)`` with respect to `params`, as an operator (n, P).

    Nothing of its size is formed. The model is linearised once for all products with the whole batch; steps
    are compiled once for each model and shape, whatever the number of probes.

    Parameters
    ----------
    fn : callable
        ``fn(params, *inputs) → state``, any pytree of real floating arrays. Pass the same function object again
        (not a new lambda) and compiled steps are used again.
    params : pytree
        Floating leaves are the parameters, in the pytree's order; other leaves are passed through.
    *inputs : pytrees of arrays
        Their leaves all have the examples along `batch_axis`.
    batch_axis : int or None
        Axis of independent examples in inputs and state. Rows of the operator are ordered example first, so that
        each example is one block. None: no such axis, one block.
    output : int, str or callable, optional
        Which part of what `fn` returns is the state: an index, a key or attribute, or a function.
    chunk_size : int, optional
        Probes to a compiled step (4 if absent); fewer take less memory.
    check : bool
        Verify on this batch that examples are independent (outputs one by one against outputs together) and that
        the state depends on the parameters. Under `jax.jit`, where there are no values, only shapes are checked.

    Returns
    -------
    JaxJacobian
        With `matmat` (jvps), `rmatmat` (vjps), `gram_matmat` and the per-block abilities.

    Raises
    ------
    TypeError
        If there are no floating parameters, or the state is not real floating.
    ValueError
        If examples are not independent, an array has no `batch_axis`, or the state does not depend on `params`.

    Examples
    --------
    >>> import jax.numpy as jnp, traceest as te
    >>> J = jacobian(lambda w, x: x @ w, jnp.ones((3, 2)), jnp.eye(4, 3))
    >>> J.shape, J.n_blocks
    ((8, 6), 4)
    >>> float(te.exact(te.gram(J)))
    6.0
    """
    paths, treedef = jax.tree.flatten_with_path(params)
    leaves = [leaf for _, leaf in paths]
    leaves = [jnp.asarray(p) for p in leaves]
    trainable = tuple(bool(jnp.issubdtype(p.dtype, jnp.inexact)) for p in leaves)
    trained = [p for p, t in zip(leaves, trainable, strict=True) if t and p.size]
    trainable = tuple(t and p.size > 0 for p, t in zip(leaves, trainable, strict=True))
    fixed = [p for p, t in zip(leaves, trainable, strict=True) if not t]
    if not trained:
        raise TypeError(
            "jacobian: params has no floating leaf, so there is no trainable parameter to differentiate by."
        )
    if any(jnp.issubdtype(p.dtype, jnp.complexfloating) for p in trained):
        raise TypeError("jacobian: complex parameters; give real and imaginary parts as two real arrays.")
    inputs = jax.tree.map(jnp.asarray, inputs)
    model = Model(fn, output, batch_axis, trainable, treedef)
    state_shapes = checks.shapes(model, params, inputs)
    names = [keystr(path, simple=True, separator=".") or "params" for path, _ in paths]
    names = [name for name, t in zip(names, trainable, strict=True) if t]
    J = JaxJacobian(model, names, trained, fixed, inputs, chunk_size)
    J.state_shape = common.example_first(state_shapes, batch_axis)
    if check and not traced((trained, fixed, inputs)):
        checks.values(J)
    return J


def ntk(fn: Callable[..., Any], params: Any, *inputs: Any, **options: Any) -> te.Gram:
    """The empirical Neural Tangent Kernel K = J Jᵀ, ``te.gram(jacobian(...))``; arguments as for `jacobian`."""
    return te.gram(jacobian(fn, params, *inputs, **options))
