"""Models, ours beside others': kernels by nngeometry, neural-tangents and plain torch.func, curvature by curvlinops.

Every run is the whole call, from model and batch to the number, without the checks that this library and
curvlinops can make of a model; the compilation of what JAX compiles is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from race import OURS, Contender, Row, measure
from timed_models import Sizes, in_jax, in_torch
from torch import nn

import traceest as te

SIZES = Sizes(examples=32, width=256, images=16, channels=16)
QUICK = Sizes(examples=4, width=16, images=3, channels=4)
PROBES = (2, 4, 8, 10)
"""Budgets of vjps; with ten outputs the last one is exact."""
EXACT = (0,)


# -- kernels --------------------------------------------------------------------------------------------------------
def kernel_by_torch_func(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """K, (examples · outputs)², from per-example Jacobians: PyTorch's own tutorial on neural tangent kernels."""
    params = {name: p.detach() for name, p in model.named_parameters()}

    def one(p: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, p, (x[None],))[0]

    J = torch.func.vmap(torch.func.jacrev(one), (None, 0))(params, x)
    rows = [j.flatten(2).flatten(0, 1) for j in J.values()]
    return sum(j @ j.T for j in rows)


def trace_by_torch_func(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """‖J‖², for which no kernel is needed."""
    params = {name: p.detach() for name, p in model.named_parameters()}

    def one(p: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, p, (x[None],))[0]

    J = torch.func.vmap(torch.func.jacrev(one), (None, 0))(params, x)
    return sum(j.square().sum() for j in J.values())


def _nngeometry(model: nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    from nngeometry.gram import GramMatrix
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=len(x))

    def kernel() -> torch.Tensor:
        K = GramMatrix(model, loader, function=lambda *d: model(d[0])).data  # (outputs, examples)²
        return K.reshape(K.shape[0] * K.shape[1], -1).detach()

    return kernel


def _neural_tangents(name: str, sizes: Sizes) -> Callable[[], Any]:
    import jax
    import neural_tangents as nt

    f, params, x, _ = in_jax(name, sizes)
    kernel = jax.jit(
        nt.empirical_ntk_fn(f, trace_axes=(), vmap_axes=0, implementation=nt.NtkImplementation.STRUCTURED_DERIVATIVES)
    )

    def run() -> Any:
        K = kernel(x, None, params)  # (examples, examples, outputs, outputs)
        return K.transpose(0, 2, 1, 3).reshape(K.shape[0] * K.shape[2], -1)

    return run


def _once(library: str, arrays: str, f: Callable[[], Any]) -> Contender:
    return Contender(library, "exact", arrays, EXACT, lambda m, seed: (float(f()), 0))


def kernels(name: str, quick: bool, seeds: int) -> dict[str, list[Row]]:
    """Trace and Frobenius norm of a network's kernel."""
    import jax

    from traceest_adapters.jax import ntk as jax_ntk
    from traceest_adapters.torch import ntk as torch_ntk

    sizes = QUICK if quick else SIZES
    model, x, _ = in_torch(name, sizes)
    K = kernel_by_torch_func(model.double(), x.double())
    truths = {"trace": float(K.trace()), "norm": float(torch.linalg.norm(K))}
    model.float()
    f, params, x_jax, _ = in_jax(name, sizes)

    def ours(arrays: str) -> te.Operator:
        return torch_ntk(model, x, check=False) if arrays == "torch" else jax_ntk(f, params, x_jax, check=False)

    def norm(arrays: str) -> Callable[[int, int], tuple[float, float]]:
        def run(m: int, seed: int) -> tuple[float, float]:
            e = te.frobenius_norm(ours(arrays), m, rng=seed)
            return float(e), e.n_rmatvecs

        return run

    def trace(arrays: str) -> Callable[[Any, int], tuple[float, float]]:
        def run(m: Any, seed: int) -> tuple[float, float]:
            e = te.trace(ours(arrays)) if m == PROBES[-1] else te.rhutch(ours(arrays).factor, m, rng=seed)
            return float(e), e.n_rmatvecs

        return run

    found: dict[str, list[Contender]] = {"trace": [], "norm": []}
    for arrays in ("torch", "jax"):
        found["trace"].append(Contender(OURS, "trace", arrays, PROBES, trace(arrays)))
        found["norm"].append(Contender(OURS, "frobenius_norm", arrays, PROBES, norm(arrays)))
    found["trace"].append(_once("torch.func", "torch", lambda: trace_by_torch_func(model, x)))
    found["norm"].append(_once("torch.func", "torch", lambda: torch.linalg.norm(kernel_by_torch_func(model, x))))
    for library, arrays, make in (
        ("nngeometry", "torch", lambda: _nngeometry(model, x)),
        ("neural-tangents", "jax", lambda: _neural_tangents(name, sizes)),
    ):
        try:
            kernel = make()
        except ImportError:
            continue
        found["trace"].append(_once(library, arrays, lambda kernel=kernel: kernel().trace()))
        found["norm"].append(_once(library, arrays, lambda kernel=kernel: (kernel() ** 2).sum() ** 0.5))
    wide = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", False)
    try:
        return {f"NTK of {name}: {what}": measure(cs, truths[what], seeds) for what, cs in found.items()}
    finally:
        jax.config.update("jax_enable_x64", wide)


# -- curvature ------------------------------------------------------------------------------------------------------
def curvature(quick: bool, seeds: int) -> dict[str, list[Row]]:
    """Trace of the Hessian and of the Gauss–Newton matrix of cross-entropy."""
    from traceest_adapters.torch import gauss_newton, hessian

    torch.manual_seed(0)
    w, n = (8, 8) if quick else (32, 256)
    model = nn.Sequential(nn.Linear(64, w), nn.Tanh(), nn.Linear(w, w), nn.Tanh(), nn.Linear(w, 10))
    x, y, loss = torch.randn(n, 64), torch.randint(10, (n,)), nn.CrossEntropyLoss()
    budgets = (12,) if quick else (12, 36, 108)
    methods = {"hutchinson": te.hutchinson, "hutchpp": te.hutchpp, "xtrace": te.xtrace}
    matrices = {"Hessian": hessian, "Gauss–Newton": gauss_newton}
    found = {}
    for title, make in matrices.items():
        double = (model.double(), loss, x.double(), y)
        truth = float(te.trace(make(*double), method="exact"))
        model.float()

        def by(f: Callable[..., te.Estimate], make: Callable[..., Any] = make) -> Callable[[int, int], Any]:
            return lambda m, seed: (float(f(make(model, loss, x, y, check=False), m, rng=seed)), m)

        cs = [Contender(OURS, name, "torch", budgets, by(f)) for name, f in methods.items()]
        if title == "Gauss–Newton":

            def by_rows(m: int, seed: int) -> tuple[float, float]:
                e = te.trace(gauss_newton(model, loss, x, y, check=False))
                return float(e), e.n_rmatvecs

            cs.append(Contender(OURS, "trace", "torch", EXACT, by_rows))
        cs += _curvlinops(title, model, loss, x, y, budgets)
        found[f"{title} of an MLP: trace"] = measure(cs, truth, seeds)
    return found


def _curvlinops(
    title: str, model: nn.Module, loss: nn.Module, x: Any, y: Any, budgets: tuple[int, ...]
) -> list[Contender]:
    try:
        import curvlinops
    except ImportError:
        return []
    kind = curvlinops.HessianLinearOperator if title == "Hessian" else curvlinops.GGNLinearOperator
    params = list(model.parameters())

    def by(f: Callable[..., Any]) -> Callable[[int, int], tuple[float, float]]:
        def run(m: int, seed: int) -> tuple[float, float]:
            torch.manual_seed(seed)
            return float(f(kind(model, loss, params, [(x, y)], check_deterministic=False), m)), m

        return run

    fs = {"hutchinson": curvlinops.hutchinson_trace, "hutchpp": curvlinops.hutchpp_trace, "xtrace": curvlinops.xtrace}
    return [Contender("curvlinops", name, "torch", budgets, by(f)) for name, f in fs.items()]
