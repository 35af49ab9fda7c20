"""Copying, held to its definition by hand, and through every way of reading and writing."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hmt import HMTForCausalLM, MemoryState
from hmt.config import MemoryConfig
from hmt.memory import copying as copying_module
from hmt.memory.copying import MISSING, START, Copying, contexts_of
from hmt.model.controls import score_with_other_banks
from hmt.model.generation import GenerateOutput
from tests.conftest import VOCAB, make_model, random_ids

CONTEXT = 3
EOS = 8


def few(rows: int, tokens: int, seed: int = 0) -> Tensor:
    """Texts of eight different tokens, so that contexts come again."""
    return 3 + random_ids(rows, tokens, seed) % 8


def gain_by_hand(weights: Tensor, prior: Tensor, past: list[int], before: list[int], token: int) -> float:
    """What a token gains after some tokens, newest last, straight from the definition."""
    if token not in past:
        return 0.0
    for matched in range(min(len(weights) - 1, len(before)), -1, -1):
        asked = before[len(before) - matched :]
        followed = Counter(past[place] for place in range(matched, len(past)) if past[place - matched : place] == asked)
        if followed[token]:
            constant, share, rarity = weights[matched].tolist()
            return constant + share * log(followed[token] / followed.total()) - rarity * float(prior[token])
    raise AssertionError("a token of the past follows a context of no tokens")


@pytest.mark.parametrize("fields", [{"mode": "backbone"}, {}, {"num_sensory": 0, "num_memory_tokens": 2}], ids=str)
@torch.no_grad()
def test_the_logits_gain_what_the_definition_says(fields: dict[str, Any]) -> None:
    model = make_model(copy_context=CONTEXT, mem_recall_context=50, recall_query="previous", **fields)
    copying, config = model.memory.copying, model.config
    assert copying is not None
    copying.weights.copy_(torch.rand(CONTEXT + 1, 3, generator=torch.Generator().manual_seed(1)))
    ids = few(1, 7 * config.fresh_tokens + 3)
    gained = (model(ids).logits - model.variant(copy_context=0)(ids).logits)[0]
    text = ids[0].tolist()
    for place in (0, config.fresh_tokens, 3 * config.fresh_tokens - 1, 5 * config.fresh_tokens + 4, len(text) - 1):
        start = place // config.fresh_tokens * config.fresh_tokens
        past = text[: max(start - config.num_sensory, 0)]
        for token in range(2, 14):
            wanted = gain_by_hand(copying.weights, copying.prior, past, text[: place + 1], token)
            assert float(gained[place, token]) == pytest.approx(wanted, abs=1e-4), (place, token)


@torch.no_grad()
def test_rarity_is_what_the_backbone_gives_a_token_where_it_knows_nothing() -> None:
    model = make_model(copy_context=CONTEXT)
    assert model.memory.copying is not None
    prior = model.memory.copying.prior
    assert prior.shape == (VOCAB,)
    assert float(prior.exp().sum()) == pytest.approx(1, abs=1e-5)
    bos = torch.tensor([[model.config.bos_token_id]])
    torch.testing.assert_close(prior, model.backbone(bos).logits[0, 0].log_softmax(dim=-1), atol=1e-5, rtol=0)


def test_longer_contexts_than_were_measured_start_like_the_longest_of_those() -> None:
    copying = Copying(len(START) + 1, 5)
    copying.initialise()
    torch.testing.assert_close(copying.weights[: len(START)], torch.tensor(START))
    assert torch.equal(copying.weights[-1], copying.weights[len(START) - 1])


def test_contexts_end_at_their_token_and_know_gaps_and_beginnings() -> None:
    ids = torch.tensor([[9, 5, 9, 6, 7, 9], [1, 2, 3, 4, 5, 6]])
    valid = torch.tensor([[0, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1]]).bool()
    found = contexts_of(ids, valid, 3, 4)
    assert found[0, :2].tolist() == [[6, 5, MISSING, MISSING], [7, 6, 5, MISSING]]
    assert found[0, 2].tolist() == [7, 6, 5, MISSING]  # a gap: those up to the newest token before it
    assert found[1].tolist() == [[4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]]


@pytest.mark.parametrize("tokens", [14, 15, 27, 28, 29, 90])
@pytest.mark.parametrize("fields", [{}, {"mode": "backbone"}, {"recall_query": "previous", "num_memory_tokens": 2}])
@torch.no_grad()
def test_what_is_written_was_predicted_as_it_is_read(fields: dict[str, Any], tokens: int) -> None:
    model, ids = make_model(copy_context=CONTEXT, **fields), few(2, tokens)
    written = model.generate(
        ids, max_new_tokens=40, do_sample=False, output_logits=True, return_dict_in_generate=True, eos_token_id=None
    )
    assert isinstance(written, GenerateOutput)
    assert written.sequences is not None
    assert written.logits is not None
    reader = model.variant(recall_query="previous")  # with a prefix query, logits before its last token are another's
    read = reader(written.sequences)
    logits = torch.stack(written.logits, dim=1)
    if fields.get("mode") == "backbone" or "recall_query" in fields:
        torch.testing.assert_close(logits, read.logits[:, tokens - 1 : -1], atol=1e-4, rtol=0)
    alone = [model.generate(row[None], max_new_tokens=40, do_sample=False, eos_token_id=None)[0] for row in ids]
    assert torch.equal(torch.stack(alone), written.sequences)
    plain = model.variant(copy_context=0).generate(ids, max_new_tokens=40, do_sample=False, eos_token_id=None)
    assert tokens < 28 or not torch.equal(plain, written.sequences)


def origin_by_hand(past: list[int], before: list[int], token: int) -> tuple[int, int]:
    """The longest context that a token followed, and where it did so last: -1 where it followed none."""
    for matched in range(min(CONTEXT, len(before)), 0, -1):
        asked = before[len(before) - matched :]
        for place in range(len(past) - 1, matched - 1, -1):
            if past[place] == token and past[place - matched : place] == asked:
                return matched, place
    return 0, -1


@pytest.mark.parametrize(
    ("fields", "lengths"),
    [
        ({"mode": "backbone"}, (112, 75)),  # 112 is a whole number of segments, so nothing is unfinished in that row
        ({"mode": "backbone", "mem_recall_context": 3}, (90, 112)),  # the oldest segments have left the bank
        ({"recall_query": "previous", "num_memory_tokens": 2}, (96, 90)),  # two slots a segment
        ({"recall_query": "previous"}, (20, 3)),  # hardly a past
        ({}, (75, 112)),  # a prompt that changes within a segment
    ],
    ids=str,
)
@torch.no_grad()
def test_a_trace_says_where_each_new_token_was_copied_from(fields: dict[str, Any], lengths: tuple[int, int]) -> None:
    model = make_model(copy_context=CONTEXT, **{"mem_recall_context": 50, **fields})
    config, ids = model.config, few(2, max(lengths))
    mask = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
    torch.manual_seed(0)
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=40, output_recall=True, return_dict_in_generate=True,
        eos_token_id=EOS, pad_token_id=7, num_return_sequences=2, do_sample=True, top_k=3,
    )  # fmt: skip
    assert isinstance(out, GenerateOutput)
    assert out.sequences is not None
    assert out.recall is not None
    kept = config.mem_recall_context // config.num_memory_tokens
    longest = 0
    for row, length in enumerate(length for length in lengths for _ in range(2)):
        written = out.sequences[row, ids.shape[1] :].tolist()
        text = ids[row // 2, :length].tolist() + written
        assert len(out.recall.copied) == len(written)
        runs: list[tuple[int, list[int]]] = []
        before = -1
        for place, copied in enumerate(out.recall.copied, start=length):
            if EOS in text[length:place]:  # the row has ended
                assert (int(copied.matched[row]), int(copied.segments[row])) == (0, -1)
                continue
            segment = (place - 1) // config.fresh_tokens  # of the last token
            past = text[: max(segment * config.fresh_tokens - config.num_sensory, 0)]
            left = min(max(segment - kept, 0) * config.fresh_tokens, len(past))
            matched, found = origin_by_hand(past[left:], text[:place], text[place])
            number = (found + left) // config.fresh_tokens if matched else -1
            assert int(copied.tokens[row]) == text[place]
            assert (int(copied.matched[row]), int(copied.segments[row])) == (matched, number), (row, place)
            longest = max(longest, matched)
            if matched >= 2 and number != before:
                runs.append((number, []))
            before = number if matched >= 2 else -1
            if matched >= 2:
                runs[-1][1].append(text[place])
        assert [(number, run.tolist()) for number, run in out.recall.copied_runs(row)] == runs
    assert longest == CONTEXT or max(lengths) < 60


def repeated(tokens: int = 140) -> Tensor:
    """Two texts, each of which says the same forty tokens again and again."""
    return torch.cat([few(1, 40, seed).repeat(1, -(-tokens // 40))[:, :tokens] for seed in (1, 2)])


@torch.no_grad()
def test_a_text_that_comes_again_is_foreseen_and_another_text_is_of_no_use() -> None:
    model, ids = make_model(mode="backbone", copy_context=CONTEXT), repeated()
    labels = ids.masked_fill(torch.arange(140) < 100, -100)
    own = model(ids, labels=labels).loss
    plain = model.variant(copy_context=0)(ids, labels=labels).loss
    (other,) = score_with_other_banks(model, [(ids, labels)], [0, 1])
    assert other.nll is not None
    assert other.scored_mask is not None
    assert own < plain - 1
    assert other.nll.sum() / other.scored_mask.sum() > own + 1


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("mode", ["hmt", "backbone"])
def test_its_weights_get_the_gradient_of_the_loss(mode: str, lora: int) -> None:
    model, ids = make_model(mode=mode, copy_context=CONTEXT), repeated()
    model.requires_grad_(False)
    if lora:
        model.add_lora(rank=lora, dropout=0.0)
    assert model.memory.copying is not None
    weights = model.memory.copying.weights.requires_grad_()
    for flag in (True, False):
        weights.grad = None
        model(ids, labels=ids, return_logits=flag).loss.backward()
        assert weights.grad is not None
        gradient = weights.grad.clone()
        step = 1e-3
        for entry in ((0, 0), (2, 1), (3, 2)):
            with torch.no_grad():
                losses = []
                for sign in (1, -1):
                    weights[entry] += sign * step
                    losses.append(float(model(ids, labels=ids).loss))
                    weights[entry] -= sign * step
            assert float(gradient[entry]) == pytest.approx((losses[0] - losses[1]) / (2 * step), abs=2e-3), flag


@torch.no_grad()
def test_a_memory_may_be_read_with_and_without(tmp_path: Path) -> None:
    ids = repeated()
    for mode in ("hmt", "backbone"):
        plain = make_model(mode=mode)
        model = plain.variant(copy_context=CONTEXT)
        for writer, reader in ((plain, model), (model, plain)):
            writer.remember(ids[:, :100]).save(tmp_path / "memory")
            memory = MemoryState.load(tmp_path / "memory")
            assert reader(ids[:, 100:], memory=memory).logits.isfinite().all()
    kept = model.remember(ids)
    assert kept.bank.valid.sum(dim=1).tolist() == [5, 5]
    assert kept.bank.embeddings.shape == (2, 5, 0)


@torch.no_grad()
def test_it_is_saved_and_may_be_left_out_or_added(tmp_path: Path) -> None:
    model, ids = make_model(copy_context=CONTEXT), repeated()
    assert model.memory.copying is not None
    model.memory.copying.weights.mul_(2)
    model.save_pretrained(tmp_path / "copying")
    loaded = HMTForCausalLM.from_pretrained(tmp_path / "copying")
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    without = HMTForCausalLM.from_pretrained(tmp_path / "copying", copy_context=0)
    assert without.memory.copying is None
    without.save_pretrained(tmp_path / "plain")
    added = HMTForCausalLM.from_pretrained(tmp_path / "plain", copy_context=CONTEXT)
    assert added.memory.copying is not None
    torch.testing.assert_close(added.memory.copying.prior, model.memory.copying.prior)
    torch.testing.assert_close(added.memory.copying.weights * 2, model.memory.copying.weights)
    with pytest.raises(ValueError, match=r"copy_context is 3 in .* and cannot be read as 2"):
        HMTForCausalLM.from_pretrained(tmp_path / "copying", copy_context=2)


def test_modes_without_a_bank_copy_nothing_and_a_negative_context_is_refused() -> None:
    for mode in ("short_term", "rmt"):
        assert make_model(mode=mode, copy_context=CONTEXT).memory.copying is None
    with pytest.raises(ValueError, match=r"copy_context must be at least 0, got -1"):
        MemoryConfig(copy_context=-1).check()


@torch.no_grad()
def test_what_stands_in_the_window_is_not_copied_from() -> None:
    model = make_model(mode="backbone", copy_context=CONTEXT, num_sensory=5, segment_length=19)
    ids = torch.arange(3, 3 + 45)[None]
    state = model.remember(ids)
    assert model.memory.copying is not None
    source = model.memory.copying.source(state, model.config)
    assert source.past.ids[source.past.valid].tolist() == ids[0, : 3 * 14 - 5].tolist()


@torch.no_grad()
def test_rarity_is_that_of_the_backbone_alone_whatever_state_it_is_in(tmp_path: Path) -> None:
    plain = make_model("gpt2")
    expected = plain.variant(copy_context=CONTEXT).memory.copying
    plain.add_lora(rank=4)
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            parameter.normal_()
    plain.save_pretrained(tmp_path)
    loaded = HMTForCausalLM.from_pretrained(tmp_path, copy_context=CONTEXT)
    for model in (plain.variant(copy_context=CONTEXT), plain.train().variant(copy_context=CONTEXT), loaded):
        assert expected is not None
        assert model.memory.copying is not None
        torch.testing.assert_close(model.memory.copying.prior, expected.prior, atol=1e-5, rtol=0)
    assert plain.training
    learning = [name for name, parameter in plain.backbone.named_parameters() if parameter.requires_grad]
    assert learning
    assert all("lora_" in name for name in learning)


@torch.no_grad()
def test_a_trace_keeps_nothing_of_what_was_copied_from() -> None:
    model, ids = make_model(copy_context=CONTEXT), repeated()
    kept = []
    original = type(model.memory.copying).source

    def noted(*given: Any) -> Any:
        kept.append(weakref.ref(found := original(*given)))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Copying, "source", noted)
        read = model(ids, output_recall=True)
        written = model.generate(ids, max_new_tokens=30, output_recall=True, return_dict_in_generate=True)
    gc.collect()
    assert len(kept) > 20
    assert sum(source() is not None for source in kept) == 0
    assert read.recall.weights
    assert written.recall.weights


@torch.no_grad()
def test_parts_of_the_search_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = make_model(copy_context=CONTEXT, mem_recall_context=50), few(2, 140)
    whole = model(ids).logits
    monkeypatch.setattr(copying_module, "AT_ONCE", 150)
    assert torch.equal(model(ids).logits, whole)
