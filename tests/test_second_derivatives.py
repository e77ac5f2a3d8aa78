"""Second derivatives are looked at before they are believed: batched products, symmetry, numbers that are none."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import traceest as te
from traceest_adapters import jax as in_jax
from traceest_adapters import torch as in_torch
from traceest_adapters._curvature import symmetric as _symmetric

RNG = np.random.default_rng(0)
NX, NY = RNG.standard_normal((6, 4)), RNG.standard_normal((6, 3))
X, Y = torch.as_tensor(NX), torch.as_tensor(NY)


class Times(torch.autograd.Function):
    """g·x, whose rule for several at once takes each for its neighbour."""

    generate_vmap_rule = False

    @staticmethod
    def forward(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return g * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, h: torch.Tensor) -> Any:
        g, x = ctx.saved_tensors
        return Times.apply(h, x), Times.apply(h, g)

    @staticmethod
    def vmap(info: Any, in_dims: Any, g: torch.Tensor, x: torch.Tensor) -> Any:
        if in_dims[0] is not None:
            g = g.movedim(in_dims[0], 0).roll(1, 0)
        if in_dims[1] is not None:
            x = x.movedim(in_dims[1], 0)
        return g * x, 0


class HalfSquare(torch.autograd.Function):
    """x²/2 entry by entry, by `Times`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x**2 / 2

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return Times.apply(g, *ctx.saved_tensors)


class Lopsided(torch.autograd.Function):
    """x²/2, with a gradient whose own derivative mixes neighbours in one direction only."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x**2 / 2

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        other = x.roll(1, -1)
        return g * (x + other - other.detach())


class Of(nn.Module):
    def __init__(self, f: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.f = nn.Linear(4, 3, dtype=torch.float64), f

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(self.layer(x))


def dense(model: nn.Module) -> torch.Tensor:
    honest = Of(lambda z: z**2 / 2)
    honest.load_state_dict(model.state_dict())
    params = dict(honest.named_parameters())
    sizes = [p.numel() for p in params.values()]

    def loss(v: torch.Tensor) -> torch.Tensor:
        parts = {k: a.reshape(p.shape) for (k, p), a in zip(params.items(), v.split(sizes), strict=True)}
        return nn.functional.mse_loss(torch.func.functional_call(honest, parts, (X,)), Y)

    return torch.autograd.functional.hessian(loss, torch.cat([p.detach().reshape(-1) for p in params.values()]))


def test_a_wrong_rule_for_several_columns_is_left_for_one_at_a_time() -> None:
    model = Of(HalfSquare.apply)
    H, D = in_torch.hessian(model, nn.MSELoss(), X, Y), dense(model)
    with pytest.warns(RuntimeWarning, match=r"hessian: .*one at a time.*taken one by one"):
        trace = te.trace(H)
    assert float(trace) == pytest.approx(float(D.trace()), rel=1e-10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        torch.testing.assert_close(te.to_dense(H), D)
        assert float(te.hutchinson(H, 5, rng=0)) == pytest.approx(float(te.hutchinson(D, 5, rng=0)), rel=1e-10)
    unseen = te.to_dense(in_torch.hessian(model, nn.MSELoss(), X, Y, check=False))
    assert float((unseen - D).abs().max()) > 1e-3  # the rule is really wrong


def test_a_wrong_rule_in_the_loss_is_seen_by_gauss_newton() -> None:
    layer = nn.Linear(4, 3, dtype=torch.float64)

    def loss(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return HalfSquare.apply(z - y).sum()

    with pytest.warns(RuntimeWarning, match="gauss_newton: .*one by one"):
        G = in_torch.gauss_newton(layer, loss, X, Y)
    truth = te.trace(in_torch.gauss_newton(layer, lambda z, y: (z - y).square().sum() / 2, X, Y))
    assert float(te.trace(G)) == pytest.approx(float(truth), rel=1e-10)


@pytest.mark.parametrize("columns", [1, 4])
def test_a_second_derivative_that_is_not_symmetric_is_refused(columns: int) -> None:
    H = in_torch.hessian(Of(Lopsided.apply), nn.MSELoss(), X, Y)
    with pytest.raises(ValueError, match=r"not symmetric.*gauss_newton"):
        H.matmat(torch.as_tensor(RNG.standard_normal((15, columns))))


def test_a_hessian_of_nothing_shown_is_looked_at_again() -> None:
    model = Of(HalfSquare.apply)
    H, D = in_torch.hessian(model, nn.MSELoss(), X, Y), dense(model)
    assert not H.matmat(torch.zeros(15, 3, dtype=torch.float64)).any()
    with pytest.warns(RuntimeWarning, match="one by one"):
        Z = H.matmat(torch.eye(15, dtype=torch.float64)[:, :3])
    torch.testing.assert_close(Z, D[:, :3])


# -- in JAX -------------------------------------------------------------------------------------------------------
@jax.custom_batching.custom_vmap
def scaled(x: Any) -> Any:
    return 2.0 * x


@scaled.def_vmap
def _(axis_size: int, in_batched: Any, x: Any) -> Any:
    return 2.0 * jnp.roll(x, 1, 0), in_batched[0]


@jax.custom_jvp
def squares(x: Any) -> Any:
    return x**2


@squares.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (x,), (t,) = primals, tangents
    return x**2, slope(x) * t


@jax.custom_jvp
def slope(x: Any) -> Any:
    return 2.0 * x


@slope.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return 2.0 * primals[0], scaled(tangents[0])


@jax.custom_jvp
def lopsided(x: Any) -> Any:
    return 2.0 * x


@lopsided.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return 2.0 * primals[0], 2.0 * tangents[0] + jnp.roll(tangents[0], 1, -1)


@jax.custom_jvp
def bent(x: Any) -> Any:
    return x**2


@bent.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return primals[0] ** 2, lopsided(primals[0]) * tangents[0]


def test_in_jax_a_wrong_rule_for_several_columns_is_left_for_one_at_a_time() -> None:
    w = jnp.asarray(RNG.standard_normal((4, 3)))
    right = lambda w: jnp.sum((jnp.asarray(NX) @ w) ** 2)  # noqa: E731
    D = jax.hessian(right)(w).reshape(12, 12)
    H = in_jax.hessian(lambda w: jnp.sum(squares(jnp.asarray(NX) @ w)), w)
    with pytest.warns(RuntimeWarning, match="hessian: .*one by one"):
        got = te.to_dense(H)
    np.testing.assert_allclose(got, D, rtol=1e-10, atol=1e-12)
    G = in_jax.gauss_newton(lambda w, x: x @ w, lambda z: jnp.sum(z**2), w, jnp.asarray(NX))
    with pytest.warns(RuntimeWarning, match="gauss_newton: .*one by one"):
        other = in_jax.gauss_newton(lambda w, x: x @ w, lambda z: jnp.sum(squares(z)), w, jnp.asarray(NX))
    assert float(te.trace(other)) == pytest.approx(float(te.trace(G)), rel=1e-10)


def test_in_jax_a_second_derivative_that_is_not_symmetric_is_refused() -> None:
    H = in_jax.hessian(lambda w: jnp.sum(bent(w)), jnp.asarray(NX))
    with pytest.raises(ValueError, match="not symmetric"):
        te.trace(H)


# -- what is right is left alone ------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["prelu", "layer norm", "solve", "slogdet", "softmax", "scales"])
def test_right_second_derivatives_pass_without_a_word(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)

    def solved(z: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(z[:, :, None] * z[:, None, :] + torch.eye(8, dtype=dtype), z)

    last = {
        "prelu": nn.Sequential(nn.PReLU(8), nn.Linear(8, 3)),
        "layer norm": nn.Sequential(nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)),
        "solve": Of(solved),
        "slogdet": Of(lambda z: torch.linalg.slogdet(z[:, :, None] * z[:, None, :] + torch.eye(8, dtype=dtype))[1]),
        "softmax": nn.Sequential(nn.Linear(8, 3), nn.LogSoftmax(1)),
        "scales": nn.Sequential(nn.Linear(8, 200), nn.Tanh(), nn.Linear(200, 3)),
    }[name]
    if isinstance(last, Of):
        last.layer = nn.Linear(8, 8)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), last).to(dtype)
    if name == "scales":
        with torch.no_grad():
            model[0].weight *= 1e-4
            last[2].weight *= 1e3
    x = X.to(dtype)
    H = in_torch.hessian(model, lambda z: (z**2).sum() + z.sin().sum(), x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = [float(te.hutchinson(H, k, rng=0)) for k in (1, 5, 40)]
    assert np.isfinite(values).all()


def test_the_look_costs_one_product_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    H = in_torch.hessian(Of(torch.tanh), nn.MSELoss(), X, Y, chunk_size=4)
    columns: list[int] = []
    plain = H._product
    H._checked.several = H._checked.one = lambda X: columns.append(X.shape[1]) or plain(X)
    te.hutchinson(H, 12, rng=0)
    te.hutchinson(H, 12, rng=1)
    assert sorted(columns) == [1, *[4] * 6]


# -- the tests bite -----------------------------------------------------------------------------------------------
def test_a_look_that_sees_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_symmetric.Symmetric, "_asymmetry", lambda self, X, Y: (0.0, True))
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test_a_wrong_rule_for_several_columns_is_left_for_one_at_a_time()
    with pytest.raises(pytest.fail.Exception):
        test_a_second_derivative_that_is_not_symmetric_is_refused(4)


# -- models of which PyTorch's batched forms are wrong ----------------------------------------------------------------
class Last(nn.Module):
    """A function of a linear layer's output and of six prototypes."""

    def __init__(self, f: Any, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, width, dtype=torch.float64)
        self.rows, self.f = nn.Parameter(torch.randn(6, 4, dtype=torch.float64)), f

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(self.layer(x), self.rows)


def square(z: torch.Tensor) -> torch.Tensor:
    return z.reshape(-1, 3, 3) + 4 * torch.eye(3, dtype=torch.float64)


BATCHED_WRONGLY: dict[str, Any] = {
    "prelu, one output": nn.Sequential(nn.Linear(4, 6), nn.PReLU(), nn.Linear(6, 1)).double(),
    "prelu, outputs as many as examples": nn.Sequential(nn.Linear(4, 5), nn.PReLU(), nn.Linear(5, 6)).double(),
    "cdist": Last(lambda z, rows: -torch.cdist(z, rows), 4),
    "slogdet": Last(lambda z, rows: torch.linalg.slogdet(square(z))[1][:, None], 9),
    "det": Last(lambda z, rows: torch.linalg.det(square(z))[:, None], 9),
    "solve": Last(lambda z, rows: torch.linalg.solve(square(z), z[:, :3]), 9),
    "logcumsumexp": Last(lambda z, rows: torch.logcumsumexp(z, 1), 4),
}


@pytest.mark.filterwarnings("ignore:a batched form|this model cannot be mapped|an example by itself:RuntimeWarning")
@pytest.mark.parametrize("name", BATCHED_WRONGLY)
def test_curvature_of_a_model_that_is_batched_wrongly_is_right(name: str) -> None:
    model = BATCHED_WRONGLY[name]
    z = model(X)
    t, params = torch.linspace(-1, 1, z.numel(), dtype=z.dtype).reshape(z.shape), list(model.parameters())
    rows = [torch.autograd.grad(v, params, retain_graph=True, materialize_grads=True) for v in z.reshape(-1)]
    J = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows]).detach()
    g = ((z - t)[:, :, None] * J.reshape(*z.shape, -1)).sum(1).detach() * 2 / z.shape[1]  # of each example's mean
    G, E = in_torch.gauss_newton(model, nn.MSELoss(), X, t), in_torch.empirical_fisher(model, nn.MSELoss(), X, t)
    for A, K in ((G, 2 / z.numel() * J @ J.T), (E, g @ g.T / 6)):
        assert float(te.trace(A)) == pytest.approx(float(K.trace()), rel=1e-9)
        assert float(te.frobenius_norm(A, method="exact")) == pytest.approx(float(K.norm()), rel=1e-9)
