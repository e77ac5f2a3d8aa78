"""Equations whose derivative by a weight is known: which axes of operand and result make up its gradient.

For z = f(w, x), linear in w, the gradient of an example is a sum of outer products of δ = ∂/∂z and the operand x, over
the positions t that w is applied at: g = Σ_t δ_t x_tᵀ, in each of a number of groups of entries of w.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

BIAS = 2**12
"""Numbers that a parameter which is added may have: a tap at each step of a loop is as large, and more."""

Axes = tuple[int, ...]


class View(NamedTuple):
    """A value that is a parameter: leaf number `leaf`, in the shape `shape` (axes of length one left out).

    Axis i of the value is axis ``axes[i]`` of that, or one along which nothing changes (None). `loops` has an entry
    for every scan around: the axis of which each step has a slice, or None. `scale` is a number times it.
    """

    leaf: int
    shape: Axes
    axes: tuple[int | None, ...]
    scale: Any = None
    loops: tuple[int | None, ...] = ()


def in_scan(view: View | None, axis: int | None) -> View | None:
    """The view inside the body of a scan."""
    return None if view is None else view._replace(loops=(*view.loops, axis))


class Conv(NamedTuple):
    """A convolution, as needed for the patches that its kernel is applied to."""

    x_spec: Axes  # batch, channels, *space
    z_spec: Axes
    kernel: Axes
    strides: Axes
    padding: tuple[tuple[int, int], ...]
    x_dilation: Axes
    w_dilation: Axes
    groups: int


class Use(NamedTuple):
    """A use of a parameter: pairs of (axis of the operand, axis of the result) or of (axis of the weight, axis).

    A table that is looked up has its rows' numbers for operand, and in `table` how many rows there are.
    """

    leaf: int
    shape: Axes
    result: tuple[Axes, Any]  # shape and dtype of z
    rows: tuple[tuple[int, int], ...]  # positions: axes of x and z
    groups: tuple[tuple[int, int, int], ...]  # of w, x and z
    out: tuple[tuple[int | None, int], ...]  # of w and z
    into: tuple[tuple[int | None, int], ...]  # of w and x
    loops: tuple[int | None, ...]
    alone: tuple[Axes, Axes] = ((), ())  # further axes, of x and of z, that are summed over
    conv: Conv | None = None
    table: int | None = None
    outer: Axes = ()  # lengths of the scans around, the outermost first

    def looped(self, length: int) -> Use:
        """The use seen from outside the innermost scan that it is in, of that length."""
        axis, up = self.loops[-1], self._up()
        own = ((0, 0),) if axis is None else ()
        group = () if axis is None else ((axis, 0, 0),)
        return up._replace(
            loops=self.loops[:-1],
            result=((length, *self.result[0]), self.result[1]),
            rows=own + up.rows,
            groups=group + up.groups,
            outer=(length, *self.outer),
        )

    def _up(self) -> Use:
        """Every axis of operand and result one further."""
        shift = lambda pairs: tuple((a, *(i + 1 for i in axes)) for a, *axes in pairs)  # noqa: E731
        return self._replace(
            rows=tuple((x + 1, z + 1) for x, z in self.rows),
            groups=shift(self.groups),
            out=shift(self.out),
            into=shift(self.into),
            alone=(tuple(i + 1 for i in self.alone[0]), tuple(i + 1 for i in self.alone[1])),
        )

    @property
    def bias(self) -> bool:
        """Whether the parameter is added, not multiplied by."""
        return not self.into and self.conv is None

    @property
    def layout(self) -> Any:
        """Which axes of the weight are groups, and which of either side; equal ones have gradients that add."""
        groups = tuple(sorted(axis for axis, *_ in self.groups))
        sides = (tuple(sorted(a for a, _ in pairs if a is not None)) for pairs in (self.out, self.into))
        return (self.shape, groups, 1 if self.conv is None else self.conv.groups, *sides)

    @property
    def turned(self) -> Any:
        """The layout with its sides exchanged."""
        *rest, out, into = self.layout
        return (*rest, into, out)


def _dot_general(eqn: Any, which: int, view: View, x: Any) -> tuple[Use, Any]:
    contract, batch = eqn.params["dimension_numbers"]
    w_batch, x_batch = batch[which], batch[1 - which]
    w_contract, x_contract = contract[which], contract[1 - which]
    w_free = [i for i in range(len(view.axes)) if i not in (*w_batch, *w_contract)]
    x_free = [i for i in range(jnp.ndim(x)) if i not in (*x_batch, *x_contract)]
    first = len(w_batch)
    w_at, x_at = (first, first + len(w_free)) if which == 0 else (first + len(x_free), first)
    rows, groups, out, into, sum_x, sum_z = [], [], [], [], [], []
    for z, (w, i) in enumerate(zip(w_batch, x_batch, strict=True)):
        axis = view.axes[w]
        rows += [(i, z)] if axis is None else []
        groups += [] if axis is None else [(axis, i, z)]
    rows += [(i, x_at + j) for j, i in enumerate(x_free)]
    for j, w in enumerate(w_free):
        axis = view.axes[w]
        out += [] if axis is None else [(axis, w_at + j)]
        sum_z += [w_at + j] if axis is None else []
    for w, i in zip(w_contract, x_contract, strict=True):
        axis = view.axes[w]
        into += [] if axis is None else [(axis, i)]
        sum_x += [i] if axis is None else []
    return _use(eqn, view, rows, groups, out, into, alone=(tuple(sum_x), tuple(sum_z))), _scaled(x, view)


def _conv_general_dilated(eqn: Any, which: int, view: View, x: Any) -> tuple[Use, Any] | None:
    p = eqn.params
    x_spec, w_spec, z_spec = (tuple(spec) for spec in p["dimension_numbers"])
    w_shape = eqn.invars[1].aval.shape
    broadcast = any(axis is None and n != 1 for axis, n in zip(view.axes, w_shape, strict=True))
    if which != 1 or p["batch_group_count"] != 1 or broadcast:
        return None
    n, groups = len(w_spec) - 2, p["feature_group_count"]
    kernel = tuple(w_shape[i] for i in w_spec[2:])
    conv = Conv(
        x_spec,
        z_spec,
        kernel,
        tuple(p["window_strides"]),
        tuple((int(low), int(high)) for low, high in p["padding"]),
        tuple(p["lhs_dilation"]),
        tuple(p["rhs_dilation"]),
        groups,
    )
    # patches and results are brought to (batch, *space, group, channel, …), see `patches` and `channels_last`
    rows = [(i, i) for i in range(1 + n)] + [(1 + n, 1 + n)] * (groups == 1)
    into = [(view.axes[w], 2 + n + j) for j, w in enumerate(w_spec[1:])]
    out = [(view.axes[w_spec[0]], 2 + n)]
    split = [(-1, 1 + n, 1 + n)] * (groups > 1)
    return _use(eqn, view, rows, split, out, into, conv=conv), _scaled(x, view)


def _gather(eqn: Any, which: int, view: View, indices: Any) -> tuple[Use, Any] | None:
    p, shape = eqn.params, eqn.invars[0].aval.shape
    d, mode = p["dimension_numbers"], jax.lax.GatherScatterMode.from_any(p["mode"])
    modes = jax.lax.GatherScatterMode
    if which != 0 or len(d.start_index_map) != 1 or d.collapsed_slice_dims != d.start_index_map:
        return None
    (a,) = d.start_index_map
    whole = tuple(1 if i == a else n for i, n in enumerate(shape))
    plain = not (d.operand_batching_dims or d.start_indices_batching_dims) and None not in view.axes
    if not plain or view.scale is not None or tuple(p["slice_sizes"]) != whole:
        return None
    words, size = indices[..., 0], shape[a]
    if mode == modes.CLIP:
        words = jnp.clip(words, 0, size - 1)
    elif mode in (modes.FILL_OR_DROP, modes.PROMISE_IN_BOUNDS):
        words = jnp.where((words >= 0) & (words < size), words, -1)
    else:
        return None
    z_rows = [i for i in range(eqn.outvars[0].aval.ndim) if i not in d.offset_dims]
    kept = [axis for i, axis in enumerate(view.axes) if i != a]
    out = list(zip(kept, d.offset_dims, strict=True))
    use = _use(eqn, view, list(enumerate(z_rows)), [], out, [], table=size)
    return use._replace(into=((view.axes[a], -1),)), words


def _add(eqn: Any, which: int, view: View, x: Any) -> tuple[Use, Any] | None:
    """A bias in a loop, of which each step has a tap of its own as the products beside it have; not a large one."""
    if not view.loops or prod(view.shape) > BIAS:
        return None
    summed = tuple(z for z, axis in enumerate(view.axes) if axis is None)
    out = [(axis, z) for z, axis in enumerate(view.axes) if axis is not None]
    sign = -1 if eqn.primitive.name == "sub" and which == 1 else 1
    one = jnp.asarray(sign, eqn.outvars[0].aval.dtype)
    return _use(eqn, view, [], [], out, [], alone=((), summed)), _scaled(one, view)


def _use(eqn: Any, view: View, rows: Any, groups: Any, out: Any, into: Any, **more: Any) -> Use:
    z = eqn.outvars[0].aval
    rows, groups, out, into = (tuple(pairs) for pairs in (rows, groups, out, into))
    return Use(view.leaf, view.shape, (z.shape, z.dtype), rows, groups, out, into, view.loops, **more)


def _scaled(x: Any, view: View) -> Any:
    return x if view.scale is None else x * view.scale


RULES = {
    "dot_general": _dot_general,
    "conv_general_dilated": _conv_general_dilated,
    "gather": _gather,
    "add": _add,
    "sub": _add,
}


# -- a convolution's operand and result, as a dense layer's -----------------------------------------------
def patches(x: Any, conv: Conv) -> Any:
    """What the kernel is applied to at each position: (batch, *space, groups, channels/groups, *kernel)."""
    n = len(conv.kernel)
    x = jnp.transpose(x, (conv.x_spec[0], *conv.x_spec[2:], conv.x_spec[1]))
    inside = [(low, high, d - 1) for (low, high), d in zip(conv.padding, conv.x_dilation, strict=True)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *inside, (0, 0, 0)])
    for j, (k, s, d) in enumerate(zip(conv.kernel, conv.strides, conv.w_dilation, strict=True)):
        places = (x.shape[1 + j] - d * (k - 1) - 1) // s + 1
        index = s * jnp.arange(places)[:, None] + d * jnp.arange(k)  # (places, k)
        x = jnp.moveaxis(jnp.take(x, index, axis=1 + j), 2 + j, -1)
    return jnp.reshape(x, (*x.shape[: 1 + n], conv.groups, -1, *conv.kernel))


def channels_last(d: Any, conv: Conv) -> Any:
    """(batch, *space, groups, channels/groups) of a derivative by the result."""
    d = jnp.transpose(d, (conv.z_spec[0], *conv.z_spec[2:], conv.z_spec[1]))
    return jnp.reshape(d, (*d.shape[:-1], conv.groups, -1))
