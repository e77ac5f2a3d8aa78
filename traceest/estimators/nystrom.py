"""Nyström++ and NA-Hutch++: a low-rank approximation Ã from products made in one pass, plus Hutchinson on A − Ã.

Hutch++ first has to find a basis and then multiplies A by it. Here all products may be made at once, and they are
used three times: for Ã, for the forms gᴴBg of what is left, B = A − Ã, and for the error of their mean
(`traceest.uncertainty.gradients`).
"""

from __future__ import annotations

import math
from typing import Any

from traceest import _array_api as aa
from traceest import _backends
from traceest import _validation as check
from traceest._boundary import public
from traceest.estimators.exact import cheapest, exact
from traceest.estimators.sampler import Sampler
from traceest.operators.abilities import can
from traceest.operators.metering import chunk_columns
from traceest.operators.products import products, quadratic_forms
from traceest.probes import Distribution, Probes
from traceest.uncertainty import gradients
from traceest.uncertainty.estimate import Estimate, from_samples, trace_bounds


@public
def nystrompp(
    A: Any,
    n_matvecs: int | None = None,
    *,
    rng: Any = None,
    distribution: Distribution = "sphere",
    probes: Any = None,
    n_sketch: int | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    """Estimate tr A of a positive semidefinite A as tr Â + mean of gᴴ(A − Â)g, Â = AΩ(ΩᴴAΩ)⁺(AΩ)ᴴ.

    q sketch columns Ω and s residual probes g cost q + s = `n_matvecs` products; of a Gram operator K = JJᴴ, as many
    vjps and as many jvps. It is unbiased, and exact to rounding where the rank of A is at most q.

    Choose it over `hutchpp` for PSD operators whose spectrum decays: the sketch costs half. `xnystrace` is more
    accurate still where the decay is fast; this one has residual samples independent of each other, and with them
    error bars that hold from few products. Calling it declares A positive semidefinite.

    Parameters
    ----------
    A : operator, (n, n), positive semidefinite
        Anything that `aslinearoperator` takes, with `matmat`.
    n_matvecs : int
        At least 2. From the exact trace's cost on (n; less for a Gram operator), that is returned.
    rng
        As in `hutchinson`.
    distribution : {"sphere", "gaussian", "rademacher", "orthogonal", "hadamard", "balanced"}
        Law of the probes. With the last three the error is that of the samples' spread, which is noisier where few
        eigenvalues hold what the sketch leaves; but then the residual of a Gram operator needs vjps alone.
    probes : array, (n, q + s), optional
        Explicit probes of that law: the first q = `n_sketch` are the sketch Ω, the others the residual's g.
    n_sketch : int, optional
        q; default 3/5 of n_matvecs.
    chunk_size : int, optional
        Columns multiplied at a time. Memory is O(n · n_matvecs).

    Returns
    -------
    Estimate
        The error is that of the residual (Student-t; see `traceest.uncertainty.gradients`), bounded below by 0.

    Raises
    ------
    ValueError
        If A is not square, or the budget leaves no sketch or no residual.
    TypeError
        If A has no `matmat` (of a Gram operator: if J lacks either side).

    References
    ----------
    Persson, Cortinovis, Kressner (2022), Improved variants of the Hutch++ algorithm for trace estimation, section 3.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = np.diag(0.5 ** np.arange(200.0))
    >>> abs(float(te.nystrompp(A, 60, rng=0)) - 2) < 1e-6
    True
    """
    begun = _begun(A, n_matvecs, 1, "nystrompp", rng, distribution, probes, n_sketch, chunk_size)
    if isinstance(begun, Estimate):
        return begun
    sampler, q, s = begun
    Omega = sampler.stream.take(q)
    Y = sampler.multiply(Omega)
    return sampler.sketched(Omega, Y, Y).once(s)


@public
def na_hutchpp(
    A: Any,
    n_matvecs: int | None = None,
    *,
    rng: Any = None,
    distribution: Distribution = "sphere",
    probes: Any = None,
    n_sketch: int | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    """Estimate tr A as tr Ã + mean of gᴴ(A − Ã)g, Ã = AR(SᴴAR)⁺SᴴA: Hutch++ in one pass.

    With q columns of S, 2q of R and s residual probes g the cost is 3q + s = `n_matvecs` products: AR, Ag, and AᴴS
    for SᴴA (by `rmatmat`, unless A is known to be symmetric); of a Gram operator K = JJᴴ, as many vjps and as many
    jvps. It is unbiased for every square A.

    Choose it where all products have to be made in one batch and A is not PSD; else `hutchpp` is more accurate,
    and for PSD operators `nystrompp`.

    Parameters
    ----------
    A : operator, (n, n)
        Anything that `aslinearoperator` takes, with `matmat`, and `rmatmat` unless it is known to be symmetric.
    n_matvecs : int
        At least 4. From the exact trace's cost on (n; less for a Gram operator), that is returned.
    rng, distribution, chunk_size
        As in `nystrompp`.
    probes : array, (n, 3q + s), optional
        Explicit probes: the first q = `n_sketch` are S, the next 2q are R, the others the residual's g.
    n_sketch : int, optional
        q; default n_matvecs // 5, so that S, R and g have about 1/5, 2/5 and 2/5 of the budget (the paper's
        c₁, c₂, c₃).

    Returns
    -------
    Estimate
        The error is that of the residual (Student-t; see `traceest.uncertainty.gradients`). Memory O(n · n_matvecs).

    Raises
    ------
    ValueError
        If A is not square, or the budget leaves no sketch or no residual.
    TypeError
        If A has no `matmat`, or no `rmatmat` and is not known to be symmetric (of a Gram operator: if J lacks either).

    References
    ----------
    Meyer, Musco, Musco, Woodruff (2021), Hutch++: Optimal Stochastic Trace Estimation, Algorithm 2.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = np.diag(0.5 ** np.arange(200.0))
    >>> abs(float(te.na_hutchpp(A, 60, rng=0)) - 2) < 1e-2
    True
    """
    begun = _begun(A, n_matvecs, 3, "na_hutchpp", rng, distribution, probes, n_sketch, chunk_size)
    if isinstance(begun, Estimate):
        return begun
    sampler, q, s = begun
    op, stream = sampler.meter.op, sampler.stream
    S, R = stream.take(q), stream.take(2 * q)
    W = products(sampler.xp, op if sampler.hermitian else op.H, S, sampler.chunk)
    return sampler.sketched(S, W, sampler.multiply(R)).once(s)


def _begun(
    A: Any,
    m: int | None,
    each: int,
    caller: str,
    rng: Any,
    distribution: Distribution,
    probes: Any,
    q: int | None,
    chunk_size: int | None,
) -> Estimate | tuple[LowRankPlus, int, int]:
    """A sampler, the columns q of its sketch and the probes s of the residual; or the exact trace, if m affords it.

    A column of the sketch costs `each` products.
    """
    A = check.square(A, caller)
    check.require_side(A, "matmat", caller)
    if each > 1 and not (A.symmetric or can(A, "rmatmat")):
        raise TypeError(
            f"{caller}: needs rmatmat (reverse mode, vjp) for SᴴA, which {A!r} lacks; give it one, or say "
            "aslinearoperator(…, symmetric=True) if it is."
        )
    n = A.shape[0]
    m = check.budget(m, probes, each + 1, "n_matvecs", caller)
    check.check_probes(probes, n, A, caller)
    # Mean error at n = 1000, m = 60 and 120, against the papers' m/2 (Nyström++) and m/6 (NA-Hutch++): 3m/5 and m/5 are
    # 5 to 24 % worse on λ = 1…3; 15 to 19 % better on i⁻², 3 to 59 % on 0.9^i, 38 to 98 % on 0.7^i, 7 to 22 % on an
    # NTK, and from 4 % worse to 70 % better on steps.
    q = max(1, 3 * m // 5 if each == 1 else m // 5) if q is None else q
    if q < 1 or m - each * q < 1:
        cost = "q + s" if each == 1 else f"{each}q + s"
        raise ValueError(
            f"{caller}: n_sketch = {q} of n_matvecs = {m} leaves {m - each * q} for the residual; {cost} = n_matvecs "
            "with q ≥ 1 and s ≥ 1 is needed."
        )
    chunk = chunk_columns(A, chunk_size)
    best = cheapest(A)
    if probes is None and best is not None and m >= best.cost:
        return exact(A, chunk_size=chunk)
    stream = Probes(n, A, rng=rng, distribution=distribution, probes=probes)
    psd = each == 1
    bounds = (0.0, math.inf) if psd else trace_bounds(A)
    hermitian = psd or A.symmetric
    return LowRankPlus(A, stream, chunk, caller, hermitian, bounds), q, m - each * q


def _factors(arrays: tuple[Any, Any, Any]) -> tuple[Any, Any]:
    """L and R of Ã = Z(SᴴZ)⁺Wᴴ = LRᴴ, by QR of (SᴴZ)ᴴ, from S, W and Z.

    The floor, of the size of rounding, gives QR full rank, and so a derivative, whatever the rank of A and however
    unlucky S. It moves singular values σ of SᴴZ by a fraction (floor/σ)² only, and the residual sees by how much.
    """
    S, W, Z = arrays
    xp = aa.namespace(Z)
    scale = aa.safe_scale(xp, Z)
    M = aa.adjoint(xp, S) @ (Z / scale)
    q, p = M.shape
    floor = 10 * S.shape[0] * xp.finfo(M.dtype).eps * xp.eye(q, dtype=M.dtype, device=aa.device(M))
    V, T = xp.linalg.qr(xp.concat([aa.adjoint(xp, M), floor], axis=0))[:2]
    return Z @ V[:p, :], aa.adjoint(xp, xp.linalg.solve(aa.adjoint(xp, T), aa.adjoint(xp, W / scale)))


class LowRankPlus(Sampler):
    """Forms gᴴBg of what a low-rank Ã = LRᴴ leaves, B = A − Ã, beside tr Ã.

    Of an invariant law the vectors Bg are kept, which tell the error; of others the forms alone.
    """

    KEPT = ("samples", "probes", "products")
    FORMS = ("samples",)
    samples: list[Any]
    probes: list[Any]
    products: list[Any]

    def __init__(
        self, A: Any, stream: Probes, chunk: int, method: str, hermitian: bool, bounds: tuple[float, float]
    ) -> None:
        super().__init__(A, stream, chunk)
        self.method, self.hermitian, self.bounds = method, hermitian, bounds

    @property
    def n_samples(self) -> int:
        """Samples that the estimate rests on."""
        return sum(x.shape[1] for x in (*self.samples, *self.probes))

    def sketched(self, S: Any, W: Any, Z: Any) -> LowRankPlus:
        """The sampler itself, with Ã = Z(SᴴZ)⁺Wᴴ."""
        self.L, self.R = _backends.compiled(_factors, (), (S, W, Z), Z)
        return self

    def grow(self, k: int) -> None:
        """Spend k more samples."""
        xp, G = self.xp, self.stream.take(k)
        if self.stream.law.invariant:
            self.probes.append(G)
            self.products.append(self.multiply(G))
            return
        RG, LG = aa.adjoint(xp, self.R) @ G, aa.adjoint(xp, self.L) @ G
        chunks = (G[:, i : min(i + self.chunk, k)] for i in range(0, k, self.chunk))
        forms = quadratic_forms(xp, self.meter.op, chunks) - aa.vdot(xp, LG, RG)
        self.samples.append(_part(xp, forms, self.hermitian)[None, :])

    def estimate(self) -> Estimate:
        """The answer so far."""
        fields = {"method": self.method, "bounds": self.bounds, **self.meter.spent}
        if self.probes:
            arrays = self.L, self.R, self.joined("probes"), self.joined("products")
            static = self.stream.law.fixed_norm, self.hermitian
            value, stderr, df = _backends.compiled(_mean, static, arrays, self.L)
            return Estimate(value, stderr, df, None, **fields)
        e = from_samples(self.joined("samples"), population=self.stream.population)
        return Estimate(_trace(self.xp, self.L, self.R, self.hermitian) + e.value, e.stderr, e.df, None, **fields)


def _mean(sphere: bool, hermitian: bool, arrays: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    """Value, standard error and degrees of freedom from L, R, G and AG."""
    L, R, G, AG = arrays
    xp = aa.namespace(G)
    seen = L @ (aa.adjoint(xp, R) @ G)
    if hermitian or not aa.is_complex(xp, G.dtype):  # of real A, real forms see the Hermitian part alone
        seen = (seen + R @ (aa.adjoint(xp, L) @ G)) / 2
    BG = AG - seen
    forms = aa.vdot(xp, G, BG)
    value = _trace(xp, L, R, hermitian) + _part(xp, xp.sum(forms) / G.shape[1], hermitian)
    return value, *gradients.stderr(xp, G, BG, forms, sphere, hermitian)


def _trace(xp: Any, L: Any, R: Any, hermitian: bool) -> Any:
    """Tr LRᴴ."""
    return _part(xp, xp.sum(aa.vdot(xp, R, L)), hermitian)


def _part(xp: Any, x: Any, hermitian: bool) -> Any:
    """The real part, where the imaginary part is rounding."""
    return aa.real(xp, x) if hermitian else x
