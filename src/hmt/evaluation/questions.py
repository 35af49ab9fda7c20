"""Questions of a task, answered in every row from what it remembers of the context.

The accepted answers are looked at when a model has written its own; only then is it asked how likely they, and the
choices, would have been.

Shape legend: T tokens.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from hmt.evaluation.options import EvaluateOptions
from hmt.evaluation.readers import slots_per_token
from hmt.evaluation.rows import ROWS, row_settings
from hmt.memory.passages import Passage
from hmt.memory.state import MemoryState
from hmt.metrics.flops import BackboneCost, scoring_flops
from hmt.metrics.machine import Meter
from hmt.metrics.scores import ANSWER_METRICS, exact_match, paired_change, ratio_interval, rouge_l
from hmt.model import continuations
from hmt.model.backbone import max_positions
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.model.text_recall import insert
from hmt.text.answers import TokenQuestion, tokenize_questions
from hmt.text.questions import Question, Range


def bm25_passages(question: TokenQuestion, budget: int, tokenizer: PreTrainedTokenizerBase) -> list[Range]:
    """Return the two chunks of half the budget that rank highest by BM25, in order of the text.

    Raises:
        ImportError: If bm25s is not installed; names the extra.
    """
    try:
        import bm25s
    except ImportError as error:
        raise ImportError("the row bm25 needs bm25s, the extra bm25: pip install bm25s") from error
    size, length = budget // 2, len(question.context)
    chunks = [(start, min(start + size, length)) for start in range(0, length, size)]
    texts = [str(tokenizer.decode(question.context[start:end].tolist())) for start, end in chunks]
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
    query = bm25s.tokenize([str(tokenizer.decode(question.prompt.tolist()))], show_progress=False)
    best, _ = index.retrieve(query, k=min(2, len(chunks)), show_progress=False)
    return [chunks[number] for number in sorted(best[0].tolist())]


def oracle_passages(question: TokenQuestion, budget: int, tokenizer: PreTrainedTokenizerBase) -> list[Range]:
    """Return the passages around the supporting text, which share the budget evenly, in order of the text."""
    length, found, taken = len(question.context), list[Range](), 0
    share = min(budget // max(len(question.supporting), 1), length)
    for start, end in sorted(question.supporting):
        first = max(min(start - (share - (end - start)) // 2, length - share), 0)
        if first + share > taken:
            found.append((max(first, taken), first + share))
            taken = first + share
    return found


def random_passages(question: TokenQuestion, budget: int, tokenizer: PreTrainedTokenizerBase) -> list[Range]:
    """Return two passages of half the budget from anywhere in the text; the same for the same question."""
    half = min(budget // 2, len(question.context))
    generator = random.Random(question.question.name)
    starts = sorted(generator.randrange(len(question.context) - half + 1) for _ in range(2))
    return [(start, start + half) for start in starts]


RETRIEVERS: dict[str, Callable[[TokenQuestion, int, PreTrainedTokenizerBase], list[Range]]] = {
    "bm25": bm25_passages,
    "oracle": oracle_passages,
    "random": random_passages,
}
"""Question, budget in tokens, tokenizer -> token ranges [start, end) of its context."""


SCORES = (*ANSWER_METRICS, "choice_accuracy")
"""Figures that are means over questions."""


class QuestionReader:
    """A row that remembers contexts and answers questions about them.

    Args:
        model: Memory and backbone; stays as it is.
        row: Name of the row.
        tokenizer: Tokenizer of the model.
        longest: Tokens of the longest context with its question and answer; row full attends to so many.

    Attributes:
        reading: The model that reads the contexts.
        asking: The model that answers, from the memory of `reading`.
        budget: Tokens of passages that a question gets, or recalls at most.

    Raises:
        ValueError: If the row cannot read so long a text, or has no room for passages.
    """

    def __init__(self, model: HMTForCausalLM, row: str, tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
        self.row = row
        self._tokenizer = tokenizer
        self._retrieval = ROWS[row].retrieval
        settings = row_settings(model.config, row)
        if ROWS[row].windows:
            most = max_positions(model.backbone.config)
            if most is not None and longest > most:
                raise ValueError(
                    f"row {row} needs {longest} positions, the backbone has {most}; leave it out of --modes"
                )
            settings = row_settings(model.config, "isolated") | {"segment_length": longest}
        self.reading = self.asking = model.variant(**settings)
        recall = self.reading if row == "recall" else model.variant(**row_settings(model.config, "recall"))
        self.budget = recall.config.recalled_tokens
        if self._retrieval and not self.budget:
            raise ValueError(f"row {row} needs room for passages; set --num_recalled_tokens above 0")
        if ROWS[row].control == "given_passages":  # the same window, but nothing is recalled besides
            sensory = self.reading.config.sensory_tokens
            self.asking = model.variant(**settings | {"num_recalled_tokens": 0, "num_sensory": sensory})

    def context(self, question: TokenQuestion) -> Tensor:
        """Return the context that the row reads, (T,): without the supporting text in row absent.

        Raises:
            ValueError: If the question does not name its supporting text, and the row needs it.
        """
        if (self._retrieval == "oracle" or self.row == "absent") and not question.supporting:
            raise ValueError(
                f"row {self.row} needs the supporting text of each question, {question.question.name} names none; "
                "leave it out of --modes"
            )
        if ROWS[self.row].control != "no_answer":
            return question.context
        kept = torch.ones(len(question.context), dtype=torch.bool)
        for start, end in question.supporting:
            kept[start:end] = False
        return question.context[kept]

    def prepare(
        self, state: MemoryState | None, questions: Sequence[TokenQuestion]
    ) -> tuple[MemoryState | None, list[Tensor]]:
        """Return the memory that `asking` answers from, and its prompts.

        Args:
            state: Memory of the contexts, one row for each question; None without contexts.
            questions: One for each row.
        """
        if ROWS[self.row].windows:
            return None, [question.shown for question in questions]
        if self._retrieval is None or state is None:
            return state, [question.prompt for question in questions]
        retrieve = RETRIEVERS[self._retrieval]
        found = [
            [
                Passage(row, start, question.context[start:end], 0.0)
                for start, end in retrieve(question, self.budget, self._tokenizer)
            ]
            for row, question in enumerate(questions)
        ]
        if self._retrieval == "bm25":
            parts = [[*(one.ids for one in own), asked.prompt] for own, asked in zip(found, questions, strict=True)]
            return state, [torch.cat(part) for part in parts]
        return insert(self.asking, state, found), [question.prompt for question in questions]

    def budgets(self, state: MemoryState | None, shown: float) -> dict[str, float | None]:
        """Return `slots_per_token`, `bytes_kept` and `flops_per_token` (body and head), while an answer is written.

        Args:
            state: Memory that the last answer was written from, one row.
            shown: Mean tokens of context and prompt.
        """
        config, cost = self.reading.config, BackboneCost.of(self.reading.backbone)
        recalled = self.budget if self.row == "recall" or ROWS[self.row].control else 0
        full = ROWS[self.row].windows is not None
        kept = None if state is None else state.nbytes
        if full:
            kept = None if cost is None else cost.cache_bytes * round(shown)
        return {
            "slots_per_token": shown if full else min(slots_per_token(config, recalled), shown),
            "bytes_kept": kept,
            "flops_per_token": scoring_flops(self.reading, max(round(shown), 1)),
        }


@dataclass
class QuestionScores:
    """Asks every row the same questions, with one checkpoint after another.

    Attributes:
        questions: Questions of the split.
        options: Options of the evaluation.
        tokenizer: Tokenizer of the model.
        predictions: One entry for each checkpoint, row and question, in that order.
    """

    questions: Sequence[Question]
    options: EvaluateOptions
    tokenizer: PreTrainedTokenizerBase
    predictions: list[dict[str, Any]] = field(default_factory=list)
    _spent: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for row in self.options.rows:
            if "questions" not in ROWS[row].tasks:
                raise ValueError(f"row {row} scores text and answers no questions; leave it out of --modes")
        rouge_l("", [""])  # complains before anything is read where its package is missing

    def measure(self, model: HMTForCausalLM, rows: Sequence[str], checkpoint: str | None) -> None:
        """Ask a model all questions, in each of these rows."""
        questions = tokenize_questions(self.questions, self.tokenizer, len(model.embedding_table))
        for question in questions:
            if not len(question.prompt):
                raise ValueError(f"question {question.question.name} has an empty prompt")
        longest = max(len(one.ids) + self.options.max_new_tokens for one in questions)
        with tqdm(total=len(rows) * len(questions), unit="question", disable=None) as bar:
            for row in rows:
                bar.set_description(row)
                reader = QuestionReader(model, row, self.tokenizer, longest)
                with Meter(model.device) as meter:
                    found, read_tokens, state = self._ask(reader, questions, bar)
                self.predictions += [{"row": row, "checkpoint": checkpoint, **one} for one in found]
                shown = sum(len(one.shown) for one in questions) / len(questions)
                spent = {
                    "segment_length": reader.reading.config.window,
                    "num_sensory": reader.reading.config.sensory_tokens,
                    **reader.budgets(state, shown),
                    "read_tokens": read_tokens,
                    "seconds": meter.seconds,
                    "tokens_per_second": read_tokens / meter.seconds,
                    "peak_mb": meter.peak_mb,
                }
                self._spent.setdefault(row, spent)

    def _ask(
        self, reader: QuestionReader, questions: Sequence[TokenQuestion], bar: Any
    ) -> tuple[list[dict[str, Any]], int, MemoryState | None]:
        """Predictions, tokens read and written, and the last memory; a context that comes again is not read again."""
        found: list[dict[str, Any]] = []
        state: MemoryState | None = None
        read: Tensor | None = None
        read_tokens = 0
        prepared: MemoryState | None = None
        for question in questions:
            context = reader.context(question)
            if read is None or not torch.equal(read, context):
                read, state = context, None
                if len(context) and not ROWS[reader.row].windows:
                    state = reader.reading.remember(context[None].to(reader.reading.device))
                    read_tokens += len(context)
            prepared, (prompt,) = reader.prepare(state, [question])
            written = write_answer(reader.asking, prepared, prompt, self.options.max_new_tokens)
            read_tokens += len(prompt) + len(written)
            found.append(self._judged(question, reader.asking, prepared, prompt, written))
            bar.update()
        return found, read_tokens, prepared

    def _judged(
        self, question: TokenQuestion, model: HMTForCausalLM, state: MemoryState | None, prompt: Tensor, written: Tensor
    ) -> dict[str, Any]:
        """A prediction with its scores, and the cost of the first accepted answer."""
        asked = question.question
        text = str(self.tokenizer.decode(written, skip_special_tokens=True)).strip()
        if self.options.first_line:
            text = text.partition("\n")[0].strip()
        scores: dict[str, float | None] = {name: score(text, asked) for name, score in ANSWER_METRICS.items()}
        texts = list(dict.fromkeys([asked.answers[0], *asked.choices]))
        ids = [self._continuation(asked, one) for one in texts]
        nats = answer_nats(model, state, prompt, ids)
        costs = {one: cost / len(tokens) for one, cost, tokens in zip(texts, nats, ids, strict=True)}
        likeliest = min(asked.choices, key=lambda one: costs[one]) if asked.choices else None
        scores["choice_accuracy"] = None if likeliest is None else exact_match(likeliest, asked.answers)
        return {
            "name": asked.name,
            "source": asked.source,
            "prediction": text,
            "answers": list(asked.answers),
            **scores,
            "likeliest": likeliest,
            "answer_nats": nats[0],
            "answer_tokens": len(ids[0]),
            "cut_off": len(written) == self.options.max_new_tokens,
            "context_tokens": len(question.context),
            "length": asked.length,
            "depth": asked.depth,
        }

    def _continuation(self, question: Question, answer: str) -> Tensor:
        ids = self.tokenizer(question.continuation(answer), add_special_tokens=False)["input_ids"]
        if not ids:
            raise ValueError(f"question {question.name} has an empty answer")
        return torch.tensor(ids, dtype=torch.long)

    def rows(self) -> list[dict[str, Any]]:
        """Return the table: an entry for each row, over all checkpoints, with the change of accuracy in points."""
        predictions = {row: [one for one in self.predictions if one["row"] == row] for row in self.options.rows}
        table = []
        for row, own in predictions.items():
            figures = {"row": row, **self._spent[row], **_summary(own)}
            if (reference := self.options.compared_with) is not None:
                theirs = _by_source(predictions[reference], "accuracy")
                change, low, high = paired_change(_by_source(own, "accuracy"), theirs)
                figures |= {"reference": reference, "delta_accuracy": change}
                figures |= {"delta_accuracy_low": low, "delta_accuracy_high": high}
            table.append(figures)
        return table

    def figures(self) -> dict[str, Any]:
        """Return the table, and the accuracy by length and depth where the questions have them."""
        cells: dict[tuple[str, Any, Any], list[float]] = {}
        for one in self.predictions:
            if one["length"] is not None:
                cells.setdefault((one["row"], one["length"], one["depth"]), []).append(one["accuracy"])
        return {
            "rows": self.rows(),
            "cells": [
                {"row": row, "length": length, "depth": depth, "accuracy": sum(hits) / len(hits), "count": len(hits)}
                for (row, length, depth), hits in cells.items()
            ],
        }


def write_answer(model: HMTForCausalLM, state: MemoryState | None, prompt: Tensor, max_new_tokens: int) -> Tensor:
    """Continue a prompt greedily.

    Args:
        model: The model that answers.
        state: Memory of one text; stays as it is.
        prompt: (T,) int64, at least one token.
        max_new_tokens: Maximum length of the answer; an end token ends it sooner.

    Returns:
        The new tokens alone, (at most max_new_tokens,).
    """
    ids = model.generate(
        prompt[None].to(model.device), memory=state, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1
    )
    assert isinstance(ids, Tensor)
    return ids[0, len(prompt) :]


def answer_nats(
    model: HMTForCausalLM, state: MemoryState | None, prompt: Tensor, answers: Sequence[Tensor]
) -> list[float]:
    """Return the nats with which `generate` would write each of several answers to a prompt.

    Args:
        model: The model that answers.
        state: Memory of one text; stays as it is.
        prompt: (T,) int64, at least one token.
        answers: (tokens,) int64 each, at least one.
    """
    requests = [(prompt.tolist(), answer.tolist()) for answer in answers]
    costs = continuations.answers(model, requests, len(answers), state)
    return [-cost.loglikelihood for cost in sorted(costs, key=lambda cost: cost.number)]


def _summary(predictions: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the questions, with intervals over the documents that they are about."""
    figures: dict[str, Any] = {"questions": len({one["name"] for one in predictions})}
    series = list(dict.fromkeys(one["checkpoint"] for one in predictions))
    figures["context_tokens"] = round(sum(one["context_tokens"] for one in predictions) / len(predictions))
    for name in SCORES:
        values = [one for one in predictions if one[name] is not None]
        figures[name] = sum(one[name] for one in values) / len(values) if values else None
        figures[f"{name}_low"], figures[f"{name}_high"] = ratio_interval(_by_source(values, name))
        if len(series) > 1 and values:
            each = [[one[name] for one in values if one["checkpoint"] == checkpoint] for checkpoint in series]
            means = [sum(part) / len(part) for part in each]
            figures[f"{name}_spread"] = max(means) - min(means)
    figures["cut_off"] = sum(one["cut_off"] for one in predictions) / len(predictions)
    nats, count = (sum(one[key] for one in predictions) for key in ("answer_nats", "answer_tokens"))
    return figures | {"answer_loss": nats / count, "answer_ppl": math.exp(min(nats / count, 700.0))}


def _by_source(predictions: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """Sum and count of a score for each document that is asked about, over all questions and checkpoints."""
    found: dict[str, tuple[float, float]] = {}
    for one in predictions:
        total, count = found.get(one["source"], (0.0, 0.0))
        found[one["source"]] = (total + one[name], count + 1)
    return list(found.values())
