"""Lanczos from many vectors at once: k runs side by side, one product of k columns a step."""

from __future__ import annotations

from typing import Any, NamedTuple

from traceest import _array_api as aa


class Tridiagonals(NamedTuple):
    """T = VᴴAV of k runs of t steps: diagonals `alpha`, (k, t), and off-diagonals `beta`, (k, t − 1)."""

    alpha: Any
    beta: Any


def lanczos(xp: Any, A: Any, Omega: Any, steps: int) -> Tridiagonals:
    """Do t steps of Lanczos from each column of Ω, every new vector orthogonalised twice against all before it.

    Memory k·n·t for the bases, 4k·n·t² operations. A run whose Krylov space is exhausted (β of rounding size: low rank,
    few distinct eigenvalues) goes on with zero vectors; its T gets decoupled rows, whose eigenvalues have no weight.
    They are set to α₁, a value that lies inside the spectrum, so that a function of them is defined; each a few
    roundings away from the others, for the derivative of `eigh` divides by their distances.
    """
    eps = xp.finfo(Omega.dtype).eps
    V = Omega / xp.astype(norms(xp, Omega), Omega.dtype)
    basis = xp.matrix_transpose(V)[:, None, :]  # (k, t, n)
    alpha: list[Any] = []
    beta: list[Any] = []
    size = xp.zeros_like(aa.real(xp, V[0, :]))
    lives = size == 0
    for j in range(steps):
        W = A.matmat(V)
        a = aa.real(xp, aa.vdot(xp, V, W))
        alpha.append(xp.where(lives, a, alpha[0] * (1 - eps**0.5 * j)) if j else a)
        if j == steps - 1:
            break
        W = _orthogonalised(xp, basis, _orthogonalised(xp, basis, W))
        b = norms(xp, W)
        size = xp.maximum(xp.maximum(size, xp.abs(a)), b)
        lives = b > 10 * eps * size
        beta.append(xp.where(lives, b, xp.zeros_like(b)))
        V = xp.where(lives, W / xp.astype(xp.where(lives, b, xp.ones_like(b)), W.dtype), xp.zeros_like(W))
        basis = xp.concat([basis, xp.matrix_transpose(V)[:, None, :]], axis=1)
    empty = xp.zeros((Omega.shape[1], 0), dtype=size.dtype, device=aa.device(size))
    return Tridiagonals(xp.stack(alpha, axis=1), xp.stack(beta, axis=1) if beta else empty)


def gauss(xp: Any, T: Tridiagonals, depth: int | None = None) -> tuple[Any, Any]:
    """Nodes and weights, (k, t), of the Gauss quadrature of each run, or of its first `depth` steps.

    Σ τ f(θ) ≈ vᴴf(A)v for the unit vector v that the run began with (Golub and Meurant 2010).
    """
    t = T.alpha.shape[1] if depth is None else depth
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
    positive = squares > 0
    return xp.where(positive, xp.sqrt(xp.where(positive, squares, xp.ones_like(squares))), squares) * scale[0, :]


def _orthogonalised(xp: Any, basis: Any, W: Any) -> Any:
    """W less its components in each run's own basis."""
    w = xp.matrix_transpose(W)[:, :, None]
    c = aa.conj(xp, basis) @ w  # (k, t, 1)
    return W - xp.matrix_transpose((xp.matrix_transpose(c) @ basis)[:, 0, :])
