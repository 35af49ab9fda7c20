"""Cost of reading, generating and searching now, beside what it was before: a report, never a judgement.

    python benchmarks/regression.py
    python benchmarks/regression.py --keep

A small model with random weights reads 8,192 tokens on one thread and generates after them, with a rolling cache and
with published settings; and a memory of a million tokens is searched for a prompt. Counts (positions of the body per
token, operations and waits for the device per segment) are the same on every machine; speed and memory are of this one.
With --keep the figures become those that later ones are put beside.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from environment import HERE, write
from stream import small_model
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from hmt import HMTConfig, HMTForCausalLM, MemoryState
from hmt.memory.passages import choose_passages
from hmt.metrics.machine import Clock, Meter
from hmt.terminal import format_table

NAME = "regression"
WAITS = ("aten::_local_scalar_dense", "aten::nonzero")
"""Operations whose result has to come back from the device before anything else can happen."""

SETTINGS = {
    "cache": HMTConfig(segment_length=256),
    "published": HMTConfig.published(segment_length=256),
}
"""Memory settings by name."""


@dataclass
class Options:
    """What to measure."""

    model_name: str | None = None
    """Backbone; a small random one by default."""
    tokens: int = 8192
    """Tokens read."""
    counted_segments: int = 8
    """Segments whose operations are counted."""
    new_tokens: int = 128
    """Tokens generated."""
    searched_tokens: int = 1_000_000
    """Tokens of the memory that is searched."""
    keep: bool = False
    """Keep the figures under results/."""
    operations: int = 0
    """Show so many kinds of operations of reading, by their share of the processor's time."""


def main(options: Options) -> None:
    """Measure and show."""
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    operations: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        name = options.model_name or small_model(Path(folder) / "small")
        for settings, config in SETTINGS.items():
            model = HMTForCausalLM.from_backbone(name, config).eval()
            read, operations[settings] = reading(model, options)
            found = read | generating(model, options)
            if config.recalled_tokens:
                found |= searching(model, options)
            figures |= {f"{settings}: {what}": value for what, value in found.items()}
    path = HERE / "results" / f"{NAME}.json"
    before = json.loads(path.read_text())["figures"] if path.exists() else {}
    rows = [{"what": what, "before": before.get(what), "now": value} for what, value in figures.items()]
    sys.stdout.write(f"{format_table(rows, {'what': 'what', 'before': 'before', 'now': 'now'})}\n")
    columns = {"operation": "operation", "per_segment": "per segment", "percent": "% of time"}
    for settings, kinds in operations.items():
        if options.operations:
            sys.stdout.write(f"\n{settings}\n{format_table(kinds[: options.operations], columns)}\n")
    if options.keep:
        sys.stdout.write(f"kept in {write(NAME, {'options': vars(options), 'figures': figures})}\n")


def random_text(model: HMTForCausalLM, tokens: int) -> Tensor:
    """Random token ids, (1, tokens)."""
    return torch.randint(3, len(model.embedding_table), (1, tokens), generator=torch.Generator().manual_seed(0))


def reading(model: HMTForCausalLM, options: Options) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Figures of reading, and each kind of operation with its number per segment and its share of the time."""
    fresh, segments = model.config.fresh_tokens, options.counted_segments
    ids = random_text(model, options.tokens)
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
        "tokens read per second": ids.shape[1] / meter.seconds,
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


def generating(model: HMTForCausalLM, options: Options) -> dict[str, float]:
    """Milliseconds per token after reading; operations and positions per token."""
    ids = random_text(model, 4 * model.config.window)
    memory = model.remember(ids)
    shapes: list[tuple[int, ...]] = []
    hook = model.backbone.base_model.register_forward_pre_hook(
        lambda _, __, given: shapes.append(tuple(given["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    clock = Clock()
    model.generate(
        ids[:, :8], memory=memory, max_new_tokens=options.new_tokens, do_sample=False, eos_token_id=None,
        streamer=clock,  # type: ignore[arg-type]
    )  # fmt: skip
    hook.remove()
    positions = sum(rows * columns for rows, columns in shapes)
    return {
        "ms per generated token": statistics.median(clock.gaps) * 1e3,
        "body positions per generated token": positions / options.new_tokens,
        "bytes held after reading": memory.nbytes,
    }


def searching(model: HMTForCausalLM, options: Options) -> dict[str, float]:
    """Milliseconds of choosing passages for a prompt, the best of five."""
    state = remembered(model, options.searched_tokens)
    query = state.bank.tokens[0, len(state.bank.tokens[0]) // 2, :12].long()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        found = choose_passages(state, 0, query, model.config.recalled_tokens, reach=model.config.sensory_tokens)
        seconds.append(time.perf_counter() - started)
    assert found  # a search that finds nothing may end early
    return {"ms to search the memory": min(seconds) * 1e3}


def remembered(model: HMTForCausalLM, tokens: int) -> MemoryState:
    """The state of a text of about so many tokens, without having read it: rare tokens follow Zipf's law."""
    fresh = model.config.fresh_tokens
    slots = tokens // fresh
    ranks = torch.rand(slots * fresh, generator=torch.Generator().manual_seed(0))
    ids = (len(model.embedding_table) ** ranks).int().clamp(max=len(model.embedding_table) - 1)
    state = model.initial_state()
    bank = replace(
        state.bank,
        embeddings=state.bank.embeddings.new_zeros(1, slots, state.bank.embeddings.shape[2]),
        valid=torch.ones(1, slots, dtype=torch.bool),
        segments=torch.arange(slots)[None],
        usage=torch.zeros(1, slots),
        tokens=ids.view(1, slots, fresh),
        merged=torch.ones(1, slots, dtype=torch.int32),
    )
    counts = torch.tensor([slots])
    return replace(state, bank=bank, tokens_read=counts * fresh, segments_read=counts)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
