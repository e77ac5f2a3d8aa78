"""Recurrent layers as a forward pass is recorded: their weights in products that are seen, out of the time loop.

A layer is run as it is, without a graph. Its states being known, the products with its weights are made once more
for all time steps together, as two calls of `F.linear`, and functions of the two give the states again:

    gⁱ = x W_ihᵀ + b_ih,   gʰ = h₍₋₁₎ W_hhᵀ + b_hh,   h = loop(cells(gⁱ, gʰ)),

where h₍₋₁₎, the states one step before, are taken for constants. What they contribute to the derivative is in that of
`loop`. So the derivatives by gⁱ and gʰ are those by the outputs of two dense layers with T positions, and weights have
theirs, or their ghost norms, from one product each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from traceest_adapters.torch.per_example.bptt import Adjoint, State, Steps, cells, loop


class Weights(NamedTuple):
    """Of one layer in one direction."""

    ih: torch.Tensor
    hh: torch.Tensor
    b_ih: torch.Tensor | None = None
    b_hh: torch.Tensor | None = None


# -- cells: a step, and its adjoint -----------------------------------------------------------------------
def _gru(gi: torch.Tensor, gh: torch.Tensor, state: State) -> State:
    (r, z, n), (r_h, z_h, n_h) = gi.chunk(3, -1), gh.chunk(3, -1)
    z, n = torch.sigmoid(z + z_h), torch.tanh(n + torch.sigmoid(r + r_h) * n_h)
    return (n + z * (state[0] - n),)


def _gru_adjoint(gi: torch.Tensor, gh: torch.Tensor, before: State, after: State) -> Adjoint:
    (r, z, n), (r_h, z_h, n_h) = gi.chunk(3, -1), gh.chunk(3, -1)
    r, z = torch.sigmoid(r + r_h), torch.sigmoid(z + z_h)
    n = torch.tanh(n + r * n_h)
    by_n = (1 - z) * (1 - n * n)
    C = torch.stack([by_n * n_h * r * (1 - r), (before[0] - n) * z * (1 - z), by_n * r], -2)
    return Adjoint(C, keep=z, last=by_n)


def _lstm(gi: torch.Tensor, gh: torch.Tensor, state: State) -> State:
    i, f, g, o = (gi + gh).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _lstm_adjoint(gi: torch.Tensor, gh: torch.Tensor, before: State, after: State) -> Adjoint:
    i, f, g, o = (gi + gh).chunk(4, -1)
    i, f, g, o, c = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid(), after[1].tanh()
    C = torch.stack([g * i * (1 - i), before[1] * f * (1 - f), i * (1 - g * g), c * o * (1 - o)], -2)
    return Adjoint(C, keep=f, along=o * (1 - c * c))


def _tanh(gi: torch.Tensor, gh: torch.Tensor, state: State) -> State:
    return (torch.tanh(gi + gh),)


def _tanh_adjoint(gi: torch.Tensor, gh: torch.Tensor, before: State, after: State) -> Adjoint:
    return Adjoint((1 - after[0].square())[..., None, :])


def _relu(gi: torch.Tensor, gh: torch.Tensor, state: State) -> State:
    return (torch.relu(gi + gh),)


def _relu_adjoint(gi: torch.Tensor, gh: torch.Tensor, before: State, after: State) -> Adjoint:
    return Adjoint((after[0] > 0).to(gi.dtype)[..., None, :])


class RecurrentCell(NamedTuple):
    """h = step(gⁱ, gʰ, state), the adjoint of a step, and PyTorch's function that runs a whole layer of it."""

    step: Callable[[torch.Tensor, torch.Tensor, State], State]
    adjoint: Callable[[torch.Tensor, torch.Tensor, State, State], Adjoint]
    layer: Callable[..., Any]
    gates: int


GRU = RecurrentCell(_gru, _gru_adjoint, torch.gru, 3)
LSTM = RecurrentCell(_lstm, _lstm_adjoint, torch.lstm, 4)
TANH, RELU = (
    RecurrentCell(_tanh, _tanh_adjoint, torch.rnn_tanh, 1),
    RecurrentCell(_relu, _relu_adjoint, torch.rnn_relu, 1),
)


class Unrolled(NamedTuple):
    """A layer as it was run: its steps, what both of its products were made of, and s of each part of its states."""

    steps: Steps
    x: torch.Tensor
    before: torch.Tensor
    weights: Weights
    s: State


Note = Callable[[Unrolled], None]


# -- a layer ------------------------------------------------------------------------------------------------
def _run(cell: RecurrentCell, x: torch.Tensor, start: State, w: Weights, note: Note) -> State:
    """Every state of one layer in one direction: (T, B, H)."""
    with torch.no_grad():
        hx = start if cell is LSTM else start[0]
        h = cell.layer(x, hx, [p for p in w if p is not None], w.b_ih is not None, 1, 0.0, False, False, False)[0]
        before = torch.cat([start[0][:1], h[:-1]])
    gi, gh = F.linear(x, w.ih, w.b_ih), F.linear(before, w.hh, w.b_hh)
    with torch.no_grad():
        after = (h, _memory(gi, gh, start[1])) if cell is LSTM else (h,)
        memory_before = (torch.cat([s[:1], a[:-1]]) for s, a in zip(start[1:], after[1:], strict=True))
        steps = Steps(w.hh.detach(), cell.adjoint(gi, gh, (before, *memory_before), after))
    s = cells(steps, gi, gh, after)
    note(Unrolled(steps, x, before, w, s))
    return loop(steps, s, start)


def _memory(gi: torch.Tensor, gh: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Every c of an LSTM, which PyTorch gives the last of."""
    i, f, g, _ = (gi + gh).chunk(4, -1)
    found = [start[0]]
    for f_t, new in zip(f.sigmoid(), i.sigmoid() * g.tanh(), strict=True):
        found.append(torch.addcmul(new, f_t, found[-1]))
    return torch.stack(found[1:])


def _run_by_steps(cell: RecurrentCell, x: torch.Tensor, start: State, w: Weights, note: Note) -> State:
    """The same from plain functions, which can be differentiated any number of times."""
    gi, state, found = F.linear(x, w.ih, w.b_ih), tuple(s[0] for s in start), []
    for gi_t in gi:
        state = cell.step(gi_t, F.linear(state[0], w.hh, w.b_hh), state)
        found.append(state)
    return tuple(torch.stack(s) for s in zip(*found, strict=True))


# -- PyTorch's functions --------------------------------------------------------------------------------------
def recurrent(func: Any, with_graph: bool, note: Note) -> Callable[..., Any] | None:
    """A function that does what the recurrent function `func` does, in calls that are understood, if there is one.

    It gives None for what it leaves to `func`, and notes the layers that it runs. With a graph it is made of products
    that can be differentiated again, and nothing is noted.
    """
    if func in _LAYERS:
        cell, run = _LAYERS[func], partial(_run_by_steps if with_graph else _run, note=note)
        return lambda *args: _layers(cell, run, *args)
    if func in _CELLS:
        return lambda *args: _one_step(_CELLS[func], *args)
    return None


_LAYERS = {cell.layer: cell for cell in (GRU, LSTM, TANH, RELU)}
_CELLS = {torch.gru_cell: GRU, torch.lstm_cell: LSTM, torch.rnn_tanh_cell: TANH, torch.rnn_relu_cell: RELU}


def _layers(
    cell: RecurrentCell,
    run: Callable[[RecurrentCell, torch.Tensor, State, Weights], State],
    x: torch.Tensor,
    hx: Any,
    params: Any,
    has_biases: bool,
    num_layers: int,
    dropout: Any = 0.0,
    train: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
) -> Any:
    """Every layer and direction of a whole recurrent module."""
    if not isinstance(has_biases, bool) or (train and dropout):
        return None  # packed sequences, whose arguments are others, and dropout between layers
    start = tuple(hx) if cell is LSTM else (hx,)
    if params[1].shape != (cell.gates * start[0].shape[-1], start[0].shape[-1]):
        return None  # projections of an LSTM's states
    each, directions = 4 if has_biases else 2, 2 if bidirectional else 1
    if len(params) != each * num_layers * directions or not _needs_graph(x, *start, *params):
        return None
    x, ends = x.transpose(0, 1) if batch_first else x, []
    for layer in range(num_layers):
        both = []
        for direction in range(directions):
            i = layer * directions + direction
            turned = (lambda y: y.flip(0)) if direction else (lambda y: y)
            states = run(cell, turned(x), tuple(s[i : i + 1] for s in start), Weights(*params[each * i :][:each]))
            ends.append([s[-1] for s in states])
            both.append(turned(states[0]))
        x = torch.cat(both, -1) if bidirectional else both[0]
    return (x.transpose(0, 1) if batch_first else x, *(torch.stack(s) for s in zip(*ends, strict=True)))


def _one_step(
    cell: RecurrentCell,
    x: torch.Tensor,
    hx: Any,
    w_ih: torch.Tensor,
    w_hh: torch.Tensor,
    b_ih: torch.Tensor | None = None,
    b_hh: torch.Tensor | None = None,
) -> Any:
    """One step of one layer."""
    state = tuple(hx) if cell is LSTM else (hx,)
    if not _needs_graph(x, *state, w_ih, w_hh, b_ih, b_hh):
        return None
    found = cell.step(F.linear(x, w_ih, b_ih), F.linear(state[0], w_hh, b_hh), state)
    return found if cell is LSTM else found[0]


def _needs_graph(*tensors: Any) -> bool:
    return torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in tensors)
