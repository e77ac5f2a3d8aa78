"""Random JAX models, and what is asked of their kernels while they are trained and what they close over changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import differential
import jax
import jax.numpy as jnp
import jax_tricks  # noqa: F401  (it adds to the blocks)
import numpy as np
from differential import WORDS, Dense, Sizes, compare, named, routes
from hypothesis import strategies as st
from jax_blocks import BLOCKS, COUPLED
from jax_reference import JAX, dense

from traceest_adapters.jax import jacobian

HEADS = ("none", "pooled", "zero", "zero, time-major")
OUTPUTS = ("array", "tuple", "dict")
CALLS = ("method", "function of a global", "fresh lambda", "partial")
ACTIONS = ("ask", "ask again", "step", "closure", "closure in place", "input in place")
ROUTES = ("block_sqnorms", "rmatmat", "exact", "sketch_gram", "grouped_gram", "matmat", "gram_matmat", "block_rmatmat")
FEW = 2
"""Routes to a question: with as many as there are, most of the time would go into the first."""

MANY = 9
"""Probes for which loops have programs of their own."""

GLOBAL: dict[str, Any] = {}


@dataclass(frozen=True)
class Program:
    """A model, its batch, and what happens to them; equal programs are equal to the bit."""

    blocks: tuple[str, ...]
    again: bool = False  # the first block is used once more at the end
    head: str = "none"
    output: str = "array"
    call: str = "method"
    batch_axis: int | None = 0
    sizes: Sizes = field(default_factory=lambda: Sizes(3, 2, 4))
    arrays: str = "jax"  # or "numpy": what the inputs are
    actions: tuple[str, ...] = ("ask",)
    probes: int = 3
    routes: int = 0
    seed: int = 0


class Net:
    """The model of a program, with numbers beside the parameters: an attribute, and an array changed in place."""

    def __init__(self, program: Program) -> None:
        self.program, self.scale, self.table = program, 1.0, np.ones(1)

    def init(self, rng: Any) -> dict[str, Any]:
        s, p = self.program.sizes, self.program
        params = {str(i): BLOCKS[name].init(s, rng) for i, name in enumerate(p.blocks)}
        if p.head != "none":
            size = (s.C, 2)
            w = np.zeros(size) if p.head.startswith("zero") else rng.standard_normal(size)
            params["head"] = {"w": jnp.asarray(w), "b": jnp.asarray(rng.standard_normal(2))}
        return params

    def apply(self, params: Any, batch: Any) -> Any:
        return self.run(params, batch, self.scale)

    def run(self, params: Any, batch: Any, scale: Any) -> Any:
        p, major = self.program, self.program.batch_axis == 1
        c = {k: jnp.swapaxes(jnp.asarray(x), 0, 1) if major else jnp.asarray(x) for k, x in batch.items()}
        h = first = c["h"]
        names = [*enumerate(p.blocks), *[(0, p.blocks[0])] * p.again]
        for i, name in names:
            h = BLOCKS[name].call(params[str(i)], h, c)
        y = self._headed(params, h) * scale * self.table
        if major:
            y, first = (jnp.swapaxes(x, 0, 1) if x.ndim == 3 else x[None] for x in (y, first))
        return {"array": y, "tuple": (y, first), "dict": {"first": first, "y": y}}[p.output]

    def _headed(self, params: Any, h: Any) -> Any:
        p = self.program
        if p.head == "none":
            return h
        w, b = params["head"]["w"], params["head"]["b"]
        if p.head == "pooled":
            return h.mean(1) @ w + b
        if p.head == "zero":
            return h @ w + b
        B, T, C = h.shape
        return jnp.swapaxes((jnp.swapaxes(h, 0, 1).reshape(T * B, C) @ w + b).reshape(T, B, -1), 0, 1)


def of_global(net: Net, params: Any, batch: Any) -> Any:
    return net.run(params, batch, GLOBAL["scale"])


class Session(differential.Session):
    """A program as it runs: the newest kernel's operator and what it should be, and those of before."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.rng = np.random.default_rng(program.seed)
        self.net = Net(program)
        GLOBAL["scale"] = 1.0
        self.params = self.net.init(self.rng)
        self.batch = self._drawn()
        self.J: Any = None
        self.D: Dense | None = None
        net = self.net
        self.fn = {
            "method": net.apply,
            "function of a global": lambda params, batch: of_global(net, params, batch),
            "fresh lambda": None,
            "partial": partial(of_global, net),
        }[program.call]

    def _drawn(self) -> dict[str, Any]:
        s = self.program.sizes
        lengths = self.rng.integers(1, s.T + 1, s.B)
        found = {
            "h": self.rng.standard_normal(s),
            "words": self.rng.integers(0, WORDS, (s.B, s.T)),
            "mask": np.arange(s.T)[None] < lengths[:, None],
        }
        if self.program.batch_axis == 1:
            found = {k: np.ascontiguousarray(np.swapaxes(x, 0, 1)) for k, x in found.items()}
        return found if self.program.arrays == "numpy" else {k: jnp.asarray(x) for k, x in found.items()}

    def function(self) -> Any:
        if self.fn is not None:
            return self.fn
        scale = self.net.scale
        return lambda params, batch: self.net.run(params, batch, scale)

    # -- what is asked ------------------------------------------------------------------------------------------
    def ask(self, when: str) -> None:
        """A new kernel."""
        self.J, self.D = None, self._dense()
        if self.D is None:
            return
        program = self.program
        output = {"array": None, "tuple": 0, "dict": "y"}[program.output]

        def make() -> Any:
            self.J = jacobian(self.function(), self.params, self.batch, output=output, batch_axis=program.batch_axis)
            return self.J

        self._compare(make, when)

    def ask_again(self, when: str) -> None:
        """Of what was made before something was changed: what it was then, or an error."""
        if self.J is not None and self.D is not None:
            self._compare(lambda: self.J, when)

    def _compare(self, make: Any, when: str) -> None:
        assert self.D is not None
        self.asked += 1
        turn = [ROUTES[(FEW * self.asked + i) % len(ROUTES)] for i in range(FEW)]
        every = routes(self.D, JAX, (self.program.probes,))
        self.note(when, compare(make, self.D, named(every, turn), JAX))

    def _dense(self) -> Dense | None:
        """Of the whole batch at once, by a function that JAX has never seen."""
        p, leaves = self.program, jax.tree.leaves(self.params)
        fn, tree = self.function(), jax.tree.structure(self.params)

        def rows(leaves: Any) -> Any:
            y = fn(jax.tree.unflatten(tree, leaves), self.batch)
            y = {"array": lambda: y, "tuple": lambda: y[0], "dict": lambda: y["y"]}[p.output]()
            if p.batch_axis is None:
                return y.reshape(1, -1)
            y = jnp.moveaxis(y, p.batch_axis, 0)
            return y.reshape(len(y), -1)

        D = dense(rows, leaves)
        if np.isfinite(D.matrix).all() and np.abs(D.matrix).max() < 1e6:
            return D
        self.tally["too large"] += 1
        return None

    # -- what happens in between --------------------------------------------------------------------------------
    def step(self, when: str) -> None:
        """As far as an optimiser's: what was zero is no longer."""
        self.params = jax.tree.map(lambda p: p + 0.3 * self.rng.standard_normal(p.shape), self.params)

    def closure(self, when: str) -> None:
        self.net.scale += 0.5
        GLOBAL["scale"] += 0.5

    def closure_in_place(self, when: str) -> None:
        self.net.table += 0.25

    def input_in_place(self, when: str) -> None:
        if self.program.arrays == "numpy":
            self.batch["h"] *= -1.5


def programs() -> st.SearchStrategy[Program]:
    """Programs that ask, change something, and ask again."""
    alone = st.sampled_from(sorted(set(BLOCKS) - COUPLED))
    names = st.integers(0, 9).flatmap(lambda i: alone if i < 9 else st.sampled_from(sorted(COUPLED)))
    between = st.sampled_from(ACTIONS)
    actions = st.lists(between, max_size=3).map(lambda some: ("ask", *some, "ask"))
    return st.builds(
        Program,
        blocks=st.lists(names, min_size=1, max_size=3).map(tuple),
        again=st.booleans(),
        head=st.sampled_from(HEADS),
        output=st.sampled_from(OUTPUTS),
        call=st.sampled_from(CALLS),
        batch_axis=st.sampled_from((0, 0, 0, 1, None)),
        sizes=st.builds(Sizes, st.integers(2, 3), st.integers(1, 3), st.sampled_from((2, 4))),
        arrays=st.sampled_from(("jax", "numpy")),
        actions=actions,
        probes=st.sampled_from((1, 2, 3, MANY)),
        routes=st.integers(0, 3),
        seed=st.integers(0, 99),
    )
