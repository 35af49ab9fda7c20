"""Three tasks that nothing but a memory can solve, drawn from a seed.

A text is a row of segments of L tokens. Some hold a fact, `mark key value`, among tokens of no meaning; a question,
`ask key`, stands at the head of a later segment, and the answer is the value. Every token of a question is read by the
segment's summary, the answer by nothing.

Shape legend: B rows, S segments, L tokens of a segment, Q questions, J tokens of a question.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

IGNORED = -100
SEGMENT_TOKENS = 8
KINDS = 32
"""Keys, values and tokens of no meaning there are, each; chance is one in so many."""

PAD, BOS, MARK, PLAIN, ASK = range(5)
FIRST_KEY = 8
FIRST_VALUE = FIRST_KEY + KINDS
FIRST_NOISE = FIRST_VALUE + KINDS
FIRST_TOPIC = FIRST_NOISE + KINDS
VOCABULARY = FIRST_TOPIC + KINDS


@dataclass(frozen=True)
class Sample:
    """Texts to train on.

    Attributes:
        ids: (B, S, L) int64.
        labels: (B, S, L) int64, IGNORED everywhere but at answers.
        supporting: (B, S, S) bool, [b, n, m] where segment n should recall segment m.
    """

    ids: Tensor
    labels: Tensor
    supporting: Tensor


@dataclass(frozen=True)
class Opening:
    """The beginning of texts to evaluate on, and what is asked about it after any number of distractors.

    Attributes:
        ids: (B, S, L) int64; the last of these segments is at distance 1 from a question that follows at once.
        questions: (B, Q, J) int64.
        answers: (B, Q) int64.
        supporting: (B, Q) int64, number of the segment that holds the fact.
        topics: (B,) int64, what the distractors are about, where the task has topics.
    """

    ids: Tensor
    questions: Tensor
    answers: Tensor
    supporting: Tensor
    topics: Tensor


class Task(ABC):
    """Draws texts of one form."""

    name: ClassVar[str]
    question_tokens: ClassVar[int]
    asked: ClassVar[int]
    """Of the questions of an opening, so many are asked in an evaluation; all of them in training."""
    steps: ClassVar[int]
    """Optimizer steps that the recipe gives it."""

    @abstractmethod
    def opening(self, generator: Generator, rows: int) -> Opening:
        """Facts and the questions about them."""

    @abstractmethod
    def distractors(self, generator: Generator, opening: Opening, count: int) -> Tensor:
        """Segments (B, count, L) that hold nothing that is asked for."""

    @abstractmethod
    def sample(self, generator: Generator, rows: int) -> Sample:
        """Texts of nine segments, so that at most eight lie between a fact and its question."""

    def pair(self, generator: Generator, rows: int) -> Sample:
        """The easiest texts of the task: a segment with a fact, and the question about it."""
        opening = self.opening(generator, rows)
        fact = opening.ids.gather(1, opening.supporting[:, :1, None].expand(-1, 1, SEGMENT_TOKENS))
        one = Opening(
            ids=fact,
            questions=opening.questions[:, :1],
            answers=opening.answers[:, :1],
            supporting=torch.zeros(rows, 1, dtype=torch.long),
            topics=opening.topics,
        )
        return _ask(generator, one, fact[:, :0], torch.zeros(rows, 1, dtype=torch.long))


class Recall(Task):
    """Four facts, then noise, then a question about one of the four."""

    name = "recall"
    question_tokens = 2
    asked = 4
    steps = 300
    facts: ClassVar[int] = 4
    idle: ClassVar[bool] = False
    """Whether segments that ask nothing are taught to recall the facts, so that what matters is in use."""

    def opening(self, generator: Generator, rows: int) -> Opening:
        """Four segments with a fact each."""
        keys, values = _draw(generator, rows, self.facts, FIRST_KEY), _draw(generator, rows, self.facts, FIRST_VALUE)
        ids = _place(generator, _noise(generator, rows, self.facts), _fact(MARK, keys, values))
        number = torch.arange(self.facts).expand(rows, -1)
        return Opening(ids, _question(keys), values, number, torch.zeros(rows, dtype=torch.long))

    def distractors(self, generator: Generator, opening: Opening, count: int) -> Tensor:
        """Tokens of no meaning."""
        return _noise(generator, opening.ids.shape[0], count)

    def sample(self, generator: Generator, rows: int) -> Sample:
        """Four facts and a distractor in any order, then the four questions in any order."""
        opening = self.opening(generator, rows)
        order = torch.rand(rows, self.facts + 1, generator=generator).argsort(dim=1)
        return _ask(generator, opening, self.distractors(generator, opening, 1), order, self.idle)


class Topic(Recall):
    """Two documents interleaved; both give a value to the same two keys. One is left, the other goes on for long."""

    name = "topic"
    question_tokens = 3
    asked = 2
    steps = 300

    def opening(self, generator: Generator, rows: int) -> Opening:
        """A segment of the one, a segment of the other, and again; asked is the one, distractors are the other's."""
        topics = _draw(generator, rows, 2, FIRST_TOPIC)
        keys = _draw(generator, rows, 2, FIRST_KEY).repeat_interleave(2, dim=1)
        values, topic = _draw(generator, rows, self.facts, FIRST_VALUE), topics.repeat(1, 2)
        ids = _place(generator, _noise(generator, rows, self.facts), _fact(MARK, keys, values), first=1)
        ids[..., 0] = topic
        questions = torch.stack([torch.full_like(keys, ASK), topic, keys], dim=-1)
        order = torch.tensor([0, 2, 1, 3])  # those about the one that is left first
        number = order.expand(rows, -1)
        return Opening(ids, questions[:, order], values[:, order], number, topics[:, 1])

    def distractors(self, generator: Generator, opening: Opening, count: int) -> Tensor:
        """The other document, which has no more facts."""
        ids = _noise(generator, opening.ids.shape[0], count)
        ids[..., 0] = opening.topics[:, None]
        return ids


class Capacity(Recall):
    """Four facts marked as important among any number of others in the same words that are not and never asked for."""

    name = "capacity"
    idle = True
    steps = 300

    def distractors(self, generator: Generator, opening: Opening, count: int) -> Tensor:
        """Facts without the mark, half of them about the keys that are asked for."""
        rows, asked = opening.answers.shape
        keys = torch.randint(FIRST_KEY, FIRST_KEY + KINDS, (rows, count), generator=generator)
        same = opening.questions[..., -1].gather(1, torch.randint(0, asked, (rows, count), generator=generator))
        keys = torch.where(torch.rand(rows, count, generator=generator) < 0.5, same, keys)
        values = torch.randint(FIRST_VALUE, FIRST_VALUE + KINDS, (rows, count), generator=generator)
        return _place(generator, _noise(generator, rows, count), _fact(PLAIN, keys, values))


TASKS: dict[str, Task] = {task.name: task for task in (Recall(), Topic(), Capacity())}


def _draw(generator: Generator, rows: int, count: int, first: int) -> Tensor:
    """`count` different tokens of a kind for each row, (B, count)."""
    return torch.rand(rows, KINDS, generator=generator).argsort(dim=1)[:, :count] + first


def _noise(generator: Generator, rows: int, segments: int) -> Tensor:
    return torch.randint(FIRST_NOISE, FIRST_NOISE + KINDS, (rows, segments, SEGMENT_TOKENS), generator=generator)


def _fact(mark: int, keys: Tensor, values: Tensor) -> Tensor:
    """Facts (B, S, 3) of keys and values (B, S)."""
    return torch.stack([torch.full_like(keys, mark), keys, values], dim=-1)


def _question(keys: Tensor) -> Tensor:
    return torch.stack([torch.full_like(keys, ASK), keys], dim=-1)


def _place(generator: Generator, ids: Tensor, facts: Tensor, first: int = 0) -> Tensor:
    """Segments (B, S, L) with a fact each, (B, S, 3), anywhere from token `first` on."""
    rows, segments, tokens = ids.shape
    start = torch.randint(first, tokens - 2, (rows, segments, 1), generator=generator)
    return ids.scatter(2, start + torch.arange(3), facts)


def _ask(generator: Generator, opening: Opening, distractors: Tensor, order: Tensor, idle: bool = False) -> Sample:
    """Opening and distractors in an order (B, S) of their own for each row, then the questions in any order.

    Where `idle`, a segment that asks nothing should recall some fact, on the average all of them alike.
    """
    rows, facts, _ = opening.ids.shape
    questions, length = opening.questions.shape[1:]
    ids = torch.cat([opening.ids, distractors], dim=1)
    ids = ids.gather(1, order[..., None].expand_as(ids))
    where = order.argsort(dim=1)  # where each segment went
    which = torch.rand(rows, questions, generator=generator).argsort(dim=1)
    row = torch.arange(rows)[:, None]
    tail, answers = _noise(generator, rows, questions), opening.answers.gather(1, which)
    tail[..., :length], tail[..., length] = opening.questions[row, which], answers
    ids = torch.cat([ids, tail], dim=1)
    labels = torch.full_like(ids, IGNORED)
    labels[:, -questions:, length] = answers
    segments = torch.arange(ids.shape[1])
    supported = where.gather(1, opening.supporting.gather(1, which))  # (B, questions)
    supporting = torch.zeros(rows, len(segments), len(segments), dtype=torch.bool)
    supporting[:, -questions:] = supported[..., None] == segments
    if idle:
        some = torch.randint(0, facts, (rows, len(segments) - questions), generator=generator)
        supporting[:, :-questions] = where.gather(1, some)[..., None] == segments  # those ahead do not count
    return Sample(ids, labels, supporting)
