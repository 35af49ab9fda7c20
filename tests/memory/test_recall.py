"""Recall against the equations written out, and how its result becomes a prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hmt.config import MemoryConfig
from hmt.memory.bank import Bank
from hmt.memory.recall import GatedInjection, Memory, PublishedInjection, Recall


def bank_of(embeddings: torch.Tensor, counts: list[int]) -> Bank:
    """A bank with so many filled slots per row."""
    rows, slots, _ = embeddings.shape
    valid = torch.arange(slots) < torch.tensor(counts)[:, None]
    numbers = torch.arange(slots).expand(rows, -1)
    tokens, merged = torch.zeros(rows, slots, 1, dtype=torch.int32), torch.ones(rows, slots, dtype=torch.int32)
    return Bank(embeddings, valid, numbers, torch.zeros(rows, slots), tokens, merged)


@torch.no_grad()
def test_recall_is_the_attention_of_the_paper() -> None:
    torch.manual_seed(0)
    recall = Recall(6, 4)
    summary, embeddings = torch.randn(2, 3, 6), torch.randn(2, 5, 6)
    recalled, logits = recall(summary, bank_of(embeddings, [5, 5]))
    scores = recall.wq(summary) @ recall.wk(embeddings).transpose(1, 2) / 4**0.5
    torch.testing.assert_close(logits, scores)
    torch.testing.assert_close(recalled, scores.softmax(-1) @ embeddings)


@torch.no_grad()
def test_empty_slots_get_no_weight() -> None:
    torch.manual_seed(0)
    recall = Recall(6, 4)
    summary, embeddings = torch.randn(2, 1, 6), torch.randn(2, 5, 6)
    _, logits = recall(summary, bank_of(embeddings, [5, 2]))
    assert logits.softmax(-1)[1, 0, 2:].tolist() == [0, 0, 0]
    alone, _ = recall(summary[1:], bank_of(embeddings[1:, :2], [2]))
    torch.testing.assert_close(recall(summary, bank_of(embeddings, [5, 2]))[0][1:], alone)


@torch.no_grad()
def test_a_bias_is_a_factor_of_the_recall_weights() -> None:
    torch.manual_seed(0)
    recall, summary, bank = Recall(6, 4), torch.randn(1, 1, 6), bank_of(torch.randn(1, 3, 6), [3])
    plain, biased = (
        recall(summary, bank, bias)[1].softmax(-1)[0, 0] for bias in (None, torch.tensor([[0, 2, 1]]).log())
    )
    torch.testing.assert_close(biased, torch.tensor([0, 2, 1]) * plain / (2 * plain[1] + plain[2]))


@torch.no_grad()
def test_a_published_prompt_is_the_recalled_embedding_on_both_sides() -> None:
    injection = PublishedInjection(1, 4)
    injection.initial.fill_(7.0)
    recalled = torch.randn(2, 1, 4)
    leading, trailing = injection(recalled, torch.tensor([True, False]))
    assert torch.equal(leading, trailing)
    assert torch.equal(leading[0], recalled[0])
    assert leading[1].eq(7).all()


@torch.no_grad()
def test_a_gated_prompt_stays_the_size_of_a_token_embedding_whatever_is_recalled() -> None:
    injection = GatedInjection(1, 64, gain=0.2)
    base = torch.randn(64) * 0.1
    injection.initialise(base, torch.tensor(0.1))
    for size in (1e-3, 1.0, 1e3):
        leading, _ = injection(size * torch.randn(1, 1, 64), torch.tensor([True]))
        share = (leading[0, 0] - base).pow(2).mean().sqrt()
        torch.testing.assert_close(share, torch.tensor(0.02), rtol=0.1, atol=0)
    nothing, _ = injection(None, torch.tensor([False]))
    assert torch.equal(nothing[0, 0], base)


@pytest.mark.parametrize("policy", ["attention", "merge"])
def test_a_bank_of_tokens_has_no_policy_that_compares_embeddings(policy: str) -> None:
    with pytest.raises(ValueError, match=f"memory_policy {policy}"):
        Memory(MemoryConfig(memory_policy=policy), 8)  # a rolling cache has no memory embeddings by default
    Memory(MemoryConfig(memory_policy=policy, num_memory_tokens=1), 8)
    Memory(MemoryConfig(mode="backbone", memory_policy=policy), 8)  # there is no bank at all


def test_the_parts_of_a_rolling_window_fill_it() -> None:
    config = MemoryConfig(segment_length=256)
    assert (config.sinks, config.recalled_tokens, config.sensory_tokens, config.prompt_tokens) == (4, 64, 187, 0)
    assert MemoryConfig(segment_length=256, mode="backbone").sensory_tokens == 251
    assert MemoryConfig(segment_length=256, num_memory_tokens=2).sensory_tokens == 183
    with pytest.raises(ValueError, match="num_recalled_tokens"):
        MemoryConfig(segment_length=256, num_recalled_tokens=252).check()
    MemoryConfig(segment_length=256, num_recalled_tokens=250).check()


def test_recalled_tokens_take_nothing_from_a_window_that_is_read_again() -> None:
    for budget in (0, 64):
        assert MemoryConfig(sensory="reread", num_recalled_tokens=budget).fresh_tokens == 256 - 2 - 32


def test_only_what_a_mode_uses_exists() -> None:
    def parts(**fields: Any) -> set[str]:
        return {name.split(".")[0] for name, _ in Memory(MemoryConfig(**fields), 8).named_parameters()}

    assert parts() == set()
    assert parts(num_memory_tokens=1) == parts(sensory="reread") == {"summary_prompt", "recall", "injection"}
    assert parts(mode="short_term") == parts(mode="rmt", sensory="reread") == {"injection"}
    assert parts(mode="backbone") == set()


@pytest.mark.parametrize("autocast", [False, True])
@torch.no_grad()
def test_a_backbone_in_bfloat16_is_asked_in_float32(autocast: bool) -> None:
    """Relevance of close slots must not depend on eight bits of a number."""
    torch.manual_seed(0)
    recall = Recall(64, 32)
    summary, embeddings = torch.randn(2, 1, 64).bfloat16(), torch.randn(2, 40, 64).bfloat16()
    bank = bank_of(embeddings, [40, 40])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        recalled, logits = recall(summary, bank)
        weights = logits.softmax(-1)
    exact, wanted = recall(summary.float(), bank_of(embeddings.float(), [40, 40]))
    assert (logits.dtype, weights.dtype, recalled.dtype) == (torch.float32, torch.float32, torch.bfloat16)
    torch.testing.assert_close(logits, wanted)
    torch.testing.assert_close(recalled.float(), exact, atol=0.02, rtol=0.02)
