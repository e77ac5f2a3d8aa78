"""Traces of functions of an operator, by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from traceest import _array_api as aa
from traceest import _validation as check
from traceest._boundary import public
from traceest.operators import gram
from traceest.operators.abilities import can
from traceest.probes import Distribution
from traceest.spectrum import looks
from traceest.spectrum.labels import name_of
from traceest.spectrum.quadrature import Function, Quadrature, finished, quadrature
from traceest.uncertainty.estimate import Estimate


@public
def trace_of_function(
    A: Any,
    f: Function,
    n_matvecs: int | None = None,
    *,
    n_probes: int | None = None,
    steps: int | None = None,
    n_deflate: int = 0,
    rng: Any = None,
    distribution: Distribution = "sphere",
    probes: Any = None,
    chunk_size: int | None = None,
    reorthogonalise: bool | None = None,
) -> Estimate:
    """Estimate tr f(A) = Σ f(λᵢ) of a self-adjoint A by stochastic Lanczos quadrature.

    n times the mean over `n_probes` random unit vectors v of Σ τ f(θ), the Gauss quadrature of vᴴf(A)v that `steps`
    steps of Lanczos from v give. All probes advance together, one product of `n_probes` columns a step.

    Choose it for any function but f(λ) = λ, for which `trace` is better, and λ², for which `frobenius_norm` is. More
    probes lower the sampling error, as 1/√n_probes; more steps lower the truncation error, geometrically where f is
    smooth on the spectrum (10 do for exp), slowly where it is not (√ and log of eigenvalues that fall to 0).

    Parameters
    ----------
    A : operator, (n, n), self-adjoint
        Anything that `aslinearoperator` takes, with `matmat`; calling it declares A self-adjoint. Of a Gram operator a
        product costs one vjp and one jvp.
    f : callable
        Function of an array of eigenvalues, in A's namespace, elementwise. It is asked for values within the range of
        the spectrum to rounding; of a positive semidefinite A (`psd`), for none below 0.
    n_matvecs : int
        Products, at least 2. From n on (of a Gram operator with blocks of n_b rows: n_b, where the (n, n) array fits
        the memory of a chunk), the exact answer is returned, by `eigvalsh`.
    n_probes, steps : int, optional
        Split the budget otherwise than a pilot of half of 2/5·√n_matvecs probes finds best for f (below 30 products,
        inside `jax.jit` and with signs or orthogonal probes: n_probes ≈ 2/5·√n_matvecs); two of the three are enough.
    n_deflate : int
        Leading directions to sum over by themselves, 7 products each, or 30 in all where the budget has a hundred:
        where few large eigenvalues rule the sum (exp, x², x log x) that takes one to four digits off the error. Not for
        log or √ of eigenvalues that fall to 0, for which the products go to steps.
    rng
        As in `hutchinson`.
    distribution : {"sphere", "gaussian", "rademacher", "orthogonal", "hadamard", "balanced"}
        Law of the probes, of which only the directions are used. The error bars of the first two come from the nodes
        and are the more reliable ones; of the others from the spread of the samples, which takes ten probes or more.
    probes : array, (n, n_deflate + n_probes), optional
        Explicit probes of that law; the first `n_deflate` are what leading directions are found from.
    chunk_size : int, optional
        Probes that advance together; chosen from memory if absent.
    reorthogonalise : bool, optional
        Make every Lanczos vector orthogonal to all before it; default: where those of one run fit 256 MiB. Without it
        three vectors a run are kept instead of `steps`, and where products are cheap (sparse A) it is several times
        faster. Eigenvalues that have converged come again, with the weight shared (Greenbaum 1989): the estimate is as
        good where sampling rules its error, as if by up to a third fewer steps where truncation does, which the error
        bar knows. Once there are copies its derivative is NaN.

    Returns
    -------
    Estimate
        With Student-t error, to which what the steps made let expect of further ones is added in quadrature: infinite
        where nothing is known of them (1/x of eigenvalues that fall to 0). ``converged`` is False where truncation is
        more than half of the variance. Of a complex f the error is that of the modulus. Memory
        n · steps · chunk_size, time 2n · steps² · n_probes beside the products; without reorthogonalisation
        3n · chunk_size and 10n · steps · n_probes.

    Raises
    ------
    ValueError
        If A is not square, or the budget is below 2 or smaller than n_probes · steps; if A is not self-adjoint or,
        declared `psd`, has a negative eigenvalue, beyond rounding, or f is NaN or infinite on its spectrum. Inside
        `jax.jit` there are no values to look at, and nothing is raised.
    TypeError
        If A has no `matmat` (of a Gram operator: if J lacks either side, and the budget is below the exact cost).

    References
    ----------
    Ubaru, Chen, Saad (2017), Fast estimation of tr(f(A)) via stochastic Lanczos quadrature. SIAM J. Matrix Anal. 38(4).
    Greenbaum (1989), Behavior of slightly perturbed Lanczos and conjugate-gradient recurrences. Lin. Alg. Appl. 113.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = np.diag(np.linspace(1.0, 3.0, 500))
    >>> e = te.trace_of_function(A, np.sqrt, 60, rng=0)
    >>> low, high = e.confidence_interval()
    >>> bool(low < np.sum(np.sqrt(np.linspace(1.0, 3.0, 500))) < high)
    True
    """
    A = check.square(A, "trace_of_function")
    psd = A.psd
    q = quadrature(
        A, n_matvecs, caller="trace_of_function", f=_kept_at_zero(A, f) if psd else f,
        n_probes=n_probes, steps=steps, n_deflate=n_deflate, rng=rng, distribution=distribution,
        probes=probes, chunk_size=chunk_size, reorthogonalise=reorthogonalise,
    )  # fmt: skip
    if psd:
        looks.positive(q.least, q.largest, A, "A, declared positive semidefinite,", "trace_of_function")
        q = q.clipped(0.0)  # rounding makes zeros negative
    with np.errstate(invalid="ignore", divide="ignore"):  # `defined` says more
        e, truncated = q.judged(f)
    looks.defined(e.value, q.fine[0], f, "trace_of_function")
    return finished(q, f"trace_of_function {name_of(f)}", A, e, truncated)


def _kept_at_zero(A: Any, f: Function) -> Function:
    """The function f of max(x, 0)."""
    xp = aa.namespace(A)
    return lambda x: f(xp.where(x > 0, x, xp.zeros_like(x)))


@public
def logdet(
    A: Any,
    n_matvecs: int | None = None,
    *,
    shift: float = 0.0,
    n_probes: int | None = None,
    steps: int | None = None,
    n_deflate: int = 0,
    rng: Any = None,
    distribution: Distribution = "sphere",
    probes: Any = None,
    chunk_size: int | None = None,
    reorthogonalise: bool | None = None,
) -> Estimate:
    """Estimate log det(A + shift·I) = Σ log(λᵢ + shift) of a positive definite A + shift·I.

    By `trace_of_function`, whose arguments, costs and errors are these. Eigenvalues below n·ε times the largest, which
    rounding has made, are taken for that: of a numerically singular A the answer is finite, and its error infinite.
    Truncation converges as exp(−4·steps/√κ) at worst, κ the condition number of A + shift·I.

    Parameters
    ----------
    A : operator, (n, n), positive semidefinite
        Calling it declares A self-adjoint and A + shift·I positive.
    n_matvecs, n_probes, steps, n_deflate, rng, distribution, probes, chunk_size, reorthogonalise
        As in `trace_of_function`.
    shift : float
        Added to every eigenvalue; a ridge.

    Returns
    -------
    Estimate
        Memory as `trace_of_function`.

    Raises
    ------
    ValueError
        If A + shift·I has a negative eigenvalue beyond rounding or is zero, or as `trace_of_function`.
    TypeError
        As `trace_of_function`.

    References
    ----------
    Ubaru, Chen, Saad (2017), section 5.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = np.diag(np.linspace(1.0, 3.0, 500))
    >>> e = te.logdet(A, 60, shift=0.5, rng=0)
    >>> bool(abs(float(e) - np.linalg.slogdet(A + 0.5 * np.eye(500))[1]) < 3 * float(e.stderr))
    True
    """
    A = check.square(A, "logdet")
    q = quadrature(
        A, n_matvecs, caller="logdet", f=_log_above_rounding(A, shift),
        n_probes=n_probes, steps=steps, n_deflate=n_deflate, rng=rng, distribution=distribution,
        probes=probes, chunk_size=chunk_size, reorthogonalise=reorthogonalise,
    )  # fmt: skip
    least, largest, size = q.asked(_edges, (), (shift,))
    looks.positive(least, largest, A, f"A + {shift}·I" if looks.number(shift) else "A", "logdet")
    if looks.number(size) == 0:
        raise ValueError("logdet: A + shift·I is zero, and its log-determinant −∞; give a shift= > 0.")
    statistic = f"logdet shift={known:g}" if (known := looks.number(shift)) else "logdet"
    return finished(q, statistic, A, *q.asked(_logdet, (A.shape[0],), (shift,)))


def _edges(q: Quadrature, shift: Any) -> tuple[Any, Any, Any]:
    """The least node, shifted, the largest modulus of any, and that once they are shifted."""
    return q.least + shift, q.largest, q.map_nodes(lambda x: x + shift).largest


def _logdet(q: Quadrature, n: int, shift: Any) -> tuple[Estimate, Any]:
    """Σ log(λ + shift), in units of the largest, for a λ that rounding has made is known by its ratio to that.

    Of what has been lifted to the level of rounding all that is known is that it is below: the error is infinite.
    """
    xp = q.xp
    unit, q = q.map_nodes(lambda x: x + shift).scaled()
    level = n * xp.finfo(unit.dtype).eps
    lost = xp.max(xp.where(q.fine[0] < level, q.fine[1], xp.zeros_like(q.fine[1])))
    e, truncated = q.clipped(level).judged(lambda x: xp.log(xp.where(x <= 0, xp.ones_like(x), x)))
    lost = lost > xp.finfo(unit.dtype).eps
    unknown = xp.ones_like(e.stderr) * math.inf
    offset = n * xp.log(unit)
    stderr, truncated = (xp.where(lost, unknown, x) for x in (e.stderr, truncated))
    reach = None if e.reach is None else e.reach + offset
    return replace(e, value=e.value + offset, stderr=stderr, reach=reach), truncated


def _log_above_rounding(A: Any, shift: Any) -> Function:
    """The logarithm of x + shift, for a look; negative ones are found out about afterwards."""
    xp, eps = aa.namespace(A), A.shape[0] * aa.namespace(A).finfo(A.dtype).eps

    def f(x: Any) -> Any:
        x = x + shift
        floor = xp.max(xp.abs(x)) * eps
        x = xp.where(x <= floor, floor, x)
        return xp.log(xp.where(x <= 0, xp.ones_like(x), x))

    return f


@public
def schatten_norm(
    A: Any,
    p: float,
    n_matvecs: int | None = None,
    *,
    n_probes: int | None = None,
    steps: int | None = None,
    n_deflate: int = 0,
    rng: Any = None,
    distribution: Distribution = "sphere",
    probes: Any = None,
    chunk_size: int | None = None,
    reorthogonalise: bool | None = None,
) -> Estimate:
    """Estimate ‖A‖ₚ = (Σ σᵢᵖ)^{1/p}, σ the singular values; p = 1 is the nuclear norm.

    Of an A known to be self-adjoint Σ |λ|ᵖ, by `trace_of_function`; of any other from AAᴴ, whose products
    take one with A and one with Aᴴ, as tr (AAᴴ)^{p/2}. The error is carried through the root by the delta method. For
    p = 2 `frobenius_norm` is better, for p = ∞ there is `spectral_norm`.

    Parameters
    ----------
    A : operator, (m, n)
        With `matmat`, and `rmatmat` unless A is known to be self-adjoint (`symmetric=True`).
    p : float
        Positive and finite.
    n_matvecs, n_probes, steps, rng, distribution, probes, chunk_size, reorthogonalise
        As in `trace_of_function`, for A or AAᴴ.

    Returns
    -------
    Estimate
        Bounded below by 0. Memory m · steps · chunk_size.

    Raises
    ------
    ValueError
        If p is not positive and finite, or as `trace_of_function`.
    TypeError
        If A lacks a side.

    References
    ----------
    Ubaru, Chen, Saad (2017), section 5.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = te.aslinearoperator(np.diag(np.linspace(-1.0, 3.0, 500)), symmetric=True)
    >>> e = te.schatten_norm(A, 1, 100, rng=0)
    >>> bool(abs(float(e) - np.abs(np.linspace(-1.0, 3.0, 500)).sum()) < 3 * float(e.stderr))
    True
    """
    A = check.operator(A, "schatten_norm")
    if not 0 < p < math.inf:
        raise ValueError(f"schatten_norm: p must be positive and finite, got {p!r}; p = ∞ is spectral_norm.")
    A, power = self_adjoint(A, "schatten_norm")
    xp = aa.namespace(A)
    q = quadrature(
        A, n_matvecs, caller="schatten_norm", f=lambda x: _power(xp, xp.abs(x), p * power),
        n_probes=n_probes, steps=steps, n_deflate=n_deflate, rng=rng, distribution=distribution,
        probes=probes, chunk_size=chunk_size, reorthogonalise=reorthogonalise,
    )  # fmt: skip
    return finished(q, f"schatten_norm p={float(p):g}", A, *q.asked(_schatten, (float(p), power)))


def _schatten(q: Quadrature, p: float, power: float) -> tuple[Estimate, Any]:
    """(Σ |λ|^{p·power})^{1/p}, in units of the largest."""
    xp = q.xp
    unit, q = q.scaled()
    e, truncated = q.judged(lambda x: _power(xp, xp.abs(x), p * power))
    root = _power(xp, e.value, 1 / p)
    positive = e.value > 0
    slope = xp.where(positive, root / (p * xp.where(positive, e.value, xp.ones_like(e.value))), e.value)
    unit = _power(xp, unit, power)
    reach = None if e.reach is None else _power(xp, e.reach, 1 / p) * unit
    return replace(e, value=root * unit, stderr=e.stderr * slope * unit, bounds=(0.0, math.inf), reach=reach), truncated


def self_adjoint(A: Any, caller: str) -> tuple[Any, float]:
    """A itself and 1, or AAᴴ and 1/2: the operator, and the power of its eigenvalues that gives A's singular values."""
    if A.symmetric:
        return A, 1.0
    if not (can(A, "matmat") and can(A, "rmatmat")):
        raise TypeError(
            f"{caller}: needs matmat and rmatmat for the singular values of {A!r}; give it both, or, if it is "
            "self-adjoint, say so: aslinearoperator(…, symmetric=True)."
        )
    return gram(A), 0.5


def _power(xp: Any, x: Any, p: float) -> Any:
    """xᵖ for x ≥ 0, with a derivative at 0; NaN stays NaN."""
    nothing = x <= 0
    return xp.where(nothing, xp.zeros_like(x), xp.where(nothing, xp.ones_like(x), x) ** p)
