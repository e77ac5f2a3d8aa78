"""JAX as people set it: under each strict setting calls give what they give without."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.special import stdtrit

import traceest as te
from traceest_adapters.jax import gauss_newton, hessian, ntk
from traceest_adapters.jax.backend import backend
from traceest_adapters.torch import ntk as torch_ntk

SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "dtype promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "NaN": lambda: jax.debug_nans(True),
    "infinities": lambda: jax.debug_infs(True),
    "transfers": lambda: jax.transfer_guard("disallow"),
}
EACH = pytest.mark.parametrize("setting", SETTINGS)
ALL = pytest.mark.parametrize("setting", ["all", *(pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS)])


@contextmanager
def set_to(setting: str) -> Iterator[None]:
    """One setting in force, or all of them."""
    with ExitStack() as stack:
        for name in SETTINGS if setting == "all" else (setting,):
            stack.enter_context(SETTINGS[name]())
        yield


KEY = jax.random.key(7)


def random(i: int, *shape: int) -> Any:
    return jax.random.normal(jax.random.key(i), shape)


def dense(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["w"] + p["b"][None, :]) @ p["v"]


def convolved(p: Any, x: Any) -> Any:
    return jnp.sin(jax.lax.conv_general_dilated(x, p, (1, 1), "SAME"))


def recurrent(p: Any, x: Any) -> Any:
    def step(h: Any, xt: Any) -> Any:
        h = jnp.tanh(xt @ p["x"] + h @ p["h"] + p["b"])
        return h, h

    return jax.vmap(lambda xi: jax.lax.scan(step, jnp.zeros(4, xi.dtype), xi)[1])(x)


def embedded(E: Any, tokens: Any) -> Any:
    return jnp.tanh(E[tokens]) @ E.T


MODELS: dict[str, tuple[Any, ...]] = {
    "dense": (dense, {"w": random(0, 3, 4), "b": random(1, 4), "v": random(2, 4, 6)}, random(3, 5, 3)),
    "convolution": (convolved, random(0, 2, 1, 3, 3), random(1, 3, 1, 4, 4)),
    "recurrent": (recurrent, {"x": random(0, 3, 4), "h": random(1, 4, 4) * 0.3, "b": random(2, 4)}, random(3, 4, 6, 3)),
    "embedding": (embedded, random(0, 5, 3), jnp.array([[0, 1], [2, 4], [1, 1]])),
}
A = random(4, 12, 12)
SQUARE = A @ A.T + jnp.eye(12)


def tracked(K: Any, rng: Any, n: int) -> Any:
    tracker = te.Tracker(n_probes=n, rng=0)
    tracker.update(K, step=0)
    return tracker.update(K, step=1).estimates


CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "rhutch": lambda K, rng: te.rhutch(K, 3, rng=rng),
    "rhutch of one probe": lambda K, rng: te.rhutch(K, 1, rng=rng),
    "hutchinson of one probe": lambda K, rng: te.hutchinson(K, 1, rng=rng),
    "exact": lambda K, rng: te.exact(K),
    "trace": lambda K, rng: te.trace(K, rtol=0.1, rng=rng),
    "trace to a tolerance": lambda K, rng: te.trace(K, rtol=0.3, rng=rng),
    "norm": lambda K, rng: te.frobenius_norm(K, 4, rng=rng),
    "rank": lambda K, rng: te.effective_rank(K, n_probes=3, rng=rng),
    "alignment": lambda K, rng: te.alignment(K, K, n_probes=3, rng=rng),
    "centred alignment": lambda K, rng: te.centred_alignment(K, K, n_probes=4, rng=rng),
    "distance": lambda K, rng: te.relative_distance(K, K, n_probes=4, rng=rng),
    "summary": lambda K, rng: te.summary(K, n_probes=4, rng=rng).estimates,
    "tracker of few probes": lambda K, rng: tracked(K, rng, 3),
    "tracker": lambda K, rng: tracked(K, rng, 8),
    "hutchpp": lambda K, rng: te.hutchpp(K, 9, rng=rng),
    "xtrace": lambda K, rng: te.xtrace(K, 6, rng=rng),
    "xnystrace": lambda K, rng: te.xnystrace(K, 4, rng=rng),
    "diagonal": lambda K, rng: te.diagonal(K, 4, rng=rng),
    "eigenvalues": lambda K, rng: te.eigenvalues(K, 2, rng=rng).values,
    "partial trace": lambda K, rng: te.partial_trace(K, keep=0, n_probes=4, rng=rng).effective_rank,
    "algebra": lambda K, rng: te.hutchinson(2 * K + 0.5 * K @ K, 4, rng=rng),
    "products": lambda K, rng: (2 * K - K / 3) @ te.probes.sphere(K.shape[0], 2, rng=rng, like=K),
    "interval": lambda K, rng: te.frobenius_norm(K, 4, rng=rng).confidence_interval(),
    "merge": lambda K, rng: te.rhutch(K, 3, rng=rng).merge(te.rhutch(K, 3, rng=1)),
}
DENSE: dict[str, Callable[[Any, Any], Any]] = {
    "logdet": lambda M, rng: te.logdet(M, 20, rng=rng),
    "density": lambda M, rng: te.spectral_density(M, 20, rng=rng).density,
    "schatten": lambda M, rng: te.schatten_norm(M, 1, 20, rng=rng),
    "hadamard": lambda M, rng: te.hutchinson(M, 4, rng=rng, distribution="hadamard"),
    "sphere": lambda M, rng: te.probes.sphere(12, 3, rng=rng, like=M),
    "balanced": lambda M, rng: te.probes.balanced(12, 3, rng=rng, like=M),
    "powers": lambda M, rng: te.trace_of_polynomial(M, [0.0, 1.0, 0.5], 4, rng=rng),
}


def numbers(result: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(result)]


def agree(found: Any, expected: Any) -> None:
    assert len(numbers(found)) == len(numbers(expected)) > 0
    for x, y in zip(numbers(found), numbers(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9)


@ALL
@pytest.mark.parametrize("name", MODELS)
def test_kernels_are_made_and_asked(name: str, setting: str) -> None:
    def asked() -> Any:
        K = ntk(*MODELS[name])
        V = te.probes.rademacher(K.shape[0], 2, rng=KEY, like=K)
        return K @ V, te.exact(K), te.effective_rank(K, n_probes=3, rng=KEY)

    expected = asked()
    with set_to(setting):
        found = asked()
    agree(found, expected)


@ALL
@pytest.mark.parametrize("name", CALLS)
def test_calls_give_the_same(name: str, setting: str) -> None:
    K, call = KERNEL, CALLS[name]
    for rng in (0, KEY):
        expected = call(K, rng)
        with set_to(setting):
            found = call(K, rng)
        agree(found, expected)


@ALL
@pytest.mark.parametrize("name", DENSE)
def test_calls_of_arrays_give_the_same(name: str, setting: str) -> None:
    for rng in (0, KEY):
        expected = DENSE[name](SQUARE, rng)
        with set_to(setting):
            found = DENSE[name](SQUARE, rng)
        agree(found, expected)


@ALL
def test_curvature_is_the_same(setting: str) -> None:
    _, params, x = MODELS["dense"]
    y = jnp.ones((5, 6))

    def asked() -> Any:
        G = gauss_newton(dense, lambda z, y: jnp.mean((z - y) ** 2), params, x, y)
        H = hessian(lambda p, x: jnp.mean(dense(p, x) ** 2), params, x)
        return te.trace(G, rtol=0.5, rng=KEY), te.hutchinson(H, 3, rng=KEY)

    expected = asked()
    with set_to(setting):
        found = asked()
    agree(found, expected)


@ALL
def test_large_arrays_too(setting: str) -> None:
    """Beyond those that NumPy works on."""
    M = random(0, 300, 300)
    M = M @ M.T

    def asked() -> Any:
        return te.hutchpp(M, 30, rng=KEY), te.effective_rank(te.gram(te.aslinearoperator(M)), n_probes=8, rng=KEY)

    expected = asked()
    with set_to(setting):
        found = asked()
    agree(found, expected)


@ALL
def test_inside_jit(setting: str) -> None:
    _, params, x = MODELS["dense"]
    rank = jax.jit(lambda p: te.effective_rank(ntk(dense, p, x), n_probes=4, rng=0).value)
    expected = rank(params)
    jax.clear_caches()
    with set_to(setting):
        found = rank(params)
    agree(found, expected)


@EACH
def test_what_is_set_stays_set(setting: str) -> None:
    names = ("jax_numpy_rank_promotion", "jax_numpy_dtype_promotion", "jax_debug_nans", "jax_debug_infs")
    names += ("jax_transfer_guard_host_to_device",)
    state = lambda: [getattr(jax.config, name) for name in names]  # noqa: E731
    with set_to(setting):
        before = state()
        te.rhutch(ntk(*MODELS["dense"]), 2, rng=KEY)
        with pytest.raises(TypeError):
            te.rhutch(KERNEL, rng=KEY)
        assert state() == before


@EACH
def test_a_probe_and_a_rank_under_each(setting: str) -> None:
    call = lambda: (te.rhutch(KERNEL, 1, rng=KEY), te.effective_rank(KERNEL, n_probes=3, rng=0), te.exact(KERNEL))  # noqa: E731
    expected = call()
    with set_to(setting):
        found = call()
    agree(found, expected)


def test_nan_of_the_model_is_still_found() -> None:
    """In a model's products, by an estimator or by hand: only the estimators' own "unknown" passes."""
    K = ntk(lambda w, x: jnp.sqrt(x @ w - 1), jnp.zeros((3, 2)), jnp.ones((4, 3)), check=False)
    with jax.debug_nans(True):
        for call in (lambda: te.rhutch(K, 1, rng=0), lambda: K @ jnp.ones((8, 1))):
            with pytest.raises(FloatingPointError):
                call()
            assert jax.config.jax_debug_nans


MESH = """
import jax, jax.numpy as jnp, numpy as np, traceest as te
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from traceest_adapters.jax import ntk
jax.config.update("jax_enable_x64", True)
mesh = jax.make_mesh((8,), ("d",))
assert mesh.axis_types == (AxisType.Explicit,)
w, x = (np.random.default_rng(i).standard_normal(s) for i, s in enumerate([(3, 4), (16, 3)]))
f = lambda w, x: jnp.tanh(x @ w)
asked = lambda K: [np.asarray(v) for v in jax.tree.leaves((
    te.exact(K), te.effective_rank(K, n_probes=4, rng=0), te.rhutch(K, 4, rng=jax.random.key(0)),
    te.hutchpp(K, 9, rng=0), te.frobenius_norm(K, 4, rng=0).confidence_interval()))]
M = x @ x.T
expected, of_dense = asked(ntk(f, w, x)), float(te.hutchinson(jnp.asarray(M), 4, rng=0))
sharded = jax.device_put(w, NamedSharding(mesh, P())), jax.device_put(x, NamedSharding(mesh, P("d")))
with jax.set_mesh(mesh):
    for arrays in (sharded, (w, x), (jnp.asarray(w), jnp.asarray(x))):
        K = ntk(f, *arrays)
        for found, right in zip(asked(K), expected, strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-8, atol=1e-8)
        e, v = te.exact(K), jax.device_put(np.ones((64, 1)), NamedSharding(mesh, P("d")))
        (e.value * sharded[0]).block_until_ready()
        assert (K @ v).sharding.mesh == mesh and jax.sharding.get_mesh() == mesh
        np.testing.assert_allclose(np.asarray(K @ v), np.asarray(ntk(f, *arrays) @ np.ones((64, 1))))
    dense = jax.device_put(M, NamedSharding(mesh, P("d")))
    np.testing.assert_allclose(float(te.hutchinson(dense, 4, rng=0)), of_dense, rtol=1e-8)
    for needs in (
        lambda w, x: jnp.einsum("bi,io->bo", x, w, out_sharding=P("d", None)),
        lambda w, x: jax.sharding.reshard(jnp.tanh(x @ w), P("d")),
        lambda w, x: jax.shard_map(f, mesh=mesh, in_specs=(P(), P("d")), out_specs=P("d"))(w, x),
    ):
        try:
            ntk(needs, *sharded)
        except ValueError as error:
            assert "explicit axes" in str(error) and "AxisType.Auto" in str(error), error
        else:
            raise SystemExit("no error")
"""
KEYS = """
import jax, jax.numpy as jnp, numpy as np, traceest as te
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from traceest_adapters.jax import ntk
d = jax.devices()[1]
f = lambda w, x: jnp.tanh(x @ w)
w, x = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(6, 16), (10, 6)]))
key = jax.random.key(0)
mesh = Mesh(np.array(jax.devices()), ("d",))
places = d, NamedSharding(mesh, P())
laws = "rademacher", "sphere", "hadamard"
expected = [float(te.rhutch(ntk(f, w, x), 3, rng=key, distribution=law)) for law in laws]
for place in places:
    K = ntk(f, jax.device_put(w, place), jax.device_put(x, place))
    for k in (key, jax.device_put(key, jax.devices()[2])):
        found = [te.rhutch(K, 3, rng=k, distribution=law) for law in laws]
        np.testing.assert_allclose([float(e) for e in found], expected, rtol=1e-5)
        assert all(d in e.value.devices() for e in found)
"""


@pytest.mark.parametrize("code", [MESH, KEYS], ids=["explicit mesh", "keys on other devices"])
def test_on_eight_devices(code: str) -> None:
    every = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    flags = {"XLA_FLAGS": every, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | flags, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]


INTERVALS: dict[str, Callable[[Any], te.Estimate]] = {
    "exact": lambda K: te.exact(K),
    "one probe": lambda K: te.rhutch(K, 1, rng=0),
    "norm": lambda K: te.frobenius_norm(K, n_probes=8, rng=0),
    "alignment": lambda K: te.alignment(K, K + te.identity(K.shape[0], like=K), 8, rng=0),
    "hutchpp": lambda K: te.hutchpp(K, 9, rng=0),
}


def of_scaled(name: str) -> Callable[[Any], te.Estimate]:
    model, params, x = MODELS["dense"]
    return lambda t: INTERVALS[name](ntk(model, {**params, "v": t * params["v"]}, x))


@pytest.mark.parametrize(
    "name", ["exact", "one probe", "norm", *(pytest.param(n, marks=pytest.mark.slow) for n in ("alignment", "hutchpp"))]
)
def test_an_interval_inside_of_jit_and_vmap(name: str) -> None:
    estimate, scales = of_scaled(name), jnp.array([1.0, 2.0])
    expected = [estimate(t).confidence_interval(0.9) for t in scales]
    inside = jax.jit(lambda t: estimate(t).confidence_interval(0.9))
    for t, interval in zip(scales, expected, strict=True):
        np.testing.assert_allclose(inside(t), interval, rtol=1e-5)
        np.testing.assert_allclose(jax.jit(lambda t: estimate(t).half_width())(t), estimate(t).half_width(), rtol=1e-5)
    np.testing.assert_allclose(
        np.stack(jax.vmap(lambda t: estimate(t).confidence_interval(0.9))(scales), axis=1), expected, rtol=1e-5
    )


def test_the_gradient_of_an_interval() -> None:
    """Degrees of freedom move with the parameters, and the quantile with them."""
    estimate = of_scaled("norm")
    high = lambda t: estimate(t).confidence_interval().high  # noqa: E731
    h = 1e-5
    np.testing.assert_allclose(jax.grad(high)(1.3), (high(1.3 + h) - high(1.3 - h)) / (2 * h), rtol=1e-5)
    quantile = jax.grad(lambda df: backend.student_quantile(df, 0.975))(3.0)
    np.testing.assert_allclose(quantile, (stdtrit(3 + h, 0.975) - stdtrit(3 - h, 0.975)) / (2 * h), rtol=1e-5)


@pytest.mark.parametrize("batch", [jnp.zeros((0, 3)), {"x": jnp.zeros((0, 3))}], ids=["array", "mapping"])
@pytest.mark.parametrize("check", [True, False])
def test_an_empty_batch_is_told(batch: Any, check: bool) -> None:
    model = lambda w, x: jnp.tanh((x["x"] if isinstance(x, dict) else x) @ w)  # noqa: E731
    w = jnp.ones((3, 4))
    full = jax.tree.map(lambda x: jnp.ones((2, 3)), batch)
    for call in (
        lambda: ntk(model, w, batch, check=check),
        lambda: ntk(model, w, batches=[batch], check=check),
        lambda: ntk(model, w, batches=[full, batch], check=check),
    ):
        with pytest.raises(ValueError, match="the batch is empty"):
            call()
    with pytest.raises(ValueError, match="the state is empty"):
        ntk(model, w, batch, batch_axis=None, check=check)


def test_an_empty_batch_is_told_in_pytorch() -> None:
    model, empty = torch.nn.Linear(3, 4), torch.zeros(0, 3)
    for call in (lambda: torch_ntk(model, empty), lambda: torch_ntk(model, batches=[torch.ones(2, 3), empty])):
        with pytest.raises(ValueError, match=r"empty.*give examples"):
            call()


def normed(p: Any, x: Any) -> Any:
    stats = p["batch_stats"]["bn"]
    return (x - stats["mean"]) / jnp.sqrt(stats["var"]) @ p["params"]["w"]


def test_running_averages_are_told() -> None:
    variables = {
        "params": {"w": random(0, 3, 2)},
        "batch_stats": {"bn": {"mean": jnp.ones(3), "var": jnp.full(3, 2.0)}},
    }
    with pytest.warns(UserWarning, match=r"batch_stats\.bn\.mean, batch_stats\.bn\.var; .*wrt=") as told:
        K = ntk(normed, variables, random(1, 5, 3))
    assert len(told) == 1
    assert K.shape == (10, 10)
    ntk(normed, variables, random(1, 5, 3), wrt="params")
    ntk(normed, variables, random(1, 5, 3), wrt=["params", "batch_stats"])  # asked for


def test_running_averages_of_nnx_are_told() -> None:
    nnx = pytest.importorskip("flax.nnx", reason="Flax is not there")

    class Net(nnx.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            self.bn, self.out = nnx.BatchNorm(3, rngs=nnx.Rngs(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(1))

        def __call__(self, x: Any) -> Any:
            return self.out(self.bn(x))

    net = Net()
    net.eval()
    with pytest.warns(UserWarning, match=r"bn\.mean.*wrt=nnx\.Param") as told:
        ntk(lambda m, x: m(x), net, random(1, 5, 3))
    assert len(told) == 1
    ntk(lambda m, x: m(x), net, random(1, 5, 3), wrt=nnx.Param)


KERNEL = ntk(*MODELS["dense"])
