"""`hmt evaluate`: one fixed set of target tokens, scored at every context length by every way of reading."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from hmt.metrics.perplexity import Perplexity
from hmt.metrics.resources import Meter
from hmt.model.hmt import HMTForCausalLM
from hmt.model.loading import load
from hmt.options import ROWS, EvaluateOptions, parse_counts
from hmt.report.table import format_table
from hmt.text.augment import augment
from hmt.text.batches import Span, TokenDocument, aligned_length, plan_spans, tokenize
from hmt.text.tasks import load_documents, settings_of

COLUMNS = {
    "row": "row",
    "context_tokens": "context",
    "read_tokens": "read",
    "ppl": "ppl",
    "ppl_causal": "ppl causal",
    "ppl_last_segment_mean": "ppl last seg",
    "loss": "loss",
    "bits_per_byte": "bits/byte",
    "tokens": "scored",
    "tokens_per_second": "tokens/s",
    "peak_mb": "peak MB",
}


def run(options: EvaluateOptions) -> tuple[dict[str, Any], str]:
    """Load what the options name and evaluate it.

    Returns:
        The figures, and the same as a table.
    """
    documents = load_documents(options.task_name, options.split, **settings_of(options))
    model, tokenizer = load(options, memory_seed=options.seed)
    tokens = tokenize(documents, tokenizer, len(model.embedding_table))
    tokens = augment(tokens, options, tokenizer, len(model.embedding_table))
    figures = evaluate_rows(model, tokenizer, tokens, options)
    return figures, f"{describe(figures)}\n{format_table(figures['rows'], COLUMNS)}"


def evaluate_rows(
    model: HMTForCausalLM, tokenizer: PreTrainedTokenizerBase, documents: list[TokenDocument], options: EvaluateOptions
) -> dict[str, Any]:
    """Score the spans of the documents with each way of reading, at each context length.

    Returns:
        `spans` (what was scored) and `rows` (one for each way of reading and length).
    """
    lengths = parse_counts(options.lengths)
    spans = plan_spans(documents, lengths[-1], options.scored_tokens, options.spans_per_document, options.max_documents)
    rows = []
    with tqdm(total=len(spans) * len(options.rows) * sum(lengths), unit="tok", unit_scale=True, disable=None) as bar:
        for row in options.rows:
            reader = model.variant(**ROWS[row])
            named = {
                "row": row,
                "segment_length": reader.config.segment_length,
                "num_sensory": reader.config.max_sensory,
            }
            for length in lengths:
                bar.set_description(f"{row} {length:,}")
                figures = _score(reader, tokenizer, documents, spans, length, options.batch_size, bar)
                rows.append({**named, "context_tokens": length, **figures})
    return {
        "spans": [{"document": documents[span.document].name, "first": span.start, "end": span.end} for span in spans],
        "rows": rows,
    }


def describe(figures: dict[str, Any]) -> str:
    """One line on what was scored."""
    spans = figures["spans"]
    scored = sum(span["end"] - span["first"] for span in spans)
    documents = len({span["document"] for span in spans})
    return f"{scored:,} target tokens in {len(spans)} span(s) of {documents} document(s), the same at every length"


@torch.no_grad()
def _score(
    model: HMTForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    documents: list[TokenDocument],
    spans: list[Span],
    length: int,
    batch_size: int,
    bar: Any,
) -> dict[str, Any]:
    perplexity = Perplexity()
    read = aligned_length(length, spans[0].end - spans[0].start, model.config.fresh_tokens)
    with Meter(model.device) as meter:
        for input_ids, labels, text_bytes in _batches(tokenizer, documents, spans, read, batch_size):
            output = model(input_ids.to(model.device), labels=labels.to(model.device), return_logits=False)
            perplexity.add(output.nll, output.scored_mask, output.causal_mask, model.config.fresh_tokens, text_bytes)
            bar.update(len(input_ids) * length)
    return perplexity.result() | {
        "read_tokens": read,
        "tokens_per_second": len(spans) * read / meter.seconds,
        "seconds": meter.seconds,
        "peak_mb": None if meter.peak_bytes is None else meter.peak_bytes / 1e6,
    }


def _batches(
    tokenizer: PreTrainedTokenizerBase,
    documents: list[TokenDocument],
    spans: list[Span],
    length: int,
    batch_size: int,
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Samples of one length (B, T), their labels, and the UTF-8 bytes that their targets stand for."""
    for start in range(0, len(spans), batch_size):
        group = spans[start : start + batch_size]
        samples = [span.sample(documents[span.document].ids, length) for span in group]
        input_ids, labels = (torch.stack(parts) for parts in zip(*samples, strict=True))
        targets = [documents[span.document].ids[span.start : span.end].tolist() for span in group]
        text_bytes = sum(len(text.encode()) for text in tokenizer.batch_decode(targets))
        yield input_ids, labels, text_bytes
