"""Questions as tokens: the prompt that a model is shown, and the answer it learns or is to give."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hmt.text.batches import IGNORED, Sample, check_text, check_vocabulary
from hmt.text.encoding import beginning_token_ids
from hmt.text.questions import Question, Range

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenQuestion:
    """A question as token ids, tokenized in parts so that no token of the answer depends on the text before it.

    Attributes:
        question: The question as text.
        context: (context tokens,) int64, after BOS where the tokenizer adds it.
        prompt: (prompt tokens,) int64.
        answer: The first answer and the token that ends a text, (answer tokens,) int64.
        supporting: Ranges of tokens [start, end) of the context that the answer rests on.
    """

    question: Question
    context: Tensor
    prompt: Tensor
    answer: Tensor
    supporting: tuple[Range, ...] = ()

    @property
    def shown(self) -> Tensor:
        """Context and prompt, (tokens,) int64."""
        return torch.cat([self.context, self.prompt])

    @property
    def ids(self) -> Tensor:
        """Context, prompt and answer, (tokens,) int64."""
        return torch.cat([self.context, self.prompt, self.answer])

    def samples(self, sample_tokens: int) -> list[Sample]:
        """The question as one sample of at most `sample_tokens` tokens; only the answer is scored.

        If it is longer, the end of the prompt gets at most half of the sample, and the beginning of the answer at most
        half of the rest. What remains goes to the supporting passages, from the first on, then to the text nearest to
        the question.
        """
        prompt = self.prompt
        if len(self.ids) > sample_tokens:
            prompt = prompt[max(len(prompt) - sample_tokens // 2, 0) :]
        rest = sample_tokens - len(prompt)
        answer = self.answer[: max(rest - len(self.context), rest // 2, 1)]
        kept = self._kept(rest - len(answer))
        ids = torch.cat([self.context[kept], prompt, answer])
        labels = ids.clone()
        labels[: len(ids) - len(answer)] = IGNORED
        ends = torch.cumsum(kept, dim=0)  # (context tokens,), one past the new place of each kept token
        ranges = []
        for start, end in self.supporting:
            found = ends[start:end][kept[start:end]]
            if len(found):
                ranges.append((int(found[0]) - 1, int(found[-1])))
        return [Sample(ids, labels, tuple(ranges))]

    def _kept(self, room: int) -> Tensor:
        """Mask of the context tokens that fit in a sample, (context tokens,) bool."""
        kept = torch.zeros(len(self.context), dtype=torch.bool)
        for start, end in self.supporting:
            kept[start:end] = True
        kept &= torch.cumsum(kept, dim=0) <= room
        others = (~kept).nonzero().flatten()
        spare = room - int(kept.sum())
        if spare > 0:
            kept[others[max(len(others) - spare, 0) :]] = True
        return kept


def tokenize_questions(
    questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, num_embeddings: int
) -> list[TokenQuestion]:
    """Token ids of questions: BOS before the context where the tokenizer adds it, its end token after the answer.

    Raises:
        ValueError: If a text cannot be written as UTF-8, or the tokenizer gives ids the model has no embedding for.
    """
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    contexts: dict[str, tuple[list[int], list[Range]]] = {}
    found = []
    for question in questions:
        answer = question.continuation(question.answers[0])
        check_text(question.name, question.context + question.prompt + answer)
        if question.context not in contexts:
            contexts[question.context] = _encoded(question.context, tokenizer)
        context, offsets = contexts[question.context]
        prompt, reply = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (question.prompt, answer))
        check_vocabulary([*context, *prompt, *reply, *end], num_embeddings)
        supporting = tuple(
            tokens for characters in question.supporting if (tokens := token_range(characters, offsets)) is not None
        )
        shown, asked, answered = (torch.tensor(ids, dtype=torch.long) for ids in (context, prompt, [*reply, *end]))
        found.append(TokenQuestion(question, shown, asked, answered, supporting))
    return found


def _encoded(context: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[Range]]:
    """Token ids of a context, and the characters of each token; a tokenizer written in Python does not give those."""
    encoded = tokenizer(context, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    beginning = beginning_token_ids(tokenizer)
    offsets = [(0, 0)] * len(beginning) + encoded["offset_mapping"] if tokenizer.is_fast else []
    return [*beginning, *encoded["input_ids"]], offsets


def token_range(characters: Range, offsets: Sequence[Range]) -> Range | None:
    """Tokens [start, end) that hold any of the characters [start, end); None where there is none.

    Args:
        characters: A range of a text.
        offsets: Characters [start, end) of each token of that text, in order.
    """
    start, end = characters
    first = bisect_right(offsets, start, key=lambda token: token[1])
    last = bisect_left(offsets, end, key=lambda token: token[0])
    return (first, last) if first < last else None
