"""What is wrong is called by its name: arguments in another order or misspelt, pairs of a loader, foreign arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import torch
from jax.experimental import sparse
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import traceest as te
from traceest_adapters import jax as in_jax
from traceest_adapters import torch as in_torch

RNG = np.random.default_rng(0)
NX, NY, NW = RNG.standard_normal((6, 4)), RNG.standard_normal((6, 3)), RNG.standard_normal((4, 3))
X, Y, M = torch.as_tensor(NX), torch.as_tensor(NY), nn.Linear(4, 3, dtype=torch.float64)
JX, JY, JW = map(jnp.asarray, (NX, NY, NW))
MASK, JMASK = torch.tensor([1.0, 0, 1, 1, 0, 1]), jnp.asarray([1.0, 0, 1, 1, 0, 1])
MSE = nn.MSELoss()
LABELS = torch.zeros(6, dtype=torch.int64)


def apply(w: Any, x: Any) -> Any:
    return jnp.tanh(x @ w)


def mse(z: Any, y: Any) -> Any:
    return jnp.mean((z - y) ** 2)


# -- one promise for the Hessian of both --------------------------------------------------------------------------
def test_the_hessian_of_a_model_and_a_loss_is_asked_for_alike_in_both_frameworks() -> None:
    def of(w: Any) -> Any:
        return mse(apply(w, JX), JY)

    D = jax.hessian(of)(JW).reshape(12, 12)
    truth = float(jnp.trace(D))
    assert float(te.trace(in_jax.hessian(apply, mse, JW, JX, JY))) == pytest.approx(truth, rel=1e-12)
    assert float(te.trace(in_jax.hessian(of, JW))) == pytest.approx(truth, rel=1e-12)
    assert float(te.trace(in_jax.hessian(lambda w, x, y: mse(apply(w, x), y), JW, JX, JY))) == pytest.approx(truth)
    assert float(te.trace(in_jax.hessian(apply, lambda z: mse(z, JY), JW, JX))) == pytest.approx(truth, rel=1e-12)
    both = in_jax.hessian(lambda w, x, s: s * apply(w, x), mse, JW, (JX, 1.0), JY)
    np.testing.assert_allclose(te.to_dense(both), D, rtol=1e-10, atol=1e-14)
    named = in_jax.hessian(lambda p, x: {"z": x @ p["a"] @ p["b"]}, mse, {"a": JW, "b": jnp.eye(3)}, JX, JY,
                           wrt="a", output="z")  # fmt: skip
    assert named.parameters == ("a",)

    class Tanh(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.as_tensor(NW))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x @ self.w)

    assert float(te.trace(in_torch.hessian(Tanh(), MSE, X, Y))) == pytest.approx(truth, rel=1e-12)


def test_a_module_that_can_be_called_is_no_loss() -> None:
    import equinox as eqx

    module = eqx.nn.Linear(4, 3, key=jax.random.key(0))
    H = in_jax.hessian(lambda m, x, y: mse(jax.vmap(m)(x), y), module, JX, JY)
    assert float(te.trace(H)) == pytest.approx(float(2 / 18 * 3 * (jnp.sum(JX**2) + 6)), rel=1e-6)
    H = in_jax.hessian(lambda m, x: jax.vmap(m)(x), mse, module, JX, JY)
    assert float(te.trace(H)) == pytest.approx(float(2 / 18 * 3 * (jnp.sum(JX**2) + 6)), rel=1e-6)


ORDER = r"\(fn, loss, params, inputs, targets\)"
MIXED: dict[str, tuple[Callable[[], Any], str]] = {
    "JAX, as in PyTorch": (lambda: in_jax.hessian(apply, mse, JX, JY), ORDER),
    "JAX, as in PyTorch, gauss_newton": (lambda: in_jax.gauss_newton(apply, mse, JX, JY), ORDER),
    "JAX, parameters before the loss": (lambda: in_jax.hessian(apply, JW, mse, JX, JY), ORDER),
    "JAX, the same, gauss_newton": (lambda: in_jax.gauss_newton(apply, JW, mse, JX, JY), ORDER),
    "JAX, no parameters": (lambda: in_jax.hessian(apply, mse), ORDER),
    "JAX, nothing": (lambda: in_jax.hessian(apply), ORDER),
    "JAX, several inputs": (lambda: in_jax.hessian(apply, mse, JW, JX, JX, JY), "one tuple"),
    "PyTorch, as in JAX": (lambda: in_torch.hessian(M, MSE, {}, X, Y), "params= if the model is a function"),
    "PyTorch, the same, gauss_newton": (lambda: in_torch.gauss_newton(M, MSE, {}, X, Y), "params= if the model"),
    "PyTorch, the same, empirical_fisher": (lambda: in_torch.empirical_fisher(M, MSE, {}, X, Y), "params= if the"),
    "PyTorch, inputs first": (lambda: in_torch.hessian(M, X, MSE, Y), r"hessian\(model, loss, inputs, targets\)"),
    "PyTorch, no loss": (lambda: in_torch.gauss_newton(M, X, Y), r"gauss_newton\(model, loss, inputs, targets\)"),
    "PyTorch, a function alone": (lambda: in_torch.ntk(lambda p, x: x, X), r"jacobian\(fn, \*inputs, params="),
    "JAX, no inputs": (lambda: in_jax.ntk(apply, JX), r"jacobian\(fn, params, \*inputs\)"),
}


@pytest.mark.parametrize("case", MIXED)
def test_arguments_in_another_order_are_told_the_right_one(case: str) -> None:
    call, message = MIXED[case]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


MISSPELT: dict[str, tuple[Callable[[], Any], str]] = {
    "torch ntk": (lambda: in_torch.ntk(M, X, chunk_sise=3), "ntk: .*chunk_sise=.*did you mean chunk_size="),
    "torch jacobian": (lambda: in_torch.jacobian(M, X, differentable=True), "did you mean differentiable="),
    "torch ntk, another library's word": (lambda: in_torch.ntk(M, X, argnums=0), "did you mean wrt="),
    "torch hessian": (lambda: in_torch.hessian(M, MSE, X, target=Y), "did you mean targets="),
    "torch gauss_newton": (lambda: in_torch.gauss_newton(M, MSE, X, Y, batchaxis=0), "did you mean batch_axis="),
    "torch empirical_fisher": (lambda: in_torch.empirical_fisher(M, MSE, X, Y, reducton="sum"), "did you mean reduct"),
    "torch input by name": (lambda: in_torch.ntk(M, pixels=X), "no option pixels=.*kwargs="),
    "jax ntk": (lambda: in_jax.ntk(apply, JW, JX, in_axis=0), "did you mean in_axes="),
    "jax jacobian": (lambda: in_jax.jacobian(apply, JW, JX, batch_dim=0), "did you mean batch_axis="),
    "jax hessian": (lambda: in_jax.hessian(apply, mse, JW, JX, JY, chunksize=2), "did you mean chunk_size="),
    "jax gauss_newton": (lambda: in_jax.gauss_newton(apply, mse, JW, JX, JY, wtr="a"), "did you mean wrt="),
    "jax empirical_fisher": (lambda: in_jax.empirical_fisher(apply, mse, JW, JX, JY, chek=False), "mean check="),
}


@pytest.mark.parametrize("case", MISSPELT)
def test_a_misspelt_option_is_told_what_was_meant(case: str) -> None:
    call, message = MISSPELT[case]
    with pytest.raises(TypeError, match=message):
        call()


SELECTIONS: dict[str, tuple[Callable[[], Any], str]] = {
    "tensors": (lambda: in_torch.ntk(M, X, wrt=M.parameters()), "got Parameter; names are the dotted paths"),
    "names for values": (lambda: in_torch.ntk(M, X, params=["weight"]), "from names to tensors, got a list.*wrt="),
    "a number": (lambda: in_torch.ntk(M, X, wrt=3), "expected names, globs .* got 3"),
    "a name that is not there": (
        lambda: in_torch.ntk(nn.Sequential(M), X, wrt="0.wieght"), r"did you mean '0.weight'.*are 0.weight, 0.bias"),
    "a glob that fits nothing": (lambda: in_jax.ntk(apply, {"a": JW}, JX, wrt="b*"), r"'b\*' fits no parameter"),
    "another shape": (
        lambda: in_torch.ntk(M, X, params={"weight": torch.ones(2, 2)}), r"\(2, 2\), in the module it has \(3, 4\)"),
    "a predicate of the name": (lambda: in_torch.ntk(M, X, wrt=lambda n: True), "called with a name and an array"),
    "JAX, a predicate of the name": (lambda: in_jax.ntk(apply, JW, JX, wrt=lambda n: True), "called with a name and"),
    "JAX, a number": (lambda: in_jax.ntk(apply, JW, JX, wrt=0), "wrt: expected names, globs.*got 0"),
    "JAX, no key of the output": (lambda: in_jax.ntk(apply, JW, JX, output="logits"), "output='logits': there is no"),
    "JAX, a key of a pair": (lambda: in_jax.ntk(apply, JW, batches=PAIRS, input="x"), "input='x'.*batch, a tuple of 2"),
    "JAX, chunks of none": (lambda: in_jax.ntk(apply, JW, JX, chunk_size=0), "chunk_size must be at least 1"),
    "JAX, a name of an axis": (lambda: in_jax.ntk(apply, JW, JX, batch_axis="0"), "batch_axis must be an integer"),
}  # fmt: skip


@pytest.mark.parametrize("case", SELECTIONS)
def test_a_selection_that_is_none_is_told_what_can_be_given(case: str) -> None:
    call, message = SELECTIONS[case]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_a_loss_that_does_not_depend_on_the_outputs_or_has_no_second_derivative_is_told() -> None:
    for of in (in_torch.gauss_newton, in_torch.empirical_fisher):
        with pytest.raises(ValueError, match=f"{of.__name__}: the loss does not depend on the model's outputs"):
            of(M, lambda z, y: MSE(z.detach(), y), X, Y)
    with pytest.raises(TypeError, match=r"gauss_newton: the loss cannot be differentiated twice.*empirical_fisher"):
        in_torch.gauss_newton(M, lambda z, y: torch.cdist(z, y).sum(), X, Y)
    with pytest.raises(TypeError, match=r"differentiable= is for jacobian and ntk; .*traceest_adapters.jax"):
        in_torch.gauss_newton(M, MSE, X, Y, differentiable=True)


# -- batches ----------------------------------------------------------------------------------------------------
PAIRS = [(NX[:3], np.zeros(3, int)), (NX[3:], np.zeros(3, int))]
OF_PAIRS: dict[str, Callable[..., Any]] = {
    "a loader": lambda **o: in_torch.ntk(M, batches=DataLoader(TensorDataset(X, LABELS), batch_size=3), **o),
    "a list": lambda **o: in_torch.ntk(M, batches=[(X[:3], LABELS[:3]), (X[3:], LABELS[3:])], **o),
    "lists, as loaders collate": lambda **o: in_torch.ntk(M, batches=[[X[:3], Y[:3]], [X[3:], Y[3:]]], **o),
    "a sequence model": lambda **o: in_torch.ntk(
        nn.RNN(4, 2, dtype=torch.float64), batches=[(X[None, :3], LABELS[:3])] * 2, batch_axis=1, output=0, **o
    ),
    "in JAX": lambda **o: in_jax.ntk(apply, JW, batches=PAIRS, **o),
}


@pytest.mark.parametrize("case", OF_PAIRS)
def test_pairs_of_input_and_target_are_told_to_pick_the_input(case: str) -> None:
    with pytest.raises(TypeError, match=r"a tuple of 2, all given to the model.*give input=0"):
        OF_PAIRS[case]()
    assert OF_PAIRS[case](input=0).shape[0] > 0


def test_batches_of_several_inputs_keep_their_own_errors() -> None:
    both = [(X[:3], Y[:3]), (X[3:], Y[3:])]
    assert in_torch.ntk(nn.Bilinear(4, 3, 2, dtype=torch.float64), batches=both).shape == (12, 12)
    with pytest.raises(ValueError, match="there is no 'nowhere'"):
        in_torch.ntk(nn.Bilinear(4, 3, 2, dtype=torch.float64), batches=both, output="nowhere")


# -- arrays of other kinds ------------------------------------------------------------------------------------------
MASKED = np.ma.masked_array(NX, mask=NX > 1)
FOREIGN: dict[str, tuple[Callable[[], Any], str]] = {
    "JAX, a PyTorch input": (lambda: in_jax.ntk(apply, JW, X), "an input is a PyTorch tensor.*jnp.asarray"),
    "JAX, PyTorch parameters": (lambda: in_jax.ntk(apply, {"w": torch.ones(4, 3)}, JX), "leaf of params is a PyTorch"),
    "JAX, a PyTorch module": (lambda: in_jax.ntk(M, JW, JX), "fn is a PyTorch module.*traceest_adapters.torch"),
    "JAX, a masked array": (lambda: in_jax.ntk(apply, JW, MASKED), "an input is a masked array"),
    "JAX, a SciPy matrix": (lambda: in_jax.ntk(apply, JW, scipy.sparse.csr_array(NX)), r"sparse matrix.*toarray\(\)"),
    "JAX, a BCOO": (lambda: in_jax.ntk(apply, JW, sparse.BCOO.fromdense(JX)), r"an input is sparse.*todense\(\)"),
    "JAX, no function": (lambda: in_jax.ntk(None, JW, JX), "fn must be a function.*NoneType"),
    "JAX, a class": (lambda: in_jax.ntk(nn.Linear, JW, JX), "got the class Linear"),
    "JAX, no examples": (lambda: in_jax.ntk(apply, JW, JX[:0]), r"the batch is empty.*\(0, 4\)"),
    "JAX, an empty state": (lambda: in_jax.ntk(lambda w, x: apply(w, x)[:, :0], JW, JX), "the state is empty"),
    "PyTorch, a JAX input": (lambda: in_torch.ntk(M, JX), "an input is a JAX array.*torch.as_tensor"),
    "PyTorch, JAX parameters": (
        lambda: in_torch.ntk(lambda p, x: x @ p["w"], X, params={"w": JW}), "parameter 'w' is a JAX array"),
    "PyTorch, a masked array": (lambda: in_torch.ntk(M, MASKED), "an input is a masked array"),
    "PyTorch, a SciPy matrix": (lambda: in_torch.ntk(M, scipy.sparse.csr_array(NX)), r"sparse matrix.*toarray\(\)"),
    "PyTorch, COO": (lambda: in_torch.ntk(M, X.to_sparse()), r"an input is sparse.*to_dense\(\)"),
    "PyTorch, CSR": (lambda: in_torch.ntk(M, X.to_sparse_csr()), r"an input is sparse.*to_dense\(\)"),
    "PyTorch, no examples": (lambda: in_torch.ntk(M, X[:0]), "the state is empty"),
    "PyTorch, no function": (lambda: in_torch.ntk(None, X), "expected an nn.Module or a function, got a NoneType"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state:UserWarning")
@pytest.mark.parametrize("case", FOREIGN)
def test_arrays_of_other_kinds_are_told_what_to_make_of_them(case: str) -> None:
    call, message = FOREIGN[case]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_sparse_arrays_that_all_examples_share_are_taken() -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = M

        def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
            return torch.sparse.mm(edges, self.layer(x))

    edges = torch.eye(6, dtype=torch.float64).to_sparse()
    K = in_torch.ntk(Graph(), X, kwargs={"edges": edges}, batch_axis=None)
    assert float(te.exact(K)) == pytest.approx(float(te.exact(in_torch.ntk(M, X))), rel=1e-10)
    S = sparse.BCOO.fromdense(jnp.eye(3))
    K = in_jax.ntk(lambda w, x, s: (s @ apply(w, x).T).T, JW, JX, S, in_axes=(0, None))
    assert float(te.exact(K)) == pytest.approx(float(te.exact(in_jax.ntk(apply, JW, JX))), rel=1e-10)


# -- examples that are not told apart ---------------------------------------------------------------------------------
def similarity(w: Any, x: Any) -> Any:
    return apply(w, x) @ apply(w, x).T


class Similarity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = M

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) @ self.layer(x).T


class OneAtLeast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = M

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) < 2:
            raise RuntimeError("two at the least")
        return self.layer(x)


REASONS: dict[str, tuple[Callable[[], Any], str]] = {
    "PyTorch, every example with every other": (
        lambda: in_torch.ntk(Similarity(), X), "6 entries in the batch of 6, and 1 by itself.*output="),
    "JAX, every example with every other": (
        lambda: in_jax.ntk(similarity, JW, JX), "6 entries in the batch of 6, and 1 by itself.*output="),
    "PyTorch, a mask in output=": (
        lambda: in_torch.ntk(M, X, output=lambda z: z * MASK[:, None]),
        r"closes over.*returns 6 of shape \(6, 3\).*kwargs="),
    "JAX, a mask in output=": (
        lambda: in_jax.ntk(apply, JW, JX, output=lambda z: z * JMASK[:, None]), "has 6 rows.*closes over"),
    "PyTorch, a mask that does not broadcast": (
        lambda: in_torch.ntk(M, X, output=lambda z: torch.addcmul(torch.zeros(6, 3), z, MASK[:, None])[:, :2]),
        "closes over"),
    "JAX, a bias of the batch": (
        lambda: in_jax.ntk(lambda w, x: jnp.stack([apply(w, x), JY]).sum(0), JW, JX), "closes over|one example by"),
    "PyTorch, never alone": (lambda: in_torch.ntk(OneAtLeast(), X), "cannot be run on one example by itself.*two at"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:this model cannot be mapped:RuntimeWarning")
@pytest.mark.parametrize("case", REASONS)
def test_examples_that_are_not_told_apart_have_their_reason(case: str) -> None:
    call, message = REASONS[case]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "not independent" not in str(caught.value)


# -- losses without numbers ---------------------------------------------------------------------------------------
def test_a_loss_that_is_not_a_number_is_told() -> None:
    nan = lambda z, y: (z - y).sum() * float("nan")  # noqa: E731
    for of in (in_torch.hessian, in_torch.gauss_newton, in_torch.empirical_fisher):
        with pytest.raises(ValueError, match="NaN or infinit"):
            of(M, nan, X, Y)
    for of in (in_jax.gauss_newton, in_jax.empirical_fisher):
        with pytest.raises(ValueError, match=r"NaN or infinit"):
            of(apply, nan, JW, JX, JY)
    with pytest.raises(ValueError, match="NaN or infinit"):
        te.trace(in_jax.hessian(apply, lambda z, y: jnp.sqrt(jnp.sum((z - z) ** 2)), JW, JX, JY))


def test_models_of_half_precision_have_kernels() -> None:
    K = in_torch.ntk(nn.Linear(4, 3).bfloat16(), X.bfloat16())
    assert K.dtype == torch.float32
    assert float(te.exact(K)) == pytest.approx(float(3 * (X.square().sum() + 6)), rel=1e-2)
    K = in_jax.ntk(lambda w, x: x @ w, JW.astype(jnp.bfloat16), JX.astype(jnp.bfloat16))
    assert float(te.exact(K)) == pytest.approx(float(3 * jnp.sum(JX**2)), rel=1e-2)
