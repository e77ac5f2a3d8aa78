"""Parts of random JAX models: (B, T, C) in and out, written for the whole batch as people write them.

Each has `init`, from sizes and a source of random numbers to its parameters, and `call`. `COUPLED` parts have examples
that influence each other, in values or in derivatives alone: they have to be refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from differential import WORDS, Sizes


class Block(NamedTuple):
    init: Callable[[Sizes, Any], dict[str, Any]]
    call: Callable[[Any, Any, Any], Any]


BLOCKS: dict[str, Block] = {}
COUPLED: set[str] = set()


def block(name: str, coupled: bool = False, zero: tuple[str, ...] = (), **shapes: Any) -> Callable[[Any], Any]:
    """A part whose parameters have these shapes, each a function of the sizes, at random or zero."""

    def init(s: Sizes, rng: Any) -> dict[str, Any]:
        draw = lambda key, shape: np.zeros(shape) if key in zero else rng.standard_normal(shape) * 0.5  # noqa: E731
        return {key: jnp.asarray(draw(key, shape(s))) for key, shape in shapes.items()}

    def add(call: Any) -> Any:
        BLOCKS[name] = Block(init, call)
        if coupled:
            COUPLED.add(name)
        return call

    return add


square = lambda s: (s.C, s.C)  # noqa: E731
vector = lambda s: (s.C,)  # noqa: E731
number = lambda s: ()  # noqa: E731


# -- products, used once and again --------------------------------------------------------------------------------
@block("dense", w=square, b=vector)
def _dense(p: Any, h: Any, c: Any) -> Any:
    return jnp.tanh(h @ p["w"] + p["b"])


@block("dense, time-major and flat inside", w=square, b=vector)
def _flat(p: Any, h: Any, c: Any) -> Any:
    B, T, C = h.shape
    z = jnp.swapaxes(h, 0, 1).reshape(T * B, C) @ p["w"] - p["b"]
    return jnp.tanh(jnp.swapaxes(z.reshape(T, B, C), 0, 1))


@block("tied", w=square)
def _tied(p: Any, h: Any, c: Any) -> Any:
    return jnp.sin(h @ p["w"]) @ p["w"].T


@block("both sides", w=square)
def _both_sides(p: Any, h: Any, c: Any) -> Any:
    return jnp.einsum("ij,btj->bti", p["w"], jnp.sin(h)) - jnp.einsum("btj,jk->btk", h, p["w"] / 3)


@block("scaled and turned", w=square, s=number)
def _scaled(p: Any, h: Any, c: Any) -> Any:
    return h @ (-2 * p["w"]).T + h @ (p["w"] * p["s"])


@block("cut out of one vector", w=lambda s: (s.C * s.C + s.C,))
def _cut(p: Any, h: Any, c: Any) -> Any:
    C = h.shape[-1]
    return jnp.tanh(h @ p["w"][: C * C].reshape(C, C) + p["w"][C * C :])


@block("normalised weight", w=square, g=vector)
def _normalised(p: Any, h: Any, c: Any) -> Any:
    return h @ (p["g"] * p["w"] / jnp.sqrt(1e-3 + jnp.sum(p["w"] ** 2, 0)))


@block("heads", w=lambda s: (2, s.C, s.C // 2))
def _heads(p: Any, h: Any, c: Any) -> Any:
    z = jnp.einsum("btc,hcd->bthd", h, p["w"])
    return jnp.tanh(z.reshape(h.shape))


@block("grouped", w=lambda s: (2, s.C // 2, s.C // 2))
def _grouped(p: Any, h: Any, c: Any) -> Any:
    z = jnp.einsum("btgc,gcd->btgd", h.reshape(*h.shape[:2], 2, -1), p["w"])
    return jnp.sin(z).reshape(h.shape)


@block("position by position", w=lambda s: (s.T, s.C, s.C))
def _positions(p: Any, h: Any, c: Any) -> Any:
    return jnp.einsum("btc,tcd->btd", h, p["w"])


@block("mixing positions", w=lambda s: (s.T, s.T))
def _mixing(p: Any, h: Any, c: Any) -> Any:
    return jnp.einsum("ts,bsc->btc", p["w"], jnp.tanh(h))


@block("bias by position", q=lambda s: (s.T, s.C))
def _by_position(p: Any, h: Any, c: Any) -> Any:
    return jnp.sin(h - p["q"])


@block("bilinear", w=lambda s: (s.C, s.C, s.C))
def _bilinear(p: Any, h: Any, c: Any) -> Any:
    return jnp.einsum("bti,ijk,btj->btk", h, p["w"], jnp.tanh(h))


# -- convolutions ---------------------------------------------------------------------------------------------------
def _convolved(x: Any, w: Any, **how: Any) -> Any:
    return jax.lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), **how)


@block("convolution", w=lambda s: (3, s.C, s.C), b=vector)
def _conv(p: Any, h: Any, c: Any) -> Any:
    return jnp.tanh(_convolved(h, p["w"]) + p["b"])


@block("convolution, dilated and used twice", w=lambda s: (2, s.C, s.C))
def _conv_twice(p: Any, h: Any, c: Any) -> Any:
    return _convolved(jnp.tanh(_convolved(h, p["w"])), p["w"], rhs_dilation=(2,))


@block("convolution in groups", w=lambda s: (3, s.C // 2, s.C))
def _conv_groups(p: Any, h: Any, c: Any) -> Any:
    return jnp.sin(_convolved(h, p["w"], feature_group_count=2))


@block("depthwise convolution, kernel spread", w=lambda s: (3, 1, 1))
def _conv_spread(p: Any, h: Any, c: Any) -> Any:
    C = h.shape[-1]
    return _convolved(h, jnp.broadcast_to(p["w"], (3, 1, C)), feature_group_count=C)


@block("one kernel for all channels", w=lambda s: (3, 1, 1))
def _conv_broadcast(p: Any, h: Any, c: Any) -> Any:
    C = h.shape[-1]
    return jnp.tanh(_convolved(h, jnp.broadcast_to(p["w"], (3, C, C))))


# -- loops ------------------------------------------------------------------------------------------------------------
def _scan(step: Any, h: Any, **how: Any) -> Any:
    out = jax.lax.scan(step, jnp.zeros_like(h[:, 0]), jnp.swapaxes(h, 0, 1), **how)[1]
    return jnp.swapaxes(out, 0, 1)


@block("recurrent", w=square, u=square, b=vector)
def _rnn(p: Any, h: Any, c: Any) -> Any:
    def step(z: Any, x: Any) -> Any:
        z = jnp.tanh(x @ p["w"] + z @ p["u"] + p["b"])
        return z, z

    return _scan(step, h)


@block("recurrent, threshold subtracted, backwards", u=square, b=vector, a=vector)
def _rnn_subtracted(p: Any, h: Any, c: Any) -> Any:
    def step(z: Any, x: Any) -> Any:
        z = 0.5 * z + jnp.tanh(x + (z - p["b"]) @ p["u"]) - p["a"]
        return z, z

    return _scan(step, h, reverse=True)


@block("recurrent, minus the state", u=square, b=vector)
def _rnn_minus(p: Any, h: Any, c: Any) -> Any:
    def step(z: Any, x: Any) -> Any:
        z = jnp.tanh(p["b"] - (x + z @ p["u"]))
        return z, z

    return _scan(step, h)


@block("gated", w=lambda s: (s.C, 3 * s.C), u=lambda s: (s.C, 3 * s.C), b=lambda s: (3 * s.C,))
def _gru(p: Any, h: Any, c: Any) -> Any:
    def step(z: Any, x: Any) -> Any:
        a, b, n = jnp.split(x @ p["w"] + p["b"], 3, -1)
        ua, ub, un = jnp.split(z @ p["u"], 3, -1)
        a, b = jax.nn.sigmoid(a + ua), jax.nn.sigmoid(b + ub)
        z = a * z + (1 - a) * jnp.tanh(n + b * un)
        return z, z

    return _scan(step, h, unroll=2 if h.shape[1] > 2 else 1)


@block("rectified recurrent", u=square)
def _relu(p: Any, h: Any, c: Any) -> Any:
    def step(z: Any, x: Any) -> Any:
        z = 0.7 * z + 0.3 * (jax.nn.relu(z) @ p["u"] + x)
        return z, z

    return _scan(step, h)


@block("recurrent by hand", u=square, b=vector)
def _unrolled(p: Any, h: Any, c: Any) -> Any:
    z, out = jnp.zeros_like(h[:, 0]), []
    for t in range(h.shape[1]):
        z = jnp.tanh(h[:, t] + z @ p["u"] - p["b"])
        out.append(z)
    return jnp.stack(out, 1)


@block("recurrent, weights carried", u=square)
def _carried(p: Any, h: Any, c: Any) -> Any:
    def step(zu: Any, x: Any) -> Any:
        z, u = zu
        z = jnp.tanh(x + z @ u)
        return (z, u), z

    out = jax.lax.scan(step, (jnp.zeros_like(h[:, 0]), p["u"]), jnp.swapaxes(h, 0, 1))[1]
    return jnp.swapaxes(out, 0, 1)


@block("masked recurrent", u=square, w=square)
def _masked_rnn(p: Any, h: Any, c: Any) -> Any:
    def step(z: Any, xm: Any) -> Any:
        x, m = xm
        z = jnp.where(m[:, None], jnp.tanh(x @ p["w"] + z @ p["u"]), z)
        return z, z

    xs = jnp.swapaxes(h, 0, 1), jnp.swapaxes(c["mask"], 0, 1)
    return jnp.swapaxes(jax.lax.scan(step, jnp.zeros_like(h[:, 0]), xs)[1], 0, 1)


@block("scan over layers", w=lambda s: (3, s.C, s.C), b=lambda s: (3, s.C))
def _layers(p: Any, h: Any, c: Any) -> Any:
    return jax.lax.scan(lambda h, wb: (jnp.tanh(h @ wb[0] + wb[1]), None), h, (p["w"], p["b"]))[0]


@block("scan within a scan", u=square)
def _nested(p: Any, h: Any, c: Any) -> Any:
    def step(z: Any, x: Any) -> Any:
        z = jax.lax.fori_loop(0, 2, lambda i, z: jnp.tanh(z @ p["u"] + x), z)
        return z, z

    return _scan(step, h)


@block("fixed point", u=square)
def _while(p: Any, h: Any, c: Any) -> Any:
    """By forward mode alone: each example has its own number of steps, up to some."""
    more = lambda iz: (iz[0] < 4) & jnp.any(jnp.abs(iz[1]) > 1e-9)  # noqa: E731
    return jax.lax.while_loop(more, lambda iz: (iz[0] + 1, jnp.tanh(0.3 * iz[1] @ p["u"] + h)), (0, h + 1))[1]


@block("condition on a parameter", w=square, b=vector)
def _cond(p: Any, h: Any, c: Any) -> Any:
    branches = (lambda h: jnp.tanh(h @ p["w"]), lambda h: jnp.sin(h @ p["w"].T) + p["b"])
    return jax.lax.cond(p["b"].sum() > 0, *branches, h)


@block("condition on an example", w=square, b=vector)
def _cond_example(p: Any, h: Any, c: Any) -> Any:
    one = lambda h: jax.lax.cond(h.sum() > 0, lambda h: h @ p["w"], lambda h: jnp.sin(h - p["b"]), h)  # noqa: E731
    return jax.vmap(one)(h)


# -- embeddings, attention, norms -----------------------------------------------------------------------------------
@block("embedding", e=lambda s: (WORDS, s.C))
def _embedding(p: Any, h: Any, c: Any) -> Any:
    return h + p["e"][c["words"]]


@block("embedding that is the head too", e=lambda s: (WORDS, s.C))
def _tied_embedding(p: Any, h: Any, c: Any) -> Any:
    return jax.nn.softmax((h + p["e"][c["words"]]) @ p["e"].T) @ p["e"]


@block("embedding in a loop", e=lambda s: (WORDS, s.C), u=square)
def _embedding_loop(p: Any, h: Any, c: Any) -> Any:
    def step(z: Any, xw: Any) -> Any:
        x, w = xw
        z = jnp.tanh(x + jnp.take(p["e"], w, axis=0, mode="clip") + z @ p["u"])
        return z, z

    xs = jnp.swapaxes(h, 0, 1), jnp.swapaxes(c["words"], 0, 1)
    return jnp.swapaxes(jax.lax.scan(step, jnp.zeros_like(h[:, 0]), xs)[1], 0, 1)


@block("attention", q=square, k=square, v=square)
def _attention(p: Any, h: Any, c: Any) -> Any:
    scores = jnp.einsum("btc,bsc->bts", h @ p["q"], h @ p["k"])
    scores = jnp.where(c["mask"][:, None, :], scores, -1e9)
    return h + jax.nn.softmax(scores, -1) @ (h @ p["v"])


@block("attention to parameters", m=lambda s: (3, s.C), o=square)
def _memory(p: Any, h: Any, c: Any) -> Any:
    return jax.nn.softmax(h @ p["m"].T, -1) @ p["m"] @ p["o"]


@block("layer norm", g=vector, b=vector)
def _layer_norm(p: Any, h: Any, c: Any) -> Any:
    z = h - h.mean(-1, keepdims=True)
    return z / jnp.sqrt(0.1 + jnp.mean(z**2, -1, keepdims=True)) * p["g"] + p["b"]


@block("mask and mean", w=square)
def _masked_mean(p: Any, h: Any, c: Any) -> Any:
    m = c["mask"][..., None]
    return h - jnp.sum(jnp.where(m, h @ p["w"], 0), 1, keepdims=True) / jnp.sum(m, 1, keepdims=True)


@block("zero gate", zero=("g",), g=number, w=square)
def _zero_gate(p: Any, h: Any, c: Any) -> Any:
    return h + p["g"] * jnp.tanh(h @ p["w"])


@block("zero residual", zero=("o",), w=square, o=square)
def _zero_residual(p: Any, h: Any, c: Any) -> Any:
    B, T, C = h.shape
    z = jnp.tanh(jnp.swapaxes(h, 0, 1).reshape(T * B, C) @ p["w"]) @ p["o"]
    return h + jnp.swapaxes(z.reshape(T, B, C), 0, 1)
