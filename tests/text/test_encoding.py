"""Long texts have the tokens of the whole text; control tokens that a user types are text."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from hmt import files
from hmt.files import read_text, text_pieces
from hmt.text import encoding
from hmt.text.chat import ChatTemplate
from hmt.text.encoding import TextEncoder, beginning_token_ids, end_token_ids, token_parts
from tests.conftest import CHAT_TEMPLATES, byte_tokenizer
from tests.text.tokenizers import BOS, templated

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
    monkeypatch.setattr(encoding, "PART_CHARACTERS", 300)
    monkeypatch.setattr(encoding, "MARGIN_CHARACTERS", 150)
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


END = 2
"""Id of </s>."""


@pytest.mark.parametrize("configured", [None, 7, [7, 2], []])
def test_the_end_tokens_are_the_tokenizers_and_the_configs(
    configured: int | list[int] | None, tokenizer: PreTrainedTokenizerFast
) -> None:
    expected = {END} | ({configured} if isinstance(configured, int) else set(configured or ()))
    assert set(end_token_ids(tokenizer, GenerationConfig(eos_token_id=configured))) == expected


def test_bos_is_added_where_the_tokenizer_adds_it() -> None:
    assert beginning_token_ids(byte_tokenizer()) == []
    for template in ("<s> $A", "<s> $A </s>"):
        assert beginning_token_ids(templated(template)) == [BOS]


def test_every_verb_begins_a_text_with_bos_and_goes_on_from_a_memory_without(
    backbone_dir: Path, tmp_path: Path, run_cli: Any, bos_tokenizer: PreTrainedTokenizerFast
) -> None:
    shutil.copytree(backbone_dir, tmp_path / "model")
    bos_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "asked.jsonl").write_text(json.dumps({"context": "It is a.", "prompt": "What?", "answers": "a"}))
    (tmp_path / "book.txt").write_text("It is a.")
    model = ("--model_name", tmp_path / "model", "--segment_length", 60, "--json", tmp_path / "figures.json")

    def figures(verb: str, *flags: object) -> dict[str, Any]:
        status, _, complaint = run_cli(verb, *model, *flags)
        assert status == 0, complaint
        found: dict[str, Any] = json.loads((tmp_path / "figures.json").read_text())
        return found

    memory = tmp_path / "book.memory"
    assert figures("remember", tmp_path / "book.txt", "--out", memory)["tokens"] == 9
    assert figures("remember", tmp_path / "book.txt", "--out", memory, "--append")["tokens"] == 17
    written = ("--prompt", "What?", "--max_new_tokens", 2)
    assert figures("generate", *written)["prompt_tokens"] == 6
    assert figures("generate", *written, "--memory", memory)["prompt_tokens"] == 5
    predictions = tmp_path / "predictions.jsonl"
    asked = ("--task_name", tmp_path / "asked.jsonl", "--modes", "hmt", "--sensory", "reread", "--max_new_tokens", 2)
    figures("evaluate", *asked, "--predictions", predictions)
    assert json.loads(predictions.read_text())["context_tokens"] == 9


def test_control_tokens_in_a_text_are_text_unless_allowed(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "a</s>b<s>"
    ids = TextEncoder(tokenizer).encode(text)
    assert ids == [tokenizer(character)["input_ids"][0] for character in text]
    assert tokenizer.decode(ids) == text
    assert TextEncoder(tokenizer, allow_control_tokens=True).encode(text) == tokenizer(text)["input_ids"]
    assert TextEncoder(tokenizer).encode("a plain text") == tokenizer("a plain text")["input_ids"]


def test_the_template_ends_turns_and_the_user_does_not() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATES["eos"]
    messages = [{"role": "user", "content": "a</s>"}, {"role": "assistant", "content": "b"}]
    assert ChatTemplate(tokenizer).opening(messages).count(END) == 1
    assert ChatTemplate(tokenizer).turn("a</s>").count(END) == 0
    assert ChatTemplate(tokenizer, allow_control_tokens=True).opening(messages).count(END) == 2


def test_a_template_that_fails_is_an_error_of_one_line() -> None:
    tokenizer = byte_tokenizer()
    for template in ("{{ messages[0].content + 1 }}", "{{ 1 / 0 }}", "{{ nothing.at.all }}"):
        tokenizer.chat_template = template
        with pytest.raises(ValueError, match="template"):
            ChatTemplate(tokenizer).opening([{"role": "user", "content": "a"}])
