"""Training with the Neural Tangent Kernel's norm, or its effective rank, as a regulariser, on scikit-learn's digits.

    python docs/examples/ntk_regulariser.py [--framework jax|torch|both] [--quick]

A small MLP is trained three times from the same start: with cross-entropy alone; with the norm of the kernel of each
batch added; with the logarithm of its effective rank subtracted. Norm and rank are estimated from two and three vjps
with fresh probes at each step, and their gradients flow through the estimate. The table shows test accuracy, exact norm
and exact effective rank of 48 test images' kernel afterwards, and the time of a step.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from typing import Any

import numpy as np

import traceest as te
from traceest_adapters.demo.data import batches, load

SIZES = (64, 32, 10)
RATE, DECAY_NORM, REWARD_RANK, SHOWN = 0.1, 3e-4, 0.3, 16
VARIANTS = ("plain", "norm", "rank")
Initial = dict[str, np.ndarray]


def initial() -> Initial:
    rng = np.random.default_rng(0)
    shapes = {f"{i}.weight": (b, a) for i, (a, b) in enumerate(pairwise(SIZES))}
    return {name: rng.standard_normal(s).astype(np.float32) / s[1] ** 0.5 for name, s in shapes.items()}


def penalty(K: Any, variant: str, rng: Any, log: Any) -> Any:
    """What is added to the loss: a function of an estimate from a few vjps."""
    if variant == "norm":
        return DECAY_NORM * te.frobenius_norm(K, n_probes=2, rng=rng).value
    return -REWARD_RANK * log(te.effective_rank(K, n_probes=3, rng=rng).value)


def with_jax(variant: str, steps: int) -> tuple[float, Any, float]:
    import jax
    import jax.numpy as jnp

    from traceest_adapters.jax import ntk

    def apply(p: Any, x: Any) -> Any:
        return jnp.tanh(x @ p["0.weight"].T) @ p["1.weight"].T

    def loss(p: Any, x: Any, y: Any, key: Any) -> Any:
        value = -jnp.take_along_axis(jax.nn.log_softmax(apply(p, x)), y[:, None], 1).mean()
        return value if variant == "plain" else value + penalty(ntk(apply, p, x[:SHOWN]), variant, key, jnp.log)

    @jax.jit
    def step(p: Any, x: Any, y: Any, key: Any) -> Any:
        return jax.tree.map(lambda a, g: a - RATE * g, p, jax.grad(loss)(p, x, y, key))

    digits = load(0)
    stream, p = batches(digits, 0), jax.tree.map(jnp.asarray, initial())
    times = [time.perf_counter()]
    for i in range(steps):
        x, y = next(stream)
        p = jax.block_until_ready(step(p, x.reshape(len(x), -1), y, jax.random.key(i)))
        times.append(time.perf_counter())
    predicted = np.argmax(apply(p, digits.test_images.reshape(-1, 64)), 1)
    K = ntk(apply, p, jnp.asarray(digits.probed.reshape(-1, 64)))
    return float(np.mean(predicted == digits.test_labels)), K, float(np.median(np.diff(times)))


def with_torch(variant: str, steps: int) -> tuple[float, Any, float]:
    import torch
    from torch import nn

    from traceest_adapters.torch import ntk

    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, SIZES[1], bias=False), nn.Tanh(), nn.Linear(SIZES[1], 10, bias=False)
    )
    with torch.no_grad():
        for p, a in zip(model.parameters(), initial().values(), strict=True):
            p.copy_(torch.from_numpy(a))
    optimiser, cross_entropy = torch.optim.SGD(model.parameters(), lr=RATE), nn.CrossEntropyLoss()
    digits = load(0)
    stream, generator = batches(digits, 0), torch.Generator().manual_seed(0)
    times = [time.perf_counter()]
    for _ in range(steps):
        x, y = (torch.from_numpy(a) for a in next(stream))
        loss = cross_entropy(model(x), y.long())
        if variant != "plain":
            K = ntk(model, x[:SHOWN], differentiable=True, check=False)
            loss = loss + penalty(K, variant, generator, torch.log)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        times.append(time.perf_counter())
    with torch.no_grad():
        predicted = model(torch.from_numpy(digits.test_images)).argmax(1).numpy()
    K = ntk(model, torch.from_numpy(digits.probed))
    return float(np.mean(predicted == digits.test_labels)), K, float(np.median(np.diff(times)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--framework", choices=("jax", "torch", "both"), default="both")
    parser.add_argument("--quick", action="store_true", help="60 steps instead of 1000")
    args = parser.parse_args()
    steps = 60 if args.quick else 1000
    runs = {"jax": with_jax, "torch": with_torch}
    for framework in runs if args.framework == "both" else [args.framework]:
        print(f"{framework}, {steps} steps\n{'':6} accuracy     norm     rank  ms/step")
        for variant in VARIANTS:
            accuracy, K, seconds = runs[framework](variant, steps)
            norm, rank = (float(f(K, method="exact")) for f in (te.frobenius_norm, te.effective_rank))
            print(f"{variant:6} {accuracy:8.3f} {norm:8.1f} {rank:8.2f} {1000 * seconds:8.2f}")


if __name__ == "__main__":
    main()
