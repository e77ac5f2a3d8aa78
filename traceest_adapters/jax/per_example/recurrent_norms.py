"""Norms of the gradients by a recurrent cell's weights, unit by unit: quadratic forms of derivatives by states.

Where a step goes from its products to the new carry entry by entry, as the gates of all usual cells do, unit j's
derivative by entry q of a product at step t is a number C_tqj of that step times λ_tj = ∂/∂h_tj, whatever the probe,
and the gradient's row is Σ_t C_tqj λ_tj a_tᵀ, with the product's other operand a. So

    Σ_q ‖row‖² = λ_jᵀ N_j λ_j,   N_j[t, t′] = Σ_q C_tqj C_t′qj ⟨a_t, a_t′⟩,

over all weights and biases of the cell at once, N_j being the same for all probes: 2T² operations a unit instead of
those of all gates and operands, and no derivative by a product is formed.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from traceest_adapters import _memory as memory
from traceest_adapters.jax.per_example import bptt, factors
from traceest_adapters.jax.per_example.rules import Use

Entries = tuple[tuple[int, ...], ...]
"""Of each unit, those entries of a product that make up its new state."""


class Cell(NamedTuple):
    """Which entries of the carry are units, and by leaf, the entries of the only product with it."""

    states: tuple[int, ...]
    entries: tuple[tuple[int, Entries], ...]
    reverse: bool

    @property
    def leaves(self) -> tuple[int, ...]:
        """Whose norms the units give."""
        return tuple(leaf for leaf, _ in self.entries)

    def chosen(self, among: set[int]) -> Cell | None:
        """The same of some leaves only."""
        kept = tuple((leaf, entries) for leaf, entries in self.entries if leaf in among)
        return self._replace(entries=kept) if kept else None

    def units(self, states: Any, axis: int) -> Any:
        """The units' among all entries of the carry."""
        every = self.states == tuple(range(states.shape[axis]))
        return states if every else jnp.take(states, np.array(self.states), axis)


# -- which entries make up which unit ------------------------------------------------------------------------------
ENTRYWISE = frozenset({
    "abs", "add", "add_any", "atan2", "cbrt", "ceil", "clamp", "convert_element_type", "copy", "cos", "cosh", "div",
    "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le",
    "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "pow", "reduce_precision", "rsqrt", "select_n",
    "sign", "sin", "sinh", "sqrt", "square", "sub", "tan", "tanh",
})  # fmt: skip
INSIDE = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr"}


def made_of(closed: Any) -> tuple[list[Any], list[Any]]:
    """Which class every entry of a function's arguments is in, and every entry of its results (−1: in none).

    Entries of arguments that an entry of a result may depend on are of one class.
    """
    from scipy.sparse import coo_array  # a fifth of a second, not paid for but where there is a loop
    from scipy.sparse.csgraph import connected_components

    sizes = [prod(aval.shape) for aval in closed.in_avals]
    starts = np.cumsum([0, *sizes])
    arguments = [np.arange(a, b).reshape(v.shape) for a, b, v in zip(starts, starts[1:], closed.in_avals, strict=False)]
    joined: list[Any] = [np.zeros((0, 2), int)]
    results = _follow(closed.jaxpr, arguments, joined)
    pairs = np.concatenate(joined)
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(starts[-1], starts[-1]))
    label = np.append(connected_components(graph, directed=False)[1], -1)
    return [label[a] for a in arguments], [label[r] for r in results]


def _follow(jaxpr: Any, arguments: list[Any], joined: list[Any]) -> list[Any]:
    """An argument's entry that each entry of the results is made of, −1 for none; those `joined` are of one class."""
    env = dict(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return _none(atom) if isinstance(atom, Literal) or atom not in env else env[atom]

    for eqn in _needed(jaxpr):
        inputs, name = [read(atom) for atom in eqn.invars], eqn.primitive.name
        if all((a < 0).all() for a in inputs):
            continue
        if name in INSIDE:
            outputs = _follow(eqn.params[INSIDE[name]].jaxpr, inputs, joined)
        elif name in ENTRYWISE:
            outputs = [_joined(inputs, eqn.outvars[0].aval.shape, joined)]
        else:
            outputs = _moved(name, eqn, inputs) or _mixed(eqn, inputs, joined)
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _none(var: Any) -> Any:
    return np.full(var.aval.shape, -1)


def _needed(jaxpr: Any) -> list[Any]:
    """The equations that the results are made by."""
    live, kept = {v for v in jaxpr.outvars if not isinstance(v, Literal)}, []
    for eqn in reversed(jaxpr.eqns):
        if not live.isdisjoint(eqn.outvars):
            kept.append(eqn)
            live.update(v for v in eqn.invars if not isinstance(v, Literal))
    return kept[::-1]


def _joined(inputs: list[Any], shape: tuple[int, ...], joined: list[Any]) -> Any:
    out = np.full(shape, -1)
    for a in inputs:
        both = (out >= 0) & (a >= 0)
        joined.append(np.stack([out[both], np.broadcast_to(a, shape)[both]], -1))
        out = np.where(out >= 0, out, a)
    return out


def _mixed(eqn: Any, inputs: list[Any], joined: list[Any]) -> list[Any]:
    """Where entries come together otherwise than one by one, all of them may."""
    entries = np.unique(np.concatenate([a.ravel() for a in inputs]))
    entries = entries[entries >= 0]
    joined.append(np.stack([entries[:-1], entries[1:]], -1))
    return [np.full(v.aval.shape, entries[0]) for v in eqn.outvars]


def _moved(name: str, eqn: Any, inputs: list[Any]) -> list[Any]:
    """The results of an equation that moves entries only."""
    p, shape, a = eqn.params, eqn.outvars[0].aval.shape, inputs[0]
    if name == "concatenate":
        return [np.concatenate(inputs, p["dimension"])]
    if (name == "reshape" and p["dimensions"] is None) or name in ("squeeze", "expand_dims"):
        return [a.reshape(shape)]
    if name == "broadcast_in_dim":
        at = p["broadcast_dimensions"]
        return [np.broadcast_to(a.reshape([a.shape[at.index(i)] if i in at else 1 for i in range(len(shape))]), shape)]
    if name == "transpose":
        return [a.transpose(p["permutation"])]
    if name == "slice":
        strides = p["strides"] or (1,) * a.ndim
        return [a[tuple(map(slice, p["start_indices"], p["limit_indices"], strides))]]
    if name == "split":
        return np.split(a, np.cumsum(p["sizes"])[:-1], p["axis"])
    if name == "rev":
        return [np.flip(a, p["dimensions"])]
    return []


def cell(uses: list[Use], made: Any, length: int, reverse: bool, examples: int, itemsize: int) -> Cell | None:
    """The units of a loop of which one step has these uses; `made` is the step as a function of taps at them.

    It returns the carry, as one vector, and then what else it makes of the taps if the carry is given.
    """
    taps, (carry, *others) = made_of(made)
    labels, first, counts = np.unique(carry, return_index=True, return_counts=True)
    leaking = np.concatenate([np.zeros(0, int), *(r.ravel() for r in others)])
    units = {
        int(i): int(j) for i, j, n in zip(labels, first, counts, strict=True) if n == 1 and i not in {-1, *leaking}
    }
    found: dict[int, tuple[tuple[int, ...], Entries]] = {}
    for use, label in zip(uses, taps, strict=True):
        row = _arranged(use, label)
        alone = [u.leaf for u in uses].count(use.leaf) == 1
        if row is None or not alone or not set(row.tolist()) <= set(units):
            continue
        states = np.array([units[i] for i in row.tolist()])
        of_units = [np.flatnonzero(states == j) for j in np.unique(states)]
        if len({len(e) for e in of_units}) == 1:
            found[use.leaf] = tuple(int(j) for j in np.unique(states)), tuple(tuple(map(int, e)) for e in of_units)
    together, entries = _grouped(found)
    inputs = {use.leaf: prod(use.shape[axis] for axis, _ in use.into if axis is not None) for use in uses}
    work = sum(len(e[0]) * inputs[leaf] for leaf, e in entries)
    fits = examples * len(together) * length**2 * itemsize <= memory.budget() // 4
    return Cell(together, entries, reverse) if fits and work > length else None


def _arranged(use: Use, label: Any) -> Any:
    """Entries of a product's result in the order of `layers.Outer`, where a step has one position; or nothing."""
    out = [z for _, z in sorted((axis, z) for axis, z in use.out if axis is not None)]
    others = [i for i in range(label.ndim) if i not in out]
    several = use.loops[-1] is not None or use.groups or any(label.shape[i] != 1 for i in others)
    if use.table is not None or use.conv is not None or several:
        return None
    return label.transpose([*others, *out]).ravel()


def _grouped(found: dict[int, tuple[tuple[int, ...], Entries]]) -> tuple[tuple[int, ...], Any]:
    """The units that most leaves have, and these leaves."""
    states = max((s for s, _ in found.values()), key=lambda s: sum(s == t for t, _ in found.values()), default=())
    return states, tuple((leaf, e) for leaf, (s, e) in found.items() if s == states)


# -- forms ---------------------------------------------------------------------------------------------------------
class Forms(NamedTuple):
    """N_j of every example and unit, (B, units, T, T), times `scale`², (B,); and transitions, (B, T, H, H)."""

    N: Any
    scale: Any
    A: Any


def forms(cell: Cell, outers: list[factors.Outer]) -> tuple[Any, Any]:
    """N and scale of one example, from factors of each leaf's gradient, the left ones with λ = 1."""
    parts, scales = [], []
    for (_, entries), f in zip(cell.entries, outers, strict=True):
        C, a = f.left[0, :, 0][:, np.array(entries).T], f.right[0, :, 0]  # (T, q, units), (T, i)
        s, r = factors.largest(C), factors.largest(a)
        C, a = jnp.transpose(C / s, (2, 1, 0)), a / r
        parts.append(jnp.einsum("uqt,uqs->uts", C, C) * (a @ a.T))
        scales.append(s * r)
    scale = jnp.max(jnp.stack(scales))
    N: Any = 0.0
    for part, s in zip(parts, scales, strict=True):
        N = N + part * jnp.square(s / scale)
    return N, scale


def sqnorms(cell: Cell, forms: Forms, d: Any) -> Any:
    """‖g_{b,i}‖², over all leaves of the cell, from ∂/∂h_t past the loop itself, (c, B, T, H): (B, c)."""
    g = cell.units(bptt.adjoint_of_many(cell.reverse, forms.A.astype(d.dtype), d), 1)  # (B, units, T, c)
    scale = forms.scale[:, None]
    return jnp.maximum(jnp.sum((forms.N @ g) * g, (1, 2)), 0) * scale * scale
