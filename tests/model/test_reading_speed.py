"""Dynamic reading speed: when segments grow, and how memory embeddings pass from one speed to the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hmt import HMTConfig, HMTForCausalLM, MemoryState
from hmt.model.splice import Window
from tests.conftest import make_backbone, make_model, random_ids


def dynamic(**fields: object) -> HMTForCausalLM:
    """A window of 20 with 8 sensory tokens: segments of 10 tokens, of 14 where they are read fast."""
    return make_model(num_sensory=8, dynamic_reading=True, **fields)


def recall_only(model: HMTForCausalLM, oldest: bool) -> None:
    """Make recall choose always the oldest slot, or always the newest."""

    def logits(summary: Tensor, bank: object, bias: Tensor | None = None) -> Tensor:
        age = bank.segments.float()[:, None].expand(-1, summary.shape[1], -1)
        scores = (-age if oldest else age) * 100
        return scores.masked_fill(~bank.valid[:, None], torch.finfo(scores.dtype).min)

    model.memory.recall.logits = logits


@torch.no_grad()
@pytest.mark.parametrize(("oldest", "expected"), [(False, [0, 10, 20, 34, 48]), (True, [0, 10, 20, 34, 48, 58])])
def test_segments_grow_while_what_is_recalled_is_near(oldest: bool, expected: list[int]) -> None:
    """Segment 1 recalls segment 0, so segment 2 is fast; the oldest is near for segments 1 and 2 alone."""
    model = dynamic(mem_recall_context=20)
    recall_only(model, oldest)
    text = random_ids(1, 62)
    output = model(text, output_recall=True)
    assert output.recall.bounds(62)[:-1] == expected
    lengths = {n: len(output.memory.segment_tokens(n)) for n in range(4)}
    assert lengths == {0: 10, 1: 10, 2: 14, 3: 14}
    for n, start in enumerate(expected[:4]):
        assert torch.equal(output.memory.segment_tokens(n), text[0, start : start + lengths[n]])


@torch.no_grad()
def test_a_fast_window_is_as_long_as_a_normal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = dynamic()
    recall_only(model, oldest=False)
    widths = []
    whole = HMTForCausalLM._body

    def noted(self: HMTForCausalLM, window: Window, comes_again: bool) -> Tensor:
        widths.append(int(window.mask.sum(dim=1).max()))
        return whole(self, window, comes_again)

    monkeypatch.setattr(HMTForCausalLM, "_body", noted)
    model(random_ids(1, 10 + 10 + 14 * 2))
    # Read; summary and read; then summaries of J = 7 instead of 5. The first window has no sensory tokens.
    assert widths == [12, 7, 20, 9, 20, 9, 20]


@torch.no_grad()
def test_rows_of_one_batch_are_read_at_different_speeds() -> None:
    model = dynamic(mem_recall_context=20)
    ids = torch.cat([random_ids(1, 120, seed=n) for n in range(6)])
    output = model(ids)
    assert len({int(count) for count in output.memory.segments_read}) > 1
    for row in range(6):
        alone = model(ids[row : row + 1])
        torch.testing.assert_close(output.logits[row], alone.logits[0], atol=1e-4, rtol=0)
        assert int(output.memory.segments_read[row]) == int(alone.memory.segments_read)


@torch.no_grad()
def test_the_map_and_its_inverse_undo_each_other() -> None:
    memory_map = dynamic().memory.memory_map
    embeddings = torch.randn(3, 2, 32)
    torch.testing.assert_close(memory_map.inverse(memory_map(embeddings)), embeddings, atol=1e-4, rtol=1e-4)
    assert (memory_map(embeddings) - embeddings).abs().max() > 0.1
    assert memory_map.inverse(embeddings.bfloat16()).dtype == torch.bfloat16


@torch.no_grad()
def test_a_new_map_is_the_identity() -> None:
    model = HMTForCausalLM.from_backbone(make_backbone(), segment_length=20, num_sensory=8, dynamic_reading=True)
    assert torch.equal(model.memory.memory_map.weight, torch.eye(32))


def test_only_segments_that_are_read_fast_pass_through_the_map() -> None:
    model = dynamic()
    recall_only(model, oldest=False)
    ids = random_ids(1, 60)
    weight = model.memory.memory_map.weight
    (slow,) = torch.autograd.grad(model(ids[:, :20], labels=ids[:, :20]).loss, weight, allow_unused=True)
    assert slow is None
    (used,) = torch.autograd.grad(model(ids, labels=ids).loss, weight)
    assert used.abs().max() > 0


@torch.no_grad()
def test_what_a_fast_segment_recalls_passes_through_the_map() -> None:
    model = dynamic(memory_gain=2.0)
    recall_only(model, oldest=False)
    ids = random_ids(1, 34)
    expected = model(ids).logits
    model.memory.memory_map.forward = lambda embeddings: -embeddings
    got = model(ids).logits
    assert torch.equal(got[:, :20], expected[:, :20])
    assert (got - expected)[:, 20:].abs().max() > 1e-2


@torch.no_grad()
def test_what_a_fast_segment_leaves_is_kept_in_the_space_of_normal_ones() -> None:
    model = dynamic(mem_recall_context=20)
    recall_only(model, oldest=False)
    ids = random_ids(1, 34)
    kept = model.remember(ids).bank.embeddings[0, 2]
    memory_map = model.memory.memory_map
    model.memory.memory_map = type(memory_map)(32)  # the identity
    model.memory.memory_map.forward = memory_map.forward
    raw = model.remember(ids).bank.embeddings[0, 2]
    torch.testing.assert_close(memory_map.forward(kept[None, None])[0, 0], raw, atol=1e-4, rtol=0)
    assert (kept - raw).abs().max() > 1e-2


@torch.no_grad()
def test_the_speed_is_a_part_of_a_saved_memory(tmp_path: Path) -> None:
    model = dynamic()
    recall_only(model, oldest=False)
    state = model.remember(random_ids(1, 25))
    assert state.fast.tolist() == [True]
    state.save(tmp_path / "fast.memory")
    restored = MemoryState.load(tmp_path / "fast.memory")
    assert restored.fast.tolist() == [True]
    with pytest.raises(ValueError, match="dynamic_reading"):
        make_model(num_sensory=8).remember(random_ids(1, 5), restored)


@torch.no_grad()
def test_a_segment_takes_no_more_tokens_than_its_speed_has_room_for() -> None:
    model = dynamic()
    recall_only(model, oldest=False)
    state = model.remember(random_ids(1, 20))
    model.step(random_ids(1, 14), state)
    with pytest.raises(ValueError, match="a segment has 14 fresh tokens, step was given 15"):
        model.step(random_ids(1, 15), state)
    with pytest.raises(ValueError, match="a segment has 10 fresh tokens, step was given 11"):
        model.step(random_ids(1, 11))


def test_it_needs_sensory_tokens_to_halve_and_leaves_other_modes_alone() -> None:
    with pytest.raises(ValueError, match="dynamic_reading halves num_sensory"):
        HMTConfig(num_sensory=1, dynamic_reading=True).check()
    assert HMTConfig(num_sensory=8, dynamic_reading=True, mode="rmt").speed_tokens == 0
    model = dynamic()
    for mode in ("short_term", "rmt", "backbone"):
        ids = random_ids(1, 50)
        with torch.no_grad():
            same = model.variant(mode=mode, dynamic_reading=False)(ids).logits
            assert torch.equal(model.variant(mode=mode)(ids).logits, same)


def test_a_checkpoint_keeps_its_map_and_one_without_begins_with_the_identity(tmp_path: Path) -> None:
    model = dynamic()
    model.save_pretrained(tmp_path / "fast")
    again = HMTForCausalLM.from_pretrained(tmp_path / "fast")
    assert torch.equal(again.memory.memory_map.weight, model.memory.memory_map.weight)
    make_model(num_sensory=8).save_pretrained(tmp_path / "plain")
    later = HMTForCausalLM.from_pretrained(tmp_path / "plain", dynamic_reading=True)
    assert torch.equal(later.memory.memory_map.weight, torch.eye(32))
