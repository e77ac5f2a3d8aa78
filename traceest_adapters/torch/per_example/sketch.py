"""Per-example gradients of one batch, without its graph, for inner products with those of other batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from traceest_adapters import _memory as memory
from traceest_adapters import _state as common
from traceest_adapters.torch.per_example.factors import Factors, better_formed, formed, gram
from traceest_adapters.torch.per_example.ghost_norms import Ghost, factors
from traceest_adapters.torch.per_example.mapped import PerExample

Groups = tuple[tuple[int, ...], ...] | None


class Sketch:
    """J_bᵀ u_{b,i} of every parameter, in units of `unit`: as factors where these are small, else formed.

    What is not understood, and too large to be held, is formed whenever it is asked for. Where a parameter is
    understood in one batch and not in another (an input there is too large to be squared), its factors are multiplied
    out.
    """

    def __init__(self, ghost: Ghost, examples: PerExample, U: torch.Tensor, chunk: int) -> None:
        self.B, self.k, self.unit, self.dtype = ghost.B, len(U), ghost.unit, ghost.dtype
        self._examples, self._U, self._chunk = examples, U, chunk
        # The same calls without their places in the graph, which would keep all of it.
        free = {use.call: replace(use.call, edge=None) for uses in ghost.uses.values() for use in uses}
        deltas = {free[call]: d for call, d in ghost.deltas(list(free), U).items()}
        self._factors: dict[str, Factors] = {}
        self._kept: dict[str, torch.Tensor] = {}
        held: list[torch.Tensor] = []
        for name, uses in ghost.uses.items():
            uses = [use._replace(call=free[use.call]) for use in uses]
            mine = {use.call: deltas[use.call] for use in uses}
            of = partial(factors, uses, mine, self.dtype)
            if better_formed(of):
                self._kept[name] = formed(of, self.B)
            else:
                self._factors[name] = of
                held += [*mine.values(), *(use.x for use in uses if use.x is not None)]
        self._rest = {name: examples.params[name].numel() for name in ghost.rest}
        if self.B * self.k * sum(self._rest.values()) * self.dtype.itemsize <= memory.budget():
            self._kept |= self._formed_anew(list(self._rest))
        elif self._rest:  # to be made later, without the graph: looked at now
            for part in {len(part): part for part in U.split(chunk)}.values():
                examples.grads(part, list(self._rest))
        self._examples = examples.without_graph()
        self.nbytes = sum({x.data_ptr(): x.nbytes for x in [*held, *self._kept.values()]}.values())

    def gram(self, other: Sketch, groups: Groups) -> torch.Tensor:
        """(n_groups, B, k, B′, k′): their inner products over each group of parameters, or over all for None."""
        names = list(self._examples.params)
        chosen = [names] if groups is None else [[names[i] for i in group] for group in groups]
        total = torch.zeros(len(chosen), self.B, self.k, other.B, other.k, dtype=self.dtype, device=self._U.device)
        for some, G in self._grams(other, [name for name in names if any(name in group for group in chosen)]):
            for g, group in enumerate(chosen):
                if some in group:
                    total[g] += G * self.unit * other.unit
        return total.to(torch.result_type(self._U, next(iter(self._examples.params.values()))))

    def _grams(self, other: Sketch, asked: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        C = None if other is self else other.B
        both = [name for name in asked if self._has(name) and other._has(name)]
        left = [name for name in both if name not in self._factors or name not in other._factors]
        for name in both:
            if name not in left:
                yield name, gram(self._factors[name], other._factors[name], self.B, C)
        sizes = [self._examples.params[name].numel() for name in left]
        for group in common.groups(sizes, self.B * self.k + other.B * other.k, self.dtype.itemsize):
            some = [left[i] for i in group]
            g = self._formed(some)
            h = g if other is self else other._formed(some)
            for name in some:
                x, y = g[name].flatten(0, 1), h[name].flatten(0, 1)
                yield name, (x @ y.T).reshape(self.B, self.k, other.B, other.k)

    def _has(self, name: str) -> bool:
        """Whether the state depends on the parameter; by no path it does not."""
        return name in self._factors or name in self._kept or name in self._rest

    def _formed(self, names: list[str]) -> dict[str, torch.Tensor]:
        """Gradients, (B, k, P_name) each."""
        found = {name: formed(self._factors[name], self.B) for name in names if name in self._factors}
        missing = [name for name in names if name not in found and name not in self._kept]
        return {**self._kept, **found, **self._formed_anew(missing)}

    def _formed_anew(self, names: list[str]) -> dict[str, torch.Tensor]:
        if not names:
            return {}
        parts = [self._examples.grads(part, names) for part in self._U.split(self._chunk)]
        whole = torch.cat(parts, dim=1).to(self.dtype) / self.unit
        return dict(zip(names, whole.split([self._rest[name] for name in names], dim=2), strict=True))
