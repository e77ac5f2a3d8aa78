"""Per-example gradients in PyTorch: examples mapped outside, probes inside; or plainer, where that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import torch

from traceest_adapters import _memory as memory
from traceest_adapters.torch.execution import math_attention
from traceest_adapters.torch.model import Model, Params
from traceest_adapters.torch.per_example.verify import Look
from traceest_adapters.torch.products import flat, looping_quietly, one_by_one, squares

Reduce = Callable[[list[torch.Tensor]], torch.Tensor]
"""From an example's gradients, a (c, …) tensor for each parameter, to what is asked of them, (c, …)."""

PLAINER = {"mapped": "alone", "alone": "together"}
"""How examples are gone about: mapped by `torch.func.vmap`; each by itself; each by a plain pass of the whole batch."""


class PerExample:
    """J_bᵀ v_b for every example b of a batch, in the fastest of the ways that give what a plain pass does."""

    def __init__(self, model: Model, params: Params, inputs: Any, differentiable: bool, look: Look) -> None:
        self.model, self.inputs, self.differentiable, self.look = model, inputs, differentiable, look
        self.B, self.leaves = len(look.state), params
        self.params = params if differentiable else {name: p.detach() for name, p in params.items()}
        self._why = ""

    def without_graph(self) -> PerExample:
        """The same for later, without the graph of the batch, unless that is the only way."""
        if self.look.findings.examples == "together":
            return self
        other = copy(self)
        other.look = self.look.without_graph()
        return other

    def states(self) -> torch.Tensor:
        """The state of every example computed by itself, (B, n_b)."""

        def mapped(example: Any) -> torch.Tensor:  # inside vjp, where recurrent layers take the form that can be mapped
            return torch.func.vjp(lambda p: self.model.row(p, example), self.params)[0]

        if self.look.findings.examples == "mapped" and self.model.batch_axis is not None:
            try:
                with math_attention(), torch.no_grad(), looping_quietly():
                    return torch.func.vmap(mapped, in_dims=(self.model.axes(self.inputs),))(self.inputs)
            except Exception as error:  # of any kind; what is wrong with the model itself is raised again below
                self._go_plainer(error)
        return torch.stack([self._row(b).detach() for b in range(self.B)])

    def sqnorms(self, U: torch.Tensor, names: list[str]) -> torch.Tensor:
        """‖J_bᵀ u_{b,i}‖² over the parameters named, for U of shape (c, B, n_b): (B, c)."""
        return self._reduced(names, squares, U)

    def grads(self, U: torch.Tensor, names: list[str]) -> torch.Tensor:
        """J_bᵀ u_{b,i} with respect to the parameters named, (B, c, P_names)."""
        return self._reduced(names, flat, U)

    def _reduced(self, names: list[str], reduce: Reduce, U: torch.Tensor) -> torch.Tensor:
        """`reduce` of each example's gradients by `names`, in a way that agrees with a plain pass."""
        self.look.confirm(names)
        while True:
            way = self.look.findings.examples if self.model.batch_axis is not None else "together"
            try:
                with math_attention(), torch.set_grad_enabled(self.differentiable):
                    found, total = self._by(way)(names, reduce, U)
            except Exception as error:  # of any kind; what is wrong with the model itself is raised by the next
                if way == "together":
                    raise
                self._go_plainer(error)
                continue
            if way == "together" or self._holds(way, names, U, total, reduce):
                if self._why:
                    self.look.say(f"{self._why}, which gives the same result more slowly.")
                    self._why = ""
                return found
            self._go_plainer(None)

    def _holds(self, way: str, names: list[str], U: torch.Tensor, total: torch.Tensor | None, reduce: Reduce) -> bool:
        """Whether Σ_b r_b Σ_i a_i J_bᵀ u_{b,i}, `total`, is what a plain pass over the batch has for it."""
        route = (way, len(U), *names)
        if not self.look.due(route) or total is None:
            return True
        sizes = [self.params[name].numel() for name in names]
        ours = lambda total: dict(zip(names, total.split(sizes), strict=True))  # noqa: E731

        def again(R: list[torch.Tensor]) -> Any:
            with math_attention(), torch.set_grad_enabled(self.differentiable):
                return ours(self._by(way)(names, reduce, R[0])[1])

        return self.look.holds(route, [U], ours(total), again, lambda V: self.look.expected(V[0], names))

    def _go_plainer(self, error: Exception | None) -> None:
        if error is not None and memory.ran_out(error):
            raise error
        way = self.look.findings.examples
        self.look.findings.examples = PLAINER[way]
        if error is not None:
            said = str(error).strip().splitlines()
            reason = said[0] if said else type(error).__name__
        else:
            reason = "mapped, gradients differ from those of a plain pass, which is right"
        if way == "mapped":
            self._why = (
                f"this model cannot be mapped over examples by torch.func.vmap ({reason}); they are taken one by one"
            )
        else:
            self._why = (
                f"an example by itself has other gradients than in the batch ({reason}); each is taken by a pass over "
                "the whole batch"
            )

    # -- three ways, each with the combination that is looked at -------------------------------------------------
    def _by(self, way: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
        return {"mapped": self._mapped, "alone": self._alone, "together": self._together}[way]

    def _mapped(self, names: list[str], reduce: Reduce, U: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        fixed = {name: p for name, p in self.params.items() if name not in names}
        chosen = {name: self.params[name] for name in names}
        due, a = self.look.due(("mapped", len(U), *names)), self.look.weights(len(U))

        def mapped(example: Any, u: torch.Tensor) -> Any:
            row, pullback = torch.func.vjp(lambda p: self.model.row({**fixed, **p}, example), chosen)
            by = torch.func.vmap(lambda v: pullback(v)[0])(u)
            g = [by[name] for name in names]
            if any(x.shape != (len(u), *chosen[name].shape) for name, x in zip(names, g, strict=True)):
                raise RuntimeError("mapped, a gradient has another shape")
            # What the model closes over may have changed since: its state is looked at each time.
            return reduce(g), row, _total(a, g) if due else u.new_zeros(())

        size = (len(U) + due) * sum(p.numel() for p in chosen.values())
        at_once = max(1, min(self.B, memory.budget() // (4 * size))) if size else self.B
        axes = (self.model.axes(self.inputs), 0)
        parts, total, r = [], None, self.look.r[:, 0]
        for b in range(0, self.B, at_once):
            some = slice(b, min(b + at_once, self.B))
            with looping_quietly():
                part, row, weighted = torch.func.vmap(mapped, in_dims=axes)(
                    self.model.examples(self.inputs, some), U[:, some].transpose(0, 1)
                )
            if self.look.check and not self._as_before(row.detach(), self.look.state[some].detach()):
                raise RuntimeError("the state of an example by itself is not what it was in the batch")
            if due:
                more = torch.tensordot(r[some].to(weighted), weighted.detach(), 1)
                total = more if total is None else total + more
            parts.append(part)
        return torch.cat(parts), total

    def _alone(self, names: list[str], reduce: Reduce, U: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        leaves, a = [self.leaves[name] for name in names], self.look.weights(len(U))
        found, total = [], None
        for b in range(self.B):
            row = self._row(b)
            if self.look.check and not self._as_before(row.detach(), self.look.state[b].detach()):
                raise RuntimeError("its state is not what it was in the batch")
            g = self._plain(row, leaves, U[:, b])
            more = self.look.r[b, 0] * _total(a, [x.detach() for x in g])
            total = more if total is None else total + more
            found.append(reduce(g))
        return torch.stack(found), total

    def _together(self, names: list[str], reduce: Reduce, U: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        leaves = [self.leaves[name] for name in names]
        if self.B == 1:
            return reduce(self.look.vjp(U, names, self.differentiable))[None], None
        found = []
        for b in range(self.B):
            only = torch.zeros_like(U)
            only[:, b] = U[:, b]
            found.append(reduce(self._plain(self.look.state, leaves, only)))
        return torch.stack(found), None

    def _plain(self, state: torch.Tensor, leaves: list[torch.Tensor], U: torch.Tensor) -> list[torch.Tensor]:
        by = one_by_one([state], leaves, [U], self.differentiable) if state.requires_grad else [None] * len(leaves)
        return [p.new_zeros(len(U), *p.shape) if g is None else g for g, p in zip(by, leaves, strict=True)]

    def _row(self, b: int) -> torch.Tensor:
        with math_attention(), torch.enable_grad():
            return self.model.row(self.leaves, self.model.example(self.inputs, b))

    def _as_before(self, alone: torch.Tensor, together: torch.Tensor) -> bool:
        return alone.shape == together.shape and not self.look.wrong({"": alone}, {"": together})


def _total(a: torch.Tensor, g: list[torch.Tensor]) -> torch.Tensor:
    """Σ_i a_i g_i of (c, …) tensors, flat."""
    return torch.cat([torch.tensordot(a.to(x.dtype), x, 1).reshape(-1) for x in g])
