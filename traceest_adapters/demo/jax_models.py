"""GRU and MLP in plain JAX."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.example_libraries import optimizers

from traceest_adapters.demo.data import Digits, batches
from traceest_adapters.demo.learner import GRU_STATE, HIDDEN_GRU, HIDDEN_MLP, LEARNING_RATE, MLP_STATE
from traceest_adapters.jax import ntk

_init_adam, _update_adam, _params_of = optimizers.adam(LEARNING_RATE)


def learners(digits: Digits, seed: int) -> list[JaxLearner]:
    """The two models, at initialisation."""
    key_gru, key_mlp = jax.random.split(jax.random.key(seed))
    return [
        JaxLearner("GRU", GRU_STATE, gru_states, gru_logits, init_gru(key_gru), digits, seed),
        JaxLearner("MLP", MLP_STATE, mlp_states, mlp_logits, init_mlp(key_mlp), digits, seed),
    ]


class JaxLearner:
    """A `Learner`: ``states(params["body"], images)`` are probed, ``logits(params, images)`` trained."""

    def __init__(
        self, name: str, state: str, states: Callable, logits: Callable, params: Any, digits: Digits, seed: int
    ) -> None:
        self.name, self.state = name, state
        self._states, self._logits, self._digits = states, logits, digits
        self._optimiser, self._step = _init_adam(params), 0
        self._batches = batches(digits, seed)

    def train(self, n_steps: int) -> None:
        """As `Learner.train`."""
        for _ in range(n_steps):
            self._optimiser = _train_step(self._logits, self._step, self._optimiser, *next(self._batches))
            self._step += 1

    def kernel(self) -> Any:
        """As `Learner.kernel`; the head's parameters do not reach the state and are left out."""
        return ntk(self._states, _params_of(self._optimiser)["body"], self._digits.probed)

    def accuracy(self) -> float:
        """As `Learner.accuracy`."""
        told = _told(self._logits, _params_of(self._optimiser), self._digits.test_images)
        return float(jnp.mean(told == self._digits.test_labels))


@partial(jax.jit, static_argnums=0)
def _train_step(logits: Callable, step: int, optimiser: Any, images: Any, labels: Any) -> Any:
    def cross_entropy(params: Any) -> Any:
        log_p = jax.nn.log_softmax(logits(params, images))
        return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=1))

    return _update_adam(step, jax.grad(cross_entropy)(_params_of(optimiser)), optimiser)


@partial(jax.jit, static_argnums=0)
def _told(logits: Callable, params: Any, images: Any) -> Any:
    return jnp.argmax(logits(params, images), axis=1)


# -- GRU: an image is a sequence of 8 rows of 8 pixels --------------------------------------------------
def init_gru(key: Any) -> Any:
    """Parameters uniform in ±1/√hidden, as PyTorch draws them."""
    H = HIDDEN_GRU
    shapes = {"w_in": (8, 3 * H), "w_hidden": (H, 3 * H), "b_in": (3 * H,), "b_hidden": (3 * H,)}
    keys = jax.random.split(key, len(shapes) + 1)
    body = {name: _uniform(k, shape, H**-0.5) for k, (name, shape) in zip(keys, shapes.items())}
    return {"body": body, "head": _init_dense(keys[-1], H, 10)}


def gru_states(body: Any, images: Any) -> Any:
    """Hidden states (N, 8, hidden) of images (N, 8, 8)."""

    def step(h: Any, row: Any) -> Any:
        reset_in, update_in, new_in = jnp.split(row @ body["w_in"] + body["b_in"], 3, axis=1)
        reset_h, update_h, new_h = jnp.split(h @ body["w_hidden"] + body["b_hidden"], 3, axis=1)
        update = jax.nn.sigmoid(update_in + update_h)
        new = jnp.tanh(new_in + jax.nn.sigmoid(reset_in + reset_h) * new_h)
        h = (1 - update) * new + update * h
        return h, h

    start = jnp.zeros((images.shape[0], HIDDEN_GRU), jnp.float32)
    return jnp.swapaxes(jax.lax.scan(step, start, jnp.swapaxes(images, 0, 1))[1], 0, 1)


def gru_logits(params: Any, images: Any) -> Any:
    """Logits (N, 10) from the last hidden state."""
    return _dense(params["head"], gru_states(params["body"], images)[:, -1])


# -- MLP: an image is 64 pixels -------------------------------------------------------------------------
def init_mlp(key: Any) -> Any:
    """Parameters 64 → 64 → 64 → 10."""
    sizes = (64, HIDDEN_MLP, HIDDEN_MLP, 10)
    *body, head = map(_init_dense, jax.random.split(key, 3), sizes[:-1], sizes[1:])
    return {"body": body, "head": head}


def mlp_states(body: Any, images: Any) -> Any:
    """Activations (N, hidden) of the last hidden layer."""
    h = jnp.reshape(images, (images.shape[0], -1))
    for layer in body:
        h = jax.nn.relu(_dense(layer, h))
    return h


def mlp_logits(params: Any, images: Any) -> Any:
    """Logits (N, 10)."""
    return _dense(params["head"], mlp_states(params["body"], images))


def _init_dense(key: Any, n_in: int, n_out: int) -> Any:
    key_w, key_b = jax.random.split(key)
    return {"w": _uniform(key_w, (n_in, n_out), n_in**-0.5), "b": _uniform(key_b, (n_out,), n_in**-0.5)}


def _dense(layer: Any, x: Any) -> Any:
    return x @ layer["w"] + layer["b"]


def _uniform(key: Any, shape: tuple[int, ...], bound: float) -> Any:
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)
