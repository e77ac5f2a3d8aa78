"""Where the arrays of a model live: on one device, or spread over several, where they are left."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def automatic(x: Any) -> Any:
    """`x` where it is, with its sharding left to the compiler.

    On the meshes of `jax.make_mesh` shardings are part of the types, and many operations (a scan over examples, a
    reshape) refuse a sharded axis; the same devices in a mesh without that make no such difference.
    """
    sharding = None if isinstance(x, jax.core.Tracer) else x.sharding
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return x
    mesh = Mesh(sharding.mesh.devices, sharding.mesh.axis_names)
    if mesh == sharding.mesh:
        return x
    return jax.device_put(x, NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind))


def over(mesh: Mesh | None, arrays: Any) -> Any:
    """The arrays, with a copy of each on all devices of a mesh that a model names itself; those spread are left.

    What such a model makes is on these devices, and does not meet what is put on one of them.
    """
    if mesh is None or mesh.devices.size == 1:
        return arrays
    everywhere = NamedSharding(Mesh(mesh.devices, mesh.axis_names), PartitionSpec())

    def put(x: Any) -> Any:
        if isinstance(x, jax.core.Tracer) or len(x.sharding.device_set) > 1:
            return x
        return jax.device_put(x, everywhere)

    return jax.tree.map(put, arrays)


def device(tree: Any) -> Any:
    """Where probes are to be put: the device of the arrays, or, of arrays on several, a copy on each.

    Raises
    ------
    TypeError
        If arrays were put on different devices.
    """
    arrays = jax.tree.leaves(tree)
    placed = [x for x in arrays if x.committed]
    places = {frozenset(x.sharding.device_set) for x in placed}
    if len(places) > 1:
        found = " and ".join(sorted(_named(place) for place in places))
        raise TypeError(
            f"jacobian: parameters and inputs are on different devices, {found}; move them with jax.device_put."
        )
    sharding = (placed or arrays)[0].sharding
    if len(sharding.device_set) == 1:
        return arrays[0].device if not placed else placed[0].device
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec())
    everywhere = sorted(sharding.device_set, key=lambda d: d.id)
    return NamedSharding(Mesh(np.asarray(everywhere), ("devices",)), PartitionSpec())


def _named(place: frozenset[Any]) -> str:
    return "{" + ", ".join(sorted(map(str, place))) + "}"


def lanes(examples: list[Any]) -> int:
    """Over how many devices the examples are spread; 1 if unevenly, or if it is not known, inside a transformation."""
    for x in examples:
        if isinstance(x, jax.core.Tracer) or not x.shape[0]:
            continue
        at_one = x.sharding.shard_shape(x.shape)[0]
        if at_one < x.shape[0] and x.shape[0] % at_one == 0:
            return int(x.shape[0] // at_one)
    return 1
