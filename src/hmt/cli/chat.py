"""`hmt chat`: a conversation in the terminal that never outgrows the window."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmt.options import ModelOptions, OutputOptions, SamplingOptions
from hmt.terminal import on_interrupt, say

if TYPE_CHECKING:
    from hmt.model.conversation import Answer, Conversation

HELP = """/save FILE    save the memory of this conversation to a file
/load FILE    start a new conversation from a memory file
/forget       forget everything, also the memory the conversation started from
/recall       show the passages that were recalled for the last answer
/help         show this help
/quit         end the conversation (like Ctrl-D); Ctrl-C stops an answer"""


@dataclass(kw_only=True)
class ChatOptions(SamplingOptions, OutputOptions, ModelOptions):
    """Chat with the model in the terminal; memory keeps conversations of any length."""

    memory: Path | None = None
    """Memory file to start from, written by hmt remember."""
    system: str | None = None
    """System message. Default: the chat template's own."""


def run(options: ChatOptions) -> tuple[dict[str, Any], str]:
    """Talk until the input ends.

    Returns:
        The turns with their figures, and a closing line.

    Raises:
        ValueError: If the model cannot chat, or the memory is another model's.
        OSError: If the memory cannot be read.
    """
    import torch

    from hmt.memory.state import MemoryState
    from hmt.model.conversation import Conversation
    from hmt.model.loading import load

    memory = None if options.memory is None else MemoryState.load(options.memory)
    model, tokenizer = load(options)
    torch.manual_seed(options.seed)
    chat = Chat(Conversation(model, tokenizer, memory, options.system), options.sampling)
    if sys.stdin.isatty():
        say("Say something; /help lists the commands.")
    for line in _lines():
        if not chat.handle(line):
            break
    tokens = int(chat.conversation.settle().tokens_read[0])
    return {"turns": chat.turns, "tokens": tokens}, f"{len(chat.turns)} answers, {tokens:,} tokens in memory"


class Chat:
    """The terminal's side of a conversation: commands, and answers that can be stopped."""

    def __init__(self, conversation: Conversation, sampling: dict[str, Any]) -> None:
        self.conversation = conversation
        self.turns: list[dict[str, Any]] = []
        self._sampling = sampling
        self._last: Answer | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/save": self._save,
            "/load": self._load,
            "/forget": self._forget,
            "/recall": self._recall,
            "/help": lambda _: say(HELP),
        }

    def handle(self, line: str) -> bool:
        """Answer a line or execute its command; returns False at the end of the conversation."""
        from hmt.pretrained import first_line

        command, _, argument = line.strip().partition(" ")
        if command in ("/quit", "/exit"):
            return False
        try:
            if command.startswith("/"):
                do = self._commands.get(command, lambda _: say(f"there is no command {command}; /help lists them"))
                do(argument.strip())
            elif line.strip():
                self._answer(line.strip())
        except (OSError, ValueError, RuntimeError) as error:  # a turn or a command failed, not the conversation
            say(first_line(error))
        except KeyboardInterrupt:
            say("\n(interrupted: the conversation is as it was)")
        return True

    def _answer(self, message: str) -> None:
        from transformers import StoppingCriteriaList

        from hmt.model.generation import CancelCriteria
        from hmt.text.streaming import TerminalStreamer

        streamer, cancel = TerminalStreamer(self.conversation.tokenizer), CancelCriteria()
        with on_interrupt(lambda: setattr(cancel, "cancelled", True), (signal.SIGINT,)):
            stop = StoppingCriteriaList([cancel])
            answer = self.conversation.ask(message, streamer, stopping_criteria=stop, **self._sampling)
        self._last = answer
        self.turns.append(
            {
                "message": message,
                "answer": answer.text,
                "read_tokens": answer.read_tokens,
                "new_tokens": answer.new_tokens,
                "seconds": answer.seconds,
            }
        )

    def _save(self, file: str) -> None:
        if not file:
            raise ValueError("/save needs a file")
        path = Path(file).expanduser()
        memory = self.conversation.settle()
        memory.save(path)
        say(f"{int(memory.tokens_read[0]):,} tokens, {path.stat().st_size / 1e3:.0f} kB in {path}")

    def _load(self, file: str) -> None:
        from hmt.memory.state import MemoryState

        if not file:
            raise ValueError("/load needs a file")
        memory = MemoryState.load(Path(file).expanduser())
        self.conversation.begin(memory)
        self._last = None
        say(f"a memory of {int(memory.tokens_read[0]):,} tokens")

    def _forget(self, _: str) -> None:
        self.conversation.begin()
        self._last = None
        say("forgotten")

    def _recall(self, _: str) -> None:
        from hmt.report.recollection import describe_recall, recalled_passages, recalled_segments

        trace = None if self._last is None else self._last.recall
        tokenizer = self.conversation.tokenizer
        segments = recalled_segments(trace, self.conversation.memory, tokenizer)
        say(describe_recall(segments, recalled_passages(trace, tokenizer)))


def _lines() -> Iterator[str]:
    """Yield the lines that the user types; Ctrl-C drops an unfinished one."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character is no reason to end
    prompt = "> " if sys.stdin.isatty() else ""
    if prompt:
        try:
            import readline  # noqa: F401  (line editing and history for input)
        except ImportError:
            pass
    while True:
        try:
            yield input(prompt)
        except EOFError:
            return
        except KeyboardInterrupt:
            say("\n/quit or Ctrl-D ends")
