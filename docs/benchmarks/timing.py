"""Timing what may run on another device, and saying on what it ran."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any


def on_gpu() -> None:
    """Have PyTorch make its tensors on the GPU; JAX goes there by itself.

    Raises
    ------
    SystemExit
        If there is no GPU that PyTorch sees.
    """
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("no GPU: nothing measured")
    torch.set_default_device("cuda")


def wait(x: Any) -> Any:
    """`x`, when whatever computes it is done."""
    import sys

    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
    return x if jax is None else jax.block_until_ready(x)


def seconds(f: Callable[[], Any]) -> float:
    """Of one call."""
    start = time.perf_counter()
    wait(f())
    return time.perf_counter() - start


def median(f: Callable[[], Any], most: float = 1.0, repeats: int = 7) -> float:
    """Seconds of a call, a median of several after the first, as many as `most` seconds allow."""
    seconds(f)
    times = [seconds(f)]
    while len(times) < repeats and sum(times) < most:
        times.append(seconds(f))
    return statistics.median(times)


def peak(n: int = 3000) -> float:
    """Flops a second of a float32 matrix product of size n: PyTorch's, on its default device and with its threads."""
    import torch

    A = torch.randn(n, n)
    return 2 * n**3 / min(seconds(lambda: A @ A) for _ in range(7))


def machine() -> str:
    """Threads and device that numbers come from."""
    import torch

    where = torch.cuda.get_device_name() if torch.get_default_device().type == "cuda" else "CPU"
    threads = torch.get_num_threads()
    return f"{where}, {threads} thread{'s' if threads > 1 else ''} of {os.cpu_count()} cores"


def show(s: float | None) -> str:
    """Seconds for people."""
    if s is None:
        return "–"
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if s >= size * (2 if size > 1 else 1):
            return f"{s / size:.3g} {unit}"
    return f"{1e6 * s:.3g} µs"
