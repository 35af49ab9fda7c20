"""Generates answers, one request after another, on a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedTokenizerBase, StoppingCriteriaList

from hmt.memory.state import MemoryState
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.pretrained import first_line
from hmt.serving.answer import (
    AnswerStream,
    Budget,
    FiniteScores,
    LogprobRecorder,
    StopWhen,
    TextOfTokens,
    check_finite,
    recalled_passages,
    seeded,
)
from hmt.serving.conversations import Conversations
from hmt.serving.jobs import (
    ChoiceEnd,
    Done,
    Event,
    FairQueue,
    GenerationRequest,
    Job,
    Limits,
    Piece,
    RequestError,
    TokenLogprob,
)
from hmt.text.batches import check_text, check_vocabulary
from hmt.text.chat import ChatTemplate
from hmt.text.special_tokens import TextEncoder, beginning_token_ids, end_token_ids
from hmt.text.streaming import StopStrings

logger = logging.getLogger(__name__)

READ_AT_ONCE = 1024
"""Tokens of a prompt read before it is seen whether anyone still waits. The last of them go to `generate` itself."""

SCORED_AT_ONCE = 256
"""Tokens of a prompt whose logits are held at one time."""

MAX_SCORED_TOKENS = 16_384
"""Longest prompt whose log-probabilities are returned: each of its tokens takes a line of the answer."""

DEFAULT_NEW_TOKENS = 512
"""New tokens of a choice where neither the request nor the server says how many."""


@dataclass(frozen=True)
class Prompt:
    """A prompt that is ready to be continued.

    Attributes:
        ids: Token ids (tokens,) int64.
        read: Tokens that the memory has read; `generate` reads the others.
        memory: The memory of them.
        cached: Tokens of them that had been read for an earlier request.
        text: The prompt as text, where it is to be returned.
        logprobs: Log-probabilities of all tokens, where they are to be returned.
    """

    ids: Tensor
    read: int
    memory: MemoryState
    cached: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


class Engine:
    """One model that answers requests in turn.

    All work with the model and its tokenizer is done on one thread, which starts here and ends with `close`.

    Args:
        model: Generates.
        tokenizer: The model's; without a chat template only prompts are served.
        memory: What every conversation begins with; each has a copy of its own.
        sampling: Arguments of `generate` that hold where a request says nothing.
        limits: What one request may take.
        allow_control_tokens: Let control tokens that users type act.

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
    ) -> None:
        self.limits = limits or Limits()
        self._model = model
        self._tokenizer = tokenizer
        self._sampling = {"max_new_tokens": DEFAULT_NEW_TOKENS} | (sampling or {})
        self._allow_control_tokens = allow_control_tokens
        self._end_tokens = end_token_ids(tokenizer, model.generation_config)
        self._beginning_tokens = beginning_token_ids(tokenizer) if memory is None else []
        self._encoder = TextEncoder(tokenizer, allow_control_tokens)
        self._conversations = Conversations(model.start_state(memory, batch_size=1))
        self._queue = FairQueue(self.limits.waiting)
        self._current: Job | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="hmt-engine", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest, owner: str, deliver: Callable[[Event], None]) -> Job:
        """Queue a request.

        Args:
            request: What is wanted.
            owner: Whose it is.
            deliver: Called with each event, from the engine's thread; `Done` or a `RequestError` comes last.

        Raises:
            RequestError: If too many wait; status 503.
        """
        job = Job(request, owner, deliver)
        self._queue.put(job)
        return job

    def cancel(self, job: Job) -> None:
        """Stop a request that nobody waits for any more."""
        job.cancel()
        if self._queue.remove(job):
            job.deliver(RequestError("the request was cancelled", status=503))

    def close(self) -> None:
        """Refuse what waits, stop what is under way, and wait until it has stopped."""
        self._closing = True
        for job in self._queue.close():
            job.deliver(RequestError("the server is shutting down", status=503))
        if (current := self._current) is not None:
            current.cancel()
        self._thread.join()

    def _work(self) -> None:
        """Answer jobs until the queue is closed. Whatever happens, whoever waits hears of it."""
        while (job := self._queue.get()) is not None:
            self._current = job
            if self._closing:
                job.cancel()
            try:
                last: Done | RequestError = self._answer(job)
            except RequestError as error:
                last = error
            except FloatingPointError as error:
                logger.error("a request failed: %s", first_line(error))
                last = RequestError("the model's logits are not finite", status=500)
            except ValueError as error:
                last = RequestError(first_line(error))
            except Exception:
                logger.exception("a request failed")
                last = RequestError("the model failed; the server's log says why", status=500)
            self._current = None
            job.deliver(last)

    def _answer(self, job: Job) -> Done:
        """Generate all choices of a request."""
        request = job.request
        budget = Budget(job, self.limits.seconds)
        settings = self._settings(request)
        encoded = self._encode(request)
        choice = cached_tokens = new_tokens = 0
        with torch.no_grad(), seeded(request.seed, self._model.device):
            for ids, text in encoded:
                # Prompts and choices that the time does not reach are empty.
                prompt = self._read(ids, text, job, budget) if choice == 0 or not budget.spent else None
                for _ in range(request.choices):
                    if prompt is not None and request.echo:
                        job.deliver(Piece(choice, text, prompt.logprobs))
                    if prompt is None or budget.spent or not settings["max_new_tokens"]:
                        job.deliver(ChoiceEnd(choice, "length"))
                    else:
                        new_tokens += self._generate(choice, prompt, job, settings, budget)
                    choice += 1
                cached_tokens += 0 if prompt is None else prompt.cached
        return Done(sum(len(ids) for ids, _ in encoded), cached_tokens, new_tokens)

    def _settings(self, request: GenerationRequest) -> dict[str, Any]:
        """Arguments of `generate`."""
        settings = self._sampling | request.settings
        if request.max_tokens is not None:
            settings["max_new_tokens"] = request.max_tokens
        settings["max_new_tokens"] = min(settings["max_new_tokens"], self.limits.tokens)
        if settings.get("do_sample"):
            settings.setdefault("top_k", 0)  # transformers samples from 50 tokens unless told otherwise
        biased = [token for (token,) in settings.get("sequence_bias", ())]
        if biased:
            check_vocabulary(biased, len(self._model.embedding_table))
        return settings | {"num_return_sequences": 1}

    def _encode(self, request: GenerationRequest) -> list[tuple[Tensor, str]]:
        """Token ids (tokens,) of each prompt, and its text."""
        if request.messages is not None:
            template = ChatTemplate(self._tokenizer, self._allow_control_tokens)
            encoded = [(template.opening(request.messages), "")]
        else:
            encoded = [self._encode_prompt(prompt, request.echo) for prompt in request.prompts]
        for ids, _ in encoded:
            if not ids:
                raise RequestError("the prompt has no tokens", param="prompt")
            check_vocabulary(ids, len(self._model.embedding_table))
        return [(torch.tensor(ids), text) for ids, text in encoded]

    def _encode_prompt(self, prompt: str | list[int], echo: bool) -> tuple[list[int], str]:
        if isinstance(prompt, str):
            check_text("the prompt", prompt)
            return [*self._beginning_tokens, *self._encoder.encode(prompt)], prompt
        return prompt, str(self._tokenizer.decode(prompt, skip_special_tokens=True)) if echo else ""

    def _read(self, ids: Tensor, text: str, job: Job, budget: Budget) -> Prompt:
        """Read a prompt but for its end, which `generate` reads."""
        request = job.request
        if request.echo and request.top_logprobs is not None:
            return self._score(ids, text, request.top_logprobs, budget)
        cached, memory = self._conversations.longest_prefix(job.owner, request.conversation, ids)
        read = cached
        while len(ids) - read > READ_AT_ONCE:
            budget.check(read, len(ids))
            memory = self._model.remember(self._on_device(ids[read : read + READ_AT_ONCE]), memory)
            read += READ_AT_ONCE
        return Prompt(ids, read, memory, cached, text)

    def _score(self, ids: Tensor, text: str, top: int, budget: Budget) -> Prompt:
        """Read a prompt, and compute the log-probabilities of its tokens."""
        if len(ids) > MAX_SCORED_TOKENS:
            message = f"a prompt with logprobs may have {MAX_SCORED_TOKENS} tokens, got {len(ids)}"
            raise RequestError(message, param="echo")
        memory = self._conversations.beginning
        tokens = TextOfTokens(self._tokenizer, context=[], offset=0)
        logprobs = [tokens.describe(int(ids[0]), None, top)]
        tokens.add(int(ids[0]))
        for start in range(0, len(ids) - 1, SCORED_AT_ONCE):
            budget.check(start, len(ids))
            part = ids[start : min(start + SCORED_AT_ONCE, len(ids) - 1)]
            out = self._model(self._on_device(part), memory=memory)
            check_finite(out.logits)
            memory = out.memory
            rows = out.logits[0].float().log_softmax(dim=-1).cpu()
            for row, token in zip(rows, ids[start + 1 : start + 1 + len(part)].tolist(), strict=True):
                logprobs.append(tokens.describe(token, row, top))
                tokens.add(token)
        return Prompt(ids, len(ids) - 1, memory, 0, text, tuple(logprobs))

    def _generate(self, choice: int, prompt: Prompt, job: Job, settings: dict[str, Any], budget: Budget) -> int:
        """Generate one choice: the number of new tokens."""
        request, ids = job.request, prompt.ids
        # An answer begins a text; a continuation goes on in one.
        context = [] if request.messages is not None else ids.tolist()
        text = TextOfTokens(self._tokenizer, context, offset=len(prompt.text) if request.echo else 0)
        recorder = None if request.top_logprobs is None else LogprobRecorder(request.top_logprobs)
        stream = AnswerStream(choice, text, StopStrings(request.stop), self._end_tokens, job.deliver, recorder)
        rest = self._on_device(ids[prompt.read :])
        out: Any = self._model.generate(
            rest,
            memory=prompt.memory,
            earlier_ids=self._on_device(ids[: prompt.read]),
            streamer=stream,
            logits_processor=LogitsProcessorList([FiniteScores(), *([recorder] if recorder else [])]),
            stopping_criteria=StoppingCriteriaList([StopWhen(lambda: stream.ended or budget.spent)]),
            output_recall=True,
            return_dict_in_generate=True,
            **settings,
        )
        new = out.sequences[0, rest.shape[1] :].cpu()
        self._conversations.keep(job.owner, request.conversation, torch.cat([ids, new[:-1]]), out.memory)
        recalled = recalled_passages(out, self._tokenizer)
        job.deliver(ChoiceEnd(choice, "stop" if stream.ended else "length", recalled))
        return len(new)

    def _on_device(self, ids: Tensor) -> Tensor:
        """Token ids (tokens,) as a batch of one row."""
        return ids[None].to(self._model.device)
