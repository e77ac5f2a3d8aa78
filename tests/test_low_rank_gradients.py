"""Gradients of estimates by what the operator is made of, where the sketch holds all of it and where it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import operators_zoo as zoo
import pytest
import torch

import traceest as te
from traceest.operators import products

N = 30
ESTIMATORS: dict[str, Callable[[Any], te.Estimate]] = {
    "xtrace": lambda A: te.xtrace(A, 20, rng=0),
    "xtrace, as it is": lambda A: te.xtrace(A, 20, rng=0, normalise=False),
    "xtrace, signs": lambda A: te.xtrace(A, 20, rng=0, distribution="rademacher"),
    "xnystrace": lambda A: te.xnystrace(A, 12, rng=0),
    "hutchpp": lambda A: te.hutchpp(A, 29, rng=0),
    "nystrompp": lambda A: te.nystrompp(A, 20, rng=0),
    "na_hutchpp": lambda A: te.na_hutchpp(A, 29, rng=0, n_sketch=9),
    "diagonal": lambda A: te.diagonal(A, 20, method="xdiag", rng=0),
    "norm": lambda A: te.frobenius_norm(A, n_matvecs=20, rng=0),
}
ROUNDED = {"nystrompp": 1e-2, "na_hutchpp": 1e-2}  # their floor leaves some of the rounding in derivatives
POSITIVE = ("xnystrace", "nystrompp")
SMALL = ("xtrace, signs", "na_hutchpp")  # which hold no rank of 9 with so many products
WEIGHTS = np.random.default_rng(7).standard_normal(N)
KINDS = ["positive", "symmetric", "general", "gram"]

COMPILED = ("xtrace", "xnystrace", "hutchpp", "nystrompp", "na_hutchpp")
RUNS = [
    *((name, "torch") for name in ESTIMATORS),
    *(pytest.param(n, "jax", marks=() if n in COMPILED else pytest.mark.slow) for n in ESTIMATORS),
]


def parts(rank: int) -> tuple[np.ndarray, np.ndarray]:
    """U and V of A = UVᵀ; U alone counts where A is symmetric."""
    rng = np.random.default_rng(rank)
    return rng.standard_normal((N, rank)), rng.standard_normal((N, rank))


def matrix(kind: str, U: Any, V: Any) -> Any:
    if kind == "general":
        return U @ V.T
    signs = np.where(np.arange(U.shape[1]) % 2, -1.0, 1.0) if kind == "symmetric" else np.ones(U.shape[1])
    return (U * (torch.as_tensor(signs) if isinstance(U, torch.Tensor) else signs)) @ U.T


def operator(kind: str, U: Any, V: Any) -> Any:
    if kind == "gram":
        return te.gram(U)
    A = matrix(kind, U, V)
    return (
        te.aslinearoperator(A, psd=True)
        if kind == "positive"
        else te.aslinearoperator(A, symmetric=kind == "symmetric")
    )


def scalar(value: Any) -> Any:
    """A diagonal as one number, whose derivatives tell all of its entries."""
    if value.ndim == 0:
        return value
    return value @ (torch.as_tensor(WEIGHTS) if isinstance(value, torch.Tensor) else jnp.asarray(WEIGHTS))


def truth(name: str, kind: str, U: Any, V: Any) -> Any:
    A = matrix(kind, U, V)
    if name == "diagonal":
        return scalar(torch.diagonal(A))
    return torch.linalg.norm(A) if name == "norm" else torch.trace(A)


def gradient(framework: str, f: Callable[[Any, Any], Any], U: np.ndarray, V: np.ndarray) -> np.ndarray:
    if framework == "torch":
        given = [torch.as_tensor(x).requires_grad_() for x in (U, V)]
        found = torch.autograd.grad(f(*given), given, materialize_grads=True)
        return np.concatenate([x.numpy() for x in found])
    if framework == "torch.func":
        found = torch.func.grad(f, argnums=(0, 1))(torch.as_tensor(U), torch.as_tensor(V))
        return np.concatenate([x.numpy() for x in found])
    differentiate = jax.jit(jax.grad(f, argnums=(0, 1)))
    return np.concatenate([np.asarray(x) for x in differentiate(jnp.asarray(U), jnp.asarray(V))])


def cases(name: str, framework: str) -> list[tuple[str, int]]:
    """Kinds and ranks of operators whose value the estimator gives but for rounding; few where each is compiled."""
    kinds = KINDS
    if name in POSITIVE:
        kinds = ["positive", "gram"]
    elif name == "norm":  # of a general A the sketch holds one side alone
        kinds = ["positive", "symmetric", "gram"]
    if framework == "jax":
        return [(kind, 3) for kind in kinds if kind in ("positive", "general")]
    return [(kind, rank) for kind in kinds for rank in ((1, 3) if name in SMALL else (1, 3, 9))]


@pytest.mark.parametrize(("name", "framework"), [*RUNS, *((name, "torch.func") for name in ("xtrace", "hutchpp"))])
def test_where_the_value_is_exact_so_is_the_gradient(name: str, framework: str) -> None:
    for kind, rank in cases(name, framework):
        U, V = parts(rank)

        def estimate(U: Any, V: Any, kind: str = kind) -> Any:
            return scalar(ESTIMATORS[name](operator(kind, U, V)).value)

        def true(U: Any, V: Any, kind: str = kind) -> Any:
            return truth(name, kind, U, V)

        value, exact = (float(f(torch.as_tensor(U), torch.as_tensor(V))) for f in (estimate, true))
        assert value == pytest.approx(exact, rel=1e-9, abs=1e-9), (kind, rank)
        expected = gradient("torch", true, U, V)
        off = np.linalg.norm(gradient(framework, estimate, U, V) - expected) / np.linalg.norm(expected)
        assert off < ROUNDED.get(name, 1e-8), (kind, rank, off)


@pytest.mark.parametrize(("name", "framework"), RUNS)
def test_where_the_value_is_an_estimate_the_gradient_is_its_own(name: str, framework: str) -> None:
    """Along a line through operators of full rank, by differences; and of zero it is finite."""
    along = zoo.indefinite(N, 3) / 10
    start = zoo.spectral("flat", N)

    def along_the_line(t: Any, _: Any) -> Any:
        make = torch.as_tensor if isinstance(t, torch.Tensor) else jnp.asarray
        return scalar(ESTIMATORS[name](te.aslinearoperator(make(start) + t * make(along), psd=True)).value)

    found = gradient(framework, lambda t, _: along_the_line(t[0], _), np.zeros(1), np.zeros(1))[0]
    h = 1e-4
    ends = [float(along_the_line(torch.as_tensor(s * h), None)) for s in (1.0, -1.0)]
    assert found == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-5)
    if name != "norm" and framework == "torch":  # the norm has a corner at zero
        U, V = np.zeros((N, 2)), np.zeros((N, 2))
        positive = lambda U, V: scalar(ESTIMATORS[name](operator("positive", U, V)).value)  # noqa: E731
        assert np.all(np.isfinite(gradient(framework, positive, U, V)))


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_it_holds_in_single_precision_and_for_rows_by_blocks(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("traceest._array_api.LARGE", 1)
    rng = np.random.default_rng(0)
    U = rng.standard_normal((2000, 3))
    for dtype, within in (("float64", 1e-8), ("float32", 1e-3)):
        x = U.astype(dtype)
        found = gradient(framework, lambda U, _: te.xtrace(te.gram(U), 16, rng=0).value, x, x)
        np.testing.assert_allclose(found[:2000], 2 * U, atol=within * 10)


@pytest.mark.parametrize("name", ["xtrace", "xnystrace", "hutchpp", "nystrompp", "na_hutchpp"])
def test_the_derivative_on_the_way_out_of_zero_is_an_estimate_itself(name: str) -> None:
    """Of tr tB by t at 0, where all of the sketch is rounding: tr B as any probes tell it."""
    B = torch.as_tensor(zoo.spectral("flat", N))
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    ESTIMATORS[name](te.aslinearoperator(t * B, psd=True)).value.backward()
    assert float(t.grad) == pytest.approx(float(torch.trace(B)), rel=0.2)


def test_second_derivatives_go_through() -> None:
    """Of tr (tU)(tU)ᵀ by t, twice: 2‖U‖²."""
    U, _ = parts(3)

    def value(t: Any) -> Any:
        return te.xtrace(te.aslinearoperator(t**2 * torch.as_tensor(U @ U.T)), 20, rng=0).value

    second = torch.func.grad(torch.func.grad(value))(torch.tensor(1.3, dtype=torch.float64))
    assert float(second) == pytest.approx(2 * np.sum(U * U), rel=1e-8)


def test_rounding_that_is_differentiated_by_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(xp: Any, Y: Any) -> Any:
        Q, R = np.linalg.qr(Y) if isinstance(Y, np.ndarray) else xp.linalg.qr(Y)[:2]
        return Q, R

    monkeypatch.setattr(products, "_steady", plain)
    with pytest.raises(AssertionError):
        test_where_the_value_is_exact_so_is_the_gradient("xtrace", "torch")
