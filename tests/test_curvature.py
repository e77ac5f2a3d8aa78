"""Hessians, Gauss–Newton matrices and empirical Fishers of both frameworks against dense ones, and curvlinops."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from assertions import Counter, assert_close, assert_counts, assert_unbiased
from models import as_jax, jax_mlp, torch_mlp
from test_torch_adapter import Cube
from torch import nn
from torch.nn import functional as F

import traceest as te
from traceest.operators.factors import Weighted
from traceest_adapters import jax as in_jax
from traceest_adapters import torch as in_torch
from traceest_adapters._curvature import forms as _curvature

N, CLASSES = 9, 5
F64 = {"dtype": torch.float64}
RNG = np.random.default_rng(0)
X, REAL = RNG.standard_normal((N, 6)), RNG.standard_normal((N, CLASSES))
LABELS = RNG.integers(CLASSES, size=N)
WEIGHTS = torch.linspace(0.5, 2.0, CLASSES, **F64)
MLP = torch_mlp((6, 8, CLASSES))


def log_likelihood(z: Any, y: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], axis=1)


# a loss in PyTorch, in JAX (or None), its targets, its reduction, and whether G is a Gram operator
LOSSES: dict[str, tuple[Any, Any, np.ndarray, str, bool]] = {
    "cross-entropy": (nn.CrossEntropyLoss(), lambda z, y: log_likelihood(z, y).mean(), LABELS, "mean", True),
    "cross-entropy, summed": (
        nn.CrossEntropyLoss(reduction="sum"),
        lambda z, y: log_likelihood(z, y).sum(),
        LABELS,
        "sum",
        True,
    ),
    "cross-entropy, weighted": (nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1), None, LABELS, "mean", True),
    "squared error": (nn.MSELoss(), lambda z, t: jnp.mean((z - t) ** 2), REAL, "mean", True),
    "binary cross-entropy": (
        lambda z, t: F.binary_cross_entropy_with_logits(z, t.sigmoid(), reduction="sum"),
        lambda z, t: -(jax.nn.sigmoid(t) * z - jax.nn.softplus(z)).sum(),
        REAL,
        "sum",
        True,
    ),
    "a convex function of each example": (
        lambda z, t: (z - t).square().sum(1).square().mean(),
        lambda z, t: jnp.mean(jnp.sum((z - t) ** 2, 1) ** 2),
        REAL,
        "mean",
        True,
    ),
    "a loss that couples examples": (
        lambda z, t: (z - t).sum() ** 2 + z.pow(4).sum(),
        lambda z, t: jnp.sum(z - t) ** 2 + jnp.sum(z**4),
        REAL,
        "",
        False,
    ),
}
IN_JAX = ["cross-entropy", "squared error", "a convex function of each example", "a loss that couples examples"]
BOTH = [(name, "torch") for name in LOSSES] + [(name, "jax") for name in IN_JAX]
GRAMS = [(name, framework) for name, framework in BOTH if LOSSES[name][4]]


class Case:
    """Everything of one loss in one framework; matrices by PyTorch's dense derivatives, in the module's order."""

    def __init__(self, name: str, framework: str) -> None:
        self.loss, self.jax_loss, targets, self.reduction, _ = LOSSES[name]
        self.in_jax, self.name = framework == "jax", name
        self.module, self.x, self.t = MLP, torch.as_tensor(X), torch.as_tensor(targets)
        self.jax_args = as_jax(MLP), jnp.asarray(X), jnp.asarray(targets)

    def operator(self, of: str, **options: Any) -> Any:
        p, x, t = self.jax_args
        if not self.in_jax:
            return getattr(in_torch, of)(self.module, self.loss, self.x, self.t, **options)
        if of == "hessian":
            return in_jax.hessian(lambda p, x, t: self.jax_loss(jax_mlp(p, x), t), p, x, t, **options)
        return getattr(in_jax, of)(jax_mlp, self.jax_loss, p, x, t, **options)

    # -- dense, in PyTorch ------------------------------------------------------------------------------------
    @property
    def vector(self) -> torch.Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self._sorted().values()])

    def _sorted(self) -> dict[str, torch.Tensor]:
        named = dict(self.module.named_parameters())
        return {k: named[k] for k in (sorted(named) if self.in_jax else named)}  # JAX sorts dictionaries

    def outputs(self, v: torch.Tensor) -> torch.Tensor:
        parts = v.split([p.numel() for p in self._sorted().values()])
        params = {k: part.reshape(p.shape) for (k, p), part in zip(self._sorted().items(), parts, strict=True)}
        return torch.func.functional_call(self.module, params, (self.x,))

    def hessian(self) -> np.ndarray:
        return torch.autograd.functional.hessian(lambda v: self.loss(self.outputs(v), self.t), self.vector).numpy()

    def gauss_newton(self) -> np.ndarray:
        J = torch.autograd.functional.jacobian(self.outputs, self.vector).reshape(N * CLASSES, -1).numpy()
        z = self.outputs(self.vector).detach()
        H = torch.autograd.functional.hessian(lambda z: self.loss(z, self.t), z).reshape(N * CLASSES, -1).numpy()
        return J.T @ H @ J

    def empirical_fisher(self) -> np.ndarray:
        """Σ c_n g_n g_nᵀ from the loss's gradient r = c_n g_n by the outputs; a mean's shares are c_n = w_n/Σw."""
        J = torch.autograd.functional.jacobian(self.outputs, self.vector).numpy()  # (N, CLASSES, P)
        z = self.outputs(self.vector).detach().requires_grad_()
        (r,) = torch.autograd.grad(self.loss(z, self.t), z)
        g = np.einsum("nc,ncp->np", r.numpy(), J)
        weights = WEIGHTS[self.t].numpy() if "weighted" in self.name else np.ones(N)
        shares = weights / weights.sum() if self.reduction == "mean" else weights
        return (g.T / shares) @ g


def host(x: Any) -> np.ndarray:
    return np.asarray(x.detach() if isinstance(x, torch.Tensor) else x)


@pytest.mark.parametrize(("name", "framework"), BOTH)
@pytest.mark.parametrize("of", ["hessian", "gauss_newton"])
def test_the_operator_is_the_dense_matrix(of: str, name: str, framework: str) -> None:
    case = Case(name, framework)
    A, D = case.operator(of), getattr(case, of)()
    assert_close(host(te.to_dense(A)), D, rtol=1e-11)
    assert A.symmetric
    assert A.psd == (of == "gauss_newton")
    V = RNG.standard_normal((len(D), 11))
    given = jnp.asarray(V) if framework == "jax" else torch.as_tensor(V)
    assert_close(host(A.matmat(given)), D @ V, rtol=1e-10)
    assert_close(host(A.rmatmat(given)), D @ V, rtol=1e-10)


@pytest.mark.parametrize(("name", "framework"), GRAMS)
def test_statistics_of_the_gauss_newton_matrix_are_exact_by_its_rows(name: str, framework: str) -> None:
    case = Case(name, framework)
    G, D = case.operator("gauss_newton"), case.gauss_newton()
    trace = te.trace(G)
    assert float(trace) == pytest.approx(np.trace(D), rel=1e-11)
    assert (trace.n_matvecs, trace.n_rmatvecs) == (0, CLASSES)
    assert float(te.frobenius_norm(G, CLASSES)) == pytest.approx(np.linalg.norm(D), rel=1e-11)
    rank = te.effective_rank(G, method="exact")
    assert float(rank) == pytest.approx(np.trace(D) ** 2 / np.linalg.norm(D) ** 2, rel=1e-11)
    assert rank.n_rmatvecs == CLASSES


@pytest.mark.parametrize(("name", "framework"), GRAMS)
def test_the_empirical_fisher_is_exact_from_one_vjp(name: str, framework: str) -> None:
    case = Case(name, framework)
    E, D = case.operator("empirical_fisher", reduction=case.reduction), case.empirical_fisher()
    assert_close(host(te.to_dense(E)), D, rtol=1e-11)
    for e, truth in (
        (te.trace(E), np.trace(D)),
        (te.frobenius_norm(E, 1), np.linalg.norm(D)),
        (te.effective_rank(E, 1), np.trace(D) ** 2 / np.linalg.norm(D) ** 2),
    ):
        assert float(e) == pytest.approx(truth, rel=1e-11)
        assert (float(e.stderr), e.n_matvecs, e.n_rmatvecs) == (0.0, 0, 1)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.skipif(not importlib.util.find_spec("curvlinops"), reason="curvlinops is not installed")
@pytest.mark.parametrize("name", ["cross-entropy", "cross-entropy, summed", "squared error"])
def test_curvlinops_has_the_same_matrices(name: str) -> None:
    curvlinops = importlib.import_module("curvlinops")
    case, params = Case(name, "torch"), [p for p in MLP.parameters() if p.requires_grad]
    for of, peer in (
        ("hessian", curvlinops.HessianLinearOperator),
        ("gauss_newton", curvlinops.GGNLinearOperator),
    ):
        theirs = peer(case.module, case.loss, params, [(case.x, case.t)])
        ours = case.operator(of)
        eye = torch.eye(ours.shape[0], **F64)
        assert_close(host(ours.matmat(eye)), host(theirs @ eye), rtol=1e-10)
    if "cross" in name:
        theirs = curvlinops.EFLinearOperator(case.module, case.loss, params, [(case.x, case.t)])
        assert_close(
            host(te.to_dense(case.operator("empirical_fisher", reduction=case.reduction))), host(theirs @ eye), 1e-10
        )


def test_sampled_traces_are_unbiased_and_their_intervals_hold() -> None:
    case = Case("cross-entropy", "torch")
    H, G = case.operator("hessian"), case.operator("gauss_newton")
    D = case.gauss_newton()
    for estimator, truth in (
        (lambda seed: te.hutchinson(H, 8, rng=seed), np.trace(case.hessian())),
        (lambda seed: te.rhutch(G.dual, 3, rng=seed), np.trace(D)),
        (lambda seed: te.frobenius_norm(G, 4, rng=seed), np.linalg.norm(D)),
    ):
        estimates = [estimator(seed) for seed in range(100)]
        if estimates[0].method != "block U-statistic":  # whose square is unbiased
            assert_unbiased([float(e) for e in estimates], truth)
        held = [e.confidence_interval().low <= truth <= e.confidence_interval().high for e in estimates]
        assert np.mean(held) >= 0.87  # four standard errors below 95 %


def test_rows_of_examples_have_far_less_variance_than_products() -> None:
    """At 4 probes each: one vjp a probe by rows, one jvp and one vjp by products."""
    G = Case("cross-entropy", "torch").operator("gauss_newton")
    plain = te.Operator(G.shape, like=G, matmat=G.matmat, psd=True)
    by_rows = [float(te.rhutch(G.dual, 4, rng=seed)) for seed in range(40)]
    by_products = [float(te.hutchinson(plain, 4, rng=seed)) for seed in range(40)]
    assert np.var(by_rows) < np.var(by_products) / 4


def test_blocks_of_the_gauss_newton_matrix_come_from_one_summary() -> None:
    case = Case("cross-entropy", "torch")
    D, sizes = case.gauss_newton(), [p.numel() for p in MLP.parameters()]
    s = te.summary(case.operator("gauss_newton").dual, groups=True, n_probes=CLASSES)
    ends = np.cumsum([0, *sizes])
    for (name, part), a, b in zip(s.groups.items(), ends, ends[1:], strict=False):
        block = D[a:b, a:b]
        assert name in dict(MLP.named_parameters())
        assert float(part.trace) == pytest.approx(np.trace(block), rel=1e-11)
        assert float(part.frobenius_norm) == pytest.approx(np.linalg.norm(block), rel=1e-11)


def test_the_diagonal_is_there_in_the_order_of_the_parameters() -> None:
    case = Case("squared error", "torch")
    H = case.operator("hessian")
    assert_close(host(te.diagonal(H, method="exact").value), np.diag(case.hessian()), rtol=1e-10)
    assert H.parameters == tuple(dict(MLP.named_parameters()))


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_counts_are_what_was_spent(framework: str) -> None:
    G = Case("cross-entropy", framework).operator("gauss_newton")
    R = Counter(G.factor.H)
    assert_counts(te.rhutch(te.gram(R), 3, rng=0), R, budget=3)
    R = Counter(G.factor.H)
    assert_counts(te.frobenius_norm(te.gram(R), 4, rng=0), R, budget=4)


def test_hessians_of_jax_functions_run_under_jit_and_in_a_training_loop_compile_once() -> None:
    p, x, t = as_jax(MLP), jnp.asarray(X), jnp.asarray(LABELS)

    def loss(p: Any, x: Any, t: Any) -> Any:
        return log_likelihood(jax_mlp(p, x), t).mean()

    def trace(p: Any) -> Any:
        return te.hutchinson(in_jax.hessian(loss, p, x, t), 6, rng=0).value

    assert float(jax.jit(trace)(p)) == pytest.approx(float(trace(p)), rel=1e-10)
    compiled = sys.modules["traceest_adapters.jax.calculus"].linearise_gradient  # the package's attribute is the call
    before = compiled._cache_size()
    trace(jax.tree.map(lambda a: 0.9 * a, p))
    assert compiled._cache_size() == before


@pytest.mark.parametrize("of", ["gauss_newton", "empirical_fisher"])
def test_gauss_newton_and_fisher_run_under_jit(of: str) -> None:
    case = Case("cross-entropy", "jax")
    p, x, t = case.jax_args

    def norm(p: Any) -> Any:
        return te.frobenius_norm(getattr(in_jax, of)(jax_mlp, case.jax_loss, p, x, t), 3, rng=0).value

    got = float(jax.jit(norm)(p))
    G = case.operator(of)
    truth = float(te.frobenius_norm(G, method="exact"))
    assert got == pytest.approx(truth, rel=1e-9 if of == "empirical_fisher" else 0.5)


def test_tokens_with_the_classes_on_either_axis_are_softmax_rows() -> None:
    x, y = torch.as_tensor(RNG.standard_normal((4, 3, 6))), torch.tensor(RNG.integers(5, size=(4, 3)))
    y[0, 1] = -100  # ignored
    losses: dict[str, Callable[..., Any]] = {
        "last": lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten()),
        "second": lambda z, y: F.cross_entropy(z.mT, y),
    }
    models = {"last": nn.Linear(6, 5, **F64)}
    models["second"] = models["last"]
    traces = []
    for where, loss in losses.items():
        G = in_torch.gauss_newton(models[where], loss, x, y)
        R = G.factor.H
        assert isinstance(R, Weighted)
        traces.append(float(te.exact(G)))
    p = torch.softmax(models["last"](x).detach(), -1)
    kept = (y >= 0)[..., None]
    by_hand = (kept * p * (1 - p) * (x.square().sum(-1, keepdim=True) + 1)).sum() / kept.sum()
    np.testing.assert_allclose(traces, float(by_hand), rtol=1e-10)


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e12])
@pytest.mark.parametrize("name", ["cross-entropy", "squared error", "a convex function of each example"])
def test_float32_models_and_scaled_losses(name: str, scale: float) -> None:
    case = Case(name, "torch")
    module = torch_mlp((6, 8, CLASSES)).float()
    t = case.t if case.t.dtype == torch.int64 else case.t.float()
    G = in_torch.gauss_newton(module, lambda z, t: scale * case.loss(z, t), case.x.float(), t)
    assert G.dtype == torch.float32
    assert float(te.trace(G)) == pytest.approx(scale * np.trace(case.gauss_newton()), rel=1e-4)


def test_bfloat16_models_get_their_loss_in_float32() -> None:
    case = Case("cross-entropy", "torch")
    G = in_torch.gauss_newton(torch_mlp((6, 8, CLASSES)).bfloat16(), case.loss, case.x.bfloat16(), case.t, check=False)
    assert float(te.trace(G)) == pytest.approx(np.trace(case.gauss_newton()), rel=0.05)


def test_a_hessian_of_a_function_of_a_mapping() -> None:
    p = {"a": torch.tensor([1.0, 2.0], **F64), "b": torch.tensor(3.0, **F64)}
    H = in_torch.hessian(lambda p: (p["a"] ** 3).sum() * p["b"] + p["b"] ** 2, params=p)
    np.testing.assert_allclose(te.to_dense(H), [[18, 0, 3], [0, 36, 12], [3, 12, 2]])
    assert float(te.trace(in_torch.hessian(lambda p: p["a"].sum(), params=p))) == 0.0


BY_ROWS: dict[str, Callable[[Any], te.Estimate]] = {
    "exact": te.exact,
    "norm": lambda K: te.frobenius_norm(K, 3, rng=0),
    "rank": lambda K: te.effective_rank(0.5 * K, 3, rng=0),
    "exact norm": lambda K: te.frobenius_norm(K, method="exact"),
}


@pytest.mark.parametrize("statistic", BY_ROWS)
def test_the_other_side_of_a_jacobian_with_blocks_has_the_same_statistics(backend: Any, statistic: str) -> None:
    """JᴴJ by the rows of J, on every backend: the very numbers that JJᴴ gives."""
    f, J = BY_ROWS[statistic], RNG.standard_normal((60, 20))

    def of(J: Any) -> Any:
        return f(te.gram(te.aslinearoperator(J, n_blocks=12).H))

    got, expected = backend.call(of, J), f(te.gram(J, n_blocks=12))
    assert_close(backend.host(got.value), expected.value, rtol=1e-10)
    assert (got.n_matvecs, got.n_rmatvecs) == (expected.n_matvecs, expected.n_rmatvecs)


def test_the_dual_of_the_dual_is_the_kernel_itself() -> None:
    J = te.aslinearoperator(RNG.standard_normal((12, 8)), n_blocks=4)
    K = te.gram(J)
    assert K.dual.dual.factor is J
    assert_close(te.to_dense(K.dual), J.array.T @ J.array, rtol=1e-12)
    assert te.trace(K.dual).n_rmatvecs == 3
    np.testing.assert_allclose(float(te.hutchinson(K.dual, probes=np.eye(8))), np.sum(J.array**2) / 8)  # taken as given


# -- what can be wrong --------------------------------------------------------------------------------------------
class Reverse(nn.Module):
    """Differentiable once."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, CLASSES, **F64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Cube.apply(self.layer(x))


DROPOUT = nn.Sequential(nn.Linear(6, CLASSES, **F64), nn.Dropout())
CE, MSE = nn.CrossEntropyLoss(), nn.MSELoss()
BAD: dict[str, tuple[str, Any, Any, dict[str, Any], type[Exception], str]] = {
    "a loss of each example": (
        "hessian",
        MLP,
        nn.CrossEntropyLoss(reduction="none"),
        {},
        ValueError,
        "hessian.*one real number",
    ),
    "no scalar": ("gauss_newton", MLP, lambda z, y: z, {}, ValueError, "one real number"),
    "no loss": ("gauss_newton", MLP, "cross_entropy", {}, TypeError, "loss must be a function"),
    "frozen": ("hessian", torch_mlp((6, CLASSES)).requires_grad_(False), CE, {}, TypeError, "no trainable"),
    "dropout": ("hessian", DROPOUT, CE, {}, ValueError, r"model\.eval\(\)"),
    "dropout before the loss": ("gauss_newton", DROPOUT, CE, {}, ValueError, r"model\.eval\(\)"),
    "not convex": ("gauss_newton", MLP, lambda z, y: z.sin().sum(), {}, ValueError, "not convex"),
    "linear": ("gauss_newton", MLP, lambda z, y: z.sum(), {}, ValueError, "no curvature"),
    "the wrong reduction": (
        "empirical_fisher",
        MLP,
        nn.CrossEntropyLoss(reduction="sum"),
        {},
        ValueError,
        "reduction='sum'",
    ),
    "an unknown reduction": ("empirical_fisher", MLP, CE, {"reduction": "none"}, ValueError, "'mean' or 'sum'"),
    "no examples": ("empirical_fisher", MLP, CE, {"batch_axis": None}, ValueError, "names no examples"),
    "differentiable once": ("hessian", Reverse(), CE, {}, TypeError, "cannot be differentiated.*vjps alone"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_told(case: str) -> None:
    of, model, loss, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        getattr(in_torch, of)(model, loss, torch.as_tensor(X), torch.as_tensor(LABELS), **options)


def test_targets_on_another_device_are_told() -> None:
    for of in ("hessian", "gauss_newton"):
        with pytest.raises(TypeError, match="different devices"):
            getattr(in_torch, of)(MLP, CE, torch.as_tensor(X), torch.as_tensor(LABELS).to("meta"))


def test_what_is_wrong_is_told_in_jax() -> None:
    p, x, y = as_jax(MLP), jnp.asarray(X), jnp.asarray(LABELS)
    with pytest.raises(ValueError, match="one real number"):
        in_jax.hessian(jax_mlp, p, x)
    with pytest.raises(ValueError, match="one real number"):
        in_jax.gauss_newton(jax_mlp, log_likelihood, p, x, y)
    with pytest.raises(ValueError, match="not convex"):
        in_jax.gauss_newton(jax_mlp, lambda z: jnp.sin(z).sum(), p, x)
    with pytest.raises(ValueError, match="reduction='sum'"):
        in_jax.empirical_fisher(jax_mlp, lambda z, y: log_likelihood(z, y).sum(), p, x, y)
    with pytest.raises(TypeError, match="no trainable parameter"):
        in_jax.hessian(lambda p: 1.0, {"n": jnp.arange(3)})


@pytest.mark.filterwarnings("ignore:this model cannot be mapped")
def test_gauss_newton_by_vjps_alone_of_a_model_that_is_differentiable_once() -> None:
    module = Reverse()
    G = in_torch.gauss_newton(module, CE, torch.as_tensor(X), torch.as_tensor(LABELS))
    assert not hasattr(G, "matmat")
    z = module(torch.as_tensor(X)).detach()
    p, slope = torch.softmax(z, -1), 3 * module.layer(torch.as_tensor(X)).detach() ** 2
    by_hand = (p * (1 - p) * slope**2 * (torch.as_tensor(X).square().sum(1, keepdim=True) + 1)).sum() / N
    assert float(te.trace(G)) == pytest.approx(float(by_hand), rel=1e-10)
    assert te.effective_rank(G, 3, rng=0).n_matvecs == 0


# -- the tests bite -----------------------------------------------------------------------------------------------
def test_a_dropped_rank_one_part_of_the_softmax_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = _curvature._softmax

    def wrong(xp: Any, z: Any, *args: Any) -> Any:
        form = honest(xp, z, *args)
        root = xp.reshape(xp.sqrt(form.product(xp.ones_like(args[1])[:, None]) ** 0), (-1, 1))
        return form._replace(times=lambda V: root * V, adjoint=lambda V: root * V)

    monkeypatch.setattr(_curvature, "_softmax", wrong)
    with pytest.raises(AssertionError):
        test_the_operator_is_the_dense_matrix("gauss_newton", "cross-entropy", "torch")


def test_a_square_root_taken_twice_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = _curvature._sqrt
    monkeypatch.setattr(_curvature, "_sqrt", lambda xp, x: honest(xp, honest(xp, x)))
    for name in ("squared error", "a convex function of each example"):
        with pytest.raises(AssertionError):
            test_the_operator_is_the_dense_matrix("gauss_newton", name, "torch")


def test_a_forgotten_number_of_examples_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = _curvature.empirical_fisher
    monkeypatch.setattr(_curvature, "empirical_fisher", lambda J, r, shares, weight: honest(J, r, 1.0, weight))
    with pytest.raises(AssertionError):
        test_the_empirical_fisher_is_exact_from_one_vjp("cross-entropy", "jax")


def test_a_form_that_is_believed_unseen_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the first candidate taken without comparison, every loss would be one of each entry by itself."""
    honest = _curvature._diagonal
    monkeypatch.setattr(_curvature, "_diagonal", lambda xp, d: honest(xp, d)._replace(product=_Agrees()))
    with pytest.raises((AssertionError, ValueError)):
        test_the_operator_is_the_dense_matrix("gauss_newton", "a convex function of each example", "torch")


class _Agrees:
    def __call__(self, V: Any) -> Any:
        return _Equal()


class _Equal:
    def __sub__(self, other: Any) -> Any:
        return 0 * other


def test_blocks_of_other_rows_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dual of another number of rows an example would make the exact trace wrong."""
    monkeypatch.setattr(sys.modules["traceest.trace"], "shorter", lambda K: 2 * K.dual)
    with pytest.raises(AssertionError):
        test_statistics_of_the_gauss_newton_matrix_are_exact_by_its_rows("squared error", "torch")
