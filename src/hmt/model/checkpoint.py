"""Wrap a backbone, save what was learned, and load it; what is damaged or does not fit is refused.

A checkpoint directory holds

    config.json          HMTConfig, with the backbone's configuration, its source and the digest of its weights
    model.safetensors    all weights, or the memory's alone if the backbone is frozen and can be found at its source
    adapter/             adapter in PEFT's own format, if there is one
    manifest.json        sizes and checksums of the weights

Weights have the names they have without an adapter. `model.safetensors` repeats an adapter's weights as `adapter.*`, so
that the one file restores a model under transformers' Trainer.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import cached_file, logging

from hmt.config import MEMORY_FIELDS, MemoryConfig, fields_with, memory_fields
from hmt.memory.identity import cache_digests, comparable, same_weights, weights_digest
from hmt.memory.recall import Memory
from hmt.memory.retention import retention_policy
from hmt.model.adapter import (
    ADAPTER_FOLDER,
    ADAPTER_PREFIX,
    backbone_weights,
    freeze_backbone,
    has_adapter,
    load_adapter,
    save_adapter,
    stored_names,
)
from hmt.model.backbone import check_backbone, embedding_size, fitting_settings, vocabulary_size
from hmt.model.configuration_hmt import HMTConfig
from hmt.model.manifest import MANIFEST, check_finite, check_manifest, check_names, write_manifest
from hmt.pretrained import (
    bos_marks_turns,
    check_shapes,
    first_line,
    load_backbone,
    locate,
    looks_like_a_path,
    read_checkpoint_config,
    resolve_own_config,
    stored_shapes,
)

logger = logging.get_logger(__name__)

WEIGHTS_FILE = "model.safetensors"
EARLIER_MEMORY_FILE = "memory.safetensors"
"""Earlier checkpoints keep the memory's weights alone under this name."""

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
PUSH_OPTIONS = ("commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")


def wrap(
    cls: Any,
    name_or_path_or_model: str | os.PathLike[str] | PreTrainedModel,
    config: MemoryConfig | None,
    fields: dict[str, Any],
    **loading: Any,
) -> Any:
    """Give a causal LM a memory that has learned nothing yet; see `HMTForCausalLM.from_backbone`.

    Args:
        cls: Class of the model.
        name_or_path_or_model: The causal LM, or its name.
        config: Memory settings.
        fields: Memory settings that override them.
        loading: `gguf_file`, `dtype`, `revision` and `trust_remote_code` of `load_backbone`.
    """
    if unknown := set(fields) - set(MEMORY_FIELDS):
        raise ValueError(f"HMTConfig has no field {', '.join(sorted(unknown))}; it has {', '.join(MEMORY_FIELDS)}")
    fields = (memory_fields(config) if config is not None else {}) | fields
    settings = MemoryConfig(**fields)
    settings.check()  # before anything is loaded
    retention_policy(settings.memory_policy)
    source, dtype = "", loading["dtype"]
    if isinstance(name_or_path_or_model, nn.Module):
        backbone: Any = name_or_path_or_model
        if dtype is not None:
            backbone.to(dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    else:
        source = os.fspath(name_or_path_or_model)
        if (path := Path(source).expanduser()).is_dir():
            source = os.path.abspath(path)
        backbone = load_backbone(source, **loading)
        check_finite(backbone, source)
    check_backbone(backbone)
    fields |= fitting_settings(backbone, settings)
    has_prompts = MemoryConfig(**fields).prompt_tokens > 0
    name, revision = source or backbone.name_or_path, loading["revision"]
    model = cls(
        HMTConfig(
            backbone_config=getattr(backbone, "config", None),
            backbone_source=source,
            backbone_gguf=loading["gguf_file"],
            backbone_revision=revision,
            bos_marks_turns=has_prompts and bos_marks_turns(name, revision, loading["trust_remote_code"]),
            **fields,
        ),
        backbone=backbone,
    )
    model.config.backbone_digest = source_digest(model) if source else ""
    model.initialise_memory()
    return model.train(backbone.training)


def resize_token_embeddings(model: Any, *args: Any, **kwargs: Any) -> nn.Module:
    """Resize the vocabulary of backbone, memory and configuration; buffers of one value a token are computed anew."""
    before = vocabulary_size(model.backbone)
    embeddings = PreTrainedModel.resize_token_embeddings(model, *args, **kwargs)
    model.config.vocab_size = after = vocabulary_size(model.backbone)
    buffers = {name: buffer for name, buffer in model.named_buffers() if not name.startswith("backbone.")}
    sized = {name for name, buffer in buffers.items() if buffer.shape == (before,)}
    if sized and after != before:
        for name in sized:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, buffers[name].new_zeros(after))
        initialise_only(model, sized)
    return embeddings


def save(
    model: Any,
    save_directory: str | os.PathLike[str],
    *,
    state_dict: Mapping[str, Tensor] | None = None,
    save_backbone: bool | None = None,
    push_to_hub: bool = False,
    **kwargs: Any,
) -> None:
    """Save a model; see `HMTForCausalLM.save_pretrained`."""
    if not kwargs.get("is_main_process", True):
        return
    path = Path(save_directory)
    if push_to_hub:
        options = {name: kwargs.pop(name) for name in PUSH_OPTIONS if name in kwargs}
        model.push_to_hub(kwargs.pop("repo_id", path.name), **options)
    weights = model.state_dict() if state_dict is None else state_dict
    stored = stored_names(model, weights)
    adapted = any(name.startswith(ADAPTER_PREFIX) for name in stored.values())
    if adapted and not has_adapter(model):
        raise ValueError("the adapter was put around the whole model: save the PeftModel, or merge the adapter first")
    own = {stored[name]: weight for name, weight in weights.items()}
    if save_backbone is None:
        save_backbone = _backbone_changed(model, backbone_weights(model) if state_dict is None else own)
    if not (save_backbone or model.config.backbone_source):
        raise ValueError(
            "save_backbone=False needs a backbone that was loaded by name, got one that was given as a model"
        )
    path.mkdir(parents=True, exist_ok=True)
    for stale in (*path.glob("model*.safetensors*"), path / EARLIER_MEMORY_FILE, path / MANIFEST):
        stale.unlink(missing_ok=True)
    shutil.rmtree(path / ADAPTER_FOLDER, ignore_errors=True)
    model.config.vocab_size = model.backbone.config.get_text_config(decoder=True).vocab_size
    model.config.architectures = [type(model).__name__]
    # Copies, since a safetensors file holds no tensors that share storage.
    learned = {name: w.detach().cpu().clone() for name, w in own.items() if not name.startswith("backbone.")}
    if save_backbone:
        PreTrainedModel.save_pretrained(model, path, state_dict=own | learned, **kwargs)
    else:
        save_file(learned, path / WEIGHTS_FILE, metadata={"format": "pt"})
        model.generation_config.save_pretrained(path)
    config = copy.copy(model.config)
    config.backbone_source = "" if save_backbone else _source_beside(model.config.backbone_source, path)
    config.backbone_digest = "" if save_backbone else config.backbone_digest
    config.save_pretrained(path)
    if adapted:
        save_adapter(model, weights, path / ADAPTER_FOLDER)
    write_manifest(path)


def push(model: Any, repo_id: str, **kwargs: Any) -> str:
    """Upload a checkpoint to the hub as transformers does, whole if the backbone came from a local directory.

    Args:
        model: To upload.
        repo_id: Repository; created if it does not exist.
        kwargs: As in `PreTrainedModel.push_to_hub`, such as `private` or `token`.

    Returns:
        URL of the commit.
    """
    portable = copy.copy(model)
    portable.config = config = copy.deepcopy(model.config)
    if Path(config.backbone_source).exists() or looks_like_a_path(config.backbone_source):
        config.backbone_source = ""
    for part in (config, config.backbone_config):
        part.name_or_path = ""  # no path of this machine
    kwargs["tags"] = ["hmt", *(kwargs.get("tags") or [])]
    return str(PreTrainedModel.push_to_hub(portable, repo_id, **kwargs))


def _source_beside(source: str, path: Path) -> str:
    """A source as a checkpoint at `path` notes it: within its own directory relative to that."""
    inside = Path(source).is_absolute() and Path(source).is_relative_to(os.path.abspath(path))
    return f"./{Path(source).relative_to(os.path.abspath(path))}" if inside else source


def _backbone_changed(model: Any, weights: Mapping[str, Tensor]) -> bool:
    """True if the backbone has no source, learns, or differs from its source.

    Args:
        model: Gives source and digest.
        weights: Of the model, by their names in a checkpoint.
    """
    names = stored_names(model, dict(model.named_parameters()))
    learns = (p.requires_grad for name, p in model.named_parameters() if names[name].startswith("backbone."))
    if not model.config.backbone_source or any(learns):
        return True
    backbone = (weights[name] for name in sorted(weights) if name.startswith("backbone."))
    return weights_digest(backbone, fresh=True) != model.config.backbone_digest


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

    values = read_checkpoint_config(name, **hub)
    if values.get("model_type") != HMTConfig.model_type:
        advice = "wrap it with from_backbone (--model_name), do not load it as a checkpoint"
        raise ValueError(f"{name} holds a {values.get('model_type')} model without a memory; {advice}")
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
    # Nothing is missing or unexpected: that was refused.
    report: dict[str, Any] = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}
    return (model, report | {"error_msgs": []}) if with_report else model


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


def _check_shapes(config: HMTConfig, values: dict[str, Any], path: str) -> None:
    """Refuse settings that need parameters of other shapes than a checkpoint's."""
    for name in fields_with("shapes"):
        own, theirs = getattr(config, name), values.get(name)  # older checkpoints lack newer fields
        if None not in (own, theirs) and own != theirs:
            raise ValueError(f"{name} is {theirs} in {path} and cannot be read as {own}")
