"""The laws that probes are drawn from: what estimators ask of each, and which is meant where none is named."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from traceest import _array_api as aa
from traceest import _backends
from traceest.operators.layout import Layout
from traceest.probes import balanced_signs
from traceest.probes.orthogonal_signs import HadamardSet, order

if TYPE_CHECKING:
    from traceest.probes.stream import Probes

Distribution: TypeAlias = str
"""The name of a law."""

LAWS: dict[str, Law] = {}
"""All laws, by name."""

SHORT = 2**14
"""Rows to a block above which signs are not made orthogonal: of so many probes few are ever drawn, to no gain."""

LONG = 128
"""Rows to a block above which signs are balanced rather than orthogonal: few of so many are drawn in general."""

POSITIONS = 4
"""Positions of a feature below which there is nothing to balance."""

SEEN = 4
"""Times that the rarer sum of balanced signs has to be expected for its share in the error to be seen in samples."""


class Law:
    """A law of probes, isotropic: E[vvᴴ] = I.

    Defining a subclass with a `name` adds a law: ``distribution="name"`` means it in every call, and
    ``traceest.probes.name(n, k)`` draws from it.
    """

    name: ClassVar[str]

    independent: ClassVar[bool] = True
    """Probes are independent of each other; products of two that are not would be biased."""

    unit_modulus: ClassVar[bool] = False
    """Every entry has modulus one."""

    invariant: ClassVar[bool] = False
    """Probes are independent, and no rotation changes the law of one: gradients tell the variance of a form."""

    fixed_norm: ClassVar[bool] = False
    """‖v‖² = n, in each block."""

    sets: ClassVar[type[HadamardSet] | None] = None
    """The class of sets that probes come in, where a later call continues the set of the one before."""

    def __init_subclass__(cls) -> None:
        LAWS[cls.name] = cls()

    @property
    def alone(self) -> Law:
        """The law that one probe has, or nearly has, without regard to the others."""
        return self

    @property
    def directions(self) -> Law:
        """A law of the same directions that is cheaper to draw from, for where lengths do not matter."""
        return self

    def draw(self, stream: Probes, k: int) -> Any:
        """The next k probes of the stream, (n, k)."""
        raise NotImplementedError(f"{type(self).__name__}: a law needs draw(stream, k).")

    def population(self, d: int) -> int | None:
        """Number of probes of d rows that exist, where they are drawn without replacement."""
        return None

    def unseen(self, stream: Probes) -> float:
        """Relative error of a form of the probes drawn so far that the spread of the samples cannot show."""
        return 0.0

    def pair_factor(self, n: int, kappa: int) -> float | None:
        """The a in E[vᴴAv · vᴴBv] = a (tr A tr B + κ tr AB), κ = 2 (real) or 1 (complex), for self-adjoint A and B.

        None where no a is right for all of them.
        """
        return None


class Rademacher(Law):
    """Independent fair signs ±1 (complex: (±1 ± i)/√2). Variance 2(‖A‖² − Σ aᵢᵢ²)."""

    name = "rademacher"
    unit_modulus = fixed_norm = True

    def draw(self, stream: Probes, k: int) -> Any:
        """The next k probes of the stream, (n, k)."""
        return stream.entries([stream.source.signs(k, stream.n).T for _ in range(stream.parts)])


class Gaussian(Law):
    """Independent standard normals. Variance 2‖A‖²."""

    name = "gaussian"
    invariant = True

    def draw(self, stream: Probes, k: int) -> Any:
        """The next k probes of the stream, (n, k)."""
        return stream.normal(k)

    def pair_factor(self, n: int, kappa: int) -> float:
        """The a in E[vᴴAv · vᴴBv] = a (tr A tr B + κ tr AB)."""
        return 1.0


class Sphere(Law):
    """Uniform on the sphere of radius √n. Variance 2n/(n+2)·(‖A‖² − (tr A)²/n)."""

    name = "sphere"
    invariant = fixed_norm = True

    @property
    def directions(self) -> Law:
        """Gaussian probes have the same directions."""
        return LAWS["gaussian"]

    def draw(self, stream: Probes, k: int) -> Any:
        """The next k probes of the stream, (n, k)."""
        X = stream.by_blocks(stream.normal(k))
        return stream.xp.reshape(_backends.compiled(_on_sphere, (), X, X), (stream.n, k))

    def pair_factor(self, n: int, kappa: int) -> float:
        """The a in E[vᴴAv · vᴴBv] = a (tr A tr B + κ tr AB)."""
        return n / (n + kappa)


class Orthogonal(Law):
    """Haar-random orthogonal vectors of length √n: standard deviation of the sphere's times √((n−k)/(n−1))."""

    name = "orthogonal"
    independent = False
    fixed_norm = True

    @property
    def alone(self) -> Law:
        """One of them is uniform on the sphere."""
        return LAWS["sphere"]

    def draw(self, stream: Probes, k: int) -> Any:
        """The next k probes of the stream, (n, k), at most n to a set: Q of a Gaussian, R's diagonal made positive."""
        xp, X = stream.xp, stream.by_blocks(stream.normal(k))
        d, sets = X.shape[1], []
        for i in range(0, k, d):
            Q, R = xp.linalg.qr(X[:, :, i : min(i + d, k)])[:2]
            r = xp.linalg.diagonal(R)
            sets.append(Q * (r / xp.astype(xp.abs(r), r.dtype))[:, None, :])
        return xp.reshape(aa.concat_columns(xp, sets) * d**0.5, (stream.n, k))

    def population(self, d: int) -> int:
        """Number of probes of d rows that exist."""
        return d


class Hadamard(Law):
    """Signs that are orthogonal to each other, drawn without replacement from N of them, N the next power of two.

    Rademacher's standard deviation times √((N−k)/(N−1)).
    """

    name = "hadamard"
    independent = False
    unit_modulus = fixed_norm = True
    sets = HadamardSet

    @property
    def alone(self) -> Law:
        """One of them has independent fair signs."""
        return LAWS["rademacher"]

    def draw(self, stream: Probes, k: int) -> Any:
        """The next k probes of the stream, (n, k)."""
        sets = ([rows[i, ...].T for i in range(stream.parts)] for rows in stream.of_sets(k))
        return aa.concat_columns(stream.xp, [stream.entries(parts) for parts in sets])

    def population(self, d: int) -> int:
        """Number of probes of d rows that exist."""
        return order(d)


class Balanced(Law):
    """Independent probes of signs whose sum over the positions of each feature is ±√T, or one of two integers around.

    What A has in common on the T positions of a feature, c between any two, adds nothing to the variance of vᵀAv, where
    fair signs pay 2c²T² for it; see `traceest.probes.balanced_signs` for all other A. Traces of models with features at
    many positions (time, tokens, pixels) have a third to a tenth of the variance at initialisation.

    Examples
    --------
    >>> import traceest as te
    >>> v = te.probes.balanced(16 * 3, 1, rng=0, layout=(16, 3, 1))
    >>> sorted({abs(s) for s in v.reshape(16, 3).sum(0).tolist()})
    [4.0]
    """

    name = "balanced"
    unit_modulus = fixed_norm = True

    def draw(self, stream: Probes, k: int) -> Any:
        """The next k probes of the stream, (n, k)."""
        drawn = (stream.source, k, stream.n_blocks, stream.layout)
        return stream.entries([balanced_signs.signs(*drawn).T for _ in range(stream.parts)])

    def unseen(self, stream: Probes) -> float:
        """Relative error of a form that the spread of the samples cannot show.

        The sums over a feature's positions have squares of two values. Where the rarer one is not expected a few times
        among all that were drawn, a constant may have been met with the other alone.
        """
        T = stream.layout.positions
        low, high, larger = balanced_signs.sums(T)
        rarer = min(larger, 1 - larger)
        if rarer == 0 or rarer * stream.drawn * stream.n_blocks * stream.layout.features >= SEEN:
            return 0.0
        return max(abs(T / low**2 - 1) if low else 1.0, abs(T / high**2 - 1))


def named(distribution: Distribution) -> Law:
    """The law of that name.

    Raises
    ------
    ValueError
        If there is none.
    """
    law = LAWS.get(distribution) if isinstance(distribution, str) else None
    if law is None:
        close = get_close_matches(str(distribution).lower(), LAWS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(f"distribution must be one of {', '.join(LAWS)}, got {distribution!r}{hint}")
    return law


def require_independent(distribution: Distribution, caller: str) -> None:
    """Raise unless probes of that law are independent of each other, as products of two have to be."""
    if not named(distribution).independent:
        fit = [law.name for law in LAWS.values() if law.independent]
        raise ValueError(
            f"{caller}: {distribution} probes are not independent of each other, and pairs of them would bias the "
            f"norm; choose {', '.join(fit[:-1])} or {fit[-1]}."
        )


def of_samples(n: int, n_blocks: int, layout: Layout | None) -> Distribution:
    """The law for samples of forms: signs, balanced over positions or else orthogonal in several short blocks."""
    d = n // n_blocks
    if layout is not None and layout.positions >= POSITIONS and (n_blocks == 1 or d > LONG):
        return "balanced"
    return "hadamard" if n_blocks > 1 and d <= SHORT else "rademacher"


def of_pairs(layout: Layout | None) -> Distribution:
    """The law for products of two probes: signs, which make no error in what the diagonals of the blocks hold.

    Sphere and Gaussian probes make one, but use i = j for the norm too: on MLPs signs have 0–40 % less error, on
    recurrent networks sphere probes up to 15 % less. Balanced over positions, signs have two thirds of it, on feature
    maps half.
    """
    return "balanced" if layout is not None and layout.positions >= POSITIONS else "rademacher"


def _on_sphere(X: Any) -> Any:
    """(n_blocks, d, k), each column of each block of length √d."""
    xp = aa.namespace(X)
    length2 = xp.sum(aa.abs2(xp, X), axis=1, keepdims=True)
    return X * xp.astype(xp.sqrt(X.shape[1] / length2), X.dtype)
