"""Which backbones can be wrapped, what wrapping leaves alone, and why others are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from hmt import HMTForCausalLM
from hmt.model.backbone import body, embed, head
from tests.conftest import FAMILIES, SMALL, make_backbone, make_model, random_ids


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_body_and_head_are_the_model(family: str) -> None:
    backbone = make_backbone(family)
    ids = random_ids(2, 20)
    got = head(backbone, body(backbone, embed(backbone, ids)))
    torch.testing.assert_close(got, backbone(ids, use_cache=False).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_without_memory_a_single_window_is_the_backbone(family: str) -> None:
    model = make_model(family, mode="backbone", num_sensory=0)
    ids = random_ids(2, 20)
    expected = make_backbone(family)(ids, use_cache=False).logits
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt_projected", "mamba"])
def test_wrapping_leaves_the_weights_of_the_backbone_alone(family: str) -> None:
    backbone = make_backbone(family)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    model = HMTForCausalLM.from_backbone(backbone, segment_length=20, num_sensory=4)
    model.variant(mode="rmt")
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert model.backbone is backbone


def test_a_gated_memory_starts_close_to_its_backbone() -> None:
    """With gain 0 the prompt is the embedding of BOS whatever was recalled."""
    ids = random_ids(1, 60)
    model = make_model(memory_gain=0.0)
    nll = model(ids, labels=ids).nll
    short = make_model(memory_gain=0.0, mode="short_term")(ids, labels=ids).nll
    torch.testing.assert_close(nll, short, atol=1e-5, rtol=0)


def test_a_model_that_sees_later_tokens_is_refused() -> None:
    backbone = make_backbone()
    backbone.model.layers[0].self_attn.is_causal = False
    for layer in backbone.model.layers:
        layer.register_forward_hook(lambda module, inputs, output: output + output.mean(dim=1, keepdim=True))
    with pytest.raises(ValueError, match="LlamaForCausalLM cannot be given a memory: it is not causal"):
        HMTForCausalLM.from_backbone(backbone)


def test_a_model_that_scales_its_logits_in_an_unknown_way_is_refused() -> None:
    backbone = make_backbone()
    backbone.register_forward_hook(lambda module, inputs, output: setattr(output, "logits", output.logits * 3))
    with pytest.raises(ValueError, match="other logits than the model itself"):
        HMTForCausalLM.from_backbone(backbone)


def test_models_that_are_no_causal_language_models_are_refused() -> None:
    bert = AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", **SMALL))
    t5 = AutoModelForSeq2SeqLM.from_config(
        AutoConfig.for_model("t5", vocab_size=50, d_model=16, d_kv=4, num_layers=1, num_heads=2, d_ff=16)
    )
    for model in (bert, t5, nn.Linear(3, 3)):
        with pytest.raises(ValueError, match=f"{type(model).__name__} (cannot be given a memory|is not a causal)"):
            HMTForCausalLM.from_backbone(model)


def test_a_window_longer_than_the_positions_of_the_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match="segment_length 600 exceeds the 512 positions of LlamaForCausalLM"):
        make_model(segment_length=600)


@torch.no_grad()
def test_a_bfloat16_backbone_keeps_its_memory_parameters_in_float32() -> None:
    model = HMTForCausalLM.from_backbone(
        make_backbone(), dtype="bfloat16", sensory="reread", segment_length=20, num_sensory=4
    )
    assert model.backbone.dtype == torch.bfloat16
    assert {p.dtype for p in model.memory.parameters()} == {torch.float32}
    output = model(random_ids(1, 50))
    assert output.logits.dtype == torch.bfloat16
    assert output.memory.bank.embeddings.dtype == torch.bfloat16
