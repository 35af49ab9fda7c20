"""One choice as it is generated: its text in pieces, log-probabilities, and what stops it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria
from transformers.generation import BaseStreamer

from hmt.serving.jobs import Event, Job, Piece, RecalledPassage, RequestError, TokenLogprob
from hmt.text.streaming import Detokenizer, StopStrings

LOWEST_LOGPROB = -9999.0
"""Stands for the logarithm of 0, which JSON does not have; the OpenAI API uses the same number."""


class TextOfTokens:
    """Text of tokens one after another, and their log-probabilities.

    Args:
        tokenizer: Decodes.
        context: Token ids before the first one.
        offset: Characters before the first one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: list[int], offset: int) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, context)
        self._offset = offset
        self.add = self._detokenizer.add
        self.finish = self._detokenizer.finish

    def describe(self, token: int, logprobs: Tensor | None, top: int) -> TokenLogprob:
        """How likely the next token was, before it is added.

        Args:
            token: Its id.
            logprobs: (V,) float32, log-probabilities of the vocabulary at its place; None at the start of a text.
            top: Alternatives to list.
        """
        offset = self._offset + self._detokenizer.characters
        if logprobs is None:
            return TokenLogprob(self._name(token), None, (), offset)
        logprobs = logprobs.clamp(min=LOWEST_LOGPROB)
        best = logprobs.topk(min(top, len(logprobs)))
        likeliest = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        alternatives = tuple((self._name(other), logprob) for other, logprob in likeliest)
        return TokenLogprob(self._name(token), float(logprobs[token]), alternatives, offset)

    def _name(self, token: int) -> str:
        """Text of a token; special tokens, which have none, by name."""
        if token in self._tokenizer.all_special_ids:
            return str(self._tokenizer.convert_ids_to_tokens(token))
        return self._detokenizer.peek(token)


class AnswerStream(BaseStreamer):
    """Delivers the text of new tokens as they are generated, up to a stop string.

    Args:
        choice: Number of the choice.
        text: Makes text of the tokens.
        stops: Where the text ends.
        end_tokens: Tokens that end the text; they have no log-probability in the answer.
        deliver: Receives the pieces.
        recorder: Knows the log-probabilities, or None if they are not wanted.
    """

    def __init__(
        self,
        choice: int,
        text: TextOfTokens,
        stops: StopStrings,
        end_tokens: Collection[int],
        deliver: Callable[[Event], None],
        recorder: LogprobRecorder | None,
    ) -> None:
        self._choice = choice
        self._text = text
        self._stops = stops
        self._end_tokens = end_tokens
        self._deliver = deliver
        self._recorder = recorder
        self._logprobs: list[TokenLogprob] = []
        self._prompt_seen = False
        self.ended = False

    def put(self, value: Tensor) -> None:
        """Skip the prompt, which comes first; deliver what each token (1,) completes."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        token = int(value)
        is_end = token in self._end_tokens
        if self._recorder is not None and not is_end:
            self._logprobs.append(self._text.describe(token, self._recorder.logprobs, self._recorder.top))
        self._pass_on(self._stops.add(self._text.add(token)))
        self.ended = is_end or self._stops.found

    def end(self) -> None:
        """Deliver what was held back."""
        held = self._stops.add(self._text.finish()) + self._stops.finish()
        self.ended = self.ended or self._stops.found
        self._pass_on(held, last=True)

    def _pass_on(self, text: str, last: bool = False) -> None:
        if text or (last and self._logprobs and not self._stops.found):
            self._deliver(Piece(self._choice, text, tuple(self._logprobs)))
            self._logprobs.clear()


class LogprobRecorder(LogitsProcessor):
    """Notes the log-probabilities of each place, after biases and penalties and before temperature.

    Args:
        top: Alternatives that are wanted.

    Attributes:
        logprobs: (V,) float32, those of the newest place.
    """

    def __init__(self, top: int) -> None:
        self.top = top
        self.logprobs: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """The scores (1, V) as they are."""
        self.logprobs = scores[0].float().log_softmax(dim=-1).cpu()
        return scores


class FiniteScores(LogitsProcessor):
    """Raises FloatingPointError where scores are NaN or infinite, before anything is sampled from them."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """The scores (1, V) as they are."""
        check_finite(scores)
        return scores


class Budget:
    """Until when a request may use the model.

    Args:
        job: The request; it may be cancelled.
        seconds: Time from now.
    """

    def __init__(self, job: Job, seconds: float) -> None:
        self._job = job
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds

    @property
    def spent(self) -> bool:
        """True once the request has to end."""
        return self._job.cancelled or time.monotonic() > self._deadline

    def check(self, read: int, tokens: int) -> None:
        """Check that reading may go on.

        Raises:
            RequestError: If the request was cancelled or its time is over; status 503.
        """
        if self._job.cancelled:
            raise RequestError("the request was cancelled", status=503)
        if self.spent:
            raise RequestError(f"{read} of {tokens} prompt tokens were read in {self._seconds:g} seconds", status=503)


class StopWhen(StoppingCriteria):
    """Ends the text once a condition holds."""

    def __init__(self, condition: Callable[[], bool]) -> None:
        self._condition = condition

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:  # type: ignore[override]
        """(B,) bool, True for rows that end here."""
        return torch.full((len(input_ids),), self._condition(), device=input_ids.device)


def check_finite(logits: Tensor) -> None:
    """Check that no logit is NaN or infinite; tokens that are ruled out have minus infinity.

    Raises:
        FloatingPointError: If one is.
    """
    if not logits.amax(dim=-1).isfinite().all():
        raise FloatingPointError("the model's logits are not finite")


def recalled_passages(output: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[RecalledPassage, ...]:
    """The passages that were recalled for a prompt, oldest first.

    Args:
        output: Result of `generate` with `output_recall=True`.
        tokenizer: Decodes the passages.
    """
    return tuple(
        RecalledPassage(str(tokenizer.decode(one.ids.tolist())), len(one.ids), one.start)
        for one in output.recall.of_row(0)
    )


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draw from a seed in this block, and go on afterwards as if nothing had been drawn."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
