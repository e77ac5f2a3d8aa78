"""Few numbers of JAX arrays are worked on by NumPy, many by a program; both give the same."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import operators_zoo as zoo
import pytest
from assertions import assert_close

import traceest as te
from traceest import _array_api as aa
from traceest import _backends
from traceest_adapters.jax import backend, host

STATISTICS = {
    "hutchpp": lambda A: te.hutchpp(A, 13, rng=0),
    "nystrompp": lambda A: te.nystrompp(A, 13, rng=0, distribution="rademacher"),
    "xtrace": lambda A: te.xtrace(A, 14, rng=0),
    "xnystrace": lambda A: te.xnystrace(A, 14, rng=0),
    "norm by products": lambda A: te.frobenius_norm(A, n_matvecs=14, rng=0),
    "norm by vjps": lambda A: te.frobenius_norm(te.gram(te.aslinearoperator(A, n_blocks=4)), 4, rng=0),
    "trace to a tolerance": lambda A: te.trace(te.aslinearoperator(A, psd=True), rtol=0.05, rng=0),
    "log-determinant": lambda A: te.logdet(A, 24, shift=0.1, rng=0),
    "spectral norm": lambda A: te.spectral_norm(A, 24, rng=0),
    "diagonal": lambda A: te.diagonal(A, 24, rng=0),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_both_ways_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    A = jnp.asarray(zoo.spectral("poly", 84))
    few = STATISTICS[name](A)
    monkeypatch.setattr(backend, "SMALL", 0)
    many = STATISTICS[name](A)
    for field in ("value", "stderr", "df"):
        a, b = getattr(few, field), getattr(many, field)
        assert isinstance(a, jax.Array)
        assert (a.dtype, a.shape, a.devices()) == (b.dtype, b.shape, b.devices())
        assert_close(a, b, 1e-11 if field == "value" else 1e-6)


def test_few_numbers_are_numpys_and_many_are_not() -> None:
    kinds = []

    def kind(x: object) -> object:
        kinds.append(type(x))
        return x

    for n in (backend.SMALL, backend.SMALL + 1):
        assert isinstance(_backends.compiled(kind, (), jnp.ones(n), jnp.ones(1)), jax.Array)
    assert issubclass(kinds[0], np.ndarray)
    assert issubclass(kinds[1], jax.core.Tracer)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_precision_is_that_of_the_arrays(dtype: str) -> None:
    A = jnp.asarray(zoo.spectral("poly", 40), dtype=dtype)
    e = te.xtrace(A, 12, rng=0)
    assert e.value.dtype == dtype
    assert e.stderr.dtype == "float32"
    shifted = te.logdet(A, 12, shift=0.5, n_probes=2, rng=0, distribution="rademacher")  # by a Python number
    assert shifted.value.dtype == shifted.stderr.dtype == "float32"


def test_what_numpy_refuses_is_done_by_jax() -> None:
    def solved(A: object) -> object:
        xp = aa.namespace(A)
        return xp.linalg.solve(A, xp.ones_like(A))

    assert not np.isfinite(_backends.compiled(solved, (), jnp.zeros((3, 3)), jnp.zeros(1))).any()


def test_types_that_numpy_lacks_are_left_alone() -> None:
    x = jnp.ones(3, dtype=jnp.bfloat16)
    assert host.run(lambda x: x, (), x, 10) is NotImplemented
    assert _backends.compiled(lambda x: x + 1, (), x, x).dtype == jnp.bfloat16


def test_inside_of_a_trace_nothing_is_taken_out() -> None:
    A = jnp.asarray(zoo.spectral("poly", 30))
    slope = jax.grad(lambda c: te.hutchpp(c * A, 9, rng=0).value)(2.0)
    assert_close(slope, te.hutchpp(A, 9, rng=0).value, 1e-10)
