"""Everything that passes from segment to segment, as one explicit value, and its file.

Shape legend: B rows, N bank slots, D embedding size, L fresh tokens per segment, S tail tokens, P tokens of the
unfinished segment.

File format (version 5): one safetensors file. Its tensors are those of the state under the names below; its metadata
holds `format` ("hmt.memory"), `version` and `model` (the identity of the model that wrote it, as JSON). A compact file
has no window: the last tokens are read once more when it is used. An exact file has the window's keys and values too
(`window.*`), so that the restored run is the uninterrupted one. Token ids are narrowed to uint16 where they fit.
Nothing in the file is executed when it is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hmt.atomic import atomic_file
from hmt.memory.bank import NO_TOKEN, Bank
from hmt.memory.identity import ModelIdentity
from hmt.memory.validation import state_fields
from hmt.memory.window import Window

FORMAT = "hmt.memory"
VERSION = 5
"""The one version that is read: earlier files belong to models whose settings no longer exist."""

NARROW = 1 << 16
"""Token ids below this are written in two bytes."""


@dataclass(frozen=True, eq=False)
class MemoryState:
    """The memory of a text read so far, one row per text. Values are never changed in place.

    Attributes:
        bank: Long-term memory (in the modes short_term and rmt: the last segment's memory embeddings).
        tail_ids: (B, S) int64, last tokens before the segment; the sensory tokens are the last K of them.
        tail_valid: (B, S) bool, False where there was none yet.
        pending_ids: (B, P) int64, tokens of the unfinished segment, each row from the left.
        pending_valid: (B, P) bool.
        segments_read: (B,) int64, segments completed.
        tokens_read: (B,) int64, all tokens, those of the unfinished segment included.
        model: Identity of the model that wrote it.
        window: `Window` or `StateWindow` that the next token attends to; None where it has to be built from token ids,
            and the tensors of one where it was read from a file and not used yet.
        asked: (B,) int64, tokens of the unfinished segment that the query of the window's prompt has read.
        extras: State of extensions by name, each tensor with the rows first.
    """

    bank: Bank
    tail_ids: Tensor
    tail_valid: Tensor
    pending_ids: Tensor
    pending_valid: Tensor
    segments_read: Tensor
    tokens_read: Tensor
    model: ModelIdentity
    window: Any = None
    asked: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def initial(
        cls,
        batch_size: int,
        *,
        bank_width: int,
        longest_segment: int,
        tail_tokens: int,
        model: ModelIdentity,
        device: torch.device,
        dtype: torch.dtype,
    ) -> MemoryState:
        """The state before the first token of `batch_size` texts; `bank_width` is D, or 0 without embeddings."""

        def zeros(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(batch_size, *shape, dtype=dtype)

        return cls(
            bank=Bank.empty(batch_size, bank_width, longest_segment, device, dtype),
            tail_ids=zeros(tail_tokens),
            tail_valid=zeros(tail_tokens, dtype=torch.bool),
            pending_ids=zeros(0),
            pending_valid=zeros(0, dtype=torch.bool),
            segments_read=zeros(),
            tokens_read=zeros(),
            model=model,
        )

    @property
    def batch_size(self) -> int:
        """Rows B."""
        return self.tokens_read.shape[0]

    @property
    def pending_counts(self) -> Tensor:
        """Tokens of the unfinished segment, (B,) int64."""
        return self.pending_valid.sum(dim=1)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, the window included."""
        return sum(t.nbytes for t in self._tensors().values()) + (
            0 if self.window is None or isinstance(self.window, dict) else self.window.nbytes
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> MemoryState:
        """The state with `function` applied to each tensor (all have the rows first)."""
        own: Any = {f.name: getattr(self, f.name) for f in fields(self)}
        own = {name: function(value) for name, value in own.items() if isinstance(value, Tensor)}
        return replace(
            self,
            bank=self.bank.map(function),
            window=self.window if self.window is None or isinstance(self.window, dict) else self.window.map(function),
            extras={name: function(value) for name, value in self.extras.items()},
            **own,
        )

    def clone(self) -> MemoryState:
        """A copy that shares no storage."""
        return self.map(torch.clone)

    def detach(self) -> MemoryState:
        """The same values, cut from the graph that made them."""
        return self.map(torch.detach)

    def compact(self) -> MemoryState:
        """The state without its window, as a compact file holds it."""
        return replace(self, window=None, asked=None)

    def to(self, device: torch.device | str) -> MemoryState:
        """The state with its embeddings on another device; token ids and counters stay on the CPU."""
        bank = replace(self.bank, embeddings=self.bank.embeddings.to(device))
        window = self.window
        if window is not None and not isinstance(window, dict):
            window = window.map(lambda tensor: tensor.to(device))
        extras = {name: value.to(device) for name, value in self.extras.items()}
        return replace(self, bank=bank, window=window, extras=extras)

    def segment_tokens(self, number: int, row: int = 0) -> Tensor | None:
        """Token ids (l,) int64 of a segment of a row, or None where the bank does not keep that segment (any more)."""
        slots = (self.bank.valid[row] & (self.bank.segments[row] == number)).nonzero()
        if not len(slots):
            return None
        tokens = self.bank.tokens[row, slots[0, 0]].long()
        return tokens[tokens != NO_TOKEN]

    def save(self, path: str | os.PathLike[str], exact: bool = False) -> None:
        """Write the state to a safetensors file, whole or not at all.

        Args:
            path: The file.
            exact: Store the window too, so that the restored run is the uninterrupted one.

        Raises:
            OSError: If the file cannot be written; an earlier file of that name is then untouched.
            ValueError: If the window cannot be stored (`exact`).
        """
        path = Path(path)
        tensors = self._tensors()
        # A state of constant size is all that such a backbone knows of the text: it is always kept.
        if self.window is not None and (exact or not isinstance(self.window, Window)):
            tensors |= {f"window.{name}": value for name, value in _window_tensors(self.window).items()}
        elif not exact:
            tensors.pop("asked", None)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        for name in ("bank.tokens", "tail_ids", "pending_ids"):
            values = tensors[name]
            if ((values >= 0) & (values < NARROW)).all():
                tensors[name] = values.to(torch.uint16)
        metadata = {"format": FORMAT, "version": str(VERSION), "model": json.dumps(asdict(self.model))}
        try:
            with atomic_file(path) as unfinished:
                save_file(tensors, unfinished, metadata=metadata)
        except SafetensorError as error:
            raise OSError(f"cannot write memory file {path}: {error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> MemoryState:
        """Read a state that `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a memory file, is damaged, or is one of another version.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no memory file at {path}")
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a memory file: {error}") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is not a memory file: format is {metadata.get('format')!r}, expected {FORMAT!r}")
        if (theirs := metadata.get("version")) != str(VERSION):
            raise ValueError(f"{path} has memory format {theirs}, expected {VERSION}; remember the text again")
        try:
            return cls(**state_fields(tensors, metadata.get("model", ""))).to(device)
        except ValueError as error:
            raise ValueError(f"{path} is a damaged memory file: {error}") from error

    def __repr__(self) -> str:
        tokens = ", ".join(str(count) for count in self.tokens_read.tolist())
        kept = ", ".join(str(count) for count in self.bank.valid.sum(dim=1).tolist())
        return (
            f"MemoryState({self.batch_size} row(s): {tokens} tokens read, {kept} bank slots filled, "
            f"{self.nbytes / 1e3:.0f} kB, by {self.model})"
        )

    def _tensors(self) -> dict[str, Tensor]:
        own: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        bank = {f"bank.{f.name}": getattr(self.bank, f.name) for f in fields(self.bank)}
        extras = {f"extras.{name}": value for name, value in self.extras.items()}
        return {name: value for name, value in (own | bank | extras).items() if isinstance(value, Tensor)}


def _window_tensors(window: Any) -> dict[str, Tensor]:
    return window if isinstance(window, dict) else window.tensors()
