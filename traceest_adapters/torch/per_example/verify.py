"""The one look at every kernel: what a route gives is compared with a plain backward pass of the model as it is.

A plain pass is one that is neither batched over probes nor mapped over examples. By linearity, and with random numbers
r_b of each example and a_i of each probe,

    Σ_b r_b Σ_i a_i J_bᵀ u_{b,i}  =  Jᵀ (r ∘ Σ_i a_i u_i):

on the left what the route gives for every example and probe, on the right one plain pass. Examples that influence each
other's derivatives, a wrong grouping, a batching rule that is wrong, a rule of ours that does not fit, or a state that
has changed: each makes the two differ. The first look, with cotangents v, is at the user's own module as it runs; what
is recorded of the copy, or made up of its layers, has to have the same derivatives. What was found holds for one batch
of one kernel and for nothing else: other values may do otherwise.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from traceest_adapters import _state as common
from traceest_adapters.torch.execution import checkpoints_off
from traceest_adapters.torch.model import Inputs, Model, Params
from traceest_adapters.torch.products import as_dense, grads, one_by_one

Grads = dict[str, torch.Tensor | None]
"""By parameters' names; None of those that the state does not depend on."""

Shapes = Callable[[list[torch.Tensor]], list[tuple[int, ...]]]

ROUNDING = 16
"""So many times the rounding of the largest gradient may be in any parameter's, which may be nothing but rounding."""


@dataclass
class Findings:
    """What was found out about one batch of one kernel, for the times when its Jacobian is made again."""

    ghost: Any = None
    """What `Ghost` knows of calls and parameters."""

    examples: str = "mapped"
    """How `PerExample` goes about it."""

    batched: dict[str, bool] = field(default_factory=dict)
    """Whether passes of a kind may take several probes at once."""

    forward: bool | None = None
    """Whether there are jvps."""

    looked: set[Any] = field(default_factory=set)
    """Routes, and how many probes they were looked at with."""

    failed: set[Any] = field(default_factory=set)
    """Short cuts that are not taken."""

    said: set[str] = field(default_factory=set)
    """Warnings that were given, once for all batches."""


class Look:
    """The comparison for one batch; `check` False: nothing is compared but the rules of ghost norms."""

    def __init__(
        self, state: torch.Tensor, params: Params, findings: Findings, reference: Reference | None, check: bool
    ) -> None:
        self.state, self.params, self.findings, self.check = state, params, findings, check
        self.eps = 0.0
        self.v, self.r = cotangents(state)
        self._of_owner: Grads = {} if reference is None else dict(reference.grads)

    # -- plain passes ----------------------------------------------------------------------------------------
    def plain(self, cotangent: torch.Tensor, names: Iterable[str]) -> Grads:
        """Jᵀ of one cotangent, (B, n_b), by the parameters named."""
        names = list(names)
        if not names or not self.state.requires_grad:
            return dict.fromkeys(names)
        leaves = [self.params[name] for name in names]
        found = torch.autograd.grad(self.state, leaves, cotangent, retain_graph=True, allow_unused=True)
        return {name: None if g is None else as_dense(g).detach() for name, g in zip(names, found, strict=True)}

    def vjp(self, U: torch.Tensor, names: Iterable[str], create_graph: bool) -> list[torch.Tensor]:
        """Jᵀu_i by each of the parameters named, (c, …): a batched pass, looked at once for each number of probes."""
        names, c = list(names), len(U)
        outputs, leaves = [self.state], [self.params[name] for name in names]
        self.confirm(names)
        if not self.state.requires_grad:
            found: list[torch.Tensor | None] = [None] * len(leaves)
        elif not self.may_batch("vjps"):
            found = one_by_one(outputs, leaves, [U], create_graph)
        else:
            found = grads(outputs, leaves, [U], create_graph)
            route = ("vjps", c, *names)
            if c > 1 and self.due(route):
                ours = lambda found: dict(zip(names, map(self.combined, found), strict=True))  # noqa: E731
                again = lambda R: ours(grads(outputs, leaves, R))  # noqa: E731
                if not self.holds(route, [U], ours(found), again, lambda V: self.plain(self.combined(V[0]), names)):
                    self.plainer("vjps", c)
                    found = one_by_one(outputs, leaves, [U], create_graph)
        return [p.new_zeros(c, *p.shape) if g is None else g for g, p in zip(found, leaves, strict=True)]

    def first(self) -> Grads:
        """Jᵀ(r ∘ v): of the user's module where there is such a pass, else of the copy."""
        missing = [name for name in self.params if name not in self._of_owner]
        return {**self.plain(self.r * self.v, missing), **self._of_owner}

    def confirm(self, names: Iterable[str]) -> None:
        """Raise unless what was recorded has the derivatives by these parameters that the user's module has."""
        left = [name for name in names if name in self._of_owner]
        if not left:
            return
        expected = {name: self._of_owner.pop(name) for name in left}
        if wrong := self.wrong(self.plain(self.r * self.v, left), expected, OTHER_KERNELS):
            raise ValueError(
                f"jacobian: by parameter {wrong[0]!r} a copy of the model has another derivative than the model as it "
                "is. Probably it uses modules or tensors that are not inside of it (in a closure, a hook, or a global "
                "variable); register these as submodules, or give a function with params=."
            )

    def settle(self, names: Iterable[str]) -> None:
        """Forget the first pass by parameters that a route was found to have as it has them."""
        for name in names:
            self._of_owner.pop(name, None)

    # -- comparisons -------------------------------------------------------------------------------------------
    def due(self, route: Any) -> bool:
        """Whether the route has still to be looked at, and there is a graph to look at it with."""
        return self.check and self.state.requires_grad and route not in self.findings.looked

    def without_graph(self) -> Look:
        """What was found, without the graph that more could be found out with."""
        other = copy(self)
        other.state = self.state.detach()
        return other

    def say(self, text: str) -> None:
        """Warn, once a kernel."""
        if text not in self.findings.said:
            self.findings.said.add(text)
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    def weights(self, c: int) -> torch.Tensor:
        """a_i of c probes."""
        random = torch.Generator().manual_seed(c)
        return (torch.rand(c, generator=random, dtype=torch.float64) + 0.5).to(self.state)

    def combined(self, x: torch.Tensor | None) -> Any:
        """Σ_i a_i x_i of (c, …); None of what there is not."""
        return None if x is None else torch.tensordot(self.weights(len(x)).to(x), x.detach(), 1)

    def holds(
        self,
        route: Any,
        U: list[torch.Tensor],
        found: Grads,
        again: Callable[[list[torch.Tensor]], Grads],
        plain: Callable[[list[torch.Tensor]], Grads],
    ) -> bool:
        """Whether what a route found for U, and makes of random numbers in its place, is what plain passes make.

        U itself is enough where it is full, its probes differ, and all that it makes is other than zero: unit vectors
        show one entry each.
        """
        expected = plain(U)
        if self.wrong(found, expected):
            return False
        if not self.is_full(U) or any(g is not None and not bool((g != 0).any()) for g in expected.values()):
            random = torch.Generator().manual_seed(len(U[0]))
            R = [torch.randn(x.shape, generator=random).to(x) for x in U]
            if self.wrong(again(R), plain(R)):
                return False
        self.findings.looked.add(route)
        return True

    def is_full(self, U: list[torch.Tensor]) -> bool:
        """Whether no number of U is zero, and its probes differ."""
        rows = [x.reshape(len(x), -1) for x in U if x.numel()]
        return all(bool((x != 0).all()) and bool((x[1:] != x[:-1]).any(1).all()) for x in rows)

    def expected(self, U: torch.Tensor, names: Iterable[str]) -> Grads:
        """Jᵀ(r ∘ Σ_i a_i u_i) for U of shape (c, B, n_b)."""
        return self.plain(self.r * self.combined(U), names)

    def wrong(self, found: Grads, expected: Grads, slack: float = 1.0) -> list[str]:
        """Names of the parameters by which the two differ, each in proportion to its own size."""
        names, ours, plain = [], [], []
        for name, g in expected.items():
            f = found[name]
            some = f if g is None else g
            if some is not None and some.numel():
                names.append(name)
                ours.append(torch.zeros_like(some).reshape(-1) if f is None else f.detach().reshape(-1))
                plain.append(torch.zeros_like(some).reshape(-1) if g is None else g.detach().reshape(-1))
        if not names:
            return []
        errors, size, other = (
            torch.stack(torch._foreach_norm(x, math.inf)).double()
            for x in (torch._foreach_sub(ours, plain), ours, plain)
        )
        size = torch.maximum(size, other)
        bound = slack * common.tolerance(self.eps) * size + ROUNDING * self.eps * size.max()
        return [name for name, fine in zip(names, (errors <= bound).tolist(), strict=True) if not fine]

    def plainer(self, kind: str, c: int) -> None:
        """Take passes of this kind with one probe at a time from now on."""
        self.findings.batched[kind] = False
        self.say(f"{WRONG_BATCHING} (with {c} probes); {ONE_BY_ONE}")

    def may_batch(self, kind: str) -> bool:
        """Whether passes of this kind take several probes at once."""
        return self.findings.batched.get(kind, True)


WRONG_BATCHING = (
    "a batched form of PyTorch's, of a function in this model's backward pass, gives another result than a plain pass"
)
OTHER_KERNELS = 8.0
"""So many times more may the user's module differ from its copy, of which recurrent layers run in other code."""

ONE_BY_ONE = "probes are taken one by one, which gives the right result more slowly."


class Reference(NamedTuple):
    """The user's own module, run once as it is: its state, (B, n_b), and Jᵀ(r ∘ v) by its parameters."""

    state: torch.Tensor
    grads: Grads
    overwrites: bool
    """Whether the run changed its inputs."""


def reference(model: Model, chosen: Params, inputs: Inputs, shapes: Shapes) -> Reference:
    """By one forward and one backward pass; `chosen` are the parameters as the user has them.

    Parameters that are not the module's, do not require grad or have hooks on their gradients are not compared.
    `shapes` looks at the state's tensors, and raises where they are none to differentiate.
    """
    if model.owner is None:
        mine = {name: p.detach().clone().requires_grad_() for name, p in chosen.items()}
    else:
        own = dict(model.owner.named_parameters(remove_duplicate=False))
        mine = {name: p for name, p in chosen.items() if p.requires_grad and _free(p) and own.get(name) is p}
    with torch.enable_grad(), checkpoints_off():
        tensors, overwrites = model.as_its_owner_runs_it(mine, inputs)
        shapes(tensors)
        state = model.as_rows(tensors)
        v, r = cotangents(state)
        grads: list[Any] = [None] * len(mine)
        if mine and state.requires_grad:
            grads = list(torch.autograd.grad(state, list(mine.values()), r * v, allow_unused=True))
    by = {name: None if g is None else as_dense(g) for name, g in zip(mine, grads, strict=True)}
    return Reference(state.detach(), by, overwrites)


def _free(p: torch.Tensor) -> bool:
    """Whether no hook changes the gradient by the parameter."""
    return not p._backward_hooks


def cotangents(state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """v, (B, n_b), and r, (B, 1), of values that differ from example to example: the same for states of one shape."""
    random = torch.Generator().manual_seed(sum(state.shape))
    v = torch.randn(state.shape, generator=random)
    r = (torch.rand(len(state), 1, generator=random) + 0.5) * (
        1 - 2 * torch.randint(2, (len(state), 1), generator=random)
    )
    return v.to(state), r.to(state)


def largest(x: torch.Tensor) -> torch.Tensor:
    """Max |x|, 0 of nothing."""
    return x.abs().max() if x.numel() else x.new_zeros(())
