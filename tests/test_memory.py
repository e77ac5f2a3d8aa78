"""How many probes go through a model at once: from a budget, never beyond it, and fewer when memory runs out."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from models import as_jax, jax_mlp, torch_mlp

from traceest_adapters import _memory as memory
from traceest_adapters.jax import jacobian as in_jax
from traceest_adapters.torch import jacobian as in_torch
from traceest_adapters.torch.operator import TorchJacobian

X = torch.linspace(-1, 1, 42, dtype=torch.float64).sin().reshape(7, 6)
PRODUCTS = ("rmatmat", "gram_matmat", "block_sqnorms", "block_rmatmat", "sketch_gram")


def make(framework: str, **options: Any) -> Any:
    if framework == "torch":
        return in_torch(torch_mlp(), X, **options)
    return in_jax(jax_mlp, as_jax(torch_mlp()), jnp.asarray(X.numpy()), **options)


def probes(J: Any, k: int = 6) -> Any:
    V = torch.linspace(-1, 1, J.shape[0] * k, dtype=torch.float64).cos().reshape(J.shape[0], k)
    return V if isinstance(J, TorchJacobian) else jnp.asarray(V.numpy())


def failing(honest: Callable[..., Any], error: Exception, times: int) -> Callable[..., Any]:
    """`honest`, after it has run out of memory so many times."""
    left = [times]

    def run(*args: Any, **kwargs: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise error
        return honest(*args, **kwargs)

    return run


@pytest.mark.parametrize(
    ("per_probe", "largest", "cache", "most", "probes"),
    [(1, 1, 10**9, 32, 32), (1, 100, 1000, 32, 10), (100, 1, 10**9, 32, 7), (10**9, 10**9, 1, 32, 1)],
    ids=["all", "as fit the cache", "as fit the budget", "one at the least"],
)
def test_as_many_probes_go_through_the_model_as_fit(
    per_probe: int, largest: int, cache: int, most: int, probes: int
) -> None:
    with memory.within(700):
        assert memory.probes_to_a_pass(per_probe, largest, cache, most) == probes


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_a_small_budget_means_small_chunks_and_the_same_products(framework: str) -> None:
    whole, least = make(framework), make(framework, memory_budget=1)
    assert whole.chunk_size > 1
    assert least.chunk_size == 1
    for product in PRODUCTS:
        a, b = (getattr(J, product)(probes(J)) for J in (whole, least))
        assert abs(a - b).max() <= 1e-12 * abs(a).max()


@pytest.mark.parametrize(("given", "error"), [(0, ValueError), (-5, ValueError), (2.5, TypeError), (True, TypeError)])
def test_a_budget_is_a_positive_number_of_bytes(given: Any, error: type[Exception]) -> None:
    for framework in ("jax", "torch"):
        with pytest.raises(error, match="memory_budget"):
            make(framework, memory_budget=given)


OUT: dict[str, tuple[Any, str, Exception]] = {
    "torch": (TorchJacobian, "_vjp", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")),
    "jax": (jax, "vmap", jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99999 bytes.")),
}


def test_memory_that_runs_out_halves_the_chunks_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    J, honest = make("torch"), make("torch").rmatmat(probes(make("torch")))
    owner, name, error = OUT["torch"]
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), error, 2))
    size = J.chunk_size
    with pytest.warns(RuntimeWarning, match="out of memory: going on with chunk_size=") as caught:
        found = J.rmatmat(probes(J))
    assert len(caught) == 2
    assert J.chunk_size == size // 4
    assert J.memory_budget == memory.BUDGET // 4
    torch.testing.assert_close(found, honest)


def test_jax_goes_on_too_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from traceest_adapters.jax.per_example import compiled

    J = make("jax")
    honest = J.rmatmat(probes(J))
    monkeypatch.setattr(compiled, "vjps", failing(compiled.vjps, OUT["jax"][2], 1))
    with pytest.warns(RuntimeWarning, match="chunk_size=2"):
        found = J.rmatmat(probes(J))
    assert J.chunk_size == 2
    assert float(abs(found - honest).max()) < 1e-12


def test_when_nothing_is_left_to_halve_the_error_is_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    J = make("torch", chunk_size=1, memory_budget=memory.LEAST)
    owner, name, error = OUT["torch"]
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), error, 1))
    with pytest.raises(torch.OutOfMemoryError):
        J.rmatmat(probes(J))


def test_other_errors_are_not_taken_for_it() -> None:
    assert not memory.ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not memory.ran_out(ValueError("out of memory"))
    assert memory.ran_out(
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory")
    )
    assert memory.ran_out(MemoryError())


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_process_that_is_really_out_of_memory_goes_on() -> None:
    """Sixteen gradients of eight million parameters do not fit a limit on the process; fewer do."""
    out = run("""
        import resource, warnings, torch, traceest as te
        from traceest_adapters.torch import jacobian
        torch.manual_seed(0)
        model, x = torch.nn.Linear(4000, 2000, bias=False), torch.randn(3, 4000)
        J = jacobian(model, x, batch_axis=None, chunk_size=16)
        V = torch.randn(J.shape[0], 16)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20,) * 2)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = J.block_sqnorms(V)
        G = x @ x.T
        exact = torch.einsum("bik,bc,cik->k", V.reshape(3, 2000, 16), G, V.reshape(3, 2000, 16))
        torch.testing.assert_close(found[0], exact, rtol=1e-4, atol=0)
        print(J.chunk_size, any("out of memory" in str(w.message) for w in caught))
    """)
    size, warned = out.split()
    assert int(size) < 16
    assert warned == "True"


def test_a_product_keeps_inside_its_budget() -> None:
    """Peak resident memory of per-example norms and Gram matrices, with budgets of 512 and 64 MiB."""
    code = """
        import resource, torch
        from traceest_adapters.torch import jacobian
        torch.manual_seed(0)
        model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(6)))
        J = jacobian(model, torch.randn(64, 1024), memory_budget={budget}, check=False)
        J.block_sqnorms(torch.randn(J.shape[0], 1))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        V = torch.randn(J.shape[0], 64)
        J.block_sqnorms(V), J.rmatmat(V[:, :1])
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
    """
    small, large = (float(run(code.format(budget=b * 2**20))) for b in (64, 512))
    assert small < 64 + 64  # the answers, V and its copy beside it
    assert large < 512 + 64
