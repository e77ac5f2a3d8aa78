"""Models of the JAX libraries as they come: selected parameters, leaves that are no arrays, inputs that are shared."""

from __future__ import annotations

from functools import partial
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from models import random

import traceest as te
from traceest_adapters.jax import jacobian, ntk, partition
from traceest_adapters.jax.per_example import compiled

X = random(5, 4)
KEY = jax.random.key(1)
double = partial(jax.tree.map, lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x)


def assert_is(J: Any, state: Any, trained: Any) -> None:
    """J is the derivative of `state`, a function of the pytree `trained`, at that; rows example first."""
    D = jax.jacrev(state)(trained)
    D = np.concatenate([np.reshape(leaf, (J.shape[0], -1)) for leaf in jax.tree.leaves(D)], axis=1)
    np.testing.assert_allclose(J.matmat(jnp.eye(J.shape[1])), D, atol=1e-12)
    np.testing.assert_allclose(J.rmatmat(jnp.eye(J.shape[0])), D.T, atol=1e-12)
    g = D.reshape(J.n_blocks or 1, -1, J.shape[1])
    V = random(J.shape[0], 2, seed=3)
    g = np.einsum("bnp,bnk->bkp", g, np.asarray(V).reshape(*g.shape[:2], 2))
    np.testing.assert_allclose(J.block_sqnorms(V), (g**2).sum(-1), atol=1e-11)
    np.testing.assert_allclose(J.sketch_gram(V), np.einsum("bip,cjp->bicj", g, g), atol=1e-11)


# -- Flax linen ---------------------------------------------------------------------------------------------
class Normed(nn.Module):
    """A layer, a batch norm, and a head."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = nn.Dense(3, name="first")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        self.sow("intermediates", "hidden", x)
        return nn.Dense(2, name="last")(jnp.tanh(x))


LINEN = Normed()
VARIABLES = double(LINEN.init(KEY, X))
VARIABLES["batch_stats"]["norm"]["mean"] += 0.3


def test_linen_params_are_chosen_and_running_averages_are_left_alone() -> None:
    J = jacobian(LINEN.apply, VARIABLES, X, wrt="params")
    assert all(name.startswith("params.") for name in J.parameters)
    fixed = {"batch_stats": VARIABLES["batch_stats"]}
    assert_is(J, lambda p: LINEN.apply({"params": p, **fixed}, X), VARIABLES["params"])


def test_linen_states_inside_the_model_can_be_asked_for() -> None:
    sown = jacobian(
        lambda p, x: LINEN.apply(p, x, mutable="intermediates")[1],
        VARIABLES,
        X,
        wrt="params",
        output=lambda state: state["intermediates"]["hidden"][0],
    )
    captured = jacobian(
        lambda p, x: LINEN.apply(p, x, capture_intermediates=True, mutable="intermediates"),
        VARIABLES,
        X,
        wrt="params",
        output=lambda out: out[1]["intermediates"]["norm"]["__call__"][0],
    )
    assert sown.shape == captured.shape == (15, J_SIZE)
    np.testing.assert_allclose(sown.rmatmat(random(15, 2)), captured.rmatmat(random(15, 2)), rtol=1e-13)


J_SIZE = sum(x.size for x in jax.tree.leaves(VARIABLES["params"]))


# -- Flax nnx -------------------------------------------------------------------------------------------------
class Nnx(nnx.Module):
    """A layer, a batch norm, a dropout that is off, and a list of layers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(4, 3, param_dtype=float, rngs=rngs)
        self.norm = nnx.BatchNorm(3, use_running_average=True, param_dtype=float, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(3, 3, param_dtype=float, rngs=rngs) for _ in range(2)])

    def __call__(self, x: Any) -> Any:
        x = self.dropout(self.norm(self.first(x)))
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return x


def test_nnx_modules_are_pytrees_whose_params_are_chosen_by_their_class() -> None:
    model = Nnx(nnx.Rngs(0))
    J = jacobian(lambda m, x: m(x), model, X, wrt=nnx.Param)
    assert "first.kernel" in J.parameters
    assert "norm.mean" not in J.parameters
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    assert_is(J, lambda p: nnx.merge(graphdef, p, rest)(X), params)


def test_nnx_modules_can_be_split_and_merged() -> None:
    graphdef, params, rest = nnx.split(Nnx(nnx.Rngs(0)), nnx.Param, ...)

    def apply(p: Any, x: Any) -> Any:
        return nnx.merge(graphdef, p, rest)(x)

    assert_is(
        jacobian(apply, params, X, wrt="layers.1"), lambda p: apply(with_layer(params, p), X), params["layers"][1]
    )


def with_layer(params: Any, p: Any) -> Any:
    """The same parameters, with those of the second of the layers replaced."""
    leaves = dict(jax.tree.flatten_with_path(params)[0])
    mine = [path for path in leaves if partition.dotted(path).startswith("layers.1.")]
    leaves.update(zip(mine, jax.tree.leaves(p), strict=True))
    return jax.tree.unflatten(jax.tree.structure(params), list(leaves.values()))


# -- Equinox ------------------------------------------------------------------------------------------------
def over_batch(m: Any, x: Any) -> Any:
    return jax.vmap(m)(x)


def mlp(activation: Any = jax.nn.tanh, seed: int = 0) -> Any:
    return eqx.nn.MLP(4, 2, 3, 1, activation=activation, key=jax.random.key(seed), dtype=float)


def test_equinox_modules_keep_their_functions_and_flags() -> None:
    model = eqx.nn.Sequential([mlp(), eqx.nn.Lambda(jnp.sin), eqx.nn.Dropout(0.5, inference=True)])
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    J = jacobian(over_batch, model, X)
    assert_is(J, lambda p: over_batch(eqx.combine(p, rest), X), arrays)


def test_equinox_layers_are_chosen_by_their_class_or_path() -> None:
    model = eqx.nn.Sequential([mlp(), eqx.nn.LayerNorm(2, dtype=float)])
    by_class = jacobian(over_batch, model, X, wrt=eqx.nn.Linear)
    by_path = jacobian(over_batch, model, X, wrt=["layers.0"])
    by_predicate = jacobian(over_batch, model, X, wrt=lambda path, leaf: leaf.ndim == 2 or ".layers.0.bias" in path)
    assert by_class.parameters == by_path.parameters
    assert by_predicate.parameters == tuple(n for n in by_path.parameters if not n.endswith("layers.1.bias"))


def test_steps_are_shared_by_equal_models_and_by_no_others() -> None:
    def norm(model: Any) -> Any:
        return jacobian(over_batch, model, X, check=False).rmatmat(jnp.ones((10, 1)))

    norm(mlp())
    before = compiled.linearise_reverse._cache_size()
    norm(mlp(seed=1))
    assert compiled.linearise_reverse._cache_size() == before
    assert not np.allclose(norm(mlp(jnp.sin)), norm(mlp()))
    assert compiled.linearise_reverse._cache_size() == before + 1


@pytest.mark.parametrize(("a", "b", "same"), [(1, 1, True), (1, True, False), (1, 1.0, False), ("a", "a", True),
                                              ([1], [1], False), (([1],), ([1],), False)])  # fmt: skip
def test_constants_are_told_apart_by_type_and_value(a: Any, b: Any, same: bool) -> None:
    assert (partition.Constant(a) == partition.Constant(b)) is same
    assert partition.Constant(a) == partition.Constant(a)
    assert len({partition.Constant(a), partition.Constant(b)}) == (1 if same else 2)


def test_a_callable_without_a_hash_can_be_the_function() -> None:
    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, p: Any, x: Any) -> Any:
            return x @ p

    assert jacobian(Unhashable(), random(4, 2), X, output=None).shape == (10, 8)


# -- Haiku --------------------------------------------------------------------------------------------------
def test_haiku_takes_no_key_or_one_that_all_examples_share() -> None:
    f = hk.transform(lambda x: hk.nets.MLP([3, 2])(x))
    params = double(f.init(KEY, X))
    without = jacobian(f.apply, params, None, X)
    assert_is(without, lambda p: f.apply(p, None, X), params)
    for key in (KEY, jax.random.PRNGKey(0)):
        J = jacobian(f.apply, params, key, X, in_axes=(None, 0))
        np.testing.assert_array_equal(J.rmatmat(jnp.ones((10, 1))), without.rmatmat(jnp.ones((10, 1))))
    assert jacobian(f.apply, params, None, X, wrt="mlp/~/linear_1").shape == (10, 8)


# -- inputs -------------------------------------------------------------------------------------------------
def masked(p: Any, x: Any, mask: Any, scale: Any, kind: str, flags: Any) -> Any:
    y = jnp.einsum("tbi,io->bot", x, p) * mask * scale
    return {"sin": jnp.sin, "cos": jnp.cos}[kind](y) if flags["on"] else y


def test_inputs_can_be_shared_have_axes_of_their_own_or_be_no_arrays() -> None:
    x, mask, p = random(3, 5, 4), random(2, 3), random(4, 2)
    rest = (mask, 2.0, "sin", {"on": True, "off": None})
    axes = (1, None, None, None, None)
    J = jacobian(masked, p, x, *rest, in_axes=axes)
    assert (J.n_blocks, J.shape) == (5, (30, 8))
    assert_is(J, lambda p: masked(p, x, *rest), p)
    np.testing.assert_allclose(
        jacobian(masked, p, x, mask, jnp.asarray(2.0), "sin", rest[3], in_axes=list(axes)).matmat(jnp.eye(8)),
        J.matmat(jnp.eye(8)),
        rtol=1e-13,
    )


def test_a_part_of_a_pytree_can_be_shared() -> None:
    x = {"x": X, "grid": random(7)}
    f = lambda p, x: jnp.sin(x["x"] @ p)[:, :, None] * x["grid"]  # noqa: E731
    p = random(4, 2)
    J = jacobian(f, p, x, in_axes=({"x": 0, "grid": None},))
    assert_is(J, lambda p: f(p, x), p)


def test_keys_can_be_an_example_s_own_so_that_dropout_leaves_examples_independent() -> None:
    def apply(p: Any, key: Any, x: Any) -> Any:
        return jax.vmap(lambda k, x: jax.random.bernoulli(k, 0.5, (2,)) * (x @ p))(key, x)

    assert jacobian(apply, random(4, 2), jax.random.split(KEY, 5), X).n_blocks == 5


def test_one_block_takes_all_inputs_as_they_are() -> None:
    f = lambda p, x, grid: (x @ p)[:, :, None] * grid  # noqa: E731
    J = jacobian(f, random(4, 2), X, random(7), batch_axis=None)
    assert (J.n_blocks, J.shape) == (None, (70, 8))
    assert jacobian(lambda p: jnp.outer(p, p), random(3), batch_axis=None).shape == (9, 3)


# -- parameters ---------------------------------------------------------------------------------------------
def test_python_floats_are_constants_unless_they_are_named() -> None:
    params = {"scale": 2.0, "w": random(4, 2), "steps": 3, "none": None, "name": "a", "ids": jnp.arange(2)}
    f = lambda p, x: p["scale"] * p["steps"] * (x @ p["w"])[:, p["ids"]]  # noqa: E731
    assert jacobian(f, params, X).parameters == ("w",)
    J = jacobian(f, params, X, wrt=["scale", "w"])
    assert J.parameters == ("scale", "w")
    assert_is(J, lambda p: f({**params, **p}, X), {"scale": 2.0, "w": params["w"]})


def test_numpy_arrays_are_parameters() -> None:
    p = np.asarray(random(4, 2))
    assert_is(jacobian(lambda p, x: x @ p, p, X), lambda p: X @ p, jnp.asarray(p))


def test_a_state_whose_entries_add_to_nothing_still_depends_on_its_parameters() -> None:
    for end in (jax.nn.softmax, lambda y: y - y.mean(-1, keepdims=True)):
        assert jacobian(lambda p, x, end=end: end(x @ p), random(4, 2), X).shape == (10, 8)


def test_the_kernel_is_the_sum_of_those_of_its_parts() -> None:
    whole = ntk(LINEN.apply, VARIABLES, X, wrt="params")
    parts = [ntk(LINEN.apply, VARIABLES, X, wrt=f"params.{name}") for name in ("first", "norm", "last")]
    np.testing.assert_allclose(float(te.exact(whole)), sum(float(te.exact(K)) for K in parts), rtol=1e-12)


# -- inside transformations ---------------------------------------------------------------------------------
def test_constants_inside_a_trace_have_no_values_to_check() -> None:
    p, statistic = random(4, 2), lambda K: te.rhutch(K, 1, rng=0).value
    expected = statistic(ntk(lambda p, x: 3.0 * jnp.sin(x @ p), p, X))
    jitted = jax.jit(lambda a: statistic(ntk(lambda p, x: a * jnp.sin(x @ p), p, X)))
    by_value = jax.vmap(lambda a: statistic(ntk(lambda p, x: a * jnp.sin(x @ p), p, X, check=False)))
    np.testing.assert_allclose(jitted(3.0), expected, rtol=1e-12)
    np.testing.assert_allclose(by_value(jnp.asarray([3.0, 0.0])), [expected, 0.0], rtol=1e-12)


# -- bite ---------------------------------------------------------------------------------------------------
def test_a_leaf_in_the_wrong_place_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    join = partition.Partition.join
    monkeypatch.setattr(partition.Partition, "join", lambda self, a, b: join(self, a, b[::-1]))
    jax.clear_caches()
    with pytest.raises(AssertionError):
        test_linen_params_are_chosen_and_running_averages_are_left_alone()
    jax.clear_caches()


def test_a_selection_that_is_ignored_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "_chosen", lambda params, names, leaves, wrt: [True] * len(leaves))
    with pytest.raises(AssertionError):
        test_linen_params_are_chosen_and_running_averages_are_left_alone()
