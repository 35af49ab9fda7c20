"""Rotary positions: keys that were encoded at one position, turned to another.

Families differ in the part of a head that turns, in how its planes are laid out, and in their frequencies, some from
layer to layer. Here these are found by trying: keys of a few tokens at one place must become, turned, those of the same
tokens at another.

Shape legend: B rows, n slots, H heads, d their width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

SHIFT = 7
"""Positions by which keys are moved to find how they turn."""

ROUNDING = 0.2
"""Relative error that half precision may make of keys in deep layers; a wrong turn makes one of about 1."""

LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Kinds of rotary positions whose frequencies depend on the length of the text."""


@dataclass(frozen=True)
class Rotation:
    """Rotation of the keys of a layer with their position.

    Attributes:
        frequencies: Radians per position of each plane, (planes,) float32.
        interleaved: Planes are neighboring coordinates; else the halves of the turning part.
        offset: First coordinate that turns.
    """

    frequencies: Tensor
    interleaved: bool
    offset: int = 0

    def back(self, keys: Tensor, steps: Tensor) -> Tensor:
        """Keys (B, H, n, d) as they are so many positions (B, n) earlier."""
        angles = steps.to(keys.device)[:, None, :, None].double() * self.frequencies.to(keys.device).double()
        cos, sin = angles.cos().float(), angles.sin().float()
        planes = len(self.frequencies)
        turning = keys[..., self.offset : self.offset + 2 * planes].float()
        if self.interleaved:
            x, y = turning[..., 0::2], turning[..., 1::2]
        else:
            x, y = turning[..., :planes], turning[..., planes:]
        moved = [x * cos + y * sin, y * cos - x * sin]
        turned = torch.stack(moved, dim=-1).flatten(-2) if self.interleaved else torch.cat(moved, dim=-1)
        before, behind = keys[..., : self.offset], keys[..., self.offset + 2 * planes :]
        return torch.cat([before, turned.to(keys.dtype), behind], dim=-1)


@torch.no_grad()
def rotations(backbone: PreTrainedModel) -> list[Rotation | None]:
    """Rotation of each layer's keys; None for a layer whose keys do not depend on positions.

    Raises:
        ValueError: If they change with positions in a way that no turn undoes; names the backbone.
    """
    known = getattr(backbone, "_hmt_rotations", None)
    if known is not None:
        return known
    name = type(backbone).__name__
    config = backbone.config.get_text_config(decoder=True)
    if kinds := _rope_kinds(config) & set(LENGTH_DEPENDENT):
        raise ValueError(f"{name} has {', '.join(kinds)} positions, which change with the length of the text")
    if next(backbone.parameters()).is_meta:
        return [None] * config.num_hidden_layers
    training = backbone.training
    backbone.eval()
    try:
        before, after = _keys(backbone, 0), _keys(backbone, SHIFT)
    finally:
        backbone.train(training)
    frequencies = _frequencies(backbone)
    found: list[Rotation | None] = []
    for layer, (old, new) in enumerate(zip(before, after, strict=True)):
        if old is None or new is None:
            found.append(None)
            continue
        steps = torch.full((1, old.shape[2]), -SHIFT)
        turns: list[Rotation | None] = [None, *_candidates(frequencies, old.shape[-1])]
        errors = [_error(old if turn is None else turn.back(old, steps), new) for turn in turns]
        least = min(errors)
        if not least < ROUNDING:
            raise ValueError(f"positions of {name} cannot be moved: keys of layer {layer} do not turn with them")
        found.append(turns[errors.index(least)])
    backbone._hmt_rotations = found  # type: ignore[assignment]
    return found


def _candidates(frequencies: list[Tensor], width: int) -> list[Rotation]:
    """Rotations that a layer with keys of this width may have."""
    found = []
    for one in frequencies:
        turning = 2 * len(one)
        if turning > width:
            continue
        for offset in dict.fromkeys((0, width - turning)):
            found += [Rotation(one, interleaved, offset) for interleaved in (False, True)]
    return found


def _frequencies(backbone: PreTrainedModel) -> list[Tensor]:
    """Every table of rotary frequencies that a backbone has."""
    tables = {
        name: buffer.detach().float().cpu()
        for name, buffer in backbone.base_model.named_buffers()
        if name.endswith("inv_freq") and "original" not in name and buffer.dim() == 1
    }
    return list(tables.values())


def _keys(backbone: PreTrainedModel, start: int) -> list[Tensor | None]:
    """Keys (1, H, 4, d) of four tokens from a position on, per layer."""
    count = backbone.config.get_text_config(decoder=True).num_hidden_layers
    cache = Cache(layers=[DynamicLayer() for _ in range(count)])
    ids = torch.tensor([[1, 2, 0, 1]], device=backbone.device)
    places = start + torch.arange(4, device=backbone.device)[None]
    body: Any = backbone.base_model
    body(inputs_embeds=backbone.get_input_embeddings()(ids), position_ids=places, past_key_values=cache, use_cache=True)
    return [layer.keys.float().cpu() if layer.is_initialized else None for layer in cache.layers]  # type: ignore[union-attr]


def _error(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference relative to the norm of what is expected."""
    return float((got - expected).norm() / expected.norm())


def _rope_kinds(config: Any) -> set[str]:
    """Kinds of rotary positions that a configuration names, of all its layers."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    parts = [parameters, *(part for part in parameters.values() if isinstance(part, dict))]
    return {str(part.get("rope_type") or part.get("type")) for part in parts} - {"None"}
