"""The Jacobian of a JAX function as an operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp

import traceest as te
from traceest_adapters import _memory as memory
from traceest_adapters import _state as common
from traceest_adapters.jax import diagnosis, modes, placement, settings
from traceest_adapters.jax.model import Model, has_tracers, traced
from traceest_adapters.jax.per_example import compiled, ghost_norms, pullback, verify
from traceest_adapters.jax.per_example.grams import Grams
from traceest_adapters.jax.per_example.plan import Plan
from traceest_adapters.jax.per_example.routes import Routes
from traceest_adapters.jax.per_example.sketch import Sketch, Sketched

MOST = 4
"""Probes to a compiled step. On a CPU more gain little, since the examples fill the matrix products already."""

IN_LOOPS = 8
"""So many times as many where loops' transitions are made, which are read once for all of them."""

PAIR = 2
"""Probes to a compiled step where loops go step by step, of which more gain nothing."""

JOINED = 4
"""Pieces whose gradients become columns at once: with more, each number of probes would be a program of its own."""

FEW = 8
"""Up to so many probes transitions are not worth making."""

CACHE = 2**25
"""Bytes of one value, for all probes of a step, that are no burden."""


def once(compute: Callable[[Any], Any]) -> Any:
    """A `cached_property` whose value is made outside of the transformation that first asks for it.

    A kernel made outside of `jax.jit` and first used inside would otherwise keep the tracers of that function.
    """

    def outside(J: JaxJacobian) -> Any:
        if has_tracers((J.trained, J.fixed, J.inputs)) or not traced(()):
            return compute(J)  # the context below would also make each constant in a program by one of its own
        with jax.ensure_compile_time_eval():
            return compute(J)

    return cached_property(outside)


class JaxJacobian(te.Operator):
    """The Jacobian of a state with respect to parameters, (n, P), by vjps and jvps; see `jacobian`."""

    def __init__(
        self,
        model: Model,
        names: Sequence[str],
        trained: list[Any],
        fixed: list[Any],
        inputs: Any,
        chunk_size: int | None = None,
        memory_budget: int | None = None,
        not_alone: str | None = None,
    ) -> None:
        self.model, self.trained, self.fixed, self.inputs = model, trained, fixed, inputs
        state = model.state
        # Half precision ends at the model's boundary: probes, norms and inner products are of float32 at the least.
        dtype = jnp.promote_types(jnp.result_type(state.dtype, *trained), jnp.float32)
        P = sum(p.size for p in trained)
        like = jnp.zeros((), dtype)
        n_blocks = None if model.batch_axis is None else state.shape[0]
        super().__init__((state.size, P), like=like, n_blocks=n_blocks, parameters=names, name="JaxJacobian")
        if not traced((trained, fixed, inputs)):
            self.device = placement.device((trained, fixed, inputs))
        self.memory_budget = memory.given(memory_budget)
        self.chunk_size = self._affordable() if chunk_size is None else chunk_size
        self._B, self._state_dtype = state.shape[0], state.dtype
        self._modes: dict[modes.Mode, modes.Found] = {}
        self.not_alone, self.routes = not_alone, Routes(self)

    def _affordable(self) -> int:
        largest = self.model.largest
        gradient = sum(p.nbytes for p in self.trained)
        with memory.within(self.memory_budget):
            return memory.probes_to_a_pass(gradient + 4 * largest, largest, CACHE, MOST)

    @property
    def chunk_columns(self) -> int:
        """How many columns to ask for at a time."""
        return memory.columns(self.shape[0] * int(self.dtype.itemsize), IN_LOOPS * self.chunk_size)

    # -- linearisations: computed once, used by every probe -----------------------------------------
    @once
    def _vjp(self) -> Any:
        return compiled.linearise_reverse(self.model, self.trained, self.fixed, self.inputs)

    @once
    def _jvp(self) -> Any:
        return compiled.linearise_forward(self.model, self.trained, self.fixed, self.inputs)

    @once
    def _examples(self) -> Any:
        return self.model.example_first(self.inputs)

    @cached_property
    def _lanes(self) -> int:
        return placement.lanes(self._examples)

    @property
    def _way(self) -> int:
        """Runs side by side in which examples are gone through one after another."""
        return self._lanes if self.routes.maps("examples") else 1

    @once
    def _understood(self) -> Plan:
        if self.not_alone is not None and self.model.batch_axis is not None:
            raise diagnosis.not_alone(self.model.batch_axis, self.not_alone)
        arrays = self.trained, self.fixed, self._examples
        with memory.within(self.memory_budget):
            plan = ghost_norms.plan(self.model, *arrays)
            if not self.routes.look or traced(arrays):
                return self.routes.as_seen(plan)
            return self.routes.seen(verify.verified(plan, self))

    @property
    def _plan(self) -> Plan:
        return self._understood._replace(budget=memory.budget())

    @cached_property
    def _simpler(self) -> Plan:
        return self._understood.stepwise

    @property
    def _step_plan(self) -> Plan:
        return self._simpler._replace(budget=memory.budget())

    @once
    def _stepwise(self) -> Any:
        return self._tapped(self._simpler)[0]

    @cached_property
    def _right_units(self) -> bool:
        """Whether loops are to be taken unit by unit."""
        if "units" in self.routes.unlooked and not traced((self.trained, self.inputs)):
            self.routes.unlooked.discard("units")
            self.routes.mapped["units"] = verify.units_are_right(self._understood, self)
        right = self.routes.mapped.get("units", True)
        if not right:
            self.__dict__["_understood"] = self._understood.without_units
        return right

    @once
    def _unrolled(self) -> Any:
        return self._tapped(self._understood)[0]

    def _tapped(self, plan: Plan) -> Any:
        """The pullback to every tap, operands and forms beside it, and the state; nothing of what is not understood."""
        if not plan.weights and not plan.small:
            return (), None
        return pullback.tapped(self.model, plan, self.trained, self.fixed, self._examples)

    def lacks(self, product: str) -> str | None:
        """What a mode of differentiation is missing for."""
        needed = modes.NEEDED.get(product, modes.REVERSE)
        reasons = (modes.reason(mode, why) for mode in needed if (why := self.lacking(mode)))
        return next(reasons, super().lacks(product))

    def lacking(self, mode: modes.Mode) -> str | None:
        """Why the model cannot be differentiated in "forward" or "reverse" mode; None if it can."""
        return self.found(mode).lacking

    def found(self, mode: modes.Mode) -> modes.Found:
        """What a trace tells of a mode."""
        if mode not in self._modes:  # asked before every product, and each time a walk over all arrays
            inputs = [x[0] for x in self._examples] if mode == "alone" else self.inputs
            self._modes[mode] = modes.found(self.model, mode, self.trained, self.fixed, inputs)
        return self._modes[mode]

    # -- products -----------------------------------------------------------------------------------
    @settings.usual
    @memory.recovering
    def rmatmat(self, V: Any) -> Any:
        """Jᵀ V: (n, k) → (P, k), a vjp a column."""
        return self._columns(self.routes.reverse, self._cotangents(V), V.shape[1])

    @settings.usual
    @memory.recovering
    def matmat(self, W: Any) -> Any:
        """J W: (P, k) → (n, k), a jvp a column."""
        step = lambda T: self.routes.forward(T).astype(self.dtype)  # noqa: E731
        return self._by_chunks(step, self._tangents(W), W.shape[1])

    @settings.usual
    @memory.recovering
    def gram_matmat(self, V: Any) -> Any:
        """J Jᵀ V: (n, k) → (n, k), with no flat P×k array between the two."""
        step = lambda U: self.routes.gram(U).astype(self.dtype)  # noqa: E731
        return self._by_chunks(step, self._cotangents(V), V.shape[1])

    @settings.usual
    @memory.recovering
    def block_sqnorms(self, V: Any) -> Any:
        """‖J_bᵀ v_b‖²: (n, k) → (n_blocks, k), by ghost norms, and example by example for what they do not cover."""
        cells = bool(self._understood.cells)
        unrolled = cells and V.shape[1] > FEW and self._right_units
        plan, tapped = (self._plan, self._unrolled) if unrolled else (self._step_plan, self._stepwise)
        pieces: Iterable[Any] = self._wide(V) if unrolled else self._cotangents(V, PAIR if cells else None)
        return self._by_chunks(lambda U: self._sqnorms(plan, tapped, U).astype(self.dtype), pieces, V.shape[1])

    def _sqnorms(self, plan: Plan, tapped: Any, U: Any) -> Any:
        parts = []
        if tapped:
            parts.append(ghost_norms.sqnorms(plan, self.dtype, *tapped, U))
        if plan.rest:
            arrays = self.trained, self.fixed, self._examples, compiled.probes_first(U, self._B) if U.ndim == 2 else U
            parts.append(
                compiled.block_sqnorms(self.model, plan.rest, self._way, *arrays, self.routes.maps("examples"))
            )
        return sum(parts[1:], start=parts[0]) if parts else jnp.zeros((self._B, len(U)), self.dtype)

    @settings.usual
    @memory.recovering
    def block_rmatmat(self, V: Any) -> Any:
        """J_bᵀ v_b: (n, k) → (n_blocks, k, P); the one product that is as large as it says."""
        k = V.shape[1]
        everything = tuple(range(len(self.trained)))
        parts = [self._block_grads(everything, piece) for piece in self._cotangents(V)]
        return jnp.concatenate(parts, axis=1)[:, :k].astype(self.dtype)

    @settings.usual
    @memory.recovering
    def sketch_gram(self, V: Any) -> Any:
        """⟨J_bᵀ v_{b,i}, J_cᵀ v_{c,j}⟩: (n, k) → (B, k, B, k), summed over all parameters."""
        return self._gram(tuple(range(len(self.trained))), self._cotangents(V), V.shape[1])

    @settings.usual
    @memory.recovering
    def grouped_gram(self, V: Any, groups: tuple[tuple[int, ...], ...]) -> Any:
        """The same over each group of parameters: (n, k) → (n_groups, B, k, B, k).

        Held at a time: derivatives by the results of some products with weights, or the gradients of some parameters
        for which ghost norms do not work, chosen to fit the memory budget, for every example and probe; of one that
        takes more by itself, those of two pieces of the probes.
        """
        pieces = self._cotangents(V)
        return jnp.stack([self._gram(group, pieces, V.shape[1]) for group in groups])

    @settings.usual
    def block_sketch(self, V: Any) -> Sketch:
        """J_bᵀ v_b without the linearisation, for inner products with those of other batches."""
        plan = self._step_plan
        way = self._way, self.routes.maps("examples")
        of_all = Sketched(self.model, plan, way, self.trained, self.fixed, self._examples, self.dtype)
        return Sketch(of_all, self._stepwise, self._cotangents(V), V.shape[1])

    @property
    def sketch_bytes(self) -> int:
        """What those of one probe take."""
        plan = self._step_plan
        tapped = sum(ghost_norms.size(plan, i, self.trained[i]) for i in (*plan.weights, *plan.small))
        return self._B * (tapped + sum(self.trained[i].size for i in plan.rest)) * int(self.dtype.itemsize)

    def _gram(self, group: tuple[int, ...], pieces: list[Any], k: int) -> Any:
        pullback, operands = self._stepwise[:2] if self._stepwise else (None, [])
        rows = self._B * len(pieces[0])
        grams = Grams(self._step_plan, pullback, operands, self.trained, rows, self.dtype, self._block_grads)
        found = grams.over(group, pieces)
        if found is None:
            return jnp.zeros((self._B, k, self._B, k), self.dtype)
        return compiled.assembled(k, self.dtype, found)

    def _block_grads(self, group: tuple[int, ...], U: Any) -> Any:
        arrays = self.trained, self.fixed, self._examples, U
        return compiled.block_grads(self.model, group, self._way, *arrays, self.routes.maps("examples"))

    # -- columns in chunks of one size, so that a new number of probes compiles no product ---------------
    def _cotangents(self, V: Any, most: int | None = None) -> list[Any]:
        """(n, k) → pieces (c, B, n_b), c the chunk size but for `most`: probes lead, in the state's own dtype."""
        shapes, dtypes = ((self._B, self.shape[0] // self._B),), (self._state_dtype,)
        c = min(self.chunk_size, most or self.chunk_size)
        return [piece for (piece,) in self._pieces(V, shapes, dtypes, c)]

    def _tangents(self, W: Any) -> Iterator[list[Any]]:
        """(P, k) → pieces of a (c, …) array for each parameter."""
        shapes, dtypes = tuple(p.shape for p in self.trained), tuple(p.dtype for p in self.trained)
        return self._pieces(W, shapes, dtypes, self.chunk_size)

    def _pieces(
        self, V: Any, shapes: tuple[tuple[int, ...], ...], dtypes: tuple[Any, ...], c: int
    ) -> Iterator[list[Any]]:
        """The columns as arrays of these shapes, in pieces of c, the last one filled up with zeros.

        A single column, which is often asked for, is not filled up.
        """
        k = V.shape[1]
        c = 1 if k == 1 else c
        fill = -k % c
        leaves = compiled.leading(V, shapes, dtypes, fill)
        if k <= c:
            yield leaves
        else:
            yield from ([leaf[i:j] for leaf in leaves] for i, j in common.chunks(k + fill, c))

    def _wide(self, V: Any) -> Iterator[Any]:
        """(n, k) → pieces (n, c), for loops whose transitions are made."""
        c = IN_LOOPS * self.chunk_size
        for i, j in common.chunks(V.shape[1], c):
            piece = V if V.shape[1] == c else V[:, i:j]
            yield (piece if j - i == c else jnp.pad(piece, ((0, 0), (0, c - (j - i))))).astype(self._state_dtype)

    def _columns(self, grads: Callable[[Any], Any], pieces: Iterable[Any], k: int) -> Any:
        """`grads` of every piece, a (c, …) array for each parameter, as the columns of a (P, k) array."""
        pieces = iter(pieces)
        some = iter(lambda: [grads(piece) for piece in islice(pieces, JOINED)], [])
        return self._by_chunks(lambda grads: compiled.columns(grads).astype(self.dtype), some, k)

    def _by_chunks(self, step: Callable[[Any], Any], pieces: Iterable[Any], k: int) -> Any:
        """`step` of every piece, (…, c) each, joined to (…, k)."""
        parts = [step(piece) for piece in pieces]
        joined = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
        return joined if joined.shape[-1] == k else joined[..., :k]
