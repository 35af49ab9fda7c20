"""`hmt remember`: read a text of any length once, and keep the memory of it in a file."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from hmt.cli.writing import RememberOptions
from hmt.files import text_pieces
from hmt.memory.state import MemoryState
from hmt.metrics.resources import Meter
from hmt.model.loading import load
from hmt.report.kept import describe_kept, kept_segments
from hmt.text.batches import check_vocabulary
from hmt.text.stream import token_parts

logger = logging.getLogger(__name__)

PART_CHARACTERS = 20_000
"""Text taken from standard input at one time; it is cut at a line's end."""

SAVE_EVERY_SECONDS = 30
"""How often the memory of a stream is written while it goes on."""


def run(options: RememberOptions) -> tuple[dict[str, Any], str]:
    """Read the text and write the memory.

    The memory of a stream is written again and again, so that a reader that is killed loses little; one that is
    interrupted or terminated keeps all it has read. Of a file that was not read to its end nothing is kept.

    Returns:
        Figures of the reading, and a closing line; what is kept if that was asked for.

    Raises:
        OSError: If the text or an earlier memory cannot be read, or the memory not written.
        ValueError: If the text is empty or not UTF-8, or the earlier memory is another model's.
    """
    pieces = None if options.text == "-" else _begun(text_pieces(Path(options.text)))
    if options.append and not options.out.exists():
        logger.info("%s is not there yet: starting anew", options.out)
    model, tokenizer = load(options)
    state = MemoryState.load(options.out, device=model.device) if options.append and options.out.exists() else None
    before = 0 if state is None else int(state.tokens_read[0])
    with (
        _terminated_as_interrupted(),
        Meter(model.device) as meter,
        tqdm(unit="tok", unit_scale=True, disable=None) as bar,
    ):
        saved = time.monotonic()
        try:
            for ids in _tokens(pieces, tokenizer):
                check_vocabulary(ids, len(model.embedding_table))
                state = model.remember(torch.tensor([ids], device=model.device), state)
                bar.update(len(ids))
                if options.text == "-" and time.monotonic() - saved > SAVE_EVERY_SECONDS:
                    state.save(options.out, exact=options.exact)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if options.text != "-" or state is None:
                raise  # the memory of half a book would look like that of the whole
            logger.info("interrupted: keeping what was read")
    if state is None:
        raise ValueError(f"there is no text in {options.text}")
    state.save(options.out, exact=options.exact)
    figures, closing = _summary(state, before, meter, options.out)
    if options.explain:
        segments = kept_segments(state, tokenizer, policy=model.memory.retention)
        figures["kept"] = [asdict(segment) for segment in segments]
        closing += f"\n{describe_kept(segments)}"
    return figures, closing


def _summary(state: MemoryState, before: int, meter: Meter, out: Path) -> tuple[dict[str, Any], str]:
    """Figures of a reading that went on from `before` tokens, and a closing line."""
    tokens = int(state.tokens_read[0])
    rate = (tokens - before) / meter.seconds
    file_bytes = out.stat().st_size
    figures: dict[str, Any] = {
        "tokens": tokens,
        "new_tokens": tokens - before,
        "seconds": meter.seconds,
        "tokens_per_second": rate,
        "peak_bytes": meter.peak_bytes,
        "segments": len(state.bank.segments[state.bank.valid].unique()),
        "file_bytes": file_bytes,
    }
    closing = (
        f"read {tokens - before:,} tokens ({rate:.0f}/s), {tokens:,} in all; "
        f"{figures['segments']} segments in {out} ({file_bytes / 1e3:.0f} kB)"
    )
    return figures, closing


def _begun(pieces: Iterator[str]) -> Iterator[str]:
    """The same pieces, the first one read: a file that cannot be read is refused before a model is loaded.

    The file is opened once, since a pipe cannot be rewound.
    """
    return chain([next(pieces, "")], pieces)


def _tokens(pieces: Iterator[str] | None, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Token ids of a file's pieces, or of standard input where None, a part at a time and none of them empty.

    A file is cut so that its tokens are those of the whole; what comes on standard input is not held back for that.
    """
    if pieces is not None:
        parts = token_parts(pieces, tokenizer)
    else:
        parts = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in _stream())
    return (ids for ids in parts if ids)


def _stream() -> Iterator[str]:
    """Standard input in parts, as they come, cut at a line's end where there is one; an interruption ends it."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # one bad byte is no reason to lose a stream
    lines: list[str] = []
    size, warned = 0, False
    line = "\n"
    while line:
        try:
            line = sys.stdin.readline(PART_CHARACTERS)
        except KeyboardInterrupt:
            logger.info("interrupted: reading what has come")
            line = ""
        if "\ufffd" in line and not warned:
            logger.warning("standard input is not UTF-8 throughout: what cannot be read becomes \ufffd")
            warned = True
        lines.append(line)
        size += len(line)
        if size >= PART_CHARACTERS or (not line and size):
            yield "".join(lines)
            lines, size = [], 0


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """While this lasts, being terminated is like being interrupted."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
