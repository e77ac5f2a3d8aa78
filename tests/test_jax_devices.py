"""Parameters and data spread over devices stay where they are: a mesh of eight, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from traceest import _array_api as aa
from traceest_adapters.jax import placement

SETUP = """
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import traceest as te
from traceest_adapters.jax import jacobian, ntk
from traceest_adapters.jax.per_example import compiled as steps, ghost_norms as ghost
jax.config.update("jax_enable_x64", True)
devices = jax.devices()
assert len(devices) == 8

def random(*shape):
    return jax.random.normal(jax.random.key(sum(shape)), shape)

def apply(p, x):
    return jnp.sin(jnp.sin(x @ p["w"]) @ (p["v"] + jnp.eye(80)[::-1] @ p["v"][::-1])) @ p["h"]

params, x, V = {"w": random(6, 80), "v": random(80, 80), "h": random(80, 4)}, random(16, 6), random(64, 4)
alone = jacobian(apply, params, x)
spread = {"w": P(None, "model"), "v": P("model", None), "h": P()}

def placed(mesh):
    p = {name: jax.device_put(v, NamedSharding(mesh, spread[name])) for name, v in params.items()}
    return p, jax.device_put(x, NamedSharding(mesh, P("batch")))

def agree(J):
    for name in ("rmatmat", "gram_matmat", "block_sqnorms", "block_rmatmat", "sketch_gram"):
        np.testing.assert_allclose(getattr(J, name)(V), getattr(alone, name)(V), rtol=1e-8, atol=1e-8)
    W = random(J.shape[1], 2)
    np.testing.assert_allclose(J.matmat(W), alone.matmat(W), rtol=1e-8, atol=1e-8)
"""
CODE = {
    "products are those on one device": """
mesh = Mesh(np.array(devices).reshape(4, 2), ("batch", "model"))
p, y = placed(mesh)
for J in (jacobian(apply, p, y), jacobian(apply, params, y), jacobian(apply, p, x)):
    agree(J)
    assert len(J.device.device_set) == 8
""",
    "statistics are those on one device": """
mesh = Mesh(np.array(devices).reshape(4, 2), ("batch", "model"))
p, y = placed(mesh)
K, L = ntk(apply, p, y), te.gram(alone)
for statistic in (
    lambda K: te.trace(K, rng=0),
    lambda K: te.effective_rank(K, n_probes=3, rng=0),
    lambda K: te.alignment(K, K, n_probes=3, rng=jax.random.key(0)),
    lambda K: te.target_alignment(K, jax.device_put(V[:, 0], y.sharding) if K is not L else V[:, 0], n_probes=3, rng=0),
    lambda K: te.xtrace(K, 8, rng=0),
    lambda K: te.rhutch(K, probes=V),
    lambda K: te.diagonal(K, 6, rng=0),
):
    np.testing.assert_allclose(statistic(K).value, statistic(L).value, rtol=1e-8)
""",
    "no batch is gathered": """
mesh = Mesh(np.array(devices).reshape(4, 2), ("batch", "model"))
p, y = placed(mesh)
J = jacobian(apply, p, y)
assert J.inputs[0].sharding == y.sharding and J._examples[0].sharding.is_equivalent_to(y.sharding, 2)
assert all(t.sharding == p[name].sharding for t, name in zip(J.trained, J.parameters))
assert J._plan.rest and J._plan.weights, "both ways are taken"
U = J._cotangents(V)[0]

def gathered(step, *args):
    return re.findall(r"= (f64\\S+) all-gather", step.lower(*args).compile().as_text())

args = J.trained, J.fixed, J._examples, U
assert J._lanes == 4
serial = gathered(steps.block_sqnorms, J.model, J._plan.rest, 1, *args)
parallel = gathered(steps.block_sqnorms, J.model, J._plan.rest, J._lanes, *args)
assert "f64[16,6]{1,0}" in serial, "a scan over the batch brings all of it to every device"
assert not any(found.startswith("f64[16,") for found in parallel), parallel
assert not gathered(ghost.sqnorms, J._plan.stepwise, J.dtype, *J._stepwise, U)
""",
    "meshes whose shardings are types work": """
mesh = jax.make_mesh((4, 2), ("batch", "model"))
p, y = placed(mesh)
agree(jacobian(apply, p, y))
assert jacobian(apply, p, y).inputs[0].sharding.spec == y.sharding.spec
""",
    "different devices are told apart": """
for p, y in ((1, 2), (1, None)):
    p = jax.device_put(params, devices[p])
    y = x if y is None else jax.device_put(x, devices[y])
    if y is x:
        assert jacobian(apply, p, y).device == devices[1]
        continue
    try:
        jacobian(apply, p, y)
    except TypeError as error:
        assert "different devices" in str(error) and "jax.device_put" in str(error), error
    else:
        raise AssertionError("mixed devices passed")
""",
    "a model that spreads its own work": """
mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
w, x = random(3, 16), random(16, 3)
dense = np.asarray(jax.jacrev(lambda w: jnp.tanh(x @ w))(w)).reshape(256, -1)

def over(inside, outside):
    return lambda w, x: jax.shard_map(lambda w, x: jnp.tanh(x @ w), mesh=mesh, in_specs=inside, out_specs=outside)(w, x)

by_features, by_examples = over((P(None, "d"), P()), P(None, "d")), over((P(), P("d")), P("d"))
for K in (ntk(by_features, w, x), ntk(by_features, w, x, batch_axis=None), ntk(by_examples, w, x, batch_axis=None)):
    np.testing.assert_allclose(float(te.exact(K)), (dense**2).sum(), rtol=1e-9)
    np.testing.assert_allclose(K.factor.rmatmat(V := random(256, 3)), dense.T @ V, atol=1e-9)
    np.testing.assert_allclose(K.factor.matmat(W := random(48, 3)), dense @ W, atol=1e-9)
try:
    ntk(by_examples, w, x)
except ValueError as error:
    assert "run on one example by itself" in str(error) and "batch_axis=None" in str(error), error
else:
    raise AssertionError("an example by itself cannot be spread")
""",
}


@pytest.mark.parametrize("name", [n if i in (2, 4, 5) else pytest.param(n, marks=pytest.mark.slow)
                                  for i, n in enumerate(CODE)])  # fmt: skip
def test_on_a_mesh_of_eight(name: str) -> None:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    root = str(Path(__file__).parent.parent)
    run = subprocess.run(
        [sys.executable, "-c", SETUP + CODE[name]], capture_output=True, text=True, env=env, cwd=root, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]


class On:
    """Something that is an array as far as its device goes."""

    def __init__(self, device: object) -> None:
        self.device = device


class Spread:
    """A sharding."""

    def __init__(self, *devices: int) -> None:
        self.device_set = set(devices)


def test_arrays_that_share_a_device_do_not_live_apart() -> None:
    for a, b, apart in [(1, 1, False), (1, 2, True), (Spread(1, 2), 1, False), (Spread(1, 2), Spread(2, 3), False),
                        (Spread(1, 2), 3, True), (None, Spread(1), False)]:  # fmt: skip
        assert aa.devices_differ(On(a), On(b)) is apart
        assert aa.devices_differ(On(b), On(a)) is apart


def test_on_one_device_nothing_changes() -> None:
    x = jnp.ones((4, 2))
    assert placement.automatic(x) is x
    assert placement.device([x]) == x.device
    assert placement.lanes([x]) == placement.lanes([]) == 1
    assert jax.jit(lambda x: jnp.asarray(placement.lanes([x])))(x) == 1
