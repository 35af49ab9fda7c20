"""Wrap a backbone, save what was learned, load it again.

A checkpoint directory holds

    config.json                 HMTConfig, with the backbone's configuration and where it came from
    model.safetensors           everything, or, where the backbone was frozen and can be found again,
    memory.safetensors          the memory's parameters alone
    adapter/                    LoRA in PEFT's own format, if there is one
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import HfApi
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import cached_file

from hmt.config import MEMORY_FIELDS, MemoryConfig, memory_fields
from hmt.memory.retention import retention_policy
from hmt.model.backbone import check_backbone, has_adapter
from hmt.model.base import MemoryModel
from hmt.model.card import model_card
from hmt.model.configuration import HMTConfig
from hmt.model.identity import weights_digest
from hmt.pretrained import (
    BUILT_INS,
    bos_marks_turns,
    first_line,
    load_backbone,
    load_tokenizer,
    locate,
    looks_like_a_path,
    resolve_own_config,
)

MEMORY_FILE = "memory.safetensors"
ADAPTER_FOLDER = "adapter"
SHAPING_FIELDS = (
    "num_memory_tokens", "mem_recall_hidden_dim", "memory_injection", "recall_recency", "copy_context",
    "retention_heads",
)  # fmt: skip
"""Settings that fix the shapes of memory parameters, so a checkpoint cannot be read with others."""

LORA_TARGETS = {"mamba": ["x_proj", "in_proj"]}
"""Where PEFT's own choice includes layers that it cannot adapt."""

Self = TypeVar("Self", bound="CheckpointedModel")

PUSH_OPTIONS = ("private", "token", "revision", "commit_message", "create_pr", "repo_id")
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class CheckpointedModel(MemoryModel):
    """Wraps backbones, saves and loads."""

    _loaded_digest = ""

    @classmethod
    def from_backbone(
        cls: type[Self],
        name_or_path_or_model: str | os.PathLike[str] | PreTrainedModel,
        config: MemoryConfig | None = None,
        *,
        gguf_file: str | None = None,
        dtype: Any = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        **config_fields: Any,
    ) -> Self:
        """Give a causal LM a memory that has yet to learn.

        Args:
            name_or_path_or_model: Directory, hub id, built-in name ("smollm2-135m"), or a loaded model, which is then
                shared, not copied.
            config: Memory settings; defaults where None.
            gguf_file: A GGUF file in that directory or repository.
            dtype: torch dtype (or its name) of the backbone; the memory's parameters stay in float32.
            revision: Revision of a hub id.
            trust_remote_code: Run code that comes with the checkpoint.
            config_fields: Fields of `HMTConfig` that override `config`.

        Raises:
            ValueError: If a field is out of range or the model cannot be wrapped; says why.
            OSError: If there is no such model.
        """
        unknown = set(config_fields) - set(MEMORY_FIELDS)
        if unknown:
            raise ValueError(f"HMTConfig has no field {', '.join(sorted(unknown))}; it has {', '.join(MEMORY_FIELDS)}")
        fields = (memory_fields(config) if config is not None else {}) | config_fields
        settings = MemoryConfig(**fields)
        settings.check()  # before anything is loaded
        retention_policy(settings.memory_policy)
        source = ""
        if isinstance(name_or_path_or_model, torch.nn.Module):
            backbone: Any = name_or_path_or_model
            if dtype is not None:
                backbone.to(dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        else:
            source = os.fspath(name_or_path_or_model)
            backbone = load_backbone(
                source, gguf_file=gguf_file, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
            )
        check_backbone(backbone)
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
        model._loaded_digest = model._backbone_digest() if source else ""
        model.initialise_memory()
        return model.train(backbone.training)

    def freeze_backbone(self) -> None:
        """Train the memory's parameters (and an adapter's) only."""
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_("lora_" in name and parameter.requires_grad)

    def add_lora(
        self, rank: int = 8, alpha: int = 32, dropout: float = 0.1, target_modules: list[str] | str | None = None
    ) -> None:
        """Freeze the backbone and add a LoRA adapter to it through PEFT.

        Args:
            rank: Rank r of the update.
            alpha: The update is scaled by alpha / r.
            dropout: Dropout before the update while training.
            target_modules: Names of the linear layers to adapt, or "all-linear" for all but the head; those usual for
                the backbone's family where None.

        Raises:
            ImportError: If PEFT is not installed; names the extra.
            ValueError: If the backbone has no layers of these names.
        """
        try:
            from peft import LoraConfig
            from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TARGETS
        except ImportError as error:
            raise ImportError("LoRA needs PEFT, the extra lora: pip install peft") from error
        family = self.backbone.config.model_type
        targets: Any = target_modules or LORA_TARGETS.get(family) or TARGETS.get(family, "all-linear")
        self.freeze_backbone()
        self.backbone.add_adapter(
            LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM")
        )
        _keep_float32(self.backbone)
        self.backbone.train(self.backbone.training)  # new layers start in training mode whatever the others are in
        self._name_adapter_base(self._hub_name)

    @property
    def has_adapter(self) -> bool:
        """Whether the backbone carries a PEFT adapter."""
        return has_adapter(self.backbone)

    def save_pretrained(  # type: ignore[override]  # the others go through kwargs
        self,
        save_directory: str | os.PathLike[str],
        *,
        state_dict: dict[str, Tensor] | None = None,
        save_backbone: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Save the model.

        Args:
            save_directory: Where to.
            state_dict: Gathered weights of a sharded model; the model's own where None.
            save_backbone: Write the backbone's weights too. Where None, they are left out if they are frozen, as they
                were when they were loaded, and `config.backbone_source` says from where.
            kwargs: As in `PreTrainedModel.save_pretrained`.
        """
        if not kwargs.get("is_main_process", True):
            return
        if kwargs.pop("push_to_hub", False):
            repo_id = kwargs.pop("repo_id", Path(save_directory).name)
            self.push_to_hub(repo_id, **{name: kwargs[name] for name in PUSH_OPTIONS if name in kwargs})
        kwargs = {name: value for name, value in kwargs.items() if name not in PUSH_OPTIONS}
        if save_backbone is None:
            save_backbone = self._backbone_is_its_own
        weights = self.state_dict() if state_dict is None else state_dict
        path = Path(save_directory)
        if save_backbone:
            plain = {name.replace(".base_layer.", "."): w for name, w in weights.items() if ".lora_" not in name}
            self.config.backbone_source = ""  # from now on these weights are to be had here alone
            super().save_pretrained(path, state_dict=plain, **kwargs)
            (path / MEMORY_FILE).unlink(missing_ok=True)
        else:
            path.mkdir(parents=True, exist_ok=True)
            for stale in path.glob("model*.safetensors*"):
                stale.unlink()
            self.config.architectures = [type(self).__name__]
            self.config.save_pretrained(path)
            self.generation_config.save_pretrained(path)
            memory = {name: w.detach().cpu().contiguous() for name, w in weights.items() if name.startswith("memory.")}
            save_file(memory, path / MEMORY_FILE, metadata={"format": "pt"})
        shutil.rmtree(path / ADAPTER_FOLDER, ignore_errors=True)
        if self.has_adapter:
            prefix = "backbone."
            adapter = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
            # PEFT asks the hub about a base that has a name, and waits where there is none.
            self._name_adapter_base(None)
            self.backbone.save_pretrained(path / ADAPTER_FOLDER, state_dict=adapter)
            self._name_adapter_base(self._hub_name)
            for config in self.backbone.peft_config.values():
                config.save_pretrained(path / ADAPTER_FOLDER)

    def push_to_hub(  # type: ignore[override]  # the others go through kwargs
        self,
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
            repo_id: Repository, made if it is not there.
            private: Whether a new one is private.
            token: Of the hub; that of `hf auth login` where None.
            revision: Branch.
            commit_message: Of the commit.
            kwargs: What `HfApi.upload_folder` takes, such as `create_pr`.

        Returns:
            Address of the commit.
        """
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        source = self.config.backbone_source
        from_here = bool(source) and (Path(source).exists() or looks_like_a_path(source))
        complete = self._backbone_is_its_own or from_here  # a directory of this machine is of no use to others
        with tempfile.TemporaryDirectory() as folder:
            card = model_card(self.config, repo_id, complete, self.has_adapter)
            self.save_pretrained(folder, save_backbone=complete)
            self.config.backbone_source = source
            _leave_out_paths(Path(folder) / "config.json")
            if from_here:
                _add_tokenizer(source, folder)
            if not api.file_exists(repo_id, "README.md", revision=revision):
                card.save(Path(folder) / "README.md")
            commit: Any = api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message, **kwargs
            )
        return str(commit)

    @property
    def _backbone_is_its_own(self) -> bool:
        """Whether the backbone's weights are not (any more) those that can be found at its source."""
        own = (p for name, p in self.backbone.named_parameters() if "lora_" not in name)
        unchanged = self._loaded_digest == self._backbone_digest()
        return not self.config.backbone_source or not unchanged or any(p.requires_grad for p in own)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # likewise
        cls: type[Self],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *args: Any,
        config: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Load a checkpoint that `save_pretrained` wrote, from a directory or a hub id.

        Args:
            pretrained_model_name_or_path: Directory or hub id.
            args: As in `PreTrainedModel.from_pretrained`.
            config: Configuration to use instead of the checkpoint's.
            kwargs: Fields of `HMTConfig` to change (such as `mode` or `segment_length`), and what
                `PreTrainedModel.from_pretrained` takes; `trust_remote_code` runs code that comes with the backbone.

        Raises:
            OSError: If there is no such checkpoint.
            ValueError: If it is not one of this library, or a field does not fit its weights; names both sides.
        """
        location = locate(os.fspath(pretrained_model_name_or_path), "checkpoint")
        path = location.source
        kwargs |= {"local_files_only": True} if location.local else {}
        trust = kwargs["trust_remote_code"] = kwargs.get("trust_remote_code") is True
        fields = {name: kwargs.pop(name) for name in MEMORY_FIELDS if name in kwargs}
        hub = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        if config is None:
            config = _read_config(path, fields, hub, trust)
        elif fields:
            config = HMTConfig.from_dict(config.to_dict() | fields)
        optional = {"_raise_exceptions_for_missing_entries": False} | hub
        memory_file = cached_file(path, MEMORY_FILE, **optional)
        try:
            if memory_file is not None:
                model = cls._complete(config, memory_file, {n: v for n, v in kwargs.items() if n not in HUB_OPTIONS})
            else:
                kwargs |= {"config": config, "output_loading_info": True, "backbone_code": trust}
                loaded: Any = super().from_pretrained(path, *args, **kwargs)
                model, report = loaded
                model._fit_new_parameters(report["missing_keys"])
            if adapter := cached_file(path, f"{ADAPTER_FOLDER}/adapter_config.json", **optional):
                weights = cached_file(path, f"{ADAPTER_FOLDER}/adapter_model.safetensors", **hub)
                model.backbone.load_adapter(str(Path(adapter).parent))
                _keep_float32(model.backbone, weights)
        except (SafetensorError, RuntimeError) as error:
            raise OSError(f"cannot load {path}: {first_line(error)}") from error
        return model.eval()

    @classmethod
    def _complete(cls: type[Self], config: HMTConfig, memory_file: str, options: dict[str, Any]) -> Self:
        """A model from the memory's parameters and the backbone that its configuration names."""
        backbone = load_backbone(
            config.backbone_source, gguf_file=config.backbone_gguf, revision=config.backbone_revision, **options
        )
        model = cls(config, backbone=backbone)
        model._loaded_digest = model._backbone_digest()
        model.initialise_memory()  # for parameters of another mode, which the checkpoint lacks
        weights = {name.removeprefix("memory."): w for name, w in load_file(memory_file).items()}
        model.memory.load_state_dict(weights, strict=False)
        model.freeze_backbone()
        return model

    def _fit_new_parameters(self, names: set[str]) -> None:
        """Fit those parameters of the memory to the backbone that the checkpoint lacked, being of another mode."""
        missing = [name.removeprefix("memory.") for name in names if name.startswith("memory.")]
        loaded = {name: value for name, value in self.memory.state_dict().items() if name not in missing}
        if missing:
            loaded = {name: value.clone() for name, value in loaded.items()}
            for tensor in (*self.memory.parameters(), *self.memory.buffers()):
                setattr(tensor, "_is_hf_initialized", False)  # noqa: B010  (transformers' own mark)
            self.initialise_memory()
            self.memory.load_state_dict(loaded, strict=False)

    def _backbone_digest(self) -> str:
        """Digest of the backbone's own weights, exact, without an adapter's."""
        return weights_digest((p for name, p in self.backbone.named_parameters() if "lora_" not in name), exact=True)

    @property
    def _hub_name(self) -> str | None:
        """What others know the backbone by."""
        source = self.config.backbone_source
        return BUILT_INS[source].hub_id if source in BUILT_INS else source or None

    def _name_adapter_base(self, name: str | None) -> None:
        adapters: dict[str, Any] = self.backbone.peft_config
        for adapter in adapters.values():
            adapter.base_model_name_or_path = name
            adapter.revision = name and self.config.backbone_revision


def _keep_float32(backbone: PreTrainedModel, weights: str | None = None) -> None:
    """Adapters are float32 whatever the backbone is, as a file has them: half precision loses small updates."""
    from peft import set_peft_model_state_dict
    from peft.tuners.tuners_utils import cast_adapter_dtype

    cast_adapter_dtype(backbone, adapter_name="default")
    if weights is not None and backbone.dtype != torch.float32:  # they were rounded when they were loaded
        values = {name.removeprefix("base_model.model."): value for name, value in load_file(weights).items()}
        set_peft_model_state_dict(backbone, values)


def _leave_out_paths(file: Path) -> None:
    """Rewrite a configuration without the directories that its parts were loaded from."""
    values = json.loads(file.read_text())
    for part in (values, values.get("backbone_config") or {}):
        part.pop("_name_or_path", None)
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _add_tokenizer(source: str, folder: str) -> None:
    """Copy the backbone's tokenizer, where it has one."""
    with contextlib.suppress(OSError):
        load_tokenizer(source).save_pretrained(folder)


def _read_config(path: str, fields: dict[str, Any], hub: dict[str, Any], trust: bool) -> HMTConfig:
    """The configuration of a checkpoint, with some of its fields changed."""
    values, _ = HMTConfig.get_config_dict(path, **hub)
    if "model_type" not in values:
        raise OSError(f"{path} is no checkpoint: it has no config.json with a model_type")
    if values["model_type"] != HMTConfig.model_type:
        advice = "wrap it with from_backbone (--model_name), do not load it as a checkpoint"
        raise ValueError(f"{path} holds a {values['model_type']} model without a memory; {advice}")
    for name in SHAPING_FIELDS:
        own, theirs = fields.get(name), values.get(name)  # older checkpoints lack newer fields
        if None not in (own, theirs) and own != theirs and (name != "copy_context" or (own and theirs)):
            raise ValueError(f"{name} is {theirs} in {path} and cannot be read as {own}")
    return HMTConfig.from_dict((resolve_own_config(values, path) if trust else values) | fields)
