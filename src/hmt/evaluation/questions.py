"""The questions of a task, answered by every row from what it remembers of the context.

A model is given the context and the prompt. The accepted answers are looked at when it has written its own; only then
is it asked how likely they, and the choices, would have been.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from hmt.evaluation.options import ROWS, EvaluateOptions
from hmt.evaluation.readers import variant_of
from hmt.memory.state import MemoryState
from hmt.metrics.answers import exact_match, is_correct, rouge_l, token_f1
from hmt.metrics.intervals import ratio_interval
from hmt.metrics.resources import Meter
from hmt.model.answering import answer_nats, write_answer
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.text.batches import tokenize
from hmt.text.documents import Document
from hmt.text.questions import Question

SCORES = ("accuracy", "exact_match", "f1", "rouge_l", "choice_accuracy")
"""Figures that are means over questions, with the field of a prediction they are made of."""


@dataclass
class QuestionScores:
    """Asks every row the same questions, with one checkpoint after another.

    Attributes:
        questions: Of the split.
        options: Of the evaluation.
        tokenizer: Of the model.
        predictions: One entry for each checkpoint, row and question, in that order.
    """

    questions: Sequence[Question]
    options: EvaluateOptions
    tokenizer: PreTrainedTokenizerBase
    predictions: list[dict[str, Any]] = field(default_factory=list)
    _spent: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for row in self.options.rows:
            if ROWS[row].windowed or ROWS[row].control == "shuffled":
                raise ValueError(f"row {row} scores text and answers no questions; leave it out of --modes")
        rouge_l("", [""])  # complains before anything is read where its package is missing

    def measure(self, model: HMTForCausalLM, rows: Sequence[str], checkpoint: str | None) -> None:
        """Read the contexts with a model in each of these ways, and ask it."""
        with tqdm(total=len(rows) * len(self.questions), unit="question", disable=None) as bar:
            for row in rows:
                bar.set_description(row)
                reader = _Reader(variant_of(model, row), self.tokenizer, self.options)
                with Meter(model.device) as meter:
                    for question in self.questions:
                        found = {"row": row, "checkpoint": checkpoint, **reader.answer(question)}
                        self.predictions.append(found)
                        bar.update()
                self._spent.setdefault(row, []).append(
                    {
                        "segment_length": reader.model.config.window,
                        "num_sensory": reader.model.config.sensory_tokens,
                        "read_tokens": reader.read_tokens,
                        "seconds": meter.seconds,
                        "tokens_per_second": reader.read_tokens / meter.seconds,
                        "peak_mb": None if meter.peak_bytes is None else meter.peak_bytes / 1e6,
                    }
                )

    def rows(self) -> list[dict[str, Any]]:
        """The table: one row for each way of reading, over all checkpoints."""
        return [
            {"row": row, **self._spent[row][0], **_summary([one for one in self.predictions if one["row"] == row])}
            for row in self.options.rows
        ]

    def figures(self) -> dict[str, Any]:
        """The table, and the accuracy by length and depth where the questions have them."""
        return {"rows": self.rows(), "cells": self.cells()}

    def cells(self) -> list[dict[str, Any]]:
        """Accuracy for each row, length and depth, where the questions have them."""
        found: dict[tuple[str, Any, Any], list[float]] = {}
        for one in self.predictions:
            if one["length"] is not None:
                found.setdefault((one["row"], one["length"], one["depth"]), []).append(one["accuracy"])
        return [
            {"row": row, "length": length, "depth": depth, "accuracy": sum(hits) / len(hits), "count": len(hits)}
            for (row, length, depth), hits in found.items()
        ]


class _Reader:
    """One way of reading, asked one question after another; a context that comes again is not read again."""

    def __init__(self, model: HMTForCausalLM, tokenizer: PreTrainedTokenizerBase, options: EvaluateOptions) -> None:
        self.model = model
        self.read_tokens = 0
        self._tokenizer = tokenizer
        self._options = options
        self._context: tuple[str, MemoryState | None, int] = ("", None, 0)

    def answer(self, question: Question) -> dict[str, Any]:
        """The answer to a question, what it is worth, and what the accepted answer would have cost."""
        state = self._remember(question)
        prompt = self._ids(question.name, question.prompt)
        written = write_answer(self.model, state, prompt, self._options.max_new_tokens)
        self.read_tokens += len(prompt) + len(written)
        text = str(self._tokenizer.decode(written, skip_special_tokens=True)).strip()
        if self._options.first_line:
            text = text.partition("\n")[0].strip()
        judged = self._judge(question, text)
        nats, tokens, likeliest = self._weigh(question, state, prompt)
        if question.choices:
            judged["choice_accuracy"] = exact_match(likeliest or "", question.answers)
        return {
            "name": question.name,
            "source": question.source,
            "prediction": text,
            "answers": list(question.answers),
            **judged,
            "likeliest": likeliest,
            "answer_nats": nats,
            "answer_tokens": tokens,
            "cut_off": len(written) == self._options.max_new_tokens,
            "context_tokens": self._context[2] if question.context else 0,
            "length": question.length,
            "depth": question.depth,
        }

    @staticmethod
    def _judge(question: Question, text: str) -> dict[str, Any]:
        return {
            "accuracy": is_correct(text, question.answers, question.choices),
            "exact_match": exact_match(text, question.answers),
            "f1": token_f1(text, question.answers),
            "rouge_l": rouge_l(text, question.answers),
            "choice_accuracy": None,
        }

    def _weigh(self, question: Question, state: MemoryState | None, prompt: Tensor) -> tuple[float, int, str | None]:
        """Nats and tokens of the first accepted answer, and the likeliest choice per token."""
        wanted = question.answers[0]
        texts = list(dict.fromkeys([wanted, *question.choices]))
        ids = [self._ids(question.name, question.continuation(text)) for text in texts]
        nats = answer_nats(self.model, state, prompt, ids)
        each = {text: cost / len(tokens) for text, cost, tokens in zip(texts, nats, ids, strict=True)}
        choices = [text for text in texts if text in question.choices]
        return nats[0], len(ids[0]), min(choices, key=lambda text: each[text]) if choices else None

    def _remember(self, question: Question) -> MemoryState | None:
        if not question.context:
            return None
        if question.context != self._context[0]:
            ids = self._ids(question.name, question.context)
            state = self.model.remember(ids[None].to(self.model.device))
            self.read_tokens += len(ids)
            self._context = (question.context, state, len(ids))
        return self._context[1]

    def _ids(self, name: str, text: str) -> Tensor:
        if not text:
            raise ValueError(f"question {name} has an empty prompt or answer")
        (document,) = tokenize([Document(name, text)], self._tokenizer, len(self.model.embedding_table))
        return document.ids


def _summary(predictions: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the questions, with intervals over the documents that they are about."""
    figures: dict[str, Any] = {"questions": len({one["name"] for one in predictions})}
    series = list(dict.fromkeys(one["checkpoint"] for one in predictions))
    tokens = [one["context_tokens"] for one in predictions]
    figures["context_tokens"] = round(sum(tokens) / len(tokens))
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
    figures |= {"answer_loss": nats / count, "answer_ppl": math.exp(min(nats / count, 700.0))}
    return figures


def _by_source(predictions: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """Sum and count of a score for each document that is asked about, over all questions and checkpoints."""
    found: dict[str, tuple[float, float]] = {}
    for one in predictions:
        total, count = found.get(one["source"], (0.0, 0.0))
        found[one["source"]] = (total + one[name], count + 1)
    return list(found.values())
