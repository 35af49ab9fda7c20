"""`hmt remember`: read a text of any length once, and keep the memory of it in a file."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from hmt.atomic import check_output_file
from hmt.options import ModelOptions, OutputOptions
from hmt.terminal import ProgressBar, on_interrupt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hmt.memory.state import MemoryState
    from hmt.metrics.machine import Meter
    from hmt.model.modeling_hmt import HMTForCausalLM

logger = logging.getLogger(__name__)

PART_CHARACTERS = 20_000
"""Characters read from standard input at a time; parts end with a line if possible."""

SLICE_CHARACTERS = 1000
"""Characters of a file that are taken at a time."""

STEP_TOKENS = 2048
"""Tokens read between two updates of the progress bar."""

SAVE_EVERY_SECONDS = 30
"""Time between two saves while standard input is read."""


@dataclass(kw_only=True)
class RememberOptions(OutputOptions, ModelOptions):
    """Read a text of any length once, and save the memory of it to a file for generate, chat and serve."""

    text: Positional[str]
    """UTF-8 text file (plain or .gz), or - for standard input."""
    out: Path
    """Memory file to write."""
    append: bool = False
    """Add to the memory in --out, if it exists."""
    exact: bool = False
    """Also save the keys and values of the window: a larger file, but nothing to re-encode when it is loaded."""
    explain: bool = False
    """Show the segments in the memory bank: their text, and how much each was recalled."""

    def check_outputs(self) -> None:
        """Raise an OSError if the memory file cannot be written."""
        check_output_file(self.out)


def run(options: RememberOptions) -> tuple[dict[str, Any], str]:
    """Read the text and write the memory.

    The memory of standard input is saved every 30 seconds, and when the command is interrupted. The memory of a file
    is saved only if the file was read to its end.

    Returns:
        Figures, and a closing line; with `explain`, the segments in the bank.

    Raises:
        OSError: If the text or an earlier memory cannot be read, or the memory cannot be written.
        ValueError: If the text is empty or not UTF-8, or the earlier memory was written by another model.
    """
    from hmt.memory.state import MemoryState
    from hmt.metrics.machine import Meter
    from hmt.model.loading import load
    from hmt.report.recollection import describe_kept, kept_segments

    source = None if options.text == "-" else _TextFile(Path(options.text))
    if options.append and not options.out.exists():
        logger.info("%s does not exist yet: starting a new memory", options.out)
    model, tokenizer = load(options)
    state = MemoryState.load(options.out, device=model.device) if options.append and options.out.exists() else None
    before = 0 if state is None else int(state.tokens_read[0])
    with on_interrupt(_interrupt, (signal.SIGTERM,)), Meter(model.device) as meter:
        state = _read(options, source, model, tokenizer, state)
    state.save(options.out, exact=options.exact)
    figures, closing = _summary(state, before, meter, options.out)
    if options.explain:
        segments = kept_segments(state, tokenizer, policy=model.memory.retention)
        figures["kept"] = [asdict(segment) for segment in segments]
        closing += f"\n{describe_kept(segments)}"
    return figures, closing


def _read(
    options: RememberOptions,
    source: _TextFile | None,
    model: HMTForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    state: MemoryState | None,
) -> MemoryState:
    """Read a file, or standard input if `source` is None."""
    import torch

    from hmt.text.batches import check_vocabulary
    from hmt.text.encoding import beginning_token_ids

    saved = time.monotonic()
    with ProgressBar("tokens") as bar:
        try:
            for ids, total in _token_parts(source, tokenizer):
                ids = [*beginning_token_ids(tokenizer), *ids] if state is None else ids
                check_vocabulary(ids, len(model.embedding_table))
                state = model.remember(torch.tensor([ids], device=model.device), state)
                bar.update(len(ids), total)
                if source is None and time.monotonic() - saved > SAVE_EVERY_SECONDS:
                    state.save(options.out, exact=options.exact)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if source is not None or state is None:
                raise  # the memory of half a book would look like that of the whole
            logger.info("interrupted: keeping what was read")
    if state is None:
        raise ValueError(f"there is no text in {options.text}")
    return state


def _summary(state: MemoryState, before: int, meter: Meter, out: Path) -> tuple[dict[str, Any], str]:
    """Figures of a reading that began after `before` tokens, and a closing line."""
    tokens = int(state.tokens_read[0])
    figures: dict[str, Any] = {
        "tokens": tokens,
        "new_tokens": tokens - before,
        "seconds": meter.seconds,
        "tokens_per_second": (tokens - before) / meter.seconds,
        "peak_bytes": meter.peak_bytes,
        "segments": len(state.bank.segments[state.bank.valid].unique()),
        "file_bytes": out.stat().st_size,
    }
    closing = (
        f"read {tokens - before:,} tokens ({figures['tokens_per_second']:.0f}/s), {tokens:,} in all; "
        f"{figures['segments']} segments in {out} ({figures['file_bytes'] / 1e3:.0f} kB)"
    )
    return figures, closing


class _TextFile:
    """A text file, opened once (a pipe cannot be rewound); unreadable files are refused when it is made."""

    def __init__(self, path: Path) -> None:
        from hmt.files import text_pieces

        pieces = text_pieces(path)
        self.pieces = self._counted(chain([next(pieces, "")], pieces))
        plain = path.is_file() and path.suffix.lower() != ".gz"
        self._bytes = path.stat().st_size if plain else 0
        self._bytes_read = 0

    def _counted(self, pieces: Iterator[str]) -> Iterator[str]:
        """Pass the text on in short slices, so that little more is counted than was tokenized."""
        for piece in pieces:
            for start in range(0, len(piece), SLICE_CHARACTERS):
                part = piece[start : start + SLICE_CHARACTERS]
                self._bytes_read += len(part.encode())
                yield part

    def estimate(self, tokens: int) -> int | None:
        """Estimate the number of tokens in the file from those of the text so far; None if its size is unknown."""
        if not self._bytes or not self._bytes_read:
            return None
        return round(tokens * max(self._bytes / self._bytes_read, 1.0))


def _token_parts(
    source: _TextFile | None, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[int], int | None]]:
    """Yield the token ids of a file, or of standard input if None, in parts, each with the estimated number in all.

    A file is cut so that its tokens are those of the whole text; standard input is read without waiting for that.
    """
    from hmt.text.encoding import token_parts

    if source is not None:
        parts = token_parts(source.pieces, tokenizer)
    else:
        parts = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in _standard_input())
    tokens = 0
    for ids in parts:
        tokens += len(ids)
        total = None if source is None else source.estimate(tokens)
        for start in range(0, len(ids), STEP_TOKENS):
            yield ids[start : start + STEP_TOKENS], total


def _standard_input() -> Iterator[str]:
    """Yield standard input in parts as they come, each up to the end of a line; an interrupt ends it."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # one bad byte is no reason to lose a stream
    lines: list[str] = []
    size, warned = 0, False
    line = "\n"
    while line:
        try:
            line = sys.stdin.readline(PART_CHARACTERS)
        except KeyboardInterrupt:
            logger.info("interrupted: keeping what was read")
            line = ""
        if "\ufffd" in line and not warned:
            logger.warning("standard input has bytes that are not UTF-8; they become \ufffd")
            warned = True
        lines.append(line)
        size += len(line)
        if size >= PART_CHARACTERS or (not line and size):
            yield "".join(lines)
            lines, size = [], 0


def _interrupt() -> None:
    raise KeyboardInterrupt
