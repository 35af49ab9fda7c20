"""Generation after a long text: does a token cost more, and what does a question about a book cost?

    python benchmarks/generation.py --history 1k,10k,100k

Reads the standard library of the running Python once, keeping the memory at each length, and measures

- milliseconds per token after each length, and of the backbone's own `generate` with its plain cache in a window of the
  same size. One round takes each in turn, a whole segment of tokens, so that every cost of a segment (recalling,
  closing it, moving the window) is in it; ratios are of the same round;
- seconds to the first token of an answer about the text, from its memory and from reading it again;
- the size of the memory file.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from environment import write
from torch import Tensor

from hmt import HMTForCausalLM, MemoryState
from hmt.metrics.machine import Clock
from hmt.options import parse_counts
from hmt.pretrained import load_tokenizer
from hmt.terminal import format_table
from hmt.text.batches import running_text
from hmt.text.tasks import load_documents

QUESTION = "\n\nQuestion: which function opens a file, and what does it return?\nAnswer:"


@dataclass
class Options:
    """What to measure."""

    model_name: str = "smollm2-135m"
    """Backbone."""
    history: str = "1k,10k,100k"
    """Tokens read before writing."""
    segment_length: int = 256
    """Window, of both."""
    sensory: Literal["cache", "reread"] = "cache"
    """Sensory memory."""
    rounds: int = 5
    """Rounds of the measurement."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format."""
    name: str = "generation"
    """Of the file under results/."""


def main(options: Options) -> None:
    """Measure and write."""
    model = HMTForCausalLM.from_backbone(
        options.model_name, dtype=options.dtype, segment_length=options.segment_length, sensory=options.sensory
    ).eval()
    tokenizer = load_tokenizer(options.model_name)
    model.use_tokenizer(tokenizer)
    lengths = parse_counts(options.history)
    ids = running_text(load_documents("stdlib", "train"), tokenizer, lengths[-1], len(model.embedding_table))[None]
    memories, seconds = read(model, ids, lengths)
    figures: dict[str, Any] = {"options": vars(options), "reading_seconds": seconds}
    figures["question"] = ask(model, tokenizer, ids, memories[lengths[-1]])
    figures["milliseconds_per_token"] = rounds(model, ids, memories, options.rounds)
    figures["table"] = table(figures["milliseconds_per_token"])
    path = write(options.name, figures)
    sys.stdout.write(f"{format_table(figures['table'], {name: name for name in figures['table'][0]})}\n")
    sys.stdout.write(f"{figures['question']}\nwritten to {path}\n")


def read(model: HMTForCausalLM, ids: Tensor, lengths: list[int]) -> tuple[dict[int, MemoryState], dict[int, float]]:
    """The memory after each length, and the seconds it took."""
    memories, seconds = {}, {}
    memory, before, started = None, 0, time.perf_counter()
    for length in lengths:
        memory = model.remember(ids[:, before:length], memory)
        memories[length], seconds[length], before = memory, time.perf_counter() - started, length
    return memories, seconds


def ask(model: HMTForCausalLM, tokenizer: Any, ids: Tensor, memory: MemoryState) -> dict[str, Any]:
    """Seconds to the first token of an answer, from the memory and from reading again; and the memory's file."""
    question = tokenizer(QUESTION, add_special_tokens=False, return_tensors="pt").input_ids
    one = {"max_new_tokens": 1, "eos_token_id": None}
    from_memory = [timed(lambda: model.generate(question, memory=memory, **one)) for _ in range(5)]
    again = timed(lambda: model.generate(torch.cat([ids, question], dim=1), **one))
    with tempfile.TemporaryDirectory() as folder:
        memory.save(Path(folder) / "book.memory")
        size = (Path(folder) / "book.memory").stat().st_size
    seconds = statistics.median(from_memory)
    return {
        "book_tokens": ids.shape[1],
        "question_tokens": question.shape[1],
        "seconds_to_first_token_from_memory": seconds,
        "seconds_to_first_token_reading_again": again,
        "ratio": seconds / again,
        "memory_file_bytes": size,
    }


def timed(work: Callable[[], Any]) -> float:
    """Seconds that a piece of work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def rounds(model: HMTForCausalLM, ids: Tensor, memories: dict[int, MemoryState], count: int) -> dict[str, list[float]]:
    """Milliseconds per token of each way of writing, in rounds."""
    fresh = model.config.fresh_tokens
    start = ids[:, : model.config.window - fresh]

    def backbone(clock: Clock) -> None:
        model.backbone.generate(
            start, max_new_tokens=fresh, min_new_tokens=fresh, do_sample=False, eos_token_id=None, streamer=clock
        )

    def after(memory: MemoryState) -> Callable[[Clock], None]:
        def write_on(clock: Clock) -> None:
            model.generate(ids[:, :1], memory=memory, max_new_tokens=fresh + 1, eos_token_id=None, streamer=clock)

        return write_on

    ways = {"backbone": backbone} | {f"hmt after {length:,}": after(memory) for length, memory in memories.items()}
    measured: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(count + 1):
        for name, write_text in ways.items():
            clock = Clock()
            write_text(clock)
            if number:  # the first round warms up
                measured[name].append(statistics.mean(clock.gaps) * 1e3)
    return measured


def table(measured: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Median and range, and the speed against the backbone in the same round."""
    rows = []
    for name, values in measured.items():
        ratios = [own / value for own, value in zip(measured["backbone"], values, strict=True)]
        rows.append(
            {
                "what": name,
                "ms/token": statistics.median(values),
                "lowest": min(values),
                "highest": max(values),
                "speed / backbone": statistics.median(ratios),
            }
        )
    return rows


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
