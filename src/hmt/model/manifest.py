"""Sizes and checksums of the weights in a checkpoint, in manifest.json beside them.

Every load compares sizes and Adler-32 (over 2 GB/s), which shows truncated files and flipped bits; `verify` compares
SHA-256 as well. Settings such as config.json may be edited and are not listed.
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

from hmt.files import read_settings

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
        entries = {name: dict(entry) for name, entry in read_settings(Path(manifest)).items()}
    except (ValueError, TypeError) as error:
        raise OSError(f"cannot load {manifest}: it lists no sizes and checksums") from error
    for name, expected in entries.items():
        file = find(name)
        if file is None:
            raise FileNotFoundError(f"cannot load {name}: it is missing beside {manifest}, which lists it")
        for field, found in _entry(Path(file), full=verify).items():
            if expected.get(field) != found:
                raise OSError(f"cannot load {file}: its {field} is {found}, its manifest says {expected.get(field)}")


def check_names(missing: set[str], unexpected: set[str], name: str) -> None:
    """Refuse a checkpoint that lacks weights or has others.

    Raises:
        OSError: Naming one of them.
    """
    for verb, keys in (("lacks", missing), ("has the unknown", unexpected)):
        if keys:
            raise OSError(f"cannot load {name}: it {verb} {min(keys)} ({len(keys)} such weights)")


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
