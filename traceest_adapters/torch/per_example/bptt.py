"""Back through the steps of a recurrent layer, for all probes at once.

A layer is taken apart into what a step makes of gⁱ_t and gʰ_t, the state before it being constant (`cells`,
element-wise, for all steps together), and how the states depend on those before (`loop`, which changes no values):

    s_t = cell(gⁱ_t, gʰ_t, h₍t−1₎),   ∂/∂s₍t−1₎ = ∂/∂h₍t−1₎ + P_tᵀ ∂/∂s_t.

P_t, of an example and a step, is no larger than W_hh. With several gates and more than a few probes it is made once,
and a step is a product with it; with few, or where all of them would take too much room, a step is a product with W_hh
and a few element-wise ones.

What goes back is linear in ∂/∂h, and its transpose goes forward: ḣ_t = ṡ_t + P_t ḣ₍t−1₎, ṡ being what the steps make of
ġⁱ and ġʰ. So the derivative of a vjp by its cotangent, which is a jvp, is as little work.

References: Werbos (1990), backpropagation through time.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import torch

from traceest_adapters import _memory as memory

State = tuple[torch.Tensor, ...]
"""h, or of an LSTM h and c."""

WORTH = 2**20
"""Numbers that are worth making, and holding, for each probe whose pass is the faster for them."""

LATER = 3
"""Probes that are expected to follow those of a pass of several. Those that did are not counted: equal products are to
be the same to the last bit, however often they are asked for."""


class Adjoint(NamedTuple):
    """What the adjoint of a step is made of, a value a time step: (T, B, …).

    With d = ∂/∂h and, of an LSTM, e = ∂/∂c + along ∘ d: ∂/∂gʰ = C ∘ d for each gate (of an LSTM, of the last one only:
    for the others C ∘ e); ∂/∂gⁱ is the same but for the last gate of a GRU, where it is `last` ∘ d. What the step
    before gets is keep ∘ d (keep ∘ e of c), and ∂/∂gʰ W_hh.
    """

    C: torch.Tensor  # (T, B, gates, H)
    keep: torch.Tensor | None = None
    last: torch.Tensor | None = None
    along: torch.Tensor | None = None

    @property
    def gates(self) -> list[slice]:
        """Those whose derivatives are made of d and, of an LSTM, those that are made of e."""
        return [slice(None)] if self.along is None else [slice(-1, None), slice(-1)]


def worth(numbers: int, c: int, itemsize: int) -> bool:
    """Whether so many numbers, made and held once, are few enough for passes of c probes."""
    return c > 1 and numbers <= WORTH * (c + LATER) and numbers * itemsize <= memory.budget() // 4


class Steps:
    """All steps of one layer in one direction."""

    def __init__(self, W: torch.Tensor, adjoint: Adjoint) -> None:
        self.W, self.adjoint = W, adjoint

    def by_states(self, d: list[torch.Tensor]) -> State:
        """(c, T, B, H) by the states → by s, (c, T, B, H), and by the first state, (c, B, H)."""
        back = self._back_by_transitions if self._are_worth_transitions(d) else self._back_by_gates
        return back(d)

    @cached_property
    def transitions(self) -> torch.Tensor:
        """Every P_t: (T, B, H, H), of an LSTM (T, B, 2H, H)."""
        C, keep, _, along = self.adjoint
        W = self.W.unflatten(0, C.shape[-2:])
        P = torch.cat([torch.einsum("tbqj,qji->tbji", C[:, :, some], W[some]) for some in self.adjoint.gates], -2)
        if keep is not None and along is None:
            P.diagonal(dim1=-2, dim2=-1).add_(keep)
        return P

    def _back_by_transitions(self, d: list[torch.Tensor]) -> State:
        """In memory steps come first, and probes after examples, so that each step is one product an example."""
        _, keep, _, along = self.adjoint
        P, H = self.transitions, d[0].shape[-1]
        found = _steps_first(d)
        start = found.new_zeros(found.shape[1:])
        steps, of_h = [start, *found.unbind()], [start[..., :H], *found[..., :H].unbind()]
        for t, P_t in reversed(list(enumerate(P.unbind()))):
            if along is not None:
                steps[t + 1][..., H:].addcmul_(of_h[t + 1], along[t, :, None])
            of_h[t].baddbmm_(steps[t + 1], P_t)
            if along is not None and keep is not None:
                steps[t][..., H:].addcmul_(steps[t + 1][..., H:], keep[t, :, None])
        return *_probes_first(found, H), *(x.transpose(0, 1) for x in start.split(H, -1))

    def _back_by_gates(self, d: list[torch.Tensor]) -> State:
        """In memory examples come before time, as `by_gates` wants them."""
        C, keep, _, along = self.adjoint
        (c, T, B, H), gates = d[0].shape, C.shape[-2]
        found = [x.transpose(1, 2).clone(memory_format=torch.contiguous_format) for x in d]
        start = [x.new_zeros(c, B, H) for x in d]
        steps = [[zero, *x.unbind(2)] for zero, x in zip(start, found, strict=True)]
        rows = [start[0].view(c * B, H), *found[0].view(c * B, T, H).unbind(1)]
        g = d[0].new_empty(c, B, gates, H)
        parts = [(g[:, :, some], C[:, :, some].unbind()) for some in self.adjoint.gates]
        for t in reversed(range(T)):
            now = [x[t + 1] for x in steps]  # what comes from later steps was added
            if along is not None:
                now[1].addcmul_(now[0], along[t])
            for x, (by, C_t) in zip(now, parts, strict=True):
                torch.mul(x[:, :, None], C_t[t], out=by)
            rows[t].addmm_(g.view(c * B, gates * H), self.W)
            if keep is not None:
                steps[-1][t].addcmul_(now[-1], keep[t])
        return *(x.transpose(1, 2) for x in found), *start

    def of_states(self, v: list[torch.Tensor]) -> State:
        """The transpose of `by_states`: ṡ, (c, T, B, H), and the first ḣ, (c, B, H), of each part → ḣ, (c, T, B, H)."""
        v, start = v[: len(v) // 2], v[len(v) // 2 :]
        forward = self._forward_by_transitions if self._are_worth_transitions(v) else self._forward_by_gates
        return forward(v, start)

    def _are_worth_transitions(self, parts: list[torch.Tensor]) -> bool:
        (T, B, gates, H), c = self.adjoint.C.shape, len(parts[0])
        return min(gates, c) > 1 and worth(T * B * len(parts) * H * H, c, self.W.itemsize)

    def _forward_by_transitions(self, v: list[torch.Tensor], start: list[torch.Tensor]) -> State:
        _, keep, _, along = self.adjoint
        P, H = self.transitions, v[0].shape[-1]
        found = _steps_first(v)
        before = torch.cat([x.transpose(0, 1) for x in start], -1)
        for t, (now, P_t) in enumerate(zip(found.unbind(), P.unbind(), strict=True)):
            now.baddbmm_(before[..., :H], P_t.mT)
            if along is not None and keep is not None:
                now[..., H:].addcmul_(before[..., H:], keep[t, :, None])
                now[..., :H].addcmul_(now[..., H:], along[t, :, None])
            before = now
        return _probes_first(found, H)

    def _forward_by_gates(self, v: list[torch.Tensor], before: list[torch.Tensor]) -> State:
        C, keep, _, along = self.adjoint
        (c, T, B, H), gates = v[0].shape, C.shape[-2]
        found = [x.transpose(1, 2).clone(memory_format=torch.contiguous_format) for x in v]
        for t in range(T):
            now = [x[:, :, t] for x in found]
            g = (before[0].reshape(c * B, H) @ self.W.T).view(c, B, gates, H)
            for x, some in zip(now, self.adjoint.gates, strict=True):
                x.add_((g[:, :, some] * C[t, :, some]).sum(2))
            if keep is not None:
                now[-1].addcmul_(before[-1], keep[t])
            if along is not None:
                now[0].addcmul_(now[1], along[t])
            before = now
        return tuple(x.transpose(1, 2) for x in found)

    def by_gates(self, d: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(c, T, B, H) by s → by gⁱ and by gʰ, (c, T, B, gates · H). In memory examples come before time."""
        (C, _, last, _), (c, T, B, H) = self.adjoint, d[0].shape
        by_s = [x.transpose(1, 2).contiguous() for x in d]
        by_h = d[0].new_empty(c, B, T, C.shape[-2], H)
        for x, some in zip(by_s, self.adjoint.gates, strict=True):
            torch.mul(x[:, :, :, None], C[:, :, some].transpose(0, 1), out=by_h[:, :, :, some])
        by_i = by_h
        if last is not None:
            by_i = by_h.clone()
            torch.mul(by_s[0], last.transpose(0, 1), out=by_i[..., -1, :])
        return by_i.flatten(-2).transpose(1, 2), by_h.flatten(-2).transpose(1, 2)

    def of_gates(self, v: list[torch.Tensor]) -> State:
        """The transpose of `by_gates`: ġⁱ and ġʰ, (c, T, B, gates · H) → ṡ, (c, T, B, H) of each part."""
        C, _, last, _ = self.adjoint
        by_i, by_h = (x.unflatten(-1, C.shape[-2:]) for x in v)
        every, found = range(C.shape[-2]), []
        for some in self.adjoint.gates:
            found.append(by_h.new_zeros(*by_h.shape[:3], C.shape[-1]))
            for q in every[some]:
                found[-1].addcmul_(by_h[..., q, :], C[:, :, q])
                found[-1].addcmul_(by_i[..., q, :], C[:, :, q] if last is None or q < every[-1] else last)
        return tuple(found)


def _steps_first(parts: list[torch.Tensor]) -> torch.Tensor:
    """(c, T, B, H) each → (T, B, c, parts · H), a copy."""
    return torch.cat([x.permute(1, 2, 0, 3) for x in parts], -1)


def _probes_first(x: torch.Tensor, H: int) -> State:
    """(T, B, c, parts · H) → (c, T, B, H) each."""
    return tuple(part.permute(2, 0, 1, 3) for part in x.split(H, -1))


def cells(steps: Steps, gi: torch.Tensor, gh: torch.Tensor, states: State) -> State:
    """The states that a layer is known to have, as functions of gⁱ and gʰ, each of its own step's."""
    found = _Cells.apply(steps, gi, gh, *states)
    return found if isinstance(found, tuple) else (found,)


def loop(steps: Steps, s: State, start: State) -> State:
    """The same states, as functions of all that came before; `start` is (1, B, H)."""
    found = _Loop.apply(steps, len(s), *s, *start)
    return found if isinstance(found, tuple) else (found,)


class _Cells(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, steps: Steps, gi: torch.Tensor, gh: torch.Tensor, *states: torch.Tensor) -> Any:
        ctx.steps = steps
        return _one_or_all(tuple(s.clone() for s in states))

    @staticmethod
    def backward(ctx: Any, *d: torch.Tensor) -> Any:
        steps = ctx.steps
        return None, *_Linear.apply(steps.by_gates, steps.of_gates, *d), *(None for _ in d)


class _Loop(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, steps: Steps, parts: int, *states: torch.Tensor) -> Any:
        ctx.steps = steps
        return _one_or_all(tuple(s.clone() for s in states[:parts]))

    @staticmethod
    def backward(ctx: Any, *d: torch.Tensor) -> Any:
        found = _Linear.apply(ctx.steps.by_states, ctx.steps.of_states, *d)
        return None, None, *found[: len(d)], *(g[None] for g in found[len(d) :])


class _Linear(torch.autograd.Function):  # type: ignore[misc]
    """A linear function of lists of (c, …), which maps over probes by having them along that axis, and its transpose.

    It is differentiated by what it is given alone: the values at which the steps were taken are constants.
    """

    @staticmethod
    def forward(f: Any, transposed: Any, *d: torch.Tensor) -> Any:
        return tuple(x[0] for x in f([x[None] for x in d]))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing but the functions is kept."""
        ctx.functions = inputs[:2]

    @staticmethod
    def backward(ctx: Any, *v: torch.Tensor) -> Any:
        f, transposed = ctx.functions
        return None, None, *_Linear.apply(transposed, f, *v)

    @staticmethod
    def vmap(info: Any, dims: Any, f: Any, transposed: Any, *d: torch.Tensor) -> Any:
        probes = [
            x.expand(info.batch_size, *x.shape) if i is None else x.movedim(i, 0)
            for x, i in zip(d, dims[2:], strict=True)
        ]
        found = f(probes)
        return found, tuple(0 for _ in found)


def _one_or_all(states: State) -> Any:
    return states[0] if len(states) == 1 else states
