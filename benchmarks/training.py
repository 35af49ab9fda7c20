"""Training: tokens per second and peak memory, by the segments of a sample, with and without --gradient_checkpointing.

    python benchmarks/training.py

LoRA r 8 and the memory are trained, window 256, one sample a step. Each row is a process of its own; the speed is that
of the steps after the first, the memory the peak of what is resident.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
import tyro
from environment import write

from hmt import HMTForCausalLM
from hmt.metrics.machine import Meter
from hmt.pretrained import load_tokenizer
from hmt.terminal import format_table
from hmt.text.batches import tokenize
from hmt.text.tasks import load_documents
from hmt.training.loop import Training
from hmt.training.options import TrainOptions

COLUMNS = {
    "segments": "segments",
    "tokens": "tokens a step",
    "gradient_checkpointing": "checkpointing",
    "tokens_per_second": "tokens/s",
    "peak_mb": "peak MB",
    "extra_percent": "memory % of backbone",
}


@dataclass
class Options:
    """What to measure."""

    model_name: str = "smollm2-135m"
    """Backbone."""
    segments: tuple[int, ...] = (4, 15)
    """Segments of a sample."""
    steps: int = 4
    """Optimizer steps, the first of which is not counted."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format."""
    name: str = "training"
    """Of the file under results/."""


def main(options: Options) -> None:
    """Measure and write."""
    rows = []
    for segments in options.segments:
        for checkpointing in (False, True):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(measure, (options, segments, checkpointing)))
            sys.stdout.write(f"{json.dumps(rows[-1])}\n")
    path = write(options.name, {"options": vars(options), "rows": rows})
    sys.stdout.write(f"{format_table(rows, COLUMNS)}\nwritten to {path}\n")


def measure(options: Options, segments: int, checkpointing: bool) -> dict[str, Any]:
    """One row."""
    torch.manual_seed(0)
    model = HMTForCausalLM.from_backbone(
        options.model_name, dtype=options.dtype, sensory="reread", num_recalled_tokens=0
    )
    tokenizer = load_tokenizer(options.model_name)
    documents = tokenize(load_documents("stdlib", "train", limit=20), tokenizer, len(model.embedding_table))
    training = TrainOptions(
        stage_1_step=0, training_step=options.steps, bptt_depth=segments, batch_size=1, use_lora=True,
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    with Meter(model.device) as meter:
        started = time.perf_counter()
        figures = Training(model, training, keep=False).run(documents)
        seconds = time.perf_counter() - started
    first = figures["history"][0]["seconds"]
    tokens = segments * model.config.fresh_tokens
    return {
        "segments": segments,
        "tokens": tokens,
        "gradient_checkpointing": checkpointing,
        "tokens_per_second": tokens * (options.steps - 1) / (figures["seconds"] - first),
        "peak_mb": None if meter.peak_bytes is None else meter.peak_bytes / 1e6,
        "extra_percent": figures["extra_percent"],
        "seconds": seconds,
    }


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
