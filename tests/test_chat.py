"""`hmt chat`: a conversation in the terminal whose history is in the memory."""

from __future__ import annotations

import io
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList

from hmt import HMTForCausalLM, MemoryState
from hmt.cli.chat import Chat, ChatOptions
from hmt.model.conversation import Conversation
from hmt.model.loading import load
from tests.conftest import CHAT_TEMPLATES, byte_tokenizer, make_model, make_rolling, random_ids
from tests.model.test_equivalence import assert_same_state
from tests.test_remember import FLAGS

READABLE = [i for i in range(3, 259) if byte_tokenizer().decode([i]).isalnum()]
UNREADABLE = [i for i in range(300) if i not in READABLE]


def conversation(model: HMTForCausalLM, memory: MemoryState | None = None) -> Conversation:
    """A conversation in bytes."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATES["chatml"]
    return Conversation(model, tokenizer, memory)


@pytest.fixture
def chat_dir(backbone_dir: Path, tmp_path: Path) -> Path:
    """The tiny backbone with a tokenizer that has a chat template."""
    folder = tmp_path / "chatty"
    folder.mkdir()
    for file in backbone_dir.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATES["chatml"]
    tokenizer.save_pretrained(folder)
    return folder


def test_what_was_said_is_read_once_and_is_the_conversation_the_template_renders(model: HMTForCausalLM) -> None:
    talk = conversation(model)
    messages = []
    for message in ("Who are you?", "And where?", "Why?"):
        answer = talk.ask(message, max_new_tokens=20, suppress_tokens=UNREADABLE)
        messages += [{"role": "user", "content": message}, {"role": "assistant", "content": answer.text}]
        # The message and its markers, and from the second on the end of the answer before it.
        assert answer.read_tokens <= len(message) + len("[user][end][assistant]\n\n\n") + 8
    whole = talk.tokenizer.apply_chat_template(messages, return_tensors="pt")["input_ids"]
    assert_same_state(talk.settle(), model.remember(whole))


def test_an_answer_that_ended_itself_is_closed_once(model: HMTForCausalLM) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATES["eos"]
    talk = Conversation(model, tokenizer)
    read = []
    for message in ("a", "b"):
        start = int(talk.memory.tokens_read)
        answer = talk.ask(message, max_new_tokens=6, forced_eos_token_id=2)
        read.append(int(talk.memory.tokens_read) - start)
        assert answer.new_tokens == 6
    whole = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True)["input_ids"]
    assert read[0] == len(whole) + 5
    assert int(talk.settle().tokens_read) == sum(read) + 1  # the end of the last answer


def test_an_interrupted_answer_is_kept_as_far_as_it_came(model: HMTForCausalLM, capsys: Any) -> None:
    def interrupt(sequences: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        interrupt.calls += 1
        if interrupt.calls == 5:
            signal.raise_signal(signal.SIGINT)
        return scores

    interrupt.calls = 0
    settings = {"max_new_tokens": 40, "suppress_tokens": UNREADABLE, "eos_token_id": None}
    chat = Chat(conversation(model), settings | {"logits_processor": LogitsProcessorList([interrupt])})
    before = signal.getsignal(signal.SIGINT)
    assert chat.handle("Tell me everything.")
    assert signal.getsignal(signal.SIGINT) is before
    assert [turn["new_tokens"] for turn in chat.turns] == [5]
    assert capsys.readouterr().out.strip() == chat.turns[0]["answer"]
    assert chat.handle("Go on.")
    assert chat.turns[1]["new_tokens"] == 40


def test_interrupted_twice_the_message_was_never_said(model: HMTForCausalLM, capsys: Any) -> None:
    def interrupt(sequences: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return scores

    talk = conversation(model)
    talk.ask("Hello.", max_new_tokens=3, eos_token_id=None)
    before = talk.memory.clone()
    chat = Chat(talk, {"max_new_tokens": 9, "logits_processor": LogitsProcessorList([interrupt])})
    assert chat.handle("Tell me everything.")
    assert "the conversation is as it was" in capsys.readouterr().out
    assert chat.turns == []
    assert_same_state(talk.memory, before)


def test_commands_keep_restore_forget_and_show(model: HMTForCausalLM, tmp_path: Path, capsys: Any) -> None:
    book = model.remember(random_ids(1, 60))
    chat = Chat(conversation(model, book), {"max_new_tokens": 12, "suppress_tokens": UNREADABLE})

    def said(line: str) -> str:
        assert chat.handle(line)
        return capsys.readouterr().out

    assert "nothing was recalled" in said("/recall")
    first = said("What is in the book?")
    assert "segment " in said("/recall")
    assert "%" in said("/recall")
    assert "kB in" in said(f"/save {tmp_path / 'talk.memory'}")
    saved = MemoryState.load(tmp_path / "talk.memory")
    assert_same_state(saved, chat.conversation.memory)
    assert "forgotten" in said("/forget")
    assert int(chat.conversation.memory.tokens_read) == 0
    assert said("What is in the book?") != first
    book.save(tmp_path / "book.memory")
    assert "a memory of 60 tokens" in said(f"/load {tmp_path / 'book.memory'}")
    assert said("What is in the book?") == first
    assert "there is no command /dance" in said("/dance")
    assert "/load needs a file" in said("/load")
    assert "no memory file at" in said("/load nowhere")
    make_model(seed=1).remember(random_ids(1, 20)).save(tmp_path / "other.memory")
    assert "was written by" in said(f"/load {tmp_path / 'other.memory'}")
    assert "/recall" in said("/help")
    assert not chat.handle("/quit")


def test_the_command_line_talks_until_the_input_ends(
    chat_dir: Path, tmp_path: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"Hello.\n\nAnd now?\n/save {tmp_path / 'a.memory'}\n"))
    flags = ("--model_name", chat_dir, *FLAGS, "--max_new_tokens", 8)
    status, said, complaint = run_cli("chat", *flags, "--json", tmp_path / "chat.json")
    assert status == 0, complaint
    figures = json.loads((tmp_path / "chat.json").read_text())
    assert [turn["message"] for turn in figures["turns"]] == ["Hello.", "And now?"]
    assert "2 answers" in said
    assert int(MemoryState.load(tmp_path / "a.memory").tokens_read) == figures["tokens"]

    status, said, complaint = run_cli(
        "generate", *flags, "--memory", tmp_path / "a.memory", "--prompt", "Who?", "--chat", "--explain",
        "--json", tmp_path / "g.json",
    )  # fmt: skip
    assert status == 0, complaint
    figures = json.loads((tmp_path / "g.json").read_text())
    assert figures["prompt_tokens"] > len("Who?")
    assert 0 < figures["seconds_to_first_token"] <= figures["seconds"]
    strongest = figures["recalled_segments"][0]
    assert f"segment {strongest['number']:>5}" in said
    assert strongest["text"]
    assert figures["recalled"] == []


def test_a_question_about_what_was_said_shows_where_it_was_said(capsys: Any) -> None:
    model = make_rolling(num_recalled_tokens=40, segment_length=80)
    model.use_tokenizer(byte_tokenizer())
    chat = Chat(conversation(model), {"max_new_tokens": 5})
    for line in ("The code of the safe is 4711.", "It rains.", "It snows.", "What is the code of the safe?"):
        assert chat.handle(line)
    capsys.readouterr()
    assert chat.handle("/recall")
    assert "The code of the safe is 4711." in capsys.readouterr().out


def test_an_answer_ends_with_the_tokenizers_end_token_as_with_the_models_own(chat_dir: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(70)
    tokenizer.save_pretrained(chat_dir)
    model, tokenizer = load(ChatOptions(model_name=str(chat_dir), device="cpu"))
    for end in (2, 70):
        out = model.generate(torch.tensor([[5, 6]]), max_new_tokens=4, sequence_bias=[[[end], 100.0]])
        assert out[0, 2:].tolist() == [end]


def test_a_model_that_cannot_chat_is_refused_in_one_line(backbone_dir: Path, run_cli: Any) -> None:
    for verb in (("chat",), ("generate", "--chat", "--prompt", "Hello")):
        status, _, complaint = run_cli(*verb, "--model_name", backbone_dir, *FLAGS)
        assert status == 2
        assert "no chat template" in complaint
        assert complaint.count("\n") == 1
