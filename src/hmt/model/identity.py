"""Digests of weights: a model with one other value is another model.

All bytes are hashed, with SHA-256: OpenSSL runs it on the processor's own instructions at over 1 GB/s, faster than the
other hashes of Python's standard library. What was hashed is not hashed again: digests stay with their tensors until
those change, and for large models they are kept in the cache, under the state of the files they were loaded from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.utils import cached_file

from hmt.atomic import atomic_file
from hmt.builtin import cache_dir
from hmt.model.adapter import stored_names
from hmt.pretrained import locate

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.gguf")

KEPT_FROM_BYTES = 64 << 20
"""Smaller models are hashed faster than they are loaded: nothing is kept of them."""


def weights_digest(tensors: Iterable[Tensor], fresh: bool = False) -> str:
    """Digest of all bytes of some tensors, in order.

    Args:
        tensors: Weights. A tensor that was hashed before is hashed again if its storage or its version counter changed;
            in-place writes through `.data` do not count there.
        fresh: Hash every tensor again, whatever its counters say.

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


def keep_digests(weights: Mapping[str, Tensor], folder: Path | None, *how: Any) -> None:
    """Give large weights, just loaded, the digests that were kept of their files; compute and keep them the first time.

    Args:
        weights: By name, as loaded.
        folder: Directory of their files; None if their origin is not one directory.
        how: Whatever else decides about the values, such as loading options.
    """
    if folder is None or sum(tensor.nbytes for tensor in weights.values()) < KEPT_FROM_BYTES:
        return
    files = sorted(file for pattern in WEIGHT_FILES for file in folder.glob(pattern))
    state = [(str(file), (known := file.stat()).st_size, known.st_mtime_ns, known.st_ino) for file in files]
    layout = [(name, str(tensor.dtype), list(tensor.shape)) for name, tensor in weights.items()]
    key = hashlib.sha256(json.dumps([transformers.__version__, state, layout, repr(how)]).encode()).hexdigest()
    path = cache_dir() / "digests" / f"{key[:32]}.json"
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads(path.read_text())
        for name, tensor in weights.items():
            _attach(tensor, *kept[name])
        return
    digests = {name: _digests(tensor) for name, tensor in weights.items()}
    with contextlib.suppress(OSError), atomic_file(path) as unfinished:  # a cache that cannot be written keeps nothing
        unfinished.write_text(json.dumps(digests))


def backbone_weights(model: Any) -> dict[str, Tensor]:
    """Weights of the backbone without an adapter, by their names in a checkpoint."""
    weights = {f"backbone.{name}": weight for name, weight in model.backbone.state_dict(keep_vars=True).items()}
    own = {stored: weights[name] for name, stored in stored_names(model, weights).items()}
    return {name: own[name] for name in sorted(own) if name.startswith("backbone.")}


def source_digest(model: Any, options: dict[str, Any] | None = None) -> str:
    """Digest of a backbone that was just loaded from its source."""
    source, revision = model.config.backbone_source, model.config.backbone_revision
    ready = locate(source, "model").ready()
    config = cached_file(
        ready, "config.json", revision=revision, local_files_only=True, _raise_exceptions_for_missing_entries=False
    )
    folder = Path(config).parent if config else None
    if folder is not None and (folder / "adapter_config.json").exists():  # its weights are another directory's
        folder = None
    weights = backbone_weights(model)
    keep_digests(weights, folder, model.config.backbone_gguf, options or {})
    return weights_digest(weights.values())


@torch.no_grad()
def _digests(tensor: Tensor, fresh: bool = False) -> tuple[str, str]:
    """Digest of a tensor's bytes, and of its values rounded to bfloat16; shapes and formats count."""
    known = getattr(tensor, "_hmt_digests", None)
    if known is not None and not fresh and known[0] == _state(tensor):
        return known[1]
    exact = _hash(tensor)
    narrow = tensor.is_floating_point() and tensor.dtype != torch.bfloat16
    return _attach(tensor, exact, _hash(tensor.to(torch.bfloat16)) if narrow else exact)


def _attach(tensor: Tensor, exact: str, rounded: str) -> tuple[str, str]:
    if not tensor.is_inference():  # such tensors count no versions
        tensor._hmt_digests = _state(tensor), (exact, rounded)  # type: ignore[attr-defined]
    return exact, rounded


def _state(tensor: Tensor) -> tuple[Any, ...]:
    return tensor._version, tensor.data_ptr(), tensor.dtype, tensor.shape


def _hash(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    if not tensor.is_meta:  # weights that are offloaded to a disk are not read back for this
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
