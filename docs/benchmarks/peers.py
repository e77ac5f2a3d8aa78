"""The same estimators in other libraries, each as its documentation has it used, on the same matrix in float64.

A peer's `estimate` is a function (dense, budget, seed) ↦ value; `count`, of (n, budget), finds what it really spends.
Budgets mean what each library says: `k` of traceax, `num_matvecs` of curvlinops; matfree takes the number of probes,
which is set so that the budget is spent.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np


class Peer(NamedTuple):
    """One estimator of one library; `ours` names the method that it is compared with."""

    package: str
    ours: str
    estimate: Callable[[np.ndarray, int, int], float]
    count: Callable[[int, int], int]


def available() -> tuple[list[Peer], dict[str, str]]:
    """The peers that are installed, and the version (or what is missing) of each library."""
    peers: list[Peer] = []
    versions: dict[str, str] = {}
    for library, make in (("traceax", _traceax), ("matfree", _matfree), ("curvlinops", _curvlinops)):
        try:
            peers += make()
            distribution = "curvlinops-for-pytorch" if library == "curvlinops" else library
            versions[library] = importlib.metadata.version(distribution)
        except ImportError as error:
            versions[library] = f"not installed ({error.name})"
    return peers, versions


def _jax_peer(library: str, ours: str, make: Callable[[Callable, int, int], Callable]) -> Peer:
    """`make(wrap, n, m)` gives (key, A) ↦ estimate; `wrap` goes around every product's argument, to count it."""
    import jax

    @cache
    def compiled(n: int, m: int) -> Callable:
        return jax.jit(make(lambda v: v, n, m))

    def estimate(A: np.ndarray, m: int, seed: int) -> float:
        return float(compiled(A.shape[0], m)(jax.random.PRNGKey(seed), A))

    @cache
    def count(n: int, m: int) -> int:
        spent = []

        def counting(v: Any) -> Any:
            jax.debug.callback(lambda _: spent.append(1), v[0])  # once a column, also under vmap
            return v

        jax.jit(make(counting, n, m))(jax.random.PRNGKey(0), np.diag(np.linspace(1, 2, n))).block_until_ready()
        jax.effects_barrier()
        return len(spent)

    return Peer(library, ours, estimate, count)


def _traceax() -> list[Peer]:
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    import lineax as lx
    import traceax as tx

    def maker(estimator: Any) -> Callable:
        def make(wrap: Callable, n: int, m: int) -> Callable:
            like = jax.ShapeDtypeStruct((n,), jnp.float64)

            def run(key: Any, A: Any) -> Any:
                op = lx.FunctionLinearOperator(lambda v: A @ wrap(v), like, lx.positive_semidefinite_tag)
                return estimator.estimate(key, op, m)[0]

            return run

        return make

    signs = tx.RademacherSampler(jnp.float64)  # the default's law; its integers only matrices take
    return [
        _jax_peer("traceax", "hutchinson", maker(tx.HutchinsonEstimator(signs))),
        _jax_peer("traceax", "hutchpp", maker(tx.HutchPlusPlusEstimator(signs))),
        _jax_peer("traceax", "xtrace", maker(tx.XTraceEstimator())),
        _jax_peer("traceax", "xnystrace", maker(tx.XNysTraceEstimator())),
    ]


def _matfree() -> list[Peer]:
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    from matfree import stochtrace as st

    def maker(estimator: Callable, integrand: Any, sampler: Callable, each: int) -> Callable:
        def make(wrap: Callable, n: int, m: int) -> Callable:
            draw = sampler(jnp.zeros(n), num=m // each)
            estimate = estimator(integrand, draw)
            return lambda key, A: estimate(lambda v: A @ wrap(v), key)

        return make

    monte_carlo, leave_one_out = st.estimator_monte_carlo, st.estimator_leave_one_out
    return [
        _jax_peer("matfree", "hutchinson", maker(monte_carlo, st.monte_carlo_trace(), st.sampler_signs, 1)),
        _jax_peer("matfree", "xtrace", maker(leave_one_out, st.leave_one_out_xtrace(), st.sampler_sphere, 2)),
        _jax_peer("matfree", "xnystrace", maker(leave_one_out, st.leave_one_out_xnystrace(), st.sampler_sphere, 1)),
    ]


def _curvlinops() -> list[Peer]:
    import curvlinops
    import torch
    from curvlinops.examples import TensorLinearOperator

    torch.set_num_threads(1)

    class Counting(TensorLinearOperator):
        spent = 0

        def _matmat(self, M: list[Any]) -> list[Any]:
            self.spent += M[0].shape[-1]
            return super()._matmat(M)

    def peer(ours: str, f: Callable) -> Peer:
        def estimate(A: np.ndarray, m: int, seed: int) -> float:
            torch.manual_seed(seed)
            return float(f(torch.from_numpy(A), m))

        def count(n: int, m: int) -> int:
            op = Counting(torch.diag(torch.linspace(1, 2, n)))
            f(op, m)
            return op.spent

        return Peer("curvlinops", ours, estimate, count)

    return [
        peer("hutchinson", curvlinops.hutchinson_trace),
        peer("hutchpp", curvlinops.hutchpp_trace),
        peer("xtrace", curvlinops.xtrace),
    ]
