"""`hmt evaluate`: the same targets at every context length, or the same questions, for every row."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from hmt.atomic import atomic_file
from hmt.evaluation.options import EvaluateOptions
from hmt.evaluation.questions import QuestionScores
from hmt.evaluation.targets import TargetScores
from hmt.metrics.machine import commit, environment
from hmt.model.loading import load
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.options import parse_counts
from hmt.pretrained import read_checkpoint_config
from hmt.terminal import format_table
from hmt.text.augment import read_enough
from hmt.text.batches import TokenDocument
from hmt.text.tasks import iter_documents, load_questions, settings_of

logger = logging.getLogger(__name__)

COLUMNS = {
    "row": "method",
    "context_tokens": "context",
    "ppl": "ppl",
    "ppl_interval": "95%",
    "ppl_spread": "spread",
    "ppl_causal": "causal",
    "delta_percent": "change %",
    "delta_interval": "95%",
    "slots_per_token": "slots",
    "mb_kept": "MB kept",
    "mflops": "MFLOP/tok",
    "tokens_per_second": "tok/s",
    "peak_mb": "peak MB",
}
"""Columns of the table; the figures have more."""

ANSWER_COLUMNS = {
    "row": "method",
    "questions": "asked",
    "context_tokens": "context",
    "accuracy": "accuracy",
    "accuracy_interval": "95%",
    "delta_accuracy": "change",
    "delta_accuracy_interval": "95%",
    "choice_accuracy": "by likelihood",
    "exact_match": "exact",
    "f1": "F1",
    "rouge_l": "ROUGE-L",
    "cut_off": "cut off",
    "answer_ppl": "its ppl",
    "slots_per_token": "slots",
    "mb_kept": "MB kept",
    "mflops": "MFLOP/tok",
    "tokens_per_second": "tok/s",
}


def run(options: EvaluateOptions) -> tuple[dict[str, Any], str]:
    """Load what the options name and evaluate it.

    Returns:
        The figures, and the same as a table.

    Raises:
        ValueError: If the texts are too short for the lengths, or there are none; if a row does not fit the task.
        OSError: If a checkpoint is not there, or cannot be read.
    """
    for checkpoint in options.checkpoints[1:]:
        read_checkpoint_config(str(checkpoint))  # complains before anything is read
    scores: TargetScores | QuestionScores | None = None
    for checkpoint in options.checkpoints:
        model, tokenizer = load(replace(options, load_from_ckpt=checkpoint), memory_seed=options.seed)
        if scores is None:
            scores = _scores(options, tokenizer, len(model.embedding_table))
        scores.measure(model, options.rows, checkpoint)
        del model  # before the next one is loaded
    assert scores is not None
    if isinstance(scores, QuestionScores) and options.predictions is not None:
        with atomic_file(options.predictions) as file:
            file.write_text("".join(json.dumps(line) + "\n" for line in scores.predictions))
    about = {
        "model": options.model_name,
        "checkpoints": [name for name in options.checkpoints if name is not None],
        "config": asdict(options),
        "command": sys.argv,
        "commit": commit(),
        "environment": environment(),
    }
    figures = about | scores.figures()
    if isinstance(scores, QuestionScores):
        text = f"{len(scores.questions)} question(s), each answered from memory"
        return figures, f"{text}\n{table(figures['rows'], ANSWER_COLUMNS)}"
    return figures, f"{describe(figures)}\n{table(figures['rows'])}"


def evaluate_rows(
    model: HMTForCausalLM, tokenizer: PreTrainedTokenizerBase, documents: list[TokenDocument], options: EvaluateOptions
) -> dict[str, Any]:
    """Score the spans of the documents in each row, at each context length.

    Returns:
        `spans` (the targets), `rows` (one for each row and length), `recall` (what the segments of a few documents
        recalled in row hmt, at the longest context) and `recall_distances` (distance in segments -> count, over all
        documents).
    """
    scores = TargetScores(documents, options, tokenizer)
    scores.measure(model, options.rows, options.load_from_ckpt)
    return scores.figures()


def describe(figures: dict[str, Any]) -> str:
    """Return a line on the targets that were scored."""
    spans = figures["spans"]
    scored = sum(span["end"] - span["first"] for span in spans)
    documents = len({span["document"] for span in spans})
    line = f"{scored:,} target tokens in {len(spans)} span(s) of {documents} document(s), the same at every length"
    return line if documents > 1 else f"{line}; intervals need a second document"


def table(rows: list[dict[str, Any]], columns: dict[str, str] | None = None) -> str:
    """Format the rows for a terminal: an interval in one column, and no column that is empty in all rows."""
    shown = [row | _intervals(row) | _in_units(row) for row in rows]
    columns = columns or COLUMNS
    filled = {key: name for key, name in columns.items() if any(row.get(key) is not None for row in shown)}
    return format_table(shown, filled)


def _intervals(row: dict[str, Any]) -> dict[str, str]:
    """Pairs of bounds as text, by name."""
    found = {}
    for key, low in row.items():
        if key.endswith("_low") and low is not None:
            name = key.removesuffix("_low")
            high = row[f"{name}_high"]
            digits = 2 if "accuracy" in name else 0 if high >= 100 else 1
            found[f"{name}_interval"] = f"{low:.{digits}f} to {high:.{digits}f}"
    return found


def _in_units(row: dict[str, Any]) -> dict[str, float]:
    """Budgets, speed and memory in the units of the table."""
    scales = {"bytes_kept": ("mb_kept", 1e6), "flops_per_token": ("mflops", 1e6)}
    found = {name: row[key] / scale for key, (name, scale) in scales.items() if row.get(key) is not None}
    whole = ("tokens_per_second", "peak_mb", "slots_per_token")
    return found | {key: round(row[key]) for key in whole if row.get(key) is not None}


def _scores(
    options: EvaluateOptions, tokenizer: PreTrainedTokenizerBase, num_embeddings: int
) -> TargetScores | QuestionScores:
    """Scores of answers if the task has questions, else of targets in its documents."""
    settings = settings_of(options, tokenizer)
    if questions := load_questions(options.task_name, options.split, limit=options.max_questions, **settings):
        if options.interleave_dataset or options.dilate_dataset:
            raise ValueError("interleave_dataset and dilate_dataset are for text; this task has questions")
        return QuestionScores(questions, options, tokenizer)
    texts = iter_documents(options.task_name, options.split, **settings)
    longest = parse_counts(options.lengths)[-1]
    documents = read_enough(texts, options, tokenizer, num_embeddings, longest, options.max_documents)
    if not documents:
        raise ValueError(f"{options.task_name} has no text in its {options.split} split")
    return TargetScores(documents, options, tokenizer)
