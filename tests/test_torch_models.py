"""Every statistic of models of every kind, against the dense kernel."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from assertions import assert_close
from torch_zoo import MODELS, case, truth, x

import traceest as te
from traceest_adapters.torch import TorchJacobian

pytestmark = [
    pytest.mark.filterwarnings("ignore:this model cannot be mapped"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),  # layers without a batching rule of their own
]


@pytest.mark.parametrize("name", MODELS)
def test_products_are_those_of_the_dense_jacobian(name: str) -> None:
    of, (D, _, _) = case(name), truth(name)
    J, rtol = of.jacobian(), of.rounding
    (n, P), B = D.shape, J.n_blocks
    assert J.shape == (n, P)
    V, W = x(n, 3), x(P, 3, seed=1)
    g = np.einsum("bnp,bnk->bkp", D.reshape(B, -1, P), V.numpy().reshape(B, -1, 3))
    assert_close(J.rmatmat(V), D.T @ V.numpy(), rtol)
    assert_close(J.block_rmatmat(V), g, rtol)
    assert_close(J.block_sqnorms(V), (g**2).sum(-1), rtol)
    assert_close(J.sketch_gram(V), np.einsum("bip,cjp->bicj", g, g), rtol)
    assert hasattr(J, "matmat") == of.forward
    if of.forward:
        assert_close(J.matmat(W), D @ W.numpy(), rtol)
        assert_close(J.gram_matmat(V), D @ (D.T @ V.numpy()), rtol)
        left, right = (V * J.matmat(W)).sum(0), (J.rmatmat(V) * W).sum(0)
        assert_close(left, right, rtol)  # ⟨v, Jw⟩ = ⟨Jᵀv, w⟩


def exact_statistics(K: np.ndarray, L: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    norm = np.linalg.norm
    return {
        "trace": np.trace(K),
        "frobenius_norm": norm(K),
        "effective_rank": np.trace(K) ** 2 / norm(K) ** 2,
        "alignment": np.sum(K * L) / (norm(K) * norm(L)),
        "target_alignment": y @ K @ y / (y @ y * norm(K)),
        "diagonal": np.diag(K),
        "eigenvalues": np.linalg.eigvalsh(K)[::-1][:3],
    }


ESTIMATES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "trace": lambda K, L, y: te.trace(K, rtol=0.05, rng=0),
    "frobenius_norm": lambda K, L, y: te.frobenius_norm(K, 4, rng=0),
    "effective_rank": lambda K, L, y: te.effective_rank(K, 4, rng=1),
    "alignment": lambda K, L, y: te.alignment(K, L, 4, rng=0),
    "target_alignment": lambda K, L, y: te.target_alignment(K, y, 4, rng=0),
    "diagonal": lambda K, L, y: te.diagonal(K, 4, rng=0),
    "eigenvalues": lambda K, L, y: te.eigenvalues(K, 3, rng=0),
}


@pytest.mark.parametrize("name", MODELS)
def test_estimates_agree_with_the_dense_kernel(name: str) -> None:
    of, (D, moved, E) = case(name), truth(name)
    K, L, y = te.gram(of.jacobian()), te.gram(of.jacobian(moved)), x(len(D), seed=5)
    exact = exact_statistics(D @ D.T, E @ E.T, y.numpy())
    for statistic, estimate in ESTIMATES.items():
        if statistic == "diagonal" and not of.forward:
            continue
        e, expected = estimate(K, L, y), exact[statistic]
        if statistic == "eigenvalues":
            assert_close(e.values, expected, 1e-6)
            continue
        if statistic == "diagonal":  # of few samples an entry: Student's quantiles are far from the normal's
            low, high = e.confidence_interval(1 - 1e-3 / len(expected))
            assert np.all((low - 1e-12 <= expected) & (expected <= high + 1e-12))
            continue
        off, rounding = abs(float(e) - expected), of.rounding * abs(expected)
        assert off <= 4 * float(e.stderr) + rounding, f"{statistic}: {e!r}, expected {expected}"


# -- the tests bite ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("product", ["rmatmat", "block_sqnorms", "sketch_gram", "_matmat"])
def test_a_product_that_is_off_by_a_millionth_is_caught(monkeypatch: pytest.MonkeyPatch, product: str) -> None:
    honest = getattr(TorchJacobian, product)
    monkeypatch.setattr(TorchJacobian, product, lambda J, V: honest(J, V) * (1 + 1e-6))
    with pytest.raises(AssertionError):
        test_products_are_those_of_the_dense_jacobian("gru, time-major, two layers")


def test_the_kernel_of_other_parameters_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    D, moved, E = truth("mlp")
    monkeypatch.setattr(sys.modules[__name__], "truth", lambda name: (E, moved, D))
    with pytest.raises(AssertionError):
        test_estimates_agree_with_the_dense_kernel("mlp")
