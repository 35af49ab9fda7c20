"""Token ids that are too many to hold."""

from __future__ import annotations

import tempfile
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

HELD_TOKENS = 1 << 20
"""Tokens that are held in memory before they go to a file."""


class TokenStore:
    """Token ids that grow at their end: in memory while they are few, then in a temporary file that has no name.

    The file is where the system has temporary files (TMPDIR), takes 8 bytes a token, and is gone with the process.
    """

    def __init__(self) -> None:
        self._held: list[np.ndarray[Any, np.dtype[np.int64]]] = []
        self._file: IO[bytes] | None = None
        self._written = 0
        self._tokens = 0

    def __len__(self) -> int:
        return self._tokens

    def add(self, ids: list[int]) -> None:
        """Put token ids at the end.

        Raises:
            OSError: If the disk is full.
        """
        self._held.append(np.array(ids, dtype=np.int64))
        self._tokens += len(ids)
        if self._tokens - self._written >= HELD_TOKENS:
            self._write()

    def tokens(self) -> Tensor:
        """All of them, (tokens,) int64; of a file as much is in memory as is looked at."""
        if self._file is None:
            return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *self._held]))
        self._write()
        self._file.flush()
        return torch.from_numpy(np.memmap(self._file, dtype=np.int64, mode="c", shape=(self._tokens,)))

    def _write(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="hmt-tokens-")
        for ids in self._held:
            ids.tofile(self._file)
        self._held, self._written = [], self._tokens
