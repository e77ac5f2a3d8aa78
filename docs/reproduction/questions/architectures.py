"""Five architectures of any width and depth on scikit-learn's digits, at initialisation and after training."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn

from traceest_adapters.demo.data import batches, load

N_IMAGES = 32
"""Test images that the kernels compare."""


class Recurrent(nn.Module):
    """A GRU or LSTM over the eight rows of an image; the state is every unit of the last layer after every row."""

    def __init__(self, kind: Any, width: int, depth: int) -> None:
        super().__init__()
        self.layers = kind(8, width, num_layers=depth, batch_first=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)[0]


class Convolutional(nn.Module):
    """3×3 convolutions with ReLU, the first of stride two; the state is the last one's channels, averaged to 2×2."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        sizes = [1, *[width] * depth]
        pairs = enumerate(pairwise(sizes))
        convolutions = [nn.Conv2d(a, b, 3, padding=1, stride=1 if i else 2) for i, (a, b) in pairs]
        self.layers = nn.Sequential(*(f for c in convolutions for f in (c, nn.ReLU())), nn.AvgPool2d(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images[:, None])


class Transformer(nn.Module):
    """Encoder layers of four heads over the eight rows as tokens; the state is every token's."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.place = nn.Parameter(0.1 * torch.randn(8, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.embed(images) + self.place)


def _mlp(width: int, depth: int) -> nn.Module:
    """Linear layers with ReLU; the state is the last one's activations."""
    sizes = [64, *[width] * depth]
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    return nn.Sequential(nn.Flatten(), *(f for layer in layers for f in (layer, nn.ReLU())))


ARCHITECTURES: dict[str, Callable[[int, int], nn.Module]] = {
    "MLP": _mlp,
    "CNN": Convolutional,
    "GRU": lambda width, depth: Recurrent(nn.GRU, width, depth),
    "LSTM": lambda width, depth: Recurrent(nn.LSTM, width, depth),
    "transformer": Transformer,
}


class Trained(NamedTuple):
    """A model before and after training, and its share of right answers on the 360 test images."""

    before: nn.Module
    after: nn.Module
    images: torch.Tensor
    accuracy: float


def trained(name: str, width: int, depth: int, seed: int, steps: int) -> Trained:
    """`steps` of Adam at 3e-3 on batches of 64, under a linear head of the state that is thrown away."""
    torch.manual_seed(seed)
    digits = load(seed)
    body = ARCHITECTURES[name](width, depth)
    test, labels = torch.from_numpy(digits.test_images), torch.from_numpy(digits.test_labels)
    head = nn.Linear(body(test[:1]).flatten(1).shape[1], 10)
    before = deepcopy(body)
    optimiser, stream = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=3e-3), batches(digits, seed)
    for _ in range(steps):
        images, wanted = map(torch.from_numpy, next(stream))
        optimiser.zero_grad()
        nn.functional.cross_entropy(head(body(images).flatten(1)), wanted.long()).backward()
        optimiser.step()
    with torch.no_grad():
        right = head(body(test).flatten(1)).argmax(1) == labels
    return Trained(before.eval(), body.eval(), test[:N_IMAGES], float(right.double().mean()))
