"""Reading and training, side by side with the same computation arranged as the published program arranges it.

    python benchmarks/ratios.py
    python benchmarks/ratios.py --dtypes float32 bfloat16 --compile

All rows have the same weights, window 256, 32 sensory tokens and published injection. Rows take turns, so that a slow
minute of the machine meets all of them; each turn is a process of its own. Ratios are of medians. The perplexity shows
that a row reads the same text, and what its number format costs: with published injection, in which everything is
timed, and with gated injection. The row cache is the rolling cache, the default, in a window of the same size.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from environment import write
from plain import PlainArrangement
from torch import Tensor

from hmt import HMTConfig, HMTForCausalLM
from hmt.metrics.machine import Meter
from hmt.model.backbone import compile_layers
from hmt.pretrained import load_tokenizer
from hmt.terminal import format_table
from hmt.text.tasks import load_documents

CACHE: dict[str, Any] = {"sensory": "cache", "num_sensory": None, "num_memory_tokens": 0, "num_recalled_tokens": None}
"""Changes that make a published memory a rolling cache with a window of the same size."""

Dtype = Literal["float32", "bfloat16"]
READING = {
    "row": "reading",
    "dtype": "dtype",
    "tokens_per_second": "tokens/s",
    "spread": "lowest to highest",
    "speed_ratio": "x plain",
    "peak_mb": "peak MB",
    "ppl": "ppl",
    "ppl_gated": "ppl, gated",
}
TRAINING = {
    "row": "training",
    "segments": "segments",
    "dtype": "dtype",
    "tokens_per_second": "tokens/s",
    "spread": "lowest to highest",
    "speed_ratio": "x plain",
    "peak_mb": "peak MB",
    "memory_ratio": "of plain",
    "loss": "loss",
}


@dataclass
class Options:
    """What to measure."""

    model_name: str = "smollm2-135m"
    """Backbone."""
    tokens: int = 4096
    """Tokens read; 0 to train only."""
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16")
    """Number formats of this library's rows; plain rows are float32."""
    compile: bool = False
    """Add rows with a compiled backbone, in the last of the number formats."""
    segments: tuple[int, ...] = (4,)
    """Segments of a training sample."""
    steps: int = 3
    """Training steps of a turn, the first of which is not counted."""
    turns: int = 3
    """Turns of each row."""
    name: str = "ratios"
    """Of the file under results/."""


def main(options: Options) -> None:
    """Measure and write."""
    compiled = {options.dtypes[-1]} if options.compile else set()
    reading: list[dict[str, Any]] = []
    if options.tokens:
        reading.append({"row": "plain", "dtype": "float32"})
        for dtype in options.dtypes:
            names = ["scored", "hmt", "cache"]
            reading += [{"row": name, "dtype": dtype} for name in names]
    training: list[dict[str, Any]] = []
    for segments in options.segments:
        training.append({"row": "plain", "dtype": "float32", "segments": segments})
        for dtype in options.dtypes:
            names = ["hmt", "checkpointing", *(["compiled"] if dtype in compiled else [])]
            training += [{"row": name, "dtype": dtype, "segments": segments} for name in names]
    for row in reading + training:
        row["turns"] = []
    for turn in range(options.turns):
        for work, rows in ((read, reading), (train, training)):
            for row in rows:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    row["turns"].append(pool.apply(work, (options, row)))
                sys.stdout.write(f"turn {turn}: {json.dumps(row | {'turns': row['turns'][-1]})}\n")
    for rows in (reading, training):
        summarise(rows)
    path = write(options.name, {"options": vars(options), "reading": reading, "training": training})
    tables = [format_table(reading, READING), format_table(training, TRAINING)]
    sys.stdout.write("\n" + "\n\n".join(table for table in tables) + f"\nwritten to {path}\n")


def summarise(rows: list[dict[str, Any]]) -> None:
    """Medians over turns, and ratios to the plain row before."""
    plain = rows[0] if rows else {}
    for row in rows:
        speeds = [turn["tokens_per_second"] for turn in row["turns"]]
        row["tokens_per_second"] = statistics.median(speeds)
        row["spread"] = f"{min(speeds):.0f} to {max(speeds):.0f}"
        row["peak_mb"] = statistics.median(turn["peak_mb"] for turn in row["turns"])
        row |= {name: row["turns"][0][name] for name in ("ppl", "ppl_gated", "loss") if name in row["turns"][0]}
        plain = row if row["row"] == "plain" else plain
        row["speed_ratio"] = row["tokens_per_second"] / plain["tokens_per_second"]
        row["memory_ratio"] = row["peak_mb"] / plain["peak_mb"]


def read(options: Options, row: dict[str, Any]) -> dict[str, Any]:
    """One turn of a reading row."""
    model, ids = prepare(options, row["dtype"], options.tokens)
    plain = PlainArrangement(model)
    work: dict[str, Callable[[Tensor], Any]] = {
        "plain": plain.read,
        "scored": lambda text: model(text, labels=text, return_logits=False),
        "hmt": model.remember,
        "cache": model.variant(**CACHE).remember,
    }
    with torch.no_grad():
        work[row["row"]](ids[:, : 6 * model.config.fresh_tokens])  # warms up
        with Meter(model.device) as meter:
            result = work[row["row"]](ids)
        figures = {
            "tokens_per_second": ids.shape[1] / meter.seconds,
            "peak_mb": (meter.peak_bytes or math.nan) / 1e6,
        }
        if row["turns"]:
            return figures
        if row["row"] == "plain":
            nats = F.cross_entropy(result[0, :-1].float(), ids[0, 1:])
            own = model(ids[:, :1024]).logits
            torch.testing.assert_close(own, result[:, :1024], atol=2e-3, rtol=1e-4)  # the same computation
        else:
            own = model.variant(**CACHE) if row["row"] == "cache" else model
            nats = own(ids, labels=ids, return_logits=False).loss
        if row["row"] == "cache":
            return figures | {"ppl": math.exp(float(nats))}
        nats_gated = model.variant(memory_injection="gated")(ids, labels=ids, return_logits=False).loss
    return figures | {"ppl": math.exp(float(nats)), "ppl_gated": math.exp(float(nats_gated))}


def train(options: Options, row: dict[str, Any]) -> dict[str, Any]:
    """One turn of a training row: LoRA r 8 and the memory, AdamW, one sample a step."""
    tokens = row["segments"] * 222
    model, ids = prepare(options, row["dtype"], tokens)
    model.add_lora(rank=8)
    model.train()
    model.checkpoint_segments = row["row"] == "checkpointing"
    if row["row"] == "compiled":
        compile_layers(model.backbone)
    plain = PlainArrangement(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    seconds, losses = [], []
    with Meter(model.device) as meter:
        for _ in range(options.steps):
            started = time.perf_counter()
            if row["row"] == "plain":
                loss = plain.loss(ids)
            else:
                loss = model(ids, labels=ids, return_logits=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            seconds.append(time.perf_counter() - started)
    return {
        "tokens_per_second": tokens / statistics.median(seconds[1:]),
        "peak_mb": (meter.peak_bytes or math.nan) / 1e6,
        "loss": losses[0],
    }


def prepare(options: Options, dtype: Dtype, tokens: int) -> tuple[HMTForCausalLM, Tensor]:
    """The model of a row and so many tokens of the standard library."""
    torch.manual_seed(0)
    published = HMTConfig.published(segment_length=256, num_sensory=32)
    model = HMTForCausalLM.from_backbone(options.model_name, published, dtype=dtype).eval()
    tokenizer = load_tokenizer(options.model_name)
    text = "\n".join(document.text for document in load_documents("stdlib", "test", limit=20))
    return model, torch.tensor([tokenizer(text)["input_ids"][:tokens]])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
