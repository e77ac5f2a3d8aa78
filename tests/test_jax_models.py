"""Models of many kinds in JAX: every statistic of their kernels against the kernel written down."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import assert_close
from flax import linen as nn
from flax import nnx
from jax.flatten_util import ravel_pytree
from models import random

import traceest as te
from traceest_adapters.jax import jacobian

KEY = jax.random.key(0)
B = 4


def double(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


class Case(NamedTuple):
    """A function, its parameters, a batch and options, and what the state is as a function of what is trained."""

    fn: Callable[..., Any]
    params: Any
    x: Any
    options: dict[str, Any]
    state: Callable[[Any], Any]
    trained: Any


def case(fn: Callable[..., Any], params: Any, x: Any, trained: Any = None, rebuild: Any = None, **options: Any) -> Case:
    """`trained` is the part of `params` that is differentiated by, `rebuild` makes the whole of it again."""
    output = options.get("output") or (lambda y: y)
    whole = rebuild or (lambda p: p)
    return Case(fn, params, x, options, lambda p: output(fn(whole(p), x)), params if trained is None else trained)


# -- the models -----------------------------------------------------------------------------------------------
def over_batch(m: Any, x: Any) -> Any:
    return jax.vmap(m)(x)


def mlp() -> Case:
    model = eqx.nn.MLP(3, 6, 7, 1, activation=jnp.tanh, key=KEY, dtype=float)
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    return case(over_batch, model, random(B, 3), arrays, lambda p: eqx.combine(p, rest))


class ConvNet(nn.Module):
    """Two convolutions with batch norms, and a head."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for features in (3, 4):
            x = nn.Conv(features, (3, 3), param_dtype=float, strides=2)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True, param_dtype=float)(x))
        return nn.Dense(6, param_dtype=float)(x.mean((1, 2)))


def linen(model: nn.Module, x: Any, **options: Any) -> Case:
    variables = dict(model.init(KEY, x))
    params = variables.pop("params")
    return case(model.apply, {"params": params, **variables}, x, params, lambda p: {"params": p, **variables},
                wrt="params", **options)  # fmt: skip


def lstm() -> Case:
    unroll = hk.without_apply_rng(
        hk.transform(lambda x: hk.dynamic_unroll(core := hk.LSTM(3), x, core.initial_state(x.shape[1]))[0])
    )
    x = random(2, B, 2)
    return case(unroll.apply, double(unroll.init(KEY, x)), x, batch_axis=1)


class Encoder(nn.Module):
    """A block of a transformer's encoder, normalised before each of its parts."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = nn.LayerNorm(param_dtype=float)(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, param_dtype=float)(y, y)
        y = nn.Dense(5, param_dtype=float)(nn.LayerNorm(param_dtype=float)(x))
        return x + nn.Dense(4, param_dtype=float)(nn.gelu(y))


class GPT(nnx.Module):
    """A decoder of one block: positions, a causal mask, and an embedding that is the head too."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        layer = partial(nnx.Linear, param_dtype=float, rngs=rngs)
        norm = partial(nnx.LayerNorm, 4, param_dtype=float, rngs=rngs)
        self.words = nnx.Embed(6, 4, param_dtype=float, rngs=rngs)
        self.places = nnx.Param(0.1 * jax.random.normal(rngs.params(), (5, 4), float))
        self.norms = nnx.List([norm(), norm(), norm()])
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, param_dtype=float, rngs=rngs)
        self.up, self.down = layer(4, 6), layer(6, 4)

    def __call__(self, ids: Any) -> Any:
        x = self.words(ids) + self.places[...]
        mask = nnx.make_causal_mask(ids)
        x = x + self.attention(self.norms[0](x), mask=mask)
        x = x + self.down(nnx.gelu(self.up(self.norms[1](x))))
        return self.words.attend(self.norms[2](x))


def gpt() -> Case:
    model = GPT(nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    ids = jax.random.randint(KEY, (B, 5), 0, 6)
    return case(lambda m, x: m(x)[:, -1], model, ids, params, lambda p: nnx.merge(graphdef, p, rest), wrt=nnx.Param)


class ViT(nn.Module):
    """Patches, a class token, places, and a block."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Conv(4, (2, 2), strides=2, param_dtype=float)(x).reshape(x.shape[0], -1, 4)
        token = self.param("token", nn.initializers.normal(1.0), (1, 1, 4), float)
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, 4)), x], 1)
        x = Encoder()(x + self.param("places", nn.initializers.normal(1.0), (1, x.shape[1], 4), float))
        return nn.Dense(6, param_dtype=float)(x[:, 0])


def twice(p: Any, x: Any) -> Any:
    return jnp.tanh(jnp.tanh(x @ p["w"] + p["b"]) @ p["w"] + p["b"])


DEQ = {"w": 0.3 * random(6, 6), "u": random(2, 6)}


def equilibrium(w: Any, b: Any) -> Any:
    """The fixed point z = tanh(zw + b), by as many steps as it takes."""

    def step(carry: Any) -> Any:
        z, _ = carry
        new = jnp.tanh(z @ w + b)
        return new, jnp.max(jnp.abs(new - z))

    return jax.lax.while_loop(lambda carry: carry[1] > 1e-14, step, (jnp.zeros_like(b), jnp.inf))[0]


@jax.custom_vjp
def implicit(w: Any, b: Any) -> Any:
    """The same, differentiated by the implicit function theorem."""
    return equilibrium(w, b)


def implicit_backwards(kept: Any, d: Any) -> Any:
    w, _, z = kept
    slope = 1 - z**2  # dz = slope∘(dz w + z dw + db), so that the cotangent of its right side is a = d + (a∘slope) wᵀ
    solve = jax.vmap(lambda d, s: jnp.linalg.solve(jnp.eye(len(d)) - w * s, d))
    a = solve(d, slope) * slope
    return z.T @ a, a


implicit.defvjp(lambda w, b: (z := equilibrium(w, b), (w, b, z)), implicit_backwards)


def deq(solve: Any) -> Case:
    """Its dense Jacobian is that of many steps, unrolled."""

    def unrolled(p: Any) -> Any:
        z = jnp.zeros((B, 6))
        for _ in range(60):
            z = jnp.tanh(z @ p["w"] + x @ p["u"])
        return z

    x = random(B, 2)
    return case(lambda p, x: solve(p["w"], x @ p["u"]), DEQ, x)._replace(state=unrolled)


def neural_ode(adjoint: Any) -> Case:
    def flow(p: Any, x: Any) -> Any:
        term = diffrax.ODETerm(lambda t, y, p: jnp.tanh(y @ p["w"] + t * p["b"]))

        def one(x: Any) -> Any:
            return diffrax.diffeqsolve(
                term, diffrax.Heun(), 0.0, 1.0, 0.25, x, args=p, adjoint=adjoint, max_steps=8
            ).ys[0]

        return jax.vmap(one)(x)

    return case(flow, {"w": random(6, 6), "b": random(6)}, random(B, 6))


CASES: dict[str, Callable[[], Case]] = {
    "mlp (equinox)": mlp,
    "cnn with batch norm (linen)": lambda: linen(ConvNet(), random(B, 7, 7, 2)),
    "gru (linen)": lambda: linen(nn.RNN(nn.GRUCell(3, param_dtype=float)), random(B, 2, 2)),
    "lstm (haiku)": lstm,
    "transformer encoder (linen)": lambda: linen(Encoder(), random(B, 3, 4), output=lambda y: y[:, 1:, :3]),
    "gpt-2 (nnx)": gpt,
    "vit (linen)": lambda: linen(ViT(), random(B, 4, 4, 1)),
    "a layer used twice": lambda: case(twice, {"w": random(6, 6), "b": random(6)}, random(B, 6)),
    "a bare parameter": lambda: case(lambda w, x: jnp.sin(x @ w), random(3, 6), random(B, 3)),
    "equilibrium, reverse mode alone": lambda: deq(implicit),
    "equilibrium, forward mode alone": lambda: deq(equilibrium),
    "neural ode, reverse mode alone (diffrax)": lambda: neural_ode(diffrax.RecursiveCheckpointAdjoint()),
    "neural ode, forward mode alone (diffrax)": lambda: neural_ode(diffrax.ForwardMode()),
    "neural ode (diffrax)": lambda: neural_ode(diffrax.DirectAdjoint()),
}
SLOW = {
    "gru (linen)",
    "lstm (haiku)",
    "transformer encoder (linen)",
    "vit (linen)",
    "neural ode (diffrax)",
    "neural ode, forward mode alone (diffrax)",
    "neural ode, reverse mode alone (diffrax)",
}
ROUNDING = {"gpt-2 (nnx)": 1e-5}  # its attention weights are of float32 whatever the parameters are
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CASES]


class Written(NamedTuple):
    """A case, its Jacobian as an operator and written down, and that of a copy with other parameters."""

    case: Case
    J: Any
    D: np.ndarray
    other: Any
    other_D: np.ndarray


@cache
def written(name: str) -> Written:
    made = CASES[name]()
    flat, unravel = ravel_pytree(made.trained)
    axis = made.options.get("batch_axis", 0)
    state = lambda p: jnp.ravel(jnp.moveaxis(made.state(unravel(p)), axis, 0))  # noqa: E731
    dense = jax.jit((jax.jacfwd if "forward mode alone" in name else jax.jacrev)(state))
    perturbed = flat + 0.1 * random(*flat.shape, seed=5)
    leaves = iter(jax.tree.leaves(unravel(perturbed)))
    J = jacobian(made.fn, made.params, made.x, **made.options)
    ids = {id(p) for p in J.trained}
    moved = jax.tree.map(lambda p: next(leaves) if id(p) in ids else p, made.params)
    other = jacobian(made.fn, moved, made.x, **made.options)
    return Written(made, J, np.asarray(dense(flat)), other, np.asarray(dense(perturbed)))


# -- products -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_products_are_those_of_the_jacobian_written_down(name: str) -> None:
    _, J, D, *_ = written(name)
    assert J.shape == D.shape
    n, P = D.shape
    V, W, rtol = random(n, 4, seed=1), random(P, 3, seed=2), ROUNDING.get(name, 1e-10)
    g = np.einsum("bnp,bnk->bkp", D.reshape(B, -1, P), np.asarray(V).reshape(B, -1, 4))
    assert hasattr(J, "matmat") == ("reverse mode alone" not in name)
    assert hasattr(J, "rmatmat") == ("forward mode alone" not in name)
    if hasattr(J, "matmat"):
        assert_close(J.matmat(W), D @ W, rtol)
    if hasattr(J, "rmatmat"):
        assert_close(J.rmatmat(V), D.T @ V, rtol)
        assert_close(J.block_sqnorms(V), (g**2).sum(-1), rtol)
        assert_close(J.sketch_gram(V), np.einsum("bip,cjp->bicj", g, g), rtol)
    if hasattr(J, "matmat") and hasattr(J, "rmatmat"):
        assert_close(jnp.sum(V[:, :3] * J.matmat(W), 0), jnp.sum(J.rmatmat(V[:, :3]) * W, 0), rtol)


# -- statistics -----------------------------------------------------------------------------------------------
def norm(K: np.ndarray) -> float:
    return float(np.linalg.norm(K))


STATISTICS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "trace": (lambda K, L, y: te.rhutch(K, 3, rng=0), lambda K, L, y: np.trace(K)),
    "norm": (lambda K, L, y: te.frobenius_norm(K, n_probes=4, rng=0), lambda K, L, y: norm(K)),
    "effective rank": (
        lambda K, L, y: te.effective_rank(K, n_probes=4, rng=0),
        lambda K, L, y: np.trace(K) ** 2 / norm(K) ** 2,
    ),
    "alignment": (
        lambda K, L, y: te.alignment(K, L, n_probes=4, rng=0),
        lambda K, L, y: np.sum(K * L) / norm(K) / norm(L),
    ),
    "target alignment": (
        lambda K, L, y: te.target_alignment(K, y, n_probes=5, rng=0),
        lambda K, L, y: y @ K @ y / (y @ y) / norm(K),
    ),
    "diagonal": (lambda K, L, y: te.diagonal(K, 4, rng=0), lambda K, L, y: np.diag(K)),
    "eigenvalues": (
        lambda K, L, y: te.eigenvalues(K, 2, rng=0).values,
        lambda K, L, y: np.linalg.eigvalsh(K)[:-3:-1],
    ),
}
REVERSE = {
    name: STATISTICS[name]
    for name in ("trace", "norm", "effective rank", "alignment", "target alignment", "eigenvalues")
} | {"diagonal": (lambda K, L, y: te.diagonal(K, 6, rng=0), STATISTICS["diagonal"][1])}  # 6 vjps give all of it
FORWARD = {name: STATISTICS[name] for name in ("norm", "effective rank", "diagonal")} | {
    "trace": (lambda K, L, y: te.fhutch(K, 4, rng=0), STATISTICS["trace"][1])
}
LIKELY = 1 - 6e-5
"""What an interval of four standard errors holds, of many degrees of freedom; it is wider for few."""


@pytest.mark.parametrize("name", NAMES)
def test_statistics_are_those_of_the_kernel_written_down(name: str) -> None:
    _, J, D, other, other_D = written(name)
    K, L, y = te.gram(J), te.gram(other), random(J.shape[0], seed=3)
    dense = D @ D.T, other_D @ other_D.T, np.asarray(y)
    possible = FORWARD if not hasattr(J, "rmatmat") else STATISTICS if hasattr(J, "matmat") else REVERSE
    for statistic, (estimate, truth) in possible.items():
        e, exact = estimate(K, L, y), truth(*dense)
        if not isinstance(e, te.Estimate):
            assert_close(e, exact, 1e-6)
            continue
        low, high = e.confidence_interval(LIKELY)
        slack = 1e-9 * np.abs(exact)
        assert np.all((low - slack <= exact) & (exact <= high + slack)), f"{statistic}: {e}, truth {exact}"
    for statistic in STATISTICS.keys() - possible.keys():
        with pytest.raises(TypeError, match=r"needs (rmatmat|matmat)|has one side alone"):
            STATISTICS[statistic][0](K, L, y)


def test_an_exact_statistic_takes_whichever_side_there_is() -> None:
    for name in ("equilibrium, reverse mode alone", "equilibrium, forward mode alone"):
        _, J, D, *_ = written(name)
        assert_close(float(te.trace(te.gram(J), rng=0)), np.sum(D**2), 1e-10)
        assert_close(float(te.frobenius_norm(te.gram(J), n_probes=J.shape[1], rng=0)), norm(D @ D.T), 1e-10)


# -- loops ----------------------------------------------------------------------------------------------------
def test_a_loop_with_a_fixed_number_of_steps_has_both_modes() -> None:
    J = jacobian(lambda p, x: jax.lax.fori_loop(0, 3, lambda _, z: jnp.tanh(z @ p), x), random(4, 4), random(B, 4))
    assert hasattr(J, "gram_matmat")


def test_a_side_that_is_missing_says_what_does_without_it() -> None:
    J = deq(equilibrium)
    J = jacobian(J.fn, J.params, J.x)
    with pytest.raises(AttributeError, match=r"no reverse mode \(Reverse-mode differentiation.*fhutch"):
        J.rmatmat  # noqa: B018
    with pytest.raises(TypeError, match="rhutch: needs rmatmat"):
        te.rhutch(J, 2, rng=0)
    J = deq(implicit)
    J = jacobian(J.fn, J.params, J.x)
    with pytest.raises(AttributeError, match=r"no forward mode \(.*custom_vjp.*rhutch"):
        J.matmat  # noqa: B018
    with pytest.raises(TypeError, match="needs matmat"):
        te.fhutch(J, 2, rng=0)


# -- bite -----------------------------------------------------------------------------------------------------
def test_a_derivative_that_forgets_the_solve_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(kept: Any, d: Any) -> Any:
        _, _, z = kept
        a = d * (1 - z**2)
        return z.T @ a, a

    wrong = jax.custom_vjp(equilibrium)
    wrong.defvjp(lambda w, b: (z := equilibrium(w, b), (w, b, z)), forgetful)
    monkeypatch.setitem(CASES, "equilibrium, reverse mode alone, wrong", lambda: deq(wrong))
    with pytest.raises(AssertionError):
        test_products_are_those_of_the_jacobian_written_down("equilibrium, reverse mode alone, wrong")
