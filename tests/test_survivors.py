"""Small things that no other test would miss, found by changing them: each of these fails if its line is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import operators_zoo as zoo
import pytest
import torch
from models import torch_mlp

import traceest as te
from traceest.uncertainty import skewed_intervals
from traceest_adapters import _memory as memory
from traceest_adapters.jax import jacobian as in_jax
from traceest_adapters.torch import jacobian as in_torch

N = 80
J = zoo.jacobian(8, 10, 60)


class Killed(Exception):
    """What ends a run from outside."""


# -- kernels ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("blocks", [1, 8])
@pytest.mark.parametrize("made", ["gram", "products"])
def test_exact_centred_statistics_are_those_of_the_kernel_centred_on_both_sides(blocks: int, made: str) -> None:
    rng = np.random.default_rng(0)
    factors = [J + 3 * rng.standard_normal(60), zoo.jacobian(8, 10, 60, 1) + rng.standard_normal((80, 1))]
    H = np.eye(N) - 1 / N
    K, L = (H @ (F @ F.T) @ H for F in factors)
    expected = np.sum(K * L) / np.linalg.norm(K) / np.linalg.norm(L)
    make = (lambda F: te.gram(F, n_blocks=blocks)) if made == "gram" else (lambda F: te.aslinearoperator(F @ F.T))
    Ks = [make(F) for F in factors]
    assert float(te.centred_alignment(*Ks, method="exact")) == pytest.approx(expected, rel=1e-9)
    s = te.summary(*Ks, method="exact", centred=True, target=np.arange(float(N)))
    assert float(s.alignment.value[0, 1]) == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(s.trace.value, [np.trace(K), np.trace(L)], rtol=1e-9)
    y = H @ np.arange(float(N))
    np.testing.assert_allclose(
        s.target_alignment.value, [y @ M @ y / (y @ y) / np.linalg.norm(M) for M in (K, L)], rtol=1e-9
    )


@pytest.mark.parametrize(
    ("depth", "labels"),
    [(1, ["enc", "head"]), (2, ["enc.0", "enc.1", "head.w"]), (3, ["enc.0.w", "enc.0.b", "enc.1.w", "head.w"])],
)
def test_groups_share_as_many_parts_of_their_path_as_is_said(depth: int, labels: list[str]) -> None:
    parameters = {"enc.0.w": 20, "enc.0.b": 10, "enc.1.w": 20, "head.w": 10}
    K = te.gram(te.DenseOperator(J, n_blocks=8, parameters=parameters))
    s = te.summary(K, n_probes=10, groups=depth, rng=0)
    assert list(s.groups) == labels
    first = 30 if depth < 3 else 20
    first = 50 if depth == 1 else first
    assert float(s.groups[labels[0]].trace) == pytest.approx(np.sum(J[:, :first] ** 2), rel=1e-9)


@pytest.mark.parametrize("method", ["one-sided", "two-sided"])
def test_several_kernels_share_the_budget(method: Any) -> None:
    """To a tolerance that is not to be had, each of two kernels is given half of what may be spent."""
    Ks = [te.gram(zoo.jacobian(1, 200, 300, seed), n_blocks=1) for seed in (0, 1)]
    alone = te.frobenius_norm(Ks[0], rtol=1e-12, rng=0, method=method, max_matvecs=60)
    both = te.alignment(*Ks, rtol=1e-12, rng=0, method=method, max_matvecs=120)
    assert both.n_rmatvecs == 2 * alone.n_rmatvecs
    assert 50 <= alone.n_rmatvecs <= 60


def test_of_two_spreads_the_larger_is_believed_block_by_block() -> None:
    spread, df = np.array([1.0, 4.0, 2.0]), np.array([3.0, 5.0, 7.0])
    other = skewed_intervals.Rescaling(lambda f: f, spread[::-1].copy(), np.array([11.0, 13.0, 17.0]))
    one = skewed_intervals.Rescaling(lambda f: f, spread, df)
    for a, b in ((one, other), (other, one)):
        found = a.larger(b)
        np.testing.assert_array_equal(found.spread, [2.0, 4.0, 2.0])
        assert found.df[0] == 11.0
        assert found.df[2] == 7.0
    unknown = skewed_intervals.Rescaling(lambda f: f)
    for a, b in ((one, unknown), (unknown, one)):
        np.testing.assert_array_equal(a.larger(b).spread, spread)
        np.testing.assert_array_equal(a.larger(b).df, df)


# -- norms ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rtol", [1e-1, 1e-2, 1e-4])
def test_the_norm_of_a_rectangular_operator_is_as_certain_as_it_says(rtol: float) -> None:
    A = zoo.haar(150)[:, :120] * np.linspace(1, 3, 120)
    for seed in range(5):
        e = te.spectral_norm(A, rtol=rtol, rng=seed)
        assert e.converged
        assert e.half_width(0.95) <= rtol * float(e)
        assert abs(float(e) - 3) <= max(3 * float(e.stderr), 1e-9)
        square = te.spectral_norm(te.gram(A), n_matvecs=12, rng=seed)
        own = te.spectral_norm(A, n_matvecs=12, rng=seed)
        if square.n_products == own.n_products:
            assert float(own) == pytest.approx(float(square) ** 0.5, rel=1e-9)
            assert float(own.stderr) == pytest.approx(float(square.stderr) / (2 * float(own)), rel=1e-6)


# -- growing ------------------------------------------------------------------------------------------------------
def test_a_run_by_vjps_draws_no_probe_again_that_its_checkpoint_has(tmp_path: Path) -> None:
    K = te.gram(zoo.haar(400) * np.linspace(1.0, 1.5, 400))
    asked = {"rtol": 1e-2, "rng": 0}
    whole = te.trace(K, **asked)
    assert whole.method == "rhutch"

    def killed(_: te.Estimate) -> None:
        raise Killed

    with pytest.raises(Killed):
        te.trace(K, **asked, checkpoint=tmp_path / "run.npz", callback=killed)
    resumed = te.trace(K, **asked, checkpoint=tmp_path / "run.npz")
    assert resumed.samples.shape[1] > 10
    assert len(np.unique(resumed.samples)) == resumed.samples.shape[1]
    assert float(resumed) == pytest.approx(float(whole), rel=1e-12)


@pytest.mark.parametrize("first", [0, 3, 12, 21])
@pytest.mark.parametrize("method", ["hutchinson", "hutchpp", "xtrace"])
@pytest.mark.parametrize("chunk_size", [4, None])
def test_the_column_that_is_named_is_the_one(first: int, method: str, chunk_size: int | None) -> None:
    """Counted over all products asked so far, whatever pieces they are asked for in."""
    A, asked = zoo.nonsymmetric(N), [0]

    def matmat(X: Any) -> Any:
        Y = A @ X
        if asked[0] <= first < asked[0] + X.shape[1]:
            Y[7, first - asked[0]] = np.nan
        asked[0] += X.shape[1]
        return Y

    op = te.Operator((N, N), like=A, matmat=matmat)
    with pytest.raises(ValueError, match=rf"in the product matmat, column {first} of those asked so far"):
        te.trace(op, rtol=1e-9, rng=0, method=method, chunk_size=chunk_size, max_matvecs=60)


def test_the_column_of_a_vjp_is_named_too() -> None:
    asked = [0]

    def rmatmat(V: Any) -> Any:
        W = J.T @ V
        if asked[0] <= 6 < asked[0] + V.shape[1]:
            W[0, 6 - asked[0]] = np.inf
        asked[0] += V.shape[1]
        return W

    op = te.Operator(J.shape, like=J, rmatmat=rmatmat)
    with pytest.raises(ValueError, match="in the product rmatmat, column 6 of those asked so far"):
        te.trace(te.gram(op), rtol=1e-9, rng=0, max_matvecs=60)


# -- adapters -----------------------------------------------------------------------------------------------------
class Loader:
    """Batches that may be others, or fewer, from some pass on."""

    def __init__(self, passes: list[list[Any]]) -> None:
        self.passes, self.asked = passes, 0

    def __iter__(self) -> Iterator[Any]:
        found = self.passes[min(self.asked, len(self.passes) - 1)]
        self.asked += 1
        return iter(found)


X = [np.random.default_rng(i).standard_normal((3, 6)) for i in range(4)]


@pytest.mark.parametrize("later", ["one fewer", "one more", "none", "another"])
def test_batches_that_are_others_in_a_later_pass_are_refused(later: str) -> None:
    batches = [torch.as_tensor(x) for x in X[:3]]
    other = {
        "one fewer": batches[:2],
        "one more": [*batches, torch.as_tensor(X[3])],
        "none": [],
        "another": [batches[0], batches[1] + 1e-3, batches[2]],
    }[later]
    # Two looks at the first batch, and one pass through all of them, come before the first product.
    honest = in_torch(torch_mlp(), batches=Loader([batches]))
    made = honest.parts.batches.data.asked if hasattr(honest, "parts") else 3
    loader = Loader([batches] * made + [other])

    def go_through() -> None:
        K = in_torch(torch_mlp(), batches=loader)
        for _ in range(3):
            K.rmatmat(torch.ones(K.shape[0], 1, dtype=torch.float64))

    with pytest.raises(ValueError, match=r"is not what it was in the pass before|there is no batch"):
        go_through()


def test_memory_is_halved_as_long_as_anything_can_be() -> None:
    """A small budget with a large chunk, and one probe with a large budget: each has something left."""

    class Held:
        def __init__(self, chunk_size: int, memory_budget: int | None) -> None:
            self.chunk_size, self.memory_budget = chunk_size, memory_budget

    for chunk, budget, after in (
        (8, memory.LEAST, (4, memory.LEAST)),
        (1, 4 * memory.LEAST, (1, 2 * memory.LEAST)),
        (1, None, (1, memory.BUDGET // 2)),
        (2, memory.LEAST, (1, memory.LEAST)),
    ):
        J = Held(chunk, budget)
        with pytest.warns(RuntimeWarning, match="out of memory: going on with"):
            assert memory._halve(J)
        assert (J.chunk_size, J.memory_budget) == after
    least = Held(1, memory.LEAST)
    assert not memory._halve(least)
    assert (least.chunk_size, least.memory_budget) == (1, memory.LEAST)


def test_a_budget_holds_inside_and_not_beyond() -> None:
    assert memory.budget() == memory.BUDGET
    with memory.within(5):
        with memory.within(7):
            assert memory.budget() == 7
        assert memory.budget() == 5
        with memory.within(None):
            assert memory.budget() == memory.BUDGET
    assert memory.budget() == memory.BUDGET
    with pytest.raises(Killed), memory.within(3):
        raise Killed
    assert memory.budget() == memory.BUDGET


class Scaled(torch.nn.Module):
    """A state whose derivative by the only parameter is there, and is zero."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.w, self.by = torch.nn.Parameter(torch.ones(6, dtype=torch.float64)), by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.by * self.w


class Apart(torch.nn.Module):
    """A state without the parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(6, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


@pytest.mark.parametrize("batch_axis", [0, None])
def test_a_state_that_no_parameter_moves_is_refused(batch_axis: int | None) -> None:
    said = "does not depend on the parameters"
    for model in (Scaled(0.0), Apart()):
        with pytest.raises(ValueError, match=said):
            in_torch(model, torch.as_tensor(X[0]), batch_axis=batch_axis)
    in_torch(Scaled(1e-12), torch.as_tensor(X[0]), batch_axis=batch_axis)
    for by in (lambda p, x: x + 0 * p, lambda p, x: 2 * x):
        with pytest.raises(ValueError, match=said):
            in_jax(by, jnp.ones(6), jnp.asarray(X[0]), batch_axis=batch_axis)
