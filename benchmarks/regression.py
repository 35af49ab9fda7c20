"""What reading costs now, beside what it cost before: a report, never a judgement.

    python benchmarks/regression.py
    python benchmarks/regression.py --keep

A small model with random weights reads 8,192 tokens on one thread. Counts (positions of the body per token, operations
and waits for the device per segment) are the same on every machine; speed and memory are of this one. With --keep the
figures become those that later ones are put beside.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from environment import HERE, write
from stream import small_model
from torch.profiler import ProfilerActivity, profile

from hmt import HMTForCausalLM
from hmt.metrics.resources import Meter
from hmt.report.table import format_table

NAME = "regression"
WAITS = ("aten::_local_scalar_dense", "aten::nonzero")
"""Operations whose result has to come back from the device before anything else can happen."""


@dataclass
class Options:
    """What to measure."""

    model_name: str | None = None
    """Backbone; a small random one by default."""
    tokens: int = 8192
    """Tokens read."""
    counted_segments: int = 8
    """Segments whose operations are counted."""
    keep: bool = False
    """Keep the figures under results/."""
    operations: int = 0
    """Show so many kinds of operations, by their share of the processor's time."""


def main(options: Options) -> None:
    """Measure and show."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        name = options.model_name or small_model(Path(folder) / "small")
        model = HMTForCausalLM.from_backbone(name, segment_length=256).eval()
    figures, operations = measure(model, options)
    path = HERE / "results" / f"{NAME}.json"
    before = json.loads(path.read_text())["figures"] if path.exists() else {}
    rows = [{"what": what, "before": before.get(what), "now": value} for what, value in figures.items()]
    sys.stdout.write(f"{format_table(rows, {'what': 'reading', 'before': 'before', 'now': 'now'})}\n")
    if options.operations:
        columns = {"operation": "operation", "per_segment": "per segment", "percent": "% of time"}
        sys.stdout.write(f"\n{format_table(operations[: options.operations], columns)}\n")
    if options.keep:
        sys.stdout.write(f"kept in {write(NAME, {'options': vars(options), 'figures': figures})}\n")


def measure(model: HMTForCausalLM, options: Options) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The figures, and each kind of operation with its number per segment and its share of the time."""
    fresh, segments = model.config.fresh_tokens, options.counted_segments
    ids = torch.randint(3, len(model.embedding_table), (1, options.tokens), generator=torch.Generator().manual_seed(0))
    state = model.remember(ids[:, : 2 * fresh])
    shapes: list[tuple[int, ...]] = []
    hook = model.backbone.base_model.register_forward_pre_hook(
        lambda _, __, given: shapes.append(tuple(given["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        model.remember(ids[:, : segments * fresh], state)
    hook.remove()
    averages = [event for event in profiled.key_averages() if event.key.startswith("aten::")]
    counts = Counter({event.key: event.count for event in averages})
    whole = sum(event.self_cpu_time_total for event in averages)
    with Meter(model.device) as meter:
        model.remember(ids)
    figures = {
        "body calls per segment": len(shapes) / segments,
        "body positions per token": sum(rows * columns for rows, columns in shapes) / (segments * fresh),
        "operations per segment": counts.total() / segments,
        "waits for the device per segment": sum(counts[name] for name in WAITS) / segments,
        "tokens per second": ids.shape[1] / meter.seconds,
        "peak MB": (meter.peak_bytes or 0) / 1e6,
    }
    operations = [
        {
            "operation": event.key.removeprefix("aten::"),
            "per_segment": event.count / segments,
            "percent": 100 * event.self_cpu_time_total / whole,
        }
        for event in sorted(averages, key=lambda event: -event.self_cpu_time_total)
    ]
    return figures, operations


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
