"""The rules that rare models alone need: what is understood of them, without a look at values, and that it is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differential import compare, named, routes
from jax_reference import JAX, dense
from models import random

from traceest_adapters.jax import jacobian


class Case(NamedTuple):
    """A function with its parameters, a batch, and how many parameters are weights, small, and left to the rest."""

    fn: Callable[..., Any]
    params: Any
    x: Any
    expected: tuple[int, int, int]


def loop(step: Callable[[Any, Any, Any], Any], **how: Any) -> Callable[[Any, Any], Any]:
    """z ← step(p, z, x_t), all states returned."""

    def fn(p: Any, x: Any) -> Any:
        def body(z: Any, x: Any) -> Any:
            z = step(p, z, x)
            return z, z

        out = jax.lax.scan(body, jnp.zeros((x.shape[0], 3)), jnp.swapaxes(x, 0, 1), **how)[1]
        return jnp.swapaxes(out, 0, 1)

    return fn


def conv(w: Any, x: Any, **how: Any) -> Any:
    return jax.lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), **how)


U, V, B, C, STEPS = random(3, 3), random(3, 3, seed=1), random(3), random(3, seed=2), random(4, 5, 3)
CASES = {
    "a threshold subtracted in a loop": Case(
        loop(lambda p, z, x: jnp.tanh(x + z @ p["u"] - p["b"])), {"u": U, "b": B}, STEPS, (2, 0, 0)
    ),
    "subtracted from, in a loop": Case(
        loop(lambda p, z, x: jnp.tanh(p["b"] - (x + z @ p["u"]))), {"u": U, "b": B}, STEPS, (2, 0, 0)
    ),
    "added and subtracted": Case(
        loop(lambda p, z, x: jnp.tanh(x @ p["u"] + z @ p["v"] + p["b"]) - p["b"]),
        {"u": U, "v": V, "b": B},
        STEPS,
        (3, 0, 0),
    ),
    "added with a factor, backwards": Case(
        loop(lambda p, z, x: 0.5 * z + jnp.sin(x - 2 * p["b"] + z @ (p["u"] / 3)), reverse=True),
        {"u": U, "b": B},
        STEPS,
        (2, 0, 0),
    ),
    "a factor that is one parameter for all": Case(lambda p, x: jnp.sin(x @ (p["w"] / jnp.exp(p["s"]))),
                                                 {"w": U, "s": jnp.asarray(1.5)}, random(4, 3), (1, 1, 0)),
    "a kernel that all channels share": Case(lambda p, x: jnp.sin(conv(jnp.broadcast_to(p, (3, 2, 4)), x)),
                                             random(3, 1, 1), random(4, 5, 2), (0, 1, 0)),
    "a kernel that all results share": Case(lambda p, x: jnp.sin(conv(jnp.broadcast_to(p, (3, 2, 4)), x)),
                                            random(3, 2, 1), random(4, 5, 2), (0, 1, 0)),
    "a kernel that all places share": Case(lambda p, x: jnp.sin(conv(jnp.broadcast_to(p, (3, 2, 4)), x)),
                                           random(1, 2, 4), random(4, 5, 2), (0, 1, 0)),
    "a kernel of one channel and one result": Case(lambda p, x: jnp.sin(conv(p, x)), random(3, 1, 1),
                                                   random(4, 5, 1), (1, 0, 0)),
    "a parameter that the example's kernel is applied to": Case(
        lambda p, x: jax.vmap(lambda w: jnp.sin(conv(w, p)[0]))(x), random(1, 5, 2), random(4, 3, 2, 4), (0, 1, 0)),
    "a dilated operand, in groups": Case(
        lambda p, x: jnp.sin(jax.lax.conv_general_dilated(x, p, (2,), [(1, 2)], (2,), (2,), ("NWC", "WIO", "NWC"), 2)),
        random(2, 2, 6), random(4, 5, 4), (1, 0, 0)),
    "a table, far outside of it": Case(lambda p, x: jnp.sin(p.at[x].get(mode="fill", fill_value=0.5)), random(5, 3),
                                       jnp.asarray([[0, 7, 1], [2, 2, -9], [4, 4, 4]]), (1, 0, 0)),
    "a table, clipped": Case(lambda p, x: jnp.sin(p.at[x].get(mode="clip")), random(5, 3),
                             jnp.asarray([[0, 7, 1], [2, 2, 9], [4, 4, 4]]), (1, 0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_understood_and_that_it_is_right(name: str) -> None:
    case = CASES[name]
    leaves, tree = jax.tree.flatten(case.params)
    rows = lambda leaves: (lambda y: y.reshape(len(y), -1))(case.fn(jax.tree.unflatten(tree, leaves), case.x))  # noqa: E731
    D = dense(rows, leaves)
    J = jacobian(case.fn, case.params, case.x, check=False)
    plan = J._understood
    assert (len(plan.weights), len(plan.small), len(plan.rest)) == case.expected
    wanted = ("block_sqnorms", "sketch_gram", "grouped_gram")
    for outcome in compare(lambda: J, D, named(routes(D, JAX, (3, 9)), wanted), JAX):
        assert outcome == (outcome.route, None, None)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_a_constant_state_is_not_a_kernel(scale: float) -> None:
    """Where nothing depends on the parameters there is an error, and none where little does."""
    x = random(4, 3)
    with pytest.raises(ValueError, match="depend"):
        jacobian(lambda p, x: jnp.sin(x) + 0 * jnp.sum(p), U, x)
    J = jacobian(lambda p, x: jnp.sin(x) + scale * 1e-6 * (x @ p), U, x)
    assert float(np.max(np.abs(J.rmatmat(random(12, 1))))) > 0
