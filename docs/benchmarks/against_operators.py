"""Operators, ours beside others': traces of six spectra, trace and log-determinant of a Laplacian."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from operands import Laplacian, Operand, dense, in_library, rotated
from peers import available, logdets
from race import ARRAYS, OURS, Contender, Row, measure
from spectra import SPECTRA

import traceest as te

BUDGETS = (12, 36, 108)
TOLERANCES = (0.1, 0.03, 0.01, 1e-3, 1e-4)
MOST = 400
"""Products that no tolerance takes more of: 1e-4 of a flat spectrum is thousands."""
METHODS = {"hutchinson": te.hutchinson, "hutchpp": te.hutchpp, "xtrace": te.xtrace, "xnystrace": te.xnystrace}
LIBRARIES = ("numpy", "torch", "jax")


# -- ours -----------------------------------------------------------------------------------------------------------
def _operator(A: Operand, library: str, product: Callable[[Any], Any] | None = None) -> Any:
    like = in_library(library, np.zeros((A.n, 1)))
    return te.aslinearoperator(product or A.product(library), like=like, symmetric=True, psd=True)


@cache
def _jitted(f: Callable[..., te.Estimate], apply: Callable[..., Any], n: int, m: Any) -> Callable[..., Any]:
    import jax
    import jax.numpy as jnp

    def run(key: Any, *arrays: Any) -> tuple[Any, Any]:
        like = jnp.zeros((n, 1))
        A = te.aslinearoperator(lambda X: apply(X, *arrays), like=like, symmetric=True, psd=True)
        e = f(A, m, rng=key)
        return e.value, e.stderr

    return jax.jit(run)


def _fixed(A: Operand, library: str, f: Callable[..., te.Estimate], products: Callable[[Any], int]) -> Callable:
    """A call with a fixed budget: with an int as rng, or a generator of the library's own, as one would choose."""
    if library == "jax":
        import jax

        def in_jax(m: Any, seed: int) -> tuple[float, float]:
            value, _ = _jitted(f, A.apply, A.n, m)(jax.random.key(seed), *A.arrays_in("jax"))
            return float(value), products(m)

        return in_jax
    op = _operator(A, library)

    def on_the_host(m: Any, seed: int) -> tuple[float, float]:
        return float(f(op, m, rng=_rng(library, seed))), products(m)

    return on_the_host


def _rng(library: str, seed: int) -> Any:
    if library == "torch":
        import torch

        return torch.Generator().manual_seed(seed)
    return seed


def ours(
    A: Operand, budgets: tuple[int, ...], methods: dict[str, Any], tolerances: tuple[float, ...]
) -> list[Contender]:
    """Fixed budgets in three array libraries, and `trace` by its tolerance in the two that run as written."""
    found = []
    for library in LIBRARIES:
        for name, f in methods.items():
            found.append(Contender(OURS, name, library, budgets, _fixed(A, library, f, int)))
        if library != "jax" and tolerances:
            found.append(Contender(OURS, "trace(rtol)", library, tolerances, _adaptive(A, library)))
    return found


def _adaptive(A: Operand, library: str) -> Callable[[float, int], tuple[float, float]]:
    op = _operator(A, library)

    def run(rtol: float, seed: int) -> tuple[float, float]:
        e = te.trace(op, rtol=rtol, max_matvecs=MOST, rng=_rng(library, seed))
        return float(e), e.n_matvecs

    return run


# -- the parts ------------------------------------------------------------------------------------------------------
def theirs(A: Operand, budgets: tuple[int, ...], methods: dict[str, Any]) -> list[Contender]:
    """The peers that are installed."""

    def contender(peer: Any) -> Contender:
        def run(m: int, seed: int) -> tuple[float, float]:
            return peer.estimate(A, m, seed), peer.count(m)

        if peer.arrays in ARRAYS:
            for m in budgets:
                peer.count(m)  # which runs once, out of the timings
        return Contender(peer.package, peer.ours, peer.arrays, budgets, run)

    return [contender(peer) for peer in available()[0] if peer.ours in methods]


def spectra(n: int, quick: bool, seeds: int) -> dict[str, list[Row]]:
    """The six, as dense matrices up to 2000 rows, between fast rotations beyond."""
    found = {}
    budgets, tolerances = (BUDGETS[:2], TOLERANCES[:2]) if quick else (BUDGETS, TOLERANCES)
    for name in list(SPECTRA)[:1] if quick else SPECTRA:
        A = (dense if n <= 2000 else rotated)(name, n)
        contenders = ours(A, budgets, METHODS, tolerances) + theirs(A, budgets, METHODS)
        found[name] = measure(contenders, A.trace, seeds)
        print(f"{name}, n = {n}: done", flush=True)
    return found


def laplacian_trace(side: int, quick: bool, seeds: int) -> dict[str, list[Row]]:
    """Hutchinson's estimator: the spectrum has no decay to sketch."""
    A, only = Laplacian(side), {"hutchinson": te.hutchinson}
    budgets = (2, 4) if quick else (2, 4, 8)
    return {A.name: measure(ours(A, budgets, only, ()) + theirs(A, budgets, only), A.trace, seeds)}


SPLITS = ((1, 20), (1, 40), (2, 40))
"""Probes and steps of Lanczos."""


def laplacian_logdet(side: int, quick: bool, seeds: int) -> dict[str, list[Row]]:
    """Stochastic Lanczos quadrature, of one split into probes and steps for all."""
    A = Laplacian(side)
    splits = SPLITS[:1] if quick else SPLITS

    def by_split(op: Any, i: int, rng: Any) -> te.Estimate:
        s, t = SPLITS[i]
        return te.logdet(op, n_probes=s, steps=t, rng=rng, reorthogonalise=False)  # as the peers are asked

    def cost(i: int) -> int:
        return SPLITS[i][0] * SPLITS[i][1]

    found = [Contender(OURS, "logdet", x, tuple(range(len(splits))), _fixed(A, x, by_split, cost)) for x in LIBRARIES]
    for library, method, arrays, f in logdets():

        def run(i: int, seed: int, f: Callable[..., float] = f) -> tuple[float, float]:
            return f(A, *SPLITS[i], seed), cost(i)

        found.append(Contender(library, method, arrays, tuple(range(len(splits))), run))
    return {A.name: measure(found, A.logdet, seeds)}
