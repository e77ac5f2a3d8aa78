"""Four small PyTorch models on scikit-learn's digits, and their Jacobians before and after training, written out."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import nn

from traceest.operators.blocks import unit_probes
from traceest_adapters.demo.data import batches, load
from traceest_adapters.torch import jacobian

STEPS = 300


class Recurrent(nn.Module):
    """A GRU over the eight rows of an image; the state is every hidden unit after every row."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 24, batch_first=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.gru(images)[0]


class Convolutional(nn.Module):
    """Two convolutions with batch norm, the second with stride two, and a dense layer of 32 units."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 32),
            nn.ReLU(),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images[:, None])


class Transformer(nn.Module):
    """Two encoder layers over the eight rows as tokens of 16; the state is every token's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.place = nn.Parameter(0.1 * torch.randn(8, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.embed(images) + self.place)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())


MODELS = {"MLP": _mlp, "GRU": Recurrent, "CNN": Convolutional, "transformer": Transformer}


def before_and_after(name: str, seed: int = 0, steps: int = STEPS) -> tuple[nn.Module, nn.Module, Any]:
    """The model at initialisation and after `steps` of Adam under a linear head, in eval mode; 48 images to probe."""
    torch.manual_seed(seed)
    digits = load(seed)
    body = MODELS[name]()
    probed = torch.from_numpy(digits.probed)
    head = nn.Linear(body(probed).flatten(1).shape[1], 10)
    before = deepcopy(body).eval()
    optimiser, stream = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=3e-3), batches(digits, seed)
    for _ in range(steps):
        images, labels = map(torch.from_numpy, next(stream))
        optimiser.zero_grad()
        nn.functional.cross_entropy(head(body(images).flatten(1)), labels.long()).backward()
        optimiser.step()
    return before, body.eval(), probed


def jacobians(name: str, seed: int = 0, steps: int = STEPS) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Both Jacobians, (n, P), float32, and the shape of the state, independent examples first."""
    *models, probed = before_and_after(name, seed, steps)

    def written_out(model: nn.Module) -> np.ndarray:
        J = jacobian(model, probed)
        n_b = J.shape[0] // J.n_blocks
        parts = [J.block_rmatmat(unit_probes(J, i, min(i + 16, n_b))).detach().numpy() for i in range(0, n_b, 16)]
        return np.concatenate(parts, axis=1).reshape(J.shape)

    return written_out(models[0]), written_out(models[1]), tuple(models[0](probed).shape)
