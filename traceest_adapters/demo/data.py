"""The 8×8 digits that scikit-learn ships: 1797 real handwritten digits, no download."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

N_TEST = 360
N_PROBED = 48
BATCH = 64


class Digits(NamedTuple):
    """Images (N, 8, 8) with pixels in [0, 1] in float32, labels (N,); the kernels are those of `probed`."""

    train_images: Any
    train_labels: Any
    test_images: Any
    test_labels: Any

    @property
    def probed(self) -> Any:
        """The test images whose states the kernels compare, (48, 8, 8)."""
        return self.test_images[:N_PROBED]


def load(seed: int) -> Digits:
    """Digits, split into training and test images by `seed`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    images = (digits.images[order] / 16).astype(np.float32)
    labels = digits.target[order].astype(np.int32)
    return Digits(images[N_TEST:], labels[N_TEST:], images[:N_TEST], labels[:N_TEST])


def batches(digits: Digits, seed: int) -> Iterator[tuple[Any, Any]]:
    """Endless random batches of 64 training images with their labels: the same on every backend."""
    rng = np.random.default_rng(seed)
    while True:
        chosen = rng.integers(len(digits.train_labels), size=BATCH)
        yield digits.train_images[chosen], digits.train_labels[chosen]
