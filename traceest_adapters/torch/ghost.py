"""Norms and Gram matrices of per-example gradients from one pass over the whole batch: ghost norms.

For cotangents U, one batched backward pass gives δ = ∂⟨u, state⟩/∂z at the output z of every call that is understood.
Examples being independent, what δ holds for example b is that example's alone, and with the call's input it makes up
the example's gradient, which is never formed as a whole. Nothing is taken on trust: the first time that a model runs
so, on random cotangents, δ must be where its example is said to be, and the gradient that it makes up must be PyTorch's
own. A parameter for which that fails is left to be treated example by example.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch

from traceest_adapters import _memory as memory
from traceest_adapters import _state as common
from traceest_adapters.torch import verdicts
from traceest_adapters.torch.alike import Alike, alike, with_biases
from traceest_adapters.torch.layers import Factor, gram, merge, sqnorms, total
from traceest_adapters.torch.model import Model, Params
from traceest_adapters.torch.products import CACHE_TO_LAYERS, MOST, grads, pairs
from traceest_adapters.torch.taps import Call, Layout, Recorder, Use, layouts
from traceest_adapters.torch.units import Units, by_themselves
from traceest_adapters.torch.verdicts import Verdict

Deltas = dict[Call, torch.Tensor]


SAFE = 2.0**40
"""Inputs of a layer beyond this, or below its inverse, are not squared by themselves; derivatives are, in a unit."""

UNSCALED = 2.0**20
"""Derivatives up to this size, and down to its inverse, are taken as they are."""


class Ghost:
    """The per-example gradients of the parameters that are understood; the names of all others are in `rest`."""

    def __init__(
        self,
        model: Model,
        state: torch.Tensor,
        recorder: Recorder,
        params: Params,
        dtype: torch.dtype,
        chunk_size: int | None,
        eps: float,
        differentiable: bool,
    ) -> None:
        self.state, self.B, self.dtype, self.chunk_size, self.eps = state, len(state), dtype, chunk_size, eps
        self.uses: dict[str, list[Use]] = {}
        self.largest = recorder.largest
        self.rest: list[str] = []
        self.layers: list[Units] = []
        self._found_alike: dict[frozenset[str], tuple[list[Alike], list[list[Use]]]] = {}
        self.unit, self.create_graph = 1.0, False
        if state.requires_grad:
            with torch.no_grad():
                self._judge(model, params, recorder.uses)
                self._find_layers(recorder)
        else:
            self.rest = list(params)
        self.create_graph = differentiable

    # -- what is understood --------------------------------------------------------------------------------
    def _judge(self, model: Model, params: Params, uses: dict[str, list[Use]]) -> None:
        """By what is remembered of the model, or else by what is found out about it now."""
        calls, remembered = _calls(uses.values()), verdicts.known(model)
        key = verdicts.structure(model, self.state, calls, uses)
        u = self._random(self.state.shape)
        found = grads([self.state], [call.edge for call in calls], [u[None]]) if calls else []
        reached = {call: d.to(self.dtype) for call, d in zip(calls, found, strict=True) if d is not None}
        verdict = remembered.get(key)
        if verdict is None or verdict.reached != [call in reached for call in calls]:
            verdict = remembered[key] = self._verify(params, uses, calls, reached, u)
        self.unit = _unit([float(d.abs().max()) for d in reached.values()])
        for call, layout in zip(calls, verdict.layouts, strict=True):
            call.layout = layout
        for name in params:
            chosen = [use for use in uses[name] if use.call in reached]
            if name in verdict.understood and all(map(_usable, chosen)):
                self.uses[name] = chosen
            elif name in verdict.depended_on:
                self.rest.append(name)

    def _find_layers(self, recorder: Recorder) -> None:
        """The recurrent layers whose norms can be taken unit by unit."""
        for layer, names, calls in recorder.layers:
            uses = [self.uses.get(name, []) for name in names]
            if by_themselves(layer, uses, self.B):
                self.layers.append(Units(layer, names, calls, self.dtype))

    def _verify(
        self, params: Params, uses: dict[str, list[Use]], calls: list[Call], reached: Deltas, u: torch.Tensor
    ) -> Verdict:
        """Whether δ is where its examples are said to be, and makes up what PyTorch has for gradients."""
        r = self._random((2, self.B, 1))
        by = dict(zip(params, grads([self.state], list(params.values()), [u[None]]), strict=True))
        scaled, understood = self.deltas(list(reached), r * u), set()
        for call, d in reached.items():
            call.layout = _layout(call, d, scaled[call], r, self.B, self.eps)
        depended_on = {name: g[0] for name, g in by.items() if g is not None}
        for name, g in depended_on.items():
            chosen = [use for use in uses[name] if use.call in reached]
            if chosen and all(map(_usable, chosen)) and self._is_gradient(chosen, reached, g):
                understood.add(name)
        return Verdict([c.layout for c in calls], [c in reached for c in calls], understood, set(depended_on))

    def _random(self, shape: Sequence[int]) -> torch.Tensor:
        random = torch.Generator(self.state.device).manual_seed(sum(shape))
        return torch.randn(*shape, generator=random, dtype=self.state.dtype, device=self.state.device)

    def _is_gradient(self, uses: list[Use], deltas: Deltas, g: torch.Tensor) -> bool:
        try:
            error = total(partial(self._factors, uses, deltas), self.B) - g.reshape(-1)
        except ValueError:
            return False
        size = g.abs().max()
        if all(use.x is None for use in uses):  # a shift, whose gradient may be all rounding, as is attention's keys'
            sizes = {use.call: deltas[use.call].abs() for use in uses}
            size = total(partial(self._factors, uses, sizes), self.B).max()
        eps = max(self.eps, *(torch.finfo(use.call.dtype).eps for use in uses))
        return bool(error.abs().max() <= eps ** (2 / 3) * size)

    def _factors(self, uses: list[Use], deltas: Deltas, examples: slice) -> Factor:
        return factors(uses, deltas, self.dtype, examples)

    # -- what is asked for ---------------------------------------------------------------------------------
    def deltas(self, calls: list[Call], U: torch.Tensor) -> Deltas:
        """∂⟨u_i, state⟩/∂z, (c, *z.shape), at the outputs of `calls`, in units of `unit`."""
        if not calls:
            return {}
        chunk = self._to_a_pass(calls)
        edges = [call.edge for call in calls]
        if len(U) <= chunk and self.unit == 1:
            new = grads([self.state], edges, [U], self.create_graph)
            shapes = ((len(U), *call.shape) for call in calls)
            return {
                call: U.new_zeros(shape, dtype=self.dtype) if g is None else g.to(self.dtype)
                for call, g, shape in zip(calls, new, shapes, strict=True)
            }
        found = {call: U.new_empty(len(U), *call.shape, dtype=self.dtype) for call in calls}
        for start in range(0, len(U), chunk):
            new = grads([self.state], edges, [U[start : start + chunk]], self.create_graph)
            for d, g in zip(found.values(), new, strict=True):
                d[start : start + chunk] = 0.0 if g is None else g
        return found if self.unit == 1 else {call: d.div_(self.unit) for call, d in found.items()}

    def _to_a_pass(self, calls: list[Call]) -> int:
        """Probes that a backward pass takes at once."""
        held = 4 * self._bytes(_calls(self.uses.values()) or calls)
        asked = self.chunk_size
        cache = CACHE_TO_LAYERS if asked is None else asked * self.largest
        return memory.probes_to_a_pass(held, self.largest, cache, asked or MOST)

    def sqnorms(self, U: torch.Tensor) -> torch.Tensor:
        """‖J_bᵀ u_{b,i}‖² over the parameters understood, for U of shape (k, B, n_b): (B, k)."""
        calls = _calls(self.uses.values())
        if not calls:
            return torch.zeros(self.B, len(U), dtype=self.dtype, device=U.device)
        # Only as many as go to a pass: derivatives of more would leave the cache, which takes twice as long.
        parts = U.split(self._to_a_pass(calls))
        return torch.cat([sum(self._sqnorms(part)) * self.unit * self.unit for part in parts], dim=1)

    def _sqnorms(self, U: torch.Tensor) -> Iterator[torch.Tensor]:
        c = len(U)
        layers = [layer for layer in self.layers if layer.fits(c)]
        covered = {name for layer in layers for name in layer.names}
        together, alone = self._alike(frozenset(covered))
        calls = _calls(uses for name, uses in self.uses.items() if name not in covered)
        deltas = self.deltas([*calls, *(call for layer in layers for call in layer.calls)], U)
        for layer in layers:
            yield layer.sqnorms(deltas)
        for some in together:
            if some.fits(c):
                yield some.sqnorms(deltas, self.B)
            else:
                alone = [*alone, *([use] for use in some.uses)]
        for uses in alone:
            yield sqnorms(partial(self._factors, uses, deltas), self.B)

    def _alike(self, covered: frozenset[str]) -> tuple[list[Alike], list[list[Use]]]:
        """The parameters not covered, those that are like others together."""
        if covered not in self._found_alike:
            rest = [uses for name, uses in self.uses.items() if name not in covered]
            self._found_alike[covered] = alike(with_biases(rest, self.B), self.dtype)
        return self._found_alike[covered]

    def grams(self, U: torch.Tensor, names: set[str]) -> Iterator[tuple[str, slice, slice, torch.Tensor]]:
        """A parameter's Gram matrix of per-example gradients, block by block of probes: (B, i, B, j).

        Held at a time: the derivatives at the outputs of some layers, as many as the budget allows; where those of a
        single parameter are more, of two chunks of probes.
        """
        asked = [name for name in self.uses if name in names]
        seen: set[Call] = set()
        sizes = []
        for name in asked:
            new = [call for call in _calls([self.uses[name]]) if call not in seen]
            seen.update(new)
            sizes.append(self._bytes(new))
        for group in common.groups(sizes, len(U), 1):
            chosen = {asked[i]: self.uses[asked[i]] for i in group}
            calls = _calls(chosen.values())
            room = memory.budget() // self._bytes(calls)
            chunk = len(U) if len(U) <= room else max(1, room // 2)
            for P, Q, d, e in pairs(U, chunk, partial(self.deltas, calls)):
                for name, uses in chosen.items():
                    f = partial(self._factors, uses, d)
                    G = gram(f, f if d is e else partial(self._factors, uses, e), self.B)
                    yield name, P, Q, G if self.unit == 1 else G * self.unit * self.unit

    @property
    def probe_bytes(self) -> int:
        """What one probe's derivatives take at all calls that are understood."""
        return self._bytes(_calls(self.uses.values()))

    def _bytes(self, calls: list[Call]) -> int:
        """What one probe's derivatives take."""
        return sum(call.shape.numel() for call in calls) * self.dtype.itemsize


def factors(uses: list[Use], deltas: Deltas, dtype: torch.dtype, examples: slice) -> Factor:
    """The gradient of a run of examples by the parameter that is used so."""
    return merge([_factor(use, deltas[use.call], dtype, examples) for use in uses])


def _factor(use: Use, delta: torch.Tensor, dtype: torch.dtype, examples: slice) -> Factor:
    layout, rows = use.call.layout, use.call.rows
    assert layout is not None, "only calls whose layout was found are used"
    x = use.x if use.x is None else layout.arrange(use.x, rows, 0, examples)
    if x is not None and x.is_floating_point():
        x = x.to(dtype)
    return use.factor(x, layout.arrange(delta, rows, 1, examples))


def _calls(uses: Iterable[list[Use]]) -> list[Call]:
    """The calls among uses, each once, in order."""
    return list(dict.fromkeys(use.call for some in uses for use in some))


def _layout(call: Call, d: torch.Tensor, scaled: torch.Tensor, r: torch.Tensor, B: int, eps: float) -> Layout | None:
    """The layout by which `scaled`, which is for cotangents times a number an example, is `d` times that number."""
    tolerance = common.tolerance(max(eps, torch.finfo(call.dtype).eps))
    for layout in layouts(call.shape[: call.rows], B):
        one, two = (layout.arrange(x, call.rows, 1, slice(None)).flatten(2) for x in (d, scaled))
        if bool((two - r * one).abs().max() <= tolerance * one.abs().max()):
            return layout
    return None


def _unit(sizes: list[float]) -> float:
    """A power of two near the largest derivative, where its square might leave float32's range; else 1."""
    largest = max(sizes, default=0.0)
    if largest == 0 or not math.isfinite(largest) or 1 / UNSCALED <= largest <= UNSCALED:
        return 1.0
    return 2.0 ** math.frexp(largest)[1]


def _usable(use: Use) -> bool:
    """Whether the examples were found in it, and its input is as it was and of a size that can be squared."""
    if use.call.layout is None or (use.x is not None and use.x._version != use.version):
        return False
    if use.x is None or not use.x.is_floating_point():
        return True
    size = float(use.x.abs().max())
    return size == 0 or 1 / SAFE <= size <= SAFE
