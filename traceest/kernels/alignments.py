"""How much kernels on the same states resemble each other, or a target."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any

from traceest import _array_api as aa
from traceest import _validation as check
from traceest._boundary import public
from traceest.adaptive import Stop
from traceest.kernels import statistics
from traceest.kernels.adaptive import answer
from traceest.kernels.sketches import Method, Request, kernels_of_one_state
from traceest.probes import Distribution
from traceest.uncertainty.estimate import Estimate


@public
def alignment(
    K1: Any,
    K2: Any,
    n_probes: int | None = None,
    *,
    n_matvecs: int | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    confidence: float = 0.95,
    max_matvecs: int | None = None,
    callback: Callable[[Estimate], Any] | None = None,
    progress: bool = False,
    explain: bool | Callable[[str], Any] = False,
    checkpoint: str | PathLike[str] | None = None,
    method: Method = "auto",
    rng: Any = None,
    distribution: Distribution | None = None,
    probes: Any = None,
) -> Estimate:
    """Estimate the alignment tr(K₁K₂) / (‖K₁‖ ‖K₂‖) of two kernels on the same states.

    The same probes go through both, so that numerator and denominators err together. 1 means equal up to
    scale; for positive semidefinite kernels it lies between 0 and 1.

    Parameters
    ----------
    K1, K2 : operator, (n, n)
        Gram operators of Jacobians with equal rows (their columns may differ: two checkpoints, two models), or any
        two square operators.
    n_probes, n_matvecs, method, rng, distribution, probes
        As in `frobenius_norm`; the budget is spent on each kernel, and the counts are the sum.
    rtol, atol, confidence, max_matvecs, callback, progress, explain, checkpoint
        As in `frobenius_norm`.

    Returns
    -------
    Estimate
        With jackknife error, bounded by 0 (−1 unless both are known to be PSD) and 1.

    Raises
    ------
    ValueError
        If the shapes differ, as well as for what `frobenius_norm` raises.
    TypeError
        If both kernels have jvps alone: their columns are different spaces, so no common probes exist.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> J = np.random.default_rng(0).standard_normal((80, 30))
    >>> K = te.gram(J, n_blocks=8)
    >>> round(float(te.alignment(K, K, 4, rng=0)), 6)
    1.0
    """
    stop = Stop.asked("alignment", rtol, atol, confidence, max_matvecs, callback, progress, explain, checkpoint)
    request = Request("alignment", n_probes, n_matvecs, stop, method, rng, distribution, probes)
    return _alignment(K1, K2, request)


@public
def centred_alignment(
    K1: Any,
    K2: Any,
    n_probes: int | None = None,
    *,
    n_matvecs: int | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    confidence: float = 0.95,
    max_matvecs: int | None = None,
    callback: Callable[[Estimate], Any] | None = None,
    progress: bool = False,
    explain: bool | Callable[[str], Any] = False,
    checkpoint: str | PathLike[str] | None = None,
    method: Method = "auto",
    rng: Any = None,
    distribution: Distribution | None = None,
    probes: Any = None,
) -> Estimate:
    """Estimate the centred kernel alignment (CKA) tr(HK₁HK₂) / (‖HK₁H‖ ‖HK₂H‖), H = I − 11ᵀ/n.

    As `alignment`, of the kernels of features whose mean over the states was taken away. One-sided, that takes one more
    vjp, Jᴴ1: with it the sketch of every example is centred before any product is taken, so that a large mean
    costs no accuracy.

    Parameters
    ----------
    K1, K2, n_probes, n_matvecs, method, rng, distribution, probes
        As in `alignment`; of `n_probes` one goes to Jᴴ1, hence at least 3.
    rtol, atol, confidence, max_matvecs, callback, progress, explain, checkpoint
        As in `frobenius_norm`.

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError, TypeError
        As `alignment`.

    References
    ----------
    Cortes, Mohri, Rostamizadeh (2012), JMLR 13; Kornblith et al. (2019), Similarity of neural network representations.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> J = np.random.default_rng(0).standard_normal((80, 30))
    >>> K, L = te.gram(J, n_blocks=8), te.gram(J + 100.0, n_blocks=8)
    >>> round(float(te.centred_alignment(K, L, 4, rng=0)), 6)
    1.0
    """
    stop = Stop.asked("centred_alignment", rtol, atol, confidence, max_matvecs, callback, progress, explain, checkpoint)
    request = Request("centred_alignment", n_probes, n_matvecs, stop, method, rng, distribution, probes, centred=True)
    return _alignment(K1, K2, request)


@public
def relative_distance(
    K1: Any,
    K2: Any,
    n_probes: int | None = None,
    *,
    n_matvecs: int | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    confidence: float = 0.95,
    max_matvecs: int | None = None,
    callback: Callable[[Estimate], Any] | None = None,
    progress: bool = False,
    explain: bool | Callable[[str], Any] = False,
    checkpoint: str | PathLike[str] | None = None,
    method: Method = "auto",
    rng: Any = None,
    distribution: Distribution | None = None,
    probes: Any = None,
) -> Estimate:
    """Estimate ‖K₁ − K₂‖ / ‖K₂‖: how far K₁ has moved from K₂.

    From the differences of the two kernels' sketched entries, not from ‖K₁‖² − 2⟨K₁, K₂⟩ + ‖K₂‖², so that small
    distances are told as well as large ones.

    Parameters
    ----------
    K1, K2, n_probes, n_matvecs, method, rng, distribution, probes
        As in `alignment`.
    rtol, atol, confidence, max_matvecs, callback, progress, explain, checkpoint
        As in `frobenius_norm`.

    Returns
    -------
    Estimate
        Bounded below by 0, with jackknife error.

    Raises
    ------
    ValueError, TypeError
        As `alignment`.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> J = np.random.default_rng(0).standard_normal((80, 30))
    >>> e = te.relative_distance(te.gram(1.001 * J, n_blocks=8), te.gram(J, n_blocks=8), 4, rng=0)
    >>> round(float(e), 9)
    0.002001
    """
    stop = Stop.asked("relative_distance", rtol, atol, confidence, max_matvecs, callback, progress, explain, checkpoint)
    request = Request("relative_distance", n_probes, n_matvecs, stop, method, rng, distribution, probes)
    Ks = kernels_of_one_state([K1, K2], request.caller)
    return answer(Ks, request, statistics.relative_distance, 0, 1)


@public
def target_alignment(
    K: Any,
    y: Any,
    n_probes: int | None = None,
    *,
    centred: bool = False,
    n_matvecs: int | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    confidence: float = 0.95,
    max_matvecs: int | None = None,
    callback: Callable[[Estimate], Any] | None = None,
    progress: bool = False,
    explain: bool | Callable[[str], Any] = False,
    checkpoint: str | PathLike[str] | None = None,
    method: Method = "auto",
    rng: Any = None,
    distribution: Distribution | None = None,
    probes: Any = None,
) -> Estimate:
    """Estimate the kernel-target alignment yᴴKy / (‖K‖ ‖y‖²), of several targets ⟨K, YYᴴ⟩ / (‖K‖ ‖YYᴴ‖).

    The numerator is exact, ‖JᴴY‖², a vjp a target; only ‖K‖ is estimated.

    Parameters
    ----------
    K : operator, (n, n)
        As in `frobenius_norm`; a Gram operator needs vjps.
    y : array, (n,) or (n, t), or of n entries in the state's shape
        Targets, in the order of K's rows (example first), as labels are.
    centred : bool
        Of HKH, H = I − 11ᵀ/n, and Hy: takes one more vjp.
    n_probes, n_matvecs, method, rng, distribution, probes
        As in `frobenius_norm`; the t products with the targets are part of the budget, hence at least t + 2.
    rtol, atol, confidence, max_matvecs, callback, progress, explain, checkpoint
        As in `frobenius_norm`.

    Returns
    -------
    Estimate
        Bounded by 0 (−1 unless K is known to be PSD) and 1.

    Raises
    ------
    ValueError
        If y does not fit K, or is zero (centred: constant), as well as for what `frobenius_norm` raises.
    TypeError
        If y's dtype or device is not K's.

    References
    ----------
    Cristianini, Shawe-Taylor, Elisseeff, Kandola (2001), On kernel-target alignment.

    Examples
    --------
    >>> import numpy as np, traceest as te
    >>> J = np.random.default_rng(0).standard_normal((80, 30))
    >>> e = te.target_alignment(te.gram(J, n_blocks=8), J[:, 0], 6, rng=0)
    >>> e.n_rmatvecs, bool(0.2 < float(e) < 0.5)
    (6, True)
    """
    Ks = kernels_of_one_state([K], "target_alignment")
    Y = targets(y, Ks[0], "target_alignment")
    stop = Stop.asked("target_alignment", rtol, atol, confidence, max_matvecs, callback, progress, explain, checkpoint)
    request = Request(
        "target_alignment", n_probes, n_matvecs, stop, method, rng, distribution, probes, centred=centred, targets=Y
    )
    return answer(Ks, request, statistics.target_alignment, 0, Ks[0].psd)


def targets(y: Any, K: Any, caller: str) -> Any:
    """`y` as (n, t), in K's dtype and on its device."""
    n = K.shape[0]
    size = 1
    for d in y.shape:
        size *= d
    if y.shape[0] == n and y.ndim <= 2:
        Y = aa.namespace(y).reshape(y, (n, -1))
    elif size == n:
        Y = aa.namespace(y).reshape(y, (n, 1))
    else:
        raise ValueError(
            f"{caller}: y must have shape ({n},), ({n}, t), or {n} entries in the state's shape, got {tuple(y.shape)}."
        )
    check.check_probes(Y, n, K, caller)
    return Y


def _alignment(K1: Any, K2: Any, request: Request) -> Estimate:
    Ks = kernels_of_one_state([K1, K2], request.caller)
    psd = all(K.psd for K in Ks)
    return answer(Ks, request, statistics.alignment, 0, 1, psd)
