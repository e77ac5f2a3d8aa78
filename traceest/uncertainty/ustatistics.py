"""Block U-statistics of sketched Gram matrices, and the delete-one jackknife on them.

With independent probes s_{b,i} (block b = 1…B, probe i = 1…m), g_{b,i} = J_bᴴ s_{b,i} and
H = G⁽¹⁾∘G⁽²⁾ elementwise, G_{(b,i),(c,j)} = ⟨g_{b,i}, g_{c,j}⟩:

    tr(K₁K₂) = E[ Σ_{b≠c} mean_{i,j} H + Σ_b mean_{i≠j} H ].

Across blocks even i = j is admissible, so m probes a block give about (Bm)² pairs. One block, B = 1, is
the U-statistic of Kong and Valiant (2017). Everything here comes with its leave-one-out values, found from
row sums and not by recomputation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from traceest import _array_api as aa
from traceest.probes import named
from traceest.uncertainty.doubt import CERTAIN, Doubt, doubted
from traceest.uncertainty.estimate import Estimate
from traceest.uncertainty.moments import degrees_of_freedom, welch_satterthwaite
from traceest.uncertainty.skewed_intervals import Rescaling, reach


class Statistic(NamedTuple):
    """A statistic θ, its leave-one-out values θ₍₋b,i₎ (None where m is too small), and θ with blocks rescaled."""

    value: Any
    left_out: Any  # (B, m) or None
    rescaled: Rescaling | None = None  # None: no block's length matters
    compares: bool = False  # kernels with each other, and not with a unit

    def map(self, f: Callable[..., Any], *others: Statistic) -> Statistic:
        """F of this and other statistics of the same probes, leave-one-out values with it."""
        everyone = (self, *others)
        whole = f(*(s.value for s in everyone))
        if any(s.left_out is None for s in everyone):
            return Statistic(whole, None)
        return Statistic(whole, f(*(s.left_out for s in everyone)), _of_rescaled(f, everyone))

    def of_something(self, xp: Any, size: Any, square: bool) -> Statistic:
        """With the error unknown where no pair of probes has seen anything of sketches whose products have that size.

        A direction that all probes but one are orthogonal to has no product of two that is not 0. A square that comes
        out negative with every probe left out has not been seen either.
        """
        if self.left_out is None:
            return self
        value, left_out = (x if square else xp.abs(x) for x in (self.value, self.left_out))
        unseen = (size > 0) & (xp.maximum(value, xp.max(left_out)) <= size * xp.finfo(size.dtype).eps)
        return self._replace(left_out=xp.where(unseen, xp.ones_like(self.left_out) * math.nan, self.left_out))

    def spreading(self, spread: Any, df: Any) -> Statistic:
        """With ρ² of the blocks' squared lengths, and its degrees of freedom."""
        return self if self.rescaled is None else self._replace(rescaled=Rescaling(self.rescaled.at, spread, df))


def _of_rescaled(f: Callable[..., Any], everyone: tuple[Statistic, ...]) -> Rescaling | None:
    """F of rescaled statistics; of several spreads of a block the larger."""
    found = [s.rescaled for s in everyone if s.rescaled is not None]
    if not found:
        return None

    def at(factors: Any) -> Any:
        return f(*(s.value if s.rescaled is None else s.rescaled.at(factors) for s in everyone))

    most = found[0]
    for other in found[1:]:
        most = most.larger(other)
    return most._replace(at=at)


def block_sum(xp: Any, x: Any) -> Statistic:
    """Σ_b mean_i x_{b,i} for samples (B, m)."""
    m = x.shape[1]
    total = xp.sum(x, axis=1, keepdims=True)
    value, means = xp.sum(total) / m, total[:, 0] / m
    if m < 2:
        return Statistic(value, None)
    rescaled = Rescaling(lambda factors: value + means * (factors - 1))
    return Statistic(value, value - total / m + (total - x) / (m - 1), rescaled)


def squared_mean(xp: Any, x: Any) -> Statistic:
    """(Σ_b E x_b)² without bias: the square of `block_sum` less its variance, estimated from the same samples."""
    m = x.shape[1]
    mean = block_sum(xp, x)
    if m < 2:
        return Statistic(mean.value**2, None)
    d2 = aa.abs2(xp, x - xp.sum(x, axis=1, keepdims=True) / m)
    ss = xp.sum(d2, axis=1, keepdims=True)
    total = xp.sum(ss)
    value = mean.value**2 - total / (m * (m - 1))
    if m < 3:
        return Statistic(value, None)
    ss_without = ss - d2 * (m / (m - 1))  # Σ of squares about the mean when sample i has gone
    var_without = (total - ss) / (m * (m - 1)) + ss_without / ((m - 1) * (m - 2))
    variances = ss[:, 0] / (m * (m - 1))

    def at(factors: Any) -> Any:
        moved = mean.value + xp.sum(x, axis=1) / m * (factors - 1)
        return moved**2 - (xp.sum(variances) + variances * (factors**2 - 1))

    return Statistic(value, mean.left_out**2 - var_without, Rescaling(at))


class Invariant(NamedTuple):
    """A law that no rotation changes: E[s₁ᴴA s₁ · s₁ᴴB s₁] = a (tr A tr B + κ tr AB) for self-adjoint A and B."""

    a: float
    kappa: int

    @classmethod
    def of(cls, distribution: str, n: int, is_complex: bool) -> Invariant | None:
        """For probes of length n; None for laws that single out axes."""
        kappa = 1 if is_complex else 2
        a = named(distribution).pair_factor(n, kappa)
        return None if a is None else cls(a, kappa)

    def product(self, m: int, S: Any, T: Any) -> Any:
        """Tr AB without bias from S = Σ_ij G⁽¹⁾G⁽²⁾, of all pairs, and T = tr G⁽¹⁾ tr G⁽²⁾, of m probes.

        E S = (m(m−1) + κam) tr AB + am tr A tr B and E T = κam tr AB + (m(m−1) + am) tr A tr B, solved for tr AB.
        """
        am, pairs = self.a * m, m * (m - 1)
        s, t = pairs + self.kappa * am, pairs + am
        return (t * S - am * T) / (s * t - self.kappa * am * am)


def pair_mean(xp: Any, H: Any, forms: tuple[Any, Any] | None = None, law: Invariant | None = None) -> Statistic:
    """Σ_{b≠c} mean_{i,j} H + Σ_b mean_{i≠j} H for H of shape (B, m, B, m), symmetric in its two pairs.

    With probes of an invariant law, and `forms` the diagonals (B, m) of G⁽¹⁾ and G⁽²⁾, H = G⁽¹⁾∘G⁽²⁾, the blocks on the
    diagonal are averaged over all rotations of their probes among themselves: i = j tells as much as any i ≠ j does
    once tr K_b tr L_b is taken off, and m(m+1)/2 − 1 independent numbers take the place of m(m−1)/2.
    """
    m = H.shape[1]
    own_pairs = xp.linalg.diagonal(xp.permute_dims(H, (1, 3, 0, 2)))  # (m, m, B): the blocks on the diagonal
    rows = xp.matrix_transpose(xp.sum(own_pairs, axis=1))  # (B, m): Σ_j within the block
    equal = xp.linalg.diagonal(xp.permute_dims(own_pairs, (2, 0, 1)))  # (B, m): i = j
    cross_rows = (xp.sum(H, axis=(2, 3)) - rows) / m  # (B, m): Σ_{c≠b} mean_j
    cross = xp.sum(cross_rows, axis=1, keepdims=True)  # (B, 1)
    total, diagonal = (xp.sum(x, axis=1, keepdims=True) for x in (rows, equal))

    def inner(k: int, S: Any, E: Any, T: Any) -> Any:
        """A block's own term from k probes: Σ_ij H, Σ_i H_ii, and the product of the traces."""
        return (S - E) / max(k * (k - 1), 1) if law is None else law.product(k, S, T)

    x, y = forms if forms is not None else (equal, equal)
    X, Y = (xp.sum(z, axis=1, keepdims=True) for z in (x, y))
    whole = inner(m, total, diagonal, X * Y)
    value = xp.sum(cross) / m + xp.sum(whole)
    if m < 3:
        return Statistic(value, None)
    cross_change = 2 * ((cross - cross_rows) / (m - 1) - cross / m)
    without = inner(m - 1, total - 2 * rows + equal, diagonal - equal, (X - x) * (Y - y))
    cross_share, own = 2 * xp.sum(cross_rows, axis=1) / m, whole[:, 0]
    rescaled = Rescaling(lambda factors: value + cross_share * (factors - 1) + own * (factors**2 - 1))
    return Statistic(value, value + cross_change + without - whole, rescaled)


def joined(xp: Any, parts: list[Statistic], sizes: list[int]) -> Statistic:
    """The mean of U-statistics of separate runs of probes, (B, m) of each, weighted by the pairs that they rest on.

    Where pairs make most of the error that is the best weight; where single probes do, little is lost on it by runs of
    very unequal sizes, and nothing by equal ones.
    """
    if len(parts) == 1:
        return parts[0]
    total, m = sum(k * (k - 1) for k in sizes), sum(sizes)
    weights = [k * (k - 1) / total for k in sizes]
    value = sum(w * s.value for w, s in zip(weights, parts, strict=True))
    if any(s.left_out is None for s in parts):
        return Statistic(value, None)
    # So that the jackknife over all m adds up what it says of each run: (m − 1)/m takes the place of (k − 1)/k.
    scales = [w * math.sqrt((1 - 1 / k) / (1 - 1 / m)) for w, k in zip(weights, sizes, strict=True)]
    left_out = [value + c * (s.left_out - s.value) for c, s in zip(scales, parts, strict=True)]
    terms = [(w, s.rescaled) for w, s in zip(weights, parts, strict=True)]

    def at(factors: Any) -> Any:
        return sum(w * rescaled.at(factors) for w, rescaled in terms if rescaled is not None)

    return Statistic(value, xp.concat(left_out, axis=1), Rescaling(at))


def jackknife(
    xp: Any, s: Statistic, size: Any = 1.0, *, doubt: Doubt = CERTAIN, proportional: Any = False, **fields: Any
) -> Estimate:
    """`size` times s; Var ≈ Σ_b (m−1)/m Σ_i (θ₍₋b,i₎ − mean)² (Efron and Stein 1981), df by Welch–Satterthwaite.

    The interval reaches further where one block's probes may have been unlucky: see
    `traceest.uncertainty.skewed_intervals`. The error is no smaller than what `doubt` leaves; see `doubted`.
    """
    if s.left_out is None:
        nothing = s.value * math.nan
        return Estimate(s.value * size, nothing, nothing, None, **fields)
    m = s.left_out.shape[1]
    d = s.left_out - xp.sum(s.left_out, axis=1, keepdims=True) / m
    scale = aa.safe_scale(xp, d)
    squares = aa.abs2(xp, d / scale)
    parts = aa.root(xp, xp.sum(squares, axis=1) * ((m - 1) / m)) * xp.sum(scale)
    stderr, df = welch_satterthwaite(xp, parts, degrees_of_freedom(xp, squares))
    stderr = doubted(xp, doubt, s.value, stderr, proportional)
    return Estimate(s.value * size, stderr * size, df, reach=reach(xp, s.value, s.rescaled, size), **fields)
