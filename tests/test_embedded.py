"""The built-in backbone, for real: converted once, found again, and it knows what it should."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from hmt import HMTForCausalLM
from hmt.pretrained import load_tokenizer

TEXT = (
    "The library was founded in 1857 and moved to its present building in 1911. Its reading room has forty oak tables, "
    "and the oldest of its manuscripts, a psalter, was written in the twelfth century. In the winter of 1944 the books "
    "were carried to a salt mine in the mountains, where they stayed until the end of the war. "
) * 3


@pytest.mark.slow
@torch.no_grad()
def test_the_built_in_backbone_is_converted_once_and_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMT_CACHE", str(tmp_path))
    settings = {"segment_length": 96, "num_sensory": 16}
    HMTForCausalLM.from_backbone("smollm2-135m", **settings)
    (folder,) = tmp_path.iterdir()
    assert (folder / "model.safetensors").stat().st_size > 500e6
    written = (folder / "model.safetensors").stat().st_mtime_ns

    started = time.perf_counter()
    torch.manual_seed(0)
    model = HMTForCausalLM.from_backbone("smollm2-135m", **settings).eval()
    tokenizer = load_tokenizer("smollm2-135m")
    assert time.perf_counter() - started < 10  # from the file: converting takes longer
    assert (folder / "model.safetensors").stat().st_mtime_ns == written

    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    untrained = model(ids, labels=ids, return_logits=False).loss.exp()
    backbone = model.variant(mode="backbone")(ids, labels=ids, return_logits=False).loss.exp()
    isolated = model.variant(mode="backbone", num_sensory=0)(ids, labels=ids, return_logits=False).loss.exp()
    assert backbone < isolated < 30
    assert untrained < 1.1 * backbone  # a gated memory starts close to its backbone
    published = HMTForCausalLM.from_backbone(model.backbone, memory_injection="published", **settings).eval()
    assert published(ids, labels=ids, return_logits=False).loss.exp() > untrained

    prompt = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert "Paris" in tokenizer.decode(model.generate(prompt, max_new_tokens=3)[0])
