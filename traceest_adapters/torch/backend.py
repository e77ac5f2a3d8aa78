"""What the core needs of PyTorch and cannot reach through the Array API: generators, and the pytree registry."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils import _pytree

from traceest import _backends
from traceest.probes.sources import digest
from traceest_adapters._pytrees import RESULTS, flatten, unflatten
from traceest_adapters.torch import constants


class TorchSource:
    """Random numbers from a `torch.Generator`, drawn on its device.

    A probe is drawn by a call of its own: PyTorch's stream depends on the size of each call, and probes are
    not to depend on how they are chunked.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def _rows(self, k: int, draw: Any) -> Any:
        return torch.stack([draw() for _ in range(k)])

    def signs(self, k: int, n: int) -> Any:
        """(k, n) fair ±1, a bit each."""
        g = self.generator

        def draw() -> Any:
            return torch.empty(-(-n // 64), dtype=torch.int64, device=g.device).random_(-(2**63), None, generator=g)

        octets = self._rows(k, draw).view(torch.uint8)[..., None]
        bits = (octets >> torch.arange(8, dtype=torch.uint8, device=g.device)) & 1
        return 2 * bits.view(torch.int8).reshape(k, -1)[:, :n] - 1

    def normal(self, k: int, n: int) -> Any:
        """(k, n) independent standard normals, in float32: in float64 a draw costs four times as much."""
        g = self.generator
        return self._rows(k, lambda: torch.randn(n, generator=g, device=g.device, dtype=torch.float32))

    def integers(self, k: int, n: int) -> Any:
        """(k, n) independent, uniform on −2³¹ … 2³¹ − 1, int32."""
        g = self.generator

        def draw() -> Any:
            return torch.empty(n, dtype=torch.int32, device=g.device).random_(-(2**31), 2**31, generator=g)

        return self._rows(k, draw)

    def child(self) -> TorchSource:
        """Another one, of a seed that this one draws."""
        g = self.generator
        seed = torch.empty((), dtype=torch.int64, device=g.device).random_(generator=g)
        return TorchSource(torch.Generator(g.device).manual_seed(int(seed)))

    def mark(self) -> str:
        """A digest of the generator's state."""
        return digest(self.generator.get_state().numpy().tobytes())


class _Backend:
    compiled = strict = None

    def without_values(self, arrays: Any) -> bool:
        """False: there are no traces through which estimates pass."""
        return False

    def student_quantile(self, df: Any, p: float) -> Any:
        """Never asked for."""
        raise NotImplementedError

    def copied(self, x: torch.Tensor) -> torch.Tensor:
        """A clone, on the graph that `x` is on."""
        return x.clone()

    def like(self, A: Any) -> None:
        """None: PyTorch's objects that multiply are tensors."""

    def random_source(self, rng: Any) -> TorchSource | None:
        return TorchSource(rng) if isinstance(rng, torch.Generator) else None

    def marked(self, x: Any, sources: Any) -> Any:
        return constants.marked(x, sources)

    def differentiated(self, x: Any) -> bool:
        """Whether `x` has a graph, or is inside a transformation that may take derivatives."""
        inside = torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0
        return bool(x.requires_grad) or inside

    def constant(self, x: Any) -> Any:
        """`x` without its graph."""
        return x.detach()


backend = _Backend()


def _register(kind: type) -> None:
    build = unflatten(kind)
    _pytree.register_pytree_node(kind, flatten, lambda children, static: build(static, children))


for _kind in RESULTS:
    _register(_kind)
_backends.register("torch", backend)
