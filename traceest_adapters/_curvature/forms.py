"""Curvature of a loss at a model's outputs as L Lᵀ, found from products alone; and Gauss–Newton matrices made of it.

With z the outputs and ℓ the loss, H = ∂²ℓ/∂z² is sparse in ways that pay: of a loss of each entry by itself (squared
error, binary cross-entropy, Poisson) it is diagonal; of softmax cross-entropy it is w(diag p − p pᵀ) along the axis of
the classes; of any loss that is a sum over examples it has one block an example. Nothing is taken on trust: what is
found has to reproduce products with H itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import traceest as te
from traceest import _array_api as aa
from traceest.operators.blocks import unit_probes
from traceest.operators.factors import Weighted
from traceest.probes import Probes
from traceest_adapters import _memory as memory

Product = Callable[[Any], Any]


class Form(NamedTuple):
    """A candidate for H: its product, those with L and Lᵀ, all (n, k) → (n, k), and H's weights, which must be ≥ 0."""

    product: Product
    times: Product
    adjoint: Product
    weights: Any


def gauss_newton(J: Any, H: Product, z: Any, weight: float, look: bool) -> Any:
    """JᵀHJ for the curvature H, (n, k) → (n, k), of a loss at the outputs z, example first.

    With `look` the form of H is found from values; without (in a traced function) H is written out, block by block.

    Returns
    -------
    The rows √weight·LᵀJ, H = L Lᵀ; or, where H has no form known here, JᵀHJ by products with both sides of J.

    Raises
    ------
    ValueError
        If H is zero, not finite, or not positive semidefinite, or too large to be written out where it has to be.
    """
    xp = aa.namespace(z)
    if not look:
        form = next(_dense(xp, J, H), None)
        if form is None:
            raise ValueError(
                f"gauss_newton: in a traced function the loss's curvature is written out, and {J.shape[0]} outputs of "
                f"{J.n_blocks or 1} examples are too many; make the operator outside."
            )
        return _rows(J, form, weight)
    V = Probes(J.shape[0], J, rng=0, distribution="gaussian").take(2)
    HV = H(V)
    size, tolerance = xp.max(xp.abs(HV)), xp.finfo(HV.dtype).eps ** (2 / 3)
    if not bool(size > 0):
        raise ValueError(
            "gauss_newton: the loss has no curvature at these outputs (it is linear in them, or NaN), so that the "
            "matrix is zero; ask for empirical_fisher or hessian."
        )
    for form in _forms(xp, J, H, z, V, HV):
        if bool(xp.max(xp.abs(form.product(V) - HV)) <= tolerance * size):
            _check_convex(bool(xp.min(form.weights) >= -tolerance * xp.max(xp.abs(form.weights))))
            return _rows(J, form, weight)
    _check_convex(bool(xp.all(aa.vdot(xp, V, HV) >= -tolerance * size)))
    if not te.can(J, "matmat"):
        raise TypeError(
            "gauss_newton: the loss's curvature at the outputs has no form known here, so that J is needed from both "
            "sides, and the model's backward pass cannot be differentiated."
        )
    P, sides = J.shape[1], lambda W: J.rmatmat(H(J.matmat(W)))
    return te.Operator((P, P), like=J, matmat=sides, rmatmat=sides, psd=True, name="JᵀHJ", parameters=J.parameters)


def empirical_fisher(J: Any, gradient: Any, shares: Any, weight: float) -> Weighted:
    """The rows √(weight·c_b) g_b, where c_b g_b = J_bᵀr_b, for r the loss's gradient at the outputs, example first.

    `shares` are the c_b, one number or (B, 1).
    """
    xp, B = aa.namespace(gradient), J.n_blocks or 1
    r = xp.reshape(gradient, (B, -1)) * shares**-0.5

    def times(V: Any) -> Any:
        return xp.reshape(r[:, :, None] * V[:, None, :], (-1, V.shape[1]))

    def adjoint(X: Any) -> Any:
        return xp.sum(r[:, :, None] * xp.reshape(X, (*r.shape, X.shape[1])), axis=1)

    return _weighted(J, B, times, adjoint, weight)


def _rows(J: Any, form: Form, weight: float) -> Weighted:
    return _weighted(J, J.shape[0], form.times, form.adjoint, weight)


def _weighted(J: Any, m: int, times: Product, adjoint: Product, weight: float) -> Weighted:
    """√weight·LᵀJ, in J's own dtype where that is less than the loss's."""

    def cast(f: Product) -> Product:
        if weight == 1:
            return lambda V: aa.namespace(V).astype(f(V), J.dtype)
        return lambda V: aa.namespace(V).astype(weight**0.5 * f(V), J.dtype)

    return Weighted(J, m, cast(times), cast(adjoint))


def _check_convex(convex: bool) -> None:
    if not convex:
        raise ValueError(
            "gauss_newton: the loss is not convex in the model's outputs, so that its curvature has no square root and "
            "the matrix is not positive semidefinite; give a convex loss, or ask for hessian."
        )


def _forms(xp: Any, J: Any, H: Product, z: Any, V: Any, HV: Any) -> Iterator[Form]:
    """Candidates, cheapest first."""
    yield _diagonal(xp, H(xp.ones_like(V[:, :1])))
    for axis in range(z.ndim - 1, 0, -1):
        yield _softmax(xp, z, axis, V[:, 0], HV[:, 0])
    yield from _dense(xp, J, H)


def _diagonal(xp: Any, d: Any) -> Form:
    root = _sqrt(xp, d)

    def by(weights: Any) -> Product:
        return lambda V: weights * V

    return Form(by(d), by(root), by(root), d)


def _softmax(xp: Any, z: Any, axis: int, v: Any, Hv: Any) -> Form:
    """H = w(diag p − p pᵀ) = w(diag √p − p √pᵀ)(diag √p − √p pᵀ), since Σp = 1; w of each row from Hv."""
    e = xp.exp(z - xp.max(z, axis=axis, keepdims=True))
    p = (e / xp.sum(e, axis=axis, keepdims=True))[..., None]
    q = xp.sqrt(p)

    def total(x: Any) -> Any:
        return xp.sum(x, axis=axis, keepdims=True)

    def on_rows(f: Product) -> Product:
        return lambda V: xp.reshape(f(xp.reshape(V, (*z.shape, -1))), V.shape)

    def plain(V: Any) -> Any:
        return p * (V - total(p * V))

    Sv = plain(xp.reshape(v, (*z.shape, 1)))
    unit = aa.safe_scale(xp, Sv, axis)
    squares = total((Sv / unit) ** 2)
    w = total(xp.reshape(Hv, (*z.shape, 1)) / unit * (Sv / unit)) / xp.where(
        squares > 0, squares, xp.ones_like(squares)
    )
    s = _sqrt(xp, w)
    return Form(
        on_rows(lambda V: w * plain(V)),
        on_rows(lambda V: s * (q * V - p * total(q * V))),
        on_rows(lambda X: s * q * (X - total(p * X))),
        w * xp.max(p * (1 - p), axis=axis, keepdims=True),  # not w itself: where a row is sure, that is 0/0
    )


def _dense(xp: Any, J: Any, H: Product) -> Iterator[Form]:
    """One block an example, written out by n/B products, if all of them fit."""
    n, B = J.shape[0], J.n_blocks or 1
    d = n // B
    if n * d * xp.finfo(J.dtype).bits // 8 > memory.budget():
        return
    blocks = xp.reshape(H(unit_probes(J, 0, d)), (B, d, d))
    weights, U = xp.linalg.eigh((blocks + xp.matrix_transpose(blocks)) / 2)[:2]
    root = U * _sqrt(xp, weights)[:, None, :]

    def by(M: Any, V: Any) -> Any:
        return xp.reshape(M @ xp.astype(xp.reshape(V, (B, d, -1)), M.dtype), V.shape)

    yield Form(partial(by, blocks), partial(by, root), partial(by, xp.matrix_transpose(root)), weights)


def _sqrt(xp: Any, x: Any) -> Any:
    """√max(x, 0)."""
    return xp.sqrt(xp.where(x > 0, x, xp.zeros_like(x)))
