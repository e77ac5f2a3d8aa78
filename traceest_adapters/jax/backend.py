"""What the core needs of JAX and cannot reach through the Array API: keys, the pytree registry, and the compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from traceest import _backends
from traceest.probes.sources import digest
from traceest_adapters._pytrees import RESULTS, flatten, unflatten
from traceest_adapters.jax import compiling, host, settings
from traceest_adapters.jax.model import has_tracers
from traceest_adapters.jax.quantile import student

SMALL = 2**16
"""Numbers of a statistic that NumPy works on, or for which, where it cannot, no program is optimised."""


class JaxSource:
    """Random numbers from a JAX key: probe i comes from the key with i folded in."""

    def __init__(self, key: Any) -> None:
        self.key, self.used = key, 0

    def _keys(self, k: int) -> Any:
        self.used += k
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(self.key, jnp.arange(self.used - k, self.used))

    def signs(self, k: int, n: int) -> Any:
        """(k, n) fair ±1, a bit each: drawn one by one they cost more than products do."""

        def row(key: Any) -> Any:
            words = jax.random.bits(key, (-(-n // 32),), dtype=jnp.uint32)
            bits = (words[:, None] >> jnp.arange(32, dtype=jnp.uint32)) & jnp.uint32(1)
            return (2 * bits.astype(jnp.int8) - 1).reshape(-1)[:n]

        return jax.vmap(row)(self._keys(k))

    def normal(self, k: int, n: int) -> Any:
        """(k, n) independent standard normals, in float32: in float64 a draw costs three times as much."""
        return jax.vmap(lambda key: jax.random.normal(key, (n,), dtype=jnp.float32))(self._keys(k))

    def integers(self, k: int, n: int) -> Any:
        """(k, n) independent, uniform on −2³¹ … 2³¹ − 1, int32."""
        words = jax.vmap(lambda key: jax.random.bits(key, (n,), dtype=jnp.uint32))(self._keys(k))
        return jax.lax.bitcast_convert_type(words, jnp.int32)

    def child(self) -> JaxSource:
        """Another one, of this key with a number folded in that no probe has."""
        return JaxSource(jax.random.fold_in(self.key, 2**32 - 1))

    def mark(self) -> str | None:
        """A digest of the key; None where its value is not known, as under `jax.jit`."""
        if isinstance(self.key, jax.core.Tracer):
            return None
        words = jax.device_get(jax.random.key_data(self.key))  # which a transfer guard lets pass
        return digest(f"{self.key.dtype} {self.used} {words.tolist()}".encode())


class _Backend:
    def compiled(self, f: Callable[..., Any], static: tuple[Any, ...], arrays: Any) -> Any:
        """``f(*static, arrays)``, by NumPy where numbers are few, and under `jax.jit` else."""
        found = host.run(f, static, arrays, SMALL)
        if found is not NotImplemented:
            return found
        return compiling.run(f, static, (arrays,), optimise=not compiling.few(arrays, SMALL))

    def differentiated(self, x: Any) -> bool:
        """Whether `x` is being traced: for which transformation is not to be seen."""
        return isinstance(x, jax.core.Tracer)

    def constant(self, x: Any) -> Any:
        """`x`, which nothing is differentiated by."""
        return jax.lax.stop_gradient(x)

    def marked(self, x: Any, sources: list[Any]) -> Any:
        """`x`: JAX's transformations see all that it was made of."""
        return x

    def copied(self, x: Any) -> Any:
        """`x`: nothing changes JAX's arrays."""
        return x

    def like(self, A: Any) -> Any:
        """The numbers of a sparse array (BCOO, BCSR), which is a pytree of them and of their places."""
        return next((x for x in jax.tree.leaves(A) if x.dtype == A.dtype), None)

    @property
    def strict(self) -> settings.Strict | None:
        """What makes of a call one under JAX's default settings; None where these are in force."""
        return settings.strict()

    def without_values(self, arrays: Any) -> bool:
        """Whether some of them are known in shape alone."""
        return has_tracers(arrays)

    def student_quantile(self, df: Any, p: float) -> Any:
        """Student's quantile of degrees of freedom without values."""
        return student(p, df)

    def random_source(self, rng: Any) -> JaxSource | None:
        dtype = getattr(rng, "dtype", None)
        if dtype is None:
            return None
        if jnp.issubdtype(dtype, jax.dtypes.prng_key) and rng.shape == ():
            return JaxSource(rng)
        if dtype == jnp.uint32 and rng.shape == (2,):  # the older, raw form: jax.random.PRNGKey(0)
            return JaxSource(jax.random.wrap_key_data(rng))
        return None


backend = _Backend()
for _kind in RESULTS:
    jax.tree_util.register_pytree_node(_kind, flatten, unflatten(_kind))
for _package in ("jax", "jaxlib"):
    _backends.register(_package, backend)
