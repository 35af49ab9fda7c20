"""Rows that score text: samples to nats per target, and the three budgets that a row spends.

A row reads segments into a memory (`SegmentReader`), maybe with the bank of another text as a control: a memory that
loses nothing by it is not used. Or the backbone itself reads windows of raw text (`WindowReader`), which a memory is
measured against.

Shape legend: B rows of a batch, T tokens of a text, W window, S stride, D embedding size.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hmt.config import MemoryConfig
from hmt.evaluation.rows import ROWS, row_settings
from hmt.memory.bank import Bank
from hmt.memory.state import MemoryState
from hmt.metrics.flops import BackboneCost, scoring_flops
from hmt.model import losses
from hmt.model.backbone import embed, max_positions
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.model.outputs import HMTOutput
from hmt.text.batches import IGNORED, aligned_length

CHUNK_POSITIONS = 1024
"""Positions of a window that pass through the body at one time; the cache holds those before them."""


@dataclass(frozen=True)
class WindowedBackbone:
    """A backbone that re-encodes a window of raw tokens every `stride` targets.

    Each target is predicted with between W - S and W tokens before it (fewer only where the text begins).

    Source: StreamingLLM (arXiv:2309.17453), section 4.1, the sliding window with re-computation.

    Attributes:
        backbone: The causal LM.
        window: Positions W it attends to, or None for the whole text.
        stride: Targets S that share a window, at most W.
    """

    backbone: PreTrainedModel
    window: int | None
    stride: int | None = None

    @torch.no_grad()
    def score(self, input_ids: Tensor, labels: Tensor) -> HMTOutput:
        """Score texts of one length.

        Args:
            input_ids: (B, T), no padding.
            labels: (B, T), -100 where a token is not scored.

        Returns:
            `HMTOutput` with loss, nll and masks; every target is causal.
        """
        nll = torch.zeros(input_ids.shape[0], input_ids.shape[1] - 1, device=input_ids.device)
        scored = labels[:, 1:] != IGNORED
        first = int(scored.any(dim=0).nonzero()[0]) + 1
        for start, end, before in self._windows(first, input_ids.shape[1]):
            hidden = self._hidden(input_ids[:, before : end - 1], end - start)
            nll[:, start - 1 : end - 1] = losses.nll(self.backbone, hidden, labels[:, start:end])
        return HMTOutput(
            loss=nll.sum() / scored.sum(), nll=nll, scored_mask=scored, causal_mask=torch.ones_like(scored)
        )

    def read_tokens(self, length: int, target_tokens: int) -> int:
        """Return how many tokens of a text of `length` are read to score its last `target_tokens`."""
        return length - next(self._windows(length - target_tokens, length))[2]

    def _windows(self, first: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield targets [start, end) that share a window, and the first token that the window holds."""
        window = self.window or length
        stride = self.stride or window
        for start in range(first, length, stride):
            end = min(start + stride, length)
            # The last target of a window is predicted from the token before it, so that W tokens end there.
            yield start, end, max(end - 1 - window, 0)

    def _hidden(self, ids: Tensor, count: int) -> Tensor:
        """Last hidden states (B, count, D) of a window's last positions, read in parts on the backbone's cache."""
        body = self.backbone.base_model
        if "past_key_values" not in inspect.signature(type(body).forward).parameters:
            return body(inputs_embeds=embed(self.backbone, ids), use_cache=False).last_hidden_state[:, -count:]
        cache, kept = None, []
        starts = range(0, ids.shape[1], CHUNK_POSITIONS)
        for start in starts:
            part = embed(self.backbone, ids[:, start : start + CHUNK_POSITIONS])
            output = body(inputs_embeds=part, past_key_values=cache, use_cache=len(starts) > 1)
            cache = output.past_key_values
            if start + part.shape[1] > ids.shape[1] - count:
                kept.append(output.last_hidden_state)
        return torch.cat(kept, dim=1)[:, -count:]


def donors(documents: Sequence[int]) -> list[int]:
    """Return for each text the index of another: the next of another document, or of the same if there is none.

    Raises:
        ValueError: If there is only one text.
    """
    if len(documents) < 2:
        raise ValueError(
            "a shuffled memory needs a second text of the same length, got one; raise --max_documents or "
            "--spans_per_document, or lower --lengths"
        )
    found = []
    for index, document in enumerate(documents):
        following = [*range(index + 1, len(documents)), *range(index)]
        found.append(next((other for other in following if documents[other] != document), following[0]))
    return found


@torch.no_grad()
def score_with_other_banks(
    model: HMTForCausalLM, batches: Sequence[tuple[Tensor, Tensor]], documents: Sequence[int]
) -> Iterator[HMTOutput]:
    """Score texts of one length with another text's bank; sensory tokens and all else are their own.

    Each text is read up to the segment in which its targets begin. There the banks change hands, and the targets are
    read. What their own segments leave behind joins the other text's bank.

    Args:
        model: The memory under test.
        batches: Input ids and labels, (B, T) each, of all texts; every row's targets begin at the same column.
        documents: The document of each text, in order of batches, then rows.

    Yields:
        nll, masks and memory of each batch, as `forward` gives them.

    Raises:
        ValueError: If there is only one text.
    """
    others = donors(documents)
    opened = [_read_to_targets(model, ids, labels) for ids, labels in batches]
    banks = [(state.bank, row) for _, state in opened for row in range(state.batch_size)]
    done = 0
    for (ids, labels), (before, state) in zip(batches, opened, strict=True):
        bank = _joined([banks[other] for other in others[done : done + len(ids)]])
        done += len(ids)
        column = int(state.tokens_read[0])
        after = model(ids[:, column:], labels=labels[:, column:], memory=replace(state, bank=bank), return_logits=False)
        output = HMTOutput(memory=after.memory)
        for name in ("nll", "scored_mask", "causal_mask"):
            setattr(output, name, torch.cat([getattr(before, name), getattr(after, name)], dim=1))
        yield output


def _read_to_targets(model: HMTForCausalLM, ids: Tensor, labels: Tensor) -> tuple[HMTOutput, MemoryState]:
    """Read up to the segment in which the targets begin; the output includes that segment's first token.

    With segments that begin at a column of each row's own, banks change hands where the targets begin.
    """
    first = int((labels >= 0).any(dim=0).nonzero()[0])
    inside = model.config.rolling or model.config.speed_tokens
    column = first if inside else first // model.config.fresh_tokens * model.config.fresh_tokens
    output = model(ids[:, : column + 1], labels=labels[:, : column + 1], return_logits=False)
    return output, model.remember(ids[:, :column]) if column else model.initial_state(len(ids))


def _joined(rows: Sequence[tuple[Bank, int]]) -> Bank:
    """Rows of banks of one width as one bank."""
    return Bank(
        **{f.name: torch.cat([getattr(bank, f.name)[row : row + 1] for bank, row in rows]) for f in fields(Bank)}
    )


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
