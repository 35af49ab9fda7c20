"""Preparing text for training: peak memory and speed by the size of a file, beside the tokenizer's own batch speed.

    python benchmarks/preparation.py
    python benchmarks/preparation.py --megabytes 10 1000

Each size is a process of its own: it tokenises one file, cuts it into samples and takes one from its middle. The text
is the standard library of the running Python, repeated. The tokenizer's own speed is that of one call on the first 10
MB, in texts of 20,000 characters.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from environment import write

from hmt.metrics.resources import Meter
from hmt.pretrained import load_tokenizer
from hmt.report.table import format_table
from hmt.text.batches import cut, tokenize
from hmt.text.documents import Document
from hmt.text.tasks import load_documents

COLUMNS = {
    "megabytes": "MB of text",
    "tokens": "tokens",
    "mb_per_second": "MB/s",
    "own_mb_per_second": "tokenizer's own MB/s",
    "before_mb": "peak MB before",
    "peak_mb": "peak MB",
}
SAMPLE_TOKENS = 1332


@dataclass
class Options:
    """What to measure."""

    model_name: str = "smollm2-135m"
    """Whose tokenizer."""
    megabytes: tuple[int, ...] = (10, 100)
    """Sizes of the file."""
    name: str = "preparation"
    """Of the file under results/."""


def main(options: Options) -> None:
    """Measure and write."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for megabytes in options.megabytes:
            file = Path(folder) / f"{megabytes}.txt"
            write_text(file, megabytes * 1_000_000)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(measure, (options.model_name, file, megabytes)))
            file.unlink()
            sys.stdout.write(f"{json.dumps(rows[-1])}\n")
    path = write(options.name, {"options": vars(options), "rows": rows})
    sys.stdout.write(f"{format_table(rows, COLUMNS)}\nwritten to {path}\n")


def write_text(file: Path, size: int) -> None:
    """A file of so many bytes."""
    text = "".join(document.text for document in load_documents("stdlib", "train")).encode()
    with file.open("wb") as stream:
        while stream.tell() < size:
            stream.write(text[: size - stream.tell()].decode(errors="ignore").encode() or b"\n")


def measure(model_name: str, file: Path, megabytes: int) -> dict[str, Any]:
    """Figures of one file."""
    tokenizer = load_tokenizer(model_name)
    with Meter(torch.device("cpu")) as before:
        pass
    with Meter(torch.device("cpu")) as meter:
        (document,) = tokenize([Document(file.name, file)], tokenizer, len(tokenizer))
        samples = cut([document], SAMPLE_TOKENS)
        middle = samples[len(samples) // 2].ids.sum()
    with file.open() as stream:
        text = stream.read(10_000_000)
    texts = [text[start : start + 20_000] for start in range(0, len(text), 20_000)]
    started = time.perf_counter()
    tokenizer(texts, add_special_tokens=False)
    own = len(text) / 1e6 / (time.perf_counter() - started)
    return {
        "megabytes": megabytes,
        "tokens": len(document.ids),
        "samples": len(samples),
        "checksum": int(middle),
        "seconds": meter.seconds,
        "mb_per_second": megabytes / meter.seconds,
        "own_mb_per_second": own,
        "before_mb": (before.peak_bytes or math.nan) / 1e6,
        "peak_mb": (meter.peak_bytes or math.nan) / 1e6,
    }


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
