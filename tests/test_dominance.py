"""Intervals hold where one example holds most of a kernel, and are no wider where none does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import operators_zoo as zoo
import pytest
from assertions import assert_close
from scipy.special import stdtrit

import traceest as te
from traceest._array_api import namespace
from traceest.uncertainty import skewed_intervals, ustatistics
from traceest.uncertainty.ustatistics import block_sum, pair_mean, squared_mean

B, N, P = 20, 10, 60
BALANCED = zoo.jacobian(B, N, P)


def dominated(share: float = 0.62) -> np.ndarray:
    """J whose first block is one direction of rows and holds `share` of ‖K‖²."""
    J, rng = BALANCED.reshape(B, N, P).copy(), np.random.default_rng(5)
    J[0] = np.outer(rng.standard_normal(N), rng.standard_normal(P))
    for _ in range(60):
        K = J.reshape(B * N, P) @ J.reshape(B * N, P).T
        J[0] *= (share * np.sum(K**2) / np.sum((J[0] @ J[0].T) ** 2)) ** 0.25
    return J.reshape(B * N, P)


HEAVY = dominated()
SEEDS = 300


def truths(J: np.ndarray) -> dict[str, float]:
    K = J @ J.T
    return {
        "trace": np.trace(K),
        "frobenius_norm": np.linalg.norm(K),
        "effective_rank": np.trace(K) ** 2 / np.sum(K**2),
    }


def check_coverage(m: int, least: float = 0.90) -> None:
    """Of the nominal 95 % intervals of trace, norm and rank; four standard errors of 300 seeds are five points."""
    held: dict[str, list[bool]] = {name: [] for name in truths(HEAVY)}
    for seed in range(SEEDS):
        s = te.summary(te.gram(HEAVY, n_blocks=B), n_probes=m, rng=seed)
        for name, truth in truths(HEAVY).items():
            low, high = getattr(s, name).confidence_interval()
            held[name].append(low <= truth <= high)
    for name, hits in held.items():
        assert least <= np.mean(hits), f"{name} covers {np.mean(hits):.3f}"


@pytest.mark.parametrize("m", [4, 8])
def test_intervals_hold_where_one_example_holds_most_of_the_kernel(m: int) -> None:
    check_coverage(m)


def test_an_interval_that_forgets_the_unlucky_block_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ustatistics, "reach", lambda *args: None)
    with pytest.raises(AssertionError, match="covers"):
        check_coverage(4)


def test_a_reach_that_is_too_short_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    student = skewed_intervals.student
    monkeypatch.setattr(skewed_intervals, "student", lambda *args: student(*args) / 3)
    with pytest.raises(AssertionError, match="covers"):
        check_coverage(4)


def test_intervals_are_students_where_no_example_dominates() -> None:
    ratios = []
    for seed in range(40):
        e = te.frobenius_norm(te.gram(BALANCED, n_blocks=B), 8, rng=seed)
        low, high = e.confidence_interval()
        ratios.append((high - low) / (2 * stdtrit(float(e.df), 0.975) * float(e.stderr)))
    assert min(ratios) == pytest.approx(1.0, rel=1e-6)
    assert np.mean(ratios) < 1.1


def norm_of_factor(J: np.ndarray, m: int, rng: int) -> te.Estimate:
    return te.frobenius_norm(te.gram(J), n_probes=m, rng=rng)


def test_a_low_rank_operator_without_blocks_has_an_interval_that_holds() -> None:
    J = HEAVY[:N] + 0.05 * BALANCED[:N]
    for call, truth in ((te.rhutch, np.sum(J**2)), (norm_of_factor, np.linalg.norm(J @ J.T))):
        ends = [call(J, 6, rng=seed).confidence_interval() for seed in range(SEEDS)]
        assert np.mean([low <= truth <= high for low, high in ends]) >= 0.90


# -- the algebra -----------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.3, 2.5])
def test_a_rescaled_block_is_a_block_of_rescaled_probes(backend: Any, factor: float) -> None:
    blocks, m, rng = 3, 4, np.random.default_rng(0)
    g = rng.standard_normal((blocks, m, 7))

    def statistics(g: Any) -> tuple[Any, Any, Any]:
        G = np.einsum("bip,cjp->bicj", g, g)
        x = np.einsum("bibi->bi", G)
        return G**2, x, x

    def at(*data: Any) -> list[Any]:
        xp = namespace(data[0])
        factors = xp.ones_like(data[1][:, 0])[None, :] * factor
        return [
            of(xp, a).rescaled.at(factors) for of, a in zip((pair_mean, block_sum, squared_mean), data, strict=True)
        ]

    found = backend.call(at, *statistics(g))
    for k, of in enumerate((pair_mean, block_sum, squared_mean)):
        for b in range(blocks):
            scaled = g.copy()
            scaled[b] *= factor**0.5
            assert_close(backend.host(found[k])[0, b], of(np, statistics(scaled)[k]).value, 1e-11)


def test_students_quantile_is_close_to_the_exact_one() -> None:
    dfs = np.asarray([2.0, 3.0, 5.0, 20.0])
    for level, found in zip(skewed_intervals.LEVELS[1:], skewed_intervals.student(np, dfs), strict=True):
        near = 0.07 if level <= 0.975 else 0.35  # too far at 99.9 % with two
        np.testing.assert_allclose(found, stdtrit(dfs, 0.5 + level / 2), rtol=near)


def test_reach_grows_with_confidence_and_is_kept_on_disk_in_mergers_and_json(tmp_path: Any) -> None:
    K = te.gram(HEAVY, n_blocks=B)
    e, other = (te.frobenius_norm(K, 4, rng=seed) for seed in (0, 1))
    widths = [e.half_width(c) for c in (0.5, 0.8, 0.85, 0.9, 0.95, 0.97, 0.99)]
    assert np.all(np.diff(widths) > 0)
    low, high = e.confidence_interval()
    assert high - float(e) > float(e) - low  # skewed to the right
    te.save(e, tmp_path / "e.npz")
    assert te.load(tmp_path / "e.npz").confidence_interval() == e.confidence_interval()
    assert e.to_dict()["ci95"] == [low, high]
    merged = e.merge(other)
    assert 0 < merged.half_width() < max(e.half_width(), other.half_width())
    symmetric = replace(merged, reach=None)
    assert merged.half_width() > symmetric.half_width()


def test_the_exact_answer_has_no_reach() -> None:
    low, high = te.frobenius_norm(te.gram(HEAVY, n_blocks=B), N, rng=0).confidence_interval()
    assert low == high
