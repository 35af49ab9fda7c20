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

from hmt.evaluation.options import ROWS, EvaluateOptions
from hmt.evaluation.readers import Reader, make_reader
from hmt.metrics.intervals import difference_interval, difference_percent
from hmt.metrics.perplexity import Perplexity
from hmt.metrics.resources import Meter
from hmt.metrics.topics import TopicRecall
from hmt.model.controls import partners
from hmt.model.identity import weights_digest
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.model.outputs import RecallTrace
from hmt.options import parse_counts
from hmt.report.recollection import RecallMap
from hmt.text.batches import Span, TokenDocument, plan_spans

TOKENS_BEFORE = 8
"""Tokens that stand before targets when their text is measured."""

CHARACTER_BYTES = 4
"""Of UTF-8, at most."""


@dataclass
class Measured:
    """What one row costs at one context length.

    Attributes:
        perplexity: Sums over its targets.
        settings: Of the row.
        read_tokens: Tokens of a sample that were read.
        tokens: Read in all.
        seconds: Spent in all.
        peak_bytes: Highest memory in use.
    """

    perplexity: Perplexity
    settings: dict[str, Any]
    read_tokens: int
    tokens: int
    seconds: float
    peak_bytes: int | None

    def figures(self) -> dict[str, Any]:
        """By name."""
        return self.perplexity.result() | {
            "read_tokens": self.read_tokens,
            "tokens_per_second": self.tokens / self.seconds,
            "seconds": self.seconds,
            "peak_mb": None if self.peak_bytes is None else self.peak_bytes / 1e6,
        }


@dataclass
class TargetScores:
    """Scores every row of a table on the same targets, with one checkpoint after another.

    Attributes:
        documents: Of the split, as tokens.
        options: Of the evaluation.
        tokenizer: Counts the bytes that targets stand for.
        spans: The targets.
        topics: Where that recall went, in documents that were mixed or dilated.
        recall: What row hmt recalled at the longest context, where it was read.
    """

    documents: list[TokenDocument]
    options: EvaluateOptions
    tokenizer: PreTrainedTokenizerBase
    spans: list[Span] = field(init=False)
    recall: RecallMap = field(init=False)
    topics: TopicRecall = field(init=False, default_factory=TopicRecall)
    _series: dict[str | None, dict[tuple[str, int], Measured]] = field(init=False, default_factory=dict)
    _unchanged: dict[tuple[str, int, str], Measured] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        options = self.options
        self.lengths = parse_counts(options.lengths)
        self.spans = plan_spans(
            self.documents, self.lengths[-1], options.scored_tokens, options.spans_per_document, options.max_documents
        )
        if any(ROWS[row].control == "shuffled" for row in options.rows):
            partners(self._owners)  # complains before anything is read
        self.recall = RecallMap(self.tokenizer)

    def measure(self, model: HMTForCausalLM, rows: Sequence[str], checkpoint: str | None) -> None:
        """Read with a model, each of these rows at each length.

        Args:
            model: Reads.
            rows: That its weights are for.
            checkpoint: Whose figures these are; over several of them the table gives mean and spread.
        """
        series = self._series.setdefault(checkpoint, {})
        digest = weights_digest(model.backbone.parameters())
        with tqdm(
            total=len(self.spans) * len(rows) * sum(self.lengths), unit="tok", unit_scale=True, disable=None
        ) as bar:
            for row in rows:
                reader = make_reader(model, row, self.options)
                for length in self.lengths:
                    bar.set_description(f"{row} {length:,}")
                    # A backbone that was not trained is the same in each series.
                    same = None if ROWS[row].trained or ROWS[row].control else (row, length, digest)
                    found = self._unchanged.get(same) if same else None
                    if found is None:
                        found = self._measure(model, reader, row, length, bar)
                    if same:
                        self._unchanged[same] = found
                    series[row, length] = found

    @torch.no_grad()
    def _measure(self, model: HMTForCausalLM, reader: Reader, row: str, length: int, bar: Any) -> Measured:
        targets, size = self.options.scored_tokens, self.options.batch_size
        sample_tokens = reader.length(length, targets)
        groups = [self.spans[start : start + size] for start in range(0, len(self.spans), size)]
        perplexity = Perplexity()
        reader.reset()
        keeps_recall = row in ("hmt", "hmt_cache") and length == self.lengths[-1] and len(self._series) == 1
        with Meter(model.device) as meter:
            batches = [self._batch(group, sample_tokens, model.device) for group in groups]
            outputs = reader.read(batches, self._owners, keeps_recall)
            for group, (ids, _), output in zip(groups, batches, outputs, strict=True):
                nll, scored, causal = output.nll, output.scored_mask, output.causal_mask
                assert nll is not None
                assert scored is not None
                assert causal is not None
                owners = [span.document for span in group]
                perplexity.add(nll, scored, causal, reader.segment_tokens, self._text_bytes(group), owners)
                if output.recall is not None:
                    self._keep_recall(group, ids, output.recall)
                bar.update(len(group) * length)
        read = reader.read_tokens(length, targets)
        lost = {} if (error := reader.lost()) is None else {"bottleneck_error": error}
        return Measured(
            perplexity, reader.settings | lost, read, len(self.spans) * read, meter.seconds, meter.peak_bytes
        )

    @property
    def _owners(self) -> list[int]:
        """The document of each span."""
        return [span.document for span in self.spans]

    def _batch(self, group: list[Span], length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Samples of one length, (B, T), and their labels."""
        samples = [span.sample(self.documents[span.document].ids, length) for span in group]
        ids, labels = (torch.stack(parts).to(device) for parts in zip(*samples, strict=True))
        return ids, labels

    def _text_bytes(self, group: list[Span]) -> int:
        """UTF-8 bytes that the targets stand for."""
        return sum(
            text_bytes(self.tokenizer, self.documents[span.document].ids, span.start, span.end) for span in group
        )

    def _keep_recall(self, group: list[Span], ids: Tensor, trace: RecallTrace) -> None:
        for row, span in enumerate(group):
            document = self.documents[span.document]
            self.recall.add(document.name, ids[row].cpu(), trace, row)
            if document.origins is not None:
                origins = document.origins[span.end - ids.shape[1] : span.end]
                self.topics.add(trace, origins, row)

    def rows(self) -> list[dict[str, Any]]:
        """The table: a row for each way of reading and length, over all series.

        `document_sums` has nats and targets of each document, so that tables of two runs can be compared in pairs.
        """
        table: list[dict[str, Any]] = []
        for row in self.options.rows:
            for length in self.lengths:
                table.append(self._row(row, length))
        return table

    def _row(self, row: str, length: int) -> dict[str, Any]:
        each = [series[row, length] for series in self._series.values()]
        figures = each[0].figures()
        sums = [one.perplexity for one in each]
        pooled = pooled_perplexity(sums)
        if len(each) > 1:
            ppls = [one.all.ppl or 0.0 for one in sums]
            figures |= pooled.result() | {name: figures[name] for name in figures if name.endswith("tokens")}
            figures |= {
                "ppl_mean": sum(ppls) / len(ppls), "ppl_spread": max(ppls) - min(ppls), "ppls": ppls,
                "tokens_per_second": sum(one.tokens for one in each) / sum(one.seconds for one in each),
                "seconds": sum(one.seconds for one in each),
            }  # fmt: skip
        if (reference := self.options.compared_with) is not None:
            theirs = pooled_perplexity([series[reference, length].perplexity for series in self._series.values()]).sums
            low, high = difference_interval(pooled.sums, theirs)
            percent = difference_percent(pooled.sums, theirs)
            figures |= {"reference": reference, "delta_percent": percent, "delta_low": low, "delta_high": high}
        figures["document_sums"] = pooled.sums
        return {"row": row, "context_tokens": length, **each[0].settings, **figures}

    def figures(self) -> dict[str, Any]:
        """What was scored, the table, and what was recalled."""
        spans = [
            {"document": self.documents[span.document].name, "first": span.start, "end": span.end}
            for span in self.spans
        ]
        return {
            "spans": spans,
            "rows": self.rows(),
            "recall": self.recall.segments,
            "topics": self.topics.result() if self.topics.segments else None,
            "recall_distances": {str(distance): count for distance, count in sorted(self.recall.distances.items())},
        }


def text_bytes(tokenizer: PreTrainedTokenizerBase, ids: Tensor, start: int, end: int) -> int:
    """UTF-8 bytes of the characters that end within tokens of a document.

    The tokens alone do not tell: some tokenizers drop a space before the first of them, and what is left of a character
    that is cut has no text of its own. So the text is that of a few tokens more, less that of these few.

    Args:
        tokenizer: Of the document.
        ids: All tokens of the document, (tokens,) int64.
        start: First of those that are measured.
        end: Behind the last of them.
    """

    def decoded(first: int, last: int) -> str:
        return str(tokenizer.decode(ids[first:last].tolist(), clean_up_tokenization_spaces=False))

    def edge(place: int) -> int:
        """The last place up to this one that cuts no character; this one where the text has none nearby."""
        for found in range(place, max(place - CHARACTER_BYTES, -1), -1):
            if any("\ufffd" not in decoded(max(found - size, 0), found) for size in range(1, CHARACTER_BYTES + 1)):
                return found
        return place

    first, last = edge(start), edge(end)
    before = edge(max(first - TOKENS_BEFORE, 0))
    return len(decoded(before, last).encode()) - len(decoded(before, first).encode())


def pooled_perplexity(parts: Sequence[Perplexity]) -> Perplexity:
    """The sums of several."""
    pooled = Perplexity()
    for part in parts:
        pooled.merge(part)
    return pooled
