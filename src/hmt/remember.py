"""`hmt remember`: read a text of any length once, and keep the memory of it in a file."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hmt.memory.state import MemoryState
from hmt.model.loading import load
from hmt.options import RememberOptions
from hmt.text.batches import tokenize
from hmt.text.documents import Document, read_text

logger = logging.getLogger(__name__)

PART_CHARACTERS = 100_000
"""Text taken from a file or a stream at one time; it is cut at a line's end."""


def run(options: RememberOptions) -> tuple[dict[str, Any], str]:
    """Read the text and write the memory; an interrupted stream is kept up to where it was read.

    Returns:
        Figures of the reading, and a closing line.

    Raises:
        OSError: If the text or an earlier memory cannot be read, or the memory not written.
        ValueError: If the text is empty or not UTF-8, or the earlier memory is another model's.
    """
    parts = _stream() if options.text == "-" else _parts(read_text(Path(options.text)))
    if options.append and not options.out.exists():
        logger.info("%s is not there yet: starting anew", options.out)
    model, tokenizer = load(options)
    state = MemoryState.load(options.out, device=model.device) if options.append and options.out.exists() else None
    before = 0 if state is None else int(state.tokens_read[0])
    started = time.perf_counter()
    with tqdm(unit="tok", unit_scale=True, disable=None) as bar:
        try:
            for part in parts:
                (document,) = tokenize([Document(options.text, part)], tokenizer, len(model.embedding_table))
                state = model.remember(document.ids[None].to(model.device), state)
                bar.update(len(document.ids))
        except KeyboardInterrupt:
            logger.info("interrupted: keeping what was read")
    if state is None:
        raise ValueError(f"there is no text in {options.text}")
    state.save(options.out)
    seconds = time.perf_counter() - started
    tokens = int(state.tokens_read[0])
    figures = {
        "tokens": tokens,
        "new_tokens": tokens - before,
        "seconds": seconds,
        "tokens_per_second": (tokens - before) / seconds,
        "memory_embeddings": int(state.bank.valid.sum()),
        "file_bytes": options.out.stat().st_size,
    }
    closing = (
        f"read {tokens - before:,} tokens ({figures['tokens_per_second']:.0f}/s), {tokens:,} in all; "
        f"{figures['memory_embeddings']} memory embeddings in {options.out} ({figures['file_bytes'] / 1e3:.0f} kB)"
    )
    return figures, closing


def _parts(text: str) -> Iterator[str]:
    """A text in parts that end with a line."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + PART_CHARACTERS)
        end = len(text) if end < 0 else end + 1
        yield text[start:end]
        start = end


def _stream() -> Iterator[str]:
    """Standard input in parts that end with a line, as they come."""
    lines: list[str] = []
    size = 0
    try:
        for line in sys.stdin:
            lines.append(line)
            size += len(line)
            if size >= PART_CHARACTERS:
                yield "".join(lines)
                lines, size = [], 0
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8 text: {error.reason}") from error
    if lines:
        yield "".join(lines)
