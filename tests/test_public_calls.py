"""Every public call passes one boundary, and only the outermost one does."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import traceest as te
from traceest import _backends, _boundary

ENTERED = _boundary.public(lambda: None).__code__
RESULTS = (te.Estimate, te.Summary, te.PartialTrace, te.SpectralDensity, te.Eigenvalues, te.Checkpoint, te.Tracker)
UNSEEN = {"Estimate.merge", "Tracker.to_csv"}
"""What looks at no number of a framework, or leaves that to a public call of its own."""

A = np.diag([4.0, 3.0, 2.0, 1.0])


def functions() -> dict[str, Callable[..., Any]]:
    found = {name: getattr(te, name) for name in te.__all__}
    found |= {f"probes.{name}": getattr(te.probes, name) for name in te.probes.LAWS}
    return {name: f for name, f in found.items() if inspect.isfunction(f)}


def methods() -> dict[str, Callable[..., Any]]:
    found = {f"{kind.__name__}.{name}": f for kind in RESULTS for name, f in vars(kind).items() if name[0] != "_"}
    return {name: f for name, f in found.items() if inspect.isfunction(f)}


def test_each_public_function_is_entered_by_the_boundary() -> None:
    assert len(functions()) > 35
    assert [name for name, f in functions().items() if f.__code__ is not ENTERED] == []


def test_each_method_of_a_result_that_is_called_is_entered_by_the_boundary() -> None:
    assert len(methods()) > 10
    assert {name for name, f in methods().items() if f.__code__ is not ENTERED} == UNSEEN


@pytest.mark.parametrize("name", functions())
def test_each_is_found_by_pickle(name: str) -> None:
    f = functions()[name]
    if not name.startswith("probes."):  # made by one function of a name and a text
        assert pickle.loads(pickle.dumps(f)) is f


def test_only_the_outermost_call_looks_at_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def strict(arguments: Any) -> list[Any]:
        looks.append(arguments)
        return []

    monkeypatch.setattr(_backends, "strict", strict)
    G = te.gram(A)
    K = G + te.aslinearoperator(A)
    looks.clear()
    te.summary(G, n_probes=3, rng=0)
    te.hutchinson(K, 3, rng=0)
    te.Tracker(rng=0).update(K)
    assert len(looks) == 3


def test_a_call_that_fails_is_over() -> None:
    with pytest.raises(TypeError):
        te.hutchinson(A)
    assert _boundary._sources.get() is None


def test_what_nested_calls_are_made_of_is_told_to_the_outermost() -> None:
    from traceest_adapters.torch import jacobian

    w = torch.nn.Linear(2, 3)
    inner = _boundary.public(lambda K: te.to_dense(K))
    outer = _boundary.public(lambda K: inner(K).trace())
    J = jacobian(w, torch.ones(2, 2))
    with pytest.raises(RuntimeError, match="asked for through a statistic"):
        (outer(te.gram(J)) + w.weight.sum()).backward()
    assert type(te.gram(J) @ torch.ones(6, 1)) is torch.Tensor
    assert type(J.T @ torch.ones(6, 1)) is torch.Tensor


def test_a_framework_is_known_from_its_first_operator_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backends, "backends", _backends.Door("traceest.backends"))  # as in a new process
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        K = te.Operator((4, 4), like=jnp.ones(4), matmat=lambda X: jnp.float32(2) * X, symmetric=True)
        assert float(te.trace(K)) == pytest.approx(8)
        assert te.frobenius_norm(K, 3, rng=0).confidence_interval().high > 0
