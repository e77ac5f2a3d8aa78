"""Hugging Face's models: by field and by module, with and without masks, whichever attention they use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from assertions import assert_close
from torch_zoo import MASK, WORDS, Case, bert, gpt2, llama, vit, x

import traceest as te
from traceest_adapters.torch import jacobian

pytestmark = pytest.mark.filterwarnings("ignore:this model cannot be mapped")
ATTENTION = ["sdpa", "eager"]


def hidden(case: Case, index: int) -> Any:
    """The state by Hugging Face's own list of hidden states."""
    return lambda m, a: m(a, output_hidden_states=True, **case.options.get("kwargs", {})).hidden_states[index]


def gpt2_masked(attention: str) -> Case:
    case = gpt2(attention)
    case.options["kwargs"] = {"attention_mask": MASK, "use_cache": False}
    case.state = lambda m, a: m(a, attention_mask=MASK).logits
    return case


def check(case: Case, rtol: float, **options: Any) -> None:
    J, D = case.jacobian(**options), case.dense()
    assert J.shape == D.shape
    V = x(len(D), 2)
    g = np.einsum("bnp,bnk->bkp", D.reshape(J.n_blocks, -1, D.shape[1]), V.numpy().reshape(J.n_blocks, -1, 2))
    assert_close(J.matmat(J.rmatmat(V)), D @ (D.T @ V.numpy()), rtol)
    assert_close(J.block_rmatmat(V), g, rtol)
    assert_close(J.block_sqnorms(V), (g**2).sum(-1), rtol)
    assert_close(J.sketch_gram(V), np.einsum("bip,cjp->bicj", g, g), rtol)
    assert not J._ghost.rest


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("model", [gpt2, gpt2_masked, llama, bert, vit])
def test_a_field_is_a_state(model: Any, attention: str) -> None:
    case = model(attention)
    check(case, case.rounding if attention == "sdpa" else max(case.rounding, 1e-6))  # eager: a softmax in float32


@pytest.mark.parametrize(
    ("model", "name"), [(gpt2_masked, "transformer.h.0"), (bert, "encoder.layer.0"), (vit, "layers.0")]
)
def test_a_layer_gives_its_hidden_state(model: Any, name: str) -> None:
    case = model("sdpa")
    case.state = hidden(case, 1)
    check(case, 1e-10, output=name)


def test_a_tokenisers_batch_is_one_argument() -> None:
    from transformers import BatchEncoding

    case = bert("sdpa")
    J = jacobian(case.model, kwargs=BatchEncoding({"input_ids": WORDS, "attention_mask": MASK}), output="pooler_output")
    params = list(case.model.parameters())
    state = case.model(WORDS, attention_mask=MASK).pooler_output
    v = x(*state.shape)
    grads = torch.autograd.grad(state, params, v, materialize_grads=True)
    assert_close(J.rmatmat(v.reshape(-1, 1))[:, 0], torch.cat([g.reshape(-1) for g in grads]), 1e-10)


def test_a_tied_head_is_one_with_the_embedding() -> None:
    case = gpt2("sdpa")
    J = case.jacobian()
    assert "lm_head.weight" not in J.parameters
    assert J.shape[1] == sum(p.numel() for p in case.model.parameters())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"output": "logit"}, ValueError, r"a BaseModelOutputWithPooling\w* with last_hidden_state, pooler_output"),
        ({"output": "encoder.layers.0"}, ValueError, r"did you mean 'encoder\.layer\.0"),
        ({"output": "hidden_states"}, ValueError, "there is no 'hidden_states'"),
        ({"batch_axis": 1, "output": "last_hidden_state"}, ValueError, "not independent"),
        ({"batch_axis": 1}, ValueError, "batch_axis=1"),
    ],
)
def test_a_wrong_question_is_told_what_to_change(options: Any, error: Any, message: str) -> None:
    model = bert("sdpa").model
    with pytest.raises(error, match=message):
        jacobian(model, WORDS, **options)


def test_active_dropout_is_found() -> None:
    with pytest.raises(ValueError, match=r"dropout.*model\.eval\(\)"):
        jacobian(bert("sdpa").model.train(), WORDS, output="last_hidden_state")


def test_low_precision_models_have_float32_kernels() -> None:
    case = gpt2("sdpa")
    half = case.model.bfloat16()
    K = te.gram(jacobian(half, WORDS, output="logits"))
    D = case.dense(half.double())
    assert K.dtype == torch.float32
    e = te.effective_rank(K, 8, rng=0)
    exact = np.sum(D**2) ** 2 / np.linalg.norm(D @ D.T) ** 2
    assert abs(float(e) - exact) <= 4 * float(e.stderr) + 2e-2 * exact
