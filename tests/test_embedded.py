"""The built-in backbone, for real: converted once, found again, and it knows what it should."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hmt import HMTForCausalLM, MemoryState
from hmt.pretrained import load_tokenizer
from tests.model.test_equivalence import assert_same_state

TEXT = (
    "The library was founded in 1857 and moved to its present building in 1911. Its reading room has forty oak tables, "
    "and the oldest of its manuscripts, a psalter, was written in the twelfth century. In the winter of 1944 the books "
    "were carried to a salt mine in the mountains, where they stayed until the end of the war. "
) * 3


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of its own, empty at first."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HMT_CACHE", str(folder))
        yield folder


@pytest.mark.slow
@torch.no_grad()
def test_the_built_in_backbone_is_converted_once_and_reads(cache: Path) -> None:
    settings = {"sensory": "reread", "segment_length": 96, "num_sensory": 16, "num_recalled_tokens": 0}
    HMTForCausalLM.from_backbone("smollm2-135m", **settings)
    (folder,) = cache.glob("smollm2-*")
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
    rolling = HMTForCausalLM.from_backbone(model.backbone, segment_length=96).eval()
    assert rolling(ids, labels=ids, return_logits=False).loss.exp() < backbone  # no position is computed twice
    published = HMTForCausalLM.from_backbone(model.backbone, memory_injection="published", **settings).eval()
    assert published(ids, labels=ids, return_logits=False).loss.exp() > untrained

    prompt = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert "Paris" in tokenizer.decode(model.generate(prompt, max_new_tokens=3)[0])


@pytest.mark.slow
@torch.no_grad()
def test_what_holds_for_tiny_models_holds_for_a_real_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = HMTForCausalLM.from_backbone(
        "smollm2-135m", sensory="reread", segment_length=48, num_sensory=8, num_recalled_tokens=0
    ).eval()
    tokenizer = load_tokenizer("smollm2-135m")
    ids = tokenizer(TEXT[:600], return_tensors="pt").input_ids
    count = ids.shape[1]
    settings = {"max_new_tokens": 30, "eos_token_id": None}

    # Writing a text leaves the memory of reading it, and writes what reading would predict.
    causal = model.variant(recall_query="previous")
    out = causal.generate(ids, return_dict_in_generate=True, **settings)
    assert_same_state(out.memory, causal.remember(out.sequences[:, :-1]), atol=1e-3)
    read = causal(out.sequences).logits[:, count - 1 : -1].argmax(-1)
    assert torch.equal(read, out.sequences[:, count:])

    # Whole, in two parts, and kept in a file in between: the same text.
    whole = model.generate(ids, **settings)
    memory = model.remember(ids[:, :77])
    memory.save(tmp_path / "memory")
    for state in (memory, MemoryState.load(tmp_path / "memory")):
        assert torch.equal(model.generate(ids[:, 77:], memory=state, **settings)[:, count - 77 :], whole[:, count:])

    # Beside a longer row, as alone.
    longer = tokenizer(TEXT[:640], return_tensors="pt").input_ids
    rows, mask = torch.zeros(2, longer.shape[1], dtype=torch.long), torch.zeros(2, longer.shape[1], dtype=torch.long)
    for row, text in enumerate((ids, longer)):
        rows[row, -text.shape[1] :], mask[row, -text.shape[1] :] = text[0], 1
    assert torch.equal(model.generate(rows, attention_mask=mask, **settings)[0, longer.shape[1] :], whole[0, count:])

    # Without memory and within a window, transformers' own greedy text.
    plain = model.variant(mode="backbone", num_sensory=0, segment_length=count + 30)
    expected = model.backbone.generate(ids, do_sample=False, **settings)
    assert torch.equal(plain.generate(ids, **settings), expected)
