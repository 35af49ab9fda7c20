"""What a checkpoint must hold: the names of its weights, and their sizes and checksums in manifest.json beside them.

Every load compares sizes and Adler-32, which reads over 2 GB/s with Python alone and notices truncated files and
flipped bits; `verify` compares SHA-256 as well. Settings (config.json) may be edited: they are not listed.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

MANIFEST = "manifest.json"
LISTED = ("*.safetensors", "*.safetensors.index.json", "*/adapter_model.safetensors")


def write_manifest(folder: Path) -> None:
    """List the weights in a checkpoint directory."""
    files = sorted(file for pattern in LISTED for file in folder.glob(pattern))
    entries = {file.relative_to(folder).as_posix(): _entry(file, full=True) for file in files}
    (folder / MANIFEST).write_text(json.dumps(entries, indent=1) + "\n")


def check_manifest(find: Callable[[str], str | None], verify: bool = False) -> None:
    """Compare the files of a checkpoint with its manifest, if it has one.

    Args:
        find: Path of a file of the checkpoint by name, or None if there is no such file.
        verify: Compare SHA-256 too.

    Raises:
        OSError: If a file is missing or differs; names it.
    """
    manifest = find(MANIFEST)
    if manifest is None:
        return
    try:
        entries = json.loads(Path(manifest).read_text())
        expected = {
            name: {field: entry[field] for field in ("size", "adler32", "sha256")} for name, entry in entries.items()
        }
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise OSError(f"cannot load {manifest}: it lists no sizes and checksums") from error
    for name, entry in expected.items():
        file = find(name)
        if file is None:
            raise FileNotFoundError(f"cannot load {name}: it is missing beside {manifest}, which lists it")
        size = Path(file).stat().st_size
        if size != entry["size"]:
            raise OSError(f"cannot load {file}: it has {size} bytes, its manifest says {entry['size']}")
        if any(entry[field] != found for field, found in _entry(Path(file), full=verify).items()):
            raise OSError(f"cannot load {file}: its checksum is not that of its manifest")


def check_names(missing: set[str], unexpected: set[str], name: str) -> None:
    """Make sure that a checkpoint has all weights and no others.

    Raises:
        OSError: If not; names one.
    """
    for what, keys in (("lacks", missing), ("has the unknown", unexpected)):
        if keys:
            raise OSError(f"cannot load {name}: it {what} {min(keys)} ({len(keys)} such weights)")


def check_finite(model: nn.Module, name: str) -> None:
    """Refuse weights that are not finite; buffers may hold masks, which are minus infinity."""
    for key, weight in (*model.named_parameters(), *model.named_buffers()):
        if weight.is_meta or not weight.is_floating_point() or weight.sum(dtype=torch.float32).isfinite():
            continue
        if weight.isnan().any() or (isinstance(weight, nn.Parameter) and weight.isinf().any()):
            raise OSError(f"cannot load {name}: {key} holds values that are not finite")


def _entry(file: Path, full: bool) -> dict[str, Any]:
    adler32, sha256 = 1, hashlib.sha256()
    with file.open("rb") as handle:
        while part := handle.read(1 << 22):
            adler32 = zlib.adler32(part, adler32)
            if full:
                sha256.update(part)
    entry: dict[str, Any] = {"size": file.stat().st_size, "adler32": adler32}
    return entry | ({"sha256": sha256.hexdigest()} if full else {})
