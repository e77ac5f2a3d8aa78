"""Lanczos from many vectors at once: k runs side by side, one product of k columns a step."""

from __future__ import annotations

from typing import Any, NamedTuple

from traceest import _array_api as aa
from traceest import _backends

BLOCK = 8
"""Vectors that are copied again when another comes; all of them would be t²/2 copies."""


class Tridiagonals(NamedTuple):
    """T = VᴴAV of k runs of t steps: diagonals `alpha`, (k, t), and off-diagonals `beta`, (k, t − 1)."""

    alpha: Any
    beta: Any


def lanczos(xp: Any, A: Any, Omega: Any, steps: int, reorthogonalise: bool = True) -> Tridiagonals:
    """Do t steps of Lanczos from each column of Ω: the three terms, and what rounding left, against all vectors before.

    That second pass finds coefficients of rounding size and need not be made again: orthogonality to √ε gives T to ε
    (Simon 1984), which holds until β itself is of size √ε, and what comes after that has weights of β². Memory k·n·t
    for the bases, 2k·n·t² operations. Without it three vectors a run are kept, and T is that of a larger operator whose
    eigenvalues lie in clusters of rounding size around A's (Greenbaum 1989): eigenvalues that have converged come again
    as copies, and share the weight, so that the quadrature holds.

    A run whose Krylov space is exhausted (β of rounding size: low rank, few distinct eigenvalues) goes on with zero
    vectors; its T gets decoupled rows, whose eigenvalues have no weight. They are set to α₁, a value that lies inside
    the spectrum, so that a function of them is defined; each a few roundings away from the others, for the derivative
    of `eigh` divides by their distances.
    """
    eps = xp.finfo(Omega.dtype).eps
    v, before, b, lives = _backends.compiled(_begun, (), Omega, Omega)
    size, basis = b, [v[:, None, :]]  # (k, up to BLOCK, n) each
    alpha: list[Any] = []
    beta: list[Any] = []
    for j in range(steps):
        AV, rest = A.matmat(xp.matrix_transpose(v)), alpha[0] if j else b
        w, a = _backends.compiled(_two_terms, (), (AV, v, before, b, lives, rest, 1 - eps**0.5 * j), v)
        alpha.append(a)
        if j == steps - 1:
            break
        w, size = _backends.compiled(_third_term, (), (w, v, a, size), v)
        for block in basis if reorthogonalise else ():
            w = _backends.compiled(_orthogonalised, (), (block, w), v)
        before = v
        v, b, size, lives = _backends.compiled(_normalised, (j == 0,), (w, size), v)
        beta.append(b)
        if reorthogonalise:
            last = v[:, None, :]
            basis = [*basis[:-1], xp.concat([basis[-1], last], axis=1)] if j % BLOCK else [*basis, last]
    empty = xp.zeros((Omega.shape[1], 0), dtype=size.dtype, device=aa.device(size))
    return Tridiagonals(xp.stack(alpha, axis=1), xp.stack(beta, axis=1) if beta else empty)


def gauss(xp: Any, T: Tridiagonals, depth: int | None = None) -> tuple[Any, Any]:
    """Nodes and weights, (k, t), of the Gauss quadrature of each run, or of its first `depth` steps.

    Σ τ f(θ) ≈ vᴴf(A)v for the unit vector v that the run began with (Golub and Meurant 2010).
    """
    t = T.alpha.shape[1] if depth is None else depth
    found: tuple[Any, Any] = _backends.compiled(_gauss, (t,), T, T.alpha)
    return found


def _gauss(t: int, T: Tridiagonals) -> tuple[Any, Any]:
    xp = aa.namespace(T.alpha)
    eye = xp.eye(t, dtype=T.alpha.dtype, device=aa.device(T.alpha))
    M = T.alpha[:, :t, None] * eye
    if t > 1:
        upper = xp.eye(t - 1, t, k=1, dtype=eye.dtype, device=aa.device(eye))
        off = T.beta[:, : t - 1, None] * upper
        off = xp.concat([off, xp.zeros_like(off[:, :1, :])], axis=1)
        M = M + off + xp.matrix_transpose(off)
    nodes, U = aa.eigh(xp, M)
    return nodes, U[:, 0, :] ** 2


def norms(xp: Any, X: Any) -> Any:
    """Lengths of the columns, (k,); neither squares nor, of zero columns, derivatives leave the range."""
    scale = aa.safe_scale(xp, X, 0)
    squares = xp.sum(aa.abs2(xp, X / xp.astype(scale, X.dtype)), axis=0)
    return aa.root(xp, squares) * scale[0, :]


def _lengths(xp: Any, w: Any, size: Any) -> Any:
    """Lengths of the rows, (k,), which are of about that size: one look for the largest entries less than `norms`."""
    unit = xp.where(size > 0, size, xp.ones_like(size))
    squares = aa.real(xp, xp.vecdot(w / xp.astype(unit, w.dtype)[:, None], w))  # of first order in the size: in range
    return aa.root(xp, squares) * xp.sqrt(unit)


def _rows(xp: Any, W: Any) -> Any:
    """Wᵀ, (k, n), each row in one piece of memory, as matrix products want it."""
    return xp.reshape(xp.reshape(xp.matrix_transpose(W), (-1,)), (W.shape[1], W.shape[0]))


def _begun(Omega: Any) -> tuple[Any, Any, Any, Any]:
    """Unit vectors of the columns, those before them, β, and which runs go on."""
    xp = aa.namespace(Omega)
    v = _rows(xp, Omega / xp.astype(norms(xp, Omega), Omega.dtype))
    b = xp.zeros_like(aa.real(xp, v[:, 0]))
    return v, xp.zeros_like(v), b, b == 0


def _two_terms(arrays: tuple[Any, ...]) -> tuple[Any, Any]:
    """Av − βv₍j−1₎, and α, of an exhausted run some `shift` of what the `rest` is set to."""
    AV, v, before, b, lives, rest, shift = arrays
    xp = aa.namespace(v)
    w = _rows(xp, AV) - xp.astype(b, v.dtype)[:, None] * before
    return w, xp.where(lives, aa.real(xp, xp.vecdot(v, w)), rest * shift)


def _third_term(arrays: tuple[Any, ...]) -> tuple[Any, Any]:
    """That less αv, and the size of T so far."""
    w, v, a, size = arrays
    xp = aa.namespace(v)
    return w - xp.astype(a, w.dtype)[:, None] * v, xp.maximum(size, xp.abs(a))


def _orthogonalised(arrays: tuple[Any, Any]) -> Any:
    """Each row of w, (k, n), less its components in its own run's basis, (k, t, n)."""
    basis, w = arrays
    xp = aa.namespace(w)
    c = aa.conj(xp, basis) @ w[:, :, None]  # (k, t, 1)
    return w - (xp.matrix_transpose(c) @ basis)[:, 0, :]


def _normalised(first: bool, arrays: tuple[Any, Any]) -> tuple[Any, Any, Any, Any]:
    """The next vectors, β, the size of T so far, and which runs go on."""
    w, size = arrays
    xp = aa.namespace(w)
    b = norms(xp, xp.matrix_transpose(w)) if first else _lengths(xp, w, size)
    size = xp.maximum(size, b)
    lives = b > 10 * xp.finfo(w.dtype).eps * size
    inverse = xp.where(lives, 1 / xp.where(lives, b, xp.ones_like(b)), xp.zeros_like(b))
    b = xp.where(lives, b, xp.zeros_like(b))
    return w * xp.astype(inverse, w.dtype)[:, None], b, size, lives
