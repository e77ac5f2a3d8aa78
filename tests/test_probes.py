"""Probes: isotropic, reproducible, the same however chunked, and free of global state."""

from __future__ import annotations

import random

import jax
import numpy as np
import pytest
import torch
from assertions import assert_close, assert_unbiased

import traceest as te

DISTRIBUTIONS = ("rademacher", "gaussian", "sphere", "orthogonal", "hadamard", "balanced")


def draw(distribution, n, k, **kwargs):
    return getattr(te.probes, distribution)(n, k, **kwargs)


def rngs():
    """One of each kind of random source, with an array of the library that it draws for."""
    return {
        "int": (lambda: 3, np.empty(0)),
        "numpy integer": (lambda: np.int64(3), np.empty(0)),
        "Generator": (lambda: np.random.default_rng(3), np.empty(0)),
        "JAX key": (lambda: jax.random.key(3), jax.numpy.empty(0)),
        "raw JAX key": (lambda: jax.random.PRNGKey(3), jax.numpy.empty(0)),
        "torch.Generator": (lambda: torch.Generator().manual_seed(3), torch.empty(0, dtype=torch.float64)),
    }


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("n_blocks", [1, 3])
def test_probes_are_isotropic(distribution, dtype, n_blocks):
    n, k = 6, 2
    V = np.stack(
        [draw(distribution, n, k, rng=s, like=np.empty(0, dtype), n_blocks=n_blocks)[:, -1] for s in range(3000)]
    )
    second = V[:, :, None] * V.conj()[:, None, :]
    for i in range(n):
        for j in range(n):
            assert_unbiased(second[:, i, j].real, float(i == j), sigmas=4.5)
            assert_unbiased(second[:, i, j].imag, 0.0, sigmas=4.5)


@pytest.mark.parametrize("kind", rngs())
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_kind_of_rng_gives_isotropic_probes(kind, distribution):
    rng, like = rngs()[kind]
    n, k = 40, 40 if distribution == "orthogonal" else 4000
    V = np.asarray(draw(distribution, n, k, rng=rng(), like=like))
    assert V.shape == (n, k)
    if distribution == "orthogonal":
        assert_close(V @ V.T, n * np.eye(n), 1e-12)
    else:
        assert_unbiased(np.sum(V[:-1] * V[1:], axis=0), 0.0)
        assert_unbiased(np.sum(V**2, axis=0), n)
        assert_unbiased(np.sum(V, axis=0), 0.0)


@pytest.mark.parametrize("kind", rngs())
def test_integers_are_uniform_on_all_that_there_are(kind):
    rng, _ = rngs()[kind]
    x = np.asarray(te.probes.random_source(rng()).integers(20, 500))
    assert x.dtype == np.int32
    u = x.ravel() / 2**32 + 0.5
    for power in (1, 2, 3):
        assert_unbiased(u**power, 1 / (power + 1))
    assert_unbiased(x.ravel() % 2, 0.5)
    assert_unbiased(u[:-1] * u[1:], 0.25)


@pytest.mark.parametrize("kind", rngs())
def test_a_child_of_a_source_draws_numbers_of_its_own(kind):
    def both():
        rng, _ = rngs()[kind]
        parent = te.probes.random_source(rng())
        child = parent.child()
        return tuple(np.asarray(source.normal(50, 40)).ravel() for source in (parent, child))

    parent, child = both()
    for x, again in zip((parent, child), both(), strict=True):
        np.testing.assert_array_equal(x, again)
        assert_unbiased(x, 0.0)
        assert_unbiased(x**2, 1.0)
    for lag in range(-50, 50):
        assert_unbiased(parent * np.roll(child, lag), 0.0, sigmas=4.5)


@pytest.mark.parametrize("kind", rngs())
@pytest.mark.parametrize("distribution", ["rademacher", "gaussian", "sphere", "balanced"])
@pytest.mark.parametrize("n", [1, 5, 64, 130])
def test_a_probe_is_the_same_whether_taken_alone_or_among_many(kind, distribution, n):
    rng, like = rngs()[kind]
    together = te.probes.Probes(n, like, rng=rng(), distribution=distribution).take(7)
    one_by_one = te.probes.Probes(n, like, rng=rng(), distribution=distribution)
    for i in range(7):
        assert_close(one_by_one.take(1)[:, 0], together[:, i], 1e-15)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_chunks_join_to_what_one_call_takes(distribution, chunk):
    whole = te.probes.Probes(20, np.empty(0), rng=1, distribution=distribution).take(7)
    parts = te.probes.Probes(20, np.empty(0), rng=1, distribution=distribution).chunks(7, chunk)
    np.testing.assert_array_equal(np.concatenate(list(parts), axis=1), whole)


@pytest.mark.parametrize("kind", rngs())
def test_the_same_seed_gives_the_same_probes_and_another_seed_others(kind):
    rng, like = rngs()[kind]
    assert bool((draw("gaussian", 9, 2, rng=rng(), like=like) == draw("gaussian", 9, 2, rng=rng(), like=like)).all())
    assert not np.array_equal(draw("gaussian", 9, 2, rng=3), draw("gaussian", 9, 2, rng=4))


def test_a_generator_moves_on_as_it_is_used():
    rng = np.random.default_rng(0)
    assert not np.array_equal(draw("rademacher", 64, 2, rng=rng), draw("rademacher", 64, 2, rng=rng))


def test_no_rng_means_fresh_entropy():
    assert not np.array_equal(draw("gaussian", 9, 2), draw("gaussian", 9, 2))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "complex128"])
def test_one_seed_gives_the_same_probes_on_every_backend(backend, distribution, dtype):
    expected = draw(distribution, 10, 4, rng=5, like=np.empty(0, dtype), n_blocks=2)
    got = backend.call(lambda x: draw(distribution, 10, 4, rng=5, like=x, n_blocks=2), np.empty((1,), dtype))
    assert backend.host(got).dtype == dtype
    assert_close(backend.host(got), expected, 1e-14 if dtype != "float32" else 1e-6)


def test_rademacher_probes_are_signs():
    assert set(np.unique(draw("rademacher", 50, 9, rng=0))) == {-1.0, 1.0}
    corners = np.unique(draw("rademacher", 50, 9, rng=0, like=np.empty(0, complex)) * 2**0.5)
    assert_close(np.sort_complex(corners), np.sort_complex([-1 - 1j, -1 + 1j, 1 - 1j, 1 + 1j]), 1e-15)


@pytest.mark.parametrize("dtype", [float, complex])
def test_sphere_probes_have_length_root_d_in_every_block(dtype):
    V = draw("sphere", 12, 5, rng=0, like=np.empty(0, dtype), n_blocks=3).reshape(3, 4, 5)
    assert_close(np.sum(np.abs(V) ** 2, axis=1), np.full((3, 5), 4.0), 1e-14)


@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("n_blocks", [1, 3])
def test_orthogonal_probes_are_orthogonal_in_every_block(dtype, n_blocks):
    d = 12 // n_blocks
    V = draw("orthogonal", 12, d, rng=0, like=np.empty(0, dtype), n_blocks=n_blocks).reshape(n_blocks, d, d)
    for block in V:
        assert_close(block.conj().T @ block, d * np.eye(d), 1e-13)


def test_more_orthogonal_probes_than_dimensions_come_in_orthogonal_sets():
    V = draw("orthogonal", 4, 10, rng=0)
    for i in range(0, 10, 4):
        W = V[:, i : i + 4]
        assert_close(W.T @ W, 4 * np.eye(W.shape[1]), 1e-13)


def test_blocks_are_independent_of_each_other():
    V = np.stack([draw("orthogonal", 6, 1, rng=s, n_blocks=2)[:, 0] for s in range(2000)])
    assert_unbiased(V[:, 0] * V[:, 3], 0.0)
    assert_unbiased((V[:, 0] ** 2 - 1) * (V[:, 3] ** 2 - 1), 0.0)


def test_explicit_probes_are_handed_out_in_order():
    P = np.arange(12.0).reshape(3, 4)
    stream = te.probes.Probes(3, P, probes=P)
    np.testing.assert_array_equal(np.concatenate([stream.take(1), *stream.chunks(3, 2)], axis=1), P)


@pytest.mark.parametrize("kind", rngs())
def test_no_global_random_state_is_read_or_moved(kind):
    rng, like = rngs()[kind]
    state = np.random.get_state(), random.getstate(), torch.get_rng_state()  # noqa: NPY002
    first = draw("gaussian", 9, 2, rng=rng(), like=like)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    torch.manual_seed(1)
    moved = np.random.get_state(), random.getstate(), torch.get_rng_state()  # noqa: NPY002
    assert bool((draw("gaussian", 9, 2, rng=rng(), like=like) == first).all())
    np.testing.assert_equal(np.random.get_state(), moved[0])  # noqa: NPY002
    assert random.getstate() == moved[1]
    assert torch.equal(torch.get_rng_state(), moved[2])
    np.random.set_state(state[0])  # noqa: NPY002
    random.setstate(state[1])
    torch.set_rng_state(state[2])


@pytest.mark.parametrize("key", [lambda: jax.random.key(1), lambda: jax.random.PRNGKey(1)], ids=["new", "raw"])
def test_a_jax_key_may_be_traced(key):
    A = jax.numpy.eye(30) + 0.1

    def value(key):
        return te.hutchinson(A, 4, rng=key).value

    assert_close(jax.jit(value)(key()), value(key()), 1e-14)
    many = jax.vmap(value)(jax.random.split(key(), 50))
    assert len(np.unique(np.asarray(many))) > 10


@pytest.mark.parametrize(
    "rng", [1.5, "0", True, object(), np.random.RandomState(0), (1, 2)], ids=lambda rng: type(rng).__name__
)
def test_anything_else_is_no_rng(rng):
    with pytest.raises(TypeError, match=r"rng must be an int, a numpy.random.Generator.*for instance rng=0"):
        te.hutchinson(np.eye(9), 2, rng=rng)


@pytest.mark.parametrize(
    "rng", [jax.numpy.zeros(3), jax.numpy.zeros((), int), torch.zeros(2)], ids=["floats", "0-d", "torch"]
)
def test_an_array_that_is_no_key_is_no_rng(rng):
    with pytest.raises(TypeError, match="rng must be"):
        te.hutchinson(np.eye(9), 2, rng=rng)


@pytest.mark.parametrize("call", [te.hutchinson, te.hutchpp, te.xtrace, te.diagonal, te.nystrompp, te.frobenius_norm])
def test_an_unknown_distribution_is_refused(call):
    laws = "rademacher, gaussian, sphere, orthogonal, hadamard, balanced"
    for asked, end in (("x", r"\."), ("Gausian", r"; did you mean 'gaussian'\?"), (["sphere"], "")):
        with pytest.raises(ValueError, match=rf"distribution must be one of {laws}, got .*{end}$"):
            call(np.eye(30), 9, distribution=asked)
    with pytest.raises(AttributeError, match=f"its laws are {laws}"):
        te.probes.spheer(3, 2)


@pytest.fixture
def thirds():
    """A law made here: entries 0, or ±√3 one time in three."""

    class Thirds(te.probes.Law):
        name = "thirds"

        def draw(self, stream, k):
            u = stream.source.integers(k, stream.n).T
            return 3**0.5 * (np.sign(u) * (np.abs(u.astype(np.int64)) < 2**31 // 3)).astype(stream.dtype)

    yield Thirds
    del te.probes.LAWS["thirds"]


def test_a_new_law_is_one_class(thirds):
    V = te.probes.thirds(6, 60_000, rng=0)
    assert_unbiased(V[0] * V[1], 0.0)
    assert_unbiased(V[0] ** 2, 1.0)
    A = te.aslinearoperator(np.diag(np.arange(1.0, 41.0)) + 1, psd=True)
    calls = {
        "hutchinson": lambda law: te.hutchinson(A, 12, rng=0, distribution=law),
        "hutchpp": lambda law: te.hutchpp(A, 12, rng=0, distribution=law),
        "xtrace": lambda law: te.xtrace(A, 12, rng=0, distribution=law),
        "nystrompp": lambda law: te.nystrompp(A, 12, rng=0, distribution=law),
        "trace": lambda law: te.trace(A, rtol=0.3, max_matvecs=39, rng=0, distribution=law),
    }
    for name, call in calls.items():
        e = call("thirds")
        assert e.probes[0].startswith("thirds:"), name
        assert abs(float(e) - 860) < 6 * float(e.stderr), name
        assert float(e) != float(call("gaussian")), name
    assert abs(float(te.frobenius_norm(A, n_matvecs=20, rng=0, distribution="thirds")) / 177 - 1) < 0.5
    thirds.independent = False
    with pytest.raises(ValueError, match="thirds probes are not independent of each other"):
        te.frobenius_norm(A, n_matvecs=8, distribution="thirds")
    with pytest.raises(ValueError, match="leaving one out needs independent probes"):
        te.xtrace(A, 12, distribution="thirds")


def test_blocks_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="n = 7 rows do not fall into n_blocks = 2"):
        te.probes.sphere(7, 1, rng=0, n_blocks=2)
