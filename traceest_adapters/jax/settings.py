"""JAX as people set it: what is stricter than the defaults, and calls that run under these all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding

from traceest_adapters.jax import placement
from traceest_adapters.jax.model import traced

F = TypeVar("F", bound=Callable[..., Any])

GUARDS = ("host_to_device", "device_to_device", "device_to_host")
"""Transfers that can be disallowed."""

_looked_for: ContextVar[bool] = ContextVar("looked_for", default=False)
"""Whether NaN is looked for by the user, and not inside of the estimator that is running."""


@contextmanager
def _looking() -> Iterator[None]:
    token = _looked_for.set(True)
    try:
        yield
    finally:
        _looked_for.reset(token)


def contexts(nans: bool) -> list[AbstractContextManager[Any]]:
    """What puts JAX back to its defaults, of settings that differ; those that look for NaN only if `nans`.

    In a model's own products (not `nans`) NaN is looked for even where an estimator asks, to which it means "unknown".
    Settings are entered only where it makes a difference, for each is part of the key under which programs are kept.
    Where all transfers are disallowed, the explicit ones too, that stays.
    """
    config, found = jax.config, list[AbstractContextManager[Any]]()
    if config.jax_numpy_rank_promotion != "allow":
        found.append(jax.numpy_rank_promotion("allow"))
    if config.jax_numpy_dtype_promotion != "standard":
        found.append(jax.numpy_dtype_promotion("standard"))
    for way in GUARDS:
        if getattr(config, f"jax_transfer_guard_{way}") in ("log", "disallow"):
            found.append(getattr(jax, f"transfer_guard_{way}")("allow"))
    if nans and config.jax_debug_nans:
        found += [jax.debug_nans(False), _looking()]
    if not nans and _looked_for.get():
        found.append(jax.debug_nans(True))
    if nans and config.jax_debug_infs:
        found.append(jax.debug_infs(False))
    return found


def explicit_mesh() -> Any:
    """The mesh that `jax.set_mesh` has set, if it has explicit axes and this is not inside a trace; else None."""
    if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
        return None
    with jax.transfer_guard("allow"):
        return None if traced(()) else jax.sharding.get_mesh()


class Strict:
    """A call under the default settings, and what it gives under those that are in force."""

    def __init__(self, inside: list[AbstractContextManager[Any]], mesh: Any) -> None:
        self.inside, self.mesh = inside, mesh

    def __call__(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """`f` as a call of this kind."""

        def called(*args: Any, **kwargs: Any) -> Any:
            with ExitStack() as stack:
                for context in self.inside:
                    stack.enter_context(context)
                if self.mesh is None:
                    return f(*args, **kwargs)
                with jax.set_mesh(Mesh(self.mesh.devices, self.mesh.axis_names)), _told():
                    args, kwargs = jax.tree.map(_automatic, (args, kwargs))
                    found = f(*args, **kwargs)
                return jax.tree.map(self._explicit, found)

        return called

    def _explicit(self, x: Any) -> Any:
        """An array of the automatic mesh as one of the mesh that is set."""
        if not isinstance(x, jax.Array) or isinstance(x, jax.core.Tracer) or not isinstance(x.sharding, NamedSharding):
            return x
        if x.sharding.mesh != Mesh(self.mesh.devices, self.mesh.axis_names):
            return x
        return jax.device_put(x, NamedSharding(self.mesh, x.sharding.spec, memory_kind=x.sharding.memory_kind))


@contextmanager
def _told() -> Iterator[None]:
    """What JAX says of a model that needs explicit axes, with what to do."""
    try:
        yield
    except ValueError as error:
        if not any(word in str(error) for word in ("AxisType", "axis_types", "type Auto", "Auto axes")):
            raise
        raise ValueError(
            "the model needs a mesh with explicit axes (it has out_sharding=, reshard, a shard_map over such a mesh, "
            "or a constant that lies on one), and kernels are taken with automatic ones; make the mesh with "
            "jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names)), or give the model "
            f"without these. JAX says: {error}"
        ) from error


def _automatic(x: Any) -> Any:
    return placement.automatic(x) if isinstance(x, jax.Array) else x


def strict(nans: bool = True) -> Strict | None:
    """What makes of a call one under the default settings; None where these are in force."""
    inside, mesh = contexts(nans), explicit_mesh()
    return Strict(inside, mesh) if inside or mesh is not None else None


def usual(f: F) -> F:
    """`f`, a function of models and their products, under the default settings; but NaN is looked for if it was."""

    @wraps(f)
    def called(*args: Any, **kwargs: Any) -> Any:
        wrap = strict(nans=False)
        return f(*args, **kwargs) if wrap is None else wrap(f)(*args, **kwargs)

    return called  # type: ignore[return-value]
