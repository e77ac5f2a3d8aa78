"""A summary tells of each layer's own block of a matrix of parameters, in both frameworks, from the same products."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from assertions import assert_unbiased
from models import as_jax, jax_mlp, torch_mlp
from torch import nn

import traceest as te
from traceest.kernels.sketches.diagonal_blocks import DiagonalBlocks
from traceest_adapters import jax as in_jax
from traceest_adapters import torch as in_torch

MLP = torch_mlp((4, 5, 3))
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((8, 4)), RNG.standard_normal((8, 3))
GROUPS = {"weights": "*.weight", "biases": lambda name, array: array.ndim == 1}


def mse(z: Any, y: Any) -> Any:
    return ((z - y) ** 2).mean()


def made(framework: str, of: str) -> Any:
    if framework == "jax":
        return getattr(in_jax, of)(jax_mlp, mse, as_jax(MLP), jnp.asarray(X), jnp.asarray(Y))
    return getattr(in_torch, of)(MLP, nn.MSELoss(), torch.as_tensor(X), torch.as_tensor(Y))


def blocks(framework: str, A: Any) -> dict[str, np.ndarray]:
    D, sizes = np.asarray(te.to_dense(A)), {name: p.numel() for name, p in MLP.named_parameters()}
    names = sorted(sizes) if framework == "jax" else list(sizes)
    of = np.repeat(names, [sizes[name] for name in names])
    at = {"weights": np.array(["weight" in n for n in of]), "biases": np.array(["bias" in n for n in of])}
    return {label: D[np.ix_(mine, mine)] for label, mine in at.items()}


@pytest.mark.parametrize("framework", ["jax", "torch"])
@pytest.mark.parametrize("of", ["hessian", "gauss_newton"])
def test_exact_statistics_of_groups_are_those_of_their_blocks(framework: str, of: str) -> None:
    A = made(framework, of)
    s = te.summary(A, groups=GROUPS, method="exact")
    for label, D in blocks(framework, A).items():
        assert float(s.groups[label].trace) == pytest.approx(np.trace(D), rel=1e-10)
        assert float(s.groups[label].frobenius_norm) == pytest.approx(np.linalg.norm(D), rel=1e-10)
    assert float(sum(g.trace.value for g in s.groups.values())) == pytest.approx(float(s.trace))


def test_groups_of_a_hessian_come_from_the_same_products_without_bias() -> None:
    A = made("torch", "hessian")
    truth = blocks("torch", A)
    runs = [te.summary(A, groups=GROUPS, n_matvecs=30, rng=seed) for seed in range(200)]
    assert runs[0].n_matvecs == 30
    for label, D in truth.items():
        groups = [run.groups[label] for run in runs]
        assert_unbiased(np.array([float(g.trace) for g in groups]), np.trace(D))
        squares = np.array([float(g.frobenius_norm) ** 2 for g in groups])
        assert squares.all()  # none was cut off at 0
        assert_unbiased(squares, np.linalg.norm(D) ** 2)
        held = [c.low <= np.trace(D) <= c.high for c in (g.trace.confidence_interval() for g in groups)]
        assert np.mean(held) > 0.9


def test_an_indefinite_operator_has_a_trace_below_zero() -> None:
    A = te.Operator((40, 40), like=np.zeros(0), matmat=lambda V: -V * np.linspace(1, 2, 40)[:, None], symmetric=True)
    low, high = te.summary(A, n_matvecs=6, distribution="gaussian", rng=0).trace.confidence_interval()
    assert low < -60 < high


def test_rows_taken_for_blocks_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiagonalBlocks, "pairs", lambda s, a, b: super(DiagonalBlocks, s).pairs(a, b))
    with pytest.raises(AssertionError):
        test_groups_of_a_hessian_come_from_the_same_products_without_bias()
