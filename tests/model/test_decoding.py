"""Generation settings mean what they mean in transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList, WatermarkingConfig

from hmt import HMTForCausalLM
from hmt.model.continuations import answers
from hmt.model.generation import UNSERVED
from tests.conftest import byte_tokenizer, make_backbone, make_model, make_rolling, random_ids

WARPERS = {"temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}

SETTINGS: dict[str, Any] = {
    "sequence_bias": [[[7], 4.0], [[250], -9.0]],
    "repetition_penalty": 1.7,
    "encoder_no_repeat_ngram_size": 1,
    "encoder_repetition_penalty": 9.0,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[40], [41, 42]],
    "min_length": 40,
    "min_new_tokens": 18,
    "forced_bos_token_id": 9,
    "forced_eos_token_id": 2,
    "remove_invalid_values": True,
    "exponential_decay_length_penalty": (5, 1.5),
    "suppress_tokens": list(range(3, 150)),
    "begin_suppress_tokens": list(range(3, 290)),
    "temperature": 3.0,
    "top_h": 0.4,
    "top_k": 5,
    "top_p": 0.3,
    "min_p": 0.7,
    "typical_p": 0.3,
    "epsilon_cutoff": 0.2,
    "eta_cutoff": 0.9,
    "watermarking_config": WatermarkingConfig(bias=5.0),
    "renormalize_logits": True,
}


@pytest.mark.parametrize(
    ("name", "sample"),
    [(name, sample) for name in SETTINGS for sample in (False, True) if sample or name not in WARPERS],
    ids=str,
)
def test_within_a_window_the_backbone_gives_its_own_text(name: str, sample: bool) -> None:
    model = make_model(mode="backbone", num_sensory=0, segment_length=64)
    ids = random_ids(2, 1 if name == "forced_bos_token_id" else 20)
    plain: dict[str, Any] = {"max_new_tokens": 25, "do_sample": sample, "pad_token_id": 0, "eos_token_id": None}
    if sample:
        plain |= {"temperature": 2.0, "top_k": 0} if name not in ("temperature", "top_k") else {"top_k": 0}
    if name in ("min_length", "min_new_tokens", "exponential_decay_length_penalty"):
        # An end of text that would come soon, and whose probability grows, respectively.
        torch.manual_seed(0)
        plain["eos_token_id"] = int(model.generate(ids, **plain)[0, 22]) if name.startswith("min") else 2
    if name == "bad_words_ids":
        torch.manual_seed(0)
        SETTINGS[name] = [[int(token)] for token in model.generate(ids, **plain)[0, 20:]]
    texts = []
    for generator, extra in ((model, True), (make_backbone(), True), (make_backbone(), False)):
        torch.manual_seed(0)
        texts.append(generator.generate(ids, **plain | ({name: SETTINGS[name]} if extra else {})))
    assert torch.equal(texts[0], texts[1])
    if name not in ("remove_invalid_values", "renormalize_logits") and (name in WARPERS or not sample):
        assert not torch.equal(texts[1], texts[2])  # so that ignoring the setting would be seen


@pytest.mark.parametrize(
    ("settings", "greedy"),
    [
        ({"top_p": 0.0}, True),
        ({"top_p": 1.0}, False),
        ({"temperature": 0.0}, None),
        ({"repetition_penalty": 0.0}, None),
    ],
    ids=str,
)
def test_zero_means_what_it_means_in_transformers(settings: dict[str, float], greedy: bool | None) -> None:
    model, ids = make_model(), random_ids(1, 20)
    sampled = {"max_new_tokens": 20, "eos_token_id": None, "do_sample": True, "top_k": 0}
    if greedy is None:
        with pytest.raises(ValueError, match=r"temperature|penalty"):
            model.generate(ids, **sampled, **settings)
        return
    torch.manual_seed(0)
    text = model.generate(ids, **sampled, **settings)
    assert torch.equal(text, model.generate(ids, max_new_tokens=20, eos_token_id=None)) is greedy


def test_sampling_never_meets_what_it_cannot_choose_from(model: HMTForCausalLM) -> None:
    ids = random_ids(1, 20)
    greedy = model.generate(ids, max_new_tokens=8, eos_token_id=None)
    cold = model.generate(ids, max_new_tokens=8, eos_token_id=None, do_sample=True, temperature=1e-40)
    assert torch.equal(cold, greedy)
    for sample in (False, True):
        with pytest.raises(ValueError, match="row 0"):
            model.generate(ids, max_new_tokens=2, do_sample=sample, suppress_tokens=list(range(300)))


@pytest.mark.parametrize("make", [make_model, make_rolling])
def test_weights_that_give_no_finite_numbers_are_named_by_whatever_reads(make: Any) -> None:
    model = make()
    with torch.no_grad():
        model.backbone.get_input_embeddings().weight[7] = torch.nan
    ids = random_ids(1, 60)
    ids[0, 30] = 7
    with pytest.raises(FloatingPointError):
        model.remember(ids)
    with pytest.raises(FloatingPointError):
        model.generate(ids, max_new_tokens=3)
    with pytest.raises(FloatingPointError):
        list(answers(model, [(ids[0].tolist(), [3, 4])], 1))


def test_what_a_configuration_leaves_open_is_as_the_model_has_it() -> None:
    model = make_model(mode="backbone", num_sensory=0, segment_length=64)
    backbone, ids = make_backbone(), random_ids(1, 20)
    for one in (model, backbone):
        one.generation_config.repetition_penalty = 1.8
        one.generation_config.suppress_tokens = list(range(3, 100))
    texts = [one.generate(ids, generation_config=GenerationConfig(max_new_tokens=20)) for one in (model, backbone)]
    assert torch.equal(*texts)
    assert not torch.equal(texts[0], make_model(mode="backbone", num_sensory=0, segment_length=64).generate(
        ids, max_new_tokens=20))  # fmt: skip


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_no_text_that_could_be_repeated(side: str) -> None:
    model = make_model()
    row = random_ids(1, 12)
    padding = torch.full((1, 20), int(model.generate(row, max_new_tokens=1)[0, -1]))
    ids = torch.cat([padding, row] if side == "left" else [row, padding], dim=1)
    mask = torch.cat([padding * 0, row * 0 + 1] if side == "left" else [row * 0 + 1, padding * 0], dim=1)
    settings = {"max_new_tokens": 20, "eos_token_id": None, "repetition_penalty": 3.0, "no_repeat_ngram_size": 2}
    got = model.generate(ids, attention_mask=mask, **settings)
    assert torch.equal(got[:, 32:], model.generate(row, **settings)[:, 12:])


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


def test_several_continuations_of_a_prompt_stand_side_by_side(model: HMTForCausalLM) -> None:
    ids = random_ids(2, 20)
    memory = model.remember(random_ids(2, 50, seed=1))
    settings = {"max_new_tokens": 12, "eos_token_id": None, "do_sample": True}
    got = model.generate(ids, memory=memory, num_return_sequences=3, **settings)
    assert torch.equal(got[:, :20], ids.repeat_interleave(3, dim=0))
    assert len(got.unique(dim=0)) == 6
    same = model.generate(ids, memory=memory, num_return_sequences=3, **settings | {"top_k": 1})
    assert torch.equal(
        same, model.generate(ids, memory=memory, max_new_tokens=12, eos_token_id=None)[[0, 0, 0, 1, 1, 1]]
    )


def test_the_scores_are_those_the_tokens_were_chosen_by(model: HMTForCausalLM) -> None:
    ids = random_ids(1, 20)
    out = model.generate(
        ids,
        max_new_tokens=6,
        eos_token_id=None,
        suppress_tokens=[5, 6],
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert len(out.scores) == len(out.logits) == 6
    assert torch.equal(torch.stack(out.scores, 1).argmax(-1), out.sequences[:, 20:])
    assert out.scores[0][0, 5] == -torch.inf
    torch.testing.assert_close(out.logits[0], model(ids).logits[:, -1])


def test_a_stop_string_ends_a_text(model: HMTForCausalLM) -> None:
    tokenizer = byte_tokenizer()
    ids = random_ids(1, 20)
    unreadable = [i for i in range(300) if not tokenizer.decode([i]).isalnum()]
    settings = {"max_new_tokens": 30, "eos_token_id": None, "suppress_tokens": unreadable}
    free = model.generate(ids, **settings)
    stop = tokenizer.decode(free[0, 25:27])
    got = model.generate(ids, stop_strings=[stop], tokenizer=tokenizer, **settings)
    assert torch.equal(got, free[:, : got.shape[1]])
    assert 20 < got.shape[1] <= 27
    with pytest.raises(ValueError, match="stop_strings"):
        model.generate(ids, stop_strings=[stop])


def test_the_callers_processors_come_before_those_of_sampling_and_its_criteria_stop(model: HMTForCausalLM) -> None:
    seen: list[bool] = []

    def only_nine(sequences: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(bool(scores.isfinite().all()))
        return scores.masked_fill(torch.arange(scores.shape[1]) != 9, -torch.inf)

    def enough(sequences: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full((len(sequences),), sequences.shape[1] >= 24)

    got = model.generate(
        random_ids(1, 20),
        max_new_tokens=30,
        do_sample=True,
        top_k=3,
        logits_processor=LogitsProcessorList([only_nine]),
        stopping_criteria=StoppingCriteriaList([enough]),
    )
    assert got[0, 20:].tolist() == [9] * 4
    assert all(seen)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 3}, "does not serve num_beams"),
        ({"num_return_sequences": 2}, "do not support `num_return_sequences`"),
        ({"warmth": 3}, "does not take warmth"),
        ({"guidance_scale": 1.5}, "does not serve guidance_scale"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be greater than 0"),
        ({"max_length": 5}, "max_length must exceed the 5 tokens of the prompt, got 5"),
    ],
)
def test_settings_that_cannot_be_served_are_refused(
    model: HMTForCausalLM, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(random_ids(1, 5), **settings)


def test_every_setting_of_transformers_is_served_refused_or_known_to_change_nothing() -> None:
    """A new release may bring one that would be ignored in silence."""
    lengths = {"max_length", "max_new_tokens", "max_time", "stop_strings", "do_sample", "num_return_sequences"}
    results = {"output_scores", "output_logits", "return_dict_in_generate"}
    tokens = {"pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"}
    of_beams = {"early_stopping", "length_penalty", "low_memory"}
    of_caches = {"use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size"}
    of_compilers = {"compile_config", "disable_compile", "continuous_batching_config"}
    of_assistants = {
        "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
        "max_matching_ngram_size", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight",
        "speculation_type",
    }  # fmt: skip
    known = {*SETTINGS, *UNSERVED, *lengths, *results, *tokens, *of_beams, *of_caches}
    known |= of_compilers | of_assistants | {"transformers_version"}
    assert {name for name in vars(GenerationConfig()) if not name.startswith("_")} <= known
