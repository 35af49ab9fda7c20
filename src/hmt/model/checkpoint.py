"""Wrap a backbone, and save what was learned.

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
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from hmt.config import MEMORY_FIELDS, MemoryConfig, memory_fields
from hmt.memory.identity import weights_digest
from hmt.memory.retention import retention_policy
from hmt.model.adapter import (
    ADAPTER_FOLDER,
    ADAPTER_PREFIX,
    backbone_weights,
    has_adapter,
    save_adapter,
    stored_names,
)
from hmt.model.backbone import check_backbone, fitting_settings, vocabulary_size
from hmt.model.configuration_hmt import HMTConfig
from hmt.model.manifest import MANIFEST, check_finite, write_manifest
from hmt.model.restore import EARLIER_MEMORY_FILE, WEIGHTS_FILE, initialise_only, source_digest
from hmt.pretrained import bos_marks_turns, load_backbone, looks_like_a_path

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
    name, revision = source or backbone.name_or_path, loading["revision"]
    model = cls(
        HMTConfig(
            backbone_config=getattr(backbone, "config", None),
            backbone_source=source,
            backbone_gguf=loading["gguf_file"],
            backbone_revision=revision,
            bos_marks_turns=bos_marks_turns(name, revision, loading["trust_remote_code"]),
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
