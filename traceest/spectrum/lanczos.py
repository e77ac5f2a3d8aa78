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


LOOKS = 3
"""Steps whose products are looked at for symmetry: what breaks it is in the first ones, and each look takes time."""


class Lanczos:
    """Runs of Lanczos from each column of Ω, which go on where they stopped.

    Each step has the three terms, and what rounding left, against all vectors before. That second pass finds
    coefficients of rounding size and need not be made again: orthogonality to √ε gives T to ε (Simon 1984), which holds
    until β itself is of size √ε, and what comes after that has weights of β². Memory k·n·t for the bases, 2k·n·t²
    operations. Without it three vectors a run are kept, and T is that of a larger operator whose eigenvalues lie in
    clusters of rounding size around A's (Greenbaum 1989): eigenvalues that have converged come again as copies, and
    share the weight, so that the quadrature holds.

    A run whose Krylov space is exhausted (β of rounding size: low rank, few distinct eigenvalues) goes on with zero
    vectors; its T gets decoupled rows, whose eigenvalues have no weight. They are set to α₁, a value that lies inside
    the spectrum, so that a function of them is defined; each a few roundings away from the others, for the derivative
    of `eigh` divides by their distances.

    `first` is AΩ₁ of unit columns, where the product of the first columns has been made already.
    """

    def __init__(self, xp: Any, A: Any, Omega: Any, reorthogonalise: bool = True, first: Any = None) -> None:
        self.xp, self.A, self.reorthogonalise, self.first = xp, A, reorthogonalise, first
        self.eps = xp.finfo(Omega.dtype).eps
        self.v, self.before, self.b, self.lives = _backends.compiled(_begun, (), Omega, Omega)
        self.size, self.basis = self.b, [self.v[:, None, :]]  # (k, up to BLOCK, n) each
        self.alpha: list[Any] = []
        self.beta: list[Any] = []
        self.w: Any = None
        self.asymmetries: list[Any] = []

    def advance(self, steps: int) -> Lanczos:
        """Go on until there are so many steps."""
        while len(self.alpha) < steps:
            if self.alpha:
                self._turn()
            self._multiply()
        return self

    def _multiply(self) -> None:
        """One product, and what it tells of symmetry: ⟨vⱼ, Avⱼ⟩ is real and ⟨vⱼ₋₁, Avⱼ⟩ = ⟨Avⱼ₋₁, vⱼ⟩ = β."""
        j, v, V = len(self.alpha), self.v, self.xp.matrix_transpose(self.v)
        if j or self.first is None:
            AV = self.A.matmat(V)
        else:
            known = self.first.shape[1]
            AV = self.xp.concat([self.first, self.A.matmat(V[:, known:])], axis=1)
        if not j:
            self.first = AV
        rest = self.alpha[0] if j else self.b
        terms = (AV, v, self.before, self.b, self.lives, rest, 1 - self.eps**0.5 * j)
        if j < LOOKS:
            self.asymmetries.append(_backends.compiled(_asymmetry, (), (AV, v, self.before, self.b, self.size), v))
        self.w, a = _backends.compiled(_two_terms, (), terms, v)
        self.alpha.append(a)

    def _turn(self) -> None:
        """From the last product to the next vector."""
        j, xp, v = len(self.alpha) - 1, self.xp, self.v
        w, self.size = _backends.compiled(_third_term, (), (self.w, v, self.alpha[-1], self.size), v)
        for block in self.basis if self.reorthogonalise else ():
            w = _backends.compiled(_orthogonalised, (), (block, w), v)
        self.before = v
        self.v, self.b, self.size, self.lives = _backends.compiled(_normalised, (j == 0,), (w, self.size), v)
        self.beta.append(self.b)
        if self.reorthogonalise:
            last = self.v[:, None, :]
            self.basis = (
                [*self.basis[:-1], xp.concat([self.basis[-1], last], axis=1)] if j % BLOCK else [*self.basis, last]
            )

    @property
    def T(self) -> Tridiagonals:
        """The tridiagonal matrices so far."""
        xp = self.xp
        empty = xp.zeros((self.v.shape[0], 0), dtype=self.size.dtype, device=aa.device(self.size))
        return Tridiagonals(xp.stack(self.alpha, axis=1), xp.stack(self.beta, axis=1) if self.beta else empty)


def lanczos(xp: Any, A: Any, Omega: Any, steps: int, reorthogonalise: bool = True) -> Tridiagonals:
    """T of t steps of `Lanczos` from each column of Ω."""
    return Lanczos(xp, A, Omega, reorthogonalise).advance(steps).T


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


def _asymmetry(arrays: tuple[Any, ...]) -> Any:
    """By how much a self-adjoint A would not give these products, relative to the longest so far.

    A vector is known to ε‖A‖/β. Where that is more than √ε nothing is shown.
    """
    AV, v, before, b, size = arrays
    xp = aa.namespace(v)
    Av = _rows(xp, AV)
    size = xp.maximum(size, norms(xp, AV))
    unit = xp.where(size > 0, size, xp.ones_like(size))
    Av = Av / xp.astype(unit, Av.dtype)[:, None]
    b = b / unit
    off = xp.vecdot(before, Av) - xp.astype(b, Av.dtype)
    off = xp.where(b > xp.finfo(b.dtype).eps ** 0.5, xp.abs(off), xp.zeros_like(b))
    alpha = xp.vecdot(v, Av)
    return xp.max(xp.maximum(off, xp.abs(xp.imag(alpha))) if aa.is_complex(xp, alpha.dtype) else off)


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
