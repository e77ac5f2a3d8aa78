"""The Jacobian of a PyTorch model as an operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cached_property, partial, reduce
from itertools import chain
from typing import Any

import torch

import traceest as te
from traceest._names import Names
from traceest_adapters import _memory as memory
from traceest_adapters import _state as common
from traceest_adapters.torch.constants import Source
from traceest_adapters.torch.execution import in_full, math_attention
from traceest_adapters.torch.model import Model, Params
from traceest_adapters.torch.per_example.ghost_norms import Ghost
from traceest_adapters.torch.per_example.mapped import PerExample
from traceest_adapters.torch.per_example.recorder import Recorder, recording
from traceest_adapters.torch.per_example.sketch import Sketch
from traceest_adapters.torch.per_example.verify import Findings, Look, Reference, Shapes
from traceest_adapters.torch.products import CACHE, MOST, as_dense, pairs, squares, vjp


class TorchJacobian(te.Operator):
    """The Jacobian of a state with respect to parameters, (n, P), by vjps and jvps; see `jacobian`."""

    source: Source = Source()
    """What products depend on outside of the graph."""

    _no_forward = ""

    def __init__(
        self,
        model: Model,
        params: Params,
        inputs: Any,
        chunk_size: int | None = None,
        memory_budget: int | None = None,
        differentiable: bool = False,
        check: bool = True,
        shapes: Shapes | None = None,
        first: Reference | None = None,
        findings: Findings | None = None,
    ) -> None:
        self.model, self.inputs, self.differentiable = model, inputs, differentiable
        self.params, self._shapes = params, shapes
        self.memory_budget = memory.given(memory_budget)
        state = self._state.detach()
        dtype = reduce(torch.promote_types, [x.dtype for x in (state, *params.values())], torch.float32)
        self._look = Look(self._state, params, findings or Findings(), first, check)
        self.eps = self._look.eps = max(model.eps(self.params, state), self._recorded[1].eps)
        n, P = state.numel(), sum(p.numel() for p in params.values())
        like = torch.empty(0, dtype=dtype, device=state.device)
        super().__init__(
            (n, P),
            like=like,
            n_blocks=None if model.batch_axis is None else len(state),
            parameters=Names(self.params, self.params.values()),
            name="TorchJacobian",
        )
        self._chunk_asked = chunk_size
        self.chunk_size = self._to_a_pass(list(self.params), 1) if chunk_size is None else chunk_size
        self._examples = PerExample(model, self.params, inputs, differentiable, self._look)

    # -- linearisations: computed once, used by every probe -----------------------------------------
    @cached_property
    def _recorded(self) -> tuple[torch.Tensor, Recorder]:
        """One forward pass over the whole batch, and what was seen in it."""
        plain = math_attention() if self.differentiable else nullcontext()
        with torch.enable_grad(), plain, recording(self.params, self.differentiable) as recorder:
            tensors = self.model.tensors(self.params, self.inputs)
            if self._shapes is not None:
                self.shapes = self._shapes(tensors)
            return self.model.as_rows(tensors), recorder

    def _to_a_pass(self, names: list[str], examples: int) -> int:
        """Probes to a pass, each of which makes so many examples' gradients by the parameters named."""
        sizes = [examples * p.numel() * self.dtype.itemsize for p in map(self.params.__getitem__, names)]
        state = self._recorded[1].largest
        with memory.within(self.memory_budget):
            return memory.probes_to_a_pass(sum(sizes) + 4 * state, max(state, *sizes), CACHE, MOST)

    @property
    def chunk_columns(self) -> int | None:
        """How many columns to ask for at a time; None: as many as fit, which is what accelerators are good at."""
        if self._state.device.type != "cpu":
            return None
        return memory.columns(self.shape[0] * self.dtype.itemsize, self._chunk_asked or MOST)

    @property
    def _state(self) -> torch.Tensor:
        """The state, (B, n_b), with the graph that every vjp runs through backwards."""
        return self._recorded[0]

    @cached_property
    def _ghost(self) -> Ghost:
        """The parameters whose per-example gradients need not be formed."""
        state, recorder = self._recorded
        how = self.dtype, self._chunk_asked, self.differentiable
        return Ghost(state, recorder, self.params, *how, self._look, self.__dict__.pop("_asked", None))

    def _ghost_for(self, U: torch.Tensor) -> Ghost:
        """The same, to be used with cotangents U: on first use, one look is at both."""
        if "_ghost" not in self.__dict__:
            self._asked = U
        return self._ghost

    @cached_property
    @in_full
    def _transposed(self) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """A cotangent u and, for each parameter, Jᵀu with a graph in u.

        Since Jᵀu is linear in u, a vjp through it is a jvp. It is a linearisation that serves all probes and needs no
        forward-mode rules; recurrent layers take all steps of either at once. Attention takes its plain form: the fused
        one has no second derivative.
        """
        with torch.enable_grad(), math_attention(), recording(self.params, self.differentiable):
            state = self.model.rows(self.params, self.inputs)
            if self._look.check:
                self._same_state(state.detach())
            u = torch.zeros_like(state, requires_grad=True)
            grads = torch.autograd.grad(state, list(self.params.values()), u, create_graph=True, allow_unused=True)
        return u, {i: as_dense(g) for i, g in enumerate(grads) if g is not None and g.requires_grad}

    def confirm(self) -> None:
        """Raise unless the copy of the model has the derivatives that the model as it is has."""
        self._look.confirm(self.params)

    def _same_state(self, now: torch.Tensor) -> None:
        """Raise unless the model, run again, gives the state that the operator is of."""
        if self._look.wrong({"": now}, {"": self._state.detach()}):
            raise ValueError(
                "jacobian: the model gives another state than when this operator was made; something that it uses and "
                "that is not inside of it (a closure, a global variable) has changed. Make the operator anew."
            )

    @property
    def _has_forward(self) -> bool:
        findings = self._look.findings
        if findings.forward is None:
            findings.forward = self._try_forward()
        return findings.forward

    @in_full
    def _try_forward(self) -> bool:
        """Whether the model's backward pass can itself be differentiated, tried on ⟨v, Jw⟩ = ⟨Jᵀv, w⟩.

        Seeing it run is not enough: a function that is differentiable once cuts its branch off without a word.
        """
        random = torch.Generator(self.device).manual_seed(0)
        v, w = (torch.randn(n, 1, generator=random, dtype=self.dtype, device=self.device) for n in self.shape)
        try:
            if not self._transposed[1]:
                return False
            Jw = self._matmat(w)
        except Exception as error:  # whatever a backward pass written by hand says
            if memory.ran_out(error):
                raise
            self._no_forward = f": {error}"
            return False
        Jv = self.rmatmat(v)
        forms = (v * Jw).sum(), (Jv * w).sum()
        scale = float(v.norm() * Jw.detach().norm() + Jv.detach().norm() * w.norm())
        if not abs(float((forms[0] - forms[1]).detach())) <= common.tolerance(self.eps) * scale:  # NaN, too, is a no
            return False
        return not self.differentiable or self._derivatives_agree(*forms)

    def _derivatives_agree(self, forward: torch.Tensor, reverse: torch.Tensor) -> bool:
        """Whether ⟨v, Jw⟩ and ⟨Jᵀv, w⟩ have the same derivative by the parameters: a third one, which some lack.

        PyTorch's layer norm takes its mean and variance for constants in its second derivative.
        """

        def derivative(form: torch.Tensor) -> torch.Tensor:
            if not form.requires_grad:  # J does not depend on the parameters
                return torch.zeros((), dtype=form.dtype, device=form.device)
            leaves = list(self.params.values())
            grads = torch.autograd.grad(form, leaves, retain_graph=True, materialize_grads=True)
            return torch.cat([g.reshape(-1) for g in grads])

        f, r = derivative(forward), derivative(reverse)
        return float((f - r).norm()) <= common.tolerance(self.eps) * float(f.norm() + r.norm())

    # -- products -----------------------------------------------------------------------------------
    @memory.recovering
    @in_full
    def rmatmat(self, V: torch.Tensor) -> torch.Tensor:
        """Jᵀ V: (n, k) → (P, k), a vjp a column."""
        out = torch.empty(V.shape[1], self.shape[1], dtype=self.dtype, device=self.device)
        for i, j in common.chunks(V.shape[1], self.chunk_size):
            start = 0
            for g in self._vjp(self._cotangents(V[:, i:j])):
                out[i:j, start : start + g[0].numel()] = g.reshape(len(g), -1)
                start += g[0].numel()
        return out.T

    def lacks(self, product: str) -> str | None:
        """The forward side, where the backward pass cannot be differentiated."""
        # Found out only when asked for: a forward side costs a graph of the backward pass.
        if product in ("matmat", "gram_matmat") and not self._has_forward:
            return f"the model's backward pass cannot be differentiated{self._no_forward}"
        return super().lacks(product)

    def matmat(self, W: torch.Tensor) -> torch.Tensor:
        """J W: (P, k) → (n, k), a jvp a column."""
        return self._matmat(W)

    @memory.recovering
    @in_full
    def _matmat(self, W: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._jvp(self._tangents(part)) for part in W.split(self.chunk_size, dim=1)], dim=1)

    @memory.recovering
    @in_full
    def gram_matmat(self, V: torch.Tensor) -> torch.Tensor:
        """J Jᵀ V: (n, k) → (n, k), with no flat P×k array between the two."""
        return self._by_chunks(lambda U: self._jvp(self._vjp(U)), self._cotangents(V))

    @memory.recovering
    @in_full
    def block_sqnorms(self, V: torch.Tensor) -> torch.Tensor:
        """‖J_bᵀ v_b‖²: (n, k) → (n_blocks, k)."""
        if len(self._state) == 1:
            return self._by_chunks(lambda U: squares(self._vjp(U))[None, :], self._cotangents(V))
        U = self._cotangents(V)
        rest = self._ghost_for(U).rest
        out = self._ghost.sqnorms(U).to(self.dtype)
        if not rest:
            return out
        size = min(self.chunk_size, self._to_a_pass(rest, len(self._state))) if self._chunk_asked is None else None
        return out + self._by_chunks(lambda part: self._examples.sqnorms(part, rest), U, size)

    @memory.recovering
    @in_full
    def block_rmatmat(self, V: torch.Tensor) -> torch.Tensor:
        """J_bᵀ v_b: (n, k) → (n_blocks, k, P); the one product that is as large as it says."""
        parts = self._cotangents(V).split(self.chunk_size)
        return torch.cat([self._examples.grads(U, list(self.params)) for U in parts], dim=1).to(self.dtype)

    @memory.recovering
    def sketch_gram(self, V: torch.Tensor) -> torch.Tensor:
        """⟨J_bᵀ v_{b,i}, J_cᵀ v_{c,j}⟩: (n, k) → (B, k, B, k), the sum over all parameters."""
        return self.grouped_gram(V, (tuple(range(len(self.parameters))),))[0]

    @memory.recovering
    @in_full
    def grouped_gram(self, V: torch.Tensor, groups: tuple[tuple[int, ...], ...]) -> torch.Tensor:
        """The same of some parameters only, `groups` of indices into `parameters`: (len(groups), B, k, B, k).

        Held at a time: half a GiB of derivatives by the outputs of layers, or, for the parameters whose gradients have
        to be formed, of these.
        """
        U = self._cotangents(V)
        self._ghost_for(U)
        k, B = U.shape[:2]
        member = {name: [g for g, group in enumerate(groups) if i in group] for i, name in enumerate(self.parameters)}
        asked = {name for name, of in member.items() if of}
        total = torch.zeros(len(groups), B, k, B, k, dtype=self._ghost.dtype, device=self.device)
        for name, P, Q, G in chain(self._ghost.grams(U, asked), self._formed_grams(U, asked)):
            for g in member[name]:
                total[g, :, P, :, Q] += G
                if P != Q:
                    total[g, :, Q, :, P] += G.permute(2, 3, 0, 1)
        return total.to(self.dtype)

    @in_full
    def block_sketch(self, V: torch.Tensor) -> Sketch:
        """J_bᵀ v_b without the graph, for inner products with those of other batches."""
        return Sketch(self._ghost, self._examples, self._cotangents(V), self.chunk_size)

    @property
    def sketch_bytes(self) -> int:
        """What those of one probe take, once all are formed or all factors there."""
        return self._ghost.probe_bytes + sum(self.params[name].nbytes for name in self._ghost.rest) * len(self._state)

    def _formed_grams(self, U: torch.Tensor, asked: set[str]) -> Iterator[tuple[str, slice, slice, torch.Tensor]]:
        """As `Ghost.grams`, from gradients that are formed example by example, a group of parameters at a time."""
        names = [name for name in self._ghost.rest if name in asked]
        sizes, itemsize = [self.params[name].numel() for name in names], self._ghost.dtype.itemsize
        k, B = U.shape[:2]
        for group in common.groups(sizes, B * k, itemsize):
            chosen = {names[i]: sizes[i] for i in group}
            room = memory.budget() // (B * sum(chosen.values()) * itemsize)
            chunk = k if k <= room else max(1, room // 2)
            for P, Q, g, h in pairs(U, chunk, partial(self._formed, names=list(chosen))):
                parts = (x.split(list(chosen.values()), dim=2) for x in (g, h))
                for name, x, y in zip(chosen, *parts, strict=True):
                    yield name, P, Q, torch.einsum("bip,cjp->bicj", x, y)

    def _formed(self, U: torch.Tensor, names: list[str]) -> torch.Tensor:
        parts = [self._examples.grads(part, names) for part in U.split(self.chunk_size)]
        return torch.cat(parts, dim=1).to(self._ghost.dtype)

    # -- one batched pass -----------------------------------------------------------------------------
    def _vjp(self, U: torch.Tensor) -> list[torch.Tensor]:
        return self._look.vjp(U, self.params, self.differentiable)

    def _jvp(self, T: list[torch.Tensor]) -> torch.Tensor:
        """J of (c, …) tangents, (n, c), a batched pass; looked at once for each number of probes."""
        look, c = self._look, len(T[0])
        out = self._through_transpose(T) if look.may_batch("jvps") else self._jvp_one_by_one(T)
        if c > 1 and look.may_batch("jvps") and look.due(("jvps", c)):
            again = lambda R: {"": look.combined(self._through_transpose(R))}  # noqa: E731
            one = lambda R: {"": self._through_transpose([look.combined(t)[None] for t in R])[0].detach()}  # noqa: E731
            if not look.holds(("jvps", c), T, {"": look.combined(out)}, again, one):
                look.plainer("jvps", c)
                out = self._jvp_one_by_one(T)
        return out.reshape(c, -1).T.to(self.dtype)

    def _through_transpose(self, T: list[torch.Tensor]) -> torch.Tensor:
        u, grads = self._transposed
        (out,) = vjp(list(grads.values()), [u], [T[i] for i in grads], self.differentiable)
        return out

    def _jvp_one_by_one(self, T: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([self._through_transpose([t[i : i + 1] for t in T]) for i in range(len(T[0]))])

    # -- columns ----------------------------------------------------------------------------------------
    def _cotangents(self, V: torch.Tensor) -> torch.Tensor:
        """(n, k) → (k, B, n_b), in the state's own dtype."""
        return V.T.reshape(V.shape[1], *self._state.shape).to(self._state.dtype)

    def _tangents(self, W: torch.Tensor) -> list[torch.Tensor]:
        """(P, k) → a (k, …) tensor for each parameter."""
        parts = W.split([p.numel() for p in self.params.values()])
        return [w.T.reshape(W.shape[1], *p.shape).to(p.dtype) for w, p in zip(parts, self.params.values(), strict=True)]

    def _by_chunks(
        self, step: Callable[[torch.Tensor], torch.Tensor], U: torch.Tensor, size: int | None = None
    ) -> torch.Tensor:
        return torch.cat([step(part).to(self.dtype) for part in U.split(size or self.chunk_size)], dim=-1)
