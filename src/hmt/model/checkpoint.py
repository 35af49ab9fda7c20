"""Wrap a backbone, save what was learned, load it again.

A checkpoint directory holds

    config.json          HMTConfig, with the backbone's configuration, where it came from and the digest of its weights
    model.safetensors    all weights, or the memory's alone if the backbone is frozen and can be found at its source
    adapter/             adapter in PEFT's own format, if there is one
    manifest.json        sizes and checksums of the weights

Weights have the names they have without an adapter. `model.safetensors` repeats an adapter's weights as `adapter.*`, so
that the one file restores a model under transformers' Trainer.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from hmt.config import MEMORY_FIELDS, MemoryConfig, memory_fields
from hmt.memory.retention import retention_policy
from hmt.model.adapter import (
    ADAPTER_FOLDER,
    ADAPTER_PREFIX,
    has_adapter,
    save_adapter,
    stored_names,
)
from hmt.model.backbone import check_backbone, fitting_settings, vocabulary_size
from hmt.model.card import model_card
from hmt.model.configuration_hmt import HMTConfig
from hmt.model.identity import backbone_weights, source_digest, weights_digest
from hmt.model.manifest import MANIFEST, check_finite, write_manifest
from hmt.model.restore import EARLIER_MEMORY_FILE, WEIGHTS_FILE, initialise_only
from hmt.pretrained import (
    bos_marks_turns,
    load_backbone,
    load_tokenizer,
    looks_like_a_path,
)

logger = logging.get_logger(__name__)

PUSH_OPTIONS = ("private", "token", "revision", "commit_message", "create_pr", "repo_id")


def wrap(
    cls: Any,
    name_or_path_or_model: str | os.PathLike[str] | PreTrainedModel,
    config: MemoryConfig | None = None,
    *,
    gguf_file: str | None = None,
    dtype: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **fields: Any,
) -> Any:
    """Give a causal LM a memory that has yet to learn; see `HMTForCausalLM.from_backbone`."""
    if unknown := set(fields) - set(MEMORY_FIELDS):
        raise ValueError(f"HMTConfig has no field {', '.join(sorted(unknown))}; it has {', '.join(MEMORY_FIELDS)}")
    fields = (memory_fields(config) if config is not None else {}) | fields
    settings = MemoryConfig(**fields)
    settings.check()  # before anything is loaded
    retention_policy(settings.memory_policy)
    source = ""
    if isinstance(name_or_path_or_model, nn.Module):
        backbone: Any = name_or_path_or_model
        if dtype is not None:
            backbone.to(dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    else:
        source = _absolute(os.fspath(name_or_path_or_model))
        backbone = load_backbone(
            source, gguf_file=gguf_file, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
        )
        check_finite(backbone, source)
    check_backbone(backbone)
    fields |= fitting_settings(backbone, settings)
    model = cls(
        HMTConfig(
            backbone_config=getattr(backbone, "config", None),
            backbone_source=source,
            backbone_gguf=gguf_file,
            backbone_revision=revision,
            bos_marks_turns=bos_marks_turns(source or backbone.name_or_path, revision, trust_remote_code),
            **fields,
        ),
        backbone=backbone,
    )
    model.config.backbone_digest = source_digest(model) if source else ""
    model.initialise_memory()
    return model.train(backbone.training)


def resize_token_embeddings(model: Any, *args: Any, **kwargs: Any) -> nn.Module:
    """Resize the vocabulary of backbone, memory and configuration alike; see `PreTrainedModel`.

    What a memory has learned stays; buffers of one value a token are computed anew.
    """
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
    **kwargs: Any,
) -> None:
    """Save a model; see `HMTForCausalLM.save_pretrained`."""
    if not kwargs.get("is_main_process", True):
        return
    if kwargs.pop("push_to_hub", False):
        repo_id = kwargs.pop("repo_id", Path(save_directory).name)
        push(model, repo_id, **{name: kwargs[name] for name in PUSH_OPTIONS if name in kwargs})
    kwargs = {name: value for name, value in kwargs.items() if name not in PUSH_OPTIONS}
    weights = model.state_dict() if state_dict is None else state_dict
    stored = stored_names(model, weights)
    adapted = any(name.startswith(ADAPTER_PREFIX) for name in stored.values())
    if adapted and not has_adapter(model):
        raise ValueError("the adapter was put around the whole model: save the PeftModel, or merge the adapter first")
    own = {stored[name]: weight for name, weight in weights.items()}
    if save_backbone is None:
        save_backbone = _is_its_own(model, backbone_weights(model) if state_dict is None else own)
    if not (save_backbone or model.config.backbone_source):
        raise ValueError(
            "save_backbone=False needs a backbone that was loaded by name, got one that was given as a model"
        )
    path = Path(save_directory)
    path.mkdir(parents=True, exist_ok=True)
    for stale in (*path.glob("model*.safetensors*"), path / EARLIER_MEMORY_FILE, path / MANIFEST):
        stale.unlink(missing_ok=True)
    shutil.rmtree(path / ADAPTER_FOLDER, ignore_errors=True)
    model.config.vocab_size = model.backbone.config.get_text_config(decoder=True).vocab_size
    model.config.architectures = [type(model).__name__]
    # Copies, since files of tensors hold none that share storage.
    learned = {name: w.detach().cpu().clone() for name, w in own.items() if not name.startswith("backbone.")}
    if save_backbone:
        PreTrainedModel.save_pretrained(model, path, state_dict=own | learned, **kwargs)
    else:
        save_file(learned, path / WEIGHTS_FILE, metadata={"format": "pt"})
        model.generation_config.save_pretrained(path)
    config = copy.copy(model.config)
    config.backbone_source = "" if save_backbone else _source_beside(model.config.backbone_source, path)
    config.backbone_digest = "" if save_backbone else getattr(config, "backbone_digest", "")
    config.save_pretrained(path)
    if adapted:
        save_adapter(model, weights, path / ADAPTER_FOLDER)
    write_manifest(path)


def push(
    model: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a model with a memory",
    **kwargs: Any,
) -> str:
    """Upload a checkpoint to the hub, with a model card unless the repository has one.

    Args:
        model: To upload.
        repo_id: Repository, made if it is not there.
        private: Make a new one private.
        token: Of the hub; that of `hf auth login` where None.
        revision: Branch.
        commit_message: Of the commit.
        kwargs: What `HfApi.upload_folder` takes, such as `create_pr`.

    Returns:
        Address of the commit.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    source = model.config.backbone_source
    from_here = bool(source) and (Path(source).exists() or looks_like_a_path(source))
    # A directory of this machine is of no use to others.
    complete = from_here or _is_its_own(model, backbone_weights(model))
    with tempfile.TemporaryDirectory() as folder:
        card = model_card(model.config, repo_id, complete, has_adapter(model))
        save(model, folder, save_backbone=complete)
        _leave_out_paths(Path(folder))
        if from_here:
            with contextlib.suppress(OSError):  # not every backbone has a tokenizer
                load_tokenizer(source).save_pretrained(folder)
        if not api.file_exists(repo_id, "README.md", revision=revision):
            card.save(Path(folder) / "README.md")
        commit: Any = api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message, **kwargs
        )
    return str(commit)


def _absolute(source: str) -> str:
    """A directory by its absolute path, a hub id or built-in name as it is."""
    path = Path(source).expanduser()
    return os.path.abspath(path) if path.is_dir() else source


def _source_beside(source: str, path: Path) -> str:
    """A source as a checkpoint notes it: within the checkpoint's own directory relative to that."""
    inside = Path(source).is_absolute() and Path(source).is_relative_to(os.path.abspath(path))
    return f"./{Path(source).relative_to(os.path.abspath(path))}" if inside else source


def _is_its_own(model: Any, weights: Mapping[str, Tensor]) -> bool:
    """Return True if the backbone's weights are not (any more) those at its source.

    Args:
        model: Gives source and digest.
        weights: Of the model, by their names in a checkpoint.
    """
    names = stored_names(model, dict(model.named_parameters()))
    learns = (p.requires_grad for name, p in model.named_parameters() if names[name].startswith("backbone."))
    if not model.config.backbone_source or any(learns):
        return True
    backbone = (weights[name] for name in sorted(weights) if name.startswith("backbone."))
    return weights_digest(backbone, fresh=True) != getattr(model.config, "backbone_digest", "")


def _leave_out_paths(folder: Path) -> None:
    """Rewrite the configurations without the directories of this machine that parts were loaded from."""
    file = folder / "config.json"
    values = json.loads(file.read_text())
    for part in (values, values.get("backbone_config") or {}):
        part.pop("_name_or_path", None)
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
