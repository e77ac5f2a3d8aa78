"""Every public call says the same by the same word: one table, walked over all signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import struct

import traceest as te
from traceest_adapters import jax as in_jax
from traceest_adapters import torch as in_torch

PACKAGES = {"traceest": te, "probes": te.probes, "jax": in_jax, "torch": in_torch}

OPERANDS = {
    "traceest": {"A", "B", "J", "K", "K1", "K2", "f", "k", "n", "p", "y", "coefficients", "estimate", "estimates",
                 "operators", "path", "product"},
    "probes": {"n", "k"},
    "jax": {"fn", "loss", "params", "inputs", "targets"},
    "torch": {"model", "loss", "inputs", "targets"},
}  # fmt: skip
"""What may come by position: operands, or the model and data; and, in the core, the budget."""
BUDGETS = {"n_matvecs", "n_probes"}

REQUIRED = inspect.Parameter.empty
WORDS: dict[str, set[Any]] = {
    "n_matvecs": {None},
    "n_probes": {None},
    "rtol": {None, 0.01, 1e-3, 1e-8},  # none asked for; the front door's; those of what converges by itself
    "atol": {0.0},
    "confidence": {0.95},
    "max_matvecs": {None},
    "callback": {None},
    "progress": {False},
    "explain": {False},
    "checkpoint": {None},
    "start": {None},
    "method": {"auto"},
    "side": {"auto"},
    "rng": {None, 0},
    "distribution": {None, "rademacher", "sphere"},
    "probes": {None},
    "chunk_size": {None},
    "memory_budget": {None},
    "centred": {False},
    "groups": {None},
    "n_blocks": {None, 1},
    "like": {None, REQUIRED},
    "wrt": {None},
    "params": {None, REQUIRED},  # of a JAX function they are data
    "kwargs": {None},
    "shared": {None},
    "batch_axis": {0},
    "feature_axis": {None},
    "output": {None},
    "batches": {None},
    "input": {None},
    "targets": {None},
    "blocks": {"example"},
    "reduction": {"mean"},
    "check": {True},
}
"""A word and the defaults that it may have."""

NOT_YET = {
    "diagonal: method by position",
    "diagonal: tolerance",
    "entropy_rank: tolerance",
    "logdet: tolerance",
    "schatten_norm: tolerance",
    "schatten_norm: n_deflate not documented",
    "spectral_norm: tolerance",
    "trace_of_function: tolerance",
}
"""What is known not to be so yet; an entry that has come true has to go."""

TOLERANCE = ("rtol", "atol", "confidence", "max_matvecs", "callback", "progress", "explain", "checkpoint")
GROWING = ("trace", "frobenius_norm", "effective_rank", "inner_product", "alignment", "centred_alignment",
           "relative_distance", "target_alignment", "diagonal", "logdet", "trace_of_function", "schatten_norm",
           "entropy_rank", "spectral_norm")  # fmt: skip


class Call(NamedTuple):
    package: str
    name: str
    call: Callable[..., Any]

    @property
    def parameters(self) -> list[inspect.Parameter]:
        return list(inspect.signature(self.call).parameters.values())


CALLS = [
    Call(package, name, getattr(module, name))
    for package, module in PACKAGES.items()
    for name in (te.probes.LAWS if module is te.probes else module.__all__)
    if inspect.isfunction(getattr(module, name))
]
NAMES = [f"{call.package}.{call.name}" for call in CALLS]


def wrong_positions(call: Call) -> set[str]:
    """Options that can be given by position, though they are neither operands nor the budget."""
    by_position = [p for p in call.parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    allowed = OPERANDS[call.package] | (BUDGETS if call.package == "traceest" else set())
    return {f"{call.name}: {p.name} by position" for p in by_position if p.name not in allowed}


def missing_tolerances() -> set[str]:
    """Calls that could go to a tolerance and lack an option of those that do."""
    options = {name: inspect.signature(getattr(te, name)).parameters for name in GROWING}
    return {f"{name}: tolerance" for name, given in options.items() if not given.keys() >= set(TOLERANCE)}


SECTIONS = re.compile(r"\n(?:Returns|Yields|Raises|Notes|References|Examples)\n-+\n")


def undocumented(call: Call) -> set[str]:
    """Parameters that the docstring's section of them does not name, or, as further options, those of `jacobian`."""
    text = inspect.getdoc(call.call) or ""
    if call.package == "probes":  # whose page tells of all laws at once
        return {f"{call.name}: {p.name} not documented" for p in call.parameters if p.name not in te.probes.__doc__}
    _, found, section = text.partition("Parameters\n----------\n")
    if not found and len(call.parameters) < 2:
        return set() if text else {f"{call.name}: not documented"}
    heads = [line for line in SECTIONS.split(section)[0].splitlines() if line and not line.startswith(" ")]
    told = {name.strip("* ") for line in heads for name in line.partition(" : ")[0].split(",")}
    if "options" in told:
        told |= {p.name for p in CALLS[NAMES.index(f"{call.package}.jacobian")].parameters}
    return {f"{call.name}: {p.name} not documented" for p in call.parameters if p.name not in told}


def test_there_are_calls_to_walk_over() -> None:
    assert len(CALLS) > 45
    assert {"traceest.trace", "jax.hessian", "torch.ntk", "probes.sphere"} <= set(NAMES)


def test_options_come_by_keyword_and_are_documented_and_what_is_not_so_yet_is_listed() -> None:
    found = set[str]().union(*map(wrong_positions, CALLS), *map(undocumented, CALLS), missing_tolerances())
    assert sorted(found) == sorted(NOT_YET)


@pytest.mark.parametrize("call", CALLS, ids=NAMES)
def test_a_word_has_one_default(call: Call) -> None:
    for p in call.parameters:
        if p.name in WORDS and p.kind is not p.VAR_POSITIONAL:
            assert p.default in WORDS[p.name], f"{p.name}={p.default!r}"
        assert p.kind is not p.VAR_KEYWORD, f"**{p.name} hides what can be given"


@pytest.mark.parametrize("name", ["jacobian", "ntk", "hessian", "gauss_newton", "empirical_fisher"])
def test_both_adapters_take_the_same_options(name: str) -> None:
    options = [
        {
            p.name: p.default
            for p in inspect.signature(getattr(package, name)).parameters.values()
            if p.kind is p.KEYWORD_ONLY
        }
        for package in (in_jax, in_torch)
    ]
    own = {"in_axes", "differentiable", "params", "targets"}  # JAX's axes; PyTorch's graph; data in one of the two
    in_common = [{key: default for key, default in given.items() if key not in own} for given in options]
    assert in_common[0] == in_common[1]


MODEL = torch.nn.Linear(3, 2)
MISSPELT: dict[str, Callable[[], Any]] = {
    "batch_axes": lambda: in_torch.gauss_newton(MODEL, torch.nn.MSELoss(), torch.ones(2, 3), batch_axes=0),
    "batchs": lambda: in_jax.hessian(lambda w: w.sum(), jnp.ones(2), batchs=[]),
    "memory_buget": lambda: in_torch.hessian(MODEL, torch.nn.MSELoss(), memory_buget=3),
    "fature_axis": lambda: in_jax.empirical_fisher(lambda w, x: x, len, jnp.ones(2), fature_axis=1),
}


@pytest.mark.parametrize("option", MISSPELT)
def test_a_misspelt_option_is_told_which_was_meant(option: str) -> None:
    with pytest.raises(TypeError, match=rf"no option {option}=; did you mean \w+=\?"):
        MISSPELT[option]()


# -- patterns that choose parameters -------------------------------------------------------------------------------
class Block(NamedTuple):
    attn: dict[str, Any]
    mlp: Any


@struct.dataclass
class Model:
    """A dataclass of flax, which is a pytree."""

    embed: Any
    layers: list[Any]


@dataclass(frozen=True)
class Chosen:
    """Which parameters a pattern chooses, of a model in PyTorch and the like in JAX."""

    wrt: Any
    names: tuple[str, ...]


ALL = (
    "embed",
    "layers.0.attn.q",
    "layers.0.attn.k",
    "layers.0.mlp",
    "layers.1.attn.q",
    "layers.1.attn.k",
    "layers.1.mlp",
)
CHOSEN = {
    "a name": Chosen("layers.0.attn.q", ("layers.0.attn.q",)),
    "a module": Chosen("layers.0", ALL[1:4]),
    "a glob of arrays": Chosen("*.attn.*", tuple(name for name in ALL if "attn" in name)),
    "a glob of modules": Chosen("layers.*.attn", tuple(name for name in ALL if "attn" in name)),
    "several": Chosen(["embed", "*.mlp"], ("embed", "layers.0.mlp", "layers.1.mlp")),
    "a predicate": Chosen(lambda name, array: array.ndim == 1, ("embed",)),
    "a name and a predicate": Chosen(("layers.1.mlp", lambda name, array: "k" in name.split(".")),
                                     ("layers.0.attn.k", "layers.1.attn.k", "layers.1.mlp")),
}  # fmt: skip
WEIGHT = np.linspace(0.1, 1.0, 9).reshape(3, 3)


def jax_model() -> Model:
    block = lambda: Block({"q": jnp.asarray(WEIGHT), "k": jnp.asarray(WEIGHT)}, jnp.asarray(WEIGHT))  # noqa: E731
    return Model(jnp.ones(3), [block(), block()])


def run(m: Any, x: Any) -> Any:
    x = x * m.embed
    for layer in m.layers:
        x = x @ layer.attn["q"] @ layer.attn["k"] @ layer.mlp
    return x


class TorchBlock(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        weight = lambda: torch.nn.Parameter(torch.as_tensor(WEIGHT))  # noqa: E731
        self.attn = torch.nn.ParameterDict({"q": weight(), "k": weight()})
        self.mlp = weight()


class TorchModel(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.layers = torch.nn.ModuleList([TorchBlock(), TorchBlock()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return run(self, x)


@pytest.mark.parametrize("pattern", CHOSEN)
def test_a_pattern_chooses_the_same_in_both_frameworks_and_in_groups(pattern: str) -> None:
    case, x = CHOSEN[pattern], np.ones((2, 3))
    jacobians = (
        in_jax.jacobian(run, jax_model(), jnp.asarray(x), wrt=case.wrt),
        in_torch.jacobian(TorchModel(), torch.as_tensor(x), wrt=case.wrt),
    )
    for J in jacobians:
        assert sorted(J.parameters) == sorted(case.names)
    whole = te.gram(in_torch.jacobian(TorchModel(), torch.as_tensor(x)))
    part = te.summary(whole, groups={"some": case.wrt}, method="exact").groups["some"]
    assert float(part.trace) == pytest.approx(float(te.exact(te.gram(jacobians[1]))))


def test_a_glob_of_modules_makes_each_a_group() -> None:
    K = in_torch.ntk(TorchModel(), torch.ones(2, 3, dtype=torch.float64))
    assert list(te.summary(K, groups="layers.*", method="exact").groups) == ["layers.0", "layers.1"]
    assert list(te.summary(K, groups=["embed", "*.attn"], method="exact").groups) == [
        "embed", "layers.0.attn", "layers.1.attn"]  # fmt: skip


ASKED = {
    "jax": lambda x: in_jax.ntk(run, jax_model(), jnp.asarray(x), wrt="layers.0.atn"),
    "torch": lambda x: in_torch.ntk(TorchModel(), torch.as_tensor(x), wrt="layers.0.atn"),
}


@pytest.mark.parametrize("framework", ASKED)
def test_a_pattern_that_fits_nothing_is_told_what_there_is(framework: str) -> None:
    with pytest.raises(
        ValueError, match=r"'layers.0.atn' fits no parameter; did you mean 'layers.0.attn'.* are embed, "
    ):
        ASKED[framework](np.ones((2, 3)))


def test_values_of_some_parameters_take_the_place_of_a_modules_own() -> None:
    model, x = TorchModel(), torch.ones(2, 3, dtype=torch.float64)
    other = {"layers.0.mlp": torch.as_tensor(2 * WEIGHT)}
    found = te.exact(in_torch.ntk(model, x, wrt="embed", params=other))
    assert float(found) == pytest.approx(4 * float(te.exact(in_torch.ntk(model, x, wrt="embed"))))
    of_function = lambda p, x: x * p["a"] * p["b"]  # noqa: E731
    p = {"a": torch.full((3,), 2.0, dtype=torch.float64), "b": torch.full((3,), 3.0, dtype=torch.float64)}
    J = in_torch.jacobian(of_function, x, params=p, wrt="b")
    assert J.parameters == ("b",)
    assert float(te.exact(te.gram(J))) == pytest.approx(2 * 3 * 2.0**2)


def test_shared_inputs_have_no_batch_axis_in_either_framework() -> None:
    x, scale = np.ones((2, 3)), np.linspace(1, 2, 3)
    of_jax = in_jax.ntk(
        lambda w, x, scale: x * w * scale, jnp.ones(3), jnp.asarray(x), shared={"scale": jnp.asarray(scale)}
    )
    of_torch = in_torch.ntk(
        lambda p, x, scale: x * p["w"] * scale, torch.as_tensor(x), params={"w": torch.ones(3, dtype=torch.float64)},
        shared={"scale": torch.as_tensor(scale)})  # fmt: skip
    assert float(te.exact(of_jax)) == pytest.approx(float(te.exact(of_torch))) == pytest.approx(2 * (scale**2).sum())
    with pytest.raises(ValueError, match=r"scale came both in kwargs= and in shared="):
        in_jax.ntk(lambda w, x, scale: x, jnp.ones(3), jnp.asarray(x), kwargs={"scale": x}, shared={"scale": x})
