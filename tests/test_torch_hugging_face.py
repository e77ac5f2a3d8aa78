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


def clip() -> tuple[Any, dict[str, torch.Tensor]]:
    """A small CLIP, and four pairs of an image and a text."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 30, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}
    config = CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 8, "patch_size": 4}, projection_dim=6)
    words = torch.tensor([[3, 4, 5, 2], [6, 7, 8, 2], [9, 3, 4, 2], [5, 5, 6, 2]])
    batch = {"input_ids": words, "attention_mask": torch.ones_like(words), "pixel_values": torch.randn(4, 3, 8, 8)}
    return CLIPModel(config).eval(), batch


@pytest.mark.parametrize("output", ["logits_per_image", "logits_per_text"])
def test_logits_of_every_image_with_every_text_are_told_from_those_of_one_example(output: str) -> None:
    model, batch = clip()
    with pytest.raises(ValueError, match=r"4 entries in the batch of 4, and 1 by itself.*image_embeds"):
        jacobian(model, kwargs=batch, output=output)
    assert jacobian(model, kwargs=batch, output="image_embeds").shape[0] == 4 * 6
    assert jacobian(model, kwargs=batch, output=output, batch_axis=None).shape[0] == 16


def test_a_mask_in_a_closure_is_told_and_one_among_the_inputs_is_silent() -> None:
    model = gpt2("sdpa").model
    with pytest.raises(ValueError, match=r"closes over an array of the whole batch \(a mask.*kwargs="):
        jacobian(model, WORDS, kwargs={"attention_mask": MASK}, output=lambda o: o.logits * MASK[..., None])

    class Masked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = model

        def forward(self, words: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.inside(words, attention_mask=mask).logits * mask[..., None]

    K = te.gram(jacobian(Masked(), WORDS, MASK))
    assert float(te.effective_rank(K, 4, rng=0)) > 1
