"""One text, many ways to read it, one result. The backbone of the suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hmt import HMTForCausalLM, MemoryState
from hmt.model.stream import groups
from tests.conftest import FAMILIES, make_model, random_ids

MODES = ("hmt", "short_term", "rmt", "backbone")
VARIANTS: list[dict[str, Any]] = [
    {},
    {"recall_query": "previous", "num_sensory": 14},
    {"memory_injection": "published", "memory_policy": "merge", "mem_recall_context": 3},
    {"mode": "short_term"},
    {"mode": "rmt", "num_memory_tokens": 2},
    {"mode": "backbone"},
    {"num_memory_tokens": 2, "memory_policy": "usage", "mem_recall_context": 5, "retention_protected": 1},
    {"num_memory_tokens": 2, "memory_policy": "merge", "mem_recall_context": 5},
    {"memory_policy": "attention", "mem_recall_context": 3, "recall_query": "previous"},
    {"inject_autoencoder": True, "sum_fraction": 0.3},
    {"dynamic_reading": True},
    {"dynamic_reading": True, "recall_query": "previous", "num_sensory": 5, "segment_length": 21},
]  # fmt: skip


def assert_same_state(got: MemoryState, expected: MemoryState, atol: float = 1e-5) -> None:
    """Compare two states value by value, wherever a slot is valid."""
    assert torch.equal(got.tokens_read, expected.tokens_read)
    assert torch.equal(got.segments_read, expected.segments_read)
    assert torch.equal(got.pending_counts, expected.pending_counts)
    assert all(torch.equal(got.extras[name], expected.extras[name]) for name in expected.extras)
    for name in ("tail", "pending"):
        for row in range(got.batch_size):
            left, right = (getattr(s, f"{name}_ids")[row][getattr(s, f"{name}_valid")[row]] for s in (got, expected))
            assert torch.equal(left, right), name
    for row in range(got.batch_size):
        kept, wanted = got.bank.valid[row], expected.bank.valid[row]
        assert torch.equal(got.bank.segments[row][kept], expected.bank.segments[row][wanted])
        torch.testing.assert_close(
            got.bank.embeddings[row][kept], expected.bank.embeddings[row][wanted], atol=atol, rtol=0
        )
        torch.testing.assert_close(got.bank.usage[row][kept], expected.bank.usage[row][wanted], atol=atol, rtol=0)
        assert torch.equal(got.bank.merged[row][kept], expected.bank.merged[row][wanted])
        assert torch.equal(got.bank.tokens[row][kept], expected.bank.tokens[row][wanted])


def stepwise(model: HMTForCausalLM, ids: Tensor) -> tuple[Tensor, MemoryState]:
    """Logits and state of one row from calling `step` by hand, a segment at a time."""
    logits, state = [], model.initial_state()
    while ids.shape[1]:
        length = int(model.segment_tokens(state))
        output, state = model.step(ids[:, :length], state)
        logits.append(output.logits)
        ids = ids[:, length:]
    return torch.cat(logits, dim=1), state


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
@torch.no_grad()
def test_one_call_equals_step_by_step(fields: dict[str, Any]) -> None:
    model = make_model(**fields)
    ids = random_ids(2, 100)
    output = model(ids)
    for row in range(2):
        logits, state = stepwise(model, ids[row : row + 1])
        torch.testing.assert_close(output.logits[row], logits[0], atol=1e-5, rtol=0)
        assert_same_state(output.memory.map(lambda t, i=row: t[i : i + 1]), state)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_family_reads_in_segments_as_in_one_call(family: str) -> None:
    model = make_model(family)
    ids = random_ids(2, 50)
    output = model(ids, labels=ids)
    assert output.loss.isfinite()
    for row in range(2):
        logits, state = stepwise(model, ids[row : row + 1])
        torch.testing.assert_close(output.logits[row], logits[0], atol=1e-4, rtol=0)
        assert_same_state(output.memory.map(lambda t, i=row: t[i : i + 1]), state, atol=1e-4)


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
@torch.no_grad()
def test_reading_in_two_calls_equals_reading_in_one(fields: dict[str, Any]) -> None:
    model = make_model(**fields)
    ids = random_ids(2, 70, seed=1)
    whole = model.remember(ids)
    for split in (1, 14, 27, 69):
        parts = model.remember(ids[:, split:], model.remember(ids[:, :split]))
        assert_same_state(parts, whole)
    assert_same_state(model(ids[:, 29:], memory=model(ids[:, :29]).memory).memory, whole)


@torch.no_grad()
def test_reading_token_by_token_equals_reading_in_one(model: HMTForCausalLM) -> None:
    ids = random_ids(1, 33)
    state = None
    for token in ids.split(1, dim=1):
        state = model.remember(token, state)
    assert_same_state(state, model.remember(ids))


@pytest.mark.parametrize(
    "fields", [{"recall_query": "previous"}, {"mode": "short_term"}, {"mode": "backbone"}], ids=str
)
@torch.no_grad()
def test_causal_modes_give_the_same_logits_wherever_the_text_is_split(fields: dict[str, Any]) -> None:
    model = make_model(**fields)
    ids = random_ids(1, 70)
    whole = model(ids).logits
    for split in (3, 14, 31):
        first = model(ids[:, :split])
        second = model(ids[:, split:], memory=first.memory)
        got = torch.cat([first.logits, second.logits], dim=1)
        torch.testing.assert_close(got, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
@torch.no_grad()
def test_a_saved_and_restored_memory_goes_on_as_if_nothing_had_happened(fields: dict[str, Any], tmp_path: Path) -> None:
    model = make_model(**fields)
    ids = random_ids(2, 90)
    state = model.remember(ids[:, :47])
    state.save(tmp_path / "text.memory")
    restored = MemoryState.load(tmp_path / "text.memory")
    after, expected = (model(ids[:, 47:], memory=memory) for memory in (restored, state))
    assert torch.equal(after.logits, expected.logits)
    assert_same_state(after.memory, expected.memory, atol=0)


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
@torch.no_grad()
def test_a_row_in_a_batch_reads_as_it_does_alone(fields: dict[str, Any]) -> None:
    model = make_model(**fields)
    rows = [random_ids(1, length, seed=length)[0] for length in (70, 1, 33, 14)]
    texts = [model(row[None], labels=row[None]) for row in rows]
    width = 76
    for share in (0, 0.5, 1):  # of the padding that stands on the left
        ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
        for index, row in enumerate(rows):
            start = int(share * (width - len(row)))
            ids[index, start : start + len(row)] = row
            mask[index, start : start + len(row)] = True
        output = model(ids, attention_mask=mask, labels=ids)
        assert not output.logits[~mask].any()
        assert not output.nll[~output.scored_mask].any()
        for index, alone in enumerate(texts):
            scored = output.scored_mask[index]
            torch.testing.assert_close(output.logits[index][mask[index]], alone.logits[0], atol=1e-4, rtol=0)
            torch.testing.assert_close(output.nll[index][scored], alone.nll[0], atol=1e-4, rtol=0)
            assert torch.equal(output.causal_mask[index][scored], alone.causal_mask[0])
            assert_same_state(output.memory.map(lambda t, i=index: t[i : i + 1]), alone.memory, atol=1e-4)


@torch.no_grad()
def test_rows_at_different_places_of_their_segments_go_on_together() -> None:
    model = make_model()
    texts = [random_ids(1, n, seed=n)[0] for n in (60, 41)]
    first, mask = torch.zeros(2, 20, dtype=torch.long), torch.ones(2, 20)
    first[0], first[1, :9], mask[1, 9:] = texts[0][:20], texts[1][:9], 0
    state = model.remember(first, attention_mask=mask)
    second, mask = torch.zeros(2, 40, dtype=torch.long), torch.ones(2, 40)
    second[0], second[1, :32], mask[1, 32:] = texts[0][20:], texts[1][9:], 0
    output = model(second, attention_mask=mask, memory=state)
    for index, text in enumerate(texts):
        assert_same_state(output.memory.map(lambda t, i=index: t[i : i + 1]), model.remember(text[None]))


@torch.no_grad()
def test_logits_of_rows_at_different_places_stay_with_their_tokens() -> None:
    model = make_model()
    texts = [random_ids(1, n, seed=n)[0] for n in (17, 14)]
    state = model.remember(torch.stack([texts[0][:3], texts[0][:3]]))
    ids, mask = torch.zeros(2, 17, dtype=torch.long), torch.ones(2, 17)
    ids[0, :14], ids[1, :14], mask[:, 14:] = texts[0][3:], texts[1], 0
    alone = MemoryState.map  # each row on its own
    both = model(ids, attention_mask=mask, memory=state, labels=ids)
    for row in range(2):
        own = model(
            ids[row : row + 1, :14], memory=alone(state, lambda t, r=row: t[r : r + 1]), labels=ids[row : row + 1, :14]
        )
        torch.testing.assert_close(both.logits[row, :14], own.logits[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(both.nll[row, :13], own.nll[0], atol=1e-5, rtol=0)
    # Rows 3 and 0 tokens into their segments, as wide together as the call itself.
    mixed = model.remember(torch.tensor([[5, 6, 7], [5, 0, 0]]), attention_mask=torch.tensor([[1, 1, 1], [1, 0, 0]]))
    output = model(ids, attention_mask=mask, memory=mixed)
    for row in range(2):
        own = model(ids[row : row + 1, :14], memory=alone(mixed, lambda t, r=row: t[r : r + 1]))
        torch.testing.assert_close(output.logits[row, :14], own.logits[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_row_that_has_ended_waits_while_the_others_go_on(model: HMTForCausalLM) -> None:
    ids = random_ids(2, 40)
    state = model.remember(ids[:, :20])
    mask = torch.tensor([[1] * 20, [0] * 20])
    after = model.remember(ids[:, 20:], state, attention_mask=mask)
    assert_same_state(after.map(lambda t: t[1:]), state.map(lambda t: t[1:]))
    assert_same_state(after.map(lambda t: t[:1]), model.remember(ids[:1]))


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_a_segment_without_a_token_of_a_row_leaves_its_memory_untouched(mode: str) -> None:
    model = make_model(mode=mode)
    length = model.config.fresh_tokens
    state = model.remember(random_ids(2, 2 * length + 3))
    rest = length - 3
    mask = torch.tensor([[True] * rest, [False] * rest])
    _, after = model.step(random_ids(2, rest, seed=3), state, segment_mask=mask)
    assert_same_state(after.map(lambda t: t[1:]), state.map(lambda t: t[1:]), atol=0)
    assert after.segments_read.tolist() == [3, 2]


@torch.no_grad()
def test_step_changes_nothing_but_what_it_returns(model: HMTForCausalLM) -> None:
    state = model.remember(random_ids(1, 45))
    before = state.clone()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    once, again = (model.step(random_ids(1, 11), state)[0].logits for _ in range(2))
    assert torch.equal(once, again)
    assert_same_state(state, before, atol=0)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_summaries_give_the_same_however_many_run_at_once() -> None:
    ids = random_ids(2, 150)
    one, many = (make_model(summary_batch_tokens=n)(ids).logits for n in (1, 10_000))
    torch.testing.assert_close(one, many, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_head_on_scored_positions_gives_the_nats_of_the_whole_logits(model: HMTForCausalLM) -> None:
    ids = random_ids(2, 60)
    labels = ids.clone()
    labels[:, 5:30] = -100
    with_logits, without = (model(ids, labels=labels, return_logits=flag) for flag in (True, False))
    assert without.logits is None
    torch.testing.assert_close(with_logits.nll, without.nll, atol=1e-5, rtol=0)
    shifted = torch.nn.functional.cross_entropy(with_logits.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert with_logits.loss.item() == pytest.approx(shifted.item(), abs=1e-5)
    assert not without.nll[:, 4:29].any()


def test_without_embeddings_only_segments_that_are_scored_are_read() -> None:
    model, ids = make_model(mode="backbone"), random_ids(2, 100)
    labels = ids.masked_fill(torch.arange(100) < 80, -100)
    calls: list[int] = []
    with torch.no_grad():
        whole = model(ids, labels=labels)
        hook = model.backbone.base_model.register_forward_hook(lambda *_: calls.append(1))
        scored = model(ids, labels=labels, return_logits=False)
        length = model.config.fresh_tokens
        assert len(calls) == -(-100 // length) - 79 // length  # the first target is predicted from token 79
        state = model.remember(ids)
        assert len(calls) == -(-100 // length) - 79 // length
        hook.remove()
    torch.testing.assert_close(scored.nll, whole.nll)
    for found in (scored.memory, state):
        assert_same_state(found, whole.memory)


def test_groups_hold_every_number_once_in_few_sizes() -> None:
    sizes = set()
    for end in range(1, 80):
        found = list(groups(1, end, 18, few_sizes=True))
        assert [number for group in found for number in group] == list(range(1, end))
        sizes |= {len(group) for group in found}
    assert sizes == {18, 16, 8, 4, 2, 1}
    assert [len(group) for group in groups(1, 33, 18, few_sizes=False)] == [18, 14]
