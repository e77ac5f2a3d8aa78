"""What the demo asks of a model, whichever framework it is made in."""

from __future__ import annotations

from typing import Any, Protocol

HIDDEN_GRU = 24
HIDDEN_MLP = 64
LEARNING_RATE = 5e-3


class Learner(Protocol):
    """A model in training."""

    name: str
    state: str

    def train(self, n_steps: int) -> None:
        """Take `n_steps` steps of Adam on the cross entropy."""

    def kernel(self) -> Any:
        """The Neural Tangent Kernel of the state as it is now, a Gram operator; later training leaves it alone."""

    def accuracy(self) -> float:
        """Fraction of the test images told right."""


GRU_STATE = f"all {HIDDEN_GRU} hidden units at all 8 time steps"
MLP_STATE = f"all {HIDDEN_MLP} units of the last hidden layer"
