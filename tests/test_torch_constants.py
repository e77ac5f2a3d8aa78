"""Statistics outside of PyTorch's graph: tensors like any other, and never a gradient of zero without a word."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import traceest as te
from traceest import _boundary
from traceest_adapters.torch import empirical_fisher, gauss_newton, hessian, jacobian, ntk

F64 = {"dtype": torch.float64}
RNG = np.random.default_rng(0)
X, Y = torch.as_tensor(RNG.standard_normal((6, 4))), torch.as_tensor(RNG.standard_normal((6, 3)))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8, **F64), nn.Tanh(), nn.Linear(8, 3, **F64))


def other() -> Any:
    """The kernel of a frozen model."""
    torch.manual_seed(1)
    frozen = nn.Sequential(nn.Linear(4, 5, **F64), nn.Tanh(), nn.Linear(5, 3, **F64)).requires_grad_(False)
    return ntk(frozen, X, wrt=["0.weight", "2.weight"])


STATISTICS: dict[str, Callable[[Any], Any]] = {
    "rhutch": lambda m: te.rhutch(ntk(m, X), 1, rng=0).value,
    "hutchinson": lambda m: te.hutchinson(ntk(m, X), 4, rng=0).value,
    "trace, to a tolerance": lambda m: te.trace(ntk(m, X), rtol=0.2, rng=0).value,
    "exact": lambda m: te.exact(ntk(m, X)).value,
    "frobenius_norm": lambda m: te.frobenius_norm(ntk(m, X), n_probes=2, rng=0).value,
    "effective_rank, to a tolerance": lambda m: te.effective_rank(ntk(m, X), rtol=0.5, rng=0).value,
    "xtrace": lambda m: te.xtrace(ntk(m, X), 8, rng=0).value,
    "nystrompp": lambda m: te.nystrompp(ntk(m, X), 8, rng=0).value,
    "diagonal": lambda m: te.diagonal(ntk(m, X), 4, rng=0).value.sum(),
    "alignment": lambda m: te.alignment(other(), ntk(m, X), n_probes=2, rng=0).value,
    "alignment with targets": lambda m: te.target_alignment(ntk(m, X), Y, n_probes=3, rng=0).value,
    "summary": lambda m: te.summary(ntk(m, X), n_probes=2, rng=0).trace.value,
    "its groups": lambda m: te.summary(ntk(m, X), n_probes=2, rng=0, groups=1).groups["0"].trace.value,
    "spectral_norm": lambda m: te.spectral_norm(ntk(m, X), rng=0).value,
    "eigenvalues": lambda m: te.eigenvalues(ntk(m, X), 2, rng=0).values.sum(),
    "schatten_norm": lambda m: te.schatten_norm(ntk(m, X), 3, 60, rng=0).value,
    "partial_trace": lambda m: te.partial_trace(ntk(m, X), keep=0, n_probes=3, rng=0).trace.value,
    "tracker": lambda m: te.Tracker(n_probes=3, rng=0).update(ntk(m, X)).trace.value,
    "samples": lambda m: te.hutchinson(te.gram(jacobian(m, X, batch_axis=None)), 3, rng=0).samples.mean(),
    "merged": lambda m: te.merge([te.rhutch(ntk(m, X), 3, rng=s) for s in (0, 1)]).value,
    "a sum of kernels": lambda m: te.rhutch(ntk(m, X) + 2.0 * other(), 3, rng=0).value,
    "of batches": lambda m: te.frobenius_norm(ntk(m, batches=[X[:3], X[3:]]), n_probes=2, rng=0).value,
    "of a function": lambda m: (
        te.rhutch(
            ntk(lambda p, x: x @ p["w"], X, params={"w": m[0].weight.T @ torch.ones(8, 1, **F64)}), 1, rng=0
        ).value
    ),
    "of a head, by all": lambda m: te.rhutch(ntk(m, X, wrt=["2.weight"]), 1, rng=0).value,
    "hessian": lambda m: te.hutchinson(hessian(m, nn.MSELoss(), X, Y), 3, rng=0).value,
    "gauss_newton": lambda m: te.rhutch(gauss_newton(m, nn.MSELoss(), X, Y).dual, 2, rng=0).value,
    "empirical_fisher": lambda m: te.trace(empirical_fisher(m, nn.MSELoss(), X, Y)).value,
}


@pytest.mark.parametrize("name", STATISTICS)
def test_a_penalty_without_a_gradient_is_refused_at_backward(name: str) -> None:
    m = model()
    penalty = STATISTICS[name](m)
    assert not penalty.requires_grad
    loss = m(X).square().mean() + 0.1 * penalty
    with pytest.raises(RuntimeError, match=r"asked for through a statistic.*\.detach\(\)"):
        loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="asked for through a statistic"):
        torch.autograd.grad(loss, [m[0].weight])
    m.zero_grad()
    (m(X).square().mean() + 0.1 * penalty.detach()).backward()
    constant = m[0].weight.grad.clone()
    m.zero_grad()
    (m(X).square().mean() + 0.1 * float(penalty)).backward()
    assert torch.equal(m[0].weight.grad, constant)


MIXTURES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "product": lambda loss, e: loss * e,
    "quotient": lambda loss, e: loss / (1 + e.sqrt()),
    "in place": lambda loss, e: loss.clone().add_(e),
    "stacked": lambda loss, e: torch.stack([loss, e]).sum(),
    "where": lambda loss, e: torch.where(e > 0, e, loss),
    "written into": lambda loss, e: loss.repeat(2).index_put((torch.tensor(0),), e).sum(),
    "a function": lambda loss, e: nn.functional.mse_loss(loss, e),
    "by itself": lambda loss, e: e,
    "after itself": lambda loss, e: (e.log() - 1).square() + loss,
}


@pytest.mark.parametrize("how", MIXTURES)
def test_however_it_is_mixed_with_the_loss(how: str) -> None:
    m = model()
    loss = MIXTURES[how](m(X).square().mean(), te.trace(ntk(m, X)).value)
    with pytest.raises(RuntimeError, match="differentiable=True"):
        loss.backward()


def test_inputs_that_require_a_gradient_are_told_too() -> None:
    x = X.clone().requires_grad_()
    m = model().requires_grad_(False)
    m[2].weight.requires_grad_()
    value = te.trace(ntk(m, x)).value
    assert not value.requires_grad
    with pytest.raises(RuntimeError, match="asked for through a statistic"):
        torch.autograd.grad(m(x).sum() + value, [x])


def test_a_gradient_by_what_it_was_not_made_of_is_none_of_its_business() -> None:
    w = torch.ones((), **F64, requires_grad=True)
    (g,) = torch.autograd.grad(w**2 * te.trace(ntk(model(), X)).value, [w])
    assert float(g) > 0


def test_what_is_differentiable_stays_so_and_says_where_it_is_not() -> None:
    m = model()
    value = te.frobenius_norm(ntk(m, X, differentiable=True), n_probes=2, rng=0).value
    assert type(value) is torch.Tensor
    (m(X).square().mean() + value).backward()
    lost = te.spectral_norm(ntk(m, X, differentiable=True), rng=0).value
    if not lost.requires_grad:
        with pytest.raises(RuntimeError, match="fixed budget"):
            (m(X).square().mean() + lost).backward()


def test_it_is_a_tensor_like_any_other(tmp_path: Path) -> None:
    m = model()
    e = te.frobenius_norm(ntk(m, X), n_probes=2, rng=0)
    with torch.no_grad():
        plain = te.frobenius_norm(ntk(m, X), n_probes=2, rng=0)
    assert type(plain.value) is torch.Tensor
    assert torch.equal(e.value, plain.value)
    assert (repr(e), repr(e.value), str(e)) == (repr(plain), repr(plain.value), str(plain))
    assert e.confidence_interval() == plain.confidence_interval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(e) == e.value.item() == float(e.value.numpy()) == float(np.asarray(e.value))
        assert f"{e.value:.3f}" == f"{float(plain):.3f}"
    assert bool(torch.isclose(e.value, plain.value + 0 * m[0].weight.sum()))
    assert e.value.tolist() == plain.value.tolist()
    for other in (pickle.loads(pickle.dumps(e)), copy.deepcopy(e), copy.copy(e)):
        assert float(other) == float(e)
    te.save(e, tmp_path / "estimate.npz")
    assert float(te.load(tmp_path / "estimate.npz")) == float(e)
    torch.save(e.value, tmp_path / "value.pt")
    assert torch.equal(torch.load(tmp_path / "value.pt"), plain.value)
    leaves, spec = torch.utils._pytree.tree_flatten(e)
    assert float(torch.utils._pytree.tree_unflatten(leaves, spec)) == float(e)
    out = torch.zeros(2, **F64)
    out[0] = e.value
    torch.testing.assert_close(out[0], plain.value)
    assert float(torch.func.grad(lambda s: s * e.value)(torch.ones((), **F64))) == pytest.approx(float(e))


def test_frozen_models_and_plain_matrices_give_plain_tensors() -> None:
    assert type(te.trace(ntk(model().requires_grad_(False), X, wrt=["0.weight"])).value) is torch.Tensor
    te.trace(ntk(model(), X))
    assert type(te.trace(Y.T @ Y).value) is torch.Tensor
    A = (Y.T @ Y).requires_grad_()
    te.trace(A).value.backward()
    assert A.grad is not None


def test_it_goes_on_when_the_model_is_gone() -> None:
    value = te.trace(ntk(model(), X)).value
    w = torch.ones((), **F64, requires_grad=True)
    (w * value).backward()
    assert float(w.grad) == float(value)


def test_public_calls_can_be_pickled() -> None:
    for name in ("trace", "rhutch", "frobenius_norm", "summary"):
        assert pickle.loads(pickle.dumps(getattr(te, name))) is getattr(te, name)


def test_products_of_an_operator_are_plain() -> None:
    J = jacobian(model(), X)
    assert type(J.rmatmat(torch.ones(J.shape[0], 1, **F64))) is torch.Tensor


# -- the tests bite -----------------------------------------------------------------------------------------------
def test_a_source_that_is_not_told_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_boundary, "_marked", lambda result, sources: result)
    with pytest.raises(pytest.fail.Exception):
        test_a_penalty_without_a_gradient_is_refused_at_backward("rhutch")
