"""GRU and MLP out of `torch.nn`."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from traceest_adapters.demo.data import Digits, batches
from traceest_adapters.demo.learner import GRU_STATE, HIDDEN_GRU, HIDDEN_MLP, LEARNING_RATE, MLP_STATE
from traceest_adapters.torch import ntk


def learners(digits: Digits, seed: int) -> list[TorchLearner]:
    """The two models, at initialisation."""
    with torch.random.fork_rng():  # `nn` draws weights from the global state, which is the caller's
        torch.manual_seed(seed)
        gru, gru_head = nn.GRU(8, HIDDEN_GRU, batch_first=True), nn.Linear(HIDDEN_GRU, 10)
        mlp, mlp_head = _hidden_layers(), nn.Linear(HIDDEN_MLP, 10)
    return [
        TorchLearner("GRU", GRU_STATE, gru, gru_head, 0, lambda states: states[0][:, -1], digits, seed),
        TorchLearner("MLP", MLP_STATE, mlp, mlp_head, None, lambda states: states, digits, seed),
    ]


def _hidden_layers() -> Any:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, HIDDEN_MLP), nn.ReLU(), nn.Linear(HIDDEN_MLP, HIDDEN_MLP), nn.ReLU()
    )


class TorchLearner:
    """A `Learner`: the states of `body` are probed; `head` reads the digit from what `last` takes of them."""

    def __init__(
        self,
        name: str,
        state: str,
        body: Any,
        head: Any,
        output: int | None,
        last: Callable[[Any], Any],
        digits: Digits,
        seed: int,
    ) -> None:
        self.name, self.state = name, state
        self._body, self._head, self._output, self._last = body, head, output, last
        self._digits = digits
        self._optimiser = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=LEARNING_RATE)
        self._batches = batches(digits, seed)

    def train(self, n_steps: int) -> None:
        """As `Learner.train`."""
        for _ in range(n_steps):
            images, labels = map(torch.from_numpy, next(self._batches))
            self._optimiser.zero_grad()
            nn.functional.cross_entropy(self._logits(images), labels.long()).backward()
            self._optimiser.step()

    def kernel(self) -> Any:
        """As `Learner.kernel`; of a copy, since the optimiser changes the parameters in place."""
        return ntk(deepcopy(self._body), torch.from_numpy(self._digits.probed), output=self._output)

    def accuracy(self) -> float:
        """As `Learner.accuracy`."""
        with torch.no_grad():
            told = self._logits(torch.from_numpy(self._digits.test_images)).argmax(dim=1)
        return float((told.numpy() == self._digits.test_labels).mean())

    def _logits(self, images: Any) -> Any:
        return self._head(self._last(self._body(images)))
