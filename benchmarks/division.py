"""How a window is best divided between recalled, sensory and fresh tokens, before any training.

    python benchmarks/division.py --texts stdlib wikitext=DIR pg19=DIR --windows 128 256 512 1024

Every row scores the same target tokens. Rows of the same window and the same number of fresh tokens cost the same,
W / L positions of the backbone for a fresh token; what they differ in is whether the other positions hold the nearest
tokens (the plain sliding window) or tokens of earlier segments. Selections by embeddings cost their prompts and the
summary on top, which `positions a token` counts. `gain` is against the best plain window of the same size that costs no
more.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import tyro
from environment import write

from hmt import HMTForCausalLM
from hmt.evaluate import evaluate_rows
from hmt.metrics.intervals import difference_interval, difference_percent
from hmt.model.loading import choose_device
from hmt.options import EvaluateOptions, parse_counts
from hmt.pretrained import load_tokenizer
from hmt.report.table import format_table
from hmt.text.batches import TokenDocument, tokenize
from hmt.text.tasks import load_documents

COLUMNS = {
    "text": "text",
    "window": "window",
    "context_tokens": "context",
    "selection": "selection",
    "fresh": "fresh",
    "sensory": "sensory",
    "recalled": "recalled",
    "positions_per_token": "positions a token",
    "ppl": "ppl",
    "gain_percent": "gain %",
    "interval": "95%",
}
SLACK = 1.001
"""Costs that differ by less are the same."""


@dataclass
class Options:
    """What to measure."""

    texts: tuple[str, ...] = ("stdlib",)
    """Tasks, each as NAME or NAME=DIRECTORY."""
    windows: tuple[int, ...] = (128, 256, 512, 1024)
    """Window sizes W."""
    fresh_shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    """Shares of the window that are fresh tokens; for the plain window each is a row too."""
    recalled_shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    """Shares of the other positions that are recalled tokens; the rest are sensory."""
    selections: tuple[Literal["lexical", "similarity", "attention"], ...] = ("lexical", "attention")
    """How the recalled tokens are chosen."""
    lengths: str = "4k"
    """Context lengths, the targets included."""
    target_tokens: int = 1024
    """Tokens scored per document."""
    max_documents: int = 2
    """Documents of each text."""
    spans_per_document: int = 1
    """Spans of target tokens in each."""
    batch_size: int = 1
    """Spans read side by side."""
    device: str = "auto"
    """Where."""
    split: Literal["validation", "test"] = "validation"
    """Split to score."""
    model_name: str = "smollm2-135m"
    """Backbone."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format."""
    name: str = "division"
    """Of the file under results/."""

    def check(self) -> None:
        """Check ranges.

        Raises:
            ValueError: Naming the flag.
        """
        parse_counts(self.lengths)
        for name in ("fresh_shares", "recalled_shares"):
            if not all(0 < share < 1 for share in getattr(self, name)):
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")


def main(options: Options) -> None:
    """Measure, compare and write."""
    options.check()
    torch.manual_seed(0)
    model = HMTForCausalLM.from_backbone(options.model_name, dtype=options.dtype, segment_length=max(options.windows))
    model = model.to(choose_device(options.device)).eval()  # type: ignore[arg-type]
    tokenizer = load_tokenizer(options.model_name)
    rows: list[dict[str, Any]] = []
    for text in options.texts:
        name, _, directory = text.partition("=")
        found = load_documents(directory or name, options.split)
        documents = tokenize(found, tokenizer, len(model.embedding_table))
        for window in options.windows:
            for fields in divisions(options, window):
                for row in measure(options, model, tokenizer, documents, fields):
                    rows.append({"text": name, "window": window, **row})
                    sys.stdout.write(f"{json.dumps(rows[-1])}\n")
    add_gains(rows)
    names = [text.partition("=")[0] for text in options.texts]
    path = write(options.name, {"options": vars(options) | {"texts": names}, "rows": rows})
    sys.stdout.write(f"{format_table(rows, COLUMNS)}\nwritten to {path}\n")


def divisions(options: Options, window: int) -> Iterator[dict[str, Any]]:
    """Settings of every way to divide a window, the plain ones first."""
    for share in options.fresh_shares:
        other = window - round(share * window)
        yield {"mode": "backbone", "segment_length": window, "num_sensory": other, "num_recalled_tokens": 0}
    for selection in options.selections:
        for share in options.fresh_shares:
            other = window - round(share * window)
            for part in options.recalled_shares:
                recalled = round(part * other)
                mode = "backbone" if selection == "lexical" else "hmt"
                sensory = other - recalled - (0 if mode == "backbone" else 2)
                if recalled and sensory >= 0:
                    yield {
                        "mode": mode,
                        "segment_length": window,
                        "num_sensory": sensory,
                        "num_recalled_tokens": recalled,
                        "recall_selection": selection,
                        "sum_fraction": 1.0 if mode == "backbone" else 0.5,
                    }


def measure(
    options: Options, model: HMTForCausalLM, tokenizer: Any, documents: list[TokenDocument], fields: dict[str, Any]
) -> list[dict[str, Any]]:
    """Rows of one division, one for each context length. The query is the text before the segment: all is causal.

    Where no summary is read the query may be as long as the segment, since it costs nothing.
    """
    reader = model.variant(recall_query="previous", **fields)
    config = reader.config
    plain = not config.recalled_tokens
    scoring = EvaluateOptions(
        lengths=options.lengths,
        modes="backbone" if plain else "episodic" if config.mode == "backbone" else "hmt",
        target_tokens=options.target_tokens,
        max_documents=options.max_documents,
        spans_per_document=options.spans_per_document,
        batch_size=options.batch_size,
        num_recalled_tokens=config.num_recalled_tokens,
        segment_length=config.segment_length,
        num_sensory=config.num_sensory,
    )
    scoring.check()
    summary = config.summary_tokens + 2 * config.prompt_tokens if config.recalls else 0
    division = {
        "selection": "none" if plain else config.recall_selection,
        "fresh": config.fresh_tokens,
        "sensory": config.num_sensory,
        "recalled": config.recalled_tokens,
        "positions_per_token": (config.segment_length + summary) / config.fresh_tokens,
    }
    kept = ("context_tokens", "read_tokens", "tokens", "ppl", "bits_per_byte", "document_sums", "seconds")
    found = evaluate_rows(reader, tokenizer, documents, scoring)["rows"]
    return [{**division, **{name: row[name] for name in kept}} for row in found]


def add_gains(rows: list[dict[str, Any]]) -> None:
    """Percent of perplexity below the best plain window of the same size, text and context that costs no more.

    With a 95% interval over documents: what reading again is worth differs much from one to the next.
    """
    for row in rows:
        same = ("text", "window", "context_tokens")
        plain = [
            other
            for other in rows
            if other["selection"] == "none"
            and all(other[name] == row[name] for name in same)
            and other["positions_per_token"] <= SLACK * row["positions_per_token"]
        ]
        if not plain or row["selection"] == "none":
            continue
        best = min(plain, key=lambda other: float(other["ppl"]))
        row["gain_percent"] = -difference_percent(row["document_sums"], best["document_sums"])
        low, high = difference_interval(row["document_sums"], best["document_sums"])
        row["interval"] = None if low is None or high is None else f"{-high:.1f} to {-low:.1f}"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
