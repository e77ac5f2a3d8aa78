"""The same kernels on a GPU, where recurrent layers and attention run on other code."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree
from torch_zoo import MODELS, case, truth, x

import traceest as te
from traceest_adapters.torch import jacobian

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.filterwarnings("ignore:this model cannot be mapped"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
]


def on_gpu(name: str, dtype: torch.dtype = torch.float64) -> Any:
    of = case(name)

    def move(value: Any) -> Any:
        return value.to("cuda", dtype if value.is_floating_point() else value.dtype)

    inputs, options = pytree.tree_map_only(torch.Tensor, move, (of.inputs, of.options))
    return jacobian(copy.deepcopy(of.model).to("cuda", dtype), *inputs, **options)


def host(X: torch.Tensor) -> np.ndarray:
    assert X.device.type == "cuda"
    return X.cpu().numpy()


@pytest.mark.parametrize("name", MODELS)
def test_products_are_those_of_the_host(name: str) -> None:
    J, (D, _, _) = on_gpu(name), truth(name)
    V = x(len(D), 3)
    U = V.cuda()
    g = np.einsum("bnp,bnk->bkp", D.reshape(J.n_blocks, -1, D.shape[1]), V.numpy().reshape(J.n_blocks, -1, 3))
    scale = np.abs(D).max() ** 2 * len(D)
    np.testing.assert_allclose(host(J.rmatmat(U)), D.T @ V.numpy(), atol=1e-9 * scale)
    np.testing.assert_allclose(host(J.block_sqnorms(U)), (g**2).sum(-1), atol=1e-9 * scale)
    np.testing.assert_allclose(host(J.sketch_gram(U)), np.einsum("bip,cjp->bicj", g, g), atol=1e-9 * scale)
    if case(name).forward:  # also of nn.GRU, whose cuDNN form has no second derivative
        np.testing.assert_allclose(host(J.gram_matmat(U)), D @ (D.T @ V.numpy()), atol=1e-9 * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gru, time-major, two layers", "transformer encoder, masked", "gpt-2"])
def test_estimates_are_those_of_the_dense_kernel(name: str, dtype: torch.dtype) -> None:
    D = truth(name)[0]
    K, exact = D @ D.T, te.gram(on_gpu(name, dtype))
    generator = torch.Generator("cuda").manual_seed(0)
    for e, expected in (
        (te.rhutch(exact, 4, rng=generator), np.trace(K)),
        (te.frobenius_norm(exact, 4, rng=0), np.linalg.norm(K)),
        (te.hutchpp(exact, 12, rng=0), np.trace(K)),
        (te.effective_rank(exact, 4, rng=0), np.trace(K) ** 2 / np.linalg.norm(K) ** 2),
    ):
        assert e.value.device.type == "cuda"
        assert abs(float(e) - expected) <= 4 * float(e.stderr) + 4 * torch.finfo(dtype).eps * expected


def test_devices_are_not_mixed() -> None:
    with pytest.raises(TypeError, match="cpu, cuda"):
        jacobian(torch.nn.Linear(3, 2).cuda(), torch.ones(4, 3))
