"""Reading raw text on the backbone's own cache."""

from __future__ import annotations

import pytest
import torch
from hmt.model.peers import CachedText
from hmt.model.scoring import logits_nll
from transformers import AutoConfig, AutoModelForCausalLM

from hmt.model.backbone import head
from hmt.model.baselines import WindowedBackbone
from tests.conftest import FAMILIES, make_backbone, random_ids

ROTARY = ("llama", "qwen2", "qwen3", "gpt_neox", "phi", "cohere", "granite")


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2"])
@torch.no_grad()
def test_a_whole_text_in_parts_is_the_text_at_once(family: str) -> None:
    backbone = make_backbone(family)
    ids = random_ids(2, 50)
    cached = CachedText(backbone)
    hidden = cached.read(ids, 13)
    torch.testing.assert_close(head(backbone, hidden), backbone(ids).logits[:, -1], atol=1e-4, rtol=0)
    layer = cached.cache.layers[0]
    assert cached.nbytes == 2 * 2 * layer.keys.numel() * 4


@pytest.mark.parametrize("sinks", [0, 3])
@pytest.mark.parametrize("family", ROTARY)
@torch.no_grad()
def test_a_window_of_one_layer_is_the_window_read_anew(family: str, sinks: int) -> None:
    """With one layer a key depends on its token and its place alone, so turned keys are those of a new window."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(**FAMILIES[family] | {"num_hidden_layers": 1})
    backbone = AutoModelForCausalLM.from_config(config).eval()
    for parameter in backbone.parameters():
        parameter.mul_(4.0)
    ids = random_ids(1, 40)
    cached = CachedText(backbone, window=10, sinks=sinks)
    logits = [head(backbone, cached.read(token, 1)) for token in ids[:, :-1].split(1, dim=1)]
    nll = logits_nll(torch.stack(logits, dim=1), ids[:, 1:])
    expected = WindowedBackbone(backbone, window=10, stride=1, sinks=sinks).score(ids, ids)
    torch.testing.assert_close(nll, expected.nll, atol=2e-4, rtol=0)
    assert cached.cache.get_seq_length() == 10


@torch.no_grad()
def test_a_window_does_not_grow() -> None:
    cached = CachedText(make_backbone(), window=12, sinks=4)
    cached.read(random_ids(1, 30), 4)
    before = cached.nbytes
    cached.read(random_ids(1, 90), 4)
    assert cached.nbytes == before
    assert cached.cache.get_seq_length() == 12


@pytest.mark.parametrize(("family", "window"), [("mamba", None), ("gpt2", 8), ("opt", 8), ("gemma3", 8)])
def test_a_backbone_that_cannot_is_told_so(family: str, window: int | None) -> None:
    with pytest.raises(ValueError, match=r"has no (cache|rotary)"):
        CachedText(make_backbone(family), window=window)
