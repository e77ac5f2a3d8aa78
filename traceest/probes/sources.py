"""Where random numbers come from: what `rng` stands for."""

from __future__ import annotations

from typing import Any, Protocol, cast

import numpy as np

from traceest import _backends


class Source(Protocol):
    """Random numbers, a probe a row; the state moves on with each call."""

    def signs(self, k: int, n: int) -> Any:
        """(k, n) fair ±1."""

    def normal(self, k: int, n: int) -> Any:
        """(k, n) independent standard normals."""

    def integers(self, k: int, n: int) -> Any:
        """(k, n) independent, uniform on −2³¹ … 2³¹ − 1, int32."""

    def child(self) -> Source:
        """Another one, whose numbers are independent of those that this one goes on to give."""


class HostSource:
    """NumPy's generator: the same numbers on every backend."""

    def __init__(self, rng: int | np.integer | np.random.Generator | None) -> None:
        self.rng = np.random.default_rng(rng)

    def _octets(self, k: int, bits: int) -> Any:
        """(k, 8w) random octets, w words a row: a whole number of 64-bit words, so that chunks cannot shift them."""
        words = self.rng.integers(0, 2**64, size=(k, -(-bits // 64)), dtype=np.uint64)
        return words.astype("<u8", copy=False).view(np.uint8)

    def signs(self, k: int, n: int) -> Any:
        """(k, n) fair ±1, int8."""
        # Bits are unpacked, which is ten times faster than drawing n·k integers.
        bits = np.unpackbits(self._octets(k, n), axis=1, count=n)
        return bits.view(np.int8) * np.int8(2) - np.int8(1)

    def normal(self, k: int, n: int) -> Any:
        """(k, n) independent standard normals, float64."""
        return self.rng.standard_normal((k, n))

    def integers(self, k: int, n: int) -> Any:
        """(k, n) independent, uniform on −2³¹ … 2³¹ − 1, int32."""
        return self._octets(k, 32 * n).view("<i4")[:, :n]

    def child(self) -> HostSource:
        """Another one, of a seed that this one draws."""
        return HostSource(np.random.default_rng(self.rng.integers(0, 2**63, size=4)))


def random_source(rng: Any) -> Source:
    """The source of random numbers that `rng` stands for.

    Raises
    ------
    ValueError
        If it is a negative number.
    TypeError
        If `rng` is none of the kinds that the head of `traceest.probes` names.
    """
    if isinstance(rng, (int, np.integer)) and not isinstance(rng, bool) and rng < 0:
        raise ValueError(f"rng must be a non-negative integer, got {rng}; for instance rng=0.")
    if rng is None or (isinstance(rng, (int, np.integer, np.random.Generator)) and not isinstance(rng, bool)):
        return HostSource(rng)
    if all(hasattr(rng, name) for name in ("signs", "normal", "integers", "child")):
        return cast(Source, rng)
    backend = _backends.find(rng)
    source = backend.random_source(rng) if backend is not None else None
    if source is None:
        raise TypeError(
            f"rng must be an int, a numpy.random.Generator, a JAX key or a torch.Generator, got {type(rng).__name__}; "
            "for instance rng=0."
        )
    return source
