"""Gram arrays in JAX: gradients formed once for all pieces of the probes, as many at a time as the budget allows."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from models import as_jax, jax_gru, torch_gru

from traceest_adapters import _memory as memory
from traceest_adapters.jax import jacobian
from traceest_adapters.jax.per_example import compiled, ghost_norms


def embedded(p: Any, words: Any) -> Any:
    """A table looked up, and a layer of as many positions as there are words."""
    return jnp.sin(jnp.tanh(p["table"][words]) @ p["w"] + p["b"]).reshape(len(words), -1)


def gru() -> Any:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3, 4)))
    return jacobian(jax_gru, as_jax(torch_gru(4, 6)), x, batch_axis=1, chunk_size=2)


def table() -> Any:
    rng = np.random.default_rng(0)
    sizes = {"table": (5, 4), "w": (4, 6), "b": (6,)}
    params = {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in sizes.items()}
    return jacobian(embedded, params, jnp.asarray(rng.integers(0, 5, (3, 40))), chunk_size=2)


MODELS = {"gru": gru, "table": table}


def probes(J: Any, k: int) -> Any:
    return jnp.asarray(np.random.default_rng(1).standard_normal((J.shape[0], k)))


def formed(J: Any, V: Any) -> Any:
    g = np.asarray(J.block_rmatmat(V))
    return np.einsum("bip,cjp->bicj", g, g)


@pytest.mark.parametrize("k", [1, 2, 5, 8])
@pytest.mark.parametrize("name", MODELS)
def test_they_are_those_of_formed_gradients(name: str, k: int) -> None:
    J = MODELS[name]()
    V = probes(J, k)
    expected = formed(J, V)
    np.testing.assert_allclose(np.asarray(J.sketch_gram(V)), expected, rtol=1e-10, atol=1e-12 * abs(expected).max())


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_formed_once_for_each_piece(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    J, seen, step = MODELS[name](), [], ghost_norms.formed
    J.sketch_gram(probes(J, 8))
    monkeypatch.setattr(ghost_norms, "formed", lambda *args: seen.append(args[2]) or step(*args))
    J.sketch_gram(probes(J, 8))
    assert seen == [1] * 4


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("share", [0.9, 0.3, 0.05])
def test_rows_come_in_parts_that_fit_the_budget(name: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest gradient, of all pieces, is more than half of it; with the smallest, not all taps are held either."""
    J = MODELS[name]()
    V, sizes, parts, step = probes(J, 8), [], [], ghost_norms.formed

    def counted(*args: Any) -> Any:
        found = step(*args)
        sizes.append(4 * found.nbytes)  # of all four pieces
        parts.append(args[2])
        return found

    monkeypatch.setattr(ghost_norms, "formed", counted)
    budget = int(share * 8 * 8 * J._B * max(p.size for p in J.trained))
    expected = formed(J, V)
    with memory.within(budget):
        found = J._gram(tuple(range(len(J.trained))), J._cotangents(V), 8)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-10, atol=1e-12 * abs(expected).max())
    assert all(size <= budget / 2 or part == max(parts) for size, part in zip(sizes, parts, strict=True))
    if (name, share) == ("gru", 0.9):
        assert max(parts) > 1


def test_the_inner_products_are_of_all_axes_after_the_second() -> None:
    rng = np.random.default_rng(0)
    p, q = (jnp.asarray(rng.standard_normal((b, c, 2, 3))) for b, c in ((4, 5), (6, 1)))
    np.testing.assert_allclose(compiled.inner(p, q), np.einsum("bcxy,Bdxy->bcBd", p, q), rtol=1e-13)
