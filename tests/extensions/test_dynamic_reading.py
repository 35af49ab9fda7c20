"""Dynamic reading speed: when segments grow, and how memory embeddings pass from one speed to the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hmt import HMTConfig, HMTForCausalLM, MemoryState
from hmt.extensions.dynamic_reading import FAST, DynamicReading
from hmt.memory.bank import Bank
from tests.conftest import make_backbone, make_model, random_ids


def dynamic(**fields: object) -> HMTForCausalLM:
    """A window of 20 with 8 sensory tokens: segments of 10 tokens, of 14 where they are read fast."""
    return make_model(num_sensory=8, dynamic_reading=True, **fields)


def extension(model: HMTForCausalLM) -> DynamicReading:
    """The two reading speeds of a model."""
    found = model.extensions["dynamic_reading"]
    assert isinstance(found, DynamicReading)
    return found


def recall_only(model: HMTForCausalLM, oldest: bool) -> None:
    """Make recall choose always the oldest slot, or always the newest."""

    def bias(bank: Bank) -> Tensor:
        return bank.segments.float() * (-1e3 if oldest else 1e3)

    model.memory.retention.recall_bias = bias  # type: ignore[method-assign]


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
    whole = HMTForCausalLM.run_body

    def noted(self: HMTForCausalLM, embeddings: Tensor) -> Tensor:
        widths.append(embeddings.shape[1])
        return whole(self, embeddings)

    monkeypatch.setattr(HMTForCausalLM, "run_body", noted)
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
    model = dynamic()
    state = model.initial_state(3)
    state.extras[FAST].fill_(True)
    every = torch.ones(3, dtype=torch.bool)
    embeddings = torch.randn(3, 2, 32)
    mapped = extension(model).map_recalled(state, embeddings)
    assert (mapped - embeddings).abs().max() > 0.1
    back, _ = extension(model).after_segment(state, mapped, every, every)
    torch.testing.assert_close(back, embeddings, atol=1e-4, rtol=1e-4)
    assert extension(model).after_segment(state, mapped.bfloat16(), every, every)[0].dtype == torch.bfloat16
    assert torch.equal(extension(model).map_recalled(model.initial_state(3), embeddings), embeddings)


@torch.no_grad()
def test_a_new_map_is_the_identity() -> None:
    settings = {"sensory": "reread", "segment_length": 20, "num_sensory": 8, "dynamic_reading": True}
    model = HMTForCausalLM.from_backbone(make_backbone(), **settings)
    assert torch.equal(extension(model).weight, torch.eye(32))


def test_only_segments_that_are_read_fast_pass_through_the_map() -> None:
    model = dynamic()
    recall_only(model, oldest=False)
    ids = random_ids(1, 60)
    weight = extension(model).weight
    (slow,) = torch.autograd.grad(model(ids[:, :20], labels=ids[:, :20]).loss, weight)
    assert not slow.any()
    (used,) = torch.autograd.grad(model(ids, labels=ids).loss, weight)
    assert used.abs().max() > 0


@torch.no_grad()
def test_what_a_fast_segment_recalls_passes_through_the_map() -> None:
    model = dynamic(memory_gain=2.0)
    recall_only(model, oldest=False)
    ids = random_ids(1, 34)
    expected = model(ids).logits
    extension(model).weight.neg_()
    got = model(ids).logits
    assert torch.equal(got[:, :20], expected[:, :20])
    assert (got - expected)[:, 20:].abs().max() > 1e-2


@torch.no_grad()
def test_what_a_fast_segment_leaves_is_kept_in_the_space_of_normal_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model = dynamic(mem_recall_context=20)
    recall_only(model, oldest=False)
    ids = random_ids(1, 34)
    raw = []
    hook = extension(model).after_segment

    def noted(state: MemoryState, left_behind: Tensor, *others: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        raw.append(left_behind)
        return hook(state, left_behind, *others)

    monkeypatch.setattr(extension(model), "after_segment", noted)
    embeddings = model.remember(ids).bank.embeddings
    assert torch.equal(embeddings[:, :2], torch.cat(raw[:2], dim=1))
    torch.testing.assert_close(embeddings[:, 2:] @ extension(model).weight.T, raw[2], atol=1e-4, rtol=0)
    assert (embeddings[:, 2:] - raw[2]).abs().max() > 1e-2


@torch.no_grad()
def test_the_speed_is_a_part_of_a_saved_memory(tmp_path: Path) -> None:
    model = dynamic()
    recall_only(model, oldest=False)
    state = model.remember(random_ids(1, 25))
    assert state.extras[FAST].tolist() == [True]
    state.save(tmp_path / "fast.memory")
    restored = MemoryState.load(tmp_path / "fast.memory")
    assert restored.extras[FAST].tolist() == [True]
    with pytest.raises(ValueError, match="dynamic_reading"):
        make_model(num_sensory=8).remember(random_ids(1, 5), restored)


@torch.no_grad()
def test_a_segment_takes_no_more_tokens_than_its_speed_has_room_for() -> None:
    model = dynamic()
    recall_only(model, oldest=False)
    state = model.remember(random_ids(1, 20))
    model.step(random_ids(1, 14), state)
    with pytest.raises(ValueError, match=r"14 .*15"):
        model.step(random_ids(1, 15), state)
    with pytest.raises(ValueError, match=r"10 .*11"):
        model.step(random_ids(1, 11))


def test_it_needs_sensory_tokens_to_halve_and_leaves_other_modes_alone() -> None:
    with pytest.raises(ValueError, match=r"dynamic_reading .*num_sensory"):
        HMTConfig(sensory="reread", num_sensory=1, dynamic_reading=True).check()
    with pytest.raises(ValueError, match="dynamic_reading"):
        HMTConfig(sensory="cache", dynamic_reading=True).check()
    assert HMTConfig(sensory="reread", num_sensory=8, dynamic_reading=True, mode="rmt").speed_tokens == 0
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
    assert torch.equal(extension(again).weight, extension(model).weight)
    make_model(num_sensory=8).save_pretrained(tmp_path / "plain")
    later = HMTForCausalLM.from_pretrained(tmp_path / "plain", dynamic_reading=True)
    assert torch.equal(extension(later).weight, torch.eye(32))
