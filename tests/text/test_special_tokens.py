"""Control tokens that a user types are text; the template's own act."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig, PreTrainedTokenizerFast

from hmt.text.chat import ChatTemplate
from hmt.text.special_tokens import TextEncoder, beginning_token_ids, end_token_ids
from tests.conftest import CHAT_TEMPLATES, byte_tokenizer
from tests.text.tokenizers import BOS, templated

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
