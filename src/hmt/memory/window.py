"""The window as a value: keys and values that the next token attends to.

Each slot has a position, a validity and a kind, which live on the CPU, so that no step waits for the device. Keys and
values live in buffers with room for more: a window that is the newest of its buffer grows in place, any other is copied
first. A buffer's used part is never written again, so windows can be kept, forked and compared. Windows are filled by
model/window_attention.py.

Shape legend: B rows, n slots of the window, H heads, d their width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

TOKEN, SINK, RECALLED, PROMPT = range(4)
"""Kinds of slots."""


class Buffer:
    """Keys and values of one or more windows, a tensor (B, H, capacity, d) each per layer; None for a layer without.

    Attributes:
        keys: Per layer.
        values: Per layer.
        filled: Slots that some window uses already.
    """

    def __init__(self, keys: list[Tensor | None], values: list[Tensor | None], filled: int) -> None:
        self.keys = keys
        self.values = values
        self.filled = filled

    @property
    def capacity(self) -> int:
        """Slots."""
        return next((keys.shape[2] for keys in self.keys if keys is not None), 0)


@dataclass(frozen=True, eq=False)
class Window:
    """Slots that the backbone attends to.

    Attributes:
        buffer: Keys and values in the first n slots of a buffer; None before anything was read.
        positions: (B, n) int64.
        valid: (B, n) bool, False where a row has no token in the slot.
        kinds: (B, n) int8, TOKEN, SINK, RECALLED or PROMPT.
        next_position: (B,) int64, position of each row's next token.
    """

    buffer: Buffer | None
    positions: Tensor
    valid: Tensor
    kinds: Tensor
    next_position: Tensor

    @classmethod
    def empty(cls, batch_size: int) -> Window:
        """The window of `batch_size` rows before their first token."""
        nothing = torch.zeros(batch_size, 0, dtype=torch.long)
        return cls(None, nothing, nothing.bool(), nothing.to(torch.int8), torch.zeros(batch_size, dtype=torch.long))

    @property
    def batch_size(self) -> int:
        """Rows B."""
        return len(self.next_position)

    @property
    def slots(self) -> int:
        """Slots n, of which some may be out of sight already."""
        return self.positions.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values in its slots."""
        tensors = [] if self.buffer is None else [*self.buffer.keys, *self.buffer.values]
        return sum(t[:, :, : self.slots].nbytes for t in tensors if t is not None)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the window by name, cut to the slots in use."""
        found = {name: getattr(self, name) for name in ("positions", "valid", "kinds", "next_position")}
        if self.buffer is not None:
            for part in ("keys", "values"):
                layers = enumerate(getattr(self.buffer, part))
                found |= {f"{part}.{layer}": t[:, :, : self.slots] for layer, t in layers if t is not None}
        return found

    @classmethod
    def of(cls, tensors: dict[str, Tensor], layers: int) -> Window:
        """The window that `tensors` came from, of a backbone with so many layers."""
        parts: Any = [[tensors.get(f"{part}.{layer}") for layer in range(layers)] for part in ("keys", "values")]
        slots = tensors["positions"].shape[1]
        buffer = Buffer(parts[0], parts[1], slots) if any(t is not None for t in parts[0]) else None
        return cls(buffer, *(tensors[name] for name in ("positions", "valid", "kinds", "next_position")))

    def map(self, function: Callable[[Tensor], Tensor]) -> Window:
        """The window with `function` applied to each tensor (all have the rows first)."""
        buffer = self.buffer
        if buffer is not None:
            keys, values = (
                [None if t is None else function(t[:, :, : self.slots]) for t in tensors]
                for tensors in (buffer.keys, buffer.values)
            )
            buffer = Buffer(keys, values, self.slots)
        about = (function(t).cpu() for t in (self.positions, self.valid, self.kinds, self.next_position))
        return Window(buffer, *about)

    def visible(self, reach: int | None) -> Tensor:
        """Slots that a token at each row's next position sees, (B, n) bool."""
        if reach is None:
            return self.valid
        near = self.next_position[:, None] - self.positions <= reach
        return self.valid & ((self.kinds != TOKEN) | near)

    def without(self, kind: int, rows: Tensor | None = None) -> Window:
        """The window without its slots of one kind, in some rows (B,) bool or in all."""
        gone = self.kinds == kind
        if rows is not None:
            gone = gone & rows[:, None]
        return replace(self, valid=self.valid & ~gone) if gone.any() else self

    def oldest(self, reach: int | None) -> Tensor:
        """Position of the oldest token in sight of each row, (B,) int64; its next position where there is none."""
        tokens = self.visible(reach) & ((self.kinds == TOKEN) | (self.kinds == PROMPT))
        if not self.slots:
            return self.next_position
        return torch.where(tokens, self.positions, self.next_position[:, None]).amin(dim=1)


@dataclass(frozen=True, eq=False)
class StateWindow:
    """The window of a backbone that carries a state instead of keys and values, such as Mamba: one cache per row.

    Attributes:
        caches: The backbone's own cache of each row; None before the first token.
        next_position: (B,) int64, tokens read.
    """

    caches: tuple[Any, ...]
    next_position: Tensor

    @classmethod
    def empty(cls, batch_size: int) -> StateWindow:
        """The window of `batch_size` rows before their first token."""
        return cls((None,) * batch_size, torch.zeros(batch_size, dtype=torch.long))

    @property
    def batch_size(self) -> int:
        """Rows B."""
        return len(self.caches)

    @property
    def slots(self) -> int:
        """A state has no slots."""
        return 0

    @property
    def nbytes(self) -> int:
        """Bytes of the states."""
        return sum(tensor.nbytes for cache in self.caches for tensor in state_tensors(cache).values())

    def map(self, function: Callable[[Tensor], Tensor]) -> StateWindow:
        """The window with `function` applied to its rows."""
        rows = function(torch.arange(self.batch_size)).cpu()
        return StateWindow(tuple(self.caches[row] for row in rows.tolist()), function(self.next_position).cpu())

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the states by name: row, layer and the cache's own name of it."""
        found = {"next_position": self.next_position}
        for row, cache in enumerate(self.caches):
            found |= {f"rows.{row}.{name}": tensor for name, tensor in state_tensors(cache).items()}
        return found

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> StateWindow:
        """The window that `tensors` came from; its caches are dictionaries until they are used."""
        next_position = tensors["next_position"]
        rows: list[dict[str, Tensor]] = [{} for _ in range(len(next_position))]
        for name, tensor in tensors.items():
            if name.startswith("rows."):
                _, row, rest = name.split(".", 2)
                rows[int(row)][rest] = tensor
        return cls(tuple(row or None for row in rows), next_position)


def state_tensors(cache: Any) -> dict[str, Tensor]:
    """Tensors that a cache of transformers holds in its layers, by layer and name."""
    if isinstance(cache, dict):
        return cache
    found: dict[str, Tensor] = {}
    for number, layer in enumerate(getattr(cache, "layers", [])):
        for name, value in vars(layer).items():
            if isinstance(value, dict):
                parts: Any = value.items()
            else:
                parts = enumerate(value) if isinstance(value, list) else [("", value)]
            found |= {f"{number}.{name}.{key}": part for key, part in parts if isinstance(part, Tensor)}
    return found
