"""Cost of reading a text and of writing on, for one row at one length.

Shape legend: T tokens of a text, q of a question.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from hmt.evaluation.options import ProfileOptions
from hmt.evaluation.rows import row_settings
from hmt.memory.state import MemoryState
from hmt.metrics.flops import full_flops, matmul_rate, reading_flops
from hmt.metrics.machine import Clock, Meter
from hmt.model.backbone import max_positions
from hmt.model.loading import choose_device, load
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.text.batches import running_text
from hmt.text.tasks import load_documents, settings_of

WARM_UP_SEGMENTS = 6
"""Segments read before anything is measured: the first, which recalls nothing, and a group of summaries."""

QUESTION_TOKENS = 16
"""Tokens asked after the text, before anything is written."""

CHUNK_TOKENS = 1024
"""Tokens that full attention reads at one time."""

WARM_UP_TOKENS = 2
"""Tokens written before anything is measured."""


@dataclass(frozen=True)
class MemoryRunner:
    """A model that reads into its memory and answers from it."""

    model: HMTForCausalLM

    def read(self, text: Tensor) -> MemoryState:
        """Read a text (1, T)."""
        return self.model.remember(text)

    def write(self, held: MemoryState, text: Tensor, question: Tensor, count: int, clock: Clock) -> None:
        """Write so many tokens after a question (1, q), from the memory of the text."""
        self.model.generate(
            question, memory=held, max_new_tokens=count, do_sample=False, num_beams=1, eos_token_id=None,
            streamer=clock,  # type: ignore[arg-type]
        )  # fmt: skip

    def bytes_kept(self, held: MemoryState) -> int:
        """Return the bytes of the memory."""
        return held.nbytes

    def flops(self, length: int) -> int | None:
        """Return the operations of reading a text of so many tokens."""
        return reading_flops(self.model, length)


@dataclass(frozen=True)
class FullRunner:
    """The backbone on its own cache of the whole text, which it reads in parts."""

    backbone: PreTrainedModel

    def read(self, text: Tensor) -> Cache:
        """Read a text (1, T)."""
        cache = Cache(layer_class_to_replicate=DynamicLayer)
        for part in text.split(CHUNK_TOKENS, dim=1):
            self.backbone.base_model(input_ids=part, past_key_values=cache, use_cache=True)
        return cache

    def write(self, held: Cache, text: Tensor, question: Tensor, count: int, clock: Clock) -> None:
        """Write with the backbone's own `generate`, which goes on from the cache."""
        ids = torch.cat([text, question], dim=1)
        self.backbone.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), past_key_values=held, max_new_tokens=count,
            min_new_tokens=count, do_sample=False, num_beams=1, eos_token_id=None, streamer=clock,
        )  # fmt: skip

    def bytes_kept(self, held: Cache) -> int:
        """Return the bytes of all keys and values."""
        layers: list[Any] = [layer for layer in held.layers if getattr(layer, "keys", None) is not None]
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)

    def flops(self, length: int) -> int | None:
        """Return the operations of reading a text of so many tokens."""
        return full_flops(self.backbone, length)


@dataclass(frozen=True)
class Material:
    """Input shared by all rows.

    Attributes:
        ids: The longest text and the question, as a list, so that it passes between processes.
        rate: Floating-point operations per second of a matrix product here.
    """

    ids: list[int]
    rate: float


def prepare(options: ProfileOptions) -> Material:
    """Tokenize the text and measure the machine.

    Raises:
        OSError: If there is no such model, tokenizer or text.
        ValueError: If they do not fit.
    """
    model, tokenizer = load(options)
    documents = load_documents(options.task_name, options.split, limit=options.max_documents, **settings_of(options))
    tokens = options.text_lengths[-1] + QUESTION_TOKENS
    ids = running_text(documents, tokenizer, tokens, len(model.embedding_table))
    return Material(ids.tolist(), matmul_rate(choose_device(options.device), model.embedding_table.dtype))


@torch.no_grad()
def measure(options: ProfileOptions, row: str, length: int, material: Material) -> dict[str, Any]:
    """Load the model, warm up, read so many tokens of the text, ask, write.

    Returns:
        `row`, `length`, and what was measured: `tokens_per_second` of reading, `seconds_to_first_token` of a question
        behind the text (reading included) and `seconds_after_reading` (the question alone), `ms_per_token` (median),
        `peak_mb` while reading and writing, weights included, `bytes_kept` after reading, `flops` and
        `flops_per_token` of reading, `fraction_of_floor` (their time at the machine's rate / the time of reading) and
        `seconds` in all.

    Raises:
        ValueError: If the backbone cannot read in this row.
    """
    model, _ = load(options)
    runner: Any = FullRunner(model.backbone)
    if row != "full":
        runner = MemoryRunner(model.variant(**row_settings(model.config, row)))
    ids = torch.tensor([material.ids], device=model.device)
    text, question = ids[:, :length], ids[:, length : length + QUESTION_TOKENS]
    warm_up = ids[:, : min(WARM_UP_SEGMENTS * model.config.window, ids.shape[1])]
    runner.write(runner.read(warm_up), warm_up, question, WARM_UP_TOKENS, Clock())
    clock = Clock()
    with Meter(model.device) as meter:
        with Meter(model.device) as reading:  # begins anew, and ends with the meter around it
            held = runner.read(text)
        bytes_kept = runner.bytes_kept(held)
        started = time.perf_counter()
        runner.write(held, text, question, options.new_tokens, clock)
    after, flops = clock.times[1] - started, runner.flops(length)
    figures = {
        "row": row,
        "length": length,
        "tokens_per_second": length / reading.seconds,
        "seconds_to_first_token": reading.seconds + after,
        "seconds_after_reading": after,
        "ms_per_token": statistics.median(clock.gaps) * 1e3,
        "peak_mb": meter.peak_mb,
        "bytes_kept": bytes_kept,
        "flops": flops,
        "flops_per_token": flops and flops / length,
        "fraction_of_floor": flops and flops / material.rate / reading.seconds,
        "seconds": meter.seconds,
    }
    limit = max_positions(model.backbone.config)
    if row == "full" and limit is not None and length + QUESTION_TOKENS + options.new_tokens > limit:
        figures["note"] = f"beyond the {limit} positions of the backbone"
    return figures
