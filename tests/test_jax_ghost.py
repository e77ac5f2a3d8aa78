"""Ghost norms of JAX functions: what is understood, and that it is right for every way of using a parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import as_jax, jax_gru, per_example, random, torch_gru

import traceest as te
from traceest_adapters import _memory as memory
from traceest_adapters.jax import jacobian
from traceest_adapters.jax.jaxprs import inner
from traceest_adapters.jax.per_example import factors, ghost_norms, interpreter, records, scan, verify
from traceest_adapters.jax.per_example.plan import Plan


class Case(NamedTuple):
    """A function with its parameters, a batch, and how many parameters are weights, small, and left to the rest."""

    fn: Callable[..., Any]
    params: Any
    x: Any
    expected: tuple[int, int, int]
    axis: int | None = 0


WORDS = jax.random.randint(jax.random.key(1), (4, 6), 0, 5)
WORDS_OUTSIDE = jnp.asarray([[0, 7, 1], [2, 2, -9], [4, 4, 4]])


def conv(**options: Any) -> Callable[[Any, Any], Any]:
    form = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC"), **options}
    return lambda p, x: jnp.sin(jax.lax.conv_general_dilated(x, p, **form)).reshape(x.shape[0], -1)


def scan_over_layers(p: Any, x: Any) -> Any:
    """Each step has a slice of the stacked weights; the projection `q` and its transpose are the same in all."""

    def layer(h: Any, w: Any) -> tuple[Any, Any]:
        return jnp.tanh(h @ w["a"] + w["b"] + (h @ p["q"]) @ p["q"].T), h @ w["a"]

    h, between = jax.lax.scan(layer, x, p["layers"])
    return h + between.sum(0)


def nested_scans(p: Any, x: Any) -> Any:
    def inner(h: Any, w: Any) -> tuple[Any, None]:
        return jnp.sin(h @ w + h @ p["shared"]), None

    return jax.lax.scan(lambda h, _: (jax.lax.scan(inner, h, p["stack"])[0], None), x, None, length=2)[0]


def unrolled(p: Any, x: Any) -> Any:
    h = jnp.zeros((x.shape[0], 3))
    for t in range(x.shape[1]):
        h = jnp.tanh(h @ p["u"] + x[:, t] @ p["w"])
    return h


def tied(p: Any, x: Any) -> Any:
    return jnp.tanh(p["e"][x] @ p["m"]) @ p["e"].T


def normalised(p: Any, x: Any) -> Any:
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return jnp.concatenate([jnp.broadcast_to(p["cls"], (x.shape[0], 1, 4)), x * p["scale"] + p["shift"]], 1) @ p["w"]


@jax.custom_vjp
def strange(w: Any, x: Any) -> Any:
    return x @ w


strange.defvjp(lambda w, x: (x @ w, (w, x)), lambda kept, d: (3 * kept[1].T @ d, d @ kept[0].T))


def attention(p: Any, x: Any) -> Any:
    q, k, v = jnp.moveaxis(jnp.einsum("btd,dche->btche", x, p["qkv"]), 2, 0)
    a = jax.nn.softmax(jnp.einsum("bthe,bshe->bhts", q, k))
    return jnp.einsum("bhts,bshe,hed->btd", a, v, p["o"])


def branching(p: Any, x: Any) -> Any:
    return jax.lax.cond(x.sum() > 0, lambda y: y @ p, lambda y: 2 * y @ p, x)


def counted_loop(p: Any, x: Any) -> Any:
    return jax.lax.fori_loop(0, 3, lambda _, h: jnp.tanh(h @ p), x)


def two_inputs(p: Any, x: Any) -> Any:
    return {"a": jnp.sin(x["a"] @ p["w"]), "b": (x["b"] @ p["w"]).sum(1)}


CASES: dict[str, Case] = {
    "dense": Case(lambda p, x: jnp.tanh(x @ p["w"] + p["b"]) @ p["v"],
                  {"w": random(4, 6), "b": random(6), "v": random(6, 3)}, random(5, 4), (2, 1, 0)),
    "several positions": Case(lambda p, x: jnp.sin(x @ p).sum(1), random(4, 3), random(5, 7, 4), (1, 0, 0)),
    "wide, few positions": Case(lambda p, x: jnp.sin(x @ p), random(11, 13), random(3, 2, 11), (1, 0, 0)),
    "transposed": Case(lambda p, x: (p @ x.T).T, random(3, 4), random(5, 4), (1, 0, 0)),
    "weight on the left": Case(lambda p, x: jnp.einsum("oi,bti->bot", p, jnp.cos(x)), random(3, 4), random(5, 2, 4),
                               (1, 0, 0)),
    "reshaped": Case(lambda p, x: x @ p.reshape(4, 6) + x @ p.reshape(4, 6), random(2, 2, 3, 2), random(5, 4), (1, 0,
        0)),
    "reshaped otherwise": Case(lambda p, x: x @ p.reshape(4, 6) @ p.reshape(6, 4), random(24), random(5, 4), (0, 1, 0)),
    "transposed and reshaped": Case(lambda p, x: x @ p.T.reshape(4, 6), random(8, 3), random(5, 4), (0, 1, 0)),
    "sliced": Case(lambda p, x: jnp.sin(x @ p[:4]) @ p[4:, :2], random(7, 3), random(5, 4), (0, 1, 0)),
    "scaled": Case(lambda p, x: jnp.sin(x @ (p["w"] / jnp.sqrt(4.0))) @ (0.3 * p["v"]),
                   {"w": random(4, 6), "v": random(6, 3)}, random(5, 4), (2, 0, 0)),
    "scaled by a parameter": Case(lambda p, x: x @ (jnp.exp(p["s"]) * p["w"]), {"w": random(4, 6), "s": random()},
                                  random(5, 4), (1, 1, 0)),
    "scaled by the example": Case(lambda p, x: jax.vmap(lambda y: y @ (p * y.sum()))(x), random(4, 6), random(5, 4),
        (1, 0, 0)),
    "of both kinds": Case(lambda p, x: jnp.sin(x @ p) + jnp.exp(p).sum(), random(4, 6), random(5, 4), (0, 1, 0)),
    "product of two": Case(lambda p, x: x @ (p["a"] @ p["b"]), {"a": random(4, 2), "b": random(2, 6)}, random(5, 4),
                           (0, 2, 0)),
    "used twice": Case(lambda p, x: jnp.sin(jnp.sin(x @ p) @ p), random(4, 4), random(5, 4), (1, 0, 0)),
    "used with its transpose": Case(lambda p, x: jnp.sin(x @ p) @ p.T, random(4, 4), random(5, 4), (1, 0, 0)),
    "broadcast over heads": Case(lambda p, x: jnp.einsum("bhi,hio->bho", x, jnp.broadcast_to(p, (3, 4, 2))),
        random(4, 2),
                                 random(5, 3, 4), (1, 0, 0)),
    "a weight a head": Case(lambda p, x: jnp.einsum("bthi,hio->btho", x, p).sum(1), random(3, 4, 2),
                            random(5, 6, 3, 4), (1, 0, 0)),
    "attention": Case(attention, {"qkv": random(4, 3, 2, 3), "o": random(2, 3, 4)}, random(3, 5, 4), (2, 0, 0)),
    "layer norm, token": Case(normalised, {"cls": random(1, 1, 4), "scale": random(4), "shift": random(4),
        "w": random(4, 2)},
                              random(5, 3, 4), (1, 3, 0)),
    "embedding": Case(lambda p, x: jnp.sin(p[x]), random(5, 3), WORDS, (1, 0, 0)),
    "embedding, taken": Case(lambda p, x: jnp.take(p, x, axis=1).sum(0), random(3, 5), WORDS, (1, 0, 0)),
    "words outside, clipped": Case(lambda p, x: jnp.sin(p.at[x].get(mode="clip")), random(5, 3), WORDS_OUTSIDE, (1,
        0, 0)),
    "words outside, dropped": Case(lambda p, x: jnp.sin(p.at[x].get(mode="fill", fill_value=1.0)), random(5, 3),
                                   WORDS_OUTSIDE, (1, 0, 0)),
    "tied head": Case(tied, {"e": random(5, 3), "m": random(3, 3)}, WORDS, (2, 0, 0)),
    "conv": Case(conv(), random(3, 3, 2, 4), random(3, 5, 6, 2), (1, 0, 0)),
    "conv, strided and dilated": Case(
        conv(window_strides=(2, 1), padding=((1, 2), (-1, 0)), rhs_dilation=(1, 2), lhs_dilation=(2, 1)),
        random(3, 2, 2, 4), random(3, 5, 6, 2), (1, 0, 0)),
    "conv, grouped": Case(conv(feature_group_count=2, padding="VALID"), random(2, 2, 2, 6), random(3, 4, 4, 4), (1,
        0, 0)),
    "conv, channels first": Case(conv(dimension_numbers=("NCHW", "OIHW", "NCHW")), random(4, 2, 3, 3),
                                 random(3, 2, 5, 4), (1, 0, 0)),
    "conv, one by one": Case(conv(), random(1, 1, 2, 4), random(3, 5, 4, 2), (1, 0, 0)),
    "gru": Case(jax_gru, as_jax(torch_gru(3, 5)), random(4, 6, 3), (4, 0, 0), 1),
    "unrolled": Case(unrolled, {"u": random(3, 3), "w": random(2, 3)}, random(4, 5, 2), (2, 0, 0)),
    "scan over layers": Case(scan_over_layers, {"q": random(4, 2), "layers": {"a": random(3, 4, 4), "b": random(3, 4)}},
                             random(5, 4), (3, 0, 0)),
    "nested scans": Case(nested_scans, {"stack": random(3, 4, 4), "shared": random(4, 4)}, random(5, 4), (2, 0, 0)),
    "checkpointed": Case(lambda p, x: jax.checkpoint(lambda p, x: jnp.sin(x @ p))(p, x) @ p, random(4, 4), random(5, 4),
                         (1, 0, 0)),
    "jitted": Case(lambda p, x: jax.jit(lambda p, x: jnp.sin(x @ p))(p, x), random(4, 4), random(5, 4), (1, 0, 0)),
    "custom derivative": Case(strange, random(4, 3), random(5, 4), (0, 1, 0)),
    "a counted loop": Case(counted_loop, random(4, 4), random(5, 4), (1, 0, 0)),
    "several inputs": Case(two_inputs, {"w": random(4, 3)}, {"a": random(5, 4), "b": random(5, 2, 4)}, (1, 0, 0)),
    "one block": Case(lambda p, x: jnp.sin((x - x.mean(0)) @ p), random(4, 3), random(5, 4), (1, 0, 0), None),
}  # fmt: skip


def formed(case: Case, params: Any, V: Any) -> Any:
    return per_example(case.fn, params, case.x, V, case.axis)


def assert_right(case: Case, check: bool = False) -> Any:
    J = jacobian(case.fn, case.params, case.x, batch_axis=case.axis, check=check)
    V = random(J.shape[0], 5, seed=7)
    g = np.asarray(jax.jit(lambda p: formed(case, p, V))(case.params))
    np.testing.assert_allclose(J.block_sqnorms(V), (g**2).sum(-1), rtol=1e-10, atol=1e-10)
    everything, first = tuple(range(len(J.trained))), J.trained[0].size
    for G, part in zip(J.grouped_gram(V, (everything, (0,))), (g, g[..., :first]), strict=True):
        np.testing.assert_allclose(G, np.einsum("bip,cjp->bicj", part, part), rtol=1e-10, atol=1e-10)
    return J


@pytest.mark.parametrize("name", CASES)
def test_norms_and_grams_are_those_of_the_formed_gradients(name: str) -> None:
    plan = assert_right(CASES[name])._plan
    assert (len(plan.weights), len(plan.small), len(plan.rest)) == CASES[name].expected


# -- inside transformations ---------------------------------------------------------------------------------

TRANSFORMED = ("attention", "gru", "tied head", "conv", "layer norm, token")


def sketch(case: Case, V: Any) -> Callable[[Any], Any]:
    """A function of the parameters that takes norms and Gram matrix, without looking at values."""

    def of(p: Any) -> Any:
        J = jacobian(case.fn, p, case.x, batch_axis=case.axis)
        return jnp.sum(jnp.sin(J.block_sqnorms(V))) + jnp.sum(jnp.cos(J.sketch_gram(V)))

    return of


def sketch_by_hand(case: Case, V: Any) -> Callable[[Any], Any]:
    def of(p: Any) -> Any:
        g = formed(case, p, V)
        return jnp.sum(jnp.sin(jnp.sum(g**2, -1))) + jnp.sum(jnp.cos(jnp.einsum("bip,cjp->bicj", g, g)))

    return of


@pytest.mark.parametrize("name", [TRANSFORMED[0], *(pytest.param(n, marks=pytest.mark.slow) for n in TRANSFORMED[1:])])
def test_they_work_and_are_differentiable_under_jit(name: str) -> None:
    case = CASES[name]
    V = random(jacobian(case.fn, case.params, case.x, batch_axis=case.axis, check=False).shape[0], 2, seed=3) / 10
    value, grad = jax.jit(jax.value_and_grad(sketch(case, V)))(case.params)
    expected, by_hand = jax.jit(jax.value_and_grad(sketch_by_hand(case, V)))(case.params)
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), grad, by_hand)


def test_they_can_be_mapped_over_parameters() -> None:
    case = CASES["dense"]
    V, scale = random(15, 2, seed=3), jnp.asarray([0.5, 1.0, 2.0])
    of = sketch(case, V)
    scaled = lambda s: jax.tree.map(lambda p: s * p, case.params)  # noqa: E731
    mapped = jax.vmap(lambda s: of(scaled(s)))(scale)
    np.testing.assert_allclose(mapped, [sketch_by_hand(case, V)(scaled(s)) for s in scale], rtol=1e-10)


def test_a_statistic_is_the_same_with_ghost_norms_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["attention"]
    K = te.gram(jacobian(case.fn, case.params, case.x))
    with_ghosts = te.effective_rank(K, n_probes=4, rng=0).value
    monkeypatch.setattr(ghost_norms, "plan", lambda model, trained, *_: Plan((), (), (), tuple(range(len(trained)))))
    K = te.gram(jacobian(case.fn, case.params, case.x))
    np.testing.assert_allclose(te.effective_rank(K, n_probes=4, rng=0).value, with_ghosts, rtol=1e-10)


# -- what is left to the rest -------------------------------------------------------------------------------


def test_branches_by_value_are_not_mapped_over() -> None:
    x = random(5, 4)
    J = jacobian(lambda p, x: jax.lax.map(lambda y: branching(p, y), x), random(4, 3), x)
    assert J._understood == Plan((), (), (), (0,))
    V = random(15, 3)
    g = np.einsum("bi,bok->bkio", jnp.where(x.sum(1) > 0, 1, 2)[:, None] * x, V.reshape(5, 3, 3)).reshape(5, 3, -1)
    np.testing.assert_allclose(J.sketch_gram(V), np.einsum("bip,cjp->bicj", g, g), atol=1e-10)


@pytest.mark.parametrize("name", ["sliced", "product of two", "of both kinds"])
def test_large_parameters_that_are_not_understood_are_treated_example_by_example(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ghost_norms._plan.cache_clear()
    monkeypatch.setattr("traceest_adapters.jax.per_example.plan.SMALL", 0)
    plan = assert_right(CASES[name])._plan
    ghost_norms._plan.cache_clear()
    assert plan.rest


def test_a_small_parameter_that_makes_a_large_one_is_not_copied_for_each_example() -> None:
    params = {"g": random(80), "v": random(60, 80)}
    weight = lambda p: p["g"] * p["v"] / jnp.linalg.norm(p["v"], axis=0)  # noqa: E731
    J = jacobian(lambda p, x: x @ weight(p), params, random(3, 60))
    assert J._plan.rest == (0, 1)


@pytest.mark.parametrize(
    "name",
    ["embedding", "conv", *(pytest.param(n, marks=pytest.mark.slow) for n in ("attention", "tied head", "unrolled"))],
)
def test_pieces_that_fit_in_no_memory_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    jax.clear_caches()
    monkeypatch.setattr(memory, "BUDGET", 600)
    assert_right(CASES[name])
    jax.clear_caches()


# -- precision ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_factors_may_be_as_large_or_small_as_their_product_allows(scale: float) -> None:
    x, w = scale * random(4, 3, 5), random(5, 6) / scale
    fn = lambda p, x: jnp.sin(x @ p["w"]).sum(1) / scale  # noqa: E731
    to32 = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float32), tree)  # noqa: E731
    V = random(24, 2)
    exact = jacobian(fn, {"w": w}, x).block_sqnorms(V)
    found = jacobian(fn, to32({"w": w}), to32(x)).block_sqnorms(V.astype(jnp.float32))
    np.testing.assert_allclose(found, exact, rtol=1e-4)


def test_sums_of_half_precision_are_made_in_float32() -> None:
    """A norm of 4,097 equal squares: half precision stops counting at 256."""
    n = 4097
    params, x = jnp.ones((1, n), jnp.bfloat16), jnp.ones((2, 1), jnp.bfloat16)
    J = jacobian(lambda p, x: x @ p, params, x)
    V = jnp.ones((2 * n, 1), jnp.bfloat16)
    np.testing.assert_allclose(J.block_sqnorms(V).astype(float), n, rtol=2**-8)


# -- bite ---------------------------------------------------------------------------------------------------


def wrongly(function: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: change(function(*args, **kwargs))


MUTATIONS: dict[str, tuple[str, Any, str, Callable[[Any], Any]]] = {
    "a use is missed": ("used twice", Plan, "of", lambda of: lambda self, leaf: of(self, leaf)[:1]),
    "both sides alike": ("used with its transpose", factors, "merged",
                         lambda f: lambda uses, factors: f([uses[0]] * len(uses), factors)),
    "positions apart": ("wide, few positions", factors, "_pairs", lambda f: wrongly(f,
        lambda x: x * jnp.eye(x.shape[-1]))),
    "padding is a word": ("words outside, dropped", factors, "outer",
                          lambda f: lambda use, x, d, dtype: f(use, jnp.abs(x), d, dtype)),
    "scale forgotten": ("scaled", interpreter, "_reordered", lambda f: wrongly(f,
        lambda v: v and v._replace(scale=None))),
    "order of axes": ("used with its transpose", interpreter, "_reordered", lambda f: wrongly(f,
        lambda v: v and v._replace(axes=v.axes[::-1]))),
    "padded on the wrong side": (
        "conv, strided and dilated", factors, "patches",
        lambda f: lambda x, conv: f(x, conv._replace(padding=tuple(pair[::-1] for pair in conv.padding)))),
    "steps are positions": ("scan over layers", scan, "_slice",
                            lambda f: wrongly(f, lambda k: k if k.view is None else k._replace(
                                view=k.view._replace(loops=(*k.view.loops[:-1], None))))),
    "spoiling ignored": ("of both kinds", records.Tape, "spoil", lambda f: lambda self, *inputs: None),
    "looks into custom derivatives": ("custom derivative", interpreter, "INLINED",
                                      lambda names: {**names, "custom_vjp_call": "call_jaxpr"}),
}  # fmt: skip


def mutated(name: str, monkeypatch: pytest.MonkeyPatch) -> Case:
    case, owner, attribute, change = MUTATIONS[name]
    monkeypatch.setattr(owner, attribute, change(getattr(owner, attribute)))
    return CASES[case]


@pytest.fixture
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plans and compiled steps are made anew, and forgotten afterwards."""
    ghost_norms._plan.cache_clear()
    jax.clear_caches()
    yield
    ghost_norms._plan.cache_clear()
    jax.clear_caches()


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_rule_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "verified", lambda plan, *_: plan)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_right(mutated(name, monkeypatch))


# A rule that is wrong for some examples or words alone (padding) may pass; those that are wrong for all may not.
SEEN = [name for name in MUTATIONS if name != "padding is a word"]


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if i > 1 else []) for i, n in enumerate(
    SEEN)])  # fmt: skip
def test_a_wrong_rule_is_seen_from_values_and_the_parameter_left_to_the_slower_way(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.warns(RuntimeWarning, match="made example by example"):
        plan = assert_right(mutated(name, monkeypatch), check=True)._plan
    assert plan.rest


def a_deep_network(depth: int, width: int = 8) -> Any:
    """Its Jacobian."""
    rng = np.random.default_rng(0)
    weights = [(rng.standard_normal((width, width)) / width**0.5).astype("float32") for _ in range(depth)]

    def fn(p: Any, x: Any) -> Any:
        for w in p:
            x = jnp.tanh(x @ w)
        return x

    return jacobian(fn, [jnp.asarray(w) for w in weights], jnp.asarray(rng.standard_normal((4, width)), jnp.float32))


def equations(jaxpr: Any) -> int:
    return len(jaxpr.eqns) + sum(map(equations, inner(jaxpr)))


def test_verification_goes_back_once_for_all_parameters() -> None:
    """Once for each would be quadratic in depth: three minutes of compilation for 200 factors, half a minute so."""

    def size(depth: int) -> int:
        J = a_deep_network(depth)
        arrays = J.trained, J.fixed, J._examples
        look = verify.Look(J)
        plan = ghost_norms.plan(J.model, *arrays)
        gaps = jax.make_jaxpr(ghost_norms.gaps, static_argnums=(0, 1))
        return equations(gaps(plan, J.dtype, *J._stepwise[:2], look.U, look.signs, look.expected).jaxpr)

    assert size(24) <= 4.2 * size(6)


@pytest.mark.slow
def test_rounding_that_adds_up_through_many_layers_is_not_taken_for_a_wrong_rule() -> None:
    assert not a_deep_network(200, 128)._plan.rest


def test_what_is_taken_for_rounding_grows_with_depth_up_to_what_outputs_may_be_off() -> None:
    def rtol(depth: int, dtype: Any) -> float:
        (use,) = a_deep_network(1)._understood.uses
        uses = (use._replace(result=(use.result[0], jnp.dtype(dtype))),) * depth
        return verify._rounding(Plan(uses, (0,), (), ()), [])

    eps = float(jnp.finfo(jnp.float32).eps)
    assert rtol(1, jnp.float32) == pytest.approx(eps ** (2 / 3))
    assert rtol(100, jnp.float32) == pytest.approx(10 * eps ** (2 / 3))
    assert rtol(10_000, jnp.float32) == pytest.approx(eps**0.5)
    assert rtol(10_000, jnp.bfloat16) < 0.1
