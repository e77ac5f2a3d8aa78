"""How a kernel's passes are made: all probes of a step at once, or, where that is not possible or right, one by one.

Products of all examples are looked at when the first one is made: a random combination of its columns is made again by
one pass of the model as it is, without any mapping. Both are linear, so that they agree for all columns or, but for
rounding, for none. The forward side is held against the reverse one, too: ⟨J t, v⟩ = ⟨t, Jᵀ v⟩.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from traceest_adapters import _state as common
from traceest_adapters.jax import jaxprs, modes
from traceest_adapters.jax.model import traced
from traceest_adapters.jax.per_example import compiled
from traceest_adapters.jax.per_example.plan import Plan

Kind = Literal["reverse", "forward", "gram", "units", "examples"]
SIDES: dict[Kind, tuple[modes.Mode, ...]] = {
    "reverse": ("reverse",),
    "forward": ("forward",),
    "gram": ("reverse", "forward"),
    "examples": ("alone",),
}
"""The modes of differentiation that they take."""
LITTLE = 1e-2
"""Of the derivatives by all parameters, so little of the largest is no different from zero."""
SPARSE = 0.5
"""Of a combination of columns, the share of entries that must not be zero for it to show anything."""


class Routes:
    """Of one kernel, or of all batches of one."""

    def __init__(self, J: Any) -> None:
        self.J, self.look = J, False
        self.unlooked: set[Kind] = set()
        self.mapped: dict[Kind, bool] = {}
        self.rest: set[int] = set()  # parameters that are to be treated example by example
        self.said: set[str] = set()

    def of(self, J: Any, first: bool, look: bool) -> Routes:
        """Those of the same model's Jacobian on another batch; to be looked at anew if it is the first, or with `look`.

        What was wrong on one batch is not used on any.
        """
        found = Routes(J)
        found.__dict__.update(self.__dict__, J=J, look=look)
        if first:
            found.unlooked.update(("reverse", "forward", "gram", "units"))
        return found

    def maps(self, kind: Kind) -> bool:
        """Whether probes go through at once, as far as a trace tells or a look has told."""
        if kind not in self.mapped:
            sides = SIDES[kind]
            reasons = [why for side in sides if (why := self.J.found(side).unmapped)]
            self.mapped[kind] = not reasons
            if reasons:
                self.one_by_one(kind, f"passes cannot be mapped over probes: {reasons[0]}")
        return self.mapped[kind]

    def one_by_one(self, kind: Kind, why: str) -> None:
        """Take the plain way from here on, and say why."""
        self.mapped[kind] = False
        self.warn(f"{why}; going through them one by one, which is right and slow")

    def warn(self, why: str) -> None:
        """Once for each kernel."""
        if not self.said:
            warnings.warn(f"jacobian: {why}.", RuntimeWarning, stacklevel=_level())
        self.said.add(why)

    # -- what other kernels of the same batches have shown ----------------------------------------------------------
    def seen(self, plan: Plan) -> Plan:
        """Note what a look has shown, for when this batch comes again."""
        self.rest |= set(plan.rest)
        return self.as_seen(plan)

    def as_seen(self, plan: Plan) -> Plan:
        """The plan with all that is not to be relied upon left to be treated example by example."""
        leaves = self.rest - set(plan.rest)
        return plan.without(leaves) if leaves else plan

    # -- products of all examples ---------------------------------------------------------------------------------
    def reverse(self, U: Any) -> Any:
        """(c, B, n_b) → a (c, …) gradient for each parameter."""
        vjp = self.J._vjp
        return self._made("reverse", lambda U, mapped: compiled.vjps(vjp, U, mapped), U)

    def forward(self, T: Any) -> Any:
        """A (c, …) tangent for each parameter → (n, c)."""
        jvp = self.J._jvp
        return self._made("forward", lambda T, mapped: compiled.matmat(jvp, T, mapped), T)

    def gram(self, U: Any) -> Any:
        """(c, B, n_b) → (n, c)."""
        vjp, jvp = self.J._vjp, self.J._jvp
        return self._made("gram", lambda U, mapped: compiled.gram_matmat(vjp, jvp, U, mapped), U)

    def _made(self, kind: Kind, step: Callable[..., Any], X: Any) -> Any:
        found = step(X, self.maps(kind))
        if kind not in self.unlooked or traced((X, found)):
            return found
        a, other = _combined(X)
        x = _mixed(a, X if other is None else other)
        columns_first = (lambda y: y) if kind == "reverse" else jnp.transpose
        expected = jax.tree.map(lambda y: y[0], columns_first(step(jax.tree.map(lambda y: y[None], x), False)))
        if not _shows(expected):
            return found
        self.unlooked.discard(kind)
        got = columns_first(found if other is None else step(other, self.maps(kind)))
        if self.maps(kind) and not self._agree(_mixed(a, got), expected):
            self.one_by_one(kind, "mapped over probes, the model's passes give another result than one by one")
            found = step(X, False)
        if kind == "forward":
            self._check_adjoint(x, expected)
        return found

    def _check_adjoint(self, t: list[Any], Jt: Any) -> None:
        """Raise unless the forward pass is the transpose of the backward pass."""
        J = self.J
        if J.found("reverse").lacking:
            return
        v: Any = np.random.default_rng(3).standard_normal((J._B, J.shape[0] // J._B)).astype(np.float32)
        _, g, _ = compiled.plain(J.model, J.trained, J.fixed, J.inputs, jnp.asarray(v, J._state_dtype))
        wide = lambda x: np.asarray(x, np.float64).ravel()  # noqa: E731
        u, Jt = wide(v), wide(Jt)
        left, right = float(u @ Jt), sum(float(wide(a) @ wide(b)) for a, b in zip(t, g, strict=True))
        scale = float(np.linalg.norm(u) * np.linalg.norm(Jt))
        scale += float(np.sqrt(sum(np.sum(wide(x) ** 2) for x in t)) * np.sqrt(sum(np.sum(wide(x) ** 2) for x in g)))
        if np.isfinite(scale) and abs(left - right) > self.rounding * scale:
            raise ValueError(
                "jacobian: the model's forward and backward passes are derivatives of different functions: "
                f"⟨J t, v⟩ = {left:.6g} and ⟨t, Jᵀv⟩ = {right:.6g}; look for a custom derivative, or a transpose, "
                "that is wrong. (check=False does not look.)"
            )

    def _agree(self, found: Any, expected: Any) -> bool:
        gaps = np.asarray(_gaps(jax.tree.leaves(found), jax.tree.leaves(expected)), np.float64)
        gaps = gaps[np.isfinite(gaps[:, 1])]
        least = LITTLE * np.max(gaps[:, 1], initial=0.0)  # what is zero but for rounding is as it may be
        return bool(np.all(gaps[:, 0] <= self.rounding * np.maximum(gaps[:, 1], least)))

    @property
    def rounding(self) -> float:
        """Relative, of the same pass made otherwise."""
        dtypes = [self.J._state_dtype, *(p.dtype for p in self.J.trained)]
        inside = jaxprs.coarsest(self.J.model.together.jaxpr)
        return 4 * rounding(max(inside, *(float(jnp.finfo(d).eps) for d in dtypes)))


def _level() -> int:
    """Of the first frame that is not of this library's, for a warning made by who calls this."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("traceest", "functools")):
        level, frame = level + 1, frame.f_back
    return level


def rounding(eps: float, deep: int = 16) -> float:
    """It adds up from product to product, to what the outputs themselves may be off."""
    return min(eps ** (2 / 3) * deep**0.5, common.tolerance(eps))


def _combined(columns: Any) -> tuple[Any, Any]:
    """Random coefficients of columns, and others of their kind where these have too many zeros to show anything."""
    leaves, treedef = jax.tree.flatten(columns)
    rng = np.random.default_rng(2)
    a = rng.standard_normal(len(leaves[0]))
    filled = [np.any(np.asarray(x) != 0, axis=0) for x in leaves]
    if sum(map(np.count_nonzero, filled)) >= SPARSE * sum(x.size for x in filled):
        return a, None
    others = [jnp.asarray(rng.standard_normal(x.shape).astype(np.float32), x.dtype) for x in leaves]
    return a, jax.tree.unflatten(treedef, others)


@jax.jit
def _mixed(a: Any, columns: Any) -> Any:
    """Σ_j a_j times column j, of each array."""
    return jax.tree.map(lambda x: jnp.tensordot(a.astype(x.dtype), x, 1), columns)


def _shows(arrays: Any) -> bool:
    """Whether something is neither zero nor infinite."""
    sizes = np.asarray(_gaps(*[jax.tree.leaves(arrays)] * 2), np.float64)[:, 1]
    return bool(np.any(np.isfinite(sizes) & (sizes > 0)))


@jax.jit
def _gaps(found: list[Any], expected: list[Any]) -> Any:
    """Of each array, the largest difference, and the largest entry expected: (leaves, 2)."""
    return jnp.stack([gap(x, y) for x, y in zip(found, expected, strict=True)])


def gap(found: Any, expected: Any) -> Any:
    """The largest difference, and the largest entry expected."""
    wide = jnp.promote_types(expected.dtype, jnp.float32)
    found, expected = found.astype(wide), expected.astype(wide)
    return jnp.stack([jnp.max(jnp.abs(found - expected)), jnp.max(jnp.abs(expected))])
