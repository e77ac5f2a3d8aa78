"""Per-example gradients of one batch, without its linearisation, for inner products with those of other batches."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from traceest_adapters import _memory as memory
from traceest_adapters import _state as common
from traceest_adapters.jax.model import Model
from traceest_adapters.jax.per_example import compiled, ghost_norms
from traceest_adapters.jax.per_example.plan import Plan

Groups = tuple[tuple[int, ...], ...] | None


class Sketched(NamedTuple):
    """What is sketched: a model with its parameters and examples, and the dtype of sums."""

    model: Model
    plan: Plan
    way: tuple[int, bool]  # runs side by side, and whether probes go through at once
    trained: list[Any]
    fixed: list[Any]
    examples: Any
    dtype: Any

    @property
    def _arrays(self) -> tuple[Any, ...]:
        return self.trained, self.fixed, self.examples

    def grads(self, leaves: tuple[int, ...], U: Any) -> list[Any]:
        """Gradients by some parameters, formed: (B, c, P_leaf) each."""
        lanes, mapped = self.way
        g, found, start = compiled.block_grads(self.model, leaves, lanes, *self._arrays, U, mapped), [], 0
        for i in leaves:
            found.append(g[:, :, start : start + self.trained[i].size])
            start += self.trained[i].size
        return found


class Sketch:
    """J_bᵀ u_{b,i} of every parameter: factors of those that are understood, and a way to form those of all others.

    Where a parameter is treated otherwise in another batch (whose examples have another size), its gradients are formed
    in both.
    """

    def __init__(self, of: Sketched, tapped: Any, pieces: list[Any], k: int) -> None:
        self.of, self.pieces, self.k = of, pieces, k
        self.operands = tapped[1] if tapped else []
        self.deltas = [ghost_norms.deltas(of.plan, of.plan, tapped[0], U) for U in pieces] if tapped else []
        self._kept: list[dict[int, Any]] = [{} for _ in pieces]
        rest = of.plan.rest
        rows = pieces[0].shape[0] * pieces[0].shape[1] * len(pieces)
        if rest and rows * sum(of.trained[i].size for i in rest) * of.dtype.itemsize <= memory.budget():
            self._kept = [dict(zip(rest, of.grads(rest, U), strict=True)) for U in pieces]

    @property
    def nbytes(self) -> int:
        """What is held beside the examples."""
        leaves = jax.tree.leaves((self.operands, self.deltas, self._kept))
        return sum(x.size * x.dtype.itemsize for x in leaves)

    def gram(self, other: Sketch, groups: Groups) -> Any:
        """(n_groups, B, k, B′, k′): their inner products over each group of parameters, or over all for None."""
        everything = (tuple(range(len(self.of.trained))),)
        found = [self._gram(other, group) for group in (everything if groups is None else groups)]
        return jnp.stack([G[:, : self.k, :, : other.k] for G in found]).astype(self.of.dtype)

    def _gram(self, other: Sketch, group: tuple[int, ...]) -> Any:
        alike, left = self._sorted(other, group)
        plans = self.of.plan.chosen(alike), other.of.plan.chosen(alike)
        sizes = [self.of.trained[i].size for i in left]
        rows = self._rows + other._rows
        runs = [tuple(left[i] for i in run) for run in common.groups(sizes, rows, self.of.dtype.itemsize)]
        lines = []
        for i in range(len(self.pieces)):
            line = []
            for j in range(len(other.pieces)):
                G = jnp.zeros((self._B, self._c, other._B, other._c), self.of.dtype)
                if alike:
                    deltas = self._chosen(plans[0], i), other._chosen(plans[1], j)
                    operands = self._operands(plans[0]), other._operands(plans[1])
                    G = G + ghost_norms.cross_gram(plans, self.of.dtype, operands, deltas)
                for run in runs:
                    g, h = self._formed(run, i), other._formed(run, j)
                    G = G + sum(compiled.inner(x, y) for x, y in zip(g, h, strict=True))
                line.append(G)
            lines.append(jnp.concatenate(line, axis=3))
        return jnp.concatenate(lines, axis=1)

    def _sorted(self, other: Sketch, group: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The parameters treated alike in both batches, and those to be formed; on others the state does not depend."""
        p, q = self.of.plan, other.of.plan
        in_both = [i for i in group if all(i in (*x.weights, *x.small, *x.rest) for x in (p, q))]
        alike = {i for i in in_both if i in p.small and i in q.small}
        alike |= {i for i in in_both if i in p.weights and i in q.weights and _layout(p, i) == _layout(q, i)}
        return tuple(i for i in in_both if i in alike), tuple(i for i in in_both if i not in alike)

    @property
    def _B(self) -> int:
        return int(self.pieces[0].shape[1])

    @property
    def _c(self) -> int:
        return int(self.pieces[0].shape[0])

    @property
    def _rows(self) -> int:
        return self._B * self._c

    def _chosen(self, some: Plan, i: int) -> Any:
        taps, copies = self.deltas[i]
        taps = [d for d, use in zip(taps, self.of.plan.uses, strict=True) if use.leaf in some.weights]
        return taps, [g for g, leaf in zip(copies, self.of.plan.small, strict=True) if leaf in some.small]

    def _operands(self, some: Plan) -> list[Any]:
        kept = zip(self.operands, self.of.plan.uses, strict=True)
        return [x for x, use in kept if use.leaf in some.weights]

    def _formed(self, run: tuple[int, ...], i: int) -> list[Any]:
        kept = self._kept[i]
        new = tuple(leaf for leaf in run if leaf not in kept)
        found = {**kept, **(dict(zip(new, self.of.grads(new, self.pieces[i]), strict=True)) if new else {})}
        return [found[leaf] for leaf in run]


def _layout(plan: Plan, leaf: int) -> Any:
    """The rows and columns that a weight's gradients are taken to have, and whether they are a table's."""
    use = plan.uses[plan.of(leaf)[0]]
    return use.layout, [plan.uses[i].table is not None for i in plan.of(leaf)]
