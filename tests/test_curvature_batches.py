"""The curvature of a loss over the batches of a loader is that over all examples at once, in both frameworks."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from models import as_jax, jax_mlp, torch_mlp
from torch import nn

import traceest as te
from traceest_adapters import jax as in_jax
from traceest_adapters import torch as in_torch
from traceest_adapters._curvature import matrices
from traceest_adapters.torch import calculus

MLP = torch_mlp((4, 5, 3))
PARAMS = as_jax(MLP)
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((10, 4)), RNG.standard_normal((10, 3))
LABELS = RNG.integers(3, size=10)
CUTS = [slice(0, 6), slice(6, 10)]
MATRICES = ("hessian", "gauss_newton", "empirical_fisher")
JAX_LOSSES = {
    "mean": lambda z, y: jnp.mean((z - y) ** 2),
    "sum": lambda z, y: jnp.sum((z - y) ** 2),
}


def coupled(z: Any, y: Any) -> Any:
    return ((z - y).sum(0) ** 2).sum()


def made(framework: str, of: str, loss: Any, *data: Any, **options: Any) -> Any:
    if framework == "jax":
        return getattr(in_jax, of)(jax_mlp, loss, PARAMS, *map(jnp.asarray, data), **options)
    return getattr(in_torch, of)(MLP, loss, *map(torch.as_tensor, data), **options)


def batches(framework: str) -> list[tuple[Any, Any]]:
    convert = jnp.asarray if framework == "jax" else torch.as_tensor
    return [(convert(X[cut]), convert(Y[cut])) for cut in CUTS]


def loss_of(framework: str, kind: str) -> Any:
    return JAX_LOSSES[kind] if framework == "jax" else nn.MSELoss(reduction=kind)


def dense(A: Any) -> np.ndarray:
    return np.asarray(te.to_dense(A))


@pytest.mark.parametrize("of", MATRICES)
@pytest.mark.parametrize(("framework", "kind"), [("jax", "mean"), ("torch", "mean"), ("torch", "sum")])
def test_the_matrix_of_batches_of_unequal_size_is_that_of_all_examples(framework: str, of: str, kind: str) -> None:
    loss, data = loss_of(framework, kind), batches(framework)
    whole, parts = (
        made(framework, of, loss, X, Y, reduction=kind),
        made(framework, of, loss, batches=data, reduction=kind),
    )
    np.testing.assert_allclose(dense(parts), dense(whole), atol=1e-12)
    if of != "hessian":
        for statistic in (te.trace, te.frobenius_norm):
            assert float(statistic(parts, method="exact")) == pytest.approx(float(statistic(whole, method="exact")))


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_a_curvature_without_rows_is_added_up_batch_by_batch(framework: str) -> None:
    data = batches(framework)
    G = made(framework, "gauss_newton", coupled, batches=data, reduction="sum", check=False)
    expected = sum(dense(made(framework, "gauss_newton", coupled, X[cut], Y[cut])) for cut in CUTS)
    np.testing.assert_allclose(dense(G), expected, atol=1e-11)


@pytest.mark.parametrize(("framework", "of"), [("jax", "hessian"), *(("torch", of) for of in MATRICES)])
def test_a_reduction_that_is_not_the_losss_is_told_on_the_first_batch(framework: str, of: str) -> None:
    with pytest.raises(ValueError, match=f"{of}: the loss is not the sum.*give reduction='mean'"):
        made(framework, of, loss_of(framework, "mean"), batches=batches(framework), reduction="sum")


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_parts_of_a_batch_are_picked_and_what_is_no_pair_is_told(framework: str) -> None:
    data = [{"pixels": x, "label": y} for x, y in batches(framework)]
    picked = made(framework, "gauss_newton", loss_of(framework, "mean"), batches=data, input="pixels", targets="label")
    whole = made(framework, "gauss_newton", loss_of(framework, "mean"), X, Y)
    np.testing.assert_allclose(dense(picked), dense(whole), atol=1e-12)
    for options, message in (
        ({}, r"a batch is a dict of 2, expected a pair .*input= and targets="),
        ({"targets": "label"}, "targets= without input="),
    ):
        with pytest.raises(TypeError, match=message):
            made(framework, "gauss_newton", loss_of(framework, "mean"), batches=data, **options)
    with pytest.raises(TypeError, match="give inputs, or batches=, not both"):
        made(framework, "hessian", loss_of(framework, "mean"), X, Y, batches=data)


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_a_hessian_of_a_function_that_is_the_loss_goes_over_batches(framework: str) -> None:
    convert = jnp.asarray if framework == "jax" else torch.as_tensor
    inputs = [convert(X[cut]) for cut in CUTS]
    if framework == "jax":
        f = lambda p, x: jnp.mean(jax_mlp(p, x) ** 2)  # noqa: E731
        parts, whole = in_jax.hessian(f, PARAMS, batches=inputs), in_jax.hessian(f, PARAMS, convert(X))
    else:
        p = dict(MLP.named_parameters())
        f = lambda p, x: torch.func.functional_call(MLP, p, (x,)).square().mean()  # noqa: E731
        parts = in_torch.hessian(f, params=p, batches=inputs)
        whole = in_torch.hessian(f, inputs=convert(X), params=p)
    np.testing.assert_allclose(dense(parts), dense(whole), atol=1e-12)


@pytest.mark.parametrize(("framework", "of"), [("jax", "hessian"), *(("torch", of) for of in MATRICES)])
def test_the_curvature_of_some_parameters_is_that_block_of_all(framework: str, of: str) -> None:
    loss = loss_of(framework, "mean")
    whole, some = made(framework, of, loss, X, Y), made(framework, of, loss, X, Y, wrt="*.weight")
    assert some.shape == (35, 35)
    sizes = [p.numel() for p in MLP.parameters()]
    names = [name for name, _ in MLP.named_parameters()]
    order = sorted(names) if framework == "jax" else names
    at = np.concatenate([np.full(sizes[names.index(name)], name.endswith("weight")) for name in order])
    np.testing.assert_allclose(dense(some), dense(whole)[np.ix_(at, at)], atol=1e-12)


# -- the look at a loss's examples, mapped over them -------------------------------------------------------------
class Halved(torch.autograd.Function):
    """z ↦ z, whose batched form halves every second example's gradient."""

    @staticmethod
    def forward(z: torch.Tensor) -> torch.Tensor:
        return z.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return g

    @staticmethod
    def vmap(info: Any, in_dims: Any, z: torch.Tensor) -> Any:
        scale = torch.where(torch.arange(len(z)) % 2 == 0, 1.0, 0.5).reshape(-1, *(1 for _ in z.shape[1:])).to(z)
        return scale * z + ((1 - scale) * z).detach(), in_dims[0]


def halved(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (Halved.apply(z) - y).square().mean()


def test_examples_are_mapped_over_and_a_wrong_rule_is_left_for_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    singly: list[int] = []
    honest = calculus._singly
    monkeypatch.setattr(calculus, "_singly", lambda at, some: (singly.append(len(some)), honest(at, some))[1])
    x, y = torch.randn(64, 4, dtype=torch.float64), torch.randn(64, 3, dtype=torch.float64)
    right = in_torch.empirical_fisher(MLP, nn.MSELoss(), x, y)
    assert singly[0] <= calculus.LOOKED
    wrong = in_torch.empirical_fisher(MLP, halved, x, y)
    assert singly[1] <= calculus.LOOKED
    assert singly[2:] == [64]
    assert float(te.trace(wrong)) == pytest.approx(float(te.trace(right)), rel=1e-12)


def test_a_look_at_no_example_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calculus, "_one_of_each", lambda r, q: torch.arange(1))
    with pytest.raises(AssertionError):
        test_examples_are_mapped_over_and_a_wrong_rule_is_left_for_one_by_one(monkeypatch)


@pytest.mark.parametrize("of", ["hessian", "gauss_newton"])
def test_batches_that_count_alike_are_caught(monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    honest = matrices.of_batches
    equal = lambda make, *args: honest(lambda data, p: (make(data, p)[0], 4), *args)  # noqa: E731
    monkeypatch.setattr(matrices, "of_batches", equal)
    with pytest.raises(AssertionError):
        test_the_matrix_of_batches_of_unequal_size_is_that_of_all_examples("torch", of, "mean")
