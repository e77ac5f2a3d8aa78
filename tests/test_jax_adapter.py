"""JAX Jacobians against `jax.jacrev`, their compilation, and their place inside transformations."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import assert_close
from models import as_jax, jax_gru, jax_mlp, random, torch_gru, torch_mlp

import traceest as te
from traceest import _backends
from traceest_adapters import _memory as memory
from traceest_adapters.jax import jacobian, ntk
from traceest_adapters.jax.per_example import compiled

KEY = jax.random.key(0)


def two_leaves(p: Any, x: Any) -> Any:
    """A pytree state, a dictionary input, and parameters with an integer leaf."""
    h = jnp.sin(x["a"] @ p["w"]) * p["steps"]
    return {"hidden": h, "out": jnp.einsum("bi,bij->bj", x["b"], h[:, :, None] * p["v"])}


def conv(p: Any, x: Any) -> Any:
    y = jax.lax.conv_general_dilated(x, p["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.tanh(y).mean(axis=(1, 2)) @ p["head"]


CASES: dict[str, tuple[Any, Any, Any, int | None]] = {
    "mlp": (jax_mlp, as_jax(torch_mlp()), random(7, 6), 0),
    "mlp, one block": (jax_mlp, as_jax(torch_mlp()), random(7, 6), None),
    "gru, time-major": (jax_gru, as_jax(torch_gru(3, 5)), random(4, 6, 3), 1),
    "conv": (conv, {"kernel": random(3, 3, 2, 4), "head": random(4, 3)}, random(5, 6, 6, 2), 0),
    "pytrees": (
        two_leaves,
        {"w": random(4, 3), "v": random(1, 3, 2), "steps": jnp.asarray(2)},
        {"a": random(6, 4), "b": random(6, 3, seed=1)},
        0,
    ),
}


def dense(fn: Any, params: Any, x: Any, axis: int | None) -> np.ndarray:
    """The Jacobian as a matrix, rows example first."""
    floating = {k: v for k, v in params.items() if jnp.issubdtype(v.dtype, jnp.floating)}

    def state(p: Any) -> Any:
        leaves = jax.tree.leaves(fn({**params, **p}, x))
        if axis is None:
            return jnp.concatenate([leaf.ravel() for leaf in leaves])
        return jnp.concatenate(
            [jnp.moveaxis(leaf, axis, 0).reshape(leaf.shape[axis], -1) for leaf in leaves], 1
        ).ravel()

    J = jax.jacrev(state)(floating)
    # jax.tree.leaves sorts dictionaries by key, and so does the adapter, which flattens the same pytree
    return np.concatenate([np.asarray(leaf).reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(J)], axis=1)


@pytest.mark.parametrize("case", CASES)
def test_products_are_those_of_the_dense_jacobian(case: str) -> None:
    fn, params, x, axis = CASES[case]
    J, D = jacobian(fn, params, x, batch_axis=axis), dense(fn, params, x, axis)
    n, P = D.shape
    assert J.shape == (n, P)
    B = J.n_blocks or 1
    V, W = random(n, 6), random(P, 6)
    np.testing.assert_allclose(J.matmat(W), D @ W, atol=1e-10)
    np.testing.assert_allclose(J.rmatmat(V), D.T @ V, atol=1e-10)
    np.testing.assert_allclose(J.gram_matmat(V), D @ (D.T @ V), atol=1e-9)
    g = np.einsum("bnp,bnk->bkp", D.reshape(B, -1, P), np.asarray(V).reshape(B, -1, 6))
    np.testing.assert_allclose(J.block_rmatmat(V), g, atol=1e-10)
    np.testing.assert_allclose(J.block_sqnorms(V), (g**2).sum(-1), atol=1e-9)
    np.testing.assert_allclose(J.sketch_gram(V), np.einsum("bip,cjp->bicj", g, g), atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_the_two_sides_are_adjoint(case: str) -> None:
    fn, params, x, axis = CASES[case]
    J = jacobian(fn, params, x, batch_axis=axis)
    V, W = random(J.shape[0], 3), random(J.shape[1], 3, seed=1)
    np.testing.assert_allclose(jnp.sum(V * J.matmat(W), 0), jnp.sum(J.rmatmat(V) * W, 0), rtol=1e-11)


def test_a_group_of_layers_at_a_time_gives_the_same_gram(monkeypatch: pytest.MonkeyPatch) -> None:
    fn, params, x, _ = CASES["mlp"]
    J, V = jacobian(fn, params, x), random(35, 5)
    whole = J.sketch_gram(V)
    monkeypatch.setattr(memory, "BUDGET", 1)
    np.testing.assert_allclose(J.sketch_gram(V), whole, rtol=1e-12)


def test_the_chunk_size_does_not_change_the_products() -> None:
    fn, params, x, _ = CASES["mlp"]
    V = random(35, 5)
    for size in (1, 2, 5, 9):
        J = jacobian(fn, params, x, chunk_size=size)
        np.testing.assert_allclose(J.rmatmat(V), jacobian(fn, params, x).rmatmat(V), rtol=1e-12)
        np.testing.assert_allclose(J.sketch_gram(V), jacobian(fn, params, x).sketch_gram(V), rtol=1e-11)


def test_a_new_number_of_probes_or_new_parameters_compile_no_step_again() -> None:
    fn, params, x, _ = CASES["mlp"]
    compiled_steps = (
        compiled.block_sqnorms,
        compiled.vjps,
        compiled.matmat,
        compiled.gram_matmat,
        compiled.block_grads,
    )

    def use(scale: float, k: int) -> None:
        J = jacobian(fn, jax.tree.map(lambda p: scale * p, params), x)
        V = random(35, k)
        for product in (J.block_sqnorms, J.rmatmat, J.gram_matmat, J.sketch_gram):
            product(V)
        J.matmat(random(J.shape[1], k))

    use(1.0, 4)
    use(1.0, 1)  # a single probe has programs of its own
    before = [step._cache_size() for step in compiled_steps]
    for k in (1, 3, 6, 17):
        use(0.5 + k, k)
    assert [step._cache_size() for step in compiled_steps] == before


def test_the_model_is_linearised_once_for_all_probes() -> None:
    fn, params, x, _ = CASES["mlp"]
    calls = []

    def counted(p: Any, x: Any) -> Any:
        calls.append(1)
        return fn(p, x)

    J = jacobian(counted, params, x)
    J.rmatmat(random(35, 4))
    traced = len(calls)
    for k in (4, 9, 30):
        J.rmatmat(random(35, k))
    assert len(calls) == traced


def test_statistics_run_under_jit_and_agree_with_those_outside() -> None:
    fn, params, x, _ = CASES["mlp"]

    def rank(p: Any) -> Any:
        return te.effective_rank(ntk(fn, p, x), n_probes=4, rng=0).value

    np.testing.assert_allclose(jax.jit(rank)(params), rank(params), rtol=1e-10)


def test_the_trace_estimate_is_differentiable_in_the_parameters() -> None:
    fn, params, x, _ = CASES["mlp"]
    V = random(35, 3)

    def estimate(p: Any) -> Any:
        return te.rhutch(jacobian(fn, p, x, check=False), probes=V).value

    def by_hand(p: Any) -> Any:
        J = jax.jacrev(lambda q: fn(q, x))(p)
        rows = jnp.concatenate([leaf.reshape(7, 5, -1) for leaf in jax.tree.leaves(J)], axis=-1)
        return jnp.sum(jnp.einsum("bnp,bnk->bkp", rows, V.reshape(7, 5, 3)) ** 2) / 3

    got, expected = jax.grad(estimate)(params), jax.grad(by_hand)(params)
    for name in params:
        np.testing.assert_allclose(got[name], expected[name], atol=1e-9)


def test_a_part_of_the_output_can_be_the_state() -> None:
    fn, params, x, _ = CASES["pytrees"]
    for output in ("out", lambda state: state["out"]):
        assert jacobian(fn, params, x, output=output).shape == (12, 18)


def test_float32_models_stay_float32() -> None:
    params = {k: v.astype(jnp.float32) for k, v in as_jax(torch_mlp()).items()}
    K = ntk(jax_mlp, params, random(7, 6).astype(jnp.float32))
    assert K.dtype == jnp.float32
    assert te.rhutch(K, 3, rng=0).value.dtype == jnp.float32
    assert te.effective_rank(K, 3, rng=jax.random.key(1)).value.dtype == jnp.float32


def centred(p: Any, x: Any) -> Any:
    y = x @ p
    return y - y.mean(axis=0)


W = random(6, 3)
BAD: dict[str, tuple[Any, Any, Any, dict[str, Any], type[Exception], str]] = {
    "a layer that mixes examples": (centred, W, random(7, 6), {}, ValueError, "batch_axis=None"),
    "a time-major batch": (jax_gru, as_jax(torch_gru(3, 5)), random(4, 6, 3), {}, ValueError, "batch_axis=None"),
    "no such axis": (lambda p, x: x @ p, W, random(7, 6), {"batch_axis": 2}, ValueError, "no such axis"),
    "an integer state": (lambda p, x: jnp.argmax(x @ p, 1), W, random(7, 6), {}, TypeError, "real floating"),
    "a detached state": (lambda p, x: jax.lax.stop_gradient(x @ p), W, random(7, 6), {}, ValueError, "stop_gradient"),
    "no parameters": (lambda p, x: x, {"n": jnp.arange(3)}, random(7, 6), {}, TypeError, "no trainable parameter"),
    "complex parameters": (lambda p, x: jnp.abs(x @ p), 1j * W, random(7, 6), {}, TypeError, "complex"),
    "unequal batches": (lambda p, x: x[0] @ p, W, [random(7, 6), random(5, 6)], {}, ValueError, r"\[5, 7\]"),
    "a state without the batch": (lambda p, x: (x @ p).sum(0), W, random(7, 6), {}, ValueError, "7 examples go in"),
    "no inputs": (lambda p: p, W, None, {}, ValueError, "no inputs"),
    "a wrong output": (lambda p, x: x @ p, W, random(7, 6), {"output": 1.5}, TypeError, "output must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_models_are_told_what_to_change(case: str) -> None:
    fn, params, x, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        jacobian(fn, params, *(() if x is None else (x,)), **options)


def test_a_zero_kernel_passes_if_checks_are_off() -> None:
    J = jacobian(lambda p, x: jax.nn.relu(-jnp.abs(x @ p)), W, random(7, 6), check=False)
    assert float(te.rhutch(J, 2, rng=0)) == 0


def test_a_kernel_that_is_first_used_inside_a_compiled_function_keeps_nothing_of_it():
    p, x = {"w": jnp.ones((3, 2))}, jnp.eye(4, 3)
    K, V = ntk(lambda p, x: jnp.tanh(x @ p["w"]), p, x), jnp.ones((8, 2))
    inside = jax.jit(lambda V: (K.matmat(V), te.rhutch(K.factor, probes=V).value))(V)
    assert_close(inside[0], K.matmat(V), 1e-12)
    assert float(inside[1]) == pytest.approx(float(te.rhutch(K.factor, probes=V)), rel=1e-12)


def test_what_follows_the_products_is_one_program_for_all_kernels_of_its_shape(caplog):
    fn, params, x, _ = CASES["mlp"]

    def compilations(seed: int) -> int:
        caplog.clear()
        with jax.log_compiles():
            K = ntk(fn, jax.tree.map(lambda p: p * seed, params), x)
            assert float(te.summary(K, n_probes=4, rng=seed).effective_rank) > 1
        return sum("Finished XLA compilation" in record.getMessage() for record in caplog.records)

    jax.clear_caches()
    assert 0 < compilations(1) < 80  # operation by operation they were over 130
    assert compilations(2) == 0


def test_statistics_op_by_op_and_as_one_program_agree(monkeypatch):
    fn, params, x, _ = CASES["mlp"]
    K = ntk(fn, params, x)
    how = {"n_probes": 6, "rng": 0, "groups": 1, "target": random(35, 2), "centred": True, "distribution": "sphere"}
    compiled = te.summary(K, **how)
    monkeypatch.setattr(type(_backends.find(x)), "compiled", None)
    for a, b in zip(jax.tree.leaves(compiled), jax.tree.leaves(te.summary(K, **how)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8)
