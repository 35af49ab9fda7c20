"""Generation goes through the step: what it writes is what reading would predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from hmt import HMTForCausalLM, MemoryState
from tests.conftest import FAMILIES, byte_tokenizer, make_backbone, make_model, random_ids
from tests.model.test_equivalence import VARIANTS, assert_same_state


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
@torch.no_grad()
def test_greedy_text_is_the_repeated_argmax_of_forward(fields: dict[str, Any]) -> None:
    model = make_model(**fields)
    ids = random_ids(1, 25)
    got = model.generate(ids, max_new_tokens=30, eos_token_id=None)
    ahead = model.config.query == "prefix"
    compared = 0
    for end in range(25, 55, 2):
        # While a "prefix" query waits for its tokens, the prompt is that of a "previous" one.
        output = model(got[:, :end])
        waiting = ahead and 0 < int(output.memory.pending_counts) < int(model.query_tokens(output.memory))
        if not waiting:
            assert output.logits[0, -1].argmax() == got[0, end], end
            compared += 1
    assert compared >= 6


@pytest.mark.parametrize("family", FAMILIES)
def test_without_memory_and_within_a_window_it_is_the_backbones_own_text(family: str) -> None:
    model = make_model(family, mode="backbone", num_sensory=0, segment_length=64)
    ids = random_ids(2, 20)
    expected = make_backbone(family).generate(ids, max_new_tokens=30, do_sample=False, eos_token_id=None)
    assert torch.equal(model.generate(ids, max_new_tokens=30, eos_token_id=None), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_different_length_get_the_text_they_get_alone(family: str) -> None:
    model = make_model(family, memory_injection="published")
    rows = [random_ids(1, n, seed=n)[0] for n in (40, 9, 28)]
    texts = [model.generate(row[None], max_new_tokens=20, eos_token_id=None)[0, len(row) :] for row in rows]
    for side in ("left", "right"):
        ids, mask = torch.zeros(3, 40, dtype=torch.long), torch.zeros(3, 40, dtype=torch.long)
        for index, row in enumerate(rows):
            where = slice(40 - len(row), 40) if side == "left" else slice(0, len(row))
            ids[index, where], mask[index, where] = row, 1
        got = model.generate(ids, attention_mask=mask, max_new_tokens=20, eos_token_id=None)
        assert torch.equal(got[:, 40:], torch.stack(texts))


def test_padding_tokens_are_padding_where_no_text_ends_with_them() -> None:
    model = make_model()
    ids = random_ids(2, 20).clamp(min=3)
    ids[0, :7] = 0
    ids[1, 5] = 0  # within a text it is text
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    settings = {"max_new_tokens": 9, "eos_token_id": 2, "pad_token_id": 0}
    expected = model.generate(ids, attention_mask=mask, **settings)
    assert torch.equal(model.generate(ids, **settings), expected)
    everything = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    assert not torch.equal(everything, expected)
    assert torch.equal(model.generate(ids, max_new_tokens=9, eos_token_id=0, pad_token_id=0)[1], model.generate(
        ids[1:], max_new_tokens=9, eos_token_id=0, pad_token_id=0)[0])  # fmt: skip


@pytest.mark.parametrize(("family", "sharpness"), [("llama", 10), ("gemma3", 10), ("mamba", 1)])
@torch.no_grad()
def test_a_row_in_a_batch_is_written_from_the_hidden_states_it_has_alone(family: str, sharpness: float) -> None:
    """Greedy tokens hide small differences."""
    model = make_model(family, memory_injection="published")
    for weight in (model.memory.recall.wq.weight, model.memory.recall.wk.weight):
        weight.mul_(sharpness)  # sharp recall: the query matters (and a recurrent backbone amplifies rounding)
    texts = random_ids(3, 90)
    starts = torch.tensor([30, 41, 54])
    states = [model.remember(texts[row : row + 1, :start]) for row, start in enumerate(starts.tolist())]
    ids, mask = torch.zeros(3, 54, dtype=torch.long), torch.zeros(3, 54)
    for row, start in enumerate(starts.tolist()):
        ids[row, :start], mask[row, :start] = texts[row, :start], 1
    together = model.remember(ids, attention_mask=mask)
    for step in range(30):
        tokens = texts[torch.arange(3), starts + step][:, None]
        output, together = model.step(tokens, together, causal=True, return_logits=False)
        for row in range(3):
            own, states[row] = model.step(tokens[row : row + 1], states[row], causal=True, return_logits=False)
            expected = own.hidden[0, 0]
            torch.testing.assert_close(output.hidden[row, 0], expected, atol=1e-3, rtol=0, msg=f"row {row}, {step}")


def test_an_end_of_text_and_fifty_candidates_are_the_defaults_of_transformers(model: HMTForCausalLM) -> None:
    ids = random_ids(1, 20)
    model.generation_config.eos_token_id = int(model.generate(ids, max_new_tokens=5, eos_token_id=None)[0, 23])
    assert model.generate(ids, generation_config=GenerationConfig(max_new_tokens=8)).shape[1] <= 24
    drawn = model.generate(ids.repeat(400, 1), max_new_tokens=1, do_sample=True, temperature=100.0)[:, -1]
    assert 20 < len(drawn.unique()) <= 50


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_writing_a_text_leaves_the_memory_of_reading_it(fields: dict[str, Any]) -> None:
    model = make_model(**fields)
    out = model.generate(random_ids(1, 25), max_new_tokens=40, eos_token_id=None, return_dict_in_generate=True)
    assert_same_state(out.memory, model.remember(out.sequences[:, :-1]))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_writes_what_it_would_read(family: str) -> None:
    model = make_model(family, recall_query="previous", memory_injection="published", num_memory_tokens=2)
    out = model.generate(random_ids(2, 25), max_new_tokens=40, eos_token_id=None, return_dict_in_generate=True)
    assert_same_state(out.memory, model.remember(out.sequences[:, :-1]), atol=1e-4)
    logits = model(out.sequences).logits
    assert torch.equal(logits[:, 24:-1].argmax(-1), out.sequences[:, 25:])


def test_each_token_costs_one_position(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(mode="short_term")
    model.generate(random_ids(1, 5), max_new_tokens=2)  # tries the backbone once
    sizes: list[int] = []
    forward = model.backbone.model.forward
    monkeypatch.setattr(
        model.backbone.model,
        "forward",
        lambda *args, **inputs: sizes.append(inputs["inputs_embeds"].shape[1]) or forward(*args, **inputs),
    )
    model.generate(random_ids(1, 14 * 3 + 2), max_new_tokens=1 + 14 * 2, eos_token_id=None)
    reading, writing = sizes[:4], sizes[4:]
    assert reading == [16, 20, 20, 1 + 4 + 2]  # three whole segments, then [prompt | sensory | two tokens]
    # Twelve tokens fill the segment and the trailing prompt closes it; a new window starts with the next token.
    assert writing == [1] * 12 + [1] + [1 + 4 + 1] + [1] * 13 + [1] + [1 + 4 + 1, 1]


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_a_prompt_in_two_parts_and_an_answer_in_two_calls_are_the_same_text(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    model = make_model(**fields)
    ids = random_ids(1, 60)
    whole = model.generate(ids, max_new_tokens=20, eos_token_id=None)
    for split in (28, 59):
        memory = model.remember(ids[:, :split])
        parts = model.generate(ids[:, split:], memory=memory, max_new_tokens=20, eos_token_id=None)
        assert torch.equal(parts[:, 60 - split :], whole[:, 60:])
    for stop in (1, 11):
        first = model.generate(ids, max_new_tokens=stop, eos_token_id=None, return_dict_in_generate=True)
        first.memory.save(tmp_path / "memory")
        memory = MemoryState.load(tmp_path / "memory")
        rest = model.generate(first.sequences[:, -1:], memory=memory, max_new_tokens=20 - stop, eos_token_id=None)
        assert torch.equal(rest[:, 1:], whole[:, 60 + stop :])


def test_rows_end_at_their_own_end_of_text() -> None:
    model = make_model()
    ids = random_ids(2, 20)
    free = model.generate(ids, max_new_tokens=12, eos_token_id=None)
    stop = int(free[0, 24])
    first = (free[0, 20:] == stop).nonzero()[0].item() + 1
    got = model.generate(ids, max_new_tokens=12, eos_token_id=stop, pad_token_id=0)
    assert torch.equal(got[0, : 20 + first], free[0, : 20 + first])
    assert not got[0, 20 + first :].any()


def test_the_streamer_gets_the_prompt_and_each_token(model: HMTForCausalLM) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.parts: list[torch.Tensor] = []
            self.ended = False

        def put(self, value: torch.Tensor) -> None:
            self.parts.append(value.flatten())

        def end(self) -> None:
            self.ended = True

    recorder = Recorder()
    out = model.generate(random_ids(1, 20), max_new_tokens=5, eos_token_id=None, streamer=recorder)
    assert torch.equal(torch.cat(recorder.parts), out[0])
    assert recorder.ended


def test_what_was_recalled_while_writing_can_be_read(model: HMTForCausalLM) -> None:
    ids = random_ids(1, 60)
    memory = model.remember(ids)
    out = model.generate(
        random_ids(1, 5, seed=1),
        memory=memory,
        max_new_tokens=30,
        eos_token_id=None,
        output_recall=True,
        return_dict_in_generate=True,
    )
    strongest = out.recall.strongest(10)
    shares = [share for _, share in strongest]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    assert {number for number, _ in strongest} <= set(range(7))
    text = torch.cat([ids, out.sequences], dim=1)[0]
    kept = [number for number in range(7) if out.memory.segment_tokens(number) is not None]
    assert len(kept) == model.config.mem_recall_context
    for number in kept:
        assert torch.equal(out.memory.segment_tokens(number), text[number * 14 : number * 14 + 14])


def test_two_questions_on_one_memory_do_not_disturb_each_other(model: HMTForCausalLM) -> None:
    book = model.remember(random_ids(1, 75))
    before = book.clone()
    questions = [random_ids(1, 20, seed=seed) for seed in (1, 2, 1)]
    answers = [model.generate(q, memory=book, max_new_tokens=20, eos_token_id=None) for q in questions]
    assert torch.equal(answers[0], answers[2])
    assert not torch.equal(answers[0][:, 20:], answers[1][:, 20:])
    assert_same_state(book, before)


def test_a_text_ends_with_an_end_token_of_the_tokenizer_too() -> None:
    model, tokenizer = make_model(), byte_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    end = tokenizer.eos_token_id
    model.use_tokenizer(tokenizer)
    for token in (end, 2):
        found = model.generate(random_ids(1, 20), max_new_tokens=5, sequence_bias=[[[token], 100.0]])
        assert found[0, 20:].tolist() == [token]
