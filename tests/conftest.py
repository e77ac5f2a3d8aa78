"""The backends every test runs on, each with the same four verbs."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from tempfile import TemporaryDirectory
from typing import Any

# Three quarters of the tests' time would be compilation, which XLA's older way, without optimising, does in a third of
# the time. An XLA that does not know a flag ends the process. XLA_FLAGS="" and JAX_DISABLE_MOST_OPTIMIZATIONS=0 in the
# environment have all compiled as for users.
if version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Threads that wait for those of other workers cost a tenth of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import array_api_strict
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

jax.config.update("jax_enable_x64", True)
torch.set_num_threads(1)
array_api_strict.set_array_api_strict_flags(
    api_version="2025.12", boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=("linalg",)
)


def pytest_configure(config: pytest.Config) -> None:
    """One store of compiled JAX programs for all modules and scripts of a worker: half of the time is compilation.

    No two workers share one: JAX does not write its files at once, so that one would read what another half wrote.
    """
    if hasattr(config, "workerinput"):
        os.environ["JAX_COMPILATION_CACHE_DIR"] += f"/{config.workerinput['workerid']}"
    elif "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        store = TemporaryDirectory(ignore_cleanup_errors=True)
        config.add_cleanup(store.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = store.name
    os.environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    gc.disable()


def pytest_collection_finish() -> None:
    """Look for garbage in what comes from now on: in all that was imported as well it took a tenth of the time."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker goes through one part of the files, and takes over from another when it is done.

    So tests of one file, which compile the same programs, run in one process, and all processes end together.
    """
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


@pytest.fixture(autouse=True, scope="module")
def style_of_its_own() -> Iterator[None]:
    """Scripts under docs/ set the look of figures for the whole process, which is not to reach other tests."""
    yield
    if "matplotlib" in sys.modules:
        sys.modules["matplotlib"].rcdefaults()


@pytest.fixture
def compile_as_usual() -> Iterator[None]:
    """For what is the same to rounding in any program: unoptimised ones may make a normal twice, and differently."""
    quick = jax.config.read("jax_disable_most_optimizations")
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", quick)


@dataclass(frozen=True)
class Backend:
    """A library of arrays: how to make them, call with them, and read them."""

    name: str
    xp: Any
    device: Any = None
    jitted: bool = False

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        """A NumPy array as one of this backend's, on its device; `dtype` by its NumPy name."""
        x = np.asarray(x) if dtype is None else np.asarray(x, dtype=dtype)
        if self.xp is torch:
            return torch.from_numpy(x.copy())
        return self.xp.asarray(x, device=self.device)

    def call(self, f: Callable[..., Any], *arrays: Any) -> Any:
        """f(*arrays), compiled where the backend is; operators are to be made inside, from the traced arrays."""
        arrays = tuple(self.asarray(a) for a in arrays)
        return jax.jit(f)(*arrays) if self.jitted else f(*arrays)

    def host(self, x: Any) -> np.ndarray:
        """A NumPy array of one of this backend's."""
        if self.xp is array_api_strict:
            x = x.to_device(array_api_strict.Device("CPU_DEVICE"))
        return np.asarray(x)

    def __repr__(self) -> str:
        return self.name


BACKENDS = [
    Backend("numpy", np),
    Backend("strict", array_api_strict),
    Backend("strict-device1", array_api_strict, array_api_strict.Device("device1")),
    Backend("torch", torch),
    Backend("jax", jnp),
    Backend("jax-jit", jnp, jitted=True),
]


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_code() -> Iterator[None]:
    """What JAX compiled for one module's shapes serves no other, and grows to gigabytes over all of them."""
    yield
    jax.clear_caches()
