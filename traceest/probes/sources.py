"""Where random numbers come from: what `rng` stands for."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol, cast

import numpy as np

from traceest import _backends
from traceest.uncertainty.estimate import _to_host

FEW = 64
"""Explicit probes of at least this many entries, signs included, are never equal by chance."""


class Source(Protocol):
    """Random numbers, a probe a row; the state moves on with each call."""

    def signs(self, k: int, n: int) -> Any:
        """(k, n) fair ±1."""

    def normal(self, k: int, n: int) -> Any:
        """(k, n) independent standard normals."""

    def integers(self, k: int, n: int) -> Any:
        """(k, n) independent, uniform on −2³¹ … 2³¹ − 1, int32."""

    def child(self) -> Source:
        """A new source, independent of the numbers that this one still gives."""

    def mark(self) -> str | None:
        """An identifier of the numbers to come; None where values are not known."""


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
        """A new source, seeded by this one."""
        return HostSource(np.random.default_rng(self.rng.integers(0, 2**63, size=4)))

    def mark(self) -> str:
        """The generator's state where it is short, so that `of_mark` can restore it; else a digest."""
        state = self.rng.bit_generator.state
        if state["bit_generator"] != "PCG64":
            return digest(repr(state).encode())
        numbers = *state["state"].values(), state["has_uint32"], state["uinteger"]
        return "-".join(["PCG64", *(f"{n:x}" for n in numbers)])

    @classmethod
    def of_mark(cls, mark: str) -> HostSource | None:
        """The source with that mark; None where the mark is a digest."""
        kind, *digits = mark.split("-")
        if kind != "PCG64" or len(digits) != 4:
            return None
        state, inc, has_uint32, uinteger = (int(x, 16) for x in digits)
        generator = np.random.PCG64(0)
        whole: Any = {"bit_generator": kind, "state": {"state": state, "inc": inc}}
        generator.state = whole | {"has_uint32": has_uint32, "uinteger": uinteger}
        return cls(np.random.Generator(generator))


def digest(octets: bytes) -> str:
    """32 hexadecimal digits for them."""
    return hashlib.blake2b(octets, digest_size=16).hexdigest()


def mark_of(rng: Any, probes: Any = None) -> str | None:
    """An identifier of the probes to come; None where values are not known, as inside transformations.

    Explicit probes are identified by their first, if it is too long to recur by chance.
    """
    if probes is None:
        return None if rng is None else getattr(random_source(rng), "mark", lambda: None)()
    if probes.shape[0] < FEW:
        return None
    try:
        return digest(np.ascontiguousarray(_to_host(probes[:, :1])).tobytes())
    except Exception:  # inside a transformation there are no values, and each framework has its own error for it
        return None


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
