"""What a loss makes of its examples' own losses: ℓ = Σ_b c_b ℓ_b, where ℓ_b is the same loss of example b by itself.

The shares c_b are 1/N of a mean, 1 of a sum, w_b/Σw of a mean with weights, 1/N_valid or 0 where labels are ignored.
They are found from the loss's gradients alone: r at the outputs of the batch, q at those of each example alone, and
r_b = c_b q_b. An example alone is given twice: losses that squeeze their input fail on a batch of one.
"""

from __future__ import annotations

from typing import Any

from traceest import _array_api as aa

WAYS = {"mean": 0.5, "sum": 1.0}
"""What of an example's gradient is left in a batch beside a copy of itself."""


def check_name(reduction: Any, caller: str) -> None:
    """Raise unless `reduction` is one of the two."""
    if reduction not in WAYS:
        raise ValueError(f"{caller}: reduction must be 'mean' or 'sum', got {reduction!r}.")


def uniform(reduction: str, B: int) -> float:
    """The share of every example where all have the same."""
    return 1 / B if reduction == "mean" else 1.0


def check_gradient(finite: bool, caller: str) -> None:
    """Raise unless the loss's gradient at the outputs is finite."""
    if not finite:
        raise ValueError(
            f"{caller}: the loss's gradient at the model's outputs is NaN or infinite; look for a logarithm, a root or "
            "a division at zero, and for batches whose labels are all ignored."
        )


def check(both: Any, r: Any, reduction: str, caller: str) -> None:
    """Raise unless a batch beside a copy of itself leaves of each example's gradient r what `reduction` says."""
    xp, expected = aa.namespace(r), WAYS[reduction]
    unit = aa.safe_scale(xp, r)
    squares = float(xp.sum((r / unit) ** 2))
    share = float(xp.sum(both / unit * (r / unit))) / squares if squares else expected  # of zeros nothing is told
    _check_share(share, reduction, "an example's gradient is", caller, 1.0)


def check_value(both: float, value: float, reduction: str, caller: str) -> None:
    """The same by the loss itself, of a batch beside a copy of itself and of the batch."""
    if value:  # of zero nothing is told
        _check_share(both / value / 2, reduction, "the loss is", caller, 2.0)


def _check_share(share: float, reduction: str, what: str, caller: str, times: float) -> None:
    expected = WAYS[reduction]
    if abs(share - expected) < 0.1:
        return
    other = [name for name, left in WAYS.items() if abs(share - left) < 0.1]
    cure = f"give reduction={other[0]!r}, or " if other else ""
    raise ValueError(
        f"{caller}: the loss is not the {reduction} of its examples' losses: with every example given twice, {what} "
        f"{times * share:.3g} of what it was, expected {times * expected:g}; {cure}give a loss that is a mean or a sum "
        "over examples."
    )


def check_uncoupled(r: Any, moved: Any, caller: str) -> None:
    """Raise unless the gradients of every second example stayed what they were when the others' outputs were moved."""
    xp = aa.namespace(r)
    change = float(xp.max(xp.abs(r[::2] - moved[::2])))
    if not change <= _tolerance(xp, r) * float(xp.max(xp.abs(r))):
        raise ValueError(
            f"{caller}: the loss couples its examples: the gradient at one example's output changes by up to "
            f"{change:.2g} when the outputs of others change, so that there are no losses of examples by themselves. "
            "Give a loss that is a sum or a mean over examples, or ask for gauss_newton or hessian."
        )


def failed_alone(error: Exception, caller: str) -> ValueError:
    """The error for a loss that takes no other number of examples than the batch's."""
    return ValueError(
        f"{caller}: the loss cannot be taken of other examples than those of the whole batch ({error}), which is how "
        "each example's own loss is told; what it knows of each example (targets, masks, weights) has to come in "
        "targets=, as a tuple if several, not from around the function. check=False takes reduction= as it is given."
    )


def shares(r: Any, q: Any, reduction: str, caller: str, look: bool = True) -> Any:
    """c_b of every example, (B, 1), or one number where all are the same, from r and q of shape (B, …).

    Rows that are zero, or as small as rounding of the largest, do not count and get the share of the largest. Without
    `look`, in a traced function, nothing is compared.

    Raises
    ------
    ValueError
        If r_b is no multiple of q_b, or not q_b itself for a sum.
    """
    xp, B = aa.namespace(r), r.shape[0]
    r, q = xp.reshape(r, (B, -1)), xp.reshape(q, (B, -1))
    size = xp.max(xp.abs(r), axis=1, keepdims=True)
    slack = _tolerance(xp, r) * xp.max(size)
    counts = size > slack
    q = xp.where(xp.isfinite(q) | counts, q, xp.zeros_like(q))  # an ignored label by itself may give NaN
    alone = xp.max(xp.abs(q), axis=1, keepdims=True)
    q = xp.where(counts, q, xp.zeros_like(q))
    c = _multiples(xp, r, q)
    c = xp.where(counts, c, xp.max(xp.where(size == xp.max(size), c, xp.zeros_like(c))))
    if not look:
        return xp.where(c > 0, c, xp.ones_like(c)) if reduction == "mean" else 1.0
    same = uniform(reduction, B)
    if bool(xp.all(xp.abs(r - same * q) <= slack)):
        return same
    off = xp.max(xp.abs(r - c * q), axis=1, keepdims=True) - slack - _tolerance(xp, r) * size
    # Nothing of its own in the batch: of an ignored example; of a largest loss's rivals there would be by themselves.
    passed_over = (size == 0) & (same * alone > slack)
    if reduction == "sum" or not bool(xp.all((off <= 0) & (c > 0) & ~passed_over)):
        raise ValueError(
            f"{caller}: the loss is no {reduction} of losses of examples by themselves: the gradient at an example's "
            "output is not a share of what it is for that example alone. Give a loss that is a sum or a mean over "
            "examples (weights and ignored labels of a mean are found), or ask for gauss_newton or hessian."
        )
    return c


def _multiples(xp: Any, r: Any, q: Any) -> Any:
    """⟨r_b, q_b⟩/‖q_b‖² of each row, (B, 1)."""
    unit = aa.safe_scale(xp, q, 1)
    squares = xp.sum((q / unit) ** 2, axis=1, keepdims=True)
    return xp.sum(r / unit * (q / unit), axis=1, keepdims=True) / xp.where(squares > 0, squares, xp.ones_like(squares))


def _tolerance(xp: Any, r: Any) -> Any:
    return xp.finfo(r.dtype).eps ** (2 / 3)
