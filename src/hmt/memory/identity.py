"""Identity of the model that a memory belongs to: settings, and a digest of all weights.

SHA-256 runs on the processor's own instructions at over 1 GB/s. A tensor is hashed once until it changes, and the
digests of large models are kept in the cache under the state of the files they were loaded from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from hmt.atomic import atomic_file
from hmt.pretrained import cache_dir

WIDE = {"float32", "bfloat16", "float64"}
"""Number formats whose weights can be compared after rounding to bfloat16."""

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.gguf")

CACHED_FROM_BYTES = 64 << 20
"""Smaller models are hashed faster than they are loaded: their digests are not cached."""


@dataclass(frozen=True)
class ModelIdentity:
    """Model that a memory was written by; a model with another identity cannot read it.

    Attributes:
        name: The user's name for the backbone, for messages.
        width: Embedding size D.
        settings: Memory settings that shape the state, as sorted "name=value" pairs.
        weights: Digest of the weights, or "" for states made while training.
    """

    name: str
    width: int
    settings: str
    weights: str = ""

    def __str__(self) -> str:
        weights = f", weights {self.weights}" if self.weights else ""
        return f"{self.name or 'unnamed model'} (width {self.width}, {self.settings}{weights})"

    def accepts(self, other: ModelIdentity) -> bool:
        """True if this model can read a memory written by `other`."""
        known = bool(self.weights) and bool(other.weights)
        alike = self.width == other.width and self.settings == other.settings
        return alike and (not known or same_weights(self.weights, other.weights))


def comparable(one: str, other: str) -> bool:
    """True if two digests can tell equal weights from different ones: equal number formats, or wide ones."""
    formats = [digest.partition(":")[0] for digest in (one, other)]
    return formats[0] == formats[1] or all(WIDE.issuperset(names.split("+")) for names in formats)


def same_weights(one: str, other: str) -> bool:
    """Compare two digests: exactly if the number formats agree, else after rounding to bfloat16."""
    if one.partition(":")[0] == other.partition(":")[0]:
        return one == other
    return comparable(one, other) and one.rpartition(":")[2] == other.rpartition(":")[2]


def weights_digest(tensors: Iterable[Tensor], fresh: bool = False) -> str:
    """Digest of all bytes of some tensors, in order.

    Args:
        tensors: Weights. A tensor that was hashed before is hashed again if its storage or its version counter changed;
            in-place writes through `.data` are not counted there.
        fresh: Hash every tensor again.

    Returns:
        "formats:exact:rounded": number formats, digest of the bytes, and digest of the values rounded to bfloat16.
    """
    formats, exact, rounded = set(), hashlib.sha256(), hashlib.sha256()
    for tensor in tensors:
        own = _digests(tensor, fresh)
        formats.add(str(tensor.dtype).removeprefix("torch."))
        exact.update(own[0].encode())
        rounded.update(own[1].encode())
    return f"{'+'.join(sorted(formats))}:{exact.hexdigest()[:16]}:{rounded.hexdigest()[:16]}"


def cache_digests(weights: Mapping[str, Tensor], folder: Path, *how: Any) -> None:
    """Give just loaded weights the cached digests of their files; compute and cache them the first time.

    Args:
        weights: By name, as loaded.
        folder: Directory of their files.
        how: Anything else that decides about the values, such as loading options.
    """
    if sum(tensor.nbytes for tensor in weights.values()) < CACHED_FROM_BYTES:
        return
    files = sorted(file for pattern in WEIGHT_FILES for file in folder.glob(pattern))
    state = [(str(file), (known := file.stat()).st_size, known.st_mtime_ns, known.st_ino) for file in files]
    layout = [(name, str(tensor.dtype), list(tensor.shape)) for name, tensor in weights.items()]
    key = hashlib.sha256(json.dumps([transformers.__version__, state, layout, repr(how)]).encode()).hexdigest()
    path = cache_dir() / "digests" / f"{key[:32]}.json"
    with contextlib.suppress(OSError, ValueError):
        cached = json.loads(path.read_text())
        for name, tensor in weights.items():
            _attach(tensor, *cached[name])
        return
    digests = {name: _digests(tensor) for name, tensor in weights.items()}
    with contextlib.suppress(OSError), atomic_file(path) as unfinished:  # the cache may be read-only
        unfinished.write_text(json.dumps(digests))


@torch.no_grad()
def _digests(tensor: Tensor, fresh: bool = False) -> tuple[str, str]:
    """Digest of a tensor's bytes, and of its values rounded to bfloat16; shapes and formats count."""
    known = getattr(tensor, "_hmt_digests", None)
    if known is not None and not fresh and known[0] == _version(tensor):
        return known[1]
    exact = _hash(tensor)
    narrow = tensor.is_floating_point() and tensor.dtype != torch.bfloat16
    return _attach(tensor, exact, _hash(tensor.to(torch.bfloat16)) if narrow else exact)


def _attach(tensor: Tensor, exact: str, rounded: str) -> tuple[str, str]:
    if not tensor.is_inference():  # these have no version counter
        tensor._hmt_digests = _version(tensor), (exact, rounded)  # type: ignore[attr-defined]
    return exact, rounded


def _version(tensor: Tensor) -> tuple[Any, ...]:
    return tensor._version, tensor.data_ptr(), tensor.dtype, tensor.shape


def _hash(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    if not tensor.is_meta:  # weights offloaded to disk are not read back for this
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
