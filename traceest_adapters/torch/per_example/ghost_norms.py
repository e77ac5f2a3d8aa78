"""Norms and Gram matrices of per-example gradients from one pass over the whole batch: ghost norms.

For cotangents U, one batched backward pass gives δ = ∂⟨u, state⟩/∂z at the output z of every call that is understood.
Examples being independent, what δ holds for example b is that example's alone, and with the call's input it makes up
the example's gradient, which is never formed as a whole. Nothing is taken on trust: for random cotangents v, what δ
makes up, Σ_b r_b g_b, must be the gradient of the user's module by a plain pass (see `Look`). A parameter for which
that fails is left to be treated example by example.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice, product
from typing import Any, NamedTuple

import torch

from traceest_adapters import _memory as memory
from traceest_adapters import _state as common
from traceest_adapters.torch.model import Params
from traceest_adapters.torch.per_example.factors import Factor, Factors, gram, merge, sqnorms, total
from traceest_adapters.torch.per_example.recorder import BatchLayout, Call, Recorder, Use, layouts
from traceest_adapters.torch.per_example.recurrent_norms import Units, by_themselves
from traceest_adapters.torch.per_example.stacked_layers import Alike, alike, with_biases
from traceest_adapters.torch.per_example.verify import ROUNDING, Look, largest
from traceest_adapters.torch.products import CACHE_TO_LAYERS, MOST, grads, one_by_one, pairs

Deltas = dict[Call, torch.Tensor]


SAFE = 2.0**40
"""Inputs of a layer beyond this, or below its inverse, are not squared by themselves; derivatives are, in a unit."""

UNSCALED = 2.0**20
"""Derivatives up to this size, and down to its inverse, are taken as they are."""

FEW = 2
"""Examples of which norms by recurrent layers' units are looked at."""

COMBINATIONS = 32
"""Most ways in which examples may lie in the calls of a parameter that are tried."""


class Known(NamedTuple):
    """What was found of a batch: each call's layout and whether the state depends on it, the unit, the parameters."""

    layouts: list[BatchLayout | None]
    reached: list[bool]
    unit: float
    understood: set[str]
    depended_on: set[str]


class Ghost:
    """The per-example gradients of the parameters that are understood; the names of all others are in `rest`."""

    def __init__(
        self,
        state: torch.Tensor,
        recorder: Recorder,
        params: Params,
        dtype: torch.dtype,
        chunk_size: int | None,
        differentiable: bool,
        look: Look,
        asked: torch.Tensor | None = None,
    ) -> None:
        self.state, self.B, self.dtype, self.chunk_size, self.look = state, len(state), dtype, chunk_size, look
        self.uses: dict[str, list[Use]] = {}
        self.largest = recorder.largest
        self.rest: list[str] = []
        self.layers: list[Units] = []
        self._of_v: Deltas = {}
        self._asked = None if differentiable else asked
        self._ready: Deltas = {}
        self._found_alike: dict[frozenset[str], tuple[list[Alike], list[list[Use]]]] = {}
        self.unit, self.create_graph = 1.0, False
        if state.requires_grad:
            with torch.no_grad():
                self._judge(params, recorder)
                self._find_layers(recorder)
                if not self.layers or self.unit != 1:
                    self._of_v = {}
        else:
            self.rest = list(params)
        self.create_graph = differentiable

    # -- what is understood --------------------------------------------------------------------------------
    def _judge(self, params: Params, recorder: Recorder) -> None:
        """By what was found of this batch before, or else by what is found out about it now."""
        uses = recorder.uses
        calls, of_layers = _calls(uses.values()), [call for *_, calls in recorder.layers for call in calls]
        for i, call in enumerate([*calls, *of_layers]):
            call.at = i
        known: Known | None = self.look.findings.ghost
        if known is None:
            every = params, uses, calls, of_layers
            known = self._verify_at_once(*every) or self._verify(*every)
            self.look.settle(known.understood)
        self.look.findings.ghost, self.unit = known, known.unit
        for call, layout in zip(calls, known.layouts, strict=True):
            call.layout = layout
        reached = {call for call, is_reached in zip(calls, known.reached, strict=True) if is_reached}
        for name in params:
            chosen = [use for use in uses[name] if use.call in reached]
            if name in known.understood and all(map(_usable, chosen)):
                self.uses[name] = chosen
            elif name in known.depended_on:
                self.rest.append(name)

    def _find_layers(self, recorder: Recorder) -> None:
        """The recurrent layers whose norms can be taken unit by unit."""
        for layer, names, calls in recorder.layers:
            uses = [self.uses.get(name, []) for name in names]
            if by_themselves(layer, uses, self.B):
                self.layers.append(Units(layer, names, calls, self.dtype))

    def _holds(self, layer: Units) -> bool:
        """Whether a layer's norms, unit by unit, are those of its gates' derivatives: of v and a few examples, once."""
        route, few = ("units", *layer.names), min(self.B, FEW)
        if self.look.due(route):
            uses = [self.uses[name] for name in layer.names]
            calls = [*layer.calls, *_calls(uses)]
            found = self._of_v if self._of_v.keys() >= set(calls) else self.deltas(calls, self.look.v[None])
            by_gates = (partial(_of_few, partial(self._factors, some, found), few) for some in uses)
            expected = sum(sqnorms(factors, few) for factors in by_gates)
            if self.look.wrong({"": layer.sqnorms({c: found[c][:, :, :few] for c in layer.calls})}, {"": expected}):
                self.look.findings.failed.add(route)
            self.look.findings.looked.add(route)
            if not any(self.look.due(("units", *other.names)) for other in self.layers):
                self._of_v = {}
        return route not in self.look.findings.failed

    def _verify(self, params: Params, uses: dict[str, list[Use]], calls: list[Call], layer_calls: list[Call]) -> Known:
        """Whether δ is where its examples are said to be, and makes up what the model's own pass has for gradients."""
        every = [*calls, *layer_calls]
        found = grads([self.state], [call.edge for call in every], [self.look.v[None]]) if every else []
        self._of_v = {call: d.to(self.dtype) for call, d in zip(every, found, strict=True) if d is not None}
        return self._known(params, uses, calls, layer_calls)

    def _verify_at_once(
        self, params: Params, uses: dict[str, list[Use]], calls: list[Call], layer_calls: list[Call]
    ) -> Known | None:
        """The same, together with the first batched pass of the probes asked for, U; None where that says nothing.

        With w = v − Σ_i a_i u_i by a plain pass, Σ_i a_i δ(u_i) + δ(w) = δ(v): one comparison with the gradient of the
        user's module tells that the batching rules, the layouts and the copy are all right, or that some are not.
        """
        every, look = [*calls, *layer_calls], self.look
        U = None if self._asked is None or not every else self._asked[: self._to_a_pass(every)]
        if U is None or len(U) < 2 or not (look.check and look.is_full([U]) and look.may_batch("deltas")):
            return None
        if len(U) * self._bytes(every) > memory.budget():
            return None
        edges, w = [call.edge for call in every], look.v - look.combined(U)
        found, rest = (grads([self.state], edges, [X]) for X in (U, w[None]))
        made = [(call, f, g) for call, f, g in zip(every, found, rest, strict=True) if f is not None and g is not None]
        if any(f.shape != (len(U), *call.shape) for call, f, _ in made):
            return None
        self._of_v = {call: look.combined(f.to(self.dtype))[None] + g.to(self.dtype) for call, f, g in made}
        known = self._known(params, uses, calls, layer_calls)
        if any(name not in known.understood and uses[name] for name in known.depended_on) or known.unit != 1:
            for call in calls:
                call.layout = None
            return None
        look.findings.looked.add(_route(len(U), every))
        self._asked, self._ready = U, {call: f.to(self.dtype) for call, f, _ in made}
        return known

    def _known(self, params: Params, uses: dict[str, list[Use]], calls: list[Call], layer_calls: list[Call]) -> Known:
        """What δ(v) makes up, compared with the gradient of the user's module."""
        reached = {call: d for call, d in self._of_v.items() if call not in set(layer_calls)}
        first = self.look.first()
        depended_on = {name for name, g in first.items() if g is not None}
        sizes = [largest(g) for g in first.values() if g is not None]
        top = float(torch.stack(sizes).max()) if sizes else 0.0
        understood = set()
        for name in params:
            g, chosen = first[name], [use for use in uses[name] if use.call in reached]
            if g is not None and chosen and self._find_layouts(chosen, reached, g, top):
                understood.add(name)
        unit = _unit([float(largest(d)) for d in reached.values()])
        return Known([c.layout for c in calls], [c in reached for c in calls], unit, understood, depended_on)

    def _find_layouts(self, uses: list[Use], deltas: Deltas, g: torch.Tensor, top: float) -> bool:
        """Whether some layout of the calls, where they have none yet, makes up the gradient; it is theirs then.

        Calls of one shape are laid out alike, by one model at least.
        """
        open_calls = [call for call in _calls([uses]) if call.layout is None]
        shapes = list(dict.fromkeys(call.shape[: call.rows] for call in open_calls))
        for some in islice(product(*(layouts(shape, self.B) for shape in shapes)), COMBINATIONS):
            by_shape = dict(zip(shapes, some, strict=True))
            for call in open_calls:
                call.layout = by_shape[call.shape[: call.rows]]
            if all(map(_usable, uses)) and self._is_gradient(uses, deltas, g, top):
                return True
        for call in open_calls:
            call.layout = None
        return False

    def _is_gradient(self, uses: list[Use], deltas: Deltas, g: torch.Tensor, top: float) -> bool:
        r = self.look.r.to(self.dtype)
        try:
            error = total(partial(_weighted, uses, deltas, self.dtype, r), self.B) - g.reshape(-1)
        except ValueError:
            return False
        size = largest(g)
        if all(use.x is None for use in uses):  # a shift, whose gradient may be all rounding, as is attention's keys'
            sizes = {use.call: deltas[use.call].abs() for use in uses}
            size = largest(total(partial(_weighted, uses, sizes, self.dtype, r.abs()), self.B))
        eps = max(self.look.eps, *(torch.finfo(use.call.dtype).eps for use in uses))
        return bool(largest(error) <= eps ** (2 / 3) * size + ROUNDING * eps * top)

    def _factors(self, uses: list[Use], deltas: Deltas, examples: slice) -> Factor:
        return factors(uses, deltas, self.dtype, examples)

    # -- what is asked for ---------------------------------------------------------------------------------
    def deltas(self, calls: list[Call], U: torch.Tensor) -> Deltas:
        """∂⟨u_i, state⟩/∂z, (c, *z.shape), at the outputs of `calls`, in units of `unit`."""
        if not calls:
            return {}
        if ready := self._made_already(calls, U):
            return ready
        chunk = self._to_a_pass(calls)
        if len(U) <= chunk and self.unit == 1:
            new = self._pass(calls, U)
            shapes = ((len(U), *call.shape) for call in calls)
            return {
                call: U.new_zeros(shape, dtype=self.dtype) if g is None else g.to(self.dtype)
                for call, g, shape in zip(calls, new, shapes, strict=True)
            }
        found = {call: U.new_empty(len(U), *call.shape, dtype=self.dtype) for call in calls}
        for start in range(0, len(U), chunk):
            new = self._pass(calls, U[start : start + chunk])
            for d, g in zip(found.values(), new, strict=True):
                d[start : start + chunk] = 0.0 if g is None else g
        return found if self.unit == 1 else {call: d.div_(self.unit) for call, d in found.items()}

    def _made_already(self, calls: list[Call], U: torch.Tensor) -> Deltas:
        """The derivatives that were made to be looked at, which are given once."""
        ready, self._ready = self._ready, {}
        if self._asked is None or not all(call in ready for call in calls) or not torch.equal(U, self._asked):
            return {}
        return {call: ready[call] for call in calls}

    def _pass(self, calls: list[Call], U: torch.Tensor) -> list[torch.Tensor | None]:
        """One backward pass to the outputs of calls, which with this many probes is looked at once."""
        c, edges = len(U), [call.edge for call in calls]
        if not self.look.may_batch("deltas"):
            return one_by_one([self.state], edges, [U], self.create_graph)
        found = grads([self.state], edges, [U], self.create_graph)
        if any(g is not None and g.shape != (c, *call.shape) for call, g in zip(calls, found, strict=True)):
            self.look.plainer("deltas", c)
            return one_by_one([self.state], edges, [U], self.create_graph)
        route = _route(c, calls)
        if c == 1 or not self.look.due(route) or any(_covers(other, route) for other in self.look.findings.looked):
            return found
        ours = lambda found: _numbered([self.look.combined(g) for g in found])  # noqa: E731
        again = lambda R: ours(grads([self.state], edges, R))  # noqa: E731
        once = lambda V: grads([self.state], edges, [self.look.combined(V[0])[None]])  # noqa: E731
        plain = lambda V: _numbered([None if g is None else g[0] for g in once(V)])  # noqa: E731
        if not self.look.holds(route, [U], ours(found), again, plain):
            self.look.plainer("deltas", c)
            return one_by_one([self.state], edges, [U], self.create_graph)
        return found

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
        layers = [layer for layer in self.layers if layer.fits(c) and self._holds(layer)]
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


def _route(c: int, calls: list[Call]) -> tuple[str, int, frozenset[int]]:
    """A batched pass of c probes to calls."""
    return "deltas", c, frozenset(call.at for call in calls)


def _covers(looked: Any, route: tuple[str, int, frozenset[int]]) -> bool:
    """Whether a pass that was looked at runs through all that this one does: a pass to some calls is a part of it."""
    return bool(looked[:2] == route[:2] and looked[2] >= route[2])


def _numbered(some: list[torch.Tensor | None]) -> dict[str, torch.Tensor | None]:
    return {str(i): x for i, x in enumerate(some)}


def factors(uses: list[Use], deltas: Deltas, dtype: torch.dtype, examples: slice) -> Factor:
    """The gradient of a run of examples by the parameter that is used so."""
    return merge([_factor(use, deltas[use.call], dtype, examples) for use in uses])


def _weighted(uses: list[Use], deltas: Deltas, dtype: torch.dtype, r: torch.Tensor, examples: slice) -> Factor:
    """The same, times r_b of each example."""
    return merge([_factor(use, deltas[use.call], dtype, examples, r) for use in uses])


def _factor(
    use: Use, delta: torch.Tensor, dtype: torch.dtype, examples: slice, r: torch.Tensor | None = None
) -> Factor:
    layout, rows = use.call.layout, use.call.rows
    assert layout is not None, "only calls whose layout was found are used"
    x = use.x if use.x is None else layout.arrange(use.x, rows, 0, examples)
    if x is not None and x.is_floating_point():
        x = x.to(dtype)
    d = layout.arrange(delta, rows, 1, examples)
    return use.factor(x, d if r is None else d * r[examples].reshape(-1, *(1 for _ in d.shape[2:])))


def _calls(uses: Iterable[list[Use]]) -> list[Call]:
    """The calls among uses, each once, in order."""
    return list(dict.fromkeys(use.call for some in uses for use in some))


def _unit(sizes: list[float]) -> float:
    """A power of two near the largest derivative, where its square might leave float32's range; else 1."""
    largest = max(sizes, default=0.0)
    if largest == 0 or not math.isfinite(largest) or 1 / UNSCALED <= largest <= UNSCALED:
        return 1.0
    return 2.0 ** math.frexp(largest)[1]


def _of_few(factors: Factors, few: int, examples: slice) -> Factor:
    """The factor as if there were no more examples."""
    found: Factor = factors(slice(*examples.indices(few)))
    return found


def _usable(use: Use) -> bool:
    """Whether the examples were found in it, and its input is as it was and of a size that can be squared."""
    if use.call.layout is None or (use.x is not None and use.x._version != use.version):
        return False
    if use.x is None or not use.x.is_floating_point():
        return True
    size = float(largest(use.x))
    return size == 0 or 1 / SAFE <= size <= SAFE
