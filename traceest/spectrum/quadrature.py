"""Stochastic Lanczos quadrature: eigenvalues seen from random directions, and traces of functions of them.

Lanczos from a unit vector v gives nodes θ and weights τ with Σ τ f(θ) ≈ vᴴf(A)v; n times that, averaged over random v,
estimates tr f(A) (Ubaru, Chen and Saad 2017). Two things keep it from the truth.

Sampling. Of v uniform on the sphere the same nodes know the variance. For B = f(A) and g = √n v (the head of
`traceest.estimators.nystrom`), Var gᴴBg = 2 E‖Bg − g·gᴴBg/n‖², and that squared length is n times the variance of f
under the quadrature, Σ τ f² − (Σ τ f)²: no spread of samples is needed, and one probe has an error bar.

Truncation. t steps integrate polynomials of degree 2t − 1; what is missed of f is of one sign for many f (log, √,
x log x) and does not average out. The allowance for it is how far the answer has moved over the last third of the
steps, added to the standard error in quadrature: what is still to come is at most twice that, and so inside the
95 % interval, wherever the error falls as 1/t or faster.

Where few eigenvalues rule tr f(A), directions X that lead can be deflated, as Hutch++ does: Σ xᵢᴴf(A)xᵢ by a few steps
from each, and the probes' estimate of what X leaves, from (I − XXᴴ)g. No Ritz vector is taken for an eigenvector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from traceest import _array_api as aa
from traceest import _backends
from traceest import _validation as check
from traceest.estimate import Estimate, certain, from_samples
from traceest.estimators._metering import MEMORY, Meter, chunk_columns
from traceest.estimators._products import deflate
from traceest.estimators.nystrom import mean_square
from traceest.probes import ORTHOGONAL, SIGNS, Distribution, Probes
from traceest.spectrum.dense import dense_cost, to_dense
from traceest.spectrum.krylov import KrylovSpace, rayleigh_ritz
from traceest.spectrum.lanczos import Tridiagonals, gauss, lanczos

Function = Callable[[Any], Any]


Rule = tuple[Any, Any]
"""Nodes and weights, a row a run."""

BASIS_BLOCKS, BASIS_STEPS = 3, 4
"""Blocks of the Krylov space that leading directions are taken from, and steps of Lanczos from each of them."""

LEAN = 3
"""Vectors that a run keeps without reorthogonalisation."""

DEFLATION = BASIS_BLOCKS + BASIS_STEPS
"""Products that a deflated direction costs."""


class Quadrature(NamedTuple):
    """Nodes and weights, (s, t), of s probes, at full and at less depth; exact ones are all n eigenvalues, (1, n).

    `basis` has those of q deflated directions, if any; then n is the dimension of what they leave.
    """

    xp: Any
    n: int
    fine: Rule
    coarse: Rule | None  # None: exact
    gradient: float  # Var gᴴBg is so many times the mean squared gradient; 0: by the spread of the samples
    population: int | None
    fields: dict[str, Any]
    basis: tuple[Rule, Rule] | None = None

    @property
    def largest(self) -> Any:
        """The largest |node|."""
        xp = self.xp
        found = xp.max(xp.abs(self.fine[0]))
        return found if self.basis is None else xp.maximum(found, xp.max(xp.abs(self.basis[0][0])))

    def map_nodes(self, change: Function) -> Quadrature:
        """With every node changed."""

        def changed(rule: Rule) -> Rule:
            return change(rule[0]), rule[1]

        return self._replace(
            fine=changed(self.fine),
            coarse=None if self.coarse is None else changed(self.coarse),
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
        parts = (self.fine, self.coarse, self.basis, arrays)
        about = (question, static, self.n, self.gradient, self.population)
        return _backends.compiled(_asked, about, parts, self.fine[0])

    def mean(self, f: Function) -> Any:
        """The estimate of tr f(A) alone; f may put axes before those of the nodes, (…, s, t) → (…)."""
        return self._mean(f, self.fine, self.basis[0] if self.basis is not None else None)

    def trace(self, f: Function, **fields: Any) -> Estimate:
        """Tr f(A), with the error that the module's head derives."""
        xp, value = self.xp, self.mean(f)
        fields = {"method": "Lanczos quadrature", **self.fields, **fields}
        if self.coarse is None:
            return certain(value, **{**fields, "method": "exact"})
        values = f(self.fine[0])
        stderr, df = self._sampling(values, self._forms(values, self.fine[1]))
        truncation = xp.abs(value - self._mean(f, self.coarse, self.basis[1] if self.basis is not None else None))
        return Estimate(value, _hypot(xp, stderr, truncation), df, None, **fields)

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
        squares = xp.sum(self.fine[1] * (slope / unit) ** 2, axis=-1) * self.n
        variance, df = mean_square(xp, squares)
        return aa.root(xp, variance * (self.gradient / s)) * unit[..., 0, 0], df


def _asked(
    question: Callable[..., Any], static: tuple[Any, ...], n: int, gradient: float, population: int | None, parts: Any
) -> Any:
    fine, coarse, basis, arrays = parts
    q = Quadrature(aa.namespace(fine[0]), n, fine, coarse, gradient, population, {}, basis)
    return question(q, *static, *arrays)


class Plan(NamedTuple):
    """s probes, t steps of each, q deflated; exact where no more products than that give the whole spectrum."""

    probes: int
    steps: int
    deflated: int
    exact: bool


def quadrature(
    A: Any,
    n_matvecs: int | None,
    *,
    caller: str,
    n_probes: int | None = None,
    steps: int | None = None,
    n_deflate: int | None = 0,
    rng: Any = None,
    distribution: Distribution = "sphere",
    probes: Any = None,
    chunk_size: int | None = None,
    reorthogonalise: bool | None = None,
) -> Quadrature:
    """The nodes and weights that the budget affords."""
    p = plan(A, n_matvecs, n_probes, steps, n_deflate, probes, caller)
    xp, meter, n = aa.namespace(A), Meter(A), A.shape[0]
    if p.exact:
        theta = aa.eigvalsh(xp, to_dense(xp, meter.op))[None, :]
        return Quadrature(xp, n, (theta, xp.ones_like(theta) / n), None, 0.0, None, meter.spent)
    check.check_probes(probes, n, A, caller)
    stream = Probes(n, A, rng=rng, distribution=distribution, probes=probes)
    X, basis = _leading(xp, meter.op, stream.take(p.deflated)) if p.deflated else (None, None)
    keeps = _basis_fits(A, p.steps) if reorthogonalise is None else reorthogonalise
    chunk = _chunk(A, p.steps if keeps else LEAN, chunk_size)
    starts = (V if X is None else deflate(xp, X, V) for V in stream.chunks(p.probes, chunk))
    runs = [lanczos(xp, meter.op, V, p.steps, keeps) for V in starts]
    T = Tridiagonals(xp.concat([r.alpha for r in runs], axis=0), xp.concat([r.beta for r in runs], axis=0))
    gradient = 0.0 if distribution in (*SIGNS, *ORTHOGONAL) else 1.0 if aa.is_complex(xp, A.dtype) else 2.0
    coarse = gauss(xp, T, max(1, 2 * p.steps // 3))
    return Quadrature(xp, n - p.deflated, gauss(xp, T), coarse, gradient, stream.population, meter.spent, basis)


def _leading(xp: Any, A: Any, Omega: Any) -> tuple[Any, tuple[Rule, Rule]]:
    """Ritz vectors X of the eigenvalues of largest modulus, and the quadratures of xᵢᴴf(A)xᵢ."""
    q = Omega.shape[1]
    space = KrylovSpace(xp, A, Omega)
    for _ in range(BASIS_BLOCKS - 1):
        space.grow(q)
    X = rayleigh_ritz(space.V, space.AV, q, 0, "magnitude").vectors
    T = lanczos(xp, A, X, BASIS_STEPS)
    return X, (gauss(xp, T), gauss(xp, T, BASIS_STEPS // 2))


def plan(
    A: Any,
    n_matvecs: int | None,
    n_probes: int | None,
    steps: int | None,
    n_deflate: int | None,
    probes: Any,
    caller: str,
) -> Plan:
    """Split the budget: `n_probes` = 2/5 √n_matvecs, `steps` = n_matvecs / n_probes, where they are not given.

    Before that, each of the `n_deflate` directions takes its `DEFLATION` products; None is one of sixteen products.
    """
    for name, x, least in (("n_matvecs", n_matvecs, 2), ("n_probes", n_probes, 1), ("steps", steps, 2)):
        if x is not None:
            check.budget(x, None, least, name, caller)
    if probes is not None:
        q = n_deflate or 0
        drawn = check.budget(None if n_probes is None else n_probes + q, probes, 1 + q, "n_probes", caller)
        n_deflate, n_probes = q, drawn - q
    if n_matvecs is None:
        if n_probes is None or steps is None:
            raise TypeError(f"{caller}: give a budget, n_matvecs=100 for instance, or both n_probes= and steps=.")
        n_matvecs = n_probes * steps + DEFLATION * (n_deflate or 0)
    total = n_matvecs
    if n_deflate is None:  # what the split leaves, where it is given
        n_deflate = n_matvecs // 16
        if n_probes is not None and steps is not None:
            n_deflate = max(0, min(n_deflate, (n_matvecs - n_probes * steps) // DEFLATION))
    q = min(check.budget(n_deflate, None, 0, "n_deflate", caller), A.shape[0] // BASIS_BLOCKS)
    n_matvecs -= DEFLATION * q
    if n_matvecs < 2:
        raise ValueError(
            f"{caller}: n_deflate = {q} directions take {DEFLATION * q} products, n_matvecs = {total} leaves "
            f"{max(0, n_matvecs)} for the rest; raise it, or deflate fewer."
        )
    if n_probes is not None:
        s = n_probes
    elif steps is not None:
        s = max(1, n_matvecs // steps)
    else:
        s = max(1, round(n_matvecs**0.5 / 2.5))
    steps = max(2, n_matvecs // s) if steps is None else steps
    if s * steps > n_matvecs:
        raise ValueError(
            f"{caller}: n_probes = {s} times steps = {steps} make {s * steps} products, n_matvecs = {n_matvecs} allows "
            "fewer; give two of the three."
        )
    cost = dense_cost(A)
    exact = probes is None and cost is not None and total >= cost
    if not exact:
        require_matmat(A, caller)
    return Plan(s, min(steps, A.shape[0]), q, exact)


def require_matmat(A: Any, caller: str) -> None:
    """Raise unless A can be multiplied again and again."""
    if hasattr(A, "matmat"):
        return
    if hasattr(A, "factor"):
        raise TypeError(
            f"{caller}: Krylov spaces need K V = J(Jᴴ V), and {A.factor!r} has one side alone; give J both sides (jvp "
            f"and vjp), or, of a kernel that fits in memory, a budget of {dense_cost(A) or A.shape[0]} products, for "
            "which all of it is made by vjps."
        )
    check.require_side(A, "matmat", caller)


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
    safe = xp.where(unit > 0, unit, xp.ones_like(unit))
    return aa.root(xp, (a / safe) ** 2 + (b / safe) ** 2) * unit
