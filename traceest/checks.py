"""`check`: whether an operator is what it says it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from traceest import _array_api as aa
from traceest import _validation
from traceest._boundary import public
from traceest.operators.abilities import SIDES, can
from traceest.operators.boundary import Watch, watching
from traceest.operators.metering import Meter
from traceest.probes import Probes, random_source
from traceest.uncertainty.estimate import _to_host

MANY_BLOCKS = 512
"""Up to this many, all pairs of blocks' inner products are looked at."""
CURES = {
    "shape": "a product of (n_cols, k) has to have shape (n_rows, k)",
    "dtype": "a product has to be an array of the operator's library, dtype and device",
    "argument": "it changes what it is given (x *= 2, out=x): estimators here give it copies, other code may not",
    "buffer": "it writes into an array that it returned before: estimators here copy its answers, other code may not",
    "finite": "look for overflow, a log or a division at zero, or try float64",
    "deterministic": "the same product came out differently: look for dropout, a random draw, a state that is kept",
    "history": "a product depends on those before it: look for a state that is kept, a warm start, running averages",
    "columns": "a column's product depends on the columns beside it: look for a sum or a norm over the wrong axis",
    "linear": "A(2x − y/2) is not 2Ax − Ay/2: look for an affine term, a nonlinearity, or a conjugate",
    "adjoint": "⟨v, Ax⟩ is not ⟨Aᴴv, x⟩: rmatmat is to be the conjugate transpose of matmat",
    "symmetric": "A is said to be self-adjoint and is not: drop symmetric= and psd=, or take te.symmetric_part(A)",
    "psd": "A is said to be positive semidefinite and has a negative quadratic form: drop psd=",
    "gram": "gram_matmat(V) is not J(JᴴV)",
    "blocks": "block_sqnorms of a vector in one block is not ‖Jᴴv‖² there and zero elsewhere",
    "pairs": "the entries of sketch_gram(V) do not add up to ‖JᴴV‖²",
}


@dataclass(frozen=True)
class Finding:
    """One property: the error found, relative to the operator's scale, what rounding excuses, and what was said."""

    name: str
    side: str
    error: float
    tolerance: float
    reason: str = ""

    @property
    def holds(self) -> bool:
        """Whether the error is within the tolerance; NaN is not."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class CheckReport:
    """What `check` found; ``print`` it.

    ``bool(report)`` is whether all properties hold, `failures` are those that do not. `symmetric` says whether the
    operator looks self-adjoint, declared or not (None where that was not to be seen).
    """

    name: str
    findings: tuple[Finding, ...]
    symmetric: bool | None
    n_matvecs: int
    n_rmatvecs: int

    @property
    def failures(self) -> tuple[Finding, ...]:
        """Properties that do not hold."""
        return tuple(f for f in self.findings if not f.holds)

    def __bool__(self) -> bool:
        return not self.failures

    def __getitem__(self, name: str) -> bool:
        """Whether the property `name` holds, on both sides where there are two; `KeyError` if it was not looked at."""
        found = [f.holds for f in self.findings if f.name == name]
        if not found:
            raise KeyError(
                f"{name!r} was not looked at, only {', '.join(dict.fromkeys(f.name for f in self.findings))}"
            )
        return all(found)

    def __str__(self) -> str:
        lines = [f"check of {self.name}, by {self.n_matvecs} matvecs and {self.n_rmatvecs} rmatvecs"]
        for f in self.findings:
            line = (
                f"  {'✓' if f.holds else '✗'} {f.name:13}  {f.side:8}  error {f.error:.1e} of {f.tolerance:.1e} allowed"
            )
            lines.append(line if f.holds else f"{line}: {f.reason or CURES[f.name]}")
        if self.symmetric and not any(f.name == "symmetric" for f in self.findings):
            lines.append(
                "  – looks self-adjoint and is not declared so: symmetric=True, or psd=True, lets estimators use it"
            )
        return "\n".join(lines)

    __repr__ = __str__


@public
def check(A: Any, *, rng: Any = 0, rtol: float | None = None, strict: bool = False) -> CheckReport:
    """Whether A is what it says it is: deterministic, linear, its own adjoint's adjoint, symmetric, positive.

    With Gaussian x, y and u, v, on each side that A has:

    * *shape*, *dtype* (with library and device), *finite*: of the products;
    * *argument*, *buffer*: that a product changes neither what it is given nor an answer given before (estimators bear
      both by copies; other code may not);
    * *deterministic*, *history*: A y twice, with another product between;
    * *columns*: A y alone, and beside other columns;
    * *linear*: A(2x − y/2) = 2Ax − Ay/2 (complex: with 2i for 2);
    * *adjoint*: ⟨v, Ax⟩ = ⟨Aᴴv, x⟩, where there are two sides;
    * *symmetric*: ⟨y, Ax⟩ = ⟨Ay, x⟩, where A is said to be self-adjoint;
    * *psd*: ⟨x, Ax⟩ ≥ 0, where it is said to be positive semidefinite (which can be refuted so, not proved);
    * of a Jacobian's abilities, *gram*: ``gram_matmat``; *blocks*: ``block_sqnorms`` or ``block_rmatmat``; *pairs*:
      ``sketch_gram`` (up to 512 blocks).

    For a Gram operator K = JJᴴ its J is looked at. Costs 5 products on each side, and of a Jacobian that has all
    abilities 2 more on the one and 10 on the other. Probes being Gaussian, a violation anywhere in the matrix shows
    with probability one where it is above rounding. Made for operators of your own, once, before a long run; it
    looks at values, and so does not run inside `jax.jit`.

    Parameters
    ----------
    A : operator
        Anything that `aslinearoperator` takes.
    rng : int, numpy.random.Generator, JAX key or torch.Generator
        As in `hutchinson`.
    rtol : float, optional
        What rounding excuses, relative to the products' size; default: the square root of the dtype's epsilon.
    strict : bool
        Raise if a property does not hold.

    Returns
    -------
    CheckReport
        True if all properties hold; prints as a table, with what to look for where one does not.

    Raises
    ------
    ValueError
        With ``strict=True``, if a property does not hold: the table.
    TypeError
        If A has no product.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> A = np.diag([1.0, 2.0, 3.0])
    >>> bool(te.check(A))
    True
    >>> wrong = te.Operator((3, 3), like=A, matmat=lambda X: A @ X + 1, rmatmat=lambda X: A @ X)
    >>> [f.name for f in te.check(wrong).failures]
    ['linear', 'adjoint']
    """
    A = _validation.operator(A, "check")
    meter = Meter(A)
    op = meter.op.inner
    sides = [side for side in SIDES if can(op, side)]
    if not sides:
        _validation.require_side(op, "matmat", "check")
    with watching() as watch:
        looker = _Looker(op, rng, rtol, watch)
        findings = tuple(looker.look(sides))
    report = CheckReport(repr(A), findings, looker.symmetric, meter.n_matvecs, meter.n_rmatvecs)
    if strict and not report:
        raise ValueError(f"check: {len(report.failures)} of {len(findings)} properties do not hold.\n{report}")
    return report


class _Looker:
    """The products made so far, and the properties that they show."""

    def __init__(self, A: Any, rng: Any, rtol: float | None, watch: Watch) -> None:
        self.A, self.xp, self.watch = A, aa.namespace(A), watch
        eps = float(self.xp.finfo(A.dtype).eps)
        self.rtol = eps**0.5 if rtol is None else rtol
        source = random_source(rng)
        self.V, self.X = (Probes(n, A, rng=source, distribution="gaussian").take(2) for n in A.shape)
        self.symmetric: bool | None = None

    def look(self, sides: list[str]) -> Iterator[Finding]:
        """All findings; of a side whose products are not what was asked for, or not finite, no more than that."""
        products = {}
        for side in sides:
            X = self.X if side == "matmat" else self.V
            self.watch.forget()
            made = self._made(side, X)
            what, reason = self.watch.refused or ("", "")
            yield Finding("shape", side, float(what == "shape"), self.rtol, reason if what == "shape" else "")
            if what == "dtype":
                yield Finding("dtype", side, 1.0, self.rtol, reason)
            if made is None:
                continue
            alone, Y = made
            yield (finite := self._finding("finite", side, 0.0 if bool(self.xp.all(self.xp.isfinite(Y))) else 1.0))
            if finite.holds:
                products[side] = Y
                yield from self._one_side(side, X, alone, Y)
            yield self._finding("dtype", side, 0.0)
            yield self._finding("argument", side, float(self.watch.argument_changed))
            yield self._finding("buffer", side, float(self.watch.answer_overwritten))
        if len(products) == 2:
            yield self._finding("adjoint", "both", self._adjoint(products["matmat"], products["rmatmat"]))
        if products and self.A.shape[0] == self.A.shape[1]:
            yield from self._square(*next(iter(products.items())))
        if "rmatmat" in products:
            yield from self._abilities("matmat" in products)

    def _made(self, side: str, X: Any) -> tuple[Any, Any] | None:
        """A y, and A of x, y and what they are combined to; None where an answer was refused."""
        product = self.A.matmat if side == "matmat" else self.A.rmatmat
        try:
            # y alone and then x in its place: an array that is written into again and again shows.
            return product(X[:, 1:]), product(self._with_combination(X))
        except (ValueError, TypeError):
            if self.watch.refused is None:  # it is the operator's own
                raise
            return None

    def _with_combination(self, X: Any) -> Any:
        """x, y, and 2x − y/2: powers of two, which round nothing; i moves a complex conjugate to the light."""
        return self.xp.concat([X, self._combined(X)[:, None]], axis=1)

    def _combined(self, X: Any) -> Any:
        two = 2j if aa.is_complex(self.xp, self.A.dtype) else 2.0
        return two * X[:, 0] - 0.5 * X[:, 1]

    def _one_side(self, side: str, X: Any, alone: Any, Y: Any) -> Iterator[Finding]:
        product = self.A.matmat if side == "matmat" else self.A.rmatmat
        again = product(X[:, 1:])
        changed = self._relative(again - alone, alone)
        remembered = False
        if changed > self.rtol:  # what depends on the product before is the same after the same, a random draw is not
            last, same = product(X[:, 1:]), product(X[:, 1:])
            remembered = self._relative(same - last, alone) <= self.rtol
        yield self._finding("deterministic", side, 0.0 if remembered else changed)
        if not remembered:  # else they would be found not to hold for that reason
            yield self._finding("columns", side, self._relative(alone - Y[:, 1:2], Y[:, 1:2]))
            expected = self._combined(Y)
            yield self._finding("linear", side, self._relative(Y[:, 2] - expected, Y))
        yield self._finding("history", side, changed if remembered else 0.0)

    def _adjoint(self, Y: Any, W: Any) -> float:
        """⟨v, Ax⟩ − ⟨Aᴴv, x⟩ of all pairs; of Gaussian v it is as large as (A − Bᴴ)x itself."""
        xp = self.xp
        scale = self._largest(Y, W)
        Y, W = Y[:, :2] / scale, W[:, :2] / scale
        difference = aa.adjoint(xp, self.V) @ Y - aa.adjoint(xp, W) @ self.X
        return self._relative(difference, self._norms(Y), self._norms(W))

    def _square(self, side: str, Y: Any) -> Iterator[Finding]:
        xp, X = self.xp, self.X if side == "matmat" else self.V
        Y = Y[:, :2] / self._largest(Y)
        forms, size = aa.adjoint(xp, X) @ Y, self._norms(Y)
        skew = self._relative(forms - aa.adjoint(xp, forms), size)
        self.symmetric = skew <= self.rtol
        if self.A.symmetric:
            yield self._finding("symmetric", side, skew)
        if self.A.psd:
            diagonal = aa.real(xp, xp.linalg.diagonal(forms))
            negative = xp.where(diagonal < 0, -diagonal, xp.zeros_like(diagonal))
            yield self._finding("psd", side, self._relative(negative, size))

    def _abilities(self, two_sided: bool) -> Iterator[Finding]:
        A, xp = self.A, self.xp
        if two_sided and can(A, "gram_matmat"):
            Y = A.matmat(A.rmatmat(self.V[:, :1]))
            yield self._finding("gram", "both", self._relative(A.gram_matmat(self.V[:, :1]) - Y, Y))
        B = A.n_blocks
        if not B:
            return
        if can(A, "block_sqnorms") or can(A, "block_rmatmat"):
            rows = A.shape[0] // B
            first, last = self.V[:rows, :1], self.V[A.shape[0] - rows :, 1:]
            v = xp.zeros((A.shape[0] - rows, 1), dtype=A.dtype, device=aa.device(A))
            V = xp.concat([xp.concat([first, v]), xp.concat([v, last])], axis=1)
            W = A.rmatmat(V)
            scale = self._largest(W)
            sqnorms = A.block_sqnorms(V / scale)
            expected = xp.zeros_like(sqnorms)
            alone = xp.sum(aa.abs2(xp, W / scale), axis=0)[None, :]
            place = xp.arange(B, device=aa.device(A))[:, None]
            which = xp.concat([place == 0, place == B - 1], axis=1)
            yield self._finding("blocks", "rmatmat", self._relative(sqnorms - xp.where(which, alone, expected), alone))
        if can(A, "sketch_gram") and B <= MANY_BLOCKS:
            W = A.rmatmat(self.V)
            scale = self._largest(W)
            W = W / scale
            G = xp.sum(A.sketch_gram(self.V / scale), axis=(0, 2))
            yield self._finding("pairs", "rmatmat", self._relative(G - aa.adjoint(xp, W) @ W, self._norms(W) ** 2))

    # -- sizes ----------------------------------------------------------------------------------------
    def _finding(self, name: str, side: str, error: float) -> Finding:
        return Finding(name, side, error, self.rtol)

    def _largest(self, *arrays: Any) -> float:
        """The largest modulus, or 1 where all are zero."""
        return max(self._max(Y) for Y in arrays) or 1.0

    def _max(self, Y: Any) -> float:
        return float(_to_host(self.xp.max(self.xp.abs(Y))))

    def _norms(self, Y: Any) -> Any:
        return self.xp.sqrt(self.xp.sum(aa.abs2(self.xp, Y), axis=0))

    def _relative(self, difference: Any, *terms: Any) -> float:
        """max|difference| relative to the largest of the terms."""
        return self._max(difference) / self._largest(*terms)
