"""A conversation of any length: what was said is in the memory, and a turn reads only what is new."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from hmt.memory.state import MemoryState
from hmt.model.generation import GenerateOutput
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.model.outputs import RecallTrace
from hmt.text.batches import check_vocabulary
from hmt.text.chat import ChatTemplate
from hmt.text.encoding import end_token_ids


@dataclass(frozen=True)
class Answer:
    """Answer to a message.

    Attributes:
        text: The answer.
        new_tokens: Tokens written.
        read_tokens: Tokens read for it.
        seconds: From the message to the end of the answer.
        recall: What was recalled while it was written.
    """

    text: str
    new_tokens: int
    read_tokens: int
    seconds: float
    recall: RecallTrace | None


class Conversation:
    """Messages and answers, on top of a memory or from nothing.

    Args:
        model: Writes the answers.
        tokenizer: With a chat template.
        memory: What was read before; each `ask` goes on from it, and it is never changed.
        system: A system message to begin with; the template's own where None.

    Raises:
        ValueError: If the tokenizer has no chat template.
    """

    def __init__(
        self,
        model: HMTForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        memory: MemoryState | None = None,
        system: str | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.system = system
        self._template = ChatTemplate(tokenizer)
        self.begin(memory)

    def begin(self, memory: MemoryState | None = None) -> None:
        """Start anew, on top of a memory or from nothing.

        Raises:
            ValueError: If the memory is another model's; the conversation then stays as it is.
        """
        self.memory: MemoryState = self.model.start_state(memory, batch_size=1)
        self._started = False
        self._unread: list[int] = []

    def ask(self, message: str, streamer: BaseStreamer | None = None, **settings: Any) -> Answer:
        """Say something and have it answered. If this is interrupted, the conversation stays as it was.

        Args:
            message: What the user says.
            streamer: Receives the tokens of the answer.
            settings: Of `generate`.
        """
        started = time.perf_counter()
        ids = [*self._unread, *(self._template.turn(message) if self._started else self._opening(message))]
        out = self._generate(ids, message, streamer, settings)
        assert out.sequences is not None
        assert out.memory is not None
        new = out.sequences[0, len(ids) :]
        # The memory has not read the last token yet; a token that ends an answer comes again with the ending.
        last = int(new[-1])
        unread = [
            *([] if last in end_token_ids(self.tokenizer, self.model.generation_config) else [last]),
            *self._template.ending(),
        ]
        answer = Answer(
            text=str(self.tokenizer.decode(new, skip_special_tokens=True)),
            new_tokens=len(new),
            read_tokens=len(ids),
            seconds=time.perf_counter() - started,
            recall=out.recall,
        )
        self.memory, self._started, self._unread = out.memory, True, unread  # together, whatever interrupts
        return answer

    def settle(self) -> MemoryState:
        """The memory of all that was said, the end of the last answer included."""
        if self._unread:
            self.memory, self._unread = self.model.remember(self._tensor(self._unread), self.memory), []
        return self.memory

    def _opening(self, message: str) -> list[int]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return self._template.opening([*system, {"role": "user", "content": message}])

    def _generate(
        self, ids: list[int], message: str, streamer: BaseStreamer | None, settings: dict[str, Any]
    ) -> GenerateOutput:
        asked = self.tokenizer(message, add_special_tokens=False)["input_ids"]
        settings = {"eos_token_id": end_token_ids(self.tokenizer, self.model.generation_config) or None} | settings
        out = self.model.generate(
            self._tensor(ids),
            memory=self.memory,
            query_ids=self._tensor(asked) if asked else None,
            streamer=streamer,
            tokenizer=self.tokenizer,
            output_recall=True,
            return_dict_in_generate=True,
            **settings,
        )
        assert isinstance(out, GenerateOutput)
        return out

    def _tensor(self, ids: list[int]) -> torch.Tensor:
        check_vocabulary(ids, len(self.model.embedding_table))
        return torch.tensor([ids], device=self.model.embedding_table.device)
