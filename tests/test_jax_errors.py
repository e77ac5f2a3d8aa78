"""JAX models and batches that are wrong, each told what to change."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import traceest as te
from traceest_adapters.jax import jacobian, ntk

KEY = jax.random.key(0)


class Net(nn.Module):
    """A layer, then a dropout and a batch norm as they are in training, if asked for."""

    dropout: bool = False
    norm: bool = False

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Dense(4)(x)
        x = nn.Dropout(0.5, deterministic=not self.dropout)(x)
        return nn.BatchNorm(use_running_average=not self.norm)(x)


def random(*shape: int) -> Any:
    return jax.random.normal(KEY, shape)


X, W = random(7, 6), random(6, 3)
VARIABLES = Net().init(KEY, X)
DROPPING, NORMALISING = Net(dropout=True), Net(norm=True)
NNX = nnx.Sequential(nnx.Linear(6, 3, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
RECURRENT = nn.RNN(nn.GRUCell(3, param_dtype=float), time_major=True)
TIME_MAJOR = random(4, 5, 6)
LAYERS = {"encoder": {"query": W, "key": W}, "head": [W, W], **{f"block_{i}": W for i in range(20)}}


def linear(p: Any, x: Any) -> Any:
    return x @ p


def of_layers(p: Any, x: Any) -> Any:
    return x @ p["encoder"]["query"]


BAD: dict[str, tuple[Any, Any, tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "dropout of the whole batch": (
        lambda p, x: DROPPING.apply(p, x, rngs={"dropout": KEY}), VARIABLES, (X,), {"wrt": "params"}, ValueError,
        "not independent.*dropout.*key of its own"),
    "dropout of a module": (lambda m, x: m(x), NNX, (X,), {"wrt": nnx.Param}, ValueError, "not independent.*dropout"),
    "batch norm in training mode": (
        lambda p, x: NORMALISING.apply(p, x, mutable="batch_stats"), VARIABLES, (X,), {"wrt": "params", "output": 0},
        ValueError, "not independent.*batch norm in training mode.*running statistics.*batch_axis=None"),
    "what else it returns": (
        lambda p, x: NORMALISING.apply(p, x, mutable="batch_stats"), VARIABLES, (X,), {"wrt": "params"}, ValueError,
        "output="),
    "a time-major batch": (RECURRENT.apply, RECURRENT.init(KEY, TIME_MAJOR), (TIME_MAJOR,), {}, ValueError,
                           "not independent.*batch_axis=1"),
    "no such axis": (linear, W, (X,), {"batch_axis": 2}, ValueError, r"shape \(7, 6\) has no such axis.*in_axes="),
    "a state without that axis": (lambda p, x: p.sum() * x[0, 0], W, (X.T[None],), {"batch_axis": 2, "in_axes": 2},
                                  ValueError, "has no such axis"),
    "a shared input": (lambda p, x, t: x @ p, W, (X, random(9)), {}, ValueError, r"\[7, 9\].*in_axes="),
    "axes of other inputs": (linear, W, (X,), {"in_axes": (0, None)}, ValueError, "does not fit the 1 inputs"),
    "only shared inputs": (linear, W, (X,), {"in_axes": None}, ValueError, "batch_axis=None"),
    "axes without a batch": (linear, W, (X,), {"in_axes": 0, "batch_axis": None}, ValueError, "in_axes=0 with"),
    "a detached output": (lambda p, x: jax.lax.stop_gradient(x @ p), W, (X,), {}, ValueError, "stop_gradient"),
    "other parameters": (of_layers, LAYERS, (X,), {"wrt": "head"}, ValueError, "does not depend on the parameters"),
    "nothing to differentiate": (lambda p, x: jnp.asarray(jax.pure_callback(lambda y: y, jax.ShapeDtypeStruct(
        (7, 3), X.dtype), x @ p, vmap_method="sequential")), W, (X,), {}, TypeError, "neither in reverse mode.*nor"),
    "an integer output": (lambda p, x: jnp.argmax(x @ p, 1), W, (X,), {}, TypeError, "int64.*real floating"),
    "a complex output": (lambda p, x: x @ p * 1j, W, (X,), {}, TypeError, "complex.*real floating"),
    "no output": (lambda p, x: None, W, (X,), {}, TypeError, "no array"),
    "complex parameters": (lambda p, x: jnp.abs(x @ p), 1j * W, (X,), {}, TypeError, "complex"),
    "no parameters": (lambda p, x: x, {"n": 3, "ids": jnp.arange(3)}, (X,), {}, TypeError, "no trainable parameter"),
    "Python numbers alone": (lambda p, x: p * x, 2.0, (X,), {}, TypeError, "unless wrt names them"),
    "none selected": (of_layers, LAYERS, (X,), {"wrt": lambda path, leaf: False}, TypeError, "no trainable parameter"),
    "a class that is not there": (of_layers, LAYERS, (X,), {"wrt": nnx.Param}, TypeError, "wrt=Param selects"),
    "a misspelt path": (of_layers, LAYERS, (X,), {"wrt": "encoder.qeury"}, ValueError,
                        r"'encoder.qeury' fits no parameter; did you mean 'encoder.query'.*are block_0.* and 12 more"),
    "half a path": (of_layers, LAYERS, (X,), {"wrt": ["enc"]}, ValueError, "'enc' fits no parameter"),
    "no path": (of_layers, LAYERS, (X,), {"wrt": [3]}, TypeError, "dotted paths"),
    "a wrong output": (linear, W, (X,), {"output": 1.5}, TypeError, "output must be"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_model_or_batch_is_told_what_to_change(case: str) -> None:
    fn, params, inputs, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        jacobian(fn, params, *inputs, **options)


def test_a_batch_norm_in_training_mode_is_one_block_if_asked_for() -> None:
    fn, params, inputs, options, *_ = BAD["batch norm in training mode"]
    assert jacobian(fn, params, *inputs, **options, batch_axis=None).n_blocks is None


def test_what_the_library_forbids_it_says_itself() -> None:
    with pytest.raises(Exception, match=r"batch_stats.*immutable"):
        jacobian(NORMALISING.apply, VARIABLES, X, wrt="params")


def test_a_state_that_is_not_a_number_is_found_in_the_first_product() -> None:
    K = ntk(lambda p, x: jnp.sqrt(x @ p), random(6, 30), X)  # NaN alone and together, hence independent
    with pytest.raises(ValueError, match=r"NaN or infinity in the product .*column 0"):
        te.trace(K, rng=0)
