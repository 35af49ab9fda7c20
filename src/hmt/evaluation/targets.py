"""One fixed set of target tokens, scored at every context length by every row.

Shape legend: B rows of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from hmt.evaluation.options import EvaluateOptions
from hmt.evaluation.readers import Reader, donors, make_reader
from hmt.evaluation.rows import ROWS
from hmt.memory.identity import weights_digest
from hmt.metrics.machine import Meter
from hmt.metrics.scores import Perplexity, paired_change, perplexity_change
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.options import parse_counts
from hmt.report.recollection import RecallMap
from hmt.text.batches import Span, TokenDocument, plan_spans

TOKENS_BEFORE = 8
"""Tokens before the targets that are decoded with them."""

CHARACTER_BYTES = 4
"""Maximum bytes of a character in UTF-8."""


@dataclass
class Measured:
    """Result of one row at one context length.

    Attributes:
        perplexity: Sums over its targets.
        settings: Settings and budgets of the row.
        read_tokens: Tokens read, over all samples.
        seconds: Time spent.
        peak_mb: Peak memory.
    """

    perplexity: Perplexity
    settings: dict[str, Any]
    read_tokens: int
    seconds: float
    peak_mb: float | None


@dataclass
class TargetScores:
    """Scores every row of a table on the same targets, with one checkpoint after another.

    Attributes:
        documents: Documents of the split, as tokens.
        options: Options of the evaluation.
        tokenizer: Tokenizer of the model.
        spans: The targets.
        recall: Recall of row hmt, or hmt_cache, at the longest context.
    """

    documents: list[TokenDocument]
    options: EvaluateOptions
    tokenizer: PreTrainedTokenizerBase
    spans: list[Span] = field(init=False)
    recall: RecallMap = field(init=False)
    _series: dict[str | None, dict[tuple[str, int], Measured]] = field(init=False, default_factory=dict)
    _unchanged: dict[tuple[str, int, str], Measured] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        options = self.options
        self.lengths = parse_counts(options.lengths)
        self.spans = plan_spans(
            self.documents, self.lengths[-1], options.scored_tokens, options.spans_per_document, options.max_documents
        )
        for row in options.rows:
            if "text" not in ROWS[row].tasks:
                raise ValueError(f"row {row} answers questions and scores no text; leave it out of --modes")
        if any(ROWS[row].control == "another_text" for row in options.rows):
            donors([span.document for span in self.spans])  # complains before anything is read
        self.recall = RecallMap(self.tokenizer)

    def measure(self, model: HMTForCausalLM, rows: Sequence[str], checkpoint: str | None) -> None:
        """Score these rows at every length.

        Args:
            model: Memory and backbone.
            rows: Rows that are read with its weights.
            checkpoint: Name of the series of figures; the table gives mean and spread over several.
        """
        series = self._series.setdefault(checkpoint, {})
        digest = weights_digest(model.backbone.parameters())
        total = len(self.spans) * len(rows) * sum(self.lengths)
        with tqdm(total=total, unit="tok", unit_scale=True, disable=None) as bar:
            for row in rows:
                reader = make_reader(model, row, self.options.window_stride)
                for length in self.lengths:
                    bar.set_description(f"{row} {length:,}")
                    # A backbone that was not trained is the same in each series.
                    same = None if ROWS[row].trained or ROWS[row].control else (row, length, digest)
                    found = self._unchanged.get(same) if same else None
                    found = found or self._measure(reader, row, length, model.device, bar)
                    if same:
                        self._unchanged[same] = found
                    series[row, length] = found

    @torch.no_grad()
    def _measure(self, reader: Reader, row: str, length: int, device: torch.device, bar: Any) -> Measured:
        targets, size = self.options.scored_tokens, self.options.batch_size
        sample_tokens = reader.sample_tokens(length, targets)
        groups = [self.spans[start : start + size] for start in range(0, len(self.spans), size)]
        owners = [span.document for span in self.spans]
        perplexity = Perplexity()
        keeps_recall = row in ("hmt", "hmt_cache") and length == self.lengths[-1] and len(self._series) == 1
        with Meter(device) as meter:
            batches = [self._batch(group, sample_tokens, device) for group in groups]
            outputs = reader.read(batches, owners, keeps_recall)
            for group, (ids, _), output in zip(groups, batches, outputs, strict=True):
                assert output.nll is not None
                assert output.scored_mask is not None
                assert output.causal_mask is not None
                documents = [span.document for span in group]
                perplexity.add(output.nll, output.scored_mask, output.causal_mask, self._text_bytes(group), documents)
                if output.recall is not None:
                    for number, document in enumerate(documents):
                        self.recall.add(self.documents[document].name, ids[number].cpu(), output.recall, number)
                bar.update(len(group) * length)
        settings = reader.settings | reader.budgets(sample_tokens, targets)
        if (error := reader.bottleneck_error()) is not None:
            settings["bottleneck_error"] = error
        read_tokens = len(self.spans) * reader.read_tokens(length, targets)
        return Measured(perplexity, settings, read_tokens, meter.seconds, meter.peak_mb)

    def _batch(self, group: list[Span], length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Samples of one length, (B, T), and their labels."""
        samples = [span.sample(self.documents[span.document].ids, length) for span in group]
        ids, labels = (torch.stack(parts).to(device) for parts in zip(*samples, strict=True))
        return ids, labels

    def _text_bytes(self, group: list[Span]) -> int:
        return sum(
            text_bytes(self.tokenizer, self.documents[span.document].ids, span.start, span.end) for span in group
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return the table: an entry for each row and length, over all series.

        `document_sums` has nats and targets of each document, so that tables of two runs can be compared in pairs.
        """
        return [self._row(row, length) for row in self.options.rows for length in self.lengths]

    def _row(self, row: str, length: int) -> dict[str, Any]:
        each = [series[row, length] for series in self._series.values()]
        pooled = Perplexity.pooled([one.perplexity for one in each])
        read_tokens, seconds = sum(one.read_tokens for one in each), sum(one.seconds for one in each)
        figures = {"row": row, "context_tokens": length, **each[0].settings, **pooled.result()}
        figures |= {
            "read_tokens": each[0].read_tokens // len(self.spans),
            "tokens_per_second": read_tokens / seconds,
            "seconds": seconds,
            "peak_mb": each[0].peak_mb,
        }
        if len(each) > 1:
            ppls = [one.perplexity.all.ppl or 0.0 for one in each]
            figures |= {"ppl_mean": sum(ppls) / len(ppls), "ppl_spread": max(ppls) - min(ppls), "ppls": ppls}
        if (reference := self.options.compared_with) is not None:
            theirs = Perplexity.pooled([series[reference, length].perplexity for series in self._series.values()])
            percent, low, high = paired_change(pooled.sums, theirs.sums, perplexity_change)
            figures |= {"reference": reference, "delta_percent": percent, "delta_low": low, "delta_high": high}
        return figures | {"document_sums": pooled.sums}

    def figures(self) -> dict[str, Any]:
        """Return the targets, the table, and what was recalled."""
        spans = [
            {"document": self.documents[span.document].name, "first": span.start, "end": span.end}
            for span in self.spans
        ]
        return {
            "spans": spans,
            "rows": self.rows(),
            "recall": self.recall.segments,
            "recall_distances": {str(distance): count for distance, count in sorted(self.recall.distances.items())},
        }


def text_bytes(tokenizer: PreTrainedTokenizerBase, ids: Tensor, start: int, end: int) -> int:
    """Count the UTF-8 bytes of the characters that end within tokens of a document.

    The tokens alone are not enough: some tokenizers drop a space before the first of them, and the rest of a character
    that was cut has no text of its own. So a few more tokens are decoded, and their text is subtracted.

    Args:
        tokenizer: Tokenizer of the document.
        ids: All tokens of the document, (tokens,) int64.
        start: First of the tokens.
        end: One past the last of them.
    """

    def decoded(first: int, last: int) -> str:
        return str(tokenizer.decode(ids[first:last].tolist(), clean_up_tokenization_spaces=False))

    def edge(place: int) -> int:
        """The last place up to this one that cuts no character; this one if there is none nearby."""
        for found in range(place, max(place - CHARACTER_BYTES, -1), -1):
            if any("\ufffd" not in decoded(max(found - size, 0), found) for size in range(1, CHARACTER_BYTES + 1)):
                return found
        return place

    first, last = edge(start), edge(end)
    before = edge(max(first - TOKENS_BEFORE, 0))
    return len(decoded(before, last).encode()) - len(decoded(before, first).encode())
