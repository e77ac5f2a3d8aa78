"""A stream of probes for one operator."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import array_api_compat
import numpy as np

from traceest import _array_api as aa
from traceest._boundary import public
from traceest.operators.layout import Layout
from traceest.probes.laws import LAWS, Distribution, named, of_samples
from traceest.probes.orthogonal_signs import HadamardSet
from traceest.probes.sources import HostSource, mark_of, random_source
from traceest.uncertainty.doubt import FEW_PAIRS, FEW_SAMPLES, Doubt


class Probes:
    """A stream of probes for one operator: `take(k)` gives the next (n, k).

    Parameters
    ----------
    n : int
        Length of a probe.
    like : array or operator
        Gives namespace, dtype and device.
    rng, distribution
        See the package's head and `Distribution`. None is for samples of forms: signs, balanced over the positions of
        each feature where there are any, or else orthogonal to each other where blocks are several and short.
    n_blocks : int
        Probes fall into this many contiguous runs of equal length; sphere, orthogonal, Hadamard and balanced probes
        are normalised, orthogonalised and balanced within each.
    layout : Layout, optional
        Of each block's rows, if it is known.
    probes : array, (n, m), optional
        Explicit probes instead of random ones.

    Notes
    -----
    What one call of `take` gives is independent of what any other gives, as a sketch and the probes of what it leaves
    have to be. `chunks` goes on with the Hadamard set of the call before it (`goes_on`).
    """

    def __init__(
        self,
        n: int,
        like: Any,
        *,
        rng: Any = None,
        distribution: Distribution | None = "rademacher",
        n_blocks: int = 1,
        layout: Layout | None = None,
        probes: Any = None,
    ) -> None:
        if layout is not None and n_blocks * math.prod(layout) != n:
            raise ValueError(f"layout {tuple(layout)} of {n_blocks} blocks does not make n = {n} rows.")
        if distribution is None:
            distribution = of_samples(n, n_blocks, layout)
        self.law = named(distribution)
        self.layout = layout or Layout(n // n_blocks, 1, 1)
        self.n, self.n_blocks = n, n_blocks
        self.xp, self.dtype, self.device = aa.namespace(like), like.dtype, aa.device(like)
        self.explicit, self.drawn = probes, 0
        self.source: Any = random_source(rng) if probes is None else None
        # With the law, so that the first probe of all can be drawn again (`again`).
        mark = mark_of(None if probes is None and rng is None else self.source, probes)
        self.marks = () if mark is None else (f"{self.distribution}:{mark}",)
        self._set: HadamardSet | None = None
        self._used = 0  # columns of it

    @property
    def distribution(self) -> Distribution:
        """The name of its law."""
        return self.law.name

    @property
    def population(self) -> int | None:
        """Number of probes that exist, for the finite-population error; None where they are independent."""
        return None if self.explicit is not None else self.law.population(self.n // self.n_blocks)

    @property
    def doubt(self) -> Doubt:
        """Errors of forms of the probes drawn so far that the spread of the samples cannot show."""
        return self._doubt(self.explicit is None, FEW_SAMPLES)

    def doubt_of_pairs(self, known: bool) -> Doubt:
        """The same for products of two of those drawn, whose law is `known` to be what is named, or may be any."""
        return self._doubt(known, FEW_PAIRS).of_squares()

    def _doubt(self, known: bool, few: int) -> Doubt:
        signs = not known or self.law.unit_modulus
        return Doubt(self.law.unseen(self) if known else 0.0, signs and self.drawn < few)

    @property
    def goes_on(self) -> bool:
        """Whether a call of `chunks` continues the set of the call before."""
        return self.explicit is None and self.law.sets is not None

    @public
    def take(self, k: int) -> Any:
        """The next k probes, (n, k); the first of a set, where they come in sets."""
        self._set = None
        V = self._take(k)
        self._set = None
        return V

    def _take(self, k: int) -> Any:
        self.drawn += k
        if self.explicit is not None:
            return self.explicit[:, self.drawn - k : self.drawn]
        return self.law.draw(self, k)

    def skip(self, k: int) -> None:
        """Skip the next k probes, which an earlier run has used."""
        for i in range(0, k, 64):
            self.take(min(64, k - i))

    def again(self, marks: tuple[str, ...]) -> Any:
        """The first probe, (n, 1), of the stream with those marks, for this operator; None if it cannot be redrawn."""
        law, _, mark = marks[0].partition(":") if marks else ("", "", "")
        source = HostSource.of_mark(mark) if law in LAWS else None
        if source is None:
            return None
        like: Any = self
        other = Probes(self.n, like, rng=source, distribution=law, n_blocks=self.n_blocks, layout=self.layout)
        return next(other.chunks(1, 1))

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        return self.xp

    def chunks(self, m: int, chunk: int) -> Iterator[Any]:
        """The next m probes in pieces of at most `chunk` columns."""
        if self.population is not None and not self.goes_on:  # orthogonal to each other: all at once
            V = self.take(m)
            yield from (V[:, i : min(i + chunk, m)] for i in range(0, m, chunk))
        else:
            yield from (self._take(min(chunk, m - i)) for i in range(0, m, chunk))

    def state(self) -> dict[str, Any]:
        """The number of probes drawn, and the set they belong to."""
        return {"drawn": self.drawn} | ({} if self._set is None else self._set.state())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the arrays in `state`, by name."""
        return self.law.sets.shapes(self.n, self.n_blocks, self.parts) if self.goes_on and self.law.sets else {}

    def sound(self, name: str, x: np.ndarray) -> bool:
        """Whether the array of that name in a state may hold these integers."""
        return self.law.sets is not None and self.law.sets.sound(self.n // self.n_blocks, name, x)

    def restore(self, state: dict[str, Any]) -> None:
        """Continue after the probes of `state`: with their set, whatever `rng` is, or else by skipping as many."""
        self._set = None if self.law.sets is None else self.law.sets.of_state(self.n, self.n_blocks, state)
        if self._set is None:
            self.skip(int(state["drawn"]))
        else:
            self.drawn = int(state["drawn"])
            self._used = 1 + (self.drawn - 1) % self._set.N

    # -- what laws draw with ---------------------------------------------------------------------
    @property
    def parts(self) -> int:
        """Real numbers that an entry is made of: two of a complex one."""
        return 2 if aa.is_complex(self.xp, self.dtype) else 1

    def entries(self, parts: list[Any]) -> Any:
        """Real parts of variance one as entries of the operator's dtype; of signs complex ones are {±1 ± i}/√2."""
        re, *im = (self._cast(x) for x in parts)
        return (re + 1j * im[0]) * 0.5**0.5 if im else re

    def normal(self, k: int) -> Any:
        """Independent standard normals, (n, k)."""
        return self.entries([self.source.normal(k, self.n).T for _ in range(self.parts)])

    def by_blocks(self, X: Any) -> Any:
        """(n, k) as (n_blocks, d, k)."""
        return self.xp.reshape(X, (self.n_blocks, self.n // self.n_blocks, X.shape[1]))

    def of_sets(self, k: int) -> Iterator[Any]:
        """The next k columns of sets, (parts, …, n), as many sets as it takes."""
        while k:
            if self._set is None or self._used == self._set.N:
                self._set, self._used = self.law.sets(self.n, self.n_blocks, self.parts, self.source), 0  # type: ignore[misc]
            taken = min(k, self._set.N - self._used)
            yield self._set.rows(self._used, self._used + taken)
            self._used, k = self._used + taken, k - taken

    def _cast(self, x: Any) -> Any:
        """`x` in the operator's dtype and on its device, moving as few bytes as possible."""
        xp = self.xp
        if isinstance(x, np.ndarray):
            if x.dtype == np.float64 and xp.finfo(self.dtype).bits < 64:
                x = x.astype(np.float32)
            x = xp.asarray(x)  # in JAX nine times as fast as with device=
            if self.device is not None and aa.device(x) != self.device:
                x = array_api_compat.to_device(x, self.device)
        elif (drawn := aa.namespace(x)) is not xp:
            raise TypeError(
                f"rng draws arrays of {aa.library(drawn)}, and the operator's are of {aa.library(xp)}; give an int or "
                "a numpy.random.Generator, whose numbers go with any library."
            )
        elif None not in (self.device, aa.device(x)) and aa.device(x) != self.device:  # of a key that lives elsewhere
            x = array_api_compat.to_device(x, self.device)
        return xp.astype(x, self.dtype)
