"""A model's Jacobian over the batches of a loader is that over all examples at once."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from assertions import assert_close
from models import as_jax, jax_gru, jax_mlp, torch_gru, torch_mlp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import traceest as te
from traceest_adapters.jax import jacobian as jax_jacobian
from traceest_adapters.torch import TorchJacobian
from traceest_adapters.torch import jacobian as torch_jacobian

F64 = {"dtype": torch.float64}
SKETCHED = sys.modules["traceest.operators.sketched"]
TORCH_SKETCH = sys.modules["traceest_adapters.torch.per_example.sketch"]
JAX_SKETCH = sys.modules["traceest_adapters.jax.per_example.sketch"]
JAX_GHOST, JAX_PULLBACK = (
    sys.modules[f"traceest_adapters.jax.per_example.{name}"] for name in ("ghost_norms", "pullback")
)
JAX_STEPS = sys.modules["traceest_adapters.jax.per_example.compiled"]
LAYERS = sys.modules["traceest_adapters.torch.per_example.factors"]
LOOKUP = sys.modules["traceest_adapters.torch.per_example.lookup"]
EXAMPLES = sys.modules["traceest_adapters.torch.per_example.mapped"]


def x(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def words(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 9, shape)


class Tokens(nn.Module):
    """A table of words, a mean over positions, so that sentences may have any length."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(9, 5, padding_idx=0, **F64)
        self.mix, self.head = nn.Linear(5, 5, **F64), nn.Linear(5, 9, bias=False, **F64)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.mix(torch.sin(self.embed(ids)))).mean(1))


def jax_tokens(p: Any, ids: Any) -> Any:
    h = jnp.sin(p["embed.weight"][ids]) @ p["mix.weight"].T + p["mix.bias"]
    return jnp.tanh(h).mean(1) @ p["head.weight"].T


def torch_cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, **F64), nn.BatchNorm2d(4, **F64), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3, **F64)
    ).eval()


def jax_conv(p: Any, x: Any) -> Any:
    y = jax.lax.conv_general_dilated(x, p["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.tanh(y).mean(axis=(1, 2)) @ p["head"]


def of_torch(module: nn.Module, **options: Any) -> Callable[..., Any]:
    def make(*inputs: Any, batches: Any = None, **more: Any) -> Any:
        batches = None if batches is None else [torch.as_tensor(b) for b in batches]
        return torch_jacobian(module, *map(torch.as_tensor, inputs), batches=batches, **options, **more)

    return make


def of_jax(fn: Any, params: Any, **options: Any) -> Callable[..., Any]:
    return lambda *inputs, **more: jax_jacobian(fn, params, *inputs, **options, **more)


CONV = {"kernel": jnp.asarray(x(3, 3, 2, 4)), "head": jnp.asarray(x(4, 3))}
CASES: dict[str, tuple[Callable[..., Any], np.ndarray, int]] = {
    "mlp, torch": (of_torch(torch_mlp()), x(7, 6), 0),
    "mlp, jax": (of_jax(jax_mlp, as_jax(torch_mlp())), x(7, 6), 0),
    "conv, torch": (of_torch(torch_cnn()), x(7, 2, 6, 6), 0),
    "conv, jax": (of_jax(jax_conv, CONV), x(7, 6, 6, 2), 0),
    "gru, torch": (of_torch(torch_gru(3, 5), batch_axis=1, output=0), x(4, 7, 3), 1),
    "gru, jax": (of_jax(jax_gru, as_jax(torch_gru(3, 5)), batch_axis=1), x(4, 7, 3), 1),
    "tokens, torch": (of_torch(Tokens()), words(7, 4), 0),
    "tokens, jax": (of_jax(jax_tokens, as_jax(Tokens())), words(7, 4), 0),
    "tied, torch": (of_torch(Tokens(tied=True)), words(7, 4), 0),
    "positions, torch": (of_torch(nn.Sequential(nn.Linear(3, 4, **F64), nn.Tanh())), x(7, 5, 3), 0),
    "weight norm, torch": (of_torch(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4, **F64))), x(7, 3), 0),
    "wide, torch": (of_torch(nn.Sequential(nn.Linear(20, 30, **F64), nn.Tanh())), x(7, 2, 20), 0),
}


SLOW = ("gru, jax", "conv, jax", "tokens, jax")
"""They compile for long."""

MARKED = [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES]


def cut(data: np.ndarray, axis: int, ends: tuple[int, ...] = (3, 6)) -> list[np.ndarray]:
    """Batches of three examples, and a last one of what is left."""
    return np.split(data, ends, axis)


def like(J: Any, array: np.ndarray) -> Any:
    return torch.from_numpy(array) if isinstance(J.__array_namespace__().ones(1), torch.Tensor) else jnp.asarray(array)


def products(J: Any, k: int = 5) -> dict[str, np.ndarray]:
    V, W = like(J, x(J.shape[0], k)), like(J, x(J.shape[1], k))
    groups = ((0,), tuple(range(len(J.parameters))))
    return {
        "rmatmat": np.asarray(J.rmatmat(V)),
        "matmat": np.asarray(J.matmat(W)),
        "gram_matmat": np.asarray(te.gram(J).matmat(V)),
        "block_sqnorms": np.asarray(J.block_sqnorms(V)),
        "block_rmatmat": np.asarray(J.block_rmatmat(V)),
        "sketch_gram": np.asarray(J.sketch_gram(V)),
        "grouped_gram": np.asarray(J.grouped_gram(V, groups)),
    }


def check_products(case: str) -> None:
    make, data, axis = CASES[case]
    J, S = make(data), make(batches=cut(data, axis))
    assert (S.shape, S.n_blocks, S.parameters, S.state_shape) == (J.shape, J.n_blocks, J.parameters, J.state_shape)
    expected = products(J)
    for name, got in products(S).items():
        assert_close(got, expected[name], 1e-10)


@pytest.mark.parametrize("case", MARKED)
def test_products_are_those_of_all_examples_at_once(case: str) -> None:
    check_products(case)


@pytest.mark.parametrize("case", MARKED)
def test_little_memory_gives_the_same_gram(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    make, data, axis = CASES[case]
    J, S = make(data), make(batches=cut(data, axis))
    expected = products(J)["grouped_gram"]
    for module, name in ((SKETCHED, "HELD"), (SKETCHED, "PIECE"), (EXAMPLES.memory, "BUDGET")):
        monkeypatch.setattr(module, name, 2**11 if name == "BUDGET" else 1)
    groups = ((0,), tuple(range(len(J.parameters))))
    assert_close(np.asarray(S.grouped_gram(like(J, x(J.shape[0], 5)), groups)), expected, 1e-10)


STATISTICS: dict[str, Callable[[Any, Any], Any]] = {
    "trace": lambda K, y: te.trace(K, rng=0),
    "rhutch": lambda K, y: te.rhutch(K, 2, rng=0),
    "exact": lambda K, y: te.exact(K),
    "frobenius_norm": lambda K, y: te.frobenius_norm(K, 3, rng=0),
    "effective_rank": lambda K, y: te.effective_rank(K, 3, rng=0),
    "target_alignment": lambda K, y: te.target_alignment(K, y, 3, rng=0),
    "summary": lambda K, y: te.summary(K, n_probes=3, rng=0, groups=True).effective_rank,
    "diagonal": lambda K, y: te.diagonal(K, method="exact"),
    "alignment": lambda K, y: te.alignment(K, K, 3, rng=0),
}


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("case", ["mlp, torch", "mlp, jax"])
def test_statistics_are_those_of_all_examples_at_once(case: str, name: str) -> None:
    make, data, axis = CASES[case]
    J, S = make(data), make(batches=cut(data, axis))
    y = like(J, x(J.shape[0]))
    e, f = STATISTICS[name](te.gram(S), y), STATISTICS[name](te.gram(J), y)
    np.testing.assert_allclose(np.asarray(e.value), np.asarray(f.value), rtol=1e-9)
    np.testing.assert_allclose(np.asarray(e.stderr), np.asarray(f.stderr), rtol=1e-6, atol=1e-9)
    assert (e.n_matvecs, e.n_rmatvecs) == (f.n_matvecs, f.n_rmatvecs)


@pytest.mark.parametrize("case", ["mlp, torch", "mlp, jax"])
def test_a_tracker_follows_batches(case: str) -> None:
    make, data, axis = CASES[case]
    trackers = te.Tracker(n_probes=3, n_fresh=2, rng=0), te.Tracker(n_probes=3, n_fresh=2, rng=0)
    for t in range(2):
        trackers[0].update(te.gram(make(batches=cut(data * (1 + t / 10), axis))))
        trackers[1].update(te.gram(make(data * (1 + t / 10))))
    for name, e in trackers[1][1].estimates.items():
        np.testing.assert_allclose(float(getattr(trackers[0][1], name)), float(e), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("case", ["tokens, torch", "tokens, jax"])
def test_sentences_of_other_lengths_in_other_batches_make_one_jacobian(case: str) -> None:
    make, _, _ = CASES[case]
    batches = [words(3, 4), words(2, 7, seed=1), words(2, 30, seed=2)]
    S = make(batches=batches)
    V = x(S.shape[0], 3)
    g = np.concatenate([np.asarray(make(b).block_rmatmat(like(S, v))) for b, v in zip(batches, np.split(V, (27, 45)))])
    assert_close(np.asarray(S.sketch_gram(like(S, V))), np.einsum("bip,cjp->bicj", g, g), 1e-10)


@pytest.mark.parametrize("scale", [1e-15, 1e7, 1e15])
def test_batches_of_very_different_size_are_measured_in_units_of_their_own(scale: float) -> None:
    layer = Cubed()
    data = x(7, 6)
    data[3:] *= scale  # beyond 2⁴⁰ inputs are not squared by themselves: gradients are formed
    J, S = torch_jacobian(layer, torch.from_numpy(data)), of_torch(layer)(batches=cut(data, 0))
    V = torch.from_numpy(x(21, 3))
    g = J.block_rmatmat(V).numpy()
    expected = np.einsum("bip,cjp->bicj", g, g)
    np.testing.assert_allclose(S.sketch_gram(V).numpy(), expected, rtol=1e-9)


class Cubed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 4, **F64), nn.Linear(4, 3, **F64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x)) ** 3


def test_rows_of_other_lengths_are_one_block_and_said_to_be() -> None:
    with pytest.warns(RuntimeWarning, match="all are one block"):
        S = of_torch(nn.Linear(3, 2, **F64))(batches=[x(3, 4, 3), x(2, 7, 3)])
    assert S.n_blocks is None
    assert te.rhutch(S, 2, rng=0).n_rmatvecs == 2


@pytest.mark.parametrize("case", ["mlp, torch", "mlp, jax"])
def test_a_batch_can_be_a_block(case: str) -> None:
    make, data, _ = CASES[case]
    S = make(batches=cut(data[:6], 0, (2, 4)), blocks="batch")
    assert S.n_blocks == 3
    V = x(S.shape[0], 3)
    g = np.asarray(make(data[:6]).block_rmatmat(like(S, V))).reshape(3, 2, 3, -1).sum(1)
    assert_close(np.asarray(S.sketch_gram(like(S, V))), np.einsum("bip,cjp->bicj", g, g), 1e-10)
    assert_close(np.asarray(S.block_sqnorms(like(S, V))), (g**2).sum(-1), 1e-10)
    with pytest.raises(ValueError, match="drop_last=True"):
        make(batches=cut(data, 0), blocks="batch")


def test_a_batch_that_is_a_block_may_be_normalised_by_its_own_statistics() -> None:
    model, data = torch_cnn().train(), x(6, 2, 6, 6)
    with pytest.raises(ValueError, match="batch norm in training mode"):
        of_torch(model)(batches=cut(data, 0, (3,)))
    assert of_torch(model)(batches=cut(data, 0, (3,)), blocks="batch").n_blocks == 2


# -- loaders ----------------------------------------------------------------------------------------------
DATA = TensorDataset(torch.from_numpy(x(7, 6)), torch.arange(7))


def test_a_loader_is_gone_through_again_for_every_product() -> None:
    loader = DataLoader(DATA, batch_size=3)
    V = torch.from_numpy(x(35, 2))
    for J in (torch_jacobian(torch_mlp(), batches=loader, input=0), torch_jacobian(torch_mlp(), DATA.tensors[0])):
        torch.testing.assert_close(J.rmatmat(V), torch_jacobian(torch_mlp(), DATA.tensors[0]).rmatmat(V))


def test_a_loader_of_numpy_arrays_serves_jax() -> None:
    class Loader:
        def __iter__(self) -> Iterator[Any]:
            return iter([(b, np.zeros(len(b))) for b in cut(x(7, 6), 0)])

    params = as_jax(torch_mlp())
    V = jnp.asarray(x(35, 2))
    S = jax_jacobian(jax_mlp, params, batches=Loader(), input=0)
    assert_close(S.rmatmat(V), jax_jacobian(jax_mlp, params, x(7, 6)).rmatmat(V), 1e-12)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 3, **F64)

    def forward(self, a: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(a)) * scale[:, None]


def test_a_mapping_holds_keyword_inputs() -> None:
    a, scale = torch.from_numpy(x(7, 6)), torch.from_numpy(x(7))
    batches = [{"a": a[i : i + 3], "scale": scale[i : i + 3], "label": 0} for i in (0, 3, 6)]
    S = torch_jacobian(Named(), batches=batches, input=lambda b: {"a": b["a"], "scale": b["scale"]})
    J = torch_jacobian(nn.Sequential(Named().layer, nn.Tanh()), a)
    V = torch.from_numpy(x(21, 3))
    expected = J.sketch_gram((V.reshape(7, 3, 3) * scale[:, None, None]).reshape(21, 3))
    torch.testing.assert_close(S.sketch_gram(V), expected)


def test_a_mapping_is_one_input_of_a_jax_function() -> None:
    def fn(p: Any, b: Any) -> Any:
        return jnp.tanh(b["a"] @ p) * b["scale"][:, None]

    data = {"a": x(7, 6), "scale": x(7)}
    batches = [{name: v[i : i + 3] for name, v in data.items()} for i in (0, 3, 6)]
    W, V = jnp.asarray(x(6, 3)), jnp.asarray(x(21, 3))
    S, J = jax_jacobian(fn, W, batches=batches), jax_jacobian(fn, W, data)
    assert_close(S.sketch_gram(V), J.sketch_gram(V), 1e-12)


def test_a_shuffled_loader_is_refused_at_once() -> None:
    loader = DataLoader(DATA, batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="shuffle=False"):
        torch_jacobian(torch_mlp(), batches=loader, input=0)


class Drifting:
    """Batches of which the last is another one in every pass."""

    def __init__(self, extra: bool = False) -> None:
        self.passes, self.extra = 0, extra

    def __iter__(self) -> Iterator[torch.Tensor]:
        self.passes += 1
        data = torch.from_numpy(x(7, 6))
        yield data[:3]
        yield data[3:6] if self.extra else data[3:6] + self.passes
        if self.extra and self.passes > 3:
            yield data[6:]


@pytest.mark.parametrize("extra", [False, True])
def test_other_data_in_another_pass_are_refused(extra: bool) -> None:
    S = torch_jacobian(torch_mlp(), batches=Drifting(extra))
    with pytest.raises(ValueError, match=f"batch {2 if extra else 1} is not what it was"):
        te.rhutch(S, 2, rng=0)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a generator": ({"batches": (b for b in [DATA.tensors[0]])}, TypeError, r"list\(\.\.\.\)"),
    "nothing": ({"batches": []}, ValueError, "no batch"),
    "an empty loader": ({"batches": DataLoader(TensorDataset(torch.zeros(0, 6)))}, ValueError, "no batch"),
    "a number": ({"batches": 3}, TypeError, "an iterable of batches"),
    "a mapping": ({"batches": {"a": 1}}, TypeError, "got dict"),
    "a wrong part": ({"batches": [DATA.tensors], "input": 1.5}, TypeError, "input must be an index"),
    "unknown blocks": ({"batches": [DATA.tensors[0]], "blocks": "row"}, ValueError, "'example' or 'batch'"),
    "blocks without batches": ({"blocks": "batch"}, TypeError, "are for batches="),
    "a later batch without its axis": (
        {"batches": [DATA.tensors[0], torch.tensor(1.0, **F64)], "input": lambda b: b},
        ValueError,
        "no such axis",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_batches_are_told_what_to_change(case: str) -> None:
    options, error, message = BAD[case]
    model = Scaling() if "axis" in case else torch_mlp()
    with pytest.raises(error, match=message):
        torch_jacobian(model, **options)


class Scaling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.ones((), **F64))

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        return a * self.p


def test_inputs_and_batches_are_not_given_together() -> None:
    with pytest.raises(TypeError, match="not both"):
        torch_jacobian(torch_mlp(), DATA.tensors[0], batches=[DATA.tensors[0]])
    with pytest.raises(TypeError, match="not both"):
        jax_jacobian(jax_mlp, as_jax(torch_mlp()), x(7, 6), batches=[x(7, 6)])


def test_a_kernel_of_batches_is_that_of_the_parameters_when_it_was_made() -> None:
    model = torch_mlp()
    S, T = (torch_jacobian(model, batches=DataLoader(DATA, batch_size=3), input=0) for _ in range(2))
    before = float(te.exact(te.gram(S)))
    with torch.no_grad():
        model[0].weight += 1
    assert float(te.exact(te.gram(T))) == before
    assert float(te.exact(te.gram(torch_jacobian(model, batches=DataLoader(DATA, batch_size=3), input=0)))) != before


# -- cost -------------------------------------------------------------------------------------------------
class Saved:
    """A tensor that a graph keeps for its backward pass."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.detach()  # a result that its own graph keeps would keep the graph


def saved_at_most(use: Callable[[], Any]) -> int:
    """The most tensors that graphs keep at a time."""
    there: weakref.WeakSet[Any] = weakref.WeakSet()
    most = [0]

    def pack(tensor: torch.Tensor) -> Saved:
        kept = Saved(tensor)
        there.add(kept)
        most[0] = max(most[0], len(there))
        return kept

    gc.disable()
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
            use()
    finally:
        gc.enable()
    return most[0]


@pytest.mark.parametrize("statistic", ["rhutch", "frobenius_norm"])
def test_one_graph_is_there_at_a_time(statistic: str) -> None:
    model, data = torch_mlp(), x(12, 6)

    def use(batches: list[np.ndarray]) -> Callable[[], Any]:
        return lambda: getattr(te, statistic)(te.gram(of_torch(model, check=False)(batches=batches)), 2, rng=0)

    one = saved_at_most(use([data[:2]]))
    assert one > 0
    assert saved_at_most(use(list(np.split(data, 6)))) == one


def test_checks_of_the_model_are_made_on_the_first_batch() -> None:
    runs = []

    class Counted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = torch_mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            runs.append(len(x))
            return self.mlp(x)

    S = of_torch(Counted())(batches=cut(x(7, 6), 0))
    first, later = runs[:3], runs[3:]
    assert first == [first[0], first[0], 1]  # the model as it is, its copy, and (mapped) every example by itself
    assert len(later) == 2  # once a batch
    runs.clear()
    te.rhutch(S, 2, rng=0)
    assert len(runs) == 3


def test_batches_of_equal_shape_compile_nothing_again() -> None:
    params = as_jax(torch_mlp())
    compiled = (
        JAX_PULLBACK.linearise,
        JAX_GHOST.sqnorms,
        JAX_GHOST.deltas,
        JAX_GHOST.cross_gram,
        JAX_STEPS.linearise_reverse,
        JAX_STEPS.vjps,
        JAX_STEPS.columns,
    )

    def use(data: np.ndarray, k: int) -> None:
        S = jax_jacobian(jax_mlp, params, batches=np.split(data, range(4, len(data), 4)))
        for product in (S.rmatmat, S.block_sqnorms, S.sketch_gram):
            product(jnp.asarray(x(S.shape[0], k)))

    use(x(10, 6), 2)
    sizes = [step._cache_size() for step in compiled]
    use(x(22, 6), 3)
    assert [step._cache_size() for step in compiled] == sizes


def test_batches_serve_under_jit() -> None:
    params, data = as_jax(torch_mlp()), cut(x(7, 6), 0)

    def norm(p: Any, batches: Any) -> Any:
        return te.frobenius_norm(te.gram(jax_jacobian(jax_mlp, p, batches=batches)), 2, rng=0).value

    np.testing.assert_allclose(jax.jit(norm)(params, data), norm(params, data), rtol=1e-10)


def test_a_model_that_cannot_be_mapped_says_so_once_for_all_batches() -> None:
    from test_torch_adapter import ReverseOnly

    S = of_torch(ReverseOnly())(batches=cut(x(7, 6), 0))
    with pytest.warns(RuntimeWarning, match="one by one") as caught:
        S.block_rmatmat(torch.from_numpy(x(21, 2)))
    S.block_rmatmat(torch.from_numpy(x(21, 2)))  # a second warning would be an error here
    assert len(caught) == 1
    assert not hasattr(S, "matmat")


def test_the_bar_moves_over_the_batches(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm", reason="the progress bar is tqdm's")
    te.rhutch(of_torch(torch_mlp())(batches=cut(x(7, 6), 0), progress=True), 2, rng=0)
    assert "3/3" in capsys.readouterr().err


# -- the tests bite -----------------------------------------------------------------------------------------
MUTATIONS: dict[str, tuple[Any, str, Callable[[Any], Any], str]] = {
    "words of another example": (LOOKUP, "_rows_of", lambda f: lambda w, b: f(w, b).roll(1, 1), "tokens, torch"),
    "formed gradients halved": (TORCH_SKETCH, "formed", lambda f: lambda *a: f(*a) / 2, "conv, torch"),
    "factors doubled": (TORCH_SKETCH, "gram", lambda f: lambda *a: 2 * f(*a), "mlp, torch"),
    "what is not understood left out": (
        TORCH_SKETCH.Sketch,
        "_formed_anew",
        lambda f: lambda self, names: {k: 0 * g for k, g in f(self, names).items()},
        "weight norm, torch",
    ),
    "taps of one batch": (JAX_GHOST, "cross_gram", lambda f: lambda *a: 0 * f(*a), "mlp, jax"),
}


@pytest.mark.parametrize("case", MUTATIONS)
def test_a_broken_sketch_is_caught(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    where, name, broken, model = MUTATIONS[case]
    monkeypatch.setattr(where, name, broken(getattr(where, name)))
    with pytest.raises(AssertionError):
        check_products(model)


def test_a_unit_that_is_forgotten_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = TORCH_SKETCH.Sketch.__init__

    def without(self: Any, *args: Any) -> None:
        honest(self, *args)
        self.unit = 1.0

    monkeypatch.setattr(TORCH_SKETCH.Sketch, "__init__", without)
    with pytest.raises(AssertionError):
        test_batches_of_very_different_size_are_measured_in_units_of_their_own(1e7)


def test_a_graph_that_is_kept_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    honest: Any = TorchJacobian.__dict__["block_sketch"]
    monkeypatch.setattr(TorchJacobian, "block_sketch", lambda J, V: (kept.append(J), honest.__get__(J)(V))[1])
    with pytest.raises(AssertionError):
        test_one_graph_is_there_at_a_time("frobenius_norm")
