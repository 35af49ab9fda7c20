"""Answers requests with one model, one after the other, and keeps what it has read of each conversation.

A client of the OpenAI protocol sends the whole conversation each time. Its memory after the last answer takes less than
a megabyte for a small model, so the newest ones are kept, and a request reads only what it adds.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteriaList, TextStreamer

from hmt.memory.state import MemoryState
from hmt.model.decoding import DEFAULT_NEW_TOKENS, CancelCriteria, end_tokens
from hmt.model.generation import GenerateOutput
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.pretrained import first_line
from hmt.serving.protocol import CompletionRequest, RequestError, Usage
from hmt.text.batches import check_text, check_vocabulary
from hmt.text.chat import ChatTemplate

logger = logging.getLogger(__name__)

QUIET_SECONDS = 0.5
"""After so long without anything new a caller hears that there is nothing."""

READ_AT_ONCE = 4096
"""Tokens of a prompt read before it is seen whether anyone still waits."""

KEPT_MEMORIES = 32
"""Conversations (and stages of them) whose memory is kept."""


@dataclass(frozen=True)
class Finish:
    """The end of an answer.

    Attributes:
        reason: "stop" where the model or a stop text ended it, "length" where the limit did.
        usage: Tokens.
    """

    reason: str
    usage: Usage


class Engine:
    """One model that answers requests.

    Args:
        model: Writes the answers.
        tokenizer: Of the model; without a chat template only prompts are served.
        memory: What every request goes on from.
        sampling: Settings of `generate` where a request says nothing.
    """

    def __init__(
        self,
        model: HMTForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        memory: MemoryState | None,
        sampling: dict[str, Any],
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.sampling = sampling
        self._read = ReadTexts(model.start_state(memory, batch_size=1))
        self._one_at_a_time = threading.Lock()
        self._under_way: set[CancelCriteria] = set()

    def close(self) -> None:
        """Stop what is under way, and wait until it has stopped."""
        for stop in list(self._under_way):
            stop.cancelled = True
        with self._one_at_a_time:
            pass

    def answer(self, request: CompletionRequest) -> Iterator[str | Finish]:
        """Write an answer: its text in parts, then its end. Closing the iterator stops the writing.

        While there is nothing new for a while, a part is "", so that the caller can see whether anyone still waits.

        Raises:
            RequestError: If the request cannot be served; before the first part.
        """
        ids = self._encode(request)
        parts: SimpleQueue[str | Finish | RequestError] = SimpleQueue()
        stop = CancelCriteria()
        self._under_way.add(stop)

        def work() -> None:
            last: Finish | RequestError = RequestError("the answer was not finished", status=500)
            try:
                with self._one_at_a_time:
                    last = self._write(request, ids, Parts(self.tokenizer, request.stop, parts, stop), stop)
            except ValueError as error:
                last = error if isinstance(error, RequestError) else RequestError(str(error))
            except RuntimeError as error:
                logger.exception("a request failed")
                last = RequestError(f"the model failed: {first_line(error)}", status=500)
            finally:
                parts.put(last)  # whatever happened, whoever waits must hear of it

        threading.Thread(target=work, daemon=True).start()
        try:
            while True:
                try:
                    part = parts.get(timeout=QUIET_SECONDS)
                except Empty:
                    part = ""
                if isinstance(part, RequestError):
                    raise part
                yield part
                if isinstance(part, Finish):
                    return
        finally:
            stop.cancelled = True
            self._under_way.discard(stop)

    def _encode(self, request: CompletionRequest) -> Tensor:
        """Token ids (tokens,) of a request."""
        try:
            if request.messages is not None:
                ids = ChatTemplate(self.tokenizer).opening(request.messages)
            elif isinstance(request.prompt, str):
                check_text("the prompt", request.prompt)
                ids = self.tokenizer(request.prompt, add_special_tokens=False)["input_ids"]
            else:
                ids = request.prompt or []
            check_vocabulary(ids, len(self.model.embedding_table))
        except ValueError as error:
            raise RequestError(str(error)) from error
        if not ids:
            raise RequestError("there is nothing to answer: the request has no tokens")
        return torch.tensor(ids)

    def _write(self, request: CompletionRequest, ids: Tensor, parts: Parts, stop: CancelCriteria) -> Finish:
        cached, memory = self._read.longest_before(ids)
        device = self.model.embedding_table.device
        read = cached
        while read < len(ids) - 1 and not stop.cancelled:
            upto = min(read + READ_AT_ONCE, len(ids) - 1)
            memory = self.model.remember(ids[None, read:upto].to(device), memory)
            read = upto
        if read > cached:
            self._read.keep(ids[:read], memory)
        if stop.cancelled:
            return Finish("stop", Usage(len(ids), cached, 0))
        settings = {"max_new_tokens": DEFAULT_NEW_TOKENS} | self.sampling | request.settings
        with _drawn_from(request.seed, device):
            out = self.model.generate(
                ids[None, -1:].to(device),
                memory=memory,
                earlier_ids=ids[None, :-1].to(device),
                streamer=parts,
                stopping_criteria=StoppingCriteriaList([stop]),
                return_dict_in_generate=True,
                **settings,
            )
        assert isinstance(out, GenerateOutput)
        assert out.sequences is not None
        assert out.memory is not None
        new = out.sequences[0, 1:].cpu()
        self._read.keep(torch.cat([ids, new[:-1]]), out.memory)
        ended = parts.stopped or int(new[-1]) in end_tokens(self.model.generation_config)
        by_limit = not ended and len(new) == settings["max_new_tokens"]
        return Finish("length" if by_limit else "stop", Usage(len(ids), cached, len(new)))


class ReadTexts:
    """Memories of texts that were read, the newest kept.

    Args:
        beginning: The memory before the first token.
    """

    def __init__(self, beginning: MemoryState) -> None:
        self._beginning = beginning
        self._kept: OrderedDict[bytes, tuple[Tensor, MemoryState]] = OrderedDict()

    def keep(self, ids: Tensor, memory: MemoryState) -> None:
        """Keep the memory of a text of these tokens (tokens,)."""
        key = hashlib.sha256(ids.numpy().tobytes()).digest()
        self._kept[key] = ids, memory
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT_MEMORIES:
            self._kept.popitem(last=False)

    def longest_before(self, ids: Tensor) -> tuple[int, MemoryState]:
        """The memory of the longest beginning of a text, its last token excluded, and how long that is."""
        best, key_of_best = (0, self._beginning), None
        for key, (read, memory) in self._kept.items():
            if best[0] < len(read) < len(ids) and torch.equal(ids[: len(read)], read):
                best, key_of_best = (len(read), memory), key
        if key_of_best is not None:
            self._kept.move_to_end(key_of_best)
        return best


class Parts(TextStreamer):
    """Text as it is written, without a stop text and without what may be the beginning of one.

    Args:
        tokenizer: Makes text of the tokens.
        stop: Texts that end the answer.
        parts: Where the text goes.
        told: Set as soon as a stop text was written.

    Attributes:
        stopped: A stop text came.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: tuple[str, ...],
        parts: SimpleQueue[Any],
        told: CancelCriteria,
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.stopped = False
        self._stop = stop
        self._parts = parts
        self._told = told
        self._held = ""
        self._cut = False
        self._last: deque[int] = deque(maxlen=max((len(one.encode()) for one in stop), default=0) + 4)

    def put(self, value: Tensor) -> None:
        """Take the prompt, which is no part of the answer, or a token."""
        if not self.next_tokens_are_prompt and self._stop:
            # A token may stand for a single byte, so a stop text lies within as many tokens as it has bytes.
            self._last.extend(value.flatten().tolist())
            tail = str(self.tokenizer.decode(list(self._last)))
            if any(one in tail for one in self._stop):
                self.stopped = self._told.cancelled = True
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Pass on what is certainly part of the answer."""
        if self._cut:
            return
        self._held += text
        found = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if found:
            self._cut = self.stopped = self._told.cancelled = True
            ready, self._held = self._held[: min(found)], ""
        else:
            waiting = 0 if stream_end else self._beginning_of_a_stop()
            cut = len(self._held) - waiting
            ready, self._held = self._held[:cut], self._held[cut:]
        if ready:
            self._parts.put(ready)

    def _beginning_of_a_stop(self) -> int:
        """Characters at the end of what is held that may become a stop text."""
        longest = max((len(stop) for stop in self._stop), default=0)
        for count in range(min(longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-count:]) for stop in self._stop):
                return count
        return 0


@contextmanager
def _drawn_from(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draw from a seed meanwhile, and afterwards go on as if nothing had been drawn."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
