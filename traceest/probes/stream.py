"""A stream of probes for one operator."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, get_args

import array_api_compat
import numpy as np

from traceest import _array_api as aa
from traceest import _backends
from traceest._boundary import public
from traceest.operators.layout import Layout
from traceest.probes import balanced_signs
from traceest.probes.laws import ORTHOGONAL, SIGNS, Distribution, of_samples
from traceest.probes.orthogonal_signs import HadamardSet, order
from traceest.probes.sources import HostSource, mark_of, random_source
from traceest.uncertainty.doubt import FEW_PAIRS, FEW_SAMPLES, Doubt

SEEN = 4
"""Times that the rarer sum of balanced signs has to be expected for its share in the error to be seen in samples."""


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
        if distribution not in get_args(Distribution):
            raise ValueError(f"distribution must be one of {', '.join(get_args(Distribution))}, got {distribution!r}.")
        self.layout = layout or Layout(n // n_blocks, 1, 1)
        self.n, self.n_blocks, self.distribution = n, n_blocks, distribution
        self.xp, self.dtype, self.device = aa.namespace(like), like.dtype, aa.device(like)
        self.explicit, self.drawn = probes, 0
        self._source: Any = random_source(rng) if probes is None else None
        # With the law, so that the first probe of all can be drawn again (`again`).
        mark = mark_of(None if probes is None and rng is None else self._source, probes)
        self.marks = () if mark is None else (f"{distribution}:{mark}",)
        self._set: HadamardSet | None = None
        self._used = 0  # columns of it

    @property
    def population(self) -> int | None:
        """Number of probes in an orthogonal set, for the finite-population error; None where they are independent."""
        if self.explicit is not None or self.distribution not in ORTHOGONAL:
            return None
        d = self.n // self.n_blocks
        return d if self.distribution == "orthogonal" else order(d)

    @property
    def doubt(self) -> Doubt:
        """How far off a form of those drawn so far may be, relative, without their spread telling of it; 0 in general.

        The sums of balanced signs over a feature's positions have squares of two values. Where the rarer one is not
        expected a few times among all that were drawn, a constant may have been met with the other alone.
        """
        return self._doubt(self.explicit is None, FEW_SAMPLES)

    def doubt_of_pairs(self, known: bool) -> Doubt:
        """The same for products of two of those drawn, whose law is `known` to be what is named, or may be any."""
        return self._doubt(known, FEW_PAIRS).of_squares()

    def _doubt(self, known: bool, few: int) -> Doubt:
        signs = not known or self.distribution in SIGNS
        return Doubt(self._of_constants if known else 0.0, signs and self.drawn < few)

    @property
    def _of_constants(self) -> float:
        if self.distribution != "balanced":
            return 0.0
        T = self.layout.positions
        low, high, larger = balanced_signs.sums(T)
        rarer = min(larger, 1 - larger)
        if rarer == 0 or rarer * self.drawn * self.n_blocks * self.layout.features >= SEEN:
            return 0.0
        return max(abs(T / low**2 - 1) if low else 1.0, abs(T / high**2 - 1))

    @property
    def goes_on(self) -> bool:
        """Whether a call of `chunks` goes on with the orthogonal set of the one before."""
        return self.explicit is None and self.distribution == "hadamard"

    @public
    def take(self, k: int) -> Any:
        """The next k probes, (n, k); of an orthogonal law, the first of a set."""
        self._set = None
        V = self._take(k)
        self._set = None
        return V

    def _take(self, k: int) -> Any:
        self.drawn += k
        if self.explicit is not None:
            return self.explicit[:, self.drawn - k : self.drawn]
        if self.distribution == "hadamard":
            return self._hadamard(k)
        if self.distribution in ("rademacher", "balanced"):
            return self._signs(*(self._independent_signs(k) for _ in range(self._kinds)))
        X = self._gaussian(k)
        if self.distribution == "gaussian":
            return X
        d = self.n // self.n_blocks
        X = self.xp.reshape(X, (self.n_blocks, d, k))
        if self.distribution == "sphere":
            X = _backends.compiled(_on_sphere, (), X, X)
        else:
            X = self._haar(X) * d**0.5
        return self.xp.reshape(X, (self.n, k))

    def skip(self, k: int) -> None:
        """Pass over the next k probes, which a run before this one has used."""
        for i in range(0, k, 64):
            self.take(min(64, k - i))

    def again(self, marks: tuple[str, ...]) -> Any:
        """The first probe, (n, 1), of a stream for the same operator that had those marks; None if they do not tell."""
        law, _, mark = marks[0].partition(":") if marks else ("", "", "")
        source = HostSource.of_mark(mark) if law in get_args(Distribution) else None
        if source is None:
            return None
        like: Any = self
        other = Probes(self.n, like, rng=source, distribution=law, n_blocks=self.n_blocks, layout=self.layout)  # type: ignore[arg-type]
        return next(other.chunks(1, 1))

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        return self.xp

    def chunks(self, m: int, chunk: int) -> Iterator[Any]:
        """The next m probes in pieces of at most `chunk` columns."""
        if self.distribution == "orthogonal" and self.explicit is None:  # orthogonal to each other: all at once
            V = self.take(m)
            yield from (V[:, i : min(i + chunk, m)] for i in range(0, m, chunk))
        else:
            yield from (self._take(min(chunk, m - i)) for i in range(0, m, chunk))

    def state(self) -> dict[str, Any]:
        """How many probes were drawn, and the set that they are of."""
        return {"drawn": self.drawn} | ({} if self._set is None else self._set.state())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the arrays in `state`, by name."""
        return HadamardSet.shapes(self.n, self.n_blocks, self._kinds) if self.goes_on else {}

    def sound(self, name: str, x: np.ndarray) -> bool:
        """Whether the array of that name in a state may hold these whole numbers."""
        if name == "signs":
            return bool(np.all(np.abs(x) == 1))
        return bool(np.all((x >= 0) & (x < order(self.n // self.n_blocks))))

    def restore(self, state: dict[str, Any]) -> None:
        """Go on after those probes: with their set, whatever `rng` is now; or else without the same numbers again."""
        self._set = HadamardSet.of_state(self.n, self.n_blocks, state)
        if self._set is None:
            self.skip(int(state["drawn"]))
        else:
            self.drawn = int(state["drawn"])
            self._used = 1 + (self.drawn - 1) % self._set.N

    def _hadamard(self, k: int) -> Any:
        """Columns of Hadamard sets, as many sets as it takes."""
        pieces = []
        while k:
            if self._set is None or self._used == self._set.N:
                self._set, self._used = HadamardSet(self.n, self.n_blocks, self._kinds, self._source), 0
            taken = min(k, self._set.N - self._used)
            rows = self._set.rows(self._used, self._used + taken)
            pieces.append(self._signs(*(rows[i, ...].T for i in range(rows.shape[0]))))
            self._used, k = self._used + taken, k - taken
        return aa.concat_columns(self.xp, pieces)

    @property
    def _kinds(self) -> int:
        """Signs that a number is made of: real and imaginary part."""
        return 2 if aa.is_complex(self.xp, self.dtype) else 1

    def _independent_signs(self, k: int) -> Any:
        if self.distribution == "rademacher":
            return self._source.signs(k, self.n).T
        return balanced_signs.signs(self._source, k, self.n_blocks, self.layout).T

    def _signs(self, re: Any, im: Any = None) -> Any:
        """Those signs; complex, uniform on {±1 ± i}/√2, which has the fourth roots' law, turned."""
        return self._cast(re) if im is None else (self._cast(re) + 1j * self._cast(im)) * 0.5**0.5

    def _normal(self, k: int) -> Any:
        return self._cast(self._source.normal(k, self.n).T)

    def _gaussian(self, k: int) -> Any:
        if aa.is_complex(self.xp, self.dtype):
            return (self._normal(k) + 1j * self._normal(k)) * 0.5**0.5
        return self._normal(k)

    def _haar(self, X: Any) -> Any:
        """Haar-distributed orthonormal columns, at most d to a set: Q of a Gaussian, R's diagonal made positive."""
        d, k = X.shape[1], X.shape[2]
        sets = []
        for i in range(0, k, d):
            Q, R = self.xp.linalg.qr(X[:, :, i : min(i + d, k)])[:2]
            r = self.xp.linalg.diagonal(R)
            sets.append(Q * (r / self.xp.astype(self.xp.abs(r), r.dtype))[:, None, :])
        return aa.concat_columns(self.xp, sets)

    def _cast(self, x: Any) -> Any:
        """To the operator's dtype and device, moving as few bytes as may be."""
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


def _on_sphere(X: Any) -> Any:
    """(n_blocks, d, k), each column of each block of length √d."""
    xp = aa.namespace(X)
    length2 = xp.sum(aa.abs2(xp, X), axis=1, keepdims=True)
    return X * xp.astype(xp.sqrt(X.shape[1] / length2), X.dtype)
