"""Stochastic Lanczos quadrature: eigenvalues seen from random directions, and traces of functions of them.

Lanczos from a unit vector v gives nodes θ and weights τ with Σ τ f(θ) ≈ vᴴf(A)v; n times that, averaged over random v,
estimates tr f(A) (Ubaru, Chen and Saad 2017). Two things keep it from the truth.

Sampling. Of v uniform on the sphere the same nodes know the variance. For B = f(A) and g = √n v (the head of
`traceest.uncertainty.gradients`), Var gᴴBg = 2 E‖Bg − g·gᴴBg/n‖², and that squared length is n times the variance of f
under the quadrature, Σ τ f² − (Σ τ f)²: no spread of samples is needed, and one probe has an error bar.

Truncation. t steps integrate polynomials of degree 2t − 1; what is missed of f is of one sign for many f (log, √,
x log x) and does not average out. The allowance for it is how far the answer has moved over the last third of the
steps, or what their changes let expect of all that are left (`traceest.spectrum.truncation`), added to the standard
error in quadrature. Where the changes do not get smaller, it is infinite.

Skewness. Where few eigenvalues hold most of the sum its forms are skewed as χ² is, and their mean is too small more
often than not, with an error bar that is too small as well. The interval reaches further there (`_reach`).

Where few eigenvalues rule tr f(A), directions that lead can be deflated, as Hutch++ does (`traceest.spectrum.leading`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from traceest import _array_api as aa
from traceest import _backends
from traceest import _validation as check
from traceest.operators.metering import MEMORY, Meter, chunk_columns
from traceest.operators.products import deflate
from traceest.probes import Distribution, Probes
from traceest.spectrum import looks, truncation
from traceest.spectrum.lanczos import Lanczos, Tridiagonals, gauss
from traceest.spectrum.leading import Rule, leading
from traceest.spectrum.pilot import FEWEST, piloted
from traceest.spectrum.plan import plan
from traceest.spectrum.truncation import depths
from traceest.uncertainty import skewed_intervals
from traceest.uncertainty.estimate import Estimate, _to_host, certain, from_samples, told
from traceest.uncertainty.gradients import mean_square

Function = Callable[[Any], Any]


UNFINISHED = 0.7
"""Share of the standard error, and so half of its square, from which an answer that truncation rules says so."""

NOTHING = 1e4
"""Roundings of the value that are too few to speak of."""

PAD = 32
"""Nodes that a pilot's function is asked for at a time."""

LEAN = 3
"""Vectors that a run keeps without reorthogonalisation."""


class Quadrature(NamedTuple):
    """Nodes and weights, (s, t), of s probes, of all steps and of fewer; exact ones are all n eigenvalues, (1, n).

    `basis` has those of q deflated directions, if any; then n is the dimension of what they leave.
    """

    xp: Any
    n: int
    rules: tuple[Rule, ...]  # at each of `truncation.depths`; one: exact
    going_on: Any  # (s,): 1 for runs that more steps may change, 0 for those whose Krylov space is exhausted
    gradient: float  # Var gᴴBg is so many times the mean squared gradient; 0: by the spread of the samples
    population: int | None
    fields: dict[str, Any]
    basis: tuple[Rule, Rule] | None = None
    marks: tuple[str, ...] = ()

    @property
    def fine(self) -> Rule:
        """Nodes and weights of all steps."""
        return self.rules[0]

    @property
    def exact(self) -> bool:
        """Whether the nodes are all eigenvalues."""
        return len(self.rules) == 1

    @property
    def largest(self) -> Any:
        """The largest |node|."""
        xp = self.xp
        found = xp.max(xp.abs(self.fine[0]))
        return found if self.basis is None else xp.maximum(found, xp.max(xp.abs(self.basis[0][0])))

    @property
    def least(self) -> Any:
        """The least node."""
        xp = self.xp
        found = xp.min(self.fine[0])
        return found if self.basis is None else xp.minimum(found, xp.min(self.basis[0][0]))

    def map_nodes(self, change: Function) -> Quadrature:
        """With every node changed."""

        def changed(rule: Rule) -> Rule:
            return change(rule[0]), rule[1]

        return self._replace(
            rules=tuple(changed(r) for r in self.rules),
            basis=None if self.basis is None else (changed(self.basis[0]), changed(self.basis[1])),
        )

    def clipped(self, least: float) -> Quadrature:
        """With nodes below `least` times the largest |node| lifted to it."""
        xp, floor = self.xp, self.largest * least
        return self.map_nodes(lambda x: xp.where(x < floor, floor, x))

    def scaled(self) -> tuple[Any, Quadrature]:
        """The largest |node| (1 where that is 0), and the quadrature in its units."""
        xp, unit = self.xp, self.largest
        unit = xp.where(unit > 0, unit, xp.ones_like(unit))
        return unit, self.map_nodes(lambda x: x / unit)

    def asked(self, question: Callable[..., Any], static: tuple[Any, ...] = (), arrays: tuple[Any, ...] = ()) -> Any:
        """``question(self, *static, *arrays)``, as one program where the framework compiles; `static` is hashable."""
        parts = (self.rules, self.going_on, self.basis, arrays)
        about = (question, static, self.n, self.gradient, self.population)
        return _backends.compiled(_asked, about, parts, self.fine[0])

    def mean(self, f: Function) -> Any:
        """The estimate of tr f(A) alone; f may put axes before those of the nodes, (…, s, t) → (…)."""
        return self._mean(f, self.fine, self.basis[0] if self.basis is not None else None)

    def trace(self, f: Function, **fields: Any) -> Estimate:
        """Tr f(A), with the error that the module's head derives."""
        return self.judged(f, **fields)[0]

    def judged(self, f: Function, **fields: Any) -> tuple[Estimate, Any]:
        """That, and how large the error by truncation is beside the one by sampling."""
        xp, value = self.xp, self.mean(f)
        fields = {"method": "Lanczos quadrature", **self.fields, **fields}
        if self.exact:
            return certain(value, **{**fields, "method": "exact"}), aa.real(xp, xp.zeros_like(value))
        values = f(self.fine[0])
        forms = self._forms(values, self.fine[1])
        sampling, df = self._sampling(values, forms)
        truncation = self._truncation(f, value, forms, sampling)
        reach = self._reach(values, value, sampling, df)
        e = Estimate(value, _hypot(xp, sampling, truncation), df, None, **fields, reach=reach)
        finite = (e.stderr > 0) & (e.stderr < math.inf)
        share = truncation / xp.where(finite, e.stderr, xp.ones_like(e.stderr))
        matters = truncation > NOTHING * xp.finfo(truncation.dtype).eps * xp.abs(value)
        return e, xp.where(matters, share, xp.zeros_like(share))

    def errors(self, f: Function) -> tuple[float, float]:
        """Standard errors by sampling and by truncation."""
        values = f(self.fine[0])
        forms = self._forms(values, self.fine[1])
        value, (sampling, _) = self.mean(f), self._sampling(values, forms)
        return float(sampling), float(self._truncation(f, value, forms, sampling))

    def _mean(self, f: Function, rule: Rule, basis: Rule | None) -> Any:
        forms = self._forms(f(rule[0]), rule[1])  # (…, s)
        mean = self.xp.sum(forms, axis=-1) / forms.shape[-1]
        return mean if basis is None else mean + self.xp.sum(f(basis[0]) * basis[1], axis=(-2, -1))

    def _forms(self, values: Any, weights: Any) -> Any:
        """gᴴf(A)g for each probe."""
        return self.xp.sum(values * weights, axis=-1) * self.n

    def _sampling(self, values: Any, forms: Any) -> tuple[Any, Any]:
        """Standard error of the mean of the forms, and its degrees of freedom."""
        xp, s = self.xp, forms.shape[-1]
        if not self.gradient:
            e = from_samples(forms[None, :], population=self.population)
            return e.stderr, e.df
        slope = values - forms[..., None] / self.n
        unit = aa.safe_scale(xp, slope, (-2, -1))
        squares = xp.sum(self.fine[1] * aa.abs2(xp, slope / unit), axis=-1) * self.n
        variance, df = mean_square(xp, squares)
        return aa.root(xp, variance * (self.gradient / s)) * unit[..., 0, 0], df

    def _truncation(self, f: Function, value: Any, forms: Any, sampling: Any) -> Any:
        """The error of what further steps would change."""
        xp, s = self.xp, forms.shape[-1]
        at = [forms, *(self._forms(f(x), w) for x, w in self.rules[1:])]
        means = [xp.sum(x * self.going_on, axis=-1) / s for x in at]
        steps = self.fine[0].shape[-1]
        found = truncation.rest(xp, means, xp.abs(value), sampling, steps, self.n)
        for end in (xp.min, xp.max):
            edge = [f(xp.reshape(end(x), (1, 1)))[..., 0, 0] for x, _ in self.rules]
            beyond = truncation.at_edge(xp, edge, sampling, steps, self.n)
            found = found + xp.where(xp.max(self.going_on) > 0, beyond, xp.zeros_like(beyond))
        if self.basis is None:
            return found
        fine, coarse = (xp.sum(f(x) * w, axis=(-2, -1)) for x, w in self.basis)
        return found + xp.abs(fine - coarse)

    def _reach(self, values: Any, value: Any, sampling: Any, df: Any) -> Any:
        """How far the value may be off where what exceeds the least f, or falls short of the largest, is skewed."""
        xp = self.xp
        if not self.gradient or values.ndim > 2 or aa.is_complex(xp, values.dtype):
            return None
        shares = xp.stack([value - self.n * xp.min(values), value - self.n * xp.max(values)])
        spread = skewed_intervals.relative_spread(xp, xp.abs(shares), xp.stack([sampling, sampling]) ** 2)
        rescaling = skewed_intervals.Rescaling(lambda c: value + shares * (c - 1), spread, xp.stack([df, df]))
        return skewed_intervals.reach(xp, value, rescaling)


def _asked(
    question: Callable[..., Any], static: tuple[Any, ...], n: int, gradient: float, population: int | None, parts: Any
) -> Any:
    rules, going_on, basis, arrays = parts
    q = Quadrature(aa.namespace(rules[0][0]), n, rules, going_on, gradient, population, {}, basis)
    return question(q, *static, *arrays)


def quadrature(
    A: Any,
    n_matvecs: int | None,
    *,
    caller: str,
    f: Function | None = None,
    n_probes: int | None = None,
    steps: int | None = None,
    n_deflate: int | None = 0,
    rng: Any = None,
    distribution: Distribution = "sphere",
    probes: Any = None,
    chunk_size: int | None = None,
    reorthogonalise: bool | None = None,
) -> Quadrature:
    """The nodes and weights that the budget affords; split for `f`, where it is given and the split is not."""
    p = plan(A, n_matvecs, n_probes, steps, n_deflate, probes, caller)
    xp, meter, n = aa.namespace(A), Meter(A), A.shape[0]
    if p.exact:
        theta = aa.eigvalsh(xp, looks.dense(xp, meter.op, caller))[None, :]
        weights = xp.ones_like(theta) / n
        return Quadrature(xp, n, ((theta, weights),), weights[:, 0], 0.0, None, meter.spent)
    check.check_probes(probes, n, A, caller)
    stream = Probes(n, A, rng=rng, distribution=distribution, probes=probes)
    marks = stream.marks
    X, basis = leading(xp, meter.op, stream.take(p.deflated), p.blocks, caller) if p.deflated else (None, None)
    keeps = _basis_fits(A, p.steps) if reorthogonalise is None else reorthogonalise
    chunk = _chunk(A, p.steps if keeps else LEAN, chunk_size)
    gradient = 0.0 if not stream.law.invariant else 1.0 if aa.is_complex(xp, A.dtype) else 2.0

    def begun(V: Any, first: Any = None) -> Lanczos:
        return Lanczos(xp, meter.op, V if X is None else deflate(xp, X, V), keeps, first)

    runs = list[Lanczos]()
    if f is not None and gradient and p.free >= FEWEST and p.probes <= chunk:
        judged = _judge(xp, A, f, n - p.deflated, gradient)
        runs, s, t = piloted(p, judged, begun, stream, n)
    else:
        s, t = p.probes, p.steps
    runs += [begun(V).advance(t) for V in stream.chunks(s, chunk)]
    for asymmetry in (seen for r in runs for seen in r.asymmetries):
        looks.symmetric(asymmetry, A, caller)
    T = Tridiagonals(*(xp.concat(parts, axis=0) for parts in zip(*(r.T for r in runs), strict=True)))
    return _assembled(xp, T, n - p.deflated, gradient, stream.population, meter.spent, basis, marks)


def _assembled(xp: Any, T: Tridiagonals, n: int, gradient: float, *rest: Any) -> Quadrature:
    """Of all runs."""
    rules, going_on = _backends.compiled(_rules, (), T, T.alpha)
    return Quadrature(xp, n, rules, going_on, gradient, *rest)


def _rules(T: Tridiagonals) -> tuple[tuple[Rule, ...], Any]:
    """At all depths, and which runs go on."""
    xp = aa.namespace(T.alpha)
    rules = tuple(gauss(xp, T, t) for t in depths(T.alpha.shape[1]))
    return rules, xp.astype(T.beta[:, -1] > 0, T.beta.dtype)


def finished(q: Quadrature, statistic: str, A: Any, e: Estimate, truncated: Any) -> Estimate:
    """The Estimate with its counts and what it is of, not converged where most of its error is by truncation."""
    share = looks.number(truncated)
    e = told(replace(e, **q.fields), statistic, A, q.marks)
    if share is None or share < UNFINISHED:
        return e
    return replace(e, converged=False, method="eigenvalues, singular to rounding" if q.exact else e.method)


def _judge(xp: Any, A: Any, f: Function, n: int, gradient: float) -> Callable[[Tridiagonals], Any]:
    """A function that gives the errors by sampling and by truncation of T, None if f's values are traced."""
    dtype, place = aa.real_dtype(xp, A.dtype), aa.device(A)

    def on_host(x: np.ndarray) -> np.ndarray:
        padded = np.pad(x, ((0, 0), (0, -x.shape[1] % PAD)), mode="edge")  # so that few shapes are ever compiled
        return np.asarray(_to_host(f(xp.asarray(padded, dtype=dtype, device=place))))[:, : x.shape[1]]

    def judged(T: Tridiagonals) -> tuple[float, float] | None:
        try:
            T = Tridiagonals(*(np.asarray(_to_host(x), dtype=np.float64) for x in T))
            with np.errstate(all="ignore"):
                if T.alpha.shape[1] < 2:
                    on_host(T.alpha)
                    return math.nan, math.nan
                return _assembled(np, T, n, gradient, None, {}).errors(on_host)
        except looks.ANSWERS:
            return None

    return judged


def _run_bytes(A: Any, vectors: int) -> int:
    """What one run takes that keeps so many vectors, with the two in hand."""
    return (aa.namespace(A).finfo(A.dtype).bits // 8) * int(A.shape[0]) * (vectors + 2)


def _basis_fits(A: Any, steps: int) -> bool:
    """Whether the vectors of one run fit `MEMORY`, so that each may be made orthogonal to those before."""
    return _run_bytes(A, steps) <= MEMORY


def _chunk(A: Any, vectors: int, chunk_size: int | None) -> int:
    """Probes that run at a time: `chunk_size`, or as many as their vectors fit `MEMORY`."""
    if chunk_size is not None:
        return chunk_columns(A, chunk_size)
    return max(1, min(chunk_columns(A, None), MEMORY // _run_bytes(A, vectors)))


def _hypot(xp: Any, a: Any, b: Any) -> Any:
    """√(a² + b²) within range, with a derivative at 0."""
    unit = xp.maximum(a, b)
    finite = (unit > 0) & (unit < math.inf)
    safe = xp.where(finite, unit, xp.ones_like(unit))
    return xp.where(finite, aa.root(xp, (a / safe) ** 2 + (b / safe) ** 2) * safe, unit)
