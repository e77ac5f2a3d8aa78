"""The empirical Fisher of losses that are means with weights, with ignored labels or masks, against single examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from assertions import assert_close
from models import as_jax, jax_mlp, torch_mlp
from torch import nn
from torch.nn import functional as F

import traceest as te
from traceest_adapters import jax as in_jax
from traceest_adapters import torch as in_torch
from traceest_adapters._curvature import reduction as _reduction

N, CLASSES, TIME = 7, 5, 3
RNG = np.random.default_rng(1)
X = torch.as_tensor(RNG.standard_normal((N, 6)))
SEQUENCES = torch.as_tensor(RNG.standard_normal((N, TIME, 6)))
REAL = torch.as_tensor(RNG.standard_normal((N, CLASSES)))
LABELS = torch.as_tensor([1, -100, 3, 0, -100, 2, 1])
TOKENS = torch.as_tensor(RNG.integers(CLASSES, size=(N, TIME)))
TOKENS[0], TOKENS[2, 1:], TOKENS[5, 0] = -100, -100, -100
MASK = torch.tensor([1, 0, 1, 1, 0, 1, 1.0], dtype=torch.float64)
WEIGHTS = torch.linspace(0.2, 2.0, CLASSES, dtype=torch.float64)
MLP, SCALAR = torch_mlp((6, 8, CLASSES)), torch_mlp((6, 8, 1))
EVERY, KEPT = torch.ones(N, dtype=torch.float64), (LABELS >= 0).double()


def of_labels(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda z, y: f(z.flatten(0, -2), y.flatten())


# a model, its inputs, the loss, its targets, and what each example weighs in it
MEANS: dict[str, tuple[Any, Any, Any, Any, torch.Tensor]] = {
    "squared error": (MLP, X, nn.MSELoss(), REAL, EVERY),
    "ignored labels": (MLP, X, nn.CrossEntropyLoss(), LABELS, KEPT),
    "another label ignored": (MLP, X, nn.CrossEntropyLoss(ignore_index=1), LABELS.clamp(0), (LABELS != 1).double()),
    "ignored, smoothed": (MLP, X, nn.CrossEntropyLoss(label_smoothing=0.2), LABELS, KEPT),
    "class weights": (MLP, X, nn.CrossEntropyLoss(weight=WEIGHTS), LABELS.clamp(0), WEIGHTS[LABELS.clamp(0)]),
    "class weights, ignored, smoothed": (
        MLP,
        X,
        nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1),
        LABELS,
        KEPT * WEIGHTS[LABELS.clamp(0)],
    ),
    "log-likelihood": (
        nn.Sequential(MLP, nn.LogSoftmax(1)),
        X,
        nn.NLLLoss(weight=WEIGHTS),
        LABELS,
        KEPT * WEIGHTS[LABELS.clamp(0)],
    ),
    "tokens, some ignored": (
        MLP,
        SEQUENCES,
        of_labels(nn.CrossEntropyLoss()),
        TOKENS,
        (TOKENS >= 0).sum(1).double(),
    ),
    "a mask among the targets": (
        MLP,
        X,
        lambda z, t: ((z - t[0]).square().sum(1) * t[1]).sum() / t[1].sum(),
        (REAL, MASK),
        MASK,
    ),
    "weights of positives": (
        MLP,
        X,
        nn.BCEWithLogitsLoss(pos_weight=WEIGHTS),
        (REAL > 0).double(),
        EVERY,
    ),
    "squeezed": (
        SCALAR,
        X,
        lambda z, y: F.binary_cross_entropy_with_logits(z.squeeze(), y),
        (REAL[:, 0] > 0).double(),
        EVERY,
    ),
    "probabilities": (nn.Sequential(MLP, nn.Sigmoid()), X, nn.BCELoss(), (REAL > 0).double(), EVERY),
    "one example": (MLP, X[:1], nn.CrossEntropyLoss(), LABELS[:1], EVERY[:1]),
    "two examples, one ignored": (MLP, X[:2], nn.CrossEntropyLoss(), LABELS[:2], KEPT[:2]),
}


def own_gradients(model: nn.Module, x: torch.Tensor, loss: Any, targets: Any, weights: torch.Tensor) -> torch.Tensor:
    """g_n of each example by itself (zeros where it weighs nothing), (N, P)."""
    rows = []
    for n in range(len(x)):
        one = tuple(t[[n, n]] for t in targets) if isinstance(targets, tuple) else targets[[n, n]]
        value = loss(model(x[[n, n]]), one) if weights[n] else 0 * model(x[[n]]).sum()
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(model.parameters()))]))
    return torch.stack(rows)


def means_fisher(case: str) -> np.ndarray:
    model, x, loss, targets, weights = MEANS[case]
    g, shares = own_gradients(model, x, loss, targets, weights), (weights / weights.sum()).to(torch.float64)
    return ((g.T * shares) @ g).numpy()


@pytest.mark.parametrize("case", MEANS)
def test_a_mean_is_the_mean_over_what_counts_in_it(case: str) -> None:
    model, x, loss, targets, _ = MEANS[case]
    D, E = means_fisher(case), in_torch.empirical_fisher(model, loss, x, targets)
    assert_close(te.to_dense(E).detach(), D, rtol=1e-9)
    assert float(te.trace(E)) == pytest.approx(np.trace(D), rel=1e-9)
    assert te.trace(E).n_products == 1


def test_ignored_examples_are_as_if_they_were_not_there() -> None:
    kept = LABELS >= 0
    with_them = te.trace(in_torch.empirical_fisher(MLP, nn.CrossEntropyLoss(), X, LABELS))
    without = te.trace(in_torch.empirical_fisher(MLP, nn.CrossEntropyLoss(), X[kept], LABELS[kept]))
    assert float(with_them) == pytest.approx(float(without), rel=1e-10)


@pytest.mark.parametrize("case", ["class weights", "ignored labels", "tokens, some ignored"])
def test_a_sum_is_the_sum_with_its_weights(case: str) -> None:
    model, x, _, targets, _ = MEANS[case]
    plain = nn.CrossEntropyLoss(weight=WEIGHTS if "weights" in case else None, reduction="sum")
    loss = of_labels(plain) if x.ndim > 2 else plain
    g = own_gradients(model, x, lambda z, y: loss(z, y) / 2, targets, torch.ones(N))  # given twice
    E = in_torch.empirical_fisher(model, loss, x, targets, reduction="sum")
    assert_close(te.to_dense(E).detach(), g.T @ g, rtol=1e-10)


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e12])
def test_float32_models_and_scaled_losses_keep_their_shares(scale: float) -> None:
    _, x, _, y, _ = MEANS["class weights, ignored, smoothed"]
    plain = nn.CrossEntropyLoss(weight=WEIGHTS.float(), label_smoothing=0.1)
    E = in_torch.empirical_fisher(torch_mlp((6, 8, CLASSES)).float(), lambda z, y: scale * plain(z, y), x.float(), y)
    truth = np.trace(means_fisher("class weights, ignored, smoothed"))
    assert float(te.trace(E)) / scale**2 == pytest.approx(truth, rel=1e-4)


def test_a_time_major_model_has_its_targets_along_the_same_axis() -> None:
    def time_major(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(z.flatten(0, 1), y.flatten())

    E = in_torch.empirical_fisher(MLP, time_major, SEQUENCES.transpose(0, 1), TOKENS.T.contiguous(), batch_axis=1)
    assert_close(te.to_dense(E).detach(), means_fisher("tokens, some ignored"), rtol=1e-9)


# -- in JAX -------------------------------------------------------------------------------------------------------
PARAMS, JAX_X, JAX_MASK = as_jax(MLP), jnp.asarray(X.numpy()), jnp.asarray(MASK.numpy())


def masked(z: Any, t: Any) -> Any:
    return jnp.sum(jnp.sum((z - t[0]) ** 2, 1) * t[1]) / jnp.sum(t[1])


def ignoring(z: Any, y: Any) -> Any:
    kept = y >= 0
    nll = -jnp.take_along_axis(jax.nn.log_softmax(z), jnp.where(kept, y, 0)[:, None], axis=1)[:, 0]
    return jnp.sum(jnp.where(kept, nll, 0)) / jnp.sum(kept)


JAX_MEANS = {
    "a mask among the targets": (masked, (jnp.asarray(REAL.numpy()), JAX_MASK)),
    "ignored labels": (ignoring, jnp.asarray(LABELS.numpy())),
    "squared error": (lambda z, t: jnp.mean((z - t) ** 2), jnp.asarray(REAL.numpy())),
}


@pytest.mark.parametrize("case", JAX_MEANS)
def test_in_jax_a_mean_is_the_mean_over_what_counts_in_it_under_jit_too(case: str) -> None:
    loss, targets = JAX_MEANS[case]
    truth = np.trace(means_fisher(case))

    def trace(p: Any, t: Any) -> Any:
        return te.exact(in_jax.empirical_fisher(jax_mlp, loss, p, JAX_X, t)).value

    assert float(trace(PARAMS, targets)) == pytest.approx(truth, rel=1e-9)
    assert float(jax.jit(trace)(PARAMS, targets)) == pytest.approx(truth, rel=1e-9)
    assert all(jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(jax.grad(trace)(PARAMS, targets)))


# -- losses of which nothing can be told ------------------------------------------------------------------------------
COUPLED: dict[str, Callable[..., Any]] = {
    "a soft maximum over examples": lambda z, t: (z - t).square().sum(1).logsumexp(0),
    "the largest": lambda z, t: (z - t).square().sum(1).max(),
    "centred by the batch": lambda z, t: (z - z.mean(0) - t).square().mean(),
    "contrastive": lambda z, t: F.cross_entropy(z @ t.T, torch.arange(len(z))),
    "the root of a mean": lambda z, t: (z - t).square().mean().sqrt(),
    "weights that depend on outputs": lambda z, t: (z.detach().exp() * (z - t) ** 2).sum() / z.detach().exp().sum(),
}


@pytest.mark.parametrize("case", COUPLED)
def test_a_loss_that_couples_its_examples_is_refused(case: str) -> None:
    with pytest.raises(ValueError, match=r"couples its examples|not the mean|no mean of losses"):
        in_torch.empirical_fisher(MLP, COUPLED[case], X, REAL)


def test_in_jax_a_loss_that_couples_its_examples_is_refused() -> None:
    t = jnp.asarray(REAL.numpy())
    with pytest.raises(ValueError, match="couples its examples"):
        in_jax.empirical_fisher(
            jax_mlp, lambda z, t: jax.nn.logsumexp(jnp.sum((z - t) ** 2, 1)), PARAMS, JAX_X, t, reduction="mean"
        )


def test_what_a_loss_closes_over_has_to_come_among_its_targets() -> None:
    closing = {
        "mask": lambda z, t: ((z - t).square().sum(1) * MASK).sum() / MASK.sum(),
        "targets": lambda z, t: (z - REAL).square().mean(),
    }
    for loss in closing.values():
        with pytest.raises(ValueError, match=r"other examples than those of the whole batch.*targets="):
            in_torch.empirical_fisher(MLP, loss, X, REAL)
    with pytest.raises(ValueError, match=r"other examples than those of the whole batch.*targets="):
        in_jax.empirical_fisher(
            jax_mlp, lambda z, t: jnp.sum(jnp.sum((z - t) ** 2, 1) * JAX_MASK), PARAMS, JAX_X, jnp.asarray(REAL.numpy())
        )
    E = in_torch.empirical_fisher(MLP, closing["targets"], X, REAL, check=False)  # as it is given
    assert_close(te.to_dense(E).detach(), means_fisher("squared error"), rtol=1e-10)


def test_a_gradient_that_is_not_finite_and_an_unknown_reduction_are_told() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        in_torch.empirical_fisher(MLP, lambda z, t: (z - z.detach()).square().sum(1).sqrt().mean(), X, REAL)
    with pytest.raises(ValueError, match="'mean' or 'sum'"):
        in_torch.empirical_fisher(MLP, nn.MSELoss(), X, REAL, reduction="none", check=False)


# -- the tests bite -----------------------------------------------------------------------------------------------
def test_shares_that_are_all_the_same_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reduction, "shares", lambda r, q, reduction, *args: _reduction.uniform(reduction, len(r)))
    for case in ("ignored labels", "class weights", "tokens, some ignored"):
        with pytest.raises(AssertionError):
            test_a_mean_is_the_mean_over_what_counts_in_it(case)


def test_a_coupling_that_is_not_looked_for_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reduction, "check_uncoupled", lambda *args: None)
    with pytest.raises(pytest.fail.Exception):
        test_a_loss_that_couples_its_examples_is_refused("a soft maximum over examples")
