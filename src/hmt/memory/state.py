"""Everything that passes from segment to segment, as one explicit value.

Shape legend: B rows, N bank slots, D embedding size, L fresh tokens per segment, S tail tokens, P tokens of the
unfinished segment.

File format (version 4): one safetensors file. Its tensors are those of the state under the names below; its metadata
holds `format` ("hmt.memory"), `version` and `model` (the identity of the model that wrote it, as JSON). A tensor is
little-endian and unpadded as safetensors defines; token ids are narrowed to uint16 where they fit. Nothing in the file
is executed when it is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hmt.atomic import atomic_file
from hmt.memory.bank import NO_TOKEN, Bank

FORMAT = "hmt.memory"
VERSION = 4

READABLE = ("2", "3", "4")
"""Versions that can be read. Version 2 has no `bank.merged`: nothing was merged; 3 has no `fast`: nothing was."""

NARROW = 1 << 16
"""Token ids below this are written in two bytes."""


@dataclass(frozen=True)
class ModelIdentity:
    """Which model a memory belongs to: memories of another one mean nothing to it.

    Attributes:
        name: What the user called the backbone, for messages.
        width: Embedding size D.
        settings: The memory settings that shape the state, as sorted "name=value" pairs.
        weights: Digest of the weights, or "" where it was not computed (states made while training).
    """

    name: str
    width: int
    settings: str
    weights: str = ""

    def __str__(self) -> str:
        weights = f", weights {self.weights}" if self.weights else ""
        return f"{self.name or 'unnamed model'} (width {self.width}, {self.settings}{weights})"

    def accepts(self, other: ModelIdentity) -> bool:
        """True where a memory written by `other` can be read by this model."""
        same_weights = not self.weights or not other.weights or self.weights == other.weights
        return self.width == other.width and self.settings == other.settings and same_weights


@dataclass(frozen=True, eq=False)
class MemoryState:
    """The memory of a text read so far, one row per text. Values are never changed in place.

    Attributes:
        bank: Long-term memory (in the modes short_term and rmt: the last segment's memory embeddings).
        tail_ids: (B, S) int64, last tokens before the segment; the sensory tokens are the last K of them.
        tail_valid: (B, S) bool, False where there was none yet.
        pending_ids: (B, P) int64, tokens of the unfinished segment, each row from the left.
        pending_valid: (B, P) bool.
        fast: (B,) bool, rows whose segment at hand is read fast (dynamic reading speed).
        segments_read: (B,) int64, segments completed.
        tokens_read: (B,) int64, all tokens, those of the unfinished segment included.
        model: Identity of the model that wrote it.
    """

    bank: Bank
    tail_ids: Tensor
    tail_valid: Tensor
    pending_ids: Tensor
    pending_valid: Tensor
    fast: Tensor
    segments_read: Tensor
    tokens_read: Tensor
    model: ModelIdentity

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
            return torch.zeros(batch_size, *shape, device=device, dtype=dtype)

        return cls(
            bank=Bank.empty(batch_size, bank_width, longest_segment, device, dtype),
            tail_ids=zeros(tail_tokens),
            tail_valid=zeros(tail_tokens, dtype=torch.bool),
            pending_ids=zeros(0),
            pending_valid=zeros(0, dtype=torch.bool),
            fast=zeros(dtype=torch.bool),
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
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def map(self, function: Callable[[Tensor], Tensor]) -> MemoryState:
        """The state with `function` applied to each tensor (all have the rows first)."""
        own: dict[str, Any] = {
            f.name: function(getattr(self, f.name)) for f in fields(self) if f.name not in ("bank", "model")
        }
        return replace(self, bank=self.bank.map(function), **own)

    def clone(self) -> MemoryState:
        """A copy that shares no storage."""
        return self.map(torch.clone)

    def detach(self) -> MemoryState:
        """The same values, cut from the graph that made them."""
        return self.map(torch.detach)

    def without_unfinished(self) -> MemoryState:
        """The state as it was after the last whole segment."""
        return replace(
            self,
            pending_ids=self.pending_ids[:, :0],
            pending_valid=self.pending_valid[:, :0],
            tokens_read=self.tokens_read - self.pending_counts,
        )

    def to(self, device: torch.device | str) -> MemoryState:
        """The state on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def segment_tokens(self, number: int, row: int = 0) -> Tensor | None:
        """Token ids (l,) int64 of a segment of a row, or None where the bank does not keep that segment (any more)."""
        slots = (self.bank.valid[row] & (self.bank.segments[row] == number)).nonzero()
        if not len(slots):
            return None
        tokens = self.bank.tokens[row, slots[0, 0]].long()
        return tokens[tokens != NO_TOKEN]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a safetensors file, whole or not at all.

        Raises:
            OSError: If the file cannot be written; an earlier file of that name is then untouched.
        """
        path = Path(path)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors().items()}
        if ((tensors["bank.tokens"] >= 0) & (tensors["bank.tokens"] < NARROW)).all():
            tensors["bank.tokens"] = tensors["bank.tokens"].to(torch.uint16)
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
            ValueError: If it is not a memory file, or one of another version.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no memory file at {path}")
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path} is not a memory file: {error}") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is not a memory file: format is {metadata.get('format')!r}, expected {FORMAT!r}")
        if (theirs := metadata.get("version")) not in READABLE:
            readable = " and ".join(READABLE)
            raise ValueError(
                f"{path} has memory format {theirs}, this program reads {readable}; remember the text again"
            )
        bank = {name.removeprefix("bank."): tensors.pop(name) for name in list(tensors) if name.startswith("bank.")}
        try:
            bank["tokens"] = bank["tokens"].to(torch.int32)
            bank.setdefault("merged", torch.ones_like(bank["segments"], dtype=torch.int32))
            tensors.setdefault("fast", torch.zeros_like(tensors["tokens_read"], dtype=torch.bool))
            model = ModelIdentity(**json.loads(metadata["model"]))
            return cls(bank=Bank(**bank), model=model, **tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is a damaged memory file: {error}") from error

    def __repr__(self) -> str:
        tokens = ", ".join(str(count) for count in self.tokens_read.tolist())
        kept = ", ".join(str(count) for count in self.bank.valid.sum(dim=1).tolist())
        return (
            f"MemoryState({self.batch_size} row(s): {tokens} tokens read, {kept} memory embeddings kept, "
            f"{self.nbytes / 1e3:.0f} kB, by {self.model})"
        )

    def _tensors(self) -> dict[str, Tensor]:
        own: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        bank = {f"bank.{f.name}": getattr(self.bank, f.name) for f in fields(self.bank)}
        return {name: value for name, value in (own | bank).items() if isinstance(value, Tensor)}
