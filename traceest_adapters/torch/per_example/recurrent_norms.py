"""Norms of the gradients by a recurrent layer's weights, unit by unit: quadratic forms of derivatives by states.

Whatever the probe, unit j's derivative by a gate q at step t is a number C_tqj of that step times g_tj = ∂/∂s_tj, and
the gradient's row is Σ_t C_tqj g_tj a_tᵀ, with the layer's input a. So

    Σ_q ‖row‖² = g_jᵀ N_j g_j,   N_j[t, t′] = Σ_q C_tqj C_t′qj ⟨a_t, a_t′⟩,

over both weights and both biases at once, N_j being the same for all probes: 2T² operations a unit instead of those of
all gates and inputs, and no derivative by a gate is formed.
"""

from __future__ import annotations

from functools import cached_property

import torch

from traceest_adapters.torch.per_example.bptt import worth
from traceest_adapters.torch.per_example.recorder import BatchLayout, Call, Use
from traceest_adapters.torch.per_example.rnn import Unrolled

LEAST = 2.0**-20
"""A gate's largest derivative; of smaller ones the squares might leave float32's range."""

MANY = 12
"""Probes from which on products with forms are faster with steps, and not probes, along the rows."""

LAYOUT = BatchLayout(None, 1)
"""Steps come first, then examples."""


class Units:
    """Of one recurrent layer in one direction, whose weights, `names`, are used by it alone; `calls` gave its s."""

    def __init__(self, layer: Unrolled, names: list[str], calls: list[Call], dtype: torch.dtype) -> None:
        self.layer, self.names, self.calls, self.dtype = layer, names, calls, dtype

    def fits(self, c: int) -> bool:
        """Whether with c probes more the forms are worth being made, and less work than the products.

        With a single probe, or of one gate, they are not.
        """
        T, B, gates, H = self.layer.steps.adjoint.C.shape
        if min(gates, c) == 1 or gates * (self.layer.x.shape[-1] + H) < T:
            return False
        return worth(B * len(self.calls) * H * T * T, c, self.dtype.itemsize)

    @cached_property
    def _forms(self) -> list[torch.Tensor]:
        """N_j of every example and unit, (B·H, T, T), for each part of the state."""
        w, adjoint = self.layer.weights, self.layer.steps.adjoint
        A_i, A_h = self._inner(self.layer.x, w.b_ih), self._inner(self.layer.before, w.b_hh)
        found = []
        for gates in adjoint.gates:
            by_h = adjoint.C[:, :, gates].to(self.dtype).permute(1, 3, 0, 2)  # (B, H, T, gates)
            N_h = by_h @ by_h.mT
            N_i = N_h
            if adjoint.last is not None:
                by_i = torch.cat([by_h[..., :-1], adjoint.last.to(self.dtype).permute(1, 2, 0)[..., None]], -1)
                N_i = by_i @ by_i.mT
            found.append((N_h * A_h[:, None] + N_i * A_i[:, None]).flatten(0, 1))
        return found

    def _inner(self, a: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """⟨a_t, a_t′⟩ with the one that a bias has for input, (B, T, T)."""
        a = a.detach().to(self.dtype).transpose(0, 1)
        return a @ a.mT + (bias is not None)

    def sqnorms(self, deltas: dict[Call, torch.Tensor]) -> torch.Tensor:
        """The squared norms of the gradients by all of the layer's weights, added up: (B, c).

        Of fewer examples, the first ones, where `deltas` are of these.
        """
        B, H = deltas[self.calls[0]].shape[2:]
        found = [_quadratic(N[: B * H], deltas[call]) for N, call in zip(self._forms, self.calls, strict=True)]
        return torch.stack(found).sum(0).unflatten(0, (B, -1)).sum(1)


def _quadratic(N: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """gᵀNg of every example and unit, (B·H, c), of d, (c, T, B, H)."""
    if len(d) < MANY:
        g = d.permute(2, 3, 0, 1).flatten(0, 1)  # (B·H, c, T)
        return (g @ N).mul_(g).sum(2)
    g = d.permute(2, 3, 1, 0).flatten(0, 1)  # (B·H, T, c)
    return (N @ g).mul_(g).sum(1)


def by_themselves(layer: Unrolled, uses: list[list[Use]], B: int) -> bool:
    """Whether its weights are used nowhere else, by B examples where the layer has them, and no gate is too small."""
    if layer.s[0].shape[1] != B or any(len(some) != 1 or some[0].call.layout != LAYOUT for some in uses):
        return False
    return float(layer.steps.adjoint.C.abs().max()) >= LEAST
