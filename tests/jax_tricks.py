"""Further parts of random JAX models: derivatives of their own, and what has to be refused."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax_blocks import block, number, square, vector


@block("straight through", w=square)
def _straight(p: Any, h: Any, c: Any) -> Any:
    z = h @ p["w"]
    return z + jax.lax.stop_gradient(jnp.round(4 * z) / 4 - z)


@block("stopped half", w=square, v=square)
def _stopped(p: Any, h: Any, c: Any) -> Any:
    return jax.lax.stop_gradient(h @ p["w"]) * (h @ p["v"])


@block("weight stopped once", w=square)
def _stopped_weight(p: Any, h: Any, c: Any) -> Any:
    return jnp.tanh(h @ p["w"]) @ jax.lax.stop_gradient(p["w"])


@block("checkpointed", w=square, b=vector)
def _remat(p: Any, h: Any, c: Any) -> Any:
    return jax.checkpoint(lambda w, b, h: jnp.tanh(jnp.sin(h @ w + b) @ w))(p["w"], p["b"], h)


@block("checkpointed loop", u=square, b=vector)
def _remat_loop(p: Any, h: Any, c: Any) -> Any:
    @jax.checkpoint
    def step(z: Any, x: Any) -> Any:
        z = jnp.tanh(x + z @ p["u"] - p["b"])
        return z, z

    out = jax.lax.scan(step, jnp.zeros_like(h[:, 0]), jnp.swapaxes(h, 0, 1))[1]
    return jnp.swapaxes(out, 0, 1)


@block("compiled inside", w=square)
def _jitted(p: Any, h: Any, c: Any) -> Any:
    return jax.jit(lambda w, h: jnp.tanh(h @ w))(p["w"], h)


@block("mapped over positions", w=square, b=vector)
def _mapped(p: Any, h: Any, c: Any) -> Any:
    return jax.vmap(lambda x: jnp.tanh(x @ p["w"] + p["b"]), in_axes=1, out_axes=1)(h)


@block("gradient inside", w=square)
def _gradient(p: Any, h: Any, c: Any) -> Any:
    return jax.grad(lambda h: jnp.sum(jnp.tanh(h @ p["w"]) ** 2))(h)


def with_backward(backward: Any) -> Any:
    """tanh with the derivative that `backward` makes of the right one."""

    @jax.custom_vjp
    def f(z: Any) -> Any:
        return jnp.tanh(z)

    f.defvjp(lambda z: (jnp.tanh(z), jnp.tanh(z)), lambda y, g: (backward(g * (1 - y**2)),))
    return f


@block("own backward pass", w=square)
def _own(p: Any, h: Any, c: Any) -> Any:
    return with_backward(lambda g: g)(h @ p["w"])


@block("own backward pass, another derivative", w=square)
def _own_wrong(p: Any, h: Any, c: Any) -> Any:
    return with_backward(lambda g: 3 * g)(h @ p["w"])


@block("own backward pass with the weight", w=square)
def _own_weight(p: Any, h: Any, c: Any) -> Any:
    @jax.custom_vjp
    def f(w: Any, h: Any) -> Any:
        return h @ w

    f.defvjp(lambda w, h: (h @ w, (w, h)), lambda r, g: (2 * jnp.einsum("bti,btj->ij", r[1], g), g @ r[0].T))
    return f(p["w"], h)


@block("own forward derivative", w=square)
def _own_forward(p: Any, h: Any, c: Any) -> Any:
    @jax.custom_jvp
    def f(z: Any) -> Any:
        return jax.nn.relu(z)

    f.defjvp(lambda z, t: (f(*z), t[0] * jax.nn.sigmoid(4 * z[0])))
    return f(h @ p["w"])


def with_batching(wrong: bool) -> Any:
    """sin with a batching rule of its own, and a backward pass that has one too; right, or wrong when mapped."""

    def rule(f: Any) -> Any:
        g = jax.custom_batching.custom_vmap(f)

        @g.def_vmap
        def _(size: Any, batched: Any, *args: Any) -> Any:
            args = [x if b else jnp.broadcast_to(x, (size, *x.shape)) for x, b in zip(args, batched, strict=True)]
            return f(*args) * (1.5 if wrong else 1), True

        return g

    sin, cos = rule(jnp.sin), rule(lambda z, g: jnp.cos(z) * g)

    @jax.custom_vjp
    def f(z: Any) -> Any:
        return jnp.sin(z)

    f.defvjp(lambda z: (sin(z), z), lambda z, g: (cos(z, g),))
    return f


@block("own batching rule", w=square)
def _batching(p: Any, h: Any, c: Any) -> Any:
    return with_batching(False)(h @ p["w"])


@block("own batching rule that is wrong", w=square)
def _batching_wrong(p: Any, h: Any, c: Any) -> Any:
    return with_batching(True)(h @ p["w"])


@block("a step without a batching rule", w=square)
def _callback(p: Any, h: Any, c: Any) -> Any:
    host = lambda f, *xs: jax.pure_callback(f, jax.ShapeDtypeStruct(xs[0].shape, xs[0].dtype), *xs)  # noqa: E731

    @jax.custom_vjp
    def f(z: Any) -> Any:
        return host(lambda z: np.sin(np.asarray(z)), z)

    def backward(z: Any, g: Any) -> Any:
        return (host(lambda z, g: np.cos(np.asarray(z)) * np.asarray(g), z, g),)

    f.defvjp(lambda z: (f(z), z), backward)
    return f(h @ p["w"])


# -- examples that influence each other ---------------------------------------------------------------------------
@block("centred over the batch", coupled=True, w=square)
def _centred(p: Any, h: Any, c: Any) -> Any:
    z = h @ p["w"]
    return z - z.mean(0)


@block("batch norm", coupled=True, g=vector, b=vector)
def _batch_norm(p: Any, h: Any, c: Any) -> Any:
    z = h - h.mean((0, 1))
    return z / jnp.sqrt(0.1 + jnp.mean(z**2, (0, 1))) * p["g"] + p["b"]


@block("straight-through mean of the batch", coupled=True, w=square)
def _straight_mean(p: Any, h: Any, c: Any) -> Any:
    z = h @ p["w"]
    return z + z.mean(0) - jax.lax.stop_gradient(z.mean(0))


@block("backward pass that centres over the batch", coupled=True, w=square)
def _own_coupled(p: Any, h: Any, c: Any) -> Any:
    return with_backward(lambda g: g - 0.5 * g.mean(0))(h @ p["w"])


@block("backward pass that scales by the batch", coupled=True, w=square)
def _own_scaled(p: Any, h: Any, c: Any) -> Any:
    """Linear in the cotangents, which stay with their examples: it is the residuals that are of the whole batch."""

    @jax.custom_vjp
    def f(z: Any) -> Any:
        return jnp.tanh(z)

    f.defvjp(lambda z: (jnp.tanh(z), jnp.tanh(z)), lambda y, g: (g * (1 - y**2) / (0.1 + jnp.mean(y**2, 0)),))
    return f(h @ p["w"])


@block("gated attention over the batch", coupled=True, zero=("g",), g=number, w=square)
def _gated_coupling(p: Any, h: Any, c: Any) -> Any:
    """Values tell of it only when the gate has opened, derivatives at once."""
    f = jnp.tanh(h @ p["w"]).reshape(h.shape[0], -1)
    return h @ p["w"] + p["g"] * (jax.nn.softmax(f @ f.T, -1) @ f).reshape(h.shape)


@block("backwards in time along examples", coupled=True, u=square)
def _wrong_axis(p: Any, h: Any, c: Any) -> Any:
    def step(z: Any, x: Any) -> Any:
        z = jnp.tanh(x + z @ p["u"])
        return z, z

    return jax.lax.scan(step, jnp.zeros_like(h[0]), h)[1]


@block("a row for each example", coupled=True, zero=("q",), q=lambda s: (s.B, s.T, s.C))
def _perturbation(p: Any, h: Any, c: Any) -> Any:
    return jnp.sin(h) + p["q"]


@block("a row for each example, before a product", coupled=True, zero=("q",), q=lambda s: (s.B, s.C), w=square)
def _perturbation_product(p: Any, h: Any, c: Any) -> Any:
    return jnp.tanh((h + p["q"][:, None]) @ p["w"])


@block("a weight for each example", coupled=True, w=lambda s: (s.B, s.C, s.C))
def _own_weights(p: Any, h: Any, c: Any) -> Any:
    return jnp.einsum("btc,bcd->btd", h, p["w"])


@block("a step of a loop for each example", coupled=True, zero=("q",), q=lambda s: (s.T, s.B, s.C), u=square)
def _perturbed_loop(p: Any, h: Any, c: Any) -> Any:
    def step(z: Any, xq: Any) -> Any:
        z = jnp.tanh(xq[0] + z @ p["u"]) + xq[1]
        return z, z

    out = jax.lax.scan(step, jnp.zeros_like(h[:, 0]), (jnp.swapaxes(h, 0, 1), p["q"]))[1]
    return jnp.swapaxes(out, 0, 1)
