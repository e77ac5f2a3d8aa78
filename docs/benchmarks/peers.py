"""The same estimators in other libraries, each as its documentation has it used, on the same operator in float64.

A peer's `estimate` is a function (operand, budget, seed) ↦ value; `count`, of a budget, finds what it really spends.
Budgets mean what each library says: `k` of traceax, `num_matvecs` of curvlinops; of the others, which take numbers of
probes, these are set so that the budget is spent.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from operands import Operand


class Peer(NamedTuple):
    """One estimator of one library; on arrays of `arrays`; `ours` names the method that it is compared with."""

    package: str
    ours: str
    arrays: str
    estimate: Callable[[Operand, int, int], float]
    count: Callable[[int], int]


@cache
def available() -> tuple[list[Peer], dict[str, str]]:
    """The peers that are installed, and the version (or what is missing) of each library."""
    peers: list[Peer] = []
    versions: dict[str, str] = {}
    for library, make in MAKERS.items():
        try:
            peers += make()
            versions[library] = importlib.metadata.version(DISTRIBUTIONS.get(library, library))
        except ImportError as error:
            versions[library] = f"not installed ({error.name})"
    return peers, versions


@cache
def _counted() -> tuple[Operand, list[int]]:
    """An operator of n = 400 that keeps a list of the columns of its products."""
    from operands import from_matrix

    spent: list[int] = []
    n, op = 400, from_matrix("counted", np.diag(np.linspace(1, 2, 400)))

    class Counted(Operand):
        matrix = None

        def product(self, library: str) -> Callable[[Any], Any]:
            def multiply(X: Any) -> Any:
                spent.append(1 if X.ndim == 1 else X.shape[1])
                return op.product(library)(X)

            return multiply

    return Counted("counted", op.apply, op.arrays, n, op.trace), spent


def _counter(estimate: Callable[[Operand, int, int], float]) -> Callable[[int], int]:
    """Columns that an estimate on the host multiplies."""

    @cache
    def count(m: int) -> int:
        operand, spent = _counted()
        spent.clear()
        estimate(operand, m, 0)
        return sum(spent)

    return count


# -- JAX ------------------------------------------------------------------------------------------------------------
def _jax_peer(library: str, ours: str, make: Callable[[int, int], Callable]) -> Peer:
    """`make(n, m)` gives (matvec, key) ↦ estimate."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)

    @cache
    def compiled(apply: Callable, n: int, m: int) -> Callable:
        run = make(n, m)
        return jax.jit(lambda key, *arrays: run(lambda v: apply(v, *arrays), key))

    def estimate(A: Operand, m: int, seed: int) -> float:
        return float(compiled(A.apply, A.n, m)(jax.random.PRNGKey(seed), *A.arrays_in("jax")))

    @cache
    def count(m: int) -> int:
        n, spent = 400, []
        lam = jnp.linspace(1, 2, n)

        def counting(v: Any) -> Any:
            jax.debug.callback(lambda _: spent.append(1), v[0])  # once a column, also under vmap
            return lam * v

        run = make(n, m)
        jax.jit(lambda key: run(counting, key))(jax.random.PRNGKey(0)).block_until_ready()
        jax.effects_barrier()
        return len(spent)

    return Peer(library, ours, "jax", estimate, count)


def _traceax() -> list[Peer]:
    import jax

    jax.config.update("jax_enable_x64", True)  # before the import, which takes the samplers' precision from it
    import jax.numpy as jnp
    import lineax as lx
    import traceax as tx

    def maker(estimator: Any) -> Callable:
        def make(n: int, m: int) -> Callable:
            like = jax.ShapeDtypeStruct((n,), jnp.float64)

            def run(matvec: Callable, key: Any) -> Any:
                op = lx.FunctionLinearOperator(matvec, like, lx.positive_semidefinite_tag)
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
    import jax.numpy as jnp
    from matfree import stochtrace as st

    def maker(estimator: Callable, integrand: Any, sampler: Callable, each: int) -> Callable:
        def make(n: int, m: int) -> Callable:
            return estimator(integrand, sampler(jnp.zeros(n), num=max(1, m // each)))

        return make

    monte_carlo, leave_one_out = st.estimator_monte_carlo, st.estimator_leave_one_out
    return [
        _jax_peer("matfree", "hutchinson", maker(monte_carlo, st.monte_carlo_trace(), st.sampler_signs, 1)),
        _jax_peer("matfree", "xtrace", maker(leave_one_out, st.leave_one_out_xtrace(), st.sampler_sphere, 2)),
        _jax_peer("matfree", "xnystrace", maker(leave_one_out, st.leave_one_out_xnystrace(), st.sampler_sphere, 1)),
    ]


# -- PyTorch --------------------------------------------------------------------------------------------------------
def _curvlinops() -> list[Peer]:
    import curvlinops
    import torch
    from curvlinops._torch_base import PyTorchLinearOperator

    class Operator(PyTorchLinearOperator):
        SELF_ADJOINT = True
        device, dtype = torch.device("cpu"), torch.float64

        def __init__(self, A: Operand) -> None:
            super().__init__([(A.n,)], [(A.n,)])
            self._multiply = A.product("torch")

        def _matmat(self, M: list[Any]) -> list[Any]:
            return [self._multiply(M[0])]

        def _adjoint(self) -> Any:
            return self

    def peer(ours: str, f: Callable) -> Peer:
        def estimate(A: Operand, m: int, seed: int) -> float:
            torch.manual_seed(seed)
            return float(f(Operator(A), m))

        return Peer("curvlinops", ours, "torch", estimate, _counter(estimate))

    return [
        peer("hutchinson", curvlinops.hutchinson_trace),
        peer("hutchpp", curvlinops.hutchpp_trace),
        peer("xtrace", curvlinops.xtrace),
    ]


def _skerch() -> list[Peer]:
    import torch
    from skerch.algorithms import hutch, xhutchpp
    from skerch.linops import BaseLinOp

    class Operator(BaseLinOp):
        def __init__(self, A: Operand) -> None:
            super().__init__((A.n, A.n))
            self._multiply = A.product("torch")

        def matmul(self, X: Any) -> Any:
            return self._multiply(X)

        def rmatmul(self, X: Any) -> Any:
            return self._multiply(X.mT).mT

    def peer(ours: str, f: Callable) -> Peer:
        def estimate(A: Operand, m: int, seed: int) -> float:
            return float(f(Operator(A), m, 1000 * seed)["tr"])

        return Peer("skerch", ours, "torch", estimate, _counter(estimate))

    common = {"lop_device": "cpu", "lop_dtype": torch.float64, "return_diag": False}
    return [
        peer("hutchinson", lambda A, m, seed: hutch(A, num_meas=m, seed=seed, **common)),
        peer("xtrace", lambda A, m, seed: xhutchpp(A, x_dims=m // 2, seed=seed, **common)),
    ]


# -- NumPy ----------------------------------------------------------------------------------------------------------
def scipy_operator(A: Operand) -> Any:
    """A matrix where there is one, else SciPy's LinearOperator."""
    from scipy.sparse.linalg import LinearOperator

    f = A.product("numpy")
    return A.matrix if A.matrix is not None else LinearOperator((A.n, A.n), matvec=f, matmat=f, dtype=np.float64)


def _primate() -> list[Peer]:
    from primate.trace import hutch, hutchpp, xtrace

    def peer(ours: str, f: Callable) -> Peer:
        def estimate(A: Operand, m: int, seed: int) -> float:
            return float(f(scipy_operator(A), m, seed))

        return Peer("primate", ours, "numpy", estimate, _counter(estimate))

    def hutchinson(A: Any, m: int, seed: int) -> float:
        return hutch(A, batch=m, converge="count", count=m, seed=seed, full=True)[0]

    class Enough(Exception):
        """Carries the estimate out of `xtrace`, which goes on to n probes whatever `converge` says (0.5.6)."""

    def exchangeable(A: Any, m: int, seed: int) -> float:
        def stop(result: Any) -> None:
            raise Enough(result.estimate)

        try:
            return xtrace(A, batch=m // 2, seed=seed, callback=stop)
        except Enough as enough:
            return enough.args[0]

    return [
        peer("hutchinson", hutchinson),
        peer("hutchpp", lambda A, m, seed: hutchpp(A, m=max(3, m // 9 * 3), mode="full", seed=seed)),
        peer("xtrace", exchangeable),
    ]


MAKERS = {
    "traceax": _traceax,
    "matfree": _matfree,
    "curvlinops": _curvlinops,
    "skerch": _skerch,
    "primate": _primate,
}
DISTRIBUTIONS = {"curvlinops": "curvlinops-for-pytorch", "primate": "scikit-primate"}


# -- log-determinants -----------------------------------------------------------------------------------------------
Logdet = tuple[str, str, str, Callable[[Operand, int, int, int], float]]
"""Library, method, arrays and (operand, probes, steps, seed) ↦ estimate."""


@cache
def logdets() -> list[Logdet]:
    """Stochastic Lanczos quadrature in the libraries that have it and are installed."""
    found: list[Logdet] = []
    for make in (_imate_logdet, _primate_logdet, _matfree_logdet):
        with contextlib.suppress(ImportError):
            found += make()
    return found


def _imate_logdet() -> list[Logdet]:
    import imate

    def run(A: Operand, s: int, t: int, seed: int) -> float:
        return imate.logdet(
            A.matrix, method="slq", min_num_samples=s, max_num_samples=s, lanczos_degree=t, orthogonalize=0,
            error_rtol=0.0, seed=seed, num_threads=1,
        )  # fmt: skip

    return [("imate", "logdet", "numpy", run)]


def _primate_logdet() -> list[Logdet]:
    from primate.operators import MatrixFunction
    from primate.trace import hutch

    def run(A: Operand, s: int, t: int, seed: int) -> float:
        f = MatrixFunction(A.matrix, fun=np.log, deg=t, orth=0)  # `matrix_function` cannot be told
        return hutch(f, batch=s, converge="count", count=s, seed=seed, full=True)[0]

    return [("primate", "logdet", "numpy", run)]


def _matfree_logdet() -> list[Logdet]:
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    from matfree import decomp, funm, stochtrace

    def peer(reortho: str) -> Logdet:
        @cache
        def compiled(apply: Callable, n: int, s: int, t: int) -> Callable:
            integrand = funm.monte_carlo_funm_sym_logdet(decomp.tridiag_sym(t, reortho=reortho))
            draw = stochtrace.sampler_signs(jnp.zeros(n), num=s)
            estimate = stochtrace.estimator_monte_carlo(integrand, draw)
            return jax.jit(lambda key, *arrays: estimate(lambda v: apply(v, *arrays), key))

        def run(A: Operand, s: int, t: int, seed: int) -> float:
            return float(compiled(A.apply, A.n, s, t)(jax.random.PRNGKey(seed), *A.arrays_in("jax")))

        return "matfree", "logdet" if reortho == "none" else "logdet, reortho", "jax", run

    return [peer("none"), peer("full")]
