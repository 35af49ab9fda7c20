"""Generation goes through the step: what it writes is what reading would predict."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from hmt import HMTForCausalLM
from tests.conftest import make_backbone, make_model, random_ids
from tests.model.test_equivalence import VARIANTS, assert_same_state


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
@torch.no_grad()
def test_greedy_text_is_the_repeated_argmax_of_forward(fields: dict[str, Any]) -> None:
    model = make_model(**fields)
    ids = random_ids(1, 25)
    got = model.generate(ids, max_new_tokens=30, eos_token_id=None)
    expected = ids
    for _ in range(30):
        expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mamba"])
def test_without_memory_and_within_a_window_it_is_the_backbones_own_text(family: str) -> None:
    model = make_model(family, mode="backbone", num_sensory=0, segment_length=64)
    ids = random_ids(2, 20)
    expected = make_backbone(family).generate(ids, max_new_tokens=30, do_sample=False, eos_token_id=None)
    assert torch.equal(model.generate(ids, max_new_tokens=30, eos_token_id=None), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_different_length_get_the_text_they_get_alone(side: str) -> None:
    model = make_model()
    rows = [random_ids(1, n, seed=n)[0] for n in (40, 9, 28)]
    ids, mask = torch.zeros(3, 40, dtype=torch.long), torch.zeros(3, 40, dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(40 - len(row), 40) if side == "left" else slice(0, len(row))
        ids[index, where], mask[index, where] = row, 1
    got = model.generate(ids, attention_mask=mask, max_new_tokens=25, eos_token_id=None)
    for index, row in enumerate(rows):
        alone = model.generate(row[None], max_new_tokens=25, eos_token_id=None)
        assert torch.equal(got[index, 40:], alone[0, len(row) :])


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_writing_a_text_leaves_the_memory_of_reading_it(fields: dict[str, Any]) -> None:
    model = make_model(**fields)
    out = model.generate(random_ids(1, 25), max_new_tokens=40, eos_token_id=None, return_dict_in_generate=True)
    assert_same_state(out.memory, model.remember(out.sequences[:, :-1]))


def test_a_prompt_after_a_memory_is_the_whole_text() -> None:
    model = make_model()
    ids = random_ids(1, 60)
    whole = model.generate(ids, max_new_tokens=20, eos_token_id=None)[:, 60:]
    parts = model.generate(ids[:, 41:], memory=model.remember(ids[:, :41]), max_new_tokens=20, eos_token_id=None)
    assert torch.equal(parts[:, 19:], whole)


def test_rows_end_at_their_own_end_of_text() -> None:
    model = make_model()
    ids = random_ids(2, 20)
    free = model.generate(ids, max_new_tokens=12, eos_token_id=None)
    stop = int(free[0, 24])
    first = (free[0, 20:] == stop).nonzero()[0].item() + 1
    got = model.generate(ids, max_new_tokens=12, eos_token_id=stop, pad_token_id=0)
    assert torch.equal(got[0, : 20 + first], free[0, : 20 + first])
    assert not got[0, 20 + first :].any()


def test_sampling_repeats_with_the_seed_and_respects_top_k(model: HMTForCausalLM) -> None:
    ids = random_ids(1, 20)
    settings = GenerationConfig(do_sample=True, temperature=2.0, top_k=50, max_new_tokens=20)
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(model.generate(ids, generation_config=settings))
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])
    greedy = model.generate(ids, max_new_tokens=20, eos_token_id=None)
    assert torch.equal(model.generate(ids, do_sample=True, top_k=1, max_new_tokens=20, eos_token_id=None), greedy)


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"num_beams": 3}, "num_beams and num_return_sequences must be 1"), ({"warmth": 3}, "does not take warmth")],
)
def test_settings_that_cannot_be_served_are_refused(
    model: HMTForCausalLM, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(random_ids(1, 5), **settings)
