"""Models in half precision and in float32: sums are made in float32 at the least, error bars hold."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import traceest as te
from traceest_adapters.jax import jacobian, ntk

B, ROUNDING = 6, {"bfloat16": 2**-8, "float16": 2**-11, "float32": 2**-22}


def mlp(p: Any, x: Any) -> Any:
    return jnp.tanh(jnp.tanh(x @ p["w"] + p["b"]) @ p["v"])


def rounded(dtype: str) -> tuple[Any, Any, Any, Any]:
    """Parameters and inputs of that dtype, and the same numbers in float64."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"w": (5, 8), "b": (8,), "v": (8, 12)}
    p = {n: (0.5 * jax.random.normal(k, s)).astype(dtype) for k, (n, s) in zip(keys, shapes.items(), strict=False)}
    x = jax.random.normal(keys[3], (B, 5)).astype(dtype)
    exactly = lambda a: a.astype(float)  # noqa: E731
    return p, x, jax.tree.map(exactly, p), exactly(x)


def made(dtype: str) -> tuple[str, Any, np.ndarray]:
    """The dtype, the Jacobian as an operator, and as a matrix in float64."""
    p, x, exact_p, exact_x = rounded(dtype)
    J = jax.jacrev(lambda p: mlp(p, exact_x).ravel())(exact_p)
    D = np.concatenate([np.reshape(leaf, (leaf.shape[0], -1)) for leaf in jax.tree.leaves(J)], 1)
    return dtype, jacobian(mlp, p, x), D


@pytest.fixture(scope="module", params=["bfloat16", pytest.param("float16", marks=pytest.mark.slow), "float32"])
def case(request: pytest.FixtureRequest) -> tuple[str, Any, np.ndarray]:
    return made(request.param)


def test_products_are_of_float32_and_as_exact_as_the_model(case: tuple[str, Any, np.ndarray]) -> None:
    dtype, J, D = case
    V, W = (jax.random.rademacher(jax.random.key(1), (n, 4), jnp.float32) for n in J.shape)
    g = np.einsum("bnp,bnk->bkp", D.reshape(B, -1, D.shape[1]), np.asarray(V).reshape(B, -1, 4))
    tolerance = 8 * ROUNDING[dtype]
    for product, truth in (
        (J.matmat(W), D @ W),
        (J.rmatmat(V), D.T @ V),
        (J.gram_matmat(V), D @ (D.T @ V)),
        (J.block_sqnorms(V), (g**2).sum(-1)),
        (J.block_rmatmat(V), g),
        (J.sketch_gram(V), np.einsum("bip,cjp->bicj", g, g)),
    ):
        assert product.dtype == J.dtype == jnp.float32
        assert np.linalg.norm(product - truth) <= tolerance * np.linalg.norm(truth)


def test_the_two_sides_are_adjoint_up_to_the_model_s_rounding(case: tuple[str, Any, np.ndarray]) -> None:
    dtype, J, _ = case
    V, W = (jax.random.normal(jax.random.key(i), (n, 4), jnp.float32) for i, n in enumerate(J.shape))
    JW, JV = J.matmat(W), J.rmatmat(V)
    scale = jnp.linalg.norm(V, axis=0) * jnp.linalg.norm(JW, axis=0)
    assert jnp.all(jnp.abs(jnp.sum(V * JW, 0) - jnp.sum(JV * W, 0)) <= 8 * ROUNDING[dtype] * scale)


def test_intervals_hold_the_truth_of_the_rounded_parameters(case: tuple[str, Any, np.ndarray]) -> None:
    dtype, J, D = case
    K, dense = te.gram(J), D @ D.T
    truth = np.trace(dense)
    traces = [te.rhutch(K, 4, rng=seed) for seed in range(60)]
    values = np.asarray([float(e) for e in traces])
    assert abs(values.mean() - truth) <= 4 * values.std(ddof=1) / 60**0.5 + 2 * ROUNDING[dtype] * truth
    ranks = [te.effective_rank(K, n_probes=6, rng=seed) for seed in range(60)]
    for estimates, of in ((traces, truth), (ranks, truth**2 / np.sum(dense**2))):
        held = np.mean([e.confidence_interval()[0] <= of <= e.confidence_interval()[1] for e in estimates])
        assert held >= 0.85  # 60 seeds: three and a half standard errors below 95 %
        assert np.mean([float(e.stderr) for e in estimates]) < 3 * np.std([float(e) for e in estimates])


def test_two_sided_estimates_work(case: tuple[str, Any, np.ndarray]) -> None:
    dtype, J, D = case
    K, truth = te.gram(J), np.sum(D**2)
    for e in (te.hutchpp(K, 24, rng=0), te.xtrace(K, 24, rng=0), te.trace(K, rng=0)):
        assert e.value.dtype == jnp.float32
        assert abs(float(e) - truth) <= 4 * float(e.stderr) + 8 * ROUNDING[dtype] * truth


def test_states_of_half_precision_from_wide_parameters_are_of_float32() -> None:
    p, x, *_ = rounded("float32")
    K = ntk(lambda p, x: mlp(p, x).astype(jnp.bfloat16), p, x)
    assert K.dtype == jnp.float32
    assert te.rhutch(K, 2, rng=0).value.dtype == jnp.float32


@pytest.mark.parametrize("x64", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_without_64_bits_all_is_of_float32(x64: bool) -> None:
    with jax.enable_x64(x64):
        p = {"w": np.linspace(-1, 1, 40).reshape(5, 8), "b": np.zeros(8), "v": np.linspace(1, -1, 96).reshape(8, 12)}
        K = ntk(mlp, p, np.linspace(-1, 1, 30).reshape(6, 5))
        assert K.dtype == (jnp.float64 if x64 else jnp.float32)
        e = te.effective_rank(K, n_probes=6, rng=0)
        assert e.value.dtype == K.dtype
        assert float(te.exact(K)) == pytest.approx(np.trace(K.matmat(jnp.eye(72, dtype=K.dtype))), rel=1e-4)


# -- bite -----------------------------------------------------------------------------------------------------
def test_sums_in_half_precision_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jnp, "promote_types", lambda a, b: a)
    jax.clear_caches()
    case = made("bfloat16")
    with pytest.raises(AssertionError):
        test_products_are_of_float32_and_as_exact_as_the_model(case)
    jax.clear_caches()
