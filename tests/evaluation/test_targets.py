"""Rows of one table over the same targets, with intervals, a reference, replicas, and what was recalled."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hmt.cli.evaluate import describe, evaluate_rows, table
from hmt.evaluation.options import ROWS, EvaluateOptions
from hmt.evaluation.targets import TargetScores, text_bytes
from hmt.text.batches import TokenDocument
from tests.conftest import byte_tokenizer, make_backbone, make_model, random_ids

EVERY_ROW = tuple(ROWS)


def options(**fields: Any) -> EvaluateOptions:
    """Options for the tiny model, checked."""
    chosen = EvaluateOptions(
        **{"sensory": "reread", "segment_length": 20, "num_sensory": 4, "lengths": "40,80"} | fields
    )
    chosen.check()
    return chosen


def texts(*lengths: int) -> list[TokenDocument]:
    """Random documents."""
    return [TokenDocument(str(n), random_ids(1, length, seed=n)[0]) for n, length in enumerate(lengths)]


def by_row(figures: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    """The rows of a table by name and length."""
    return {(row["row"], row["context_tokens"]): row for row in figures["rows"]}


def test_every_row_scores_the_same_targets_at_every_length(tokenizer: PreTrainedTokenizerFast) -> None:
    chosen = options(modes=",".join(EVERY_ROW), reference="backbone", ngram_cache=2)
    figures = evaluate_rows(make_model(ngram_cache=2), tokenizer, texts(90, 100), chosen)
    rows = by_row(figures)
    assert list(rows) == [(row, length) for row in EVERY_ROW for length in (40, 80)]
    assert {row["tokens"] for row in rows.values()} == {40}
    assert all(row["ppl_low"] <= row["ppl"] <= row["ppl_high"] for row in rows.values())
    for row in rows.values():
        assert row["reference"] == "backbone"
        expected = 100 * (row["ppl"] / rows["backbone", row["context_tokens"]]["ppl"] - 1)
        assert row["delta_percent"] == pytest.approx(expected)
        assert row["delta_low"] <= row["delta_percent"] + 1e-9
        assert row["delta_high"] >= row["delta_percent"] - 1e-9
    assert rows["backbone", 80]["delta_high"] == 0
    # Windows of raw text read no more than they need, and score the same whatever stands before.
    assert rows["recompute", 40]["ppl"] == pytest.approx(rows["recompute", 80]["ppl"])
    assert rows["recompute", 80]["read_tokens"] == 20 + 11
    assert rows["sinks", 40]["ppl"] != pytest.approx(rows["sinks", 80]["ppl"])
    assert rows["full", 80]["read_tokens"] == 80
    assert rows["full", 80]["ppl_second_half"] == pytest.approx(rows["full", 80]["ppl"])
    assert rows["hmt", 80]["second_half_tokens"] < rows["hmt", 80]["tokens"]
    assert rows["full", 80]["ppl_last_segment_mean"] is None
    lines = table(figures["rows"]).splitlines()
    assert len(lines) == 2 + len(rows)
    assert max(map(len, lines)) <= 110
    low, high = rows["full", 40]["ppl_low"], rows["full", 40]["ppl_high"]
    assert f" {low:.0f} to {high:.0f} " in lines[2]


@torch.no_grad()
def test_the_full_row_is_the_backbone_on_the_whole_context(tokenizer: PreTrainedTokenizerFast) -> None:
    (document,) = documents = texts(90)
    row = by_row(evaluate_rows(make_model(), tokenizer, documents, options(modes="full")))["full", 80]
    logits = make_backbone()(document.ids[None, :80]).logits[0]
    nll = torch.nn.functional.cross_entropy(logits[59:79], document.ids[60:80])
    assert row["ppl"] == pytest.approx(math.exp(float(nll)), rel=1e-4)
    assert row["segment_length"] == 512


def test_two_speeds_and_the_bottleneck_say_what_they_do(tokenizer: PreTrainedTokenizerFast) -> None:
    chosen = options(modes="recompute,hmt,hmt_dynamic", inject_autoencoder=True)
    figures = evaluate_rows(make_model(inject_autoencoder=True), tokenizer, texts(90, 100), chosen)
    rows = by_row(figures)
    assert rows["hmt_dynamic", 80]["second_half_tokens"] == 0  # segments differ in length
    assert rows["hmt_dynamic", 80]["tokens"] == rows["hmt", 80]["tokens"]
    assert rows["hmt_dynamic", 80]["ppl"] != rows["hmt", 80]["ppl"]
    assert 0 < rows["hmt", 80]["bottleneck_error"] < 1
    assert "bottleneck_error" not in rows["recompute", 80]


def test_what_two_speeds_recalled_is_the_text_of_their_own_segments(tokenizer: PreTrainedTokenizerFast) -> None:
    chosen = options(modes="hmt", dynamic_reading=True, num_sensory=8, lengths="100")
    document = texts(100)[0]
    figures = evaluate_rows(make_model(dynamic_reading=True, num_sensory=8), tokenizer, [document], chosen)
    assert len(figures["recall"]) < 10  # ten segments of ten tokens, if none was read fast
    read = "".join("".join(entry["text"].split()) for entry in figures["recall"])
    assert read == "".join(str(tokenizer.decode(document.ids)).split())


WRITTEN = "aé 漢字漢字漢字漢字漢字 😀😀b  né, it is so . a é" * 2


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Words with the space before them, which the first of a text loses."""
    marked = f" {WRITTEN}".replace(" ", " ▁").split(" ")
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(dict.fromkeys(marked))}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def fallback_tokenizer() -> PreTrainedTokenizerFast:
    """Characters with a space before the text that it loses, and bytes of what has no token, as of SentencePiece."""
    vocabulary = {symbol: n for n, symbol in enumerate(["?", *"▁abeinost,.", *(f"<0x{n:02X}>" for n in range(256))])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="?", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("make", [byte_tokenizer, word_tokenizer, fallback_tokenizer])
def test_bytes_are_those_of_the_characters_that_end_within_the_targets(make: Any) -> None:
    tokenizer = make()
    ids = torch.tensor(tokenizer(WRITTEN, add_special_tokens=False)["input_ids"])
    ends = []  # bytes of the characters that have ended, by the number of tokens
    for stop in range(len(ids) + 1):
        text = str(tokenizer.decode(ids[:stop].tolist(), clean_up_tokenization_spaces=False))
        while not WRITTEN.startswith(text):  # a cut character, and with it all before it that is written in bytes
            stop -= 1
            text = str(tokenizer.decode(ids[:stop].tolist(), clean_up_tokenization_spaces=False))
        ends.append(len(text.encode()))
    assert ends[-1] == len(WRITTEN.encode())
    for start in range(len(ids)):
        for end in range(start + 1, len(ids) + 1):
            assert text_bytes(tokenizer, ids, start, end) == ends[end] - ends[start], (start, end)


def test_bits_are_per_byte_of_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = torch.tensor(tokenizer("é" * 60)["input_ids"])
    chosen = options(modes="sliding", lengths="78")  # the targets begin with half a character
    (row,) = evaluate_rows(make_model(), tokenizer, [TokenDocument("é", ids)], chosen)["rows"]
    assert row["bits_per_byte"] == pytest.approx(39 * math.log2(row["ppl"]) / 40)


def test_rmt_with_sensory_tokens_is_short_term_and_is_listed_once() -> None:
    assert options(modes="rmt_sensory,short_term,rmt").rows == ["short_term", "rmt"]


def test_one_document_has_no_interval_and_says_so(tokenizer: PreTrainedTokenizerFast) -> None:
    figures = evaluate_rows(make_model(), tokenizer, texts(90), options(modes="backbone,hmt"))
    assert {row["ppl_low"] for row in figures["rows"]} == {None}
    assert "intervals need a second document" in describe(figures)
    assert "95%" not in table(figures["rows"])


def test_a_shuffled_memory_of_a_single_text_is_refused_before_anything_is_read(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(ValueError, match="needs a second text of the same length"):
        TargetScores(texts(90), options(modes="hmt_shuffled"), tokenizer)
    figures = evaluate_rows(make_model(), tokenizer, texts(200), options(modes="hmt_shuffled", spans_per_document=2))
    assert len(figures["rows"]) == 2


def test_replicas_give_mean_and_spread(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = options(modes="backbone,hmt", load_from_ckpt="a", replicas="b, c", lengths="80")
    assert chosen.checkpoints == ["a", "b", "c"]
    scores = TargetScores(texts(90, 100), chosen, tokenizer)
    measured: list[str] = []
    measure = scores._measure
    monkeypatch.setattr(scores, "_measure", lambda *given: measured.append(given[2]) or measure(*given))
    alone = []
    for checkpoint in chosen.checkpoints:
        model = make_model(memory_gain=2.0)
        model.memory.injection.base.data.normal_(std=len(alone) + 1)
        scores.measure(model, chosen.rows, checkpoint)
        alone.append(by_row(evaluate_rows(model, tokenizer, texts(90, 100), chosen))["hmt", 80]["ppl"])
    rows = by_row(scores.figures())
    assert len(set(alone)) == 3
    assert rows["hmt", 80]["ppls"] == pytest.approx(alone)
    assert rows["hmt", 80]["ppl_mean"] == pytest.approx(sum(alone) / 3)
    assert rows["hmt", 80]["ppl_spread"] == pytest.approx(max(alone) - min(alone))
    assert rows["hmt", 80]["ppl"] == pytest.approx(math.prod(alone) ** (1 / 3))
    assert rows["hmt", 80]["tokens"] == 80
    assert rows["backbone", 80]["ppl_spread"] == 0
    assert measured == ["backbone", "hmt", "hmt", "hmt"]  # a backbone that stays as it was is not read again


def test_what_was_recalled_can_be_drawn(tokenizer: PreTrainedTokenizerFast) -> None:
    documents = texts(90, 100, 90, 90)
    figures = evaluate_rows(make_model(), tokenizer, documents, options(modes="hmt,backbone"))
    entries = figures["recall"]
    assert {entry["document"] for entry in entries} == {"0", "1", "2"}
    first = [entry for entry in entries if entry["document"] == "0"]
    assert [entry["segment"] for entry in first] == list(range(6))  # 4 before 20 targets in segments of 14
    assert first[0]["weights"] == []
    assert first[0]["distance"] == 0
    for entry in first[1:]:
        assert sum(weight for _, weight in entry["weights"]) == pytest.approx(1, abs=1e-3)
        strongest = entry["weights"][0][0]
        assert entry["segment"] - strongest == entry["distance"]
    start = 80 - by_row(figures)["hmt", 80]["read_tokens"]
    ids = documents[0].ids[start : start + 14]
    assert first[0]["text"] == " ".join(tokenizer.decode(ids).split())
    assert sum(figures["recall_distances"].values()) == 4 * 5
    assert evaluate_rows(make_model(), tokenizer, documents, options(modes="backbone"))["recall"] == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modes": "hmt,sideways"}, "modes must be of full, .*got 'sideways'"),
        ({"reference": "rmt"}, r"reference must be one of the rows \(hmt\), got 'rmt'"),
        ({"modes": "sinks", "stride": 17}, "stride must be at most 10"),
        ({"stride": 21}, "stride must be at most 10"),
        ({"sensory": "cache", "num_sinks": 20}, "segment_length must be at least"),
        ({"modes": "ngram"}, "give --ngram_cache"),
        ({"match_budget": True}, "give one as --load_from_ckpt"),
        ({"replicas": "b"}, "give one as --load_from_ckpt"),
    ],
)
def test_what_makes_no_sense_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options(**fields)
