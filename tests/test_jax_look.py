"""Every JAX kernel is held against a plain backward pass when it is made, and reads what its function closes over."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import traceest as te
from traceest_adapters.jax import empirical_fisher, hessian, jacobian, ntk, program
from traceest_adapters.jax.per_example import factors, ghost_norms

B, N_IN, N_OUT = 5, 3, 4


def random(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape))


X, W = random(B, N_IN), random(N_IN, N_OUT)


def dense(fn: Callable[..., Any], params: Any, *inputs: Any) -> np.ndarray:
    """The Jacobian, a plain pass a row: `jax.jacrev` maps, and so would be as wrong as a batching rule is."""
    state, vjp = jax.vjp(lambda p: fn(p, *inputs), params)
    basis = np.eye(state.size).reshape(-1, *state.shape)
    return np.stack([np.concatenate([np.ravel(g) for g in jax.tree.leaves(vjp(jnp.asarray(e)))]) for e in basis])


def assert_kernel(fn: Callable[..., Any], params: Any, *inputs: Any) -> None:
    """All routes: exact, by blocks, by columns on either side."""
    J, A = jacobian(fn, params, *inputs), dense(fn, params, *inputs)
    G = A @ A.T
    assert float(te.exact(te.gram(J))) == pytest.approx(np.trace(G), rel=1e-9)
    V = random(len(A), 3, seed=7)
    blocks = np.einsum("bnp,bnk->bkp", A.reshape(len(inputs[0]), -1, A.shape[1]), V.reshape(len(inputs[0]), -1, 3))
    np.testing.assert_allclose(J.block_sqnorms(V), (blocks**2).sum(-1), rtol=1e-9)
    np.testing.assert_allclose(J.sketch_gram(V), np.einsum("bip,cjp->bicj", blocks, blocks), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(J.block_rmatmat(V), blocks, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(J.rmatmat(V), A.T @ V, rtol=1e-8, atol=1e-10)


# -- examples that influence each other --------------------------------------------------------------------------


def straight_through(p: Any, x: Any) -> Any:
    z = x @ p
    return z + z.mean(0) - jax.lax.stop_gradient(z.mean(0))


def gated(p: Any, x: Any) -> Any:
    h = jnp.tanh(x @ p["w"])
    return h + jnp.tanh(p["gate"]) * jax.nn.softmax(h @ h.T, -1) @ h


def states(p: Any, x: Any) -> Any:
    h, out = jnp.zeros((len(x), 2)), []
    for t in range(3):
        h = jnp.tanh(h + x[:, t : t + 1]) + p["q"][:, t]
        out.append(h)
    return jnp.stack(out, 1)


Q = {"q": jnp.zeros((B, 3, 2))}
COUPLED: dict[str, tuple[Callable[..., Any], Any, str]] = {
    "in derivatives alone": (straight_through, W, "not independent.*derivatives by 'params'.*states may be the same"),
    "behind a gate that is zero": (gated, {"gate": jnp.zeros(()), "w": W}, "not independent.*derivatives by 'gate'"),
    "a parameter with a row an example": (states, Q, f"has {B} rows, since a parameter.*has a row for each example"),
    "such rows, as many as examples": (
        lambda p, x: states({"q": p["q"][: len(x)]}, x), Q, "not independent.*derivatives by 'q'"),
    "such rows among others": (
        lambda p, x: states({"q": p["q"][: len(x)]}, x) * p["s"], {**Q, "s": jnp.asarray(1e6)},
        "not independent.*derivatives by 'q'"),
}  # fmt: skip


@pytest.mark.parametrize("name", COUPLED)
def test_examples_that_influence_each_other_in_derivatives_are_refused(name: str) -> None:
    fn, params, message = COUPLED[name]
    with pytest.raises(ValueError, match=message):
        ntk(fn, params, X)
    assert float(te.exact(ntk(fn, params, X, batch_axis=None))) > 0


# -- what is found for one kernel is not believed for another ------------------------------------------------------


def time_major(p: Any, x: Any) -> Any:
    n, T, _ = x.shape
    rows = jnp.tanh(x.transpose(1, 0, 2).reshape(T * n, -1) @ p["w"]) @ p["head"]
    return rows.reshape(T, n, -1).transpose(1, 0, 2)


def coupled_later(p: Any, x: Any) -> Any:
    h = x @ p["w"]
    return (h + p["c"] * (h.mean(0) - jax.lax.stop_gradient(h.mean(0)))) @ p["head"]


def test_a_head_that_is_zero_at_first_proves_nothing_for_later() -> None:
    x = random(4, 6, 3)
    for head in (jnp.zeros((N_OUT, 2)), random(N_OUT, 2)):
        assert_kernel(time_major, {"w": W, "head": head}, x)
    params = {"w": W, "c": jnp.ones(()), "head": jnp.zeros((N_OUT, 2))}
    assert (
        float(te.exact(ntk(coupled_later, {**params, "head": jnp.eye(N_OUT, 2), "c": jnp.zeros(())}, X, wrt="w"))) > 0
    )
    with pytest.raises(ValueError, match="not independent"):
        ntk(coupled_later, {**params, "head": random(N_OUT, 2)}, X, wrt="w")


def test_a_derivative_that_is_zero_but_for_rounding_is_right() -> None:
    """A softmax does not see what is added to all its inputs, and no parameter leaves the fast way, or a warning."""
    fn = lambda p, x: jax.nn.softmax(x @ p["w"] + p["same"] * jnp.ones(N_OUT), -1)  # noqa: E731
    J = jacobian(fn, {"w": W, "same": jnp.asarray(0.3)}, X)
    assert not J._plan.rest
    V = random(J.shape[0], 2)
    np.testing.assert_allclose(J.rmatmat(V), dense(fn, {"w": W, "same": jnp.asarray(0.3)}, X).T @ V, atol=1e-12)


# -- routes that fail are not taken ---------------------------------------------------------------------------------


@jax.custom_batching.custom_vmap
def _backward(x: Any, g: Any) -> Any:
    return g * jnp.cos(x)


@_backward.def_vmap
def _wrongly_mapped(n: int, batched: Any, x: Any, g: Any) -> Any:
    return 1.5 * g * jnp.cos(x), True


@jax.custom_vjp
def wrong_under_vmap(x: Any) -> Any:
    return jnp.sin(x)


wrong_under_vmap.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (_backward(x, g),))


@jax.custom_vjp
def called_back(x: Any) -> Any:
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def _back(x: Any, g: Any) -> Any:
    return (jax.pure_callback(lambda x, g: np.asarray(g) * np.cos(x), jax.ShapeDtypeStruct(x.shape, x.dtype), x, g),)


called_back.defvjp(lambda x: (called_back(x), x), _back)


def experts(p: Any, x: Any) -> Any:
    return jnp.stack([jax.lax.ragged_dot(row[None] * jnp.ones((2, 1)), p, jnp.asarray([1, 1])) for row in x])


UNMAPPED: dict[str, tuple[Callable[..., Any], Any, str]] = {
    "a wrong batching rule": (lambda p, x: wrong_under_vmap(x @ p), W, "mapped, they give other results"),
    "a callback": (lambda p, x: called_back(x @ p), W, "cannot be mapped over probes: .*pure_callback"),
    "no batching rule": (experts, random(2, N_IN, N_OUT), "cannot be mapped over probes: .*ragged_dot"),
}


@pytest.mark.parametrize("name", UNMAPPED)
def test_what_cannot_be_mapped_or_is_mapped_wrongly_goes_one_by_one(name: str) -> None:
    fn, params, message = UNMAPPED[name]
    with pytest.warns(RuntimeWarning, match=message) as said:
        J = jacobian(fn, params, X)
    A = dense(fn, params, X)
    V = random(len(A), 3, seed=7)
    blocks = np.einsum("bnp,bnk->bkp", A.reshape(B, -1, A.shape[1]), V.reshape(B, -1, 3))
    np.testing.assert_allclose(J.block_sqnorms(V), (blocks**2).sum(-1), rtol=1e-9)
    np.testing.assert_allclose(J.sketch_gram(V), np.einsum("bip,cjp->bicj", blocks, blocks), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(J.rmatmat(V), A.T @ V, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(J.rmatmat(jnp.eye(len(A))), A.T, rtol=1e-8, atol=1e-10)
    assert [w.filename for w in said] == [__file__], "one warning a kernel, at who made it"


def test_a_forward_pass_that_is_mapped_wrongly_goes_one_by_one() -> None:
    @jax.custom_batching.custom_vmap
    def twice(x: Any) -> Any:
        return 2 * x

    twice.def_vmap(lambda n, batched, x: (3 * x, True))

    @jax.custom_jvp
    def f(x: Any) -> Any:
        return x**2 / 2

    f.defjvp(lambda primals, tangents: (f(*primals), primals[0] * twice(tangents[0]) / 2))
    with pytest.warns(RuntimeWarning, match="mapped over probes.*one by one"):
        J = jacobian(lambda p, x: f(x @ p), W, X)
    found = J.matmat(jnp.eye(W.size))
    np.testing.assert_allclose(found, dense(lambda p, x: (x @ p) ** 2 / 2, W, X), atol=1e-12)


def test_a_fault_in_what_is_known_of_a_layer_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every kernel: not one made before proves it, and check=False does not look."""
    fn = lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"]  # noqa: E731
    params = {"w": random(N_IN, 6), "v": random(6, 2)}
    assert not jacobian(fn, params, X)._plan.rest
    jax.clear_caches()
    right = factors.outer
    monkeypatch.setattr(factors, "outer", lambda use, x, d, dtype: right(use, x + (use.leaf == 1), d, dtype))
    with pytest.warns(RuntimeWarning, match="of 'w' gradients.*example by example"):
        J = jacobian(fn, params, X)
    assert J._plan.rest == (1,)
    V = random(J.shape[0], 2)
    wrong = jacobian(fn, params, X, check=False).block_sqnorms(V)
    assert not np.allclose(wrong, J.block_sqnorms(V))
    jax.clear_caches()


# -- values that are closed over -----------------------------------------------------------------------------------

SCALE = 1.0


class Net:
    """What its method reads."""

    def __init__(self) -> None:
        self.scale = 1.0
        self.table = {"scale": 1.0}
        self.array = np.ones(N_OUT)

    def by_attribute(self, p: Any, x: Any) -> Any:
        return jnp.tanh(x @ p) * self.scale

    def by_dictionary(self, p: Any, x: Any) -> Any:
        return jnp.tanh(x @ p) * self.table["scale"]

    def by_array(self, p: Any, x: Any) -> Any:
        return jnp.tanh(x @ p) * self.array

    def by_rule(self, p: Any, x: Any) -> Any:
        """The scale is in the backward pass alone."""

        @jax.custom_vjp
        def f(z: Any) -> Any:
            return z

        f.defvjp(lambda z: (z, None), lambda _, g: (g * self.scale,))
        return f(jnp.tanh(x @ p))

    def by_global(self, p: Any, x: Any) -> Any:
        return jnp.tanh(x @ p) * SCALE

    def set(self, scale: float) -> None:
        global SCALE
        SCALE = self.scale = self.table["scale"] = scale
        self.array *= scale / self.array[0]


@pytest.mark.parametrize("how", ["attribute", "dictionary", "array", "rule", "global"])
def test_what_a_function_reads_is_read_when_its_kernel_is_made(how: str) -> None:
    program.forget()  # steps are compiled anew where there are too many programs, in the midst of this otherwise
    net = Net()
    fn = getattr(net, f"by_{how}")
    once = float(te.exact(ntk(fn, W, X)))
    kept = ntk(fn, W, X)
    net.set(2.0)
    assert float(te.exact(ntk(fn, W, X))) == pytest.approx(4 * once, rel=1e-12)
    assert float(te.exact(kept)) == pytest.approx(once, rel=1e-12), "the state it was made of, and no mixture"
    net.set(1.0)


def test_a_loss_reads_its_constants_when_its_matrix_is_made() -> None:
    weights = {"w": 1.0}
    loss = lambda z: weights["w"] * jnp.mean(z**2)  # noqa: E731
    fn = lambda p, x: x @ p  # noqa: E731
    value = lambda: (float(te.trace(empirical_fisher(fn, loss, W, X))), float(te.trace(hessian(  # noqa: E731
        lambda p: loss(fn(p, X)), W), rng=0)))  # fmt: skip
    fisher, curvature = value()
    weights["w"] = 2.0
    assert value() == pytest.approx((4 * fisher, 2 * curvature))


def test_inputs_of_numpy_are_what_they_were_when_the_kernel_was_made() -> None:
    x = np.array(X)
    J = jacobian(lambda p, x: jnp.tanh(x @ p), W, x)
    before = np.asarray(J.block_sqnorms(jnp.ones((J.shape[0], 1))))
    x[:] = 0
    np.testing.assert_array_equal(J.block_sqnorms(jnp.ones((J.shape[0], 1))), before)


def compilations(caplog: pytest.LogCaptureFixture, make: Callable[[], Any]) -> int:
    caplog.clear()
    with jax.log_compiles(), caplog.at_level("WARNING", logger="jax"):
        make()
    return sum("Finished XLA compilation" in record.getMessage() for record in caplog.records)


def test_checkpoints_and_fresh_functions_compile_nothing_new(caplog: pytest.LogCaptureFixture) -> None:
    params = {"w": random(N_IN, 7), "v": random(7, 2)}
    seen: list[float] = []

    def kernel(scale: float) -> None:
        stats = jnp.full(2, scale)
        fn = lambda p, x: jax.nn.relu(x @ p["w"]) @ p["v"] * stats  # noqa: E731
        seen.append(float(te.summary(ntk(fn, params, X), n_probes=2, rng=0).trace))

    kernel(1.0)
    assert compilations(caplog, lambda: [kernel(1.0 + i) for i in range(1, 50)]) == 0
    np.testing.assert_allclose(seen, seen[0] * np.arange(1, 51) ** 2, rtol=1e-9)


def test_a_function_that_nobody_holds_is_let_go() -> None:
    refs: list[Any] = []

    def cell() -> None:
        frozen = jnp.zeros(1000)
        fn = lambda p, x: jnp.tanh(x @ p) + frozen[0]  # noqa: E731
        refs.extend([weakref.ref(fn), weakref.ref(frozen)])
        te.effective_rank(ntk(fn, W, X), n_probes=2, rng=0)

    for _ in range(3):
        cell()
    gc.collect()
    assert [r() for r in refs] == [None] * 6


def test_programs_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "KEPT", 3)
    for n in range(1, 6):
        jacobian(lambda p, x, n=n: jnp.sin(n * x @ p), W, X, check=False)
        assert len(program._known) <= 4
    program.forget()
    assert ghost_norms.sqnorms._cache_size() == 0


# -- keyword inputs ---------------------------------------------------------------------------------------------------


def masked(p: Any, x: Any, *, mask: Any, mode: str, flag: bool = True) -> Any:
    return (x * mask) @ p * (2.0 if mode == "twice" and flag else 1.0)


def test_keyword_inputs_have_a_batch_axis_or_are_passed_through() -> None:
    mask = jnp.asarray(random(B, N_IN, seed=3) > 0, float)
    J = jacobian(masked, W, X, kwargs={"mask": mask, "mode": "twice", "flag": True})
    A = dense(lambda p, x: 2 * (x * mask) @ p, W, X)
    np.testing.assert_allclose(J.rmatmat(jnp.eye(len(A))), A.T, atol=1e-12)
    assert J.n_blocks == B
    shared = {"mask": mask[0], "mode": "once"}
    K = ntk(masked, W, X, kwargs=shared, in_axes=(0, {"mask": None, "mode": None}))
    A = dense(lambda p, x: (x * mask[0]) @ p, W, X)
    assert float(te.exact(K)) == pytest.approx((A**2).sum())
    with pytest.raises(TypeError, match="kwargs= beside batches="):
        ntk(masked, W, batches=[X], kwargs=shared)
