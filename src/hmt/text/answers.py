"""Questions as tokens: what a model is shown, and the answer it learns or is to give."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hmt.text.batches import IGNORED, Sample, check_text, check_vocabulary
from hmt.text.questions import Question, Range

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenQuestion:
    """A question as token ids, its parts apart: no token of the answer is made together with what is shown.

    Attributes:
        question: The question as text.
        context: (context tokens,) int64.
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
        """What a model reads before it answers, (tokens,) int64."""
        return torch.cat([self.context, self.prompt])

    @property
    def ids(self) -> Tensor:
        """Context, prompt and answer, (tokens,) int64."""
        return torch.cat([self.context, self.prompt, self.answer])

    def samples(self, sample_tokens: int) -> list[Sample]:
        """The question as one sample of at most so many tokens; only the answer is scored.

        What does not fit is left out. Prompt and answer come first: the end of the prompt in at most half of the
        sample, of a longer answer the beginning in at most half of the rest. What is left is for the context: the
        passages that the answer rests on, from the first on, and besides them the text nearest to the question.
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
        place = torch.cumsum(kept, dim=0)  # (context tokens,) of each kept token one past its new place
        ranges = []
        for start, end in self.supporting:
            here = place[start:end][kept[start:end]]
            if len(here):
                ranges.append((int(here[0]) - 1, int(here[-1])))
        return [Sample(ids, labels, tuple(ranges))]

    def _kept(self, room: int) -> Tensor:
        """Which tokens of the context stay, (context tokens,) bool."""
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
    """Token ids of questions, with nothing added but the end of the answer.

    Raises:
        ValueError: If a text cannot be written as UTF-8, or the tokenizer gives ids the model has no embedding for.
    """
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    found = []
    contexts: dict[str, tuple[Tensor, list[Range]]] = {}
    for question in questions:
        answer = question.continuation(question.answers[0])
        check_text(question.name, question.shown + answer)
        if question.context not in contexts:
            contexts[question.context] = _encoded(question.context, tokenizer)
        context, offsets = contexts[question.context]
        prompt, reply = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (question.prompt, answer))
        check_vocabulary([*context.tolist(), *prompt, *reply, *end], num_embeddings)
        supporting = tuple(
            tokens for characters in question.supporting if (tokens := token_range(characters, offsets)) is not None
        )
        asked, answered = (torch.tensor(ids, dtype=torch.long) for ids in (prompt, [*reply, *end]))
        found.append(TokenQuestion(question, context, asked, answered, supporting))
    return found


def _encoded(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, list[Range]]:
    """Token ids (tokens,), and the characters behind each token; a tokenizer written in Python does not tell those."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    return torch.tensor(encoded["input_ids"], dtype=torch.long), encoded.get("offset_mapping", [])


def token_range(characters: Range, offsets: Sequence[Range]) -> Range | None:
    """The tokens [start, end) that hold any of the characters [start, end); None where there is none.

    Args:
        characters: Of a text.
        offsets: Characters [start, end) behind each token of that text, in order.
    """
    start, end = characters
    first = bisect_right(offsets, start, key=lambda token: token[1])
    last = bisect_left(offsets, end, key=lambda token: token[0])
    return (first, last) if first < last else None
