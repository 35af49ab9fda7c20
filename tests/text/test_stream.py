"""A text that is read in pieces has the tokens of the whole text."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hmt import files
from hmt.files import read_text, text_pieces
from hmt.text import stream
from hmt.text.stream import token_parts

WORDS = ["the", "don't", "naïve", "   ", "\n", "\n\n\n", "\t", "日本語の文", "🙂🙂", "1234567", "foo_bar(baz)", "a-b",
         "...", " \n ", "<sep>", "é", "x" * 40, "\u00a0", "\u3000", "\r"]  # fmt: skip


def awkward_text(seed: int, words: int = 900) -> str:
    """Words, numbers, signs and blanks in any order, with and without blanks between."""
    draw = random.Random(seed)
    return "".join(draw.choice(WORDS) + draw.choice(["", " ", " ", "  "]) for _ in range(words))


def byte_level_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([awkward_text(100)], trainer)
    return tokenizer


def prefixed_bpe() -> Tokenizer:
    """As Llama 2: every text gets a blank in front, and blanks are a part of the next word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?=▁)"), "isolated")
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator([awkward_text(100)], trainer)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator([awkward_text(100)], trainer)
    return tokenizer


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts so small that a short text has many."""
    monkeypatch.setattr(stream, "PART_CHARACTERS", 300)
    monkeypatch.setattr(stream, "MARGIN_CHARACTERS", 150)
    monkeypatch.setattr(files, "BLOCK_BYTES", 97)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("make", [byte_level_bpe, prefixed_bpe, unigram], ids=lambda make: make.__name__)
def test_parts_have_the_tokens_of_the_whole(make: Any, tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make(), sep_token="<sep>", unk_token=None)
    file = tmp_path / "text.txt"
    for seed in range(6):
        file.write_text(awkward_text(seed) + "\r\n" * 5 + awkward_text(seed + 50), newline="")
        parts = list(token_parts(text_pieces(file), tokenizer))
        whole = tokenizer(read_text(file), add_special_tokens=False)["input_ids"]
        assert [token for part in parts for token in part] == whole
        assert len(parts) > 5


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    "text",
    ["", "a", "a" * 5000, " " * 5000, "\n" * 5000, "ab " * 2000, ("x" * 700 + " ") * 9, "日本語の文です🙂" * 600,
     "".join(random.Random(0).choices("0123456789abcdef", k=9000))],
    ids=lambda text: repr(text[:3]),
)  # fmt: skip
def test_runs_without_a_space_are_cut_too(text: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe())
    parts = list(token_parts([text], tokenizer))
    assert [token for part in parts for token in part] == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(parts) >= len(text) // 900


@pytest.mark.parametrize("split", [False, True])
def test_a_tokenizer_s_own_settings_hold(split: bool) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(), sep_token="<sep>", pad_token="<pad>", split_special_tokens=split
    )
    text = "one <sep> two " * 20
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert (tokenizer.sep_token_id in whole) is not split
    tokenizer([text, text[:20]], padding=True, truncation=True, max_length=7)  # which it keeps, and must not use here
    assert [token for part in token_parts([text], tokenizer) for token in part] == whole


@pytest.mark.usefixtures("small_parts")
def test_no_more_is_held_than_a_part_needs() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe())
    taken = []
    endless = (taken.append(n) or "word " * 10 for n in itertools.count())
    parts = token_parts(endless, tokenizer)
    sizes = [len(next(parts)) for _ in range(20)]
    assert len(taken) * 50 < 20 * 300 + 1000
    assert max(sizes) < 300
