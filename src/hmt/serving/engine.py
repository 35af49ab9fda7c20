"""Generation for one request after another; a conversation that goes on is not read again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Hashable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase, StoppingCriteriaList
from transformers.generation import BaseStreamer

from hmt.memory.state import MemoryState
from hmt.model.generation import CancelCriteria
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.pretrained import first_line
from hmt.report.recollection import recalled_passages
from hmt.serving.schema import ChatRequest, Delta, GenerationRequest, RequestError, Usage
from hmt.text.batches import check_text, check_vocabulary
from hmt.text.chat import ChatTemplate
from hmt.text.encoding import TextEncoder, beginning_token_ids, end_token_ids
from hmt.text.streaming import UNFINISHED, Detokenizer, StopStrings

READ_AT_ONCE = 1024
"""Tokens of a prompt read before it is seen whether anyone still waits. The last of them go to `generate` itself."""

LOWEST_LOGPROB = -9999.0
"""Stands for the logarithm of 0, which JSON does not have; the OpenAI API uses the same number."""


KEPT_MEMORIES = 32
"""Memories kept of conversations; the ones that were used least recently are dropped."""


@dataclass(frozen=True)
class Limits:
    """Limits of one request."""

    body_bytes: int = 1 << 20
    body_seconds: float = 30.0  # for a client to send it
    tokens: int = 4096  # of each choice; requests for more get this many
    seconds: float = 300.0  # of its turn, for reading the prompts and generating all choices
    waiting: int = 64  # further requests are refused


@dataclass(frozen=True)
class Job:
    """A request that has its turn.

    Attributes:
        request: The request.
        owner: The client's key; what was read is never shared between owners.
        deliver: Receives each delta, on the engine's thread.
        is_over: True once nobody waits any more or the time is over.
    """

    request: GenerationRequest
    owner: str
    deliver: Callable[[Delta], None]
    is_over: Callable[[], bool]

    @property
    def conversation(self) -> tuple[str, str]:
        """The conversation whose memory may be continued."""
        return self.owner, self.request.prompt_cache_key


class Engine:
    """One model that answers requests in turn. All calls of `answer` come from one thread.

    Args:
        model: Generates.
        tokenizer: The model's; without a chat template only prompts are served.
        memory: Memory that every conversation begins with; each has a copy of its own.
        sampling: Arguments of `generate` that hold where a request says nothing.
        limits: Limits of one request.
        allow_control_tokens: Let control tokens that users type act.
        seed: Random seed of the requests that give none.

    Attributes:
        closing: Set to end the answer under way after the token at hand.

    Raises:
        ValueError: If the memory is another model's.
    """

    def __init__(
        self,
        model: HMTForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        memory: MemoryState | None = None,
        sampling: dict[str, Any] | None = None,
        limits: Limits | None = None,
        allow_control_tokens: bool = False,
        seed: int = 0,
    ) -> None:
        self.limits = limits or Limits()
        self.closing = False
        self._model = model
        self._tokenizer = tokenizer
        self._sampling = sampling or {}
        self._allow_control_tokens = allow_control_tokens
        self._seeds = random.Random(seed)
        self._end_tokens = end_token_ids(tokenizer, model.generation_config)
        self._beginning_tokens = beginning_token_ids(tokenizer) if memory is None else []
        self._encoder = TextEncoder(tokenizer, allow_control_tokens)
        self._memories = Memories(model.start_state(memory, batch_size=1))

    @torch.no_grad()
    def answer(
        self,
        request: GenerationRequest,
        owner: str,
        deliver: Callable[[Delta], None],
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Usage:
        """Generate all choices of a request.

        Args:
            request: The request.
            owner: The client's key.
            deliver: Receives each delta as soon as it is there.
            cancelled: True once nobody waits for the answer; it then ends after the token at hand.

        Raises:
            RequestError: If the request cannot be served (400), or its prompt not be read in time (503).
            FloatingPointError: If the model's logits are not finite.
        """
        end = time.monotonic() + self.limits.seconds
        job = Job(request, owner, deliver, lambda: cancelled() or self.closing or time.monotonic() > end)
        try:
            settings = self._settings(request)
            prompts = self._encode(request)
        except ValueError as error:  # of the client's text, tokens or messages
            raise RequestError(first_line(error)) from error
        torch.manual_seed(self._seeds.getrandbits(63) if request.seed is None else request.seed)
        cached_tokens = new_tokens = 0
        for number, ids in enumerate(prompts):
            cached, memory = self._memories.longest_prefix(job.conversation, ids)
            cached_tokens += cached
            for choice in range(number * request.n, (number + 1) * request.n):
                if job.is_over() or not settings["max_new_tokens"]:
                    deliver(Delta(choice, finish_reason="length"))
                    continue
                cached, memory = self._read(job, ids, cached, memory)
                new_tokens += self._generate(job, choice, ids, cached, memory, settings)
        return Usage(sum(map(len, prompts)), cached_tokens, new_tokens)

    def _settings(self, request: GenerationRequest) -> dict[str, Any]:
        """Arguments of `generate`."""
        settings = {"max_new_tokens": self.limits.tokens} | self._sampling | request.settings()
        settings["max_new_tokens"] = min(settings["max_new_tokens"], self.limits.tokens)
        if settings.get("do_sample"):
            settings.setdefault("top_k", 0)  # transformers samples from 50 tokens unless told otherwise
        check_vocabulary((token for (token,) in settings.get("sequence_bias", ())), len(self._model.embedding_table))
        return settings | {"num_return_sequences": 1}

    def _encode(self, request: GenerationRequest) -> list[Tensor]:
        """Token ids (tokens,) of each prompt."""
        if isinstance(request, ChatRequest):
            template = ChatTemplate(self._tokenizer, self._allow_control_tokens)
            prompts = [template.opening([message.for_template() for message in request.messages])]
        else:
            prompts = [one if isinstance(one, list) else self._encode_text(one) for one in request.prompt]
        for ids in prompts:
            if not ids:
                raise RequestError("the prompt has no tokens", param="prompt")
            check_vocabulary(ids, len(self._model.embedding_table))
        return [torch.tensor(ids) for ids in prompts]

    def _encode_text(self, text: str) -> list[int]:
        check_text("the prompt", text)
        return [*self._beginning_tokens, *self._encoder.encode(text)]

    def _read(self, job: Job, ids: Tensor, read: int, memory: MemoryState) -> tuple[int, MemoryState]:
        """Read a prompt from some place on, but for its end, which `generate` reads: the new place and its memory."""
        while len(ids) - read > READ_AT_ONCE:
            if job.is_over():
                message = f"{read} of {len(ids)} prompt tokens were read in {self.limits.seconds:g} seconds"
                raise RequestError(message, status=503)
            memory = self._model.remember(self._on_device(ids[read : read + READ_AT_ONCE]), memory)
            read += READ_AT_ONCE
        return read, memory

    def _generate(
        self, job: Job, choice: int, ids: Tensor, read: int, memory: MemoryState, settings: dict[str, Any]
    ) -> int:
        """Generate a choice after a prompt that was read to some place: the number of new tokens."""
        # An answer begins a text; a continuation goes on in one.
        context = [] if isinstance(job.request, ChatRequest) else ids.tolist()
        stream = ChoiceStream(job, choice, self._tokenizer, context, self._end_tokens)
        rest = self._on_device(ids[read:])
        out: Any = self._model.generate(
            rest,
            memory=memory,
            attention_mask=torch.ones_like(rest),  # padding tokens that a client sends are tokens
            earlier_ids=self._on_device(ids[:read]),
            streamer=stream,
            logits_processor=LogitsProcessorList([] if job.request.alternatives is None else [stream]),
            stopping_criteria=StoppingCriteriaList([stream.criteria]),
            output_recall=True,
            return_dict_in_generate=True,
            **settings,
        )
        new = out.sequences[0, rest.shape[1] :].cpu()
        if len(new) > 1:  # the last token was not read, and nothing is kept of a prompt alone
            self._memories.keep(job.conversation, torch.cat([ids, new[:-1]]), out.memory)
        recalled = tuple(asdict(passage) for passage in recalled_passages(out.recall, self._tokenizer))
        job.deliver(Delta(choice, finish_reason="stop" if stream.ended else "length", recalled=recalled))
        return len(new)

    def _on_device(self, ids: Tensor) -> Tensor:
        """Token ids (tokens,) as a batch of one row."""
        return ids[None].to(self._model.device)


@dataclass(frozen=True)
class _Kept:
    conversation: Hashable
    ids: Tensor
    memory: MemoryState


class Memories:
    """Memories at the end of answers. A request that goes on from an answer continues its memory.

    Clients of the OpenAI API send the whole conversation each time and no name for it. Nothing is kept of prompts
    alone, only of prompts together with the answer to them, and nothing is shared between owners: neither timing nor
    `cached_tokens` tells a client of a prompt that somebody else has sent.

    Args:
        beginning: Memory before the first token of every conversation.
    """

    def __init__(self, beginning: MemoryState) -> None:
        self._beginning = beginning
        self._kept: list[_Kept] = []  # the one used last comes last

    def keep(self, conversation: Hashable, ids: Tensor, memory: MemoryState) -> None:
        """Keep the memory of a text that ends within an answer.

        Args:
            conversation: Owner and, where the client gives one, name of the conversation.
            ids: Tokens that the memory has read after the beginning, (tokens,) int64.
            memory: The memory.
        """
        self._kept.append(_Kept(conversation, ids, memory))
        del self._kept[:-KEPT_MEMORIES]

    def longest_prefix(self, conversation: Hashable, ids: Tensor) -> tuple[int, MemoryState]:
        """Length and memory of the longest kept prefix of a text, its last token excluded."""
        longest = _Kept(conversation, ids[:0], self._beginning)
        for kept in self._kept:
            size = len(kept.ids)
            if kept.conversation == conversation and len(longest.ids) < size < len(ids):
                longest = kept if torch.equal(ids[:size], kept.ids) else longest
        if len(longest.ids):
            self._kept = [*(kept for kept in self._kept if kept is not longest), longest]
        return len(longest.ids), longest.memory


class ChoiceStream(BaseStreamer, LogitsProcessor):
    """Delivers the text of a choice as it is generated, up to a stop string.

    As a logits processor it stands after biases and penalties and before temperature.

    Args:
        job: The request.
        choice: Number of the choice.
        tokenizer: Decodes.
        context: Token ids before the text.
        end_tokens: Tokens that end the text; they have no log-probability in the answer.

    Attributes:
        criteria: Ends the generation with the text, or with the time of the request.
        ended: True once the model or a stop string has ended the text.
    """

    def __init__(
        self,
        job: Job,
        choice: int,
        tokenizer: PreTrainedTokenizerBase,
        context: list[int],
        end_tokens: Collection[int],
    ) -> None:
        self.criteria = CancelCriteria()
        self.ended = False
        self._job = job
        self._choice = choice
        self._tokenizer = tokenizer
        self._text = Detokenizer(tokenizer, context)
        self._stops = StopStrings(job.request.stop)
        self._end_tokens = end_tokens
        self._scores: Tensor | None = None
        self._logprobs: list[dict[str, Any]] = []
        self._prompt_seen = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """Note the scores (1, V) of the next token, and leave them as they are."""
        self._scores = scores[0]
        return scores

    def put(self, value: Tensor) -> None:
        """Skip the prompt, which comes first; deliver what each token (1,) completes."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        token = int(value)
        is_end = token in self._end_tokens
        if self._scores is not None and not is_end:
            self._logprobs.append(self._describe(token, self._scores))
        self._deliver(self._stops.add(self._text.add(token)))
        self.ended = is_end or self._stops.found
        self.criteria.cancelled = self.ended or self._job.is_over()

    def end(self) -> None:
        """Deliver what was held back."""
        held = self._stops.add(self._text.finish()) + self._stops.finish()
        self.ended = self.ended or self._stops.found
        self._deliver(held, last=True)

    def _deliver(self, text: str, last: bool = False) -> None:
        if text or (last and self._logprobs and not self._stops.found):
            self._job.deliver(Delta(self._choice, text, tuple(self._logprobs)))
            self._logprobs.clear()

    def _describe(self, token: int, scores: Tensor) -> dict[str, Any]:
        """Log-probabilities at the place of a token that is yet to be added to the text."""
        logprobs = scores.float().log_softmax(dim=-1).clamp(min=LOWEST_LOGPROB).cpu()
        likeliest = logprobs.topk(min(self._job.request.alternatives or 0, len(logprobs))).indices.tolist()

        def likelihood(candidate: int) -> dict[str, Any]:
            text = self._name(candidate)
            whole = None if UNFINISHED in text else list(text.encode())
            return {"token": text, "logprob": float(logprobs[candidate]), "bytes": whole}

        return likelihood(token) | {"top_logprobs": [likelihood(candidate) for candidate in likeliest]}

    def _name(self, token: int) -> str:
        """Text of a token; special tokens, which have none, by name."""
        if token in self._tokenizer.all_special_ids:
            return str(self._tokenizer.convert_ids_to_tokens(token))
        return self._text.peek(token)
