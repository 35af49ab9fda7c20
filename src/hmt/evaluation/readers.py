"""What a row of the table is: a way of reading texts, whether it has a memory or not.

Shape legend: B rows of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hmt.model.autoencoder import Autoencoder
from hmt.model.backbone import max_positions
from hmt.model.baselines import WindowedBackbone
from hmt.model.controls import score_with_other_banks, with_uniform_recall
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.model.outputs import HMTOutput
from hmt.options import BASELINES, ROWS, SHUFFLED, EvaluateOptions
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
        autoencoder: What acts before the backbone's MLPs in this row.
    """

    read: Callable[[Batches, Sequence[int], bool], Iterator[HMTOutput]]
    length: Callable[[int, int], int]
    read_tokens: Callable[[int, int], int]
    segment_tokens: int | None
    settings: dict[str, Any]
    autoencoder: Autoencoder | None = None


def make_reader(model: HMTForCausalLM, row: str, options: EvaluateOptions) -> Reader:
    """The reader of a row."""
    return _baseline(model, row, options) if row in BASELINES else _segments(model, row)


def variant_of(model: HMTForCausalLM, row: str) -> HMTForCausalLM:
    """The model as it reads in a row that has segments."""
    variant = model.variant(**ROWS[row])
    return with_uniform_recall(variant) if row == "hmt_uniform" else variant


def _segments(model: HMTForCausalLM, row: str) -> Reader:
    variant = variant_of(model, row)

    def read(batches: Batches, documents: Sequence[int], recall: bool) -> Iterator[HMTOutput]:
        for ids, labels in batches:
            yield variant(ids, labels=labels, return_logits=False, output_recall=recall)

    def read_shuffled(batches: Batches, documents: Sequence[int], recall: bool) -> Iterator[HMTOutput]:
        return score_with_other_banks(variant, batches, documents)

    def length(context: int, targets: int) -> int:
        return aligned_length(context, targets, variant.config.fresh_tokens)

    return Reader(
        read=read_shuffled if row in SHUFFLED else read,
        length=length,
        read_tokens=length,
        segment_tokens=0 if variant.config.speed_tokens else variant.config.fresh_tokens,
        settings={"segment_length": variant.config.segment_length, "num_sensory": variant.config.max_sensory},
        autoencoder=variant.autoencoder,
    )


def _baseline(model: HMTForCausalLM, row: str, options: EvaluateOptions) -> Reader:
    backbone = model.backbone
    if row == "native":
        window = max_positions(backbone.config)
        windows = WindowedBackbone(backbone, window, window and max(window // 2, 1))
    else:
        sinks = options.num_sinks if row == "sinks" else 0
        windows = WindowedBackbone(backbone, model.config.segment_length, options.window_stride, sinks)

    def read(batches: Batches, documents: Sequence[int], recall: bool) -> Iterator[HMTOutput]:
        for ids, labels in batches:
            yield windows.score(ids, labels)

    return Reader(
        read=read,
        length=lambda context, targets: context,
        read_tokens=windows.read_tokens,
        segment_tokens=None,
        settings={"segment_length": windows.window, "stride": windows.stride, "num_sinks": windows.sinks},
    )
