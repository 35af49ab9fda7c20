"""The n-gram cache: what it predicts, that it never hurts, and that no number depends on how a text is read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from hmt import HMTForCausalLM, MemoryState
from hmt.cli.evaluate import evaluate_rows
from hmt.evaluation.options import EvaluateOptions
from hmt.evaluation.readers import score_with_other_banks
from hmt.evaluation.rows import ROWS, row_settings
from hmt.extensions import ngram_cache
from hmt.extensions.ngram_cache import LOG_ODDS, WEIGHTS
from hmt.model.continuations import answers
from hmt.text.batches import IGNORED, TokenDocument
from tests.conftest import VOCAB, make_backbone, make_model, make_rolling, random_ids

CERTAIN = 1e9
"""Log odds that no text changes."""


def make_cached(**fields: object) -> HMTForCausalLM:
    """A tiny model with an n-gram cache: segments of 12 tokens, 20 sensory tokens."""
    return make_rolling(**{"mode": "backbone", "num_recalled_tokens": 0, "num_sensory": 20, "ngram_cache": 4} | fields)


def believing(model: HMTForCausalLM, *log_odds: float) -> MemoryState:
    """The state before the first token with these odds, a row each."""
    state = model.initial_state(len(log_odds))
    return replace(state, extras=state.extras | {LOG_ODDS: torch.tensor([[odds, 0.0] for odds in log_odds])})


def losses(model: HMTForCausalLM, ids: Tensor) -> tuple[float, float, float]:
    """Nats of a text (1, T) by the mixture, by the n-gram cache alone, and by the backbone alone."""
    rows = ids.expand(3, -1)
    nats = model(rows, labels=rows, memory=believing(model, 0.0, CERTAIN, -CERTAIN), return_logits=False).nll
    mixed, cached, plain = nats.double().sum(dim=1).tolist()
    return mixed, cached, plain


def repetitive(tokens: int = 300) -> Tensor:
    """Phrases that come back, with random tokens between them."""
    phrases = random_ids(4, 9, seed=5)
    parts = [torch.cat([phrases[n * n % 4], random_ids(1, 2, seed=n)[0]]) for n in range(tokens // 11 + 1)]
    return torch.cat(parts)[None, :tokens]


def few_symbols(tokens: int, symbols: int = 5, seed: int = 0) -> Tensor:
    """Random text over a few symbols: every context comes back, followed by one thing or another."""
    return random_ids(1, tokens, seed) % symbols + 3


def contradicting() -> Tensor:
    """Each phrase is followed by another token than ever before."""
    phrase = random_ids(1, 3, seed=1)[0]
    return torch.cat([torch.cat([phrase, torch.tensor([token])]) for token in range(10, 90)])[None]


@torch.no_grad()
def adversarial(model: HMTForCausalLM, tokens: int = 150) -> Tensor:
    """Text whose every token is the one by which the n-gram cache loses most against the backbone."""
    ids, state = random_ids(1, 60), believing(model, CERTAIN, -CERTAIN)
    state = model.remember(ids[:, :-1].expand(2, -1), state)
    for _ in range(tokens):
        output, state = model.step(ids[:, -1:].expand(2, -1), state)
        cached, plain = output.logits[:, -1]
        ids = torch.cat([ids, (cached - plain).argmin().view(1, 1)], dim=1)
    return ids


TEXTS: dict[str, Callable[[HMTForCausalLM], Tensor]] = {
    "random": lambda model: random_ids(1, 300),
    "repetitive": lambda model: repetitive(),
    "few symbols": lambda model: few_symbols(300),
    "one token": lambda model: torch.full((1, 300), 7),
    "alternating, then not": lambda model: torch.tensor([[7, 8] * 80 + [7, 7, 8, 8] * 40]),
    "contradicts itself": lambda model: contradicting(),
    "adversarial": adversarial,
}


@pytest.mark.parametrize("text", TEXTS)
@torch.no_grad()
def test_it_loses_at_most_ln_2_nats_against_the_better_of_the_two(text: str) -> None:
    """Exactly: the mixture gives a text the mean of the two probabilities."""
    model = make_cached()
    ids = TEXTS[text](model)
    mixed, cached, plain = losses(model, ids)
    assert abs(cached - plain) > 1e-2
    assert mixed <= min(cached, plain) + math.log(2) + 1e-3
    both = torch.tensor([-cached, -plain], dtype=torch.float64).logsumexp(dim=0)
    assert mixed == pytest.approx(math.log(2) - float(both), abs=1e-3)


@torch.no_grad()
def test_it_gains_where_text_comes_back_and_an_adversary_makes_it_lose() -> None:
    model = make_cached()
    mixed, cached, plain = losses(model, repetitive())
    assert mixed < 0.9 * plain
    mixed, cached, plain = losses(model, adversarial(model))
    assert cached > plain + 5 > mixed


def expected_gains(visible: list[int], context: list[int], prior: Tensor, occurrences: int) -> Tensor:
    """What each token's logit gains after a context (its newest token last), by the definition."""
    gains = torch.zeros(len(prior))
    for token, count in Counter(visible).items():
        constant, share, rarity = WEIGHTS[0]
        gains[token] = constant + share * math.log(count / len(visible)) - rarity * prior[token]
    for length in range(1, len(context) + 1):
        wanted = context[len(context) - length :]
        starts = range(len(visible) - length)
        followers = [visible[i + length] for i in starts if visible[i : i + length] == wanted][-occurrences:]
        constant, share, rarity = WEIGHTS[length]
        for token, count in Counter(followers).items():
            gains[token] = constant + share * math.log(count / len(followers)) - rarity * prior[token]
    return gains


@pytest.mark.parametrize("occurrences", [2, 256])
@pytest.mark.parametrize("text", [repetitive(120), few_symbols(120)], ids=["repetitive", "few symbols"])
@torch.no_grad()
def test_it_predicts_by_its_definition(text: Tensor, occurrences: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram_cache, "OCCURRENCES", occurrences)
    model = make_cached()
    segment, sensory = model.config.fresh_tokens, model.config.sensory_tokens
    logits = model.variant(ngram_cache=0)(text).logits[0]
    got = model(text, memory=believing(model, CERTAIN)).logits[0]
    ids = text[0].tolist()
    for place in range(len(ids)):
        visible = ids[: max(place // segment * segment - sensory, 0)]
        context = ids[max(place - 3, 0) : place + 1]
        gains = expected_gains(visible, context, model.extensions["ngram_cache"].prior, occurrences)
        expected = (logits[place] + gains).log_softmax(dim=-1)
        torch.testing.assert_close(got[place], expected, atol=1e-4, rtol=0, msg=str(place))


@torch.no_grad()
def test_the_prior_is_what_the_backbone_predicts_after_the_mean_embedding() -> None:
    backbone = make_backbone()
    mean = backbone.get_input_embeddings().weight.mean(dim=0)
    expected = backbone(inputs_embeds=mean[None, None]).logits[0, 0].log_softmax(dim=-1)
    model = HMTForCausalLM.from_backbone(backbone, mode="backbone", sensory="cache", ngram_cache=2)
    torch.testing.assert_close(model.extensions["ngram_cache"].prior, expected, atol=1e-5, rtol=0)


SETTINGS = [
    {},
    {"ngram_cache": 1},
    {"mem_recall_context": 4},
    {"mode": "hmt", "num_sensory": 6, "num_recalled_tokens": 6},
    {"mode": "hmt", "num_memory_tokens": 2, "num_sensory": 8},
    {"family": "mamba"},
]


@pytest.mark.parametrize("fields", SETTINGS, ids=str)
@torch.no_grad()
def test_a_text_read_in_any_parts_or_in_a_batch_gives_the_same(fields: dict[str, object], tmp_path: Path) -> None:
    model = make_cached(**fields)
    ids, other = repetitive(110), few_symbols(60)
    expected = model(ids)
    logits, odds = expected.logits[0], expected.memory.extras[LOG_ODDS].double().sum(dim=1)
    assert abs(float(odds)) > 1
    for size in (1, 13):
        state, parts = None, []
        for start in range(0, ids.shape[1], size):
            output = model(ids[:, start : start + size], memory=state)
            state = output.memory
            parts.append(output.logits[0])
            if start == 78:  # saved and restored as it was
                state.save(tmp_path / "exact", exact=True)
                state = MemoryState.load(tmp_path / "exact")
        torch.testing.assert_close(torch.cat(parts), logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(state.extras[LOG_ODDS].double().sum(dim=1), odds, atol=1e-3, rtol=0)
    padding = torch.zeros(1, 50, dtype=torch.long)
    for order in ([other, padding], [padding, other]):
        batch = torch.cat([torch.cat(order, dim=1), ids])
        mask = torch.ones_like(batch)
        mask[:1] = torch.cat([torch.ones_like(part) if part is other else part for part in order], dim=1)
        output = model(batch, attention_mask=mask)
        torch.testing.assert_close(output.logits[1], logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(output.logits[0, mask[0].bool()], model(other).logits[0], atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_row_without_new_tokens_stays_as_it_was() -> None:
    model = make_cached()
    state = model.remember(torch.cat([repetitive(100), few_symbols(100)]))
    mask = torch.tensor([[True], [False]])
    _, after = model.step(torch.tensor([[9], [9]]), state, segment_mask=mask)
    for name, values in after.extras.items():
        assert torch.equal(values[1], state.extras[name][1])
        assert not torch.equal(values[0], state.extras[name][0])


@torch.no_grad()
def test_a_compact_file_keeps_the_odds(tmp_path: Path) -> None:
    """Its window is rebuilt, so that the backbone's numbers are not the same; the cache's half is."""
    model = make_cached()
    state = model.remember(repetitive(200))
    state.save(tmp_path / "memory")
    restored = MemoryState.load(tmp_path / "memory")
    assert all(torch.equal(restored.extras[name], values) for name, values in state.extras.items())
    output, _ = make_cached().step(repetitive(207)[:, 200:], replace(restored, window=state.window))
    expected, _ = model.step(repetitive(207)[:, 200:], state)
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_what_was_written_is_as_if_it_had_been_read() -> None:
    model = make_cached()
    ids = repetitive(200)
    memory = model.remember(ids[:, :180])
    written = model.generate(
        ids[:, 180:], memory=memory, max_new_tokens=40, do_sample=False, eos_token_id=None,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    text = torch.cat([ids[:, :180], written.sequences], dim=1)
    read = model(text)
    torch.testing.assert_close(torch.stack(written.logits, dim=1), read.logits[:, 199:-1], atol=1e-4, rtol=0)
    state = model.remember(text[:, :-1])
    torch.testing.assert_close(written.memory.extras, state.extras, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_continuations_cost_what_they_cost_as_text() -> None:
    model = make_cached()
    ids = repetitive(200)
    (answer,) = answers(model, [(ids[0, :170].tolist(), ids[0, 170:].tolist())], batch_size=2)
    assert answer.loglikelihood == pytest.approx(-float(model(ids, labels=ids).nll[0, 169:].sum()), abs=1e-3)


@torch.no_grad()
def test_a_token_changes_nothing_before_it() -> None:
    model = make_cached()
    ids = repetitive(200)
    expected = model(ids).logits
    for place in (0, 30, 95, 96, 150, 199):
        changed = ids.clone()
        changed[0, place] = changed[0, place] % 200 + 5
        got = model(changed).logits
        assert torch.equal(got[:, :place], expected[:, :place])
        assert not torch.equal(got[:, place], expected[:, place])


@torch.no_grad()
def test_memories_of_one_beginning_do_not_see_each_others_text() -> None:
    """Indexes are kept from step to step, and belong to a text."""
    model, fresh = make_cached(num_sensory=2), make_cached(num_sensory=2)
    start = few_symbols(100)
    memory = model.remember(start)
    for seed in (1, 2, 1):
        ids = few_symbols(60, seed=seed)
        expected = fresh(torch.cat([start, ids], dim=1)).logits[:, 100:]
        torch.testing.assert_close(model(ids, memory=memory).logits, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_logits_are_log_probabilities_and_scores_are_theirs() -> None:
    model, ids = make_cached(), repetitive(150)
    output = model(ids, labels=ids)
    torch.testing.assert_close(output.logits.exp().sum(dim=-1), torch.ones(1, 150), atol=1e-4, rtol=0)
    nats = -output.logits[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(output.nll, nats, atol=1e-4, rtol=0)


def test_losses_have_gradients() -> None:
    model, ids = make_cached().train(), repetitive(150)
    model(ids, labels=ids).loss.backward()
    gradient = model.backbone.get_output_embeddings().weight.grad
    assert bool(gradient.isfinite().all())
    assert bool((gradient != 0).any())


@torch.no_grad()
def test_another_texts_bank_takes_the_gain_away() -> None:
    base = make_cached()
    ids = torch.cat([repetitive(200), random_ids(1, 200, seed=9)])
    labels = ids.masked_fill(torch.arange(200) < 120, IGNORED)
    nats = {}
    for row in ("sinks", "ngram", "ngram_shuffled"):
        model = base.variant(**row_settings(base.config, row))
        batches = [(ids[:1], labels[:1]), (ids[1:], labels[1:])]
        if ROWS[row].control == "another_text":
            output = next(iter(score_with_other_banks(model, batches, [0, 1])))
        else:
            output = model(*batches[0][:1], labels=batches[0][1])
        nats[row] = float(output.nll[output.scored_mask].sum())
    assert nats["ngram"] < 0.9 * nats["ngram_shuffled"]
    assert nats["ngram_shuffled"] < nats["sinks"]  # a token that occurs anywhere gains


def test_rows_of_an_evaluation_are_plain_but_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    """Whatever form of sensory memory the model itself has."""
    documents = [TokenDocument(str(n), few_symbols(160, seed=n)[0]) for n in range(2)]
    plain, cached = (
        evaluate_rows(
            make_model(ngram_cache=count), tokenizer, documents,
            EvaluateOptions(segment_length=20, lengths="140", target_tokens=40, modes=modes, ngram_cache=count),
        )["rows"]
        for count, modes in ((0, "sinks,backbone,hmt"), (3, "sinks,backbone,hmt,ngram,ngram_shuffled"))
    )  # fmt: skip
    before, after = ({row["row"]: row["loss"] for row in rows} for rows in (plain, cached))
    assert {row: after[row] for row in before} == pytest.approx(before)
    assert after["ngram"] < after["sinks"]
    assert after["ngram_shuffled"] not in (after["ngram"], after["sinks"])
    with pytest.raises(ValueError, match=r"ngram_shuffled .*--ngram_cache"):
        EvaluateOptions(lengths="140", modes="ngram_shuffled").check()
    assert EvaluateOptions(ngram_cache=3).rows == ["ngram"]


def test_checkpoints_bring_their_prior_or_get_one(tmp_path: Path) -> None:
    model = make_cached()
    prior = model.extensions["ngram_cache"].prior.clone()
    model.variant(ngram_cache=0).save_pretrained(tmp_path / "without", save_backbone=True)
    model.extensions["ngram_cache"].prior += 1
    model.save_pretrained(tmp_path / "with", save_backbone=True)
    ids = repetitive(100)
    for folder, expected in (("with", prior + 1), ("without", prior)):
        loaded = HMTForCausalLM.from_pretrained(tmp_path / folder, ngram_cache=4)
        with torch.no_grad():
            loaded(ids)
        torch.testing.assert_close(loaded.extensions["ngram_cache"].prior, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(loaded.variant(ngram_cache=2).extensions["ngram_cache"].prior, expected)


def test_an_adapter_does_not_change_the_prior() -> None:
    model = make_cached()
    prior = model.extensions["ngram_cache"].prior
    model.add_lora(rank=2)
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            if "lora_" in name:
                parameter.add_(0.5)
    adapted = HMTForCausalLM.from_backbone(model.backbone, mode="backbone", sensory="cache", ngram_cache=4)
    torch.testing.assert_close(adapted.extensions["ngram_cache"].prior, prior, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_resized_vocabulary_is_refused() -> None:
    model = make_cached()
    model.backbone.resize_token_embeddings(VOCAB + 20)
    with pytest.raises(ValueError, match=rf"{VOCAB} .*{VOCAB + 20}"):
        model(random_ids(1, 10))


@pytest.mark.parametrize(
    ("fields", "flag"),
    [({"memory_policy": "merge", "mode": "hmt", "num_memory_tokens": 1, "num_sensory": 10}, "memory_policy"),
     ({"num_sinks": 0, "num_sensory": 3}, "ngram_cache")],
    ids=["policy", "tail"],
)  # fmt: skip
def test_settings_that_it_cannot_read_with_are_refused(fields: dict[str, object], flag: str) -> None:
    model = make_cached(**fields)
    with pytest.raises(ValueError, match=flag):
        model(random_ids(1, 10))


def test_it_needs_a_rolling_cache() -> None:
    with pytest.raises(ValueError, match="--sensory cache"):
        make_model(ngram_cache=2)(random_ids(1, 10))
