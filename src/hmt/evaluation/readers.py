"""What a row of the table is: a way of reading texts, whether it has a memory or not.

Shape legend: B rows of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hmt.config import MemoryConfig
from hmt.evaluation.options import ROWS, EvaluateOptions
from hmt.model.backbone import max_positions
from hmt.model.baselines import WindowedBackbone
from hmt.model.controls import score_with_other_banks, with_uniform_recall
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.model.outputs import HMTOutput
from hmt.text.batches import aligned_length

Batches = Sequence[tuple[Tensor, Tensor]]
"""Input ids and labels, (B, T) each, of one T."""


@dataclass(frozen=True)
class Reader:
    """A row of the table.

    Attributes:
        read: Batches, the document of each of their rows, and whether to return what was recalled -> the output of
            each batch.
        length: Context length, targets among it -> tokens that a sample has.
        read_tokens: Likewise -> tokens of it that are read at all.
        segment_tokens: Fresh tokens of a segment; None where there are no segments, 0 where they differ.
        settings: What the row's entries in the figures say of it.
        reset: Begins to measure anew.
        lost: Relative error of the DCT bottleneck, or None.
    """

    read: Callable[[Batches, Sequence[int], bool], Iterator[HMTOutput]]
    length: Callable[[int, int], int]
    read_tokens: Callable[[int, int], int]
    segment_tokens: int | None
    settings: dict[str, Any]
    reset: Callable[[], None]
    lost: Callable[[], float | None]


def make_reader(model: HMTForCausalLM, row: str, options: EvaluateOptions) -> Reader:
    """The reader of a row."""
    return _windowed(model, row, options) if ROWS[row].windowed else _segments(model, row)


def row_settings(config: MemoryConfig, row: str) -> dict[str, object]:
    """Changes of a model's memory settings that make it read as a row does, in a window of the same size."""
    settings = dict(ROWS[row].settings)
    form = settings.get("sensory", config.sensory)
    if form != config.sensory:  # what is said of one form of sensory memory does not hold for the other
        own: dict[str, object] = dict.fromkeys(
            ("num_sensory", "num_memory_tokens", "recall_query", "mem_recall_context")
        )
        sinks = {"num_sinks": 4 if form == "cache" else 0, "num_recalled_tokens": None if form == "cache" else 0}
        settings = own | sinks | settings
    elif form == "cache":
        settings = {"num_sensory": None} | settings
    if form == "cache" and settings.get("mode", config.mode) == "hmt" and row == "hmt_cache":
        settings["num_memory_tokens"] = config.num_memory_tokens or 1
    return {"segment_length": config.window, **settings}


def variant_of(model: HMTForCausalLM, row: str) -> HMTForCausalLM:
    """The model as it reads in a row that has a window."""
    variant = model.variant(**row_settings(model.config, row))
    return with_uniform_recall(variant) if ROWS[row].control == "uniform" else variant


def _segments(model: HMTForCausalLM, row: str) -> Reader:
    variant = variant_of(model, row)
    config = variant.config

    def read(batches: Batches, documents: Sequence[int], recall: bool) -> Iterator[HMTOutput]:
        for ids, labels in batches:
            yield variant(ids, labels=labels, return_logits=False, output_recall=recall)

    def read_shuffled(batches: Batches, documents: Sequence[int], recall: bool) -> Iterator[HMTOutput]:
        return score_with_other_banks(variant, batches, documents)

    def length(context: int, targets: int) -> int:
        return context if config.rolling else aligned_length(context, targets, config.fresh_tokens)

    return Reader(
        read=read_shuffled if ROWS[row].control == "shuffled" else read,
        length=length,
        read_tokens=length,
        segment_tokens=0 if config.speed_tokens else config.fresh_tokens,
        settings={
            "segment_length": config.window,
            "num_sensory": config.sensory_tokens,
            "positions_per_token": positions_per_token(config),
        },
        reset=_reset(variant),
        lost=lambda: bottleneck_error(variant),
    )


def positions_per_token(config: MemoryConfig) -> float:
    """Positions that the backbone computes for each token that is read."""
    prompts, fresh = 2 * config.prompt_tokens, config.fresh_tokens
    read = fresh + prompts if config.rolling else config.window
    summary = config.summary_tokens + prompts if config.recalls else 0
    return (read + summary) / fresh


def bottleneck_error(model: HMTForCausalLM) -> float | None:
    """Relative norm of what the DCT bottleneck drops, mean over positions and layers; None without one."""
    extensions = dict(model.extensions.items())
    return extensions["dct_bottleneck"].error if "dct_bottleneck" in extensions else None  # type: ignore[return-value]


def _reset(model: HMTForCausalLM) -> Callable[[], None]:
    def reset() -> None:
        for extension in model.extensions.values():
            getattr(extension, "reset", lambda: None)()

    return reset


def _windowed(model: HMTForCausalLM, row: str, options: EvaluateOptions) -> Reader:
    backbone = model.backbone
    if row == "full":
        window = max_positions(backbone.config)
        windows = WindowedBackbone(backbone, window, window and max(window // 2, 1))
    else:
        windows = WindowedBackbone(backbone, model.config.window, options.window_stride)
    stride = windows.stride or 1
    cost = 1.0 if row == "full" else (windows.window or 0) / stride

    def read(batches: Batches, documents: Sequence[int], recall: bool) -> Iterator[HMTOutput]:
        for ids, labels in batches:
            yield windows.score(ids, labels)

    return Reader(
        read=read,
        length=lambda context, targets: context,
        read_tokens=windows.read_tokens,
        segment_tokens=None,
        settings={"segment_length": windows.window, "stride": windows.stride, "positions_per_token": cost},
        reset=lambda: None,
        lost=lambda: None,
    )
