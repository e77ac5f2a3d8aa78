"""PyTorch kernels are those of plain backward passes, whatever batched forms, threads or time make of the model."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import traceest as te
from traceest_adapters.torch import jacobian, ntk

LOOK = sys.modules["traceest_adapters.torch.per_example.verify"]
F64 = {"dtype": torch.float64}
SLOWER = pytest.mark.filterwarnings("ignore:.*more slowly:RuntimeWarning")


def x(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **F64)


def made(of: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return of().double()


def dense(model: nn.Module, *inputs: Any) -> torch.Tensor:
    """A plain backward pass a row."""
    params, state = list(model.parameters()), model(*inputs).reshape(-1)
    rows = [torch.autograd.grad(s, params, retain_graph=True, materialize_grads=True) for s in state]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows]).detach()


def check(K: Any, D: torch.Tensor, B: int) -> None:
    """All products and exact statistics, of some numbers of probes, are those of the dense Jacobian D."""
    G, J = D @ D.T, K.factor
    for k in (1, 2, 3, B):
        V = x(len(D), k, seed=k)
        blocks = torch.stack([d.T @ v for d, v in zip(D.split(len(D) // B), V.split(len(D) // B), strict=True)])
        np.testing.assert_allclose(J.rmatmat(V), D.T @ V, atol=1e-8)
        np.testing.assert_allclose(J.block_sqnorms(V), (blocks**2).sum(1), atol=1e-8)
        np.testing.assert_allclose(J.block_rmatmat(V), blocks.transpose(1, 2), atol=1e-8)
        gram = torch.einsum("bpi,cpj->bicj", blocks, blocks)
        np.testing.assert_allclose(J.sketch_gram(V), gram, atol=1e-8)
    if hasattr(J, "matmat"):
        np.testing.assert_allclose(J.matmat(x(D.shape[1], 3)), D @ x(D.shape[1], 3), atol=1e-8)
    np.testing.assert_allclose(float(te.exact(K)), float(G.trace()), rtol=1e-9)
    n_b = len(D) // B
    np.testing.assert_allclose(float(te.frobenius_norm(K, n_probes=n_b)), float(G.norm()), rtol=1e-9)


class Of(nn.Module):
    """Some layers, and what is done with them."""

    def __init__(self, f: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.f = f
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.f(self, *inputs)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def near_identity(a: torch.Tensor) -> torch.Tensor:
    return a.unflatten(-1, (3, 3)) + 3 * torch.eye(3, dtype=a.dtype)


BATCHED_WRONGLY: dict[str, Callable[[], nn.Module]] = {
    "prelu, one output": lambda: nn.Sequential(nn.Linear(4, 6), nn.PReLU(), nn.Linear(6, 1)),
    "prelu, as many outputs as examples": lambda: nn.Sequential(nn.Linear(4, 6), nn.PReLU(6), nn.Linear(6, 5)),
    "prelu of a weight that is made": lambda: Of(
        lambda m, a: m.out(F.prelu(m.a(a), m.slope.exp())), a=nn.Linear(4, 6), slope=parameter(6), out=nn.Linear(6, 1)
    ),
    "cdist": lambda: Of(lambda m, a: -torch.cdist(m.a(a), m.c), a=nn.Linear(4, 3), c=parameter(6, 3)),
    "det": lambda: Of(lambda m, a: torch.linalg.det(near_identity(m.a(a)))[:, None], a=nn.Linear(4, 9)),
    "slogdet": lambda: Of(
        lambda m, a: torch.linalg.slogdet(near_identity(m.a(a)) * m.s.exp())[1][:, None],
        a=nn.Linear(4, 9),
        s=parameter(3),
    ),
    "solve": lambda: Of(
        lambda m, a: torch.linalg.solve(near_identity(m.a(a)), m.b.expand(len(a), 3)), a=nn.Linear(4, 9), b=parameter(3)
    ),
    "logcumsumexp": lambda: Of(lambda m, a: torch.logcumsumexp(m.a(a) * m.s, -1), a=nn.Linear(4, 3), s=parameter(3)),
}


@SLOWER
@pytest.mark.parametrize("name", BATCHED_WRONGLY)
def test_what_pytorch_batches_wrongly_is_right(name: str) -> None:
    model, a = made(BATCHED_WRONGLY[name]), 2 * x(5, 4)
    check(ntk(model, a), dense(model, a), 5)


@SLOWER
@pytest.mark.parametrize("name", BATCHED_WRONGLY)
def test_the_first_product_of_several_probes_is_looked_at_together_with_the_layers(name: str) -> None:
    model, a = made(BATCHED_WRONGLY[name]), 2 * x(5, 4)
    D = dense(model, a)
    for k in (2, 3, 5):
        V = x(len(D), k)
        blocks = torch.stack([d.T @ v for d, v in zip(D.split(len(D) // 5), V.split(len(D) // 5), strict=True)])
        gram = torch.einsum("bpi,cpj->bicj", blocks, blocks)
        np.testing.assert_allclose(jacobian(model, a).block_sqnorms(V), (blocks**2).sum(1), atol=1e-8)
        np.testing.assert_allclose(jacobian(model, a).sketch_gram(V), gram, atol=1e-8)


def passes(monkeypatch: pytest.MonkeyPatch, model: nn.Module, a: torch.Tensor, **how: Any) -> tuple[int, int]:
    """Forward and backward passes that a kernel and its first product take."""
    forward, backward, run, once = [0], [0], type(model).__call__, torch.autograd.grad

    def counted(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        forward[0] += isinstance(self, type(model)) and len(list(self.parameters())) == len(list(model.parameters()))
        return run(self, *args, **kwargs)

    def differentiated(*args: Any, **kwargs: Any) -> Any:
        backward[0] += 1
        return once(*args, **kwargs)

    with monkeypatch.context() as m:
        m.setattr(nn.Module, "__call__", counted)
        m.setattr(torch.autograd, "grad", differentiated)
        te.rhutch(ntk(model, a, **how), 4, rng=0)
    return forward[0], backward[0]


@pytest.mark.parametrize(
    ("of", "shape"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 9)), (5, 4)),
        (lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 9)), (3, 2, 5, 5)),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), (3, 4, 8)),
    ],
)
def test_a_kernel_and_its_first_product_take_three_passes_each_way(
    monkeypatch: pytest.MonkeyPatch, of: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    """Forwards: the user's module, its copy that is recorded, mapped examples; backwards: the module, w, the probes."""
    forward, backward = passes(monkeypatch, made(of), x(*shape))
    assert forward <= 3
    assert backward <= 3


@SLOWER
@pytest.mark.parametrize("first", [torch.eye(30, **F64)[:, :3], torch.ones(30, 3, **F64), torch.zeros(30, 3, **F64)])
def test_cotangents_that_show_little_are_not_enough_to_look_with(first: torch.Tensor) -> None:
    """A route is not believed for what comes after unit vectors, equal ones, or none."""
    model, a = made(BATCHED_WRONGLY["cdist"]), 2 * x(5, 4)
    J, D, V = jacobian(model, a), dense(model, a), x(30, 3)
    for product in (J.rmatmat, J.block_sqnorms, J.block_rmatmat):
        product(first)
    np.testing.assert_allclose(J.rmatmat(V), D.T @ V, atol=1e-8)
    blocks = torch.stack([d.T @ v for d, v in zip(D.split(6), V.split(6), strict=True)])
    np.testing.assert_allclose(J.block_sqnorms(V), (blocks**2).sum(1), atol=1e-8)
    np.testing.assert_allclose(J.block_rmatmat(V), blocks.transpose(1, 2), atol=1e-8)


def believe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked at but ghost norms' rules."""
    monkeypatch.setattr(LOOK.Look, "due", lambda self, route: False)
    monkeypatch.setattr(LOOK.Look, "confirm", lambda self, names: None)


@SLOWER
@pytest.mark.parametrize("name", ["cdist", "det", "slogdet", "solve"])
def test_it_would_be_wrong_if_it_were_not_looked_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    believe(monkeypatch)
    model, a = made(BATCHED_WRONGLY[name]), 2 * x(5, 4)
    with pytest.raises(AssertionError):
        check(ntk(model, a), dense(model, a), 5)


def test_it_is_said_once_a_kernel() -> None:
    model, a = made(BATCHED_WRONGLY["cdist"]), x(5, 4)
    K = ntk(model, a)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for k in (3, 3, 4):
            K.factor.rmatmat(x(30, k))
    assert ["another result than a plain pass" in str(w.message) for w in caught] == [True]


# -- examples that influence each other ---------------------------------------------------------------------------
def through_the_mean(m: Any, a: torch.Tensor) -> torch.Tensor:
    z = m.a(a)
    return z + z.mean(0) - z.mean(0).detach()


def among_examples(m: Any, a: torch.Tensor) -> torch.Tensor:
    h = torch.tanh(m.a(a))
    return m.out(h + m.gate.tanh() * torch.softmax(m.q(h) @ h.T, -1) @ h)


COUPLED: dict[str, Callable[[], nn.Module]] = {
    "a mean in the derivative alone": lambda: Of(through_the_mean, a=nn.Linear(4, 3)),
    "attention behind a gate that is closed": lambda: Of(
        among_examples, a=nn.Linear(4, 6), q=nn.Linear(6, 6), out=nn.Linear(6, 2), gate=nn.Parameter(torch.zeros(()))
    ),
    "a mean whose weight is zero": lambda: Of(
        lambda m, a: m.a(a) + m.w * (m.a(a) - m.a(a).mean(0)), a=nn.Linear(4, 3), w=nn.Parameter(torch.zeros(()))
    ),
}


@SLOWER
@pytest.mark.parametrize("name", COUPLED)
def test_examples_that_are_coupled_in_the_derivative_are_right_or_refused(name: str) -> None:
    model, a = made(COUPLED[name]), x(5, 4)
    check(ntk(model, a), dense(model, a), 5)


def test_a_parameter_with_a_row_an_example_is_refused() -> None:
    W, a = x(3, 3, seed=1), x(4, 3)
    perturbed = lambda p, a: torch.tanh((a + p["q"]) @ W)  # noqa: E731
    with pytest.raises(ValueError, match="a parameter with a row for each example: given one example, it returns 4"):
        jacobian(perturbed, a, params={"q": torch.zeros(4, 3, **F64)})
    assert jacobian(perturbed, a, params={"q": torch.zeros(4, 3, **F64)}, batch_axis=None).shape == (12, 12)


# -- values that change ------------------------------------------------------------------------------------------
class TimeMajor(nn.Module):
    """A head that is zero at first, behind layers that see time before examples."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(5, 6), nn.Linear(6, 3)
        nn.init.zeros_(self.head.weight)

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        B, T, _ = a.shape
        return self.head(torch.tanh(self.a(a.transpose(0, 1).reshape(T * B, 5)))).reshape(T, B, 3).transpose(0, 1)


class Encoder(nn.Module):
    """As many tokens as examples, and a head that is zero at first."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)
        nn.init.zeros_(self.head.weight)

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(a))


@pytest.mark.parametrize(("of", "shape"), [(TimeMajor, (4, 6, 5)), (TimeMajor, (4, 4, 5)), (Encoder, (4, 4, 8))])
def test_a_head_that_was_zero_proves_nothing_for_later(of: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model, a = made(of), x(*shape)
    check(ntk(model, a), dense(model, a), 4)
    with torch.no_grad():
        model.head.weight.normal_()
    check(ntk(model, a), dense(model, a), 4)


def test_padding_taken_out_before_the_layers_is_found_batch_by_batch() -> None:
    class Unpad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.g = nn.Linear(5, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            out = x.new_zeros(*x.shape[:2], 2)
            out[mask] = self.g(torch.tanh(self.f(x[mask])))
            return out

    model, a = made(Unpad), x(4, 6, 5)
    mask = torch.arange(6)[None] < torch.tensor([4, 4, 2, 6])[:, None]
    G = dense(model, a, mask)
    G = G @ G.T
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*more slowly", RuntimeWarning)
        K = ntk(model, batches=[{"x": a[:2], "mask": mask[:2]}, {"x": a[2:], "mask": mask[2:]}])
        np.testing.assert_allclose(float(te.exact(K)), float(G.trace()), rtol=1e-9)
        np.testing.assert_allclose(float(te.frobenius_norm(K, n_probes=12)), float(G.norm()), rtol=1e-9)


def step(model: nn.Module, a: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    model(a).square().mean().backward()
    optimizer.step()


def data(model: nn.Module, a: torch.Tensor) -> None:
    for p in model.parameters():
        p.data = p.data * 2


CHANGES: dict[str, Callable[[nn.Module, torch.Tensor], Any]] = {
    "an optimiser's step": step,
    "values behind autograd's back": data,
    "values behind autograd's back, in place": lambda m, a: [p.data.mul_(2) for p in m.parameters()],
    "other parameters": lambda m, a: m.load_state_dict({k: 2 * v for k, v in m.state_dict().items()}),
    "the input": lambda m, a: a.mul_(3),
    "the mode": lambda m, a: m.train(),
    "buffers": lambda m, a: [b.fill_(2.0) for b in m.buffers() if b.is_floating_point()],
    "an attribute": lambda m, a: setattr(m, "scale", 5.0),
    "a layer": lambda m, a: setattr(m, "a", nn.Linear(4, 6, **F64)),
}


class WithAll(nn.Module):
    """A batch norm, an attribute that is used, and a weight whose gradients are formed example by example."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.out = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.w, self.scale = parameter(6), 2.0

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.norm(self.a(a)) * torch.sin(self.w))) * self.scale


@pytest.mark.parametrize("name", CHANGES)
def test_a_kernel_is_that_of_the_moment_when_it_was_made(name: str) -> None:
    model, a = made(WithAll).eval(), x(5, 4)
    K, D = ntk(model, a), dense(model, a)
    CHANGES[name](model, a)
    check(K, D, 5)


def test_kernels_before_and_after_a_step_can_be_compared() -> None:
    model, a = made(WithAll).eval(), x(5, 4)
    before, D = ntk(model, a), dense(model, a)
    step(model, a)
    E = dense(model, a)
    expected = float((D.T @ E).square().sum() / ((D @ D.T).norm() * (E @ E.T).norm()))
    assert expected < 0.9999
    np.testing.assert_allclose(float(te.alignment(before, ntk(model, a), n_probes=3)), expected, rtol=1e-9)


def test_a_value_that_a_function_closes_over_is_not_mixed_with_another() -> None:
    scale, a = [1.0], x(5, 4)
    p = {"w": x(4, 3), "s": x(3)}

    def f(p: Any, a: torch.Tensor) -> torch.Tensor:
        return torch.tanh(a @ p["w"]) * torch.sin(p["s"]) * scale[0]

    K = ntk(f, a, params=p)
    exact, norm = float(te.exact(K)), float(te.frobenius_norm(K, n_probes=3))
    scale[0] = 2.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*more slowly", RuntimeWarning)
        np.testing.assert_allclose(float(te.exact(K)), exact)
        np.testing.assert_allclose(float(te.frobenius_norm(K, n_probes=3)), norm)
    with pytest.raises(AttributeError, match="another state than when this operator was made"):
        K.factor.matmat(x(15, 2))
    np.testing.assert_allclose(float(te.exact(ntk(f, a, params=p))), 4 * exact)


# -- as its owner runs it --------------------------------------------------------------------------------------------
def residual(m: Any, a: torch.Tensor) -> torch.Tensor:
    """u″ + u of a network u."""
    a = a.detach().requires_grad_()
    u = m.u(a)
    (du,) = torch.autograd.grad(u.sum(), a, create_graph=True)
    (ddu,) = torch.autograd.grad(du.sum(), a, create_graph=True)
    return ddu + u


class AdjointOf(torch.autograd.Function):
    """Ten Euler steps of a field, differentiated by running them again, as an adjoint method does."""

    @staticmethod
    def steps(field: nn.Module, z: torch.Tensor) -> torch.Tensor:
        for _ in range(10):
            z = z + 0.1 * field(z)
        return z

    @staticmethod
    def forward(ctx: Any, field: nn.Module, z: torch.Tensor, *params: torch.Tensor) -> torch.Tensor:
        ctx.field = field
        ctx.save_for_backward(z)
        with torch.no_grad():
            return AdjointOf.steps(field, z)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        (z,) = ctx.saved_tensors
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            params = [p for p in ctx.field.parameters() if p.requires_grad]
            found = torch.autograd.grad(AdjointOf.steps(ctx.field, z), [z, *params], g)
        return None, *found


def by_adjoint(m: Any, a: torch.Tensor) -> torch.Tensor:
    return m.out(AdjointOf.apply(m.field, a, *m.field.parameters()))


def checkpointed(reentrant: bool) -> Callable[..., torch.Tensor]:
    def forward(m: Any, a: torch.Tensor) -> torch.Tensor:
        h = torch.utils.checkpoint.checkpoint(lambda h: torch.tanh(m.b(h)), m.a(a), use_reentrant=reentrant)
        return m.out(h)

    return forward


def layers() -> dict[str, nn.Module]:
    return {"a": nn.Linear(4, 6), "b": nn.Linear(6, 6), "out": nn.Linear(6, 2)}


OWN_WAYS: dict[str, Callable[[], nn.Module]] = {
    "derivatives inside of forward": lambda: Of(residual, u=nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))),
    "an adjoint method": lambda: Of(
        by_adjoint, field=nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)), out=nn.Linear(4, 2)
    ),
    "a checkpoint": lambda: Of(checkpointed(False), **layers()),
    "a reentrant checkpoint": lambda: Of(checkpointed(True), **layers()),
    "parallel data": lambda: nn.DataParallel(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))),
    "a weight norm of old": lambda: old_weight_norm(),
    "a parametrized weight": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
    "a list of layers that is none of PyTorch's": lambda: Of(
        lambda m, a: m.plain_list[1](torch.tanh(m.plain_list[0](a))), **listed()
    ),
    "a bound method kept as an attribute": lambda: Bound(),
    "traced by torch.fx": lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))),
}


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(nn.Linear(4, 3))


def listed() -> dict[str, Any]:
    parts = layers()
    return {**parts, "plain_list": [parts["a"], parts["out"]]}


class Bound(nn.Module):
    """Which of its methods to call is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)
        self.way = self.other

    def other(self, a: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.a(a))

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        return self.way(a)


@SLOWER
@pytest.mark.parametrize("name", OWN_WAYS)
def test_modules_run_as_their_owner_runs_them(name: str) -> None:
    model, a = made(OWN_WAYS[name]), x(5, 4)
    expected = dense(getattr(model, "module", model), a) if "reentrant" not in name else dense_by_backward(model, a)
    check(ntk(model, a), expected, 5)


def dense_by_backward(model: nn.Module, a: torch.Tensor) -> torch.Tensor:
    rows = []
    for i in range(model(a).numel()):
        model.zero_grad()
        model(a).reshape(-1)[i].backward()
        rows.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))
    model.zero_grad()
    return torch.stack(rows)


def test_distributed_data_parallel_runs_on_one_process(tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, a = made(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))), x(5, 4)
        wrapped = nn.parallel.DistributedDataParallel(model)
        check(ntk(wrapped, a), dense(model, a), 5)
        for _ in range(2):  # and can be trained as before
            wrapped(a).sum().backward()
    finally:
        torch.distributed.destroy_process_group()


class Keeps(nn.Module):
    """Keeps what it makes on itself, counts its calls in a buffer, and lists them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.w, self.seen = nn.Linear(4, 3), parameter(3), []
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        y = self.a(a) * torch.sin(self.w)
        self.aux = y.square().mean()
        self.seen.append(self.aux)
        return y


def test_the_module_is_left_as_it_was() -> None:
    model, a = made(Keeps), x(5, 4)
    with torch.no_grad():
        model(a)
    attributes, parameters = dict(model.__dict__), dict(model.named_parameters())
    hooks = {name: list(m._forward_hooks) for name, m in model.named_modules()}
    K = ntk(model, a)
    check(K, dense(copy.deepcopy(model), a), 5)
    assert model.__dict__.keys() == attributes.keys()
    assert all(model.__dict__[name] is value for name, value in attributes.items())
    assert float(model.calls) == 1
    assert len(model.seen) == 1
    assert all(p is parameters[name] and p.grad is None for name, p in model.named_parameters())
    assert {name: list(m._forward_hooks) for name, m in model.named_modules()} == hooks
    assert float(model.aux) == float(model.seen[0])


def test_what_hooks_keep_can_be_used() -> None:
    model, a, kept = made(WithAll).eval(), x(5, 4), {}
    model.a.register_forward_hook(lambda layer, inputs, output: kept.update(last=output))
    model.out.register_forward_hook(lambda layer, inputs, output: 3 * output)
    D = dense(model, a)
    check(ntk(model, a), D, 5)
    np.testing.assert_allclose(kept["last"].detach(), model.a(a).detach())


def test_inputs_that_a_model_overwrites_are_given_anew() -> None:
    model = made(lambda: Of(lambda m, a: m.out(a.mul_(2).sin_()) * torch.sin(m.w), out=nn.Linear(4, 3), w=parameter(3)))
    a = x(5, 4)
    before, D = a.clone(), dense(model, a.clone())
    K = ntk(model, a)
    assert torch.equal(a, before)
    for _ in range(2):
        check(K, D, 5)


@pytest.mark.filterwarnings("ignore:.*more slowly:RuntimeWarning")
def test_threads_may_share_a_kernel() -> None:
    model, a = made(WithAll).eval(), x(5, 4)
    K, D = ntk(model, a), dense(model, a)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda k: K.factor.block_rmatmat(x(15, k)), [1, 2, 3, 4] * 4):
            k = found.shape[1]
            blocks = [d.T @ v for d, v in zip(D.split(3), x(15, k).split(3), strict=True)]
            np.testing.assert_allclose(found, torch.stack(blocks).transpose(1, 2), atol=1e-10)


@pytest.mark.parametrize("fails", [1, 2, 3])
def test_the_module_is_left_as_it_was_whatever_is_raised(fails: int) -> None:
    runs = [0]

    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, a: torch.Tensor) -> torch.Tensor:
            runs[0] += 1
            self.note = runs[0]
            if runs[0] == fails:
                raise ArithmeticError("on purpose")
            return self.a(a)

    model = made(Fails)
    parameters = dict(model.named_parameters())
    fast = torch.backends.mha.get_fastpath_enabled()
    if fails < 3:
        with pytest.raises(ArithmeticError, match="on purpose"):
            ntk(model, x(5, 4))
    else:  # mapped over examples, which are taken one by one then
        ntk(model, x(5, 4))
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert not hasattr(model, "note")
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_threads_may_have_kernels_of_one_module() -> None:
    model, a = made(Encoder), x(4, 4, 8)
    with torch.no_grad():
        model.head.weight.normal_()
    parameters = {name: id(p) for name, p in model.named_parameters()}
    rank = lambda seed: float(te.effective_rank(ntk(model, a), n_probes=3, rng=seed))  # noqa: E731
    alone = [rank(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as threads:
        np.testing.assert_allclose(list(threads.map(rank, range(8))), alone, rtol=1e-12)
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    assert torch.backends.mha.get_fastpath_enabled()


def test_parameters_outside_of_the_module_are_told() -> None:
    inner = made(lambda: nn.Linear(4, 3))
    model = Of(lambda m, a: inner(a) + m.b, inner=inner, b=parameter(3).double())
    with pytest.raises(ValueError, match=r"'inner\.\w+' a copy of the model has another derivative.*closure"):
        te.exact(ntk(model, x(5, 4)))


def test_without_check_nothing_is_asked_of_the_module() -> None:
    model, a = made(Keeps), x(5, 4)
    K = ntk(model, a, check=False)
    assert float(model.calls) == 0
    assert not K.factor._look.due(("vjps", 2))
    np.testing.assert_allclose(float(te.exact(K)), float(dense(model, a).square().sum()))
