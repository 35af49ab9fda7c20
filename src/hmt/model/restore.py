"""Load a checkpoint, whole or completed from its backbone's source; refuse what is damaged or does not fit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import cached_file, logging

from hmt.config import MEMORY_FIELDS, as_first_written, fields_with, memory_fields
from hmt.memory.identity import cache_digests, comparable, same_weights, weights_digest
from hmt.memory.recall import Memory
from hmt.model.adapter import ADAPTER_FOLDER, ADAPTER_PREFIX, backbone_weights, freeze_backbone, load_adapter
from hmt.model.backbone import embedding_size
from hmt.model.configuration_hmt import HMTConfig
from hmt.model.manifest import check_finite, check_manifest, check_names
from hmt.pretrained import check_shapes, first_line, load_backbone, locate, resolve_own_config, stored_shapes

logger = logging.get_logger(__name__)

WEIGHTS_FILE = "model.safetensors"
EARLIER_MEMORY_FILE = "memory.safetensors"
"""Earlier checkpoints keep the memory's weights alone under this name."""

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


def load(
    cls: Any,
    path: str | os.PathLike[str],
    *args: Any,
    config: Any = None,
    verify: bool = False,
    **kwargs: Any,
) -> Any:
    """Load a checkpoint; see `HMTForCausalLM.from_pretrained`."""
    location = locate(os.fspath(path), "checkpoint")
    name = location.source
    if location.local:
        kwargs["local_files_only"] = True
    # Always given: transformers would ask the user otherwise, and read the answer from standard input.
    trust = kwargs["trust_remote_code"] = kwargs.get("trust_remote_code") is True
    with_report = kwargs.pop("output_loading_info", False)
    fields = {field: kwargs.pop(field) for field in MEMORY_FIELDS if field in kwargs}
    hub = {option: kwargs[option] for option in HUB_OPTIONS if option in kwargs}

    def find(file: str) -> str | None:
        return cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub)

    values = _read_config(name, hub)
    if trust:
        values = resolve_own_config(values, name)
    stored = HMTConfig.from_dict(values)
    if config is None or fields:
        config = HMTConfig.from_dict((values if config is None else config.to_dict()) | fields)
    _check_shapes(config, values, name)
    check_manifest(find, verify)
    memory_file = find(EARLIER_MEMORY_FILE) or (find(WEIGHTS_FILE) if stored.backbone_source else None)
    folder = Path(find("config.json") or name).parent
    try:
        if memory_file is not None:
            options = {option: value for option, value in kwargs.items() if option not in HUB_OPTIONS}
            model = _complete(cls, config, stored, Path(memory_file), folder, options)
            if find("generation_config.json"):
                model.generation_config = GenerationConfig.from_pretrained(name, **hub)
        else:
            shapes = stored_shapes(folder.glob("model*.safetensors"))
            check_shapes(shapes, lambda: cls(config, trust_backbone_code=trust), config)
            model = _load_whole(cls, name, args, config, stored, kwargs | {"trust_backbone_code": trust})
            cache_digests(backbone_weights(model), folder, kwargs)
        if find(f"{ADAPTER_FOLDER}/adapter_config.json"):
            load_adapter(model, find(f"{ADAPTER_FOLDER}/adapter_model.safetensors"), name)
    except (SafetensorError, RuntimeError) as error:
        raise OSError(f"cannot load {name}: {first_line(error)}") from error
    check_finite(model, name)
    model.eval()
    report: dict[str, Any] = {
        "missing_keys": set(),
        "unexpected_keys": set(),
        "mismatched_keys": set(),
        "error_msgs": [],
    }
    return (model, report) if with_report else model  # nothing is missing: that was refused


def _load_whole(
    cls: Any, name: str, args: tuple[Any, ...], config: HMTConfig, stored: HMTConfig, kwargs: dict[str, Any]
) -> Any:
    """The model of a checkpoint with all weights."""
    base: Any = PreTrainedModel.from_pretrained
    model, report = base.__func__(cls, name, *args, config=config, output_loading_info=True, **kwargs)
    known = _learned_names(model, stored)
    unexpected = {key for key in report["unexpected_keys"] if not key.startswith(ADAPTER_PREFIX)}
    missing = {key for key in report["missing_keys"] if key.startswith("backbone.") or key in known}
    check_names(missing, unexpected - known, name)
    if report["missing_keys"]:
        initialise_only(model, set(report["missing_keys"]))
    return model


def _complete(cls: Any, config: HMTConfig, stored: HMTConfig, file: Path, folder: Path, options: dict[str, Any]) -> Any:
    """The model of the memory's weights in a file and the backbone that its configuration names."""
    if config.backbone_source.startswith("."):
        config.backbone_source = os.path.abspath(folder / config.backbone_source)
    source, expected = config.backbone_source, stored.backbone_digest
    width = embedding_size(config.get_text_config())
    check_shapes(stored_shapes([file]), lambda: Memory(config, width), prefix="memory.")
    backbone = load_backbone(source, gguf_file=config.backbone_gguf, revision=config.backbone_revision, **options)
    model = cls(config, backbone=backbone)
    config.backbone_digest = source_digest(model, options)
    if expected and not comparable(config.backbone_digest, expected):
        logger.warning("%s in this number format cannot be compared with the backbone of %s", source, folder)
    elif expected and not same_weights(config.backbone_digest, expected):
        raise OSError(f"the weights of {source} are not those that the memory in {folder} was trained with")
    weights = {key: weight for key, weight in load_file(file).items() if not key.startswith(ADAPTER_PREFIX)}
    known = _learned_names(model, stored)
    check_names(known - set(weights), set(weights) - known, str(folder))
    model.initialise_memory()  # for parameters of another mode, which the checkpoint lacks
    nn.Module.load_state_dict(model, weights, strict=False)
    freeze_backbone(model)
    return model


def source_digest(model: Any, options: dict[str, Any] | None = None) -> str:
    """Digest of a backbone that was just loaded from its source."""
    revision = model.config.backbone_revision
    config = cached_file(
        locate(model.config.backbone_source, "model").ready(), "config.json", revision=revision,
        local_files_only=True, _raise_exceptions_for_missing_entries=False,
    )  # fmt: skip
    weights = backbone_weights(model)
    if config is not None and not Path(config).with_name("adapter_config.json").exists():  # its weights lie elsewhere
        cache_digests(weights, Path(config).parent, model.config.backbone_gguf, options or {})
    return weights_digest(weights.values())


def initialise_only(model: Any, new: set[str]) -> None:
    """Fit some learned weights to the backbone, and leave the others as they are."""
    kept = {name: weight.clone() for name, weight in _learned_weights(model).items() if name not in new}
    for tensor in (*model.memory.parameters(), *model.memory.buffers(), *model.extensions.parameters()):
        setattr(tensor, "_is_hf_initialized", False)  # noqa: B010  (transformers' own mark)
    model.initialise_memory()
    nn.Module.load_state_dict(model, kept, strict=False)


def _learned_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights but the backbone's."""
    return {name: weight for name, weight in model.state_dict().items() if not name.startswith("backbone.")}


def _learned_names(model: Any, stored: HMTConfig) -> set[str]:
    """Names of the learned weights in a checkpoint with this configuration."""
    if memory_fields(stored) != memory_fields(model.config):
        state = torch.get_rng_state()
        model = type(model)(stored, backbone=model.backbone)
        torch.set_rng_state(state)
    return set(_learned_weights(model))


def _read_config(path: str, hub: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a checkpoint."""
    values, _ = HMTConfig.get_config_dict(path, **hub)
    if "model_type" not in values:
        raise OSError(f"{path} is no checkpoint: it has no config.json with a model_type")
    if values["model_type"] != HMTConfig.model_type:
        advice = "wrap it with from_backbone (--model_name), do not load it as a checkpoint"
        raise ValueError(f"{path} holds a {values['model_type']} model without a memory; {advice}")
    return as_first_written(values)


def _check_shapes(config: HMTConfig, values: dict[str, Any], path: str) -> None:
    """Refuse settings that need parameters of other shapes than a checkpoint's."""
    for name in fields_with("shapes"):
        own, theirs = getattr(config, name), values.get(name)  # older checkpoints lack newer fields
        if None not in (own, theirs) and own != theirs:
            raise ValueError(f"{name} is {theirs} in {path} and cannot be read as {own}")
