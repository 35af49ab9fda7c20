"""Text streams token by token: only an unfinished character and a possible stop string are held back."""

from __future__ import annotations

import io

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from hmt.text.streaming import UNFINISHED, Detokenizer, StopStrings, TerminalStreamer

URL = "https://example.org/a?b=c#d"
CHINESE = "你好世界。"
THAI = "สวัสดีชาวโลก"


@pytest.mark.parametrize("text", [URL, CHINESE, THAI, "naïve café", "👩\u200d🚀 e\u0301"])
def test_every_character_comes_with_its_last_token(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    detokenizer = Detokenizer(tokenizer)
    for character in text:
        pieces = [detokenizer.add(token) for token in tokenizer(character)["input_ids"]]
        assert pieces == [""] * (len(pieces) - 1) + [character]
    assert detokenizer.finish() == ""


def test_invalid_bytes_lose_nothing_and_hold_nothing_back_for_long(tokenizer: PreTrainedTokenizerFast) -> None:
    valid = tokenizer("a你b")["input_ids"]
    continuation = valid[2]
    ids = [*[continuation] * 100, *valid, continuation, *valid]
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.add(token) for token in ids]
    assert len("".join(pieces[:100])) >= 90
    assert "".join(pieces) + detokenizer.finish() == tokenizer.decode(ids)


def test_an_unfinished_character_at_the_end_is_returned_as_a_replacement(tokenizer: PreTrainedTokenizerFast) -> None:
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.add(token) for token in tokenizer("a你")["input_ids"][:-1]] == ["a", "", ""]
    assert detokenizer.finish() == UNFINISHED


def test_a_token_can_be_shown_before_it_is_taken(tokenizer: PreTrainedTokenizerFast) -> None:
    detokenizer = Detokenizer(tokenizer)
    for token in tokenizer("x你")["input_ids"][:-1]:
        detokenizer.add(token)
    last, other = tokenizer("你")["input_ids"][-1], tokenizer("z")["input_ids"][0]
    assert detokenizer.peek(last) == "你"
    assert detokenizer.peek(other) == f"{UNFINISHED}z"
    assert detokenizer.add(last) == "你"


@pytest.fixture
def pieces_of_words() -> PreTrainedTokenizerFast:
    """A SentencePiece-like tokenizer: words carry their space, and unknown characters fall back to bytes."""
    tokens = ["<unk>", "▁one", "▁two", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_spaces_that_belong_to_tokens_are_kept(pieces_of_words: PreTrainedTokenizerFast) -> None:
    detokenizer = Detokenizer(pieces_of_words)
    assert [detokenizer.add(token) for token in (1, 2, 1)] == ["one", " two", " one"]
    after_a_prompt = Detokenizer(pieces_of_words, context=[1])
    assert [after_a_prompt.add(token) for token in (2, 1)] == [" two", " one"]


def test_characters_of_fallback_bytes_come_with_their_last_byte(pieces_of_words: PreTrainedTokenizerFast) -> None:
    detokenizer = Detokenizer(pieces_of_words)
    for character in "你好é":
        pieces = [detokenizer.add(byte + 3) for byte in character.encode()]
        assert pieces == [""] * (len(pieces) - 1) + [character]


def test_text_before_a_stop_string_is_passed_on_and_nothing_after_it() -> None:
    stops = StopStrings(["END", "\n\n"])
    assert [stops.add(piece) for piece in ("abc", "E", "x", "yEN", "D more")] == ["abc", "", "Ex", "y", ""]
    assert stops.found
    assert stops.add("again") == stops.finish() == ""


def test_the_beginning_of_a_stop_string_that_does_not_come_is_passed_on() -> None:
    stops = StopStrings(["aab"])
    assert [stops.add(piece) for piece in ("a", "a", "a", "c", "aa")] == ["", "", "a", "aac", ""]
    assert stops.finish() == "aa"
    assert not stops.found


def test_the_terminal_sees_each_character_at_once(tokenizer: PreTrainedTokenizerFast) -> None:
    file = io.StringIO()
    streamer = TerminalStreamer(tokenizer, file)
    streamer.put(torch.tensor([tokenizer("the prompt")["input_ids"]]))
    for written, character in enumerate(CHINESE):
        assert file.getvalue() == CHINESE[:written]
        for token in tokenizer(character)["input_ids"]:
            streamer.put(torch.tensor([token]))
    streamer.end()
    assert file.getvalue() == f"{CHINESE}\n"
