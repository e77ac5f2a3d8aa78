"""Random PyTorch models, and what is asked of their kernels while they are trained and changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import differential
import numpy as np
import torch
import torch_tricks  # noqa: F401  (it adds to the blocks)
from differential import WORDS, Dense, Sizes, compare, named, routes
from hypothesis import strategies as st
from torch import nn
from torch_blocks import BLOCKS, COUPLED, F64, linear
from torch_reference import TORCH, dense, stacked

from traceest_adapters.torch import jacobian

HEADS = ("none", "pooled", "pooled to one", "zero", "zero, time-major")
OUTPUTS = ("tensor", "tuple", "dict", "both")
"""Of which the first or "y" is the state; of "both" everything is, the second part a thousand million times larger."""
ROUTES = ("block_sqnorms", "exact", "rmatmat", "sketch_gram", "norm", "matmat", "gram_matmat", "block_rmatmat")
ACTIONS = ("ask", "ask again", "step", "mode", "input", "buffers", "data", "ask of old")
FEW = 3
"""Routes to a question: with as many as there are, most of the time would go into the first."""


@dataclass(frozen=True)
class Program:
    """A model, its batch, and what happens to them; equal programs are equal to the bit."""

    blocks: tuple[str, ...]
    again: int | None = None  # which block is used once more at the end
    head: str = "none"
    output: str = "tensor"
    batch_axis: int | None = 0
    sizes: Sizes = field(default_factory=lambda: Sizes(3, 2, 4))
    training: bool = False
    batches: bool = False
    options: tuple[tuple[str, Any], ...] = ()
    actions: tuple[str, ...] = ("ask",)
    routes: int = 0
    seed: int = 0


class Generated(nn.Module):
    """The model of a program: called with (B, T, C) numbers, words and a mask, (B, T) each, or the same time-major."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        s, self.program = program.sizes, program
        self.blocks = nn.ModuleList(BLOCKS[name](s) for name in program.blocks)
        zero = program.head.startswith("zero")
        self.head = None if program.head == "none" else linear(s.C, 1 if "one" in program.head else 2, zero=zero)

    def forward(self, h: torch.Tensor, words: torch.Tensor, mask: torch.Tensor) -> Any:
        major = self.program.batch_axis == 1
        if major:
            h, words, mask = (x.transpose(0, 1) for x in (h, words, mask))
        context = {"words": words, "mask": mask}
        first = h
        for block in self.blocks:
            h = block(h, context)
        if self.program.again is not None:
            h = self.blocks[self.program.again % len(self.blocks)](h, context)
        y = self._headed(h)
        if major:
            y, first = (x.transpose(0, 1) if x.ndim == 3 else x[None] for x in (y, first))
        if self.program.output == "tensor":
            return y
        if self.program.output == "dict":
            return {"y": y, "first": first}
        return y, first * (1e9 if self.program.output == "both" else 1.0)

    def _headed(self, h: torch.Tensor) -> torch.Tensor:
        if self.head is None:
            return h
        if self.program.head.startswith("pooled"):
            return self.head(h.mean(1))
        if self.program.head == "zero":
            return self.head(h)
        B, T, C = h.shape
        return self.head(h.transpose(0, 1).reshape(T * B, C)).reshape(T, B, -1).transpose(0, 1)


def batch(program: Program) -> tuple[torch.Tensor, ...]:
    """Numbers, words and a mask with at least one position an example."""
    s = program.sizes
    lengths = torch.randint(1, s.T + 1, (s.B,))
    mask = torch.arange(s.T)[None] < lengths[:, None]
    found = torch.randn(s.B, s.T, s.C, **F64), torch.randint(0, WORDS, (s.B, s.T)), mask
    return tuple(x.transpose(0, 1).contiguous() for x in found) if program.batch_axis == 1 else found


class Session(differential.Session):
    """A program as it runs: the newest kernel's operator and what it should be, and those of before."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        torch.manual_seed(program.seed)
        self.model = Generated(program).train(program.training)
        self.inputs = batch(program)
        self.J: Any = None
        self.old: list[tuple[Any, Dense]] = []

    # -- what is asked ------------------------------------------------------------------------------------------
    def ask(self, when: str) -> None:
        """A new kernel."""
        if self.J is not None:
            self.old.append((self.J, self.D))
        self.J = None
        try:
            self.D = stacked([dense(self._state(*some), self._params()) for some in self._batches()])
        except (RuntimeError, ValueError):  # a row for each example, or a batch norm, of a half of the examples
            self.tally["no model of a part of the batch"] += 1
            return
        if not np.isfinite(self.D.matrix).all() or np.linalg.norm(self.D.matrix) > 1e6:
            self.tally["too large"] += 1
            return
        program = self.program
        output = {"tuple": 0, "dict": "y"}.get(program.output)
        options = {"output": output, "batch_axis": program.batch_axis, **dict(program.options)}

        def make() -> Any:
            if len(self._batches()) > 1:
                self.J = jacobian(self.model, batches=self._batches(), **options)
            else:
                self.J = jacobian(self.model, *self.inputs, **options)
            return self.J

        self._compare(make, self.D, when)

    def ask_again(self, when: str) -> None:
        if self.J is not None:
            self.old.append((self.J, self.D))
            self.ask_of_old(when)
            self.old.pop()

    def ask_of_old(self, when: str) -> None:
        """Of what was made before something was changed: what it was then, or an error."""
        for J, D in self.old[-1:]:
            self._compare(lambda J=J: J, D, when)

    def _compare(self, make: Any, D: Dense, when: str) -> None:
        self.asked += 1
        turn = [ROUTES[(self.asked + i) % len(ROUTES)] for i in range(FEW)]
        every = routes(D, TORCH, sorted({1, 2, D.B}))
        self.note(when, compare(make, D, named(every, turn), TORCH))

    def _params(self) -> dict[str, torch.Tensor]:
        return {name: x for name, x in self.model.named_parameters() if x.requires_grad}

    def _batches(self) -> list[tuple[torch.Tensor, ...]]:
        """All of the examples, or their halves."""
        axis = self.program.batch_axis
        if not self.program.batches or axis is None:
            return [self.inputs]
        return list(zip(*(x.tensor_split(2, axis) for x in self.inputs), strict=True))

    def _state(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Examples first, by a plain call of the module as it is."""
        found, kind = self.model(*inputs), self.program.output
        parts = {"tensor": [found], "tuple": [found[0]], "both": found} if kind != "dict" else {"dict": [found["y"]]}
        tensors = [y.transpose(0, 1) if self.program.batch_axis == 1 else y for y in parts[kind]]
        rows = [y.reshape(1 if self.program.batch_axis is None else len(y), -1) for y in tensors]
        return torch.cat(rows, 1)

    # -- what is changed -----------------------------------------------------------------------------------------
    def step(self, _: str) -> None:
        """Of training, in place."""
        optimiser = torch.optim.SGD(self.model.parameters(), 0.3)
        y = self._state(*self.inputs)
        (y * torch.randn(y.shape, **F64)).sum().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    def mode(self, _: str) -> None:
        self.model.train(not self.model.training)

    def input(self, _: str) -> None:
        """Overwritten: others of the same shape."""
        torch.manual_seed(self.program.seed + self.asked + 1)
        for x, new in zip(self.inputs, batch(self.program), strict=True):
            x.copy_(new)

    def buffers(self, _: str) -> None:
        with torch.no_grad():
            for x in self.model.buffers():
                if x.is_floating_point():
                    x.mul_(1.5)

    def data(self, _: str) -> None:
        """Parameters changed so that PyTorch does not count it."""
        for x in self.model.parameters():
            x.data.mul_(1.25).add_(0.1)


def programs(names: list[str] | None = None) -> st.SearchStrategy[Program]:
    """Of blocks of all kinds, or of the kinds named."""
    coupled = st.sampled_from(sorted(COUPLED & set(names or BLOCKS)) or [""])
    alone = st.sampled_from([name for name in names or BLOCKS if name not in COUPLED] or [""])
    any_block = st.one_of(alone, alone, alone, alone, alone, coupled).filter(bool)
    return st.builds(
        Program,
        blocks=st.lists(any_block, min_size=1, max_size=4).map(tuple),
        again=st.one_of(st.none(), st.integers(0, 3)),
        head=st.sampled_from(HEADS),
        output=st.sampled_from(OUTPUTS),
        batch_axis=st.sampled_from([0, 0, 0, 1, None]),
        sizes=st.builds(Sizes, st.integers(2, 4), st.integers(1, 4), st.just(4)),
        training=st.booleans(),
        batches=st.sampled_from([False, False, True]),
        options=st.sampled_from([(), (), (("chunk_size", 1),), (("chunk_size", 2),), (("differentiable", True),)]),
        actions=st.lists(st.sampled_from(ACTIONS), max_size=5).map(lambda found: ("ask", *found, "ask")),
        routes=st.integers(0, 7),
        seed=st.integers(0, 3),
    )
