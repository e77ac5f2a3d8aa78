"""The paper's models, in JAX and, with the same weights and inputs, in PyTorch; and what all of its scripts share."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "benchmarks"))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import mnist  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from estimators import revision  # noqa: E402
from gru import jax_gru  # noqa: E402
from torch import nn  # noqa: E402

import traceest as te  # noqa: E402
from traceest_adapters import jax as in_jax  # noqa: E402
from traceest_adapters import torch as in_torch  # noqa: E402


@dataclass
class Case:
    """A model with inputs, as a kernel of independent examples and as a kernel of one block."""

    name: str
    function: Callable[..., Any]
    module: nn.Module
    inputs: torch.Tensor
    torch_options: dict[str, Any] = field(default_factory=dict)

    def _kernel(self, batch_axis: int | None) -> te.Gram:
        params = {name: jnp.asarray(p.detach().numpy()) for name, p in self.module.named_parameters()}
        return in_jax.ntk(self.function, params, jnp.asarray(self.inputs.numpy()), batch_axis=batch_axis)

    @cached_property
    def blocks(self) -> te.Gram:
        """The kernel, known to be that of independent examples."""
        return self._kernel(0)

    @cached_property
    def whole(self) -> te.Gram:
        """The same as the paper sees it, with nothing known of its rows."""
        return self._kernel(None)

    @cached_property
    def in_torch(self) -> te.Gram:
        """The same in PyTorch."""
        return in_torch.ntk(self.module, self.inputs, **self.torch_options)

    @property
    def sizes(self) -> dict[str, int]:
        """n states in B examples, P parameters."""
        J: Any = self.blocks.factor
        return {"n": J.shape[0], "P": J.shape[1], "B": J.n_blocks}


def chain(p: dict[str, Any], x: Any, last: bool) -> Any:
    """`nn.Sequential` of linear layers with ReLU between them, and after the last one if `last`."""
    layers = sorted({int(name.split(".")[0]) for name in p})
    for i in layers:
        x = x @ p[f"{i}.weight"].T + p[f"{i}.bias"]
        x = jax.nn.relu(x) if last or i < layers[-1] else x
    return x


@cache
def mlp(quick: bool = False) -> Case:
    """15 linear layers of width 64, ReLU after each, and 50 random inputs of 100."""
    depth, width, inputs, examples = (4, 8, 6, 5) if quick else (15, 64, 100, 50)
    torch.manual_seed(0)
    widths = [inputs, *[width] * depth]
    module = nn.Sequential(*(m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())))
    return Case("MLP", lambda p, x: chain(p, x, last=True), module, torch.randn(examples, inputs))


@cache
def gru(quick: bool = False) -> Case:
    """10 inputs, 64 hidden units, 50 time steps, 15 sequences; the state is every hidden unit at every step."""
    inputs, hidden, steps, sequences = (4, 8, 6, 5) if quick else (10, 64, 50, 15)
    torch.manual_seed(0)
    module = nn.GRU(inputs, hidden, batch_first=True)
    return Case("GRU", jax_gru, module, torch.randn(sequences, steps, inputs), {"output": 0})


def classifiers(quick: bool = False) -> tuple[Case, Case, float]:
    """784–256–256–10 on MNIST before and after training, seen on images held out of it; and its test accuracy."""
    *modules, accuracy = mnist.train(1 if quick else mnist.EPOCHS)
    x = mnist.data()[0][: 16 if quick else mnist.PROBED]
    initial, trained = (Case("classifier", lambda p, x: chain(p, x, last=False), m, x) for m in modules)
    return initial, trained, accuracy


def seconds(f: Callable[[], Any]) -> float:
    """Of one call."""
    start = time.perf_counter()
    jax.block_until_ready(f())
    return time.perf_counter() - start


def options(doc: str | None, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line that the scripts share; `out` is where data and figures go, or None."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, help="independent runs for each number; default 20")
    parser.add_argument(
        "--quick", action="store_true", help="small models: prints only, unless --out says where to write"
    )
    parser.add_argument("--share", type=float, default=1.0, help="of the direct way's products, to time; default all")
    parser.add_argument("--out", type=Path, help="folder for data/ and figures/; default: beside this file")
    found = parser.parse_args(argv)
    found.out = found.out or (None if found.quick else HERE)
    found.seeds = found.seeds or (3 if found.quick else 20)
    return found


def write(out: Path | None, name: str, result: dict[str, Any]) -> dict[str, Any]:
    """The result with where it comes from, in data/`name`.json."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    result = {"revision": revision(), "jax": jax.__version__, "cores": os.cpu_count(), "peak_bytes": peak, **result}
    if out is not None:
        path = out / "data" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
    return result


def read(out: Path, name: str) -> dict[str, Any]:
    """What `write` has written."""
    return json.loads((out / "data" / f"{name}.json").read_text())


def rms(errors: Any) -> float:
    """√ of the mean square."""
    return float(np.sqrt(np.mean(np.square(errors))))
