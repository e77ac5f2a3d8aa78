"""Models of one or more of JAX's own primitive harnesses: an example's state is op(x_b, w), a parameter w for each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from differential import Dense
from jax_reference import dense

EXAMPLES = 3
FORMS = ("argument", "elementwise", "matmul")
"""An argument itself is the parameter; or arguments are multiplied by one, entry by entry; or along the last axis."""

LARGEST, ROWS = 1500, 12
"""Numbers of an argument; and of a state, above which a fixed random projection of it is taken."""


@cache
def harnesses() -> dict[str, list[Any]]:
    """Those of float32 that run on a CPU, by primitive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from jax._src.internal_test_util import test_harnesses

    found: dict[str, list[Any]] = {}
    for h in test_harnesses.all_harnesses:
        if np.dtype(h.dtype) in (np.float32, np.float64) and h.filter("cpu"):
            found.setdefault(h.group_name, []).append(h)
    return found


def wide(x: Any) -> Any:
    """Floating and complex arrays in double precision, all else as it is."""
    if isinstance(x, (np.ndarray, np.generic, jax.Array)) and jnp.issubdtype(x.dtype, jnp.floating):
        return np.asarray(x, np.float64)
    return x


def floating(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype == np.float64 and x.size > 0


class Op(NamedTuple):
    """A harness as a function of an example's arrays and of one parameter."""

    name: str
    form: str
    example: Callable[[Any, list[Any]], Any]  # parameter and arrays → (n_b,)
    parameter: Any
    inputs: list[Any]  # (B, …) each


def op(harness: Any, form: str) -> Op | str:
    """The model of a harness in one form, or why there is none."""
    try:
        drawn = [[wide(x) for x in harness.dyn_args_maker(np.random.RandomState(seed))] for seed in range(EXAMPLES)]
    except Exception:
        return "cannot be drawn"
    at = [i for i, x in enumerate(drawn[0]) if floating(x)]
    if not at or any(drawn[0][i].size > LARGEST for i in at):
        return "without a floating argument" if not at else "too large"
    if any(np.shape(a) != np.shape(b) for one in drawn for a, b in zip(one, drawn[0], strict=True)):
        return "of shapes that vary"
    rng = np.random.default_rng(0)
    near = lambda shape: 1 + 0.05 * rng.standard_normal(shape)  # noqa: E731
    if form == "argument" and len(at) < 2:
        return "without a second argument"
    own = at[1] if form == "argument" else None
    # examples are drawn apart, but for what the harness has as a constant, which is moved a little
    batched = [i for i in at if i != own]
    inputs = [np.stack([one[i] * near(one[i].shape) for one in drawn]) for i in batched]
    first = drawn[0][at[0]]
    if form == "argument":
        parameter = drawn[0][own] * near(drawn[0][own].shape)
    elif form == "elementwise":
        parameter = near(first.shape)
    elif first.ndim and first.shape[-1] <= 32:
        parameter = np.eye(first.shape[-1]) + 0.05 * rng.standard_normal((first.shape[-1],) * 2)
    else:
        return "without a last axis"
    constants = drawn[0]

    def example(w: Any, arrays: list[Any]) -> Any:
        args = list(constants)
        for i, x in zip(batched, arrays, strict=True):
            args[i] = x
        if form == "argument":
            args[own] = w
        else:
            args[at[0]] = args[at[0]] * w if form == "elementwise" else args[at[0]] @ w
        return flat(harness.dyn_fun(*args))

    return Op(harness.fullname, form, example, jnp.asarray(parameter), [jnp.asarray(x) for x in inputs])


def flat(out: Any) -> Any:
    """The floating parts of what a primitive gives, as one vector that is not long."""
    parts: list[Any] = []
    for leaf in jax.tree.leaves(out):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            parts += [leaf.real, leaf.imag]
        elif jnp.issubdtype(leaf.dtype, jnp.floating):
            parts.append(leaf)
    if not parts:
        return jnp.zeros(0)
    y = jnp.concatenate([jnp.ravel(x).astype(float) for x in parts])
    if y.size <= ROWS:
        return y
    return jnp.asarray(np.random.default_rng(1).standard_normal((ROWS, y.size))) @ y


def reference(one: Op) -> Dense | str:
    """The dense Jacobian, example after example without a batch; or why there is none."""
    examples = [[x[b] for x in one.inputs] for b in range(EXAMPLES)]
    try:
        rows = lambda p: jnp.stack([one.example(p[0], e) for e in examples])  # noqa: E731
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not jax.eval_shape(rows, [one.parameter]).size:
                return "without a floating result"
            D = dense(rows, [one.parameter])
            near = np.asarray(jax.jit(rows)([one.parameter * (1 + 1e-9)]) - rows([one.parameter]))
    except Exception:
        return "not differentiable by JAX itself"
    if not np.isfinite(D.matrix).all():
        return "without a finite derivative"
    if not np.abs(D.matrix).max() or np.abs(D.matrix).max() > 1e8:
        return "without a derivative" if not np.abs(D.matrix).max() else "too steep"
    return D if np.abs(near).max() < 1e-4 else "not continuous"


def together(ops: list[Op], references: list[Dense]) -> Dense:
    """The Jacobian of the states of several side by side."""
    blocks = []
    P = sum(D.matrix.shape[1] for D in references)
    start = 0
    for D in references:
        A = D.matrix.reshape(EXAMPLES, -1, D.matrix.shape[1])
        wide = np.zeros((EXAMPLES, A.shape[1], P))
        wide[:, :, start : start + A.shape[2]] = A
        blocks.append(wide)
        start += A.shape[2]
    return Dense(np.concatenate(blocks, 1).reshape(-1, P), EXAMPLES, tuple(one.parameter.size for one in ops))


def model(ops: list[Op], mapped: bool) -> Callable[[Any, Any], Any]:
    """The function of all parameters and the whole batch: mapped over examples, or one after the other, stacked."""

    def example(params: Any, arrays: Any) -> Any:
        return jnp.concatenate([one.example(w, x) for one, w, x in zip(ops, params, arrays, strict=True)])

    if mapped:
        return lambda params, arrays: jax.vmap(example, in_axes=(None, 0))(params, arrays)

    def stacked(params: Any, arrays: Any) -> Any:
        n = jax.tree.leaves(arrays)[0].shape[0]
        one = lambda b: jax.tree.map(lambda x: x[b], arrays)  # noqa: E731
        return jnp.stack([example(params, one(b)) for b in range(n)])

    return stacked


def chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for i in range(0, len(items), size):
        yield items[i : i + size]
