"""The backbone itself over windows of raw text, each re-encoded: what a memory is measured against.

Shape legend: B rows, T tokens of a text, W window, S stride, D embedding size.
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
