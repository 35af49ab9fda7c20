"""What a memory replaces: the backbone reading raw text on its own cache of keys and values, whole or as a window.

Shape legend: B rows, T tokens, W window, S sinks, D embedding size, h heads, d their width.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer


@dataclass
class CachedText:
    """A text that is read in parts onto a cache of keys and values.

    Without a window the cache holds the whole text: full attention. With one it holds the first S tokens and the most
    recent ones, W in all, each in the place it has in the window: when old tokens leave, the keys of those that stay
    are turned to their new positions. A token that is read in a part of l tokens sees between W - l and W tokens, so
    parts of one token give the cache of StreamingLLM.

    Source: StreamingLLM (arXiv:2309.17453), section 3.2.

    Attributes:
        backbone: The causal LM.
        window: Tokens W that the cache holds, or None for all.
        sinks: First tokens S of the text that stay.

    Raises:
        ValueError: If the backbone has no such cache, or with a window no positions that can be moved.
    """

    backbone: PreTrainedModel
    window: int | None = None
    sinks: int = 0
    cache: Cache = field(default_factory=lambda: Cache(layer_class_to_replicate=DynamicLayer))

    def __post_init__(self) -> None:
        body = self.backbone.base_model
        name = type(self.backbone).__name__
        if "past_key_values" not in inspect.signature(type(body).forward).parameters:
            raise ValueError(f"{name} has no cache of keys and values")
        if self.window is None:
            return
        self._rotary = getattr(body, "rotary_emb", None)
        self._rotate = getattr(sys.modules[type(body).__module__], "apply_rotary_pos_emb", None)
        turns = self._rotary is not None and self._rotate is not None
        if not turns or "layer_type" in inspect.signature(self._rotary.forward).parameters:  # type: ignore[union-attr]
            raise ValueError(f"{name} has no rotary positions that could be moved within a window")

    @torch.no_grad()
    def read(self, input_ids: Tensor, part_tokens: int) -> Tensor:
        """Read on.

        Args:
            input_ids: (B, T), no padding.
            part_tokens: Tokens read at one time, at most W - S.

        Returns:
            Last hidden state (B, D) of the last token.
        """
        body = self.backbone.base_model
        hidden = input_ids.new_zeros(0)
        for part in input_ids.split(part_tokens, dim=1):
            if self.window is not None:
                self._make_room(part.shape[1])
            hidden = body(input_ids=part, past_key_values=self.cache, use_cache=True).last_hidden_state[:, -1]
        return hidden

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self._layers)

    @property
    def _layers(self) -> list[Any]:
        """Those that hold something; each has `keys` and `values`, (B, h, T, d)."""
        return [layer for layer in self.cache.layers if getattr(layer, "keys", None) is not None]

    def _make_room(self, tokens: int) -> None:
        """Let the oldest tokens after the sinks go, so that so many new ones fit."""
        assert self.window is not None
        leaving = self.cache.get_seq_length() + tokens - self.window
        if leaving <= 0:
            return
        for layer in self._layers:
            first, later = layer.keys[:, :, : self.sinks], layer.keys[:, :, self.sinks + leaving :]
            layer.keys = torch.cat([first, self._moved(later, leaving)], dim=2)
            layer.values = torch.cat(
                [layer.values[:, :, : self.sinks], layer.values[:, :, self.sinks + leaving :]], dim=2
            )

    def _moved(self, keys: Tensor, back: int) -> Tensor:
        """Keys (B, h, T, d) as they are so many positions earlier."""
        assert self._rotary is not None
        assert self._rotate is not None
        cos, sin = self._rotary(keys, position_ids=torch.tensor([[back]], device=keys.device))
        scaling = getattr(self._rotary, "attention_scaling", 1.0)
        turned, rest = keys[..., : cos.shape[-1]], keys[..., cos.shape[-1] :]
        _, turned = self._rotate(turned, turned, cos / scaling, -sin / scaling)
        return torch.cat([turned, rest], dim=-1)
