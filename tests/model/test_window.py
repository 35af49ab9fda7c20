"""The rolling window: one text, many ways to read it, one result; and transformers' own sliding window."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from hmt import HMTForCausalLM, MemoryState
from hmt.memory.window import RECALLED
from hmt.model import window_attention
from tests.conftest import FAMILIES, SMALL, make_backbone, make_model, make_rolling, random_ids

ROLLING = [
    "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi", "gpt_neox", "granite", "cohere", "mamba",
]  # fmt: skip
"""Families with a rolling cache."""

REREAD = ["opt", "opt_projected", "gpt2"]
"""Families whose positions cannot be moved."""

TOKENS = 90
SETTINGS: list[dict[str, Any]] = [
    {},
    {"read_chunk_tokens": 7},
    {"num_recalled_tokens": 0, "num_sinks": 0},
    {"mode": "backbone"},
    {"num_memory_tokens": 1, "segment_length": 30, "num_sensory": 8},
    {"num_memory_tokens": 2, "segment_length": 30, "num_sensory": 8, "mem_recall_context": 4},
    {"mode": "short_term", "segment_length": 30, "num_sensory": 8},
    {"mode": "rmt", "segment_length": 30},
]


def in_parts(model: HMTForCausalLM, ids: Tensor, sizes: list[int]) -> tuple[Tensor, MemoryState]:
    """Logits (B, T, V) and state of reading in calls of these sizes."""
    logits, memory = [], None
    for part in ids.split(sizes, dim=1):
        output = model(part, memory=memory)
        logits.append(output.logits)
        memory = output.memory
    return torch.cat(logits, dim=1), memory


def small_limit(model: HMTForCausalLM, limit: int) -> HMTForCausalLM:
    """The model with a backbone that counts as trained on so many positions."""
    model.backbone.config.get_text_config().max_position_embeddings = limit
    return model


@pytest.mark.parametrize("fields", SETTINGS, ids=str)
@pytest.mark.parametrize("limit", [512, 40])
@torch.no_grad()
def test_no_number_depends_on_the_size_of_the_parts(fields: dict[str, Any], limit: int) -> None:
    model = small_limit(make_rolling(**fields), limit)
    ids = random_ids(2, TOKENS)
    whole = model(ids)
    for sizes in ([31, 1, 58], [1] * TOKENS, [TOKENS - 1, 1]):
        logits, memory = in_parts(model, ids, sizes)
        torch.testing.assert_close(logits, whole.logits, atol=1e-4, rtol=0)
        assert torch.equal(memory.pending_counts, whole.memory.pending_counts)
        assert [memory.bank.text(row).tolist() for row in (0, 1)] == [
            whole.memory.bank.text(row).tolist() for row in (0, 1)
        ]
        torch.testing.assert_close(memory.bank.embeddings, whole.memory.bank.embeddings, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ROLLING)
@torch.no_grad()
def test_every_family_reads_token_by_token_as_in_one_call(family: str) -> None:
    model = small_limit(make_rolling(family), 40)
    ids = random_ids(2, 60)
    logits, _ = in_parts(model, ids, [20] + [1] * 40)
    # The scan of a state-space model over a text and its single steps are other kernels.
    atol = 1e-3 if family == "mamba" else 1e-4
    torch.testing.assert_close(logits, model(ids).logits, atol=atol, rtol=0)


@pytest.mark.parametrize("family", [family for family in ROLLING if family != "mamba"])
@torch.no_grad()
def test_a_window_that_holds_the_whole_text_is_the_plain_backbone(family: str) -> None:
    model = make_rolling(family, num_sensory=100, segment_length=None)
    ids = random_ids(2, 60)
    expected = model.backbone(input_ids=ids).logits
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
@torch.no_grad()
def test_without_sinks_and_recall_it_is_the_sliding_window_of_transformers(family: str) -> None:
    reach = 11
    model = make_rolling(
        "llama" if family == "mistral" else family, num_sinks=0, num_recalled_tokens=0, segment_length=reach + 1
    )
    own = FAMILIES[family] | {"sliding_window": reach + 1, "use_sliding_window": True, "max_window_layers": 0}
    sliding = AutoModelForCausalLM.from_config(AutoConfig.for_model(**own)).eval()
    sliding.load_state_dict(model.backbone.state_dict())
    ids = random_ids(2, 70)
    expected = sliding(input_ids=ids, use_cache=False).logits
    assert not torch.allclose(expected, model.backbone(input_ids=ids).logits, atol=1e-2)
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gemma3", "cohere", "mamba"])
@pytest.mark.parametrize("side", ["left", "right", "both"])
@torch.no_grad()
def test_a_row_in_a_batch_reads_as_it_does_alone(family: str, side: str) -> None:
    model = small_limit(make_rolling(family), 40)
    lengths = (70, 13, 44)
    ids, mask = torch.zeros(3, 74, dtype=torch.long), torch.zeros(3, 74, dtype=torch.bool)
    for row, length in enumerate(lengths):
        start = {"left": 74 - length, "right": 0, "both": 2}[side]
        ids[row, start : start + length] = random_ids(1, length, seed=row)[0]
        mask[row, start : start + length] = True
    first = (
        model(ids[:, :40], attention_mask=mask[:, :40] | (mask.sum(1, keepdim=True) < 0)) if side == "right" else None
    )
    output = model(ids, attention_mask=mask)
    for row, length in enumerate(lengths):
        alone = model(random_ids(1, length, seed=row))
        torch.testing.assert_close(output.logits[row][mask[row]], alone.logits[0], atol=1e-4, rtol=0)
    if first is not None:
        rest = model(ids[:1, 40:70], memory=first.memory.map(lambda t: t[:1]))
        torch.testing.assert_close(rest.logits, output.logits[:1, 40:70], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "mamba"])
@torch.no_grad()
def test_generated_tokens_are_the_arg_max_of_reading_them(family: str) -> None:
    model = small_limit(make_rolling(family), 40)
    ids = random_ids(2, 50)
    written = model.generate(ids, max_new_tokens=30, do_sample=False, eos_token_id=None)
    logits = model(written).logits
    assert torch.equal(logits[:, 49:-1].argmax(dim=-1), written[:, 50:])


@pytest.mark.parametrize("family", ["llama", "gemma2", "mamba"])
@torch.no_grad()
def test_an_exact_file_goes_on_as_if_nothing_had_happened(family: str, tmp_path: Path) -> None:
    model = make_rolling(family)
    ids, more = random_ids(1, 61), random_ids(1, 9, seed=3)
    state = model.remember(ids)
    expected = model(more, memory=state).logits
    state.save(tmp_path / "exact.memory", exact=True)
    restored = MemoryState.load(tmp_path / "exact.memory")
    torch.testing.assert_close(model(more, memory=restored).logits, expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_compact_file_reads_its_last_tokens_once_more(tmp_path: Path) -> None:
    model = make_rolling(read_chunk_tokens=5)
    ids, more = random_ids(2, 61), random_ids(2, 9, seed=3)
    state = model.remember(ids)
    state.save(tmp_path / "compact.memory")
    state.save(tmp_path / "exact.memory", exact=True)
    assert (tmp_path / "compact.memory").stat().st_size < 0.5 * (tmp_path / "exact.memory").stat().st_size
    restored = MemoryState.load(tmp_path / "compact.memory")
    kept = model.config.sinks + model.config.sensory_tokens
    again = model.variant(num_recalled_tokens=0, segment_length=None, num_sensory=model.config.sensory_tokens)
    # Positions behind the sinks leave room for passages; distances within the last tokens are those of the text.
    expected = model(more, memory=replace(model.remember(ids[:, -kept:]), tokens_read=state.tokens_read)).logits
    got = model(more, memory=restored).logits
    assert got.shape == expected.shape
    assert again.config.sensory_tokens == model.config.sensory_tokens
    assert got.isfinite().all()
    plain = model(more).logits
    assert (got - model(more, memory=state).logits).abs().mean() < (plain - got).abs().mean()


@torch.no_grad()
def test_a_short_text_survives_a_compact_file_exactly(tmp_path: Path) -> None:
    model = make_rolling()
    ids, more = random_ids(1, 12), random_ids(1, 9, seed=3)
    model.remember(ids).save(tmp_path / "short.memory")
    got = model(more, memory=MemoryState.load(tmp_path / "short.memory")).logits
    torch.testing.assert_close(got, model(torch.cat([ids, more], dim=1)).logits[:, 12:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_step_leaves_the_state_it_was_given_as_it_was() -> None:
    model = make_rolling()
    state = model.remember(random_ids(1, 50))
    one, other = random_ids(1, 6, seed=1), random_ids(1, 6, seed=2)
    expected = model(other, memory=state.clone()).logits
    grown = state
    for token in one.split(1, dim=1):  # grows the buffer that both share
        _, grown = model.step(token, grown)
    torch.testing.assert_close(model(other, memory=state).logits, expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_passages_stand_between_sinks_and_window_until_the_next_ones() -> None:
    model = small_limit(make_rolling(), 48)
    ids = random_ids(1, 70)
    state = model.remember(ids)
    question = ids[:, 20:26]
    recalled, passages = model.recall(question, state)
    assert passages
    assert any(set(question[0].tolist()) & set(passage.ids.tolist()) for passage in passages)
    for passage in passages:
        assert torch.equal(passage.ids, ids[0, passage.start : passage.start + len(passage.ids)])
        assert model.config.sinks <= passage.start
        assert passage.start + len(passage.ids) <= 70 - model.config.sensory_tokens
    window = recalled.window
    inside = window.valid & (window.kinds == RECALLED)
    assert int(inside.sum()) == sum(len(passage.ids) for passage in passages)
    oldest = int(window.oldest(model.config.sensory_tokens))
    assert sorted(window.positions[inside].tolist()) == list(range(oldest - int(inside.sum()), oldest))
    assert not torch.allclose(model(question, memory=recalled).logits, model(question, memory=state).logits)
    whole = model(torch.cat([question, random_ids(1, 40, seed=5)], dim=1), memory=recalled).logits
    logits, _ = in_parts_from(model, torch.cat([question, random_ids(1, 40, seed=5)], dim=1), recalled)
    torch.testing.assert_close(logits, whole, atol=1e-4, rtol=0)
    again, _ = model.recall(ids[:, 33:39], recalled)
    assert int((again.window.valid & (again.window.kinds == RECALLED)).sum()) <= model.config.recalled_tokens


def in_parts_from(model: HMTForCausalLM, ids: Tensor, memory: MemoryState) -> tuple[Tensor, MemoryState]:
    """Logits and state of reading token by token from a memory."""
    logits = []
    for part in ids.split(1, dim=1):
        output = model(part, memory=memory)
        logits.append(output.logits)
        memory = output.memory
    return torch.cat(logits, dim=1), memory


@torch.no_grad()
def test_nothing_is_recalled_for_what_was_never_mentioned() -> None:
    model = make_rolling()
    state = model.remember(3 + random_ids(1, 70) % 100)
    _, passages = model.recall(200 + random_ids(1, 6) % 50, state)
    assert passages == ()


@pytest.mark.parametrize("family", REREAD)
@torch.no_grad()
def test_families_without_movable_positions_are_refused_by_name_and_take_reread(family: str) -> None:
    fields = {"segment_length": 20, "num_sensory": 4, "mem_recall_hidden_dim": 16}
    assert HMTForCausalLM.from_backbone(make_backbone(family), **fields).config.sensory == "reread"
    with pytest.raises(ValueError, match="--sensory reread"):
        HMTForCausalLM.from_backbone(make_backbone(family), sensory="cache", **fields)


@torch.no_grad()
def test_where_positions_cannot_be_moved_passages_are_read_before_the_prompt() -> None:
    model = make_model("opt", num_recalled_tokens=8)
    ids = random_ids(1, 80)
    state = model.remember(ids)
    recalled, passages = model.recall(ids[:, 20:26], state)
    assert passages
    told = torch.cat([passage.ids for passage in passages])[None]
    expected = model(random_ids(1, 4, seed=2), memory=model.remember(told, state)).logits
    torch.testing.assert_close(model(random_ids(1, 4, seed=2), memory=recalled).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_flow_through_the_window_and_truncation_cuts_them(checkpointing: bool) -> None:
    model = make_rolling(num_memory_tokens=1, segment_length=30, num_sensory=8).train()
    ids = random_ids(2, 60)
    gradients = []
    for recompute, truncate in ((False, None), (checkpointing, None), (checkpointing, 1)):
        model.zero_grad()
        (model.gradient_checkpointing_enable if recompute else model.gradient_checkpointing_disable)()
        model(ids, labels=ids, return_logits=False, truncate_every=truncate, loss_tokens=10).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    plain, recomputed, cut = gradients
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-5, rtol=1e-4)
    embedding = "backbone.model.embed_tokens.weight"
    assert not torch.allclose(cut[embedding], plain[embedding], atol=1e-6)


@torch.no_grad()
def test_a_window_as_long_as_the_backbone_was_trained_on_is_not_moved_back_at_every_token() -> None:
    model, ids = small_limit(make_rolling(segment_length=100), 100), random_ids(1, 700)
    moves = []
    original = window_attention.move_back
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_attention, "move_back", lambda *given: moves.append(1) or original(*given))
        whole = model.remember(ids)
    assert 0 < len(moves) <= 700 // 25
    parts, _ = in_parts(model, ids, [300, 7, 393])
    torch.testing.assert_close(parts, model(ids).logits, atol=2e-5, rtol=2e-5)
    assert int(whole.window.next_position) <= 125


@torch.no_grad()
def test_a_long_stream_keeps_a_window_of_constant_size() -> None:
    model = make_rolling(mem_recall_context=4)
    state, sizes = None, []
    for seed in range(24):
        state = model.remember(random_ids(1, 100, seed=seed), state)
        sizes.append(state.window.nbytes)
    assert max(sizes[12:]) <= max(sizes[:12])
    assert state.bank.valid.shape[1] == 4


def test_settings_that_do_not_fit_the_window_are_refused() -> None:
    with pytest.raises(ValueError, match="segment_length"):
        make_rolling(segment_length=20, num_sensory=40)
    with pytest.raises(ValueError, match="recall_query"):
        make_rolling(num_memory_tokens=1, recall_query="prefix")
    assert SMALL["max_position_embeddings"] == 512
