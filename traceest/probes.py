"""Probe vectors, and the meaning of `rng`.

Every distribution here is isotropic, E[v vᴴ] = I, so that E[vᴴ A v] = tr A. `rng` may be

* an int or a `numpy.random.Generator`: numbers are drawn on the host, so that one seed gives the same
  probes on every backend; a Generator moves on as it is used;
* a JAX key or a `torch.Generator`: numbers are drawn on its device;
* None: fresh entropy. There is no global random state.

Draws do not depend on how they are chunked: probe i is the same whether asked for alone or among many.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Protocol, cast, get_args

import array_api_compat
import numpy as np

from traceest import _array_api as aa
from traceest import _backends
from traceest.hadamard import HadamardSet, order

Distribution = Literal["rademacher", "gaussian", "sphere", "orthogonal", "hadamard"]

ORTHOGONAL: tuple[Distribution, ...] = ("orthogonal", "hadamard")
"""Laws whose probes are not independent of each other, so that pairs of them tell nothing without bias."""

SHORT = 2**14
"""Rows to a block above which signs are not made orthogonal: of so many probes few are ever drawn, to no gain."""


class Source(Protocol):
    """Random numbers, a probe a row; the state moves on with each call."""

    def signs(self, k: int, n: int) -> Any:
        """(k, n) fair ±1."""

    def normal(self, k: int, n: int) -> Any:
        """(k, n) independent standard normals."""


class HostSource:
    """NumPy's generator: the same numbers on every backend."""

    def __init__(self, rng: int | np.integer | np.random.Generator | None) -> None:
        self.rng = np.random.default_rng(rng)

    def signs(self, k: int, n: int) -> Any:
        """(k, n) fair ±1, int8."""
        # A probe is a whole number of 64-bit words, so that chunking cannot shift the stream; bits are
        # unpacked, which is ten times faster than drawing n·k integers.
        words = self.rng.integers(0, 2**64, size=(k, -(-n // 64)), dtype=np.uint64)
        bits = np.unpackbits(words.astype("<u8").view(np.uint8), axis=1, count=n)
        return bits.view(np.int8) * np.int8(2) - np.int8(1)

    def normal(self, k: int, n: int) -> Any:
        """(k, n) independent standard normals, float64."""
        return self.rng.standard_normal((k, n))


def random_source(rng: Any) -> Source:
    """The source of random numbers that `rng` stands for.

    Raises
    ------
    TypeError
        If `rng` is none of the kinds that the module's head names.
    """
    if rng is None or (isinstance(rng, (int, np.integer, np.random.Generator)) and not isinstance(rng, bool)):
        return HostSource(rng)
    if hasattr(rng, "signs") and hasattr(rng, "normal"):
        return cast(Source, rng)
    backend = _backends.find(rng)
    source = backend.random_source(rng) if backend is not None else None
    if source is None:
        raise TypeError(
            f"rng must be an int, a numpy.random.Generator, a JAX key or a torch.Generator, got {type(rng).__name__}; "
            "for instance rng=0."
        )
    return source


class Probes:
    """A stream of probes for one operator: `take(k)` gives the next (n, k).

    Parameters
    ----------
    n : int
        Length of a probe.
    like : array or operator
        Gives namespace, dtype and device.
    rng, distribution
        See the module's head and `Distribution`. None is for samples of blocks: signs, orthogonal to each other where
        blocks are several and short.
    n_blocks : int
        Probes fall into this many contiguous runs of equal length; sphere, orthogonal and Hadamard probes are
        normalised and orthogonalised within each.
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
        probes: Any = None,
    ) -> None:
        if distribution is None:
            distribution = "hadamard" if n_blocks > 1 and n // n_blocks <= SHORT else "rademacher"
        if distribution not in get_args(Distribution):
            raise ValueError(f"distribution must be one of {', '.join(get_args(Distribution))}, got {distribution!r}.")
        self.n, self.n_blocks, self.distribution = n, n_blocks, distribution
        self.xp, self.dtype, self.device = aa.namespace(like), like.dtype, aa.device(like)
        self.explicit, self.drawn = probes, 0
        self._source = random_source(rng) if probes is None else None
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
    def goes_on(self) -> bool:
        """Whether a call of `chunks` goes on with the orthogonal set of the one before."""
        return self.explicit is None and self.distribution == "hadamard"

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
        if self.distribution == "rademacher":
            return self._rademacher(k)
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
                kinds = 2 if aa.is_complex(self.xp, self.dtype) else 1
                self._set, self._used = HadamardSet(self.n, self.n_blocks, kinds, self._source), 0
            taken = min(k, self._set.N - self._used)
            rows = self._set.rows(self._used, self._used + taken)
            pieces.append(self._signs(*(rows[i, ...].T for i in range(rows.shape[0]))))
            self._used, k = self._used + taken, k - taken
        return aa.concat_columns(self.xp, pieces)

    def _rademacher(self, k: int) -> Any:
        return self._signs(*(self._draw("signs", k) for _ in range(2 if aa.is_complex(self.xp, self.dtype) else 1)))

    def _signs(self, re: Any, im: Any = None) -> Any:
        """Those signs; complex, uniform on {±1 ± i}/√2, which has the fourth roots' law, turned."""
        return self._cast(re) if im is None else (self._cast(re) + 1j * self._cast(im)) * 0.5**0.5

    def _gaussian(self, k: int) -> Any:
        if aa.is_complex(self.xp, self.dtype):
            return (self._cast(self._draw("normal", k)) + 1j * self._cast(self._draw("normal", k))) * 0.5**0.5
        return self._cast(self._draw("normal", k))

    def _haar(self, X: Any) -> Any:
        """Haar-distributed orthonormal columns, at most d to a set: Q of a Gaussian, R's diagonal made positive."""
        d, k = X.shape[1], X.shape[2]
        sets = []
        for i in range(0, k, d):
            Q, R = self.xp.linalg.qr(X[:, :, i : min(i + d, k)])[:2]
            r = self.xp.linalg.diagonal(R)
            sets.append(Q * (r / self.xp.astype(self.xp.abs(r), r.dtype))[:, None, :])
        return aa.concat_columns(self.xp, sets)

    def _draw(self, what: str, k: int) -> Any:
        return getattr(self._source, what)(k, self.n).T

    def _cast(self, x: Any) -> Any:
        """To the operator's dtype and device, moving as few bytes as may be."""
        xp = self.xp
        if isinstance(x, np.ndarray):
            if x.dtype == np.float64 and xp.finfo(self.dtype).bits < 64:
                x = x.astype(np.float32)
            x = xp.asarray(x)  # in JAX nine times as fast as with device=
            if self.device is not None and aa.device(x) != self.device:
                x = array_api_compat.to_device(x, self.device)
        return xp.astype(x, self.dtype)


def _on_sphere(X: Any) -> Any:
    """(n_blocks, d, k), each column of each block of length √d."""
    xp = aa.namespace(X)
    length2 = xp.sum(aa.abs2(xp, X), axis=1, keepdims=True)
    return X * xp.astype(xp.sqrt(X.shape[1] / length2), X.dtype)


def independent(distribution: Distribution) -> Distribution:
    """The law that one probe of `distribution` has, or nearly has, without regard to the others."""
    alone: dict[Distribution, Distribution] = {"orthogonal": "sphere", "hadamard": "rademacher"}
    return alone.get(distribution, distribution)


def directions(distribution: Distribution) -> Distribution:
    """The law to draw from where the lengths of probes do not matter: on the sphere as without it, for less work."""
    return "gaussian" if distribution == "sphere" else distribution


def _distribution(name: Distribution, doc: str) -> Any:
    def draw(n: int, k: int, *, rng: Any = None, like: Any = None, n_blocks: int = 1) -> Any:
        like = np.empty(0) if like is None else like
        if n % n_blocks:
            raise ValueError(f"{name}: n = {n} rows do not fall into n_blocks = {n_blocks} equal blocks.")
        return Probes(n, like, rng=rng, distribution=name, n_blocks=n_blocks).take(k)

    draw.__name__ = draw.__qualname__ = name
    draw.__doc__ = f"""{doc}

    Parameters
    ----------
    n, k : int
        Length and number of the probes.
    rng : int, numpy.random.Generator, JAX key, torch.Generator or None
        See the head of `traceest.probes`.
    like : array or operator, optional
        Gives namespace, dtype and device; NumPy float64 if absent.
    n_blocks : int
        Number of contiguous runs of rows that are normalised (and orthogonalised) apart.

    Returns
    -------
    array, (n, k)
        One probe a column.

    Examples
    --------
    >>> import traceest as te
    >>> te.probes.{name}(6, 3, rng=0).shape
    (6, 3)
    """
    return draw


rademacher = _distribution("rademacher", "Independent fair signs ±1 (complex: (±1 ± i)/√2). Variance 2(‖A‖² − Σ aᵢᵢ²).")
gaussian = _distribution("gaussian", "Independent standard normals. Variance 2‖A‖².")
sphere = _distribution("sphere", "Uniform on the sphere of radius √n. Variance 2n/(n+2)·(‖A‖² − (tr A)²/n).")
orthogonal = _distribution(
    "orthogonal",
    "Haar-random orthogonal vectors of length √n: standard deviation of the sphere's times √((n−k)/(n−1)).",
)
hadamard = _distribution(
    "hadamard",
    "Signs that are orthogonal to each other, drawn without replacement from N of them, N the next power of two: "
    "Rademacher's standard deviation times √((N−k)/(N−1)).",
)
