"""Recall against the equations written out, and how its result becomes a prompt."""

from __future__ import annotations

import pytest
import torch

from hmt.config import MemoryConfig
from hmt.memory.bank import Bank
from hmt.memory.recall import GatedInjection, Memory, Nearness, PublishedInjection, Recall


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


def segments_of(counts: list[int], each: int) -> Bank:
    """A bank to which each row added so many segments of `each` embeddings."""
    bank = Bank.empty(len(counts), 4, 1, torch.device("cpu"), torch.float32)
    for number in range(max(counts)):
        rows, numbers = torch.tensor(counts) > number, torch.full((len(counts),), number)
        bank = bank.append(torch.randn(len(counts), each, 4), rows, numbers, torch.zeros(len(counts), 1))
    return bank


@torch.no_grad()
def test_a_near_recall_starts_with_its_own_place_in_the_last_segment() -> None:
    nearness = Nearness(2, 4.0)
    bank = segments_of([5, 2], each=2)
    added = nearness(bank)
    assert added.shape == (2, 2, 10)
    ages = torch.tensor([5, 5, 4, 4, 3, 3, 2, 2, 1, 1]).log()
    own = 4.0 * torch.tensor([[1, 0] * 5, [0, 1] * 5])
    torch.testing.assert_close(added[0], own - 4.0 * ages)
    torch.testing.assert_close(added[1, :, :4], own[:, :4] - 4.0 * ages[-4:])
    cut = nearness(bank.keep(bank.valid & (torch.arange(10) > 0), 9))  # fifo may take half of the oldest segment
    torch.testing.assert_close(cut[0], added[0, :, 1:])


@torch.no_grad()
def test_nearness_counts_beside_content_and_not_in_the_uniform_control() -> None:
    torch.manual_seed(0)
    summary, bank = torch.randn(1, 2, 4), segments_of([3], each=2)
    recall = Recall(4, 4, Nearness(2, 3.0))
    plain = Recall(4, 4)
    plain.load_state_dict(recall.state_dict(), strict=False)
    torch.testing.assert_close(recall.logits(summary, bank), plain.logits(summary, bank) + recall.nearness(bank))
    recall.uniform = True
    assert recall.logits(summary, bank).unique().tolist() == [0.0]


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


def test_what_a_bank_of_tokens_lacks_is_not_chosen_by() -> None:
    with pytest.raises(
        ValueError, match="memory_policy merge compares memory embeddings, which mode backbone has none of"
    ):
        Memory(MemoryConfig(mode="backbone", num_recalled_tokens=4, memory_policy="merge"), 8)
    Memory(MemoryConfig(mode="backbone", memory_policy="merge"), 8)  # there is no bank at all
    with pytest.raises(ValueError, match="recall_selection attention compares memory embeddings"):
        MemoryConfig(mode="backbone", num_recalled_tokens=4, recall_selection="attention").check()


def test_recalled_tokens_count_in_the_window() -> None:
    config = MemoryConfig(num_recalled_tokens=20)
    assert config.fresh_tokens == 256 - 2 - 32 - 20
    assert MemoryConfig(mode="backbone", num_recalled_tokens=20).fresh_tokens == 256 - 32 - 20
    assert MemoryConfig(mode="short_term", num_recalled_tokens=20).fresh_tokens == 256 - 2 - 32
    with pytest.raises(ValueError, match=r"num_sensory \+ num_recalled_tokens \(256\), got 256"):
        MemoryConfig(num_recalled_tokens=222).check()


def test_only_what_a_mode_uses_exists() -> None:
    names = {
        mode: {name.split(".")[0] for name, _ in Memory(MemoryConfig(mode=mode), 8).named_parameters()}
        for mode in ("hmt", "short_term", "rmt", "backbone")
    }
    assert names == {
        "hmt": {"summary_prompt", "recall", "injection"},
        "short_term": {"injection"},
        "rmt": {"injection"},
        "backbone": set(),
    }


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
