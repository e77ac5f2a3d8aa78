"""A function as a program: its jaxpr, read once, with every array that it closes over handed in from outside.

Python values that the function reads (an attribute, a global, a rebound array) are read when it is traced, and never
again. Two programs of equal structure are one object, whatever functions they were made from: compiled steps, which are
static in it, serve both, and nothing holds the functions themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from inspect import isfunction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

KEPT = 256
"""Programs of different structure that are kept with what is compiled for them."""

DEPTH = 2
"""Rules for derivatives are read inside of rules up to here: that of exp has exp in it."""

JAX = Path(jax.__file__).parent / "_src"
OWN = tuple(str(JAX / part) for part in ("nn", "numpy", "scipy", str(Path("lax", "other.py"))))
"""Where JAX's own functions with derivatives of their own are written that call no function of the user's (`relu`)."""

_known: dict[Any, Program] = {}
_steps: list[Any] = []


class Program:
    """A jaxpr whose constants are arguments; equal to another one only if it is the same object (see `trace`)."""

    __slots__ = ("__weakref__", "held", "jaxpr")

    def __init__(self, jaxpr: Any, held: list[Any]) -> None:
        self.jaxpr = jaxpr
        self.held = held  # what the structure tells apart by identity, which is not to be given to another object

    def __call__(self, consts: list[Any], *args: Any) -> list[Any]:
        """All results, of the constants that `trace` returned and the arguments, flat."""
        return jaxpr_as_fun(ClosedJaxpr(self.jaxpr, consts))(*args)


def trace(fn: Callable[..., Any], *args: Any) -> tuple[Program, list[Any]]:
    """The program of a function of pytrees of arrays, and what it closes over, as arrays that nobody changes."""
    closed = jax.make_jaxpr(fn)(*args)
    reader = _Reader()
    key = reader.structure(closed.jaxpr)
    if key not in _known:
        if len(_known) >= KEPT:
            forget()
        _known[key] = Program(closed.jaxpr, reader.held)
    return _known[key], [_array(c) for c in closed.consts]


def registered(compiled: Any) -> Any:
    """Note a compiled function, or a cache, as one that keeps programs; a decorator."""
    _steps.append(compiled)
    return compiled


def forget() -> None:
    """Let all programs go, and what is compiled for them: no dictionary is to grow with every function ever seen."""
    _known.clear()
    for step in _steps:
        clear = getattr(step, "clear_cache", None) or step.cache_clear
        clear()


def _array(x: Any) -> Any:
    """NumPy's arrays are copied, for their owner may change them."""
    return x if isinstance(x, (jax.Array, jax.core.Tracer)) else jnp.array(np.array(x))


# -- structure ------------------------------------------------------------------------------------------------
class _Reader:
    """Reads what a jaxpr does, up to the names of its variables, into something that can be compared.

    What cannot be read (a callback's function, a tracer) is told apart by identity, and `held` meanwhile.
    """

    def __init__(self) -> None:
        self.held: list[Any] = []
        self.depth = 0

    def structure(self, jaxpr: Any) -> Any:
        """Arguments, equations and results."""
        numbers: dict[Any, int] = {}

        def read(atom: Any) -> Any:
            if isinstance(atom, Literal):
                return (self.hashable(atom.aval), *self.constant(atom.val))
            return numbers.setdefault(atom, len(numbers))

        arguments = [*jaxpr.constvars, *jaxpr.invars]
        heads = tuple((read(v), self.hashable(v.aval)) for v in arguments)
        equations = []
        for eqn in jaxpr.eqns:
            inputs = tuple(map(read, eqn.invars))
            outputs = tuple((read(v), self.hashable(v.aval)) for v in eqn.outvars)
            equations.append((eqn.primitive, self.context(eqn), inputs, self.parameters(eqn), outputs))
        return len(jaxpr.constvars), heads, tuple(equations), tuple(map(read, jaxpr.outvars))

    def context(self, eqn: Any) -> Any:
        """Settings that were in force around an equation."""
        names = ("compute_type", "threefry_partitionable", "cur_abstract_mesh", "xla_metadata")
        return tuple(self.value(getattr(eqn.ctx, name, None)) for name in names)

    def parameters(self, eqn: Any) -> Any:
        """Those of an equation, with its own rule for derivatives, if it has one, as what that does."""
        name, params = eqn.primitive.name, eqn.params
        if name not in ("custom_jvp_call", "custom_vjp_call"):
            return tuple((k, self.policy(v) if k == "policy" else self.value(v)) for k, v in sorted(params.items()))
        own = _own(params["call_jaxpr"])
        rule = own or self.rule(eqn, [v for v in params.values() if callable(v)])
        return self.value(params["call_jaxpr"]), params.get("symbolic_zeros"), rule

    def rule(self, eqn: Any, rules: list[Any]) -> Any:
        """What the derivative of an equation that brings its own is, as a program."""
        if self.depth >= DEPTH:
            return None
        avals = [v.aval for v in eqn.invars]
        floating = [i for i, a in enumerate(avals) if jnp.issubdtype(a.dtype, jnp.inexact)]
        like = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals]
        out = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.outvars]
        forward = eqn.primitive.name == "custom_jvp_call"

        def derivative(values: list[Any], along: list[Any]) -> Any:
            def f(*chosen: Any) -> Any:
                everything = list(values)
                for i, x in zip(floating, chosen, strict=True):
                    everything[i] = x
                return evaluated(eqn, everything)

            primals = [values[i] for i in floating]
            return jax.jvp(f, primals, along) if forward else jax.vjp(f, *primals)[1](along)

        try:
            closed = jax.make_jaxpr(derivative)(like, [like[i] for i in floating] if forward else out)
        except Exception:  # whatever a rule raises, it is a rule by itself then
            return tuple(map(self.identity, rules))
        self.depth += 1
        found = self.structure(closed.jaxpr), tuple(map(self.constant, closed.consts))
        self.depth -= 1
        return found

    def value(self, x: Any) -> Any:
        """A parameter of an equation."""
        if isinstance(x, ClosedJaxpr):
            return "closed", self.structure(x.jaxpr), tuple(map(self.constant, x.consts))
        if isinstance(x, Jaxpr):
            return "open", self.structure(x)
        if isinstance(x, (tuple, list)):
            return type(x), tuple(map(self.value, x))
        if isinstance(x, dict):
            return dict, tuple((self.value(k), self.value(v)) for k, v in x.items())
        if isinstance(x, (np.ndarray, jax.Array)):
            return self.constant(x)
        if isinstance(x, float):
            return float, repr(x)
        if type(x).__name__ == "ClosedRule":  # of custom_vmap, made anew in every trace
            return "rule", self.hashable(x.rule)
        return self.hashable(x)

    def policy(self, f: Any) -> Any:
        """A choice of what is kept, which changes no value: told apart by what is written and closed over."""
        if not isfunction(f):
            return self.hashable(f)
        cells = [cell.cell_contents for cell in f.__closure__ or ()]
        return f.__code__, tuple(self.value(c) for c in (*cells, *(f.__defaults__ or ())))

    def constant(self, x: Any) -> Any:
        """An array by its entries."""
        if isinstance(x, jax.core.Tracer):
            return self.identity(x)
        try:
            x = np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        except Exception:  # an array that is not all here
            return self.identity(x)
        return x.dtype.str, x.shape, hashlib.blake2b(np.ascontiguousarray(x).tobytes(), digest_size=16).digest()

    def hashable(self, x: Any) -> Any:
        """By type and value."""
        try:
            hash(x)
        except TypeError:
            return self.identity(x)
        return type(x), x

    def identity(self, x: Any) -> Any:
        """By itself."""
        self.held.append(x)
        return "id", id(x)


def _own(called: Any) -> str | None:
    """The name and line of a function of JAX's own, whose rule nobody changes: to read it takes longer than a pass."""
    info = getattr(getattr(called, "jaxpr", None), "debug_info", None)
    written, file = (getattr(info, name, None) for name in ("func_src_info", "func_filename"))
    return written if str(file).startswith(OWN) else None


def evaluated(eqn: Any, values: list[Any]) -> list[Any]:
    """The results of an equation."""
    bound = eqn.primitive.get_bind_params(eqn.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # up to JAX 0.9, functions come apart
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*functions, *values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]
