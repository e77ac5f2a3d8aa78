"""The matrices, of one batch of data or the batches of a loader, from what a framework differentiates.

Of the loss ℓ of a batch, A is ∂²ℓ/∂θ², JᵀHJ or Σ_b c_b g_b g_bᵀ. Over several batches a sum over examples is
Σ_p ℓ_p, and a mean is Σ_p B_p ℓ_p/N, where batch p has B_p of the N examples; so it is with A.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any, Literal, NamedTuple, Protocol

import traceest as te
from traceest import _array_api as aa
from traceest import _progress
from traceest.operators.factors import Weighted
from traceest_adapters import _memory as memory
from traceest_adapters import _state as common
from traceest_adapters._batches import Batches, Parts, stacked
from traceest_adapters._curvature import forms, reduction
from traceest_adapters._curvature.symmetric import Found, Symmetric, check_finite

Reduction = Literal["mean", "sum"]


class Calculus(Protocol):
    """What the description asks of a framework. A loss here is a function f(z, targets) of outputs z, example first."""

    def outputs(self, J: Any, targets: Any, caller: str) -> Any:
        """The model's outputs as an array of `J.state_shape`, no coarser than float32."""

    def scalar(self, value: Any, caller: str) -> Any:
        """The value of a loss. Raises ValueError unless it is one real number."""

    def gradient(self, f: Callable[..., Any], z: Any, targets: Any, caller: str) -> Any:
        """∂f/∂z."""

    def second(self, f: Callable[..., Any], z: Any, targets: Any, caller: str) -> tuple[Any, Any, Any]:
        """∂f/∂z, and V ↦ ∂²f/∂z² V, (n, k) → (n, k): of several columns at once, and of one without batching."""

    def alone(self, at: AtOutputs, r: Any) -> Any:
        """The gradient of each example's loss by itself, given twice: Σ over both of ∂f/∂(z_b, z_b); r is ∂f/∂z."""

    def examples(self, tree: Any, rows: Any, axis: int, B: int) -> Any:
        """The rows of all arrays in `tree` that have B of them along the axis."""

    def indices(self, n: int, z: Any) -> Any:
        """0, …, n − 1, on the device of z."""

    def constant(self, tree: Any) -> Any:
        """The same without derivatives."""

    def has_values(self, tree: Any) -> bool:
        """Whether there are values to look at, as there are not under `jax.jit`."""


class AtOutputs:
    """A loss at the outputs z of a model, example first, and its targets.

    Raises
    ------
    TypeError
        If the loss is no function, or the outputs are several arrays.
    """

    def __init__(self, calculus: Calculus, J: Any, loss: Any, targets: Any, caller: str, check: bool) -> None:
        if J.state_shape is None:
            raise TypeError(f"{caller}: the model returns several arrays; select the one that loss takes with output=.")
        self.calculus, self.loss, self.targets, self.caller = calculus, loss, targets, caller
        self.J, self.axis = J, J.model.batch_axis
        self.z = calculus.outputs(J, targets, caller)
        self.look = check and calculus.has_values((self.z, targets))

    def f(self, z: Any, targets: Any) -> Any:
        """The loss of outputs, example first, and targets."""
        output = z if not self.axis else _moved_back(z, self.axis)
        return self.calculus.scalar(self.loss(output) if targets is None else self.loss(output, targets), self.caller)

    def gradient(self, z: Any, targets: Any) -> Any:
        """∂f/∂z."""
        return self.calculus.gradient(self.f, z, targets, self.caller)

    def examples(self, rows: Any) -> tuple[Any, Any]:
        """The outputs and targets of some examples."""
        return self.z[rows], self.calculus.examples(self.targets, rows, self.axis, len(self.z))

    def given_twice(self) -> Any:
        """∂f/∂z at every example, beside a copy of all."""
        B = len(self.z)
        try:
            return self.gradient(*self.examples(self.calculus.indices(2 * B, self.z) % B))[:B]
        except Exception as error:  # whatever the loss says of another number of examples
            if memory.ran_out(error):
                raise
            raise reduction.failed_alone(error, self.caller) from error


def _moved_back(z: Any, axis: int) -> Any:
    """Outputs with their examples along `axis`, by a step that PyTorch has a batching rule for, unlike `moveaxis`."""
    order = list(range(1, z.ndim))
    order.insert(axis % z.ndim, 0)
    return aa.namespace(z).permute_dims(z, tuple(order))


class Matrix(NamedTuple):
    """What is asked for: the Gauss–Newton matrix or the empirical Fisher, `caller`, of a loss."""

    caller: str
    calculus: Calculus
    loss: Any
    kind: Reduction
    check: bool

    def of(self, J: Any, targets: Any) -> Any:
        """The matrix of one batch, given the Jacobian of the model's outputs."""
        A, _ = self._part(J, targets, {}, Found(), None)
        return te.gram(A.H) if isinstance(A, Weighted) else A

    def of_batches(self, jacobian: Callable[[Any, int], Any], batches: Batches, progress: bool) -> Any:
        """The matrix of all batches of inputs and targets; ``jacobian(inputs, p)`` is made when its turn comes."""
        known: dict[int, Any] = {}
        found = Found()

        def make(data: tuple[Any, Any], p: int) -> tuple[Any, int]:
            return self._part(jacobian(data[0], p), data[1], known, found, p)

        return of_batches(make, batches, self.kind, progress)

    def _part(self, J: Any, targets: Any, known: dict[int, Any], found: Found, p: int | None) -> tuple[Any, int]:
        """Rows R with RᵀR = B·A of a mean over B examples, RᵀR = A of a sum or of all data (p None); and B, or 1.

        Where the curvature at the outputs has no form, it is A itself. `known` keeps what was found of each batch, and
        `found` what was found of products with the curvature.
        """
        at = AtOutputs(self.calculus, J, self.loss, targets, self.caller, self.check)
        if at.axis is None and (self.caller == "empirical_fisher" or (p is not None and self.kind == "mean")):
            raise ValueError(
                f"{self.caller}: batch_axis=None names no examples, of which the matrix is a mean or a sum; give it."
            )
        B = len(at.z) if p is not None and self.kind == "mean" else 1
        if self.caller == "empirical_fisher":
            r = at.gradient(at.z, targets)
            if p is None or p not in known:
                known[p or 0] = _shares(at, r, self.kind) if self.check else reduction.uniform(self.kind, len(at.z))
            return forms.empirical_fisher(J, r, known[p or 0], float(B)), B
        if p == 0 and not known and at.look:
            reduction.check(at.given_twice(), at.gradient(at.z, targets), self.kind, self.caller)
            known[0] = True
        g, several, one = self.calculus.second(at.f, at.z, targets, self.caller)
        values = self.calculus.has_values((g, at.z, targets))
        if values:
            check_finite(bool(aa.namespace(g).all(aa.namespace(g).isfinite(g))), self.caller, "the loss's gradient")
        if values and self.check:
            several = Symmetric(several, one, J, self.caller, "empirical_fisher", found)
        return forms.gauss_newton(J, several, at.z, float(B), look=values), B


def _shares(at: AtOutputs, r: Any, kind: Reduction) -> Any:
    """What the loss makes of its examples' own losses; see `reduction`."""
    xp, caller = aa.namespace(at.z), at.caller
    at = copy(at)
    z, at.targets, r = at.calculus.constant((at.z, at.targets, r))
    at.z = z
    if at.look:
        reduction.check_gradient(bool(xp.all(xp.isfinite(r))), caller)
        reduction.check(at.given_twice(), r, kind, caller)
    try:
        q = at.calculus.alone(at, r) * (1.0 if kind == "mean" else 0.5)
    except Exception as error:
        if memory.ran_out(error):
            raise
        raise reduction.failed_alone(error, caller) from error
    if at.look:
        others = xp.reshape(at.calculus.indices(len(z), z) % 2 == 1, (-1, *(1 for _ in z.shape[1:])))
        moved = xp.where(others, (z + xp.roll(z, -1, axis=0)) / 2, z)
        reduction.check_uncoupled(r, at.gradient(moved, at.targets), caller)
    return reduction.shares(r, q, kind, caller, at.look)


def check_value(value: Any, twice: Callable[[], Any], kind: Reduction, caller: str) -> None:
    """Raise unless a loss of a batch and a copy of it is what `kind` says: the same of a mean, twice that of a sum."""
    try:
        both = float(twice())
    except Exception as error:
        if memory.ran_out(error):
            raise
        raise reduction.failed_alone(error, caller) from error
    reduction.check_value(both, float(value), kind, caller)


# -- several batches ------------------------------------------------------------------------------------------
def of_batches(make: Callable[[Any, int], tuple[Any, int]], batches: Batches, kind: Reduction, progress: bool) -> Any:
    """The matrix of all batches, of which one is there at a time.

    ``make(data, p)`` gives rows of B_p A_p, or A_p without the weight, and the weight B_p, which is 1 of a sum.
    """
    sizes: list[int] = []
    are_rows: list[bool] = []

    def part(data: Any, p: int) -> Any:
        A, B = make(data, p)
        if p == len(sizes):
            sizes.append(B)
            are_rows.append(isinstance(A, Weighted))
        return A

    parts = Parts(batches, part)
    stack = stacked(parts, "example", progress)
    N = sum(sizes) if kind == "mean" else 1
    if not all(are_rows):
        return Total(parts, [B / N for B in sizes], stack, progress)
    return te.gram(stack.H) if N == 1 else te.gram(stack.H) * (1 / N)


class Total(te.Operator):
    """Σ_p w_p A_p over batches: each A_p, symmetric, is made when its turn comes."""

    def __init__(self, parts: Parts, weights: list[float], like: Any, progress: bool) -> None:
        P = like.shape[1]
        super().__init__((P, P), like=like, symmetric=True, parameters=like.parameters, name="Σ A_p")
        self.parts, self.weights, self.progress = parts, weights, progress

    def matmat(self, X: Any) -> Any:
        """Σ_p w_p A_p X: (P, k) → (P, k)."""
        total = None
        with _progress.bar(self.progress, total=len(self.weights), unit="batch") as bar:
            for A, w in zip(self.parts.starting_at(0), self.weights, strict=True):
                product = w * A.matmat(X)
                total = product if total is None else total + product
                del A  # before the next one is made
                bar.update(1)
        return total

    rmatmat = matmat


def inputs_alone(input: Any) -> Callable[[Any], tuple[Any, None]]:
    """From a batch to its inputs, and no targets."""
    select = common.selector(input, "input")
    return lambda batch: (select(batch), None)


def pair(input: Any, targets: Any, caller: str) -> Callable[[Any], tuple[Any, Any]]:
    """From a batch to its inputs and targets: what `input` and `targets` pick of it, or its two parts."""
    if input is not None or targets is not None:
        if input is None:
            raise TypeError(f"{caller}: targets= without input=; say which part of a batch the model takes, too.")
        of_input, of_targets = common.selector(input, "input"), common.selector(targets, "targets")
        return lambda batch: (of_input(batch), None if targets is None else of_targets(batch))

    def both(batch: Any) -> tuple[Any, Any]:
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            raise TypeError(
                f"{caller}: a batch is {_what(batch)}, expected a pair (inputs, targets); say by input= and targets= "
                "which part of it is which: an index, a key, or a function of the batch. Without targets= the loss "
                "takes the output alone."
            )
        return batch[0], batch[1]

    return both


def check_arguments(
    caller: str, loss: Any, order: str, batches: Any, given: bool, kind: Any, input: Any, progress: bool
) -> None:
    """Raise unless the arguments that belong to `batches` come with it, and data without.

    Raises
    ------
    TypeError, ValueError
        If they do not, the loss is no function, or the reduction is none of the two.
    """
    reduction.check_name(kind, caller)
    if not callable(loss):
        raise TypeError(
            f"{caller}: loss must be a function of the output and the targets, got a {type(loss).__name__}; call it as "
            f"{order}."
        )
    if batches is not None and given:
        raise TypeError(
            f"{caller}: give inputs, or batches=, not both; batches= holds all data, and targets= says which part of a "
            "batch the loss takes."
        )
    if batches is None and not given:
        raise TypeError(f"{caller}: there are no inputs; call it as {order}, or give batches=.")
    if batches is None and (input is not None or progress):
        raise TypeError(f"{caller}: input= and progress= are for batches=; data are given as {order}.")


def _what(batch: Any) -> str:
    n = f" of {len(batch)}" if isinstance(batch, (tuple, list, dict)) else ""
    return f"a {type(batch).__name__}{n}"
