"""What reading a text and writing on costs, for one way of doing it at one length.

Shape legend: B rows (one here), T tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from hmt.evaluation.profiling import FULL_ATTENTION, ProfileOptions
from hmt.evaluation.readers import row_settings
from hmt.metrics.flops import full_flops, matmul_rate, reading_flops
from hmt.metrics.resources import Meter
from hmt.model.backbone import max_positions
from hmt.model.loading import choose_device, load
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.text.batches import running_text
from hmt.text.tasks import load_documents, settings_of

WARM_UP_SEGMENTS = 6
"""Read before anything is measured: with the first, which has nothing to recall, and a group of summaries."""

WARM_UP_TOKENS = 2
"""Written before anything is measured."""


class Clock:
    """A streamer that notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        """A token, or the prompt; it has been brought to this side, so that the device has made it."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """The text has ended."""

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens, the prompt left out."""
        tokens = self.times[1:]
        return [later - earlier for earlier, later in pairwise(tokens)]


@dataclass(frozen=True)
class Way:
    """A way of reading a text and of writing on.

    Attributes:
        read: Tokens (1, T) -> what is held of them, which has `nbytes`.
        write: What is held, the text and a question (1, q), and how many tokens to write; they go to the clock.
        flops: Length -> what the matrix products of reading need, or None.
    """

    read: Callable[[Tensor], Any]
    write: Callable[[Any, Tensor, Tensor, int, Clock], Any]
    flops: Callable[[int], int | None]


def make_way(model: HMTForCausalLM, row: str, options: ProfileOptions) -> Way:
    """The way of a row.

    Raises:
        ValueError: If the backbone cannot read so.
    """
    if row != FULL_ATTENTION:
        return _segments(model.variant(**row_settings(model.config, row)))
    return _full(model, options.chunk_tokens)


def _segments(model: HMTForCausalLM) -> Way:
    def write(state: Any, text: Tensor, question: Tensor, count: int, clock: Clock) -> None:
        model.generate(
            question, memory=state, max_new_tokens=count, do_sample=False, num_beams=1, eos_token_id=None,
            streamer=clock,  # type: ignore[arg-type]
        )  # fmt: skip

    return Way(read=model.remember, write=write, flops=lambda length: reading_flops(model, length))


def _full(model: HMTForCausalLM, part_tokens: int) -> Way:
    backbone = model.backbone

    def read(text: Tensor) -> _FullCache:
        cache = Cache(layer_class_to_replicate=DynamicLayer)
        for part in text.split(part_tokens, dim=1):
            backbone.base_model(input_ids=part, past_key_values=cache, use_cache=True)
        return _FullCache(cache)

    def write(held: _FullCache, text: Tensor, question: Tensor, count: int, clock: Clock) -> None:
        """By the backbone's own `generate`, which goes on from the cache."""
        ids = torch.cat([text, question], dim=1)
        backbone.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), past_key_values=held.cache, max_new_tokens=count,
            min_new_tokens=count, do_sample=False, num_beams=1, eos_token_id=None, streamer=clock,
        )  # fmt: skip

    return Way(read=read, write=write, flops=lambda length: full_flops(backbone, length))


@dataclass(frozen=True)
class _FullCache:
    """The keys and values of a whole text."""

    cache: Cache

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        layers: list[Any] = [layer for layer in self.cache.layers if getattr(layer, "keys", None) is not None]
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)


@dataclass(frozen=True)
class Material:
    """What all rows share.

    Attributes:
        ids: The longest text and the question, as a list, so that it passes between processes.
        rate: Floating-point operations a second of a matrix product here.
    """

    ids: list[int]
    rate: float


def prepare(options: ProfileOptions) -> Material:
    """Tokenise the text and measure the machine.

    Raises:
        OSError: If there is no such model, tokenizer or text.
        ValueError: If they do not fit.
    """
    model, tokenizer = load(replace(options, compile=False))
    documents = load_documents(options.task_name, options.split, limit=options.max_documents, **settings_of(options))
    tokens = options.text_lengths[-1] + options.question_tokens
    ids = running_text(documents, tokenizer, tokens, len(model.embedding_table))
    return Material(ids.tolist(), matmul_rate(choose_device(options.device), model.embedding_table.dtype))


def measure(options: ProfileOptions, row: str, length: int, material: Material) -> dict[str, Any]:
    """Load the model, warm up, read so many tokens of the text, ask, write.

    Returns:
        `row`, `length`, and what was measured: `tokens_per_second` of reading, `seconds_to_first_token` of a question
        behind the text (reading included) and `seconds_after_reading` (the question alone), `ms_per_token` (median) and
        `ms_per_token_mean`, `peak_mb` while reading and writing, weights included, `held_bytes` after reading,
        `flops` of reading and `fraction_of_floor` (what these take at the machine's rate / what reading took),
        `seconds` in all.

    Raises:
        ValueError: If the backbone cannot read so.
    """
    model, _ = load(options)
    way = make_way(model, row, options)
    ids = torch.tensor([material.ids], device=model.device)
    text, question = ids[:, :length], ids[:, length : length + options.question_tokens]
    warm_up = ids[:, : min(WARM_UP_SEGMENTS * model.config.window, ids.shape[1])]
    with torch.no_grad():
        way.write(way.read(warm_up), warm_up, question, WARM_UP_TOKENS, Clock())
        clock = Clock()
        with Meter(model.device) as meter:
            with Meter(model.device) as reading:  # begins anew, and ends with the meter around it
                held = way.read(text)
            held_bytes = held.nbytes
            started = time.perf_counter()
            way.write(held, text, question, options.new_tokens, clock)
    after = clock.times[1] - started
    flops = way.flops(length)
    figures = {
        "row": row,
        "length": length,
        "tokens_per_second": length / reading.seconds,
        "seconds_to_first_token": reading.seconds + after,
        "seconds_after_reading": after,
        "ms_per_token": statistics.median(clock.gaps) * 1e3,
        "ms_per_token_mean": statistics.mean(clock.gaps) * 1e3,
        "peak_mb": None if meter.peak_bytes is None else meter.peak_bytes / 1e6,
        "held_bytes": held_bytes,
        "flops": flops,
        "fraction_of_floor": None if not flops else flops / material.rate / reading.seconds,
        "seconds": meter.seconds,
    }
    limit = max_positions(model.backbone.config)
    if row == FULL_ATTENTION and limit is not None and length + options.question_tokens + options.new_tokens > limit:
        figures["note"] = f"beyond the {limit} positions of the backbone"
    return figures
