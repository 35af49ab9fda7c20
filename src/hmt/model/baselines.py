"""What a memory is measured against: the backbone itself over windows of raw text.

Shape legend: B rows, T tokens of a text, W window, S stride, V vocabulary, D embedding size.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hmt.model import losses
from hmt.model.backbone import embed
from hmt.model.outputs import HMTOutput
from hmt.text.batches import IGNORED

CHUNK_POSITIONS = 1024
"""Positions of a window that pass through the body at one time; the cache holds those before them."""


@dataclass(frozen=True)
class WindowedBackbone:
    """A backbone that sees a window of raw tokens, read anew every `stride` targets.

    Each target is predicted with between W - S and W positions in front of it (fewer only where the text begins). With
    `sinks` the window's first positions always hold the first tokens of the text, and the others the most recent ones;
    positions are counted inside the window. That is what an attention-sink cache attends to, with every state computed
    from the window alone. The cache of StreamingLLM keeps states that were computed when their own past was still in
    it, and costs one position a token; this form costs W / S.

    Source: StreamingLLM (arXiv:2309.17453), sections 3.2 and 4.1, for both the sliding window with re-computation and
    the sinks.

    Attributes:
        backbone: The causal LM.
        window: Positions W it sees, or None for the whole text.
        stride: Targets S that share a window, at most W - sinks; all of them where None.
        sinks: First tokens of the text that stay in the window.
    """

    backbone: PreTrainedModel
    window: int | None
    stride: int | None = None
    sinks: int = 0

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
        columns = scored.any(dim=0).nonzero().flatten() + 1
        first = int(columns[0]) if len(columns) else input_ids.shape[1]
        for start, end, before in self._windows(first, input_ids.shape[1]):
            window = torch.cat([input_ids[:, : self.sinks], input_ids[:, before:end]], dim=1)
            window = input_ids[:, :end] if before == 0 else window
            hidden = self._hidden(window[:, :-1], end - start)
            nll[:, start - 1 : end - 1] = losses.nll(self.backbone, hidden, labels[:, start:end])
        return HMTOutput(
            loss=nll.sum() / scored.sum(), nll=nll, scored_mask=scored, causal_mask=torch.ones_like(scored)
        )

    def read_tokens(self, length: int, target_tokens: int) -> int:
        """Tokens of a text of `length` that are read at all to score its last `target_tokens`."""
        before = min((before for _, _, before in self._windows(length - target_tokens, length)), default=0)
        return length - before + (self.sinks if before else 0)

    def _windows(self, first: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Targets [start, end) that share a window, and the first recent token that it holds, 0 for the whole text."""
        stride = length if self.window is None else self.stride or self.window - self.sinks
        for start in range(first, length, stride):
            end = min(start + stride, length)
            # The last target of a window is predicted from the token before it, so that W tokens end there.
            fits = self.window is None or end - 1 <= self.window
            yield start, end, 0 if fits else end - 1 - (self.window or 0) + self.sinks

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
