"""`Estimate`: a value, its standard error, what it cost, and how it came to stop."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from traceest import _array_api as aa
from traceest import _backends
from traceest._boundary import public
from traceest.uncertainty import skewed_intervals
from traceest.uncertainty.doubt import CERTAIN, Doubt, doubted
from traceest.uncertainty.moments import of_samples, welch_satterthwaite

ARRAYS = ("value", "stderr", "df", "samples", "reach")
"""Fields of `Estimate` that are arrays."""

STATIC = ("n_matvecs", "n_rmatvecs", "converged", "method", "bounds", "statistic", "share")
"""Fields that are not, and stay outside of traces."""

PROVENANCE = ("shape", "probes")
"""Fields that tell runs apart, not results: they do not go through transformations, where two runs are to be alike."""


class ConfidenceInterval(NamedTuple):
    """Lower and upper end of a confidence interval."""

    low: Any
    high: Any


@dataclass(frozen=True, eq=False, repr=False)
class Estimate:
    """What every estimator returns.

    Attributes
    ----------
    value : array, 0-d
        The estimate, on the operator's device and in its dtype.
    stderr : array, 0-d
        Standard error of `value`: 0 where the answer is exact, NaN where the budget was too small to
        tell (one sample), and then the interval is the whole range of possible values.
    df : array, 0-d
        Degrees of freedom of `stderr`, for Student-t quantiles (Welch–Satterthwaite over blocks).
    samples : array, (n_blocks, n_probes), or None
        Independent samples, a row a block; `value` is the sum over blocks of the row means. Present
        for the sampling estimators, which is what makes `merge` exact for them.
    reach : array, (2, n_levels), or None
        How far down and up the value may be at each of a row of confidences because the probes of one block may
        have been unlucky: the interval holds it. Where no block dominates the standard error says more.
    n_matvecs, n_rmatvecs : int
        Products really spent: columns multiplied by the operator and by its adjoint. For a Gram
        operator K = JJᴴ they are counted on J (n_matvecs jvps, n_rmatvecs vjps).
    converged : bool or None
        Whether the asked tolerance was met; None for a fixed budget.
    method : str
        Which estimator gave the answer.
    bounds : (float, float)
        Natural bounds of the statistic; the interval is kept inside.
    statistic : str
        What is estimated: "trace", "frobenius_norm" and so on; empty where that is not known.
    share : float
        Part of the error probability that the interval may take: below 1 where the run chose for itself when to stop.
    shape : (int, int) or None
        Of the operator, or of the factor of a Gram operator, where that is known.
    probes : tuple of str
        Marks of the random numbers that the probes were made of, one a run, where they are known: by them `merge` sees
        that two estimates rest on the same probes. They and `shape` do not go through `jax.jit` and `vmap`.

    Notes
    -----
    An Estimate is a pytree in JAX and in PyTorch: it may be returned from `jax.jit`, `jax.vmap` and
    `torch.func.vmap`. `float(e)` gives the value.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> e = te.hutchinson(np.diag([1.0, 2.0, 3.0]), 2, rng=0)
    >>> float(e), e.n_matvecs
    (6.0, 2)
    """

    value: Any
    stderr: Any
    df: Any
    samples: Any = None
    n_matvecs: int = 0
    n_rmatvecs: int = 0
    converged: bool | None = None
    method: str = ""
    bounds: tuple[float, float] = (-math.inf, math.inf)
    reach: Any = None
    statistic: str = ""
    share: float = 1.0
    shape: tuple[int, int] | None = None
    probes: tuple[str, ...] = ()

    # -- as a number ---------------------------------------------------------------------------
    @public
    def __float__(self) -> float:
        return float(self.value)

    @public
    def __complex__(self) -> complex:
        return complex(self.value)

    @property
    def exact(self) -> bool:
        """Whether the value is exact to rounding rather than estimated."""
        return self.method.startswith("exact")

    @property
    def n_products(self) -> int:
        """All products spent, with the operator and with its adjoint."""
        return self.n_matvecs + self.n_rmatvecs

    @public
    def confidence_interval(self, confidence: float = 0.95) -> ConfidenceInterval:
        """Two-sided interval: Student's, stretched to `reach`, clipped to the statistic's natural bounds.

        A run that grows to a tolerance looks several times, and stops where the spread happens to be small. Its
        interval is that of a part `share` of the error probability, so that it holds what it says all the same.

        The quantile is SciPy's. Inside `jax.jit`, `jax.vmap` or `jax.grad` the two ends are arrays, and it is taken by
        a call to the host when the program runs; outside they are numbers of the host.

        Parameters
        ----------
        confidence : float
            Nominal coverage, between 0 and 1.

        Returns
        -------
        ConfidenceInterval
            Python floats, or NumPy arrays for an Estimate with batched values; inside a JAX trace, JAX arrays.

        Raises
        ------
        ValueError
            If `confidence` is not between 0 and 1.
        TypeError
            If the value is complex, for which no interval is defined.
        """
        xp, value = self._numbers(self.value)
        if aa.is_complex(xp, value.dtype):
            raise TypeError(
                "confidence_interval: the estimate is complex, and an interval is defined for real values "
                "only; use .value and .stderr (the standard error of the modulus of the error)."
            )
        down, up = self._widths(confidence)
        unknown = xp.isnan(down) | xp.isnan(value)
        low = xp.clip(xp.where(unknown, -math.inf, value - down), *self.bounds)
        high = xp.clip(xp.where(unknown, math.inf, value + up), *self.bounds)
        if value.ndim == 0 and xp is np:
            return ConfidenceInterval(float(low), float(high))
        return ConfidenceInterval(low, high)

    @public
    def half_width(self, confidence: float = 0.95) -> Any:
        """How far the unclipped interval goes to its longer side, at least t-quantile × stderr; NaN if stderr is."""
        down, up = self._widths(confidence)
        return (np if isinstance(down, (np.ndarray, np.generic)) else aa.namespace(down)).maximum(down, up)

    def _widths(self, confidence: float) -> tuple[Any, Any]:
        """How far the unclipped interval goes down and up."""
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {confidence!r}; 0.95 means 95 %.")
        confidence = 1 - self.share * (1 - confidence)
        xp, stderr = self._numbers(self.stderr)
        half = xp.where(stderr == 0, 0.0, self._quantile(0.5 + confidence / 2) * stderr)
        if self.reach is None:
            return half, half
        value, reach = self._numbers(self.value)[1], self._numbers(self.reach)[1]
        with np.errstate(invalid="ignore"):  # of what is infinite nothing is known
            ends = skewed_intervals.at_level(reach, confidence)
        down, up = value - ends[..., 0], ends[..., 1] - value
        down, up = (xp.where((stderr > 0) & (x > half), x, half) for x in (down, up))
        return down, up

    def _quantile(self, p: float) -> Any:
        """Student's, for the degrees of freedom that there are."""
        xp, df = self._numbers(self.df)
        backend = None if xp is np else _backends.find(df)
        if backend is not None:
            return backend.student_quantile(df, p)
        from scipy.special import stdtrit  # not needed, and not paid for, before an interval is asked for

        return stdtrit(df, p)

    def _numbers(self, x: Any) -> tuple[Any, Any]:
        """`x` in double precision on the host, with NumPy; where any has no value, inside a trace, as it is."""
        backend = _backends.find(self.value)
        if backend is not None and backend.without_values((self.value, self.stderr, self.df, self.reach)):
            xp = aa.namespace(*(x for x in (self.value, self.stderr, self.df) if backend is _backends.find(x)))
            return xp, xp.asarray(x)
        x = np.asarray(_to_host(x))
        return np, x if np.iscomplexobj(x) else x.astype(np.float64)

    # -- combining ------------------------------------------------------------------------------
    def merge(self, *others: Estimate) -> Estimate:
        """Combine with estimates of the same quantity from *different* probes.

        For the sampling estimators the result is what one run with all the probes would have given;
        otherwise estimates are averaged with weights in proportion to the products they cost.
        An exact estimate wins over all others.

        Raises
        ------
        ValueError
            If the estimates are of different statistics, or of operators whose shapes have no side in common; hold
            samples of different numbers of blocks; or rest on the same probes: the same estimate twice, or two runs
            with the same `rng`, tell no more than one of them.
        """
        return merge((self, *others))

    # -- showing --------------------------------------------------------------------------------
    @public
    def to_dict(self) -> dict[str, Any]:
        """Plain Python numbers, for `json`; NaN and infinities become None."""
        value = np.asarray(_to_host(self.value))
        is_complex = np.iscomplexobj(value)
        low, high = (None, None) if is_complex else self.confidence_interval()
        out: dict[str, Any] = {
            "value": [value.real.tolist(), value.imag.tolist()] if is_complex else value.tolist(),
            "stderr": np.asarray(_to_host(self.stderr)).tolist(),
            "df": np.asarray(_to_host(self.df)).tolist(),
            "ci95": [x.tolist() if isinstance(x, np.ndarray) else x for x in (low, high)],
            "n_matvecs": self.n_matvecs,
            "n_rmatvecs": self.n_rmatvecs,
            "converged": self.converged,
            "method": self.method,
        }
        return json.loads(json.dumps(out), parse_constant=lambda _: None)

    @public
    def __repr__(self) -> str:
        cost = f"n_matvecs={self.n_matvecs}, n_rmatvecs={self.n_rmatvecs}"
        tail = f"method={self.method!r}, {cost}"
        if self.converged is not None:
            tail += f", converged={self.converged}"
        try:
            value = np.asarray(_to_host(self.value))
            stderr = np.asarray(_to_host(self.stderr))
            if value.ndim:
                return f"Estimate(value of shape {value.shape}, {tail})"
            shown = f"{value:.6g} ± {'unknown' if np.isnan(stderr) else format(stderr, '.2g')}"
        except Exception:  # inside a trace there is nothing to show but the structure
            shown = f"value={self.value}"
        return f"Estimate({shown}, {tail})"


@public
def merge(estimates: Sequence[Estimate]) -> Estimate:
    """Combine estimates of one quantity from different probes; `Estimate.merge` says how.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A, rng = np.ones((50, 50)) + np.eye(50), np.random.default_rng(0)
    >>> te.merge([te.hutchinson(A, 10, rng=rng), te.hutchinson(A, 20, rng=rng)]).n_matvecs
    30
    """
    if not estimates:
        raise ValueError("merge: give at least one estimate, got none.")
    first = estimates[0]
    _check_alike(estimates)
    spent: dict[str, Any] = {
        "n_matvecs": sum(e.n_matvecs for e in estimates),
        "n_rmatvecs": sum(e.n_rmatvecs for e in estimates),
    }
    for e in estimates:
        if e.exact:
            return replace(e, **spent)
    _check_apart(estimates)
    spent |= {
        "statistic": first.statistic,
        "share": min(e.share for e in estimates),
        "shape": first.shape,
        "probes": tuple(m for e in estimates for m in e.probes),
    }
    if all(e.samples is not None for e in estimates):
        counts = {e.samples.shape[0] for e in estimates}
        if len(counts) > 1:
            raise ValueError(
                f"merge: the estimates hold samples of {sorted(counts)} blocks; merge estimates of one operator."
            )
        xp = aa.namespace(first.samples)
        samples = aa.concat_columns(xp, [e.samples for e in estimates])
        return from_samples(samples, method=first.method, bounds=first.bounds, **spent)
    total = sum(e.n_products for e in estimates)
    xp = aa.namespace(first.value)
    w = [e.n_products / total for e in estimates]
    value = sum(wi * e.value for wi, e in zip(w, estimates, strict=True))
    parts = xp.stack([wi * e.stderr for wi, e in zip(w, estimates, strict=True)])
    stderr, df = welch_satterthwaite(xp, parts, xp.stack([e.df for e in estimates]))
    reach = skewed_intervals.joined(xp, w, [e.value for e in estimates], [e.reach for e in estimates])
    return Estimate(value, stderr, df, **spent, method=first.method, bounds=first.bounds, reach=reach)


def _check_alike(estimates: Sequence[Estimate]) -> None:
    """Raise where estimates are known to be of different things."""
    statistics = {e.statistic for e in estimates}
    if len(statistics) > 1:
        names = ", ".join(name or "something unnamed" for name in sorted(statistics))
        raise ValueError(f"merge: the estimates are of different statistics, {names}; merge those of one and the same.")
    values = {np.shape(e.value) for e in estimates}
    shapes = [set(e.shape) for e in estimates if e.shape is not None]
    # K = JJᴴ, JᴴJ and J have the same trace: what they have in common is a side.
    if len(values) > 1 or (shapes and not set.intersection(*shapes)):
        found = sorted({str(e.shape) for e in estimates})
        raise ValueError(
            f"merge: the estimates are of operators of shapes {', '.join(found)}, with values of shapes "
            f"{', '.join(map(str, sorted(values)))}; merge estimates of one operator."
        )


def same_probes(marks: tuple[str, ...]) -> bool:
    """Whether two of these marks are of the same random numbers, whatever law was made of them."""
    numbers = [mark.partition(":")[2] for mark in marks]
    return len(set(numbers)) < len(numbers)


def _check_apart(estimates: Sequence[Estimate]) -> None:
    """Raise where two estimates are known to rest on the same probes."""
    same = same_probes(tuple(mark for e in estimates for mark in e.probes))
    if same or len({id(e) for e in estimates}) < len(estimates):
        raise ValueError(
            "merge: two of the estimates rest on the same probes, and tell no more than one of them; give each run "
            "another rng, or one numpy.random.Generator to all, which moves on."
        )


def from_samples(samples: Any, *, population: int | None = None, doubt: Doubt = CERTAIN, **fields: Any) -> Estimate:
    """Mean over independent samples, summed over independent blocks, with a Student-t error.

    Parameters
    ----------
    samples : array, (n_blocks, n_probes)
        value = Σ_b mean_i x_{b,i}; stderr² = Σ_b s_b²/m; degrees of freedom by Welch–Satterthwaite.
    population : int, optional
        Length d of the probes when they were drawn orthogonal to each other: then the variance of the
        mean is s²/m·(1 − m/d), as in sampling without replacement.
    doubt : Doubt
        What part of the value may be an error which the samples' spread does not tell (`Probes.doubt`): where they all
        but agree, that is the stderr.
    **fields
        The remaining fields of `Estimate`.
    """
    positive = fields.get("bounds", (-math.inf, 0.0))[0] == 0
    value, stderr, df, reach = _backends.compiled(of_samples, (population, positive), samples, samples)
    if samples.shape[1] != population:  # all there are leave no doubt
        stderr = doubted(aa.namespace(value), doubt, value, stderr)
    return Estimate(value, stderr, df, samples, **fields, reach=reach)


def certain(value: Any, *, method: str = "exact", **fields: Any) -> Estimate:
    """What is exact to rounding: with stderr 0, and one degree of freedom, which then says nothing.

    Of a value that is no number nothing is certain: its stderr is NaN.
    """
    xp = aa.namespace(value)
    zero = xp.zeros_like(aa.real(xp, value))
    return Estimate(value, xp.where(xp.isfinite(value), zero, math.nan), zero + 1, None, method=method, **fields)


def told(e: Estimate, statistic: str, A: Any, marks: tuple[str, ...] = ()) -> Estimate:
    """The estimate with what it is of: which statistic, of an operator of what shape, by which random numbers."""
    rows, columns = A.inner.shape
    return replace(e, statistic=statistic, shape=(int(rows), int(columns)), probes=marks)


def trace_bounds(A: Any) -> tuple[float, float]:
    """The trace of an operator known to be positive semidefinite is not negative."""
    return (0.0 if A.psd else -math.inf, math.inf)


def _to_host(x: Any) -> Any:
    """A NumPy array of `x`, from whatever device and out of any autograd graph."""
    if hasattr(x, "detach"):
        x = x.detach().resolve_conj().cpu()
    try:
        return np.asarray(x)
    except (TypeError, RuntimeError):  # CuPy and array-api-strict copy from their devices only when told to
        if not hasattr(x, "__dlpack_device__"):
            raise
        return np.from_dlpack(x, device="cpu")
