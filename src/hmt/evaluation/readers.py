"""Rows that score text: samples to nats per target, and the three budgets that a row spends.

Shape legend: B rows of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from hmt.config import MemoryConfig
from hmt.evaluation.controls import score_with_other_banks
from hmt.evaluation.rows import ROWS, row_settings
from hmt.evaluation.windows import WindowedBackbone
from hmt.metrics.flops import BackboneCost, scoring_flops
from hmt.model.backbone import max_positions
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.model.outputs import HMTOutput
from hmt.text.batches import aligned_length

Batches = Sequence[tuple[Tensor, Tensor]]
"""Input ids and labels, (B, T) each, of one T."""


class SegmentReader:
    """A model that reads segment after segment, with the settings of a row.

    Args:
        model: Memory and backbone; stays as it is.
        row: Name of the row.

    Attributes:
        settings: Parts of the window, for the figures.
        bytes_kept: Bytes of the memory of one text, after the last `read`.
    """

    def __init__(self, model: HMTForCausalLM, row: str) -> None:
        self.model = model.variant(**row_settings(model.config, row))
        self.bytes_kept: int | None = None
        self._shuffled = ROWS[row].control == "another_text"
        config = self.model.config
        self.settings = {
            "segment_length": config.window,
            "num_sensory": config.sensory_tokens,
            "positions_per_token": positions_per_token(config),
        }

    def sample_tokens(self, context: int, targets: int) -> int:
        """Return the tokens of a sample: the context length, or less so that targets begin with a segment."""
        config = self.model.config
        return context if config.rolling else aligned_length(context, targets, config.fresh_tokens)

    read_tokens = sample_tokens

    def read(self, batches: Batches, documents: Sequence[int], output_recall: bool) -> Iterator[HMTOutput]:
        """Score batches.

        Args:
            batches: Samples and their labels.
            documents: The document of each sample.
            output_recall: Return the recall of each segment as well.
        """
        for extension in self.model.extensions.values():
            getattr(extension, "reset", lambda: None)()
        if self._shuffled:
            outputs = score_with_other_banks(self.model, batches, documents)
        else:
            outputs = (
                self.model(ids, labels=labels, return_logits=False, output_recall=output_recall)
                for ids, labels in batches
            )
        for output in outputs:
            assert output.memory is not None
            self.bytes_kept = output.memory.nbytes // output.memory.batch_size
            yield output

    def budgets(self, length: int, targets: int) -> dict[str, float | None]:
        """Return `slots_per_token`, `bytes_kept` and `flops_per_token` (body and head) at a length of samples."""
        slots = slots_per_token(self.model.config)
        return {
            "slots_per_token": min(slots, length - (targets + 1) / 2),
            "bytes_kept": self.bytes_kept,
            "flops_per_token": scoring_flops(self.model, length),
        }

    def bottleneck_error(self) -> float | None:
        """Return the mean relative norm of what the DCT bottleneck drops; None without one."""
        extensions = dict(self.model.extensions.items())
        return extensions["dct_bottleneck"].error if "dct_bottleneck" in extensions else None  # type: ignore[return-value]


class WindowReader:
    """The backbone over windows of raw text; the same interface as `SegmentReader`.

    Args:
        model: Its backbone reads; its window is W.
        row: Name of the row.
        stride: Targets that share a window of W tokens.
    """

    def __init__(self, model: HMTForCausalLM, row: str, stride: int) -> None:
        if ROWS[row].windows == "longest":
            window = max_positions(model.backbone.config)
            stride = window // 2 if window else 0
        else:
            window = model.config.window
        self._windows = WindowedBackbone(model.backbone, window, stride or None)
        self._cost = BackboneCost.of(model.backbone)
        self.settings = {"segment_length": window, "stride": stride or None}

    def sample_tokens(self, context: int, targets: int) -> int:
        """Return the context length."""
        return context

    def read_tokens(self, context: int, targets: int) -> int:
        """Return the tokens of a sample that are read at all."""
        return self._windows.read_tokens(context, targets)

    def read(self, batches: Batches, documents: Sequence[int], output_recall: bool) -> Iterator[HMTOutput]:
        """Score batches, as `SegmentReader.read`."""
        for ids, labels in batches:
            yield self._windows.score(ids, labels)

    def budgets(self, length: int, targets: int) -> dict[str, float | None]:
        """Return the budgets, as `SegmentReader.budgets`; windows are averaged over the targets that share them."""
        window = min(self._windows.window or length, length)
        stride = min(self._windows.stride or targets, targets) if window < length else targets
        last = window if window < length else length - 1
        # Each window is read anew for its targets; one that holds the whole text is read once.
        tokens = stride if window < length else length
        return {
            "slots_per_token": last - (stride - 1) / 2,
            "bytes_kept": None if self._cost is None else window * self._cost.cache_bytes,
            "flops_per_token": None if self._cost is None else self._cost.body(window) / tokens + self._cost.head,
        }

    def bottleneck_error(self) -> float | None:
        """Return None: raw windows have no bottleneck."""
        return None


Reader = SegmentReader | WindowReader


def make_reader(model: HMTForCausalLM, row: str, stride: int) -> Reader:
    """Return the reader of a row."""
    return WindowReader(model, row, stride) if ROWS[row].windows else SegmentReader(model, row)


def positions_per_token(config: MemoryConfig) -> float:
    """Return how many positions the backbone computes for each token that is read."""
    prompts, fresh = 2 * config.prompt_tokens, config.fresh_tokens
    read = fresh + prompts if config.rolling else config.window
    summary = config.summary_tokens + prompts if config.recalls else 0
    return (read + summary) / fresh


def slots_per_token(config: MemoryConfig, recalled: int = 0) -> float:
    """Return how many slots of the window a token attends to, itself included, averaged over a segment.

    Args:
        config: Settings of the memory.
        recalled: Recalled tokens in the window.
    """
    prompt, sensory = config.prompt_tokens, config.sensory_tokens
    if config.rolling:
        return config.sinks + recalled + prompt + sensory + 1
    return prompt + sensory + (config.fresh_tokens + 1) / 2
