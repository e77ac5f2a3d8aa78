"""Statistics of kernels grow to a tolerance by the products that they have, to what a fixed budget of as many gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import operators_zoo as zoo
import pytest
import torch
from assertions import Counter, assert_counts

import traceest as te
from traceest.kernels.sketches import one_sided_sampler
from traceest_adapters.torch import ntk

J, L = zoo.jacobian(6, 60, 200), zoo.jacobian(6, 60, 200, seed=1)
CALLS: dict[str, Any] = {
    "norm": lambda K, L, **how: te.frobenius_norm(K, **how),
    "rank": lambda K, L, **how: te.effective_rank(K, **how),
    "alignment": te.alignment,
    "centred alignment": te.centred_alignment,
    "distance": te.relative_distance,
    "target alignment": lambda K, L, **how: te.target_alignment(K, J[:, 0], **how),
    "inner product": te.inner_product,
}
RTOL = {"norm": 0.1, "rank": 0.1, "inner product": 0.3, "target alignment": 0.1, "distance": 0.05}


def kernels(way: str) -> tuple[Any, Any, dict[str, Any]]:
    """Two kernels, and how they are asked for the side."""
    if way == "blocks":
        return te.gram(J, n_blocks=6), te.gram(L, n_blocks=6), {}
    return te.gram(J), te.gram(L), {"method": way}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("way", ["blocks", "one-sided"])
def test_what_has_grown_is_what_a_fixed_budget_of_as_many_products_gives(name: str, way: str) -> None:
    K, M, how = kernels(way)
    looks: list[te.Estimate] = []
    e = CALLS[name](K, M, rtol=RTOL.get(name, 0.3), rng=0, callback=lambda e: looks.append(e) and None, **how)
    pair = name not in ("norm", "rank", "target alignment")
    assert len(looks) > 1
    grown = looks[-1]
    fixed = CALLS[name](K, M, n_probes=grown.n_rmatvecs // (1 + pair), rng=0, **how)
    for field in ("value", "stderr", "df"):
        np.testing.assert_allclose(getattr(grown, field), getattr(fixed, field), rtol=1e-7)
    assert e.converged


@pytest.mark.parametrize("name", CALLS)
def test_a_two_sided_sketch_that_has_grown_is_that_of_all_its_probes(name: str) -> None:
    """The basis is another, its span the same."""
    K, M = (te.aslinearoperator(zoo.spectral("poly", 200, seed), psd=True) for seed in (0, 1))
    looks: list[te.Estimate] = []
    y = {"target alignment": lambda K, L, **how: te.target_alignment(K, np.arange(200.0), **how)}
    call = (CALLS | y)[name]
    call(K, M, rtol=1e-3, rng=0, max_matvecs=130, callback=lambda e: looks.append(e) and None)
    pair = name not in ("norm", "rank", "target alignment")
    assert len([e for e in looks if e.method == "two-sided low-rank"]) > 1
    fixed = call(K, M, n_matvecs=looks[-1].n_matvecs // (1 + pair), rng=0)
    assert fixed.n_matvecs == looks[-1].n_matvecs
    # Of two kernels the mixture that is spanned is in units of the first look's products, or of all.
    np.testing.assert_allclose(looks[-1].value, fixed.value, rtol=1e-3 if pair else 1e-7)
    np.testing.assert_allclose(looks[-1].stderr, fixed.stderr, rtol=0.3 if pair else 1e-4)


@pytest.mark.parametrize("name", ["norm", "rank", "alignment", "centred alignment"])
def test_sketches_that_cannot_be_held_are_paired_within_each_growth(name: str, monkeypatch: Any) -> None:
    """Nothing is made anew, and the interval holds the value as often."""
    monkeypatch.setattr(one_sided_sampler, "HELD", 0)
    monkeypatch.setattr(te.DenseOperator, "sketch_bytes", property(lambda J: 8 * J.shape[0] * 200), raising=False)
    K, M, _ = kernels("blocks")
    truth = float(CALLS[name](K, M, method="exact"))
    rtol, held = 0.1 if name in ("norm", "rank") else 0.05, 0
    for seed in range(100):
        e = CALLS[name](K, M, rtol=rtol, rng=seed)
        assert e.converged
        held += e.confidence_interval().low <= truth <= e.confidence_interval().high
    assert held >= 90


@pytest.mark.parametrize("way", ["blocks", "one-sided", "two-sided"])
@pytest.mark.parametrize("name", CALLS)
def test_a_run_that_was_stopped_goes_on_from_its_checkpoint(name: str, way: str, tmp_path: Any) -> None:
    K, M, how = kernels(way)
    path = tmp_path / "run.npz"
    rtol = 0.05 * RTOL.get(name, 0.1)
    first = CALLS[name](K, M, rtol=rtol, rng=0, checkpoint=path, callback=lambda e: True, **how)
    again = CALLS[name](K, M, rtol=rtol, rng=0, checkpoint=path, **how)
    assert first.converged is False
    assert again.converged
    assert again.n_rmatvecs > first.n_rmatvecs
    with pytest.raises(ValueError, match="of another operator"):
        CALLS[name](te.gram(2 * J, n_blocks=6 if way == "blocks" else None), M, rtol=rtol, checkpoint=path, **how)
    with pytest.raises(ValueError, match="of another run"):
        te.frobenius_norm(te.gram(J[:120]), rtol=rtol, checkpoint=path)


def test_every_product_is_counted_and_kept() -> None:
    counted = Counter(te.aslinearoperator(J, n_blocks=6))
    looks: list[int] = []
    e = te.frobenius_norm(te.gram(counted), rtol=0.1, rng=0, callback=lambda e: looks.append(e.n_rmatvecs) and None)
    assert_counts(e, counted)
    assert looks[-1] == e.n_rmatvecs
    assert not e.exact


def test_a_models_sketches_grow_too_and_carry_their_gradient() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 60))
    x = torch.randn(5, 8)
    parameters = list(model.parameters())
    e = te.frobenius_norm(ntk(model, x, differentiable=True), rtol=0.2, rng=0)
    f = te.frobenius_norm(ntk(model, x, differentiable=True), e.n_rmatvecs, rng=0)
    for ours, theirs in zip(
        torch.autograd.grad(e.value, parameters, allow_unused=True),
        torch.autograd.grad(f.value, parameters, allow_unused=True),
        strict=True,
    ):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_four_samples_of_a_heavy_tail_do_not_decide_for_the_exact_trace() -> None:
    """One block's samples are of one large eigenvalue: their spread is known to a factor of several."""
    rng, n, P = np.random.default_rng(0), 800, 500
    one, many = rng.standard_normal((n, 1)) * rng.standard_normal(P), rng.standard_normal((n, P))
    J = te.aslinearoperator((one + 0.3 * many) / P**0.5, n_blocks=2)
    vjps = te.Operator(J.shape, like=J, rmatmat=J.rmatmat, block_rmatmat=J.block_rmatmat, n_blocks=2)
    runs = [te.trace(te.gram(vjps), rtol=0.3, rng=seed) for seed in range(60)]
    assert sum(e.exact for e in runs) <= 4


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"n_probes": 4, "rtol": 0.1}, TypeError, "max_matvecs=4 for the most to spend"),
        ({"n_probes": 4, "callback": print}, TypeError, "callback belong to a run that grows to a tolerance"),
        ({"rtol": -1.0}, ValueError, "rtol must be ≥ 0"),
        ({"rtol": 0.1, "confidence": 2.0}, ValueError, "confidence must lie between 0 and 1"),
        ({"rtol": 0.1, "max_matvecs": 1}, ValueError, "max_matvecs = 1 is below"),
    ],
)
def test_what_does_not_go_together_is_said(given: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        te.frobenius_norm(te.gram(J, n_blocks=6), **given)


def test_an_interval_at_another_confidence_is_inside_an_absolute_tolerance() -> None:
    K = te.gram(J, n_blocks=6)
    lines: list[str] = []
    e = te.frobenius_norm(K, atol=30.0, confidence=0.8, rng=0, explain=lines.append)
    low, high = e.confidence_interval(0.8)
    assert e.converged
    assert high - low <= 60.0 * (1 + 1e-12)
    assert lines[-1] == "the interval is inside the tolerance"


def test_pieces_of_many_probes_make_the_same_gram_array(monkeypatch: Any) -> None:
    K = te.gram(J, n_blocks=6)
    whole = te.frobenius_norm(K, rtol=0.1, rng=0)
    monkeypatch.setattr(one_sided_sampler, "PIECE", 2 * K.factor.sketch_bytes)
    assert float(te.frobenius_norm(K, rtol=0.1, rng=0)) == pytest.approx(float(whole), rel=1e-12)
