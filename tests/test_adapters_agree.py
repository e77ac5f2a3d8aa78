"""One model in two frameworks: one seed gives one estimate; and the paper's GRU at its own size."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from models import as_jax, jax_gru, jax_mlp, torch_gru, torch_mlp

import traceest as te
from traceest_adapters import jax as in_jax
from traceest_adapters import torch as in_torch


def pair(model: str) -> tuple[Any, Any]:
    """The same kernel from JAX and from PyTorch."""
    rng = np.random.default_rng(0)
    if model == "mlp":
        module, x = torch_mlp(), rng.standard_normal((20, 6))
        return in_jax.ntk(jax_mlp, as_jax(module), jnp.asarray(x)), in_torch.ntk(module, torch.as_tensor(x))
    gru, x = torch_gru(4, 6), rng.standard_normal((5, 12, 4))
    return (
        in_jax.ntk(jax_gru, as_jax(gru), jnp.asarray(x), batch_axis=1),
        in_torch.ntk(gru, torch.as_tensor(x), batch_axis=1, output=0),
    )


STATISTICS: dict[str, Callable[[Any, Any], te.Estimate]] = {
    "rhutch": lambda K, rng: te.rhutch(K, 4, rng=rng),
    "hutchpp": lambda K, rng: te.hutchpp(K, 9, rng=rng),
    "frobenius_norm": lambda K, rng: te.frobenius_norm(K, 4, rng=rng),
    "effective_rank": lambda K, rng: te.effective_rank(K, 4, rng=rng),
    "effective_rank, two-sided": lambda K, rng: te.effective_rank(K, 4, method="two-sided", rng=rng),
    "trace": lambda K, rng: te.trace(K, rtol=0.1, rng=rng),
    "exact": lambda K, rng: te.exact(K),
    "exact norm": lambda K, rng: te.frobenius_norm(K, method="exact"),
}


@pytest.mark.parametrize("model", ["mlp", "gru"])
@pytest.mark.parametrize("statistic", STATISTICS)
def test_one_seed_gives_one_estimate_in_both_frameworks(model: str, statistic: str) -> None:
    estimates = [STATISTICS[statistic](K, np.random.default_rng(3)) for K in pair(model)]
    np.testing.assert_allclose(float(estimates[0]), float(estimates[1]), rtol=1e-10)
    np.testing.assert_allclose(float(estimates[0].stderr), float(estimates[1].stderr), rtol=1e-8)
    assert estimates[0].n_rmatvecs == estimates[1].n_rmatvecs
    assert estimates[0].n_matvecs == estimates[1].n_matvecs


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_estimates_agree_with_the_exact_kernel(framework: str) -> None:
    K = pair("gru")[framework == "torch"]
    D = np.asarray(K.factor.rmatmat(in_like(K, np.eye(K.shape[0])))).T
    dense = D @ D.T
    exact = {
        "trace": np.trace(dense),
        "norm": np.linalg.norm(dense),
        "rank": np.trace(dense) ** 2 / np.linalg.norm(dense) ** 2,
    }
    np.testing.assert_allclose(float(te.exact(K)), exact["trace"], rtol=1e-10)
    np.testing.assert_allclose(float(te.frobenius_norm(K, method="exact")), exact["norm"], rtol=1e-10)
    np.testing.assert_allclose(float(te.effective_rank(K, method="exact")), exact["rank"], rtol=1e-10)
    for f, truth in ((te.rhutch, "trace"), (te.frobenius_norm, "norm"), (te.effective_rank, "rank")):
        e = f(K, 10, rng=0)
        assert abs(float(e) - exact[truth]) < 4 * float(e.stderr)


def in_like(K: Any, x: np.ndarray) -> Any:
    return torch.as_tensor(x) if "torch" in str(K.dtype) else jnp.asarray(x)


# -- the paper's GRU, figure 3: 50 time steps, 15 sequences, 64 units; n = 48,000, P = 14,592 --------------------
@lru_cache
def paper_gru(framework: str, batch_axis: int | None) -> Any:
    gru = torch_gru(dtype=torch.float32)
    x = np.random.default_rng(0).standard_normal((50, 15, 10)).astype(np.float32)
    if framework == "jax":
        return in_jax.jacobian(jax_gru, as_jax(gru), jnp.asarray(x), batch_axis=batch_axis)
    return in_torch.jacobian(gru, torch.as_tensor(x), batch_axis=batch_axis, output=0)


@lru_cache
def paper_gru_trace() -> float:
    e = te.exact(paper_gru("torch", 1))
    assert e.n_rmatvecs == 3200
    return float(e)


def rms_error(framework: str, batch_axis: int | None) -> float:
    J = paper_gru(framework, batch_axis)
    assert J.shape == (48_000, 14_592)
    errors = [float(te.rhutch(J, n_probes=4, rng=seed)) / paper_gru_trace() - 1 for seed in range(20)]
    return float(np.sqrt(np.mean(np.square(errors))))


BOTH = pytest.mark.parametrize("framework", [pytest.param("jax", marks=pytest.mark.slow), "torch"])


@BOTH
def test_four_probes_an_example_give_the_paper_grus_trace_to_a_percent(framework: str) -> None:
    assert rms_error(framework, 1) < 0.015


@BOTH
def test_four_summed_probes_err_by_about_four_percent(framework: str) -> None:
    assert 0.015 < rms_error(framework, None) < 0.06


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_columns_are_asked_for_in_pieces_that_stay_in_fast_memory(framework: str, monkeypatch: Any) -> None:
    whole = pair("gru")[framework == "torch"]
    many, widths = float(te.rhutch(whole, 25, rng=0)), []
    assert whole.factor.chunk_columns >= 25
    J = whole.factor
    piece = J.chunk_size * 8 if framework == "jax" else 32  # what goes through the model at once
    monkeypatch.setattr("traceest_adapters._memory.FAST", 4 * 8 * J.shape[0] * piece)
    assert J.chunk_columns == piece
    monkeypatch.setattr("traceest_adapters._memory.FAST", 1)
    monkeypatch.setattr("traceest_adapters.jax.operator.IN_LOOPS", 1)
    monkeypatch.setattr("traceest_adapters.torch.operator.MOST", 4)
    J.chunk_size, product = 4, type(J).block_sqnorms
    monkeypatch.setattr(type(J), "block_sqnorms", lambda J, V: widths.append(V.shape[1]) or product(J, V))
    np.testing.assert_allclose(float(te.rhutch(whole, 25, rng=0)), many, rtol=1e-12)
    assert widths == [4] * 6 + [1]
