"""Turn a checkpoint of the published HMT program into a native one.

Reads `.safetensors`, pickled `.pth`/`.bin` files (tensors only: nothing in them is executed) and DeepSpeed ZeRO
directories. Names of the published program and what becomes of them:

    memory_cell.model.*          the backbone, with LoRA if the run used it
    memory_cell.memory           initial memory
    mem                          summary prompt
    cross_attn.{wq,wk}.weight    recall projections
    memory_cell.mem_map.*        maps between reading speeds, left out
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hmt.atomic import atomic_directory
from hmt.compat.zero import load_zero_checkpoint, read_pickle
from hmt.config import PUBLISHED, MemoryConfig, memory_fields
from hmt.model.manifest import check_names
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.pretrained import check_shapes, first_line, has_tokenizer, load_tokenizer, shapes_of, unfit_errors

BACKBONE_PREFIX = "memory_cell.model."
PEFT_PREFIX = "base_model.model."
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
MEMORY_NAMES = {
    "memory_cell.memory": "injection.initial",
    "mem": "summary_prompt",
    "cross_attn.wq.weight": "recall.wq.weight",
    "cross_attn.wk.weight": "recall.wk.weight",
}


@dataclass(frozen=True)
class LegacyWeights:
    """Weights of the published program by kind, under the names they have here."""

    backbone: dict[str, Tensor]
    lora: dict[str, Tensor]
    memory: dict[str, Tensor]
    left_out: tuple[str, ...]


def convert_checkpoint(
    state_path: Path,
    backbone_dir: Path,
    out_dir: Path,
    config: MemoryConfig,
    lora_alpha: int = 32,
    trust_remote_code: bool = False,
) -> tuple[HMTForCausalLM, tuple[str, ...]]:
    """Write a native checkpoint with the weights of a published one.

    Args:
        state_path: The published program's weights: a file, or a DeepSpeed directory.
        backbone_dir: Directory with the backbone's config.json, and its tokenizer if it has one.
        out_dir: Directory of the native checkpoint.
        config: Memory settings that the weights were trained with; the injection is always "published".
        lora_alpha: LoRA alpha of the published run.
        trust_remote_code: Run code that comes with the backbone.

    Returns:
        The converted model, and the names of weights that have no place in it.

    Raises:
        OSError: If a file is missing or unreadable.
        ValueError: If the weights do not fit the backbone or the settings; names what does not.
    """
    if not (backbone_dir / "config.json").is_file():
        raise FileNotFoundError(f"no config.json in {backbone_dir}")
    weights = sort_weights(read_weights(state_path))
    fields = memory_fields(config) | PUBLISHED
    if (initial := weights.memory.get("injection.initial")) is not None:
        fields["num_memory_tokens"] = initial.shape[0]
    try:
        backbone = _load_backbone(backbone_dir, weights.backbone, trust_remote_code)
        model = HMTForCausalLM.from_backbone(backbone, **fields).eval()
        places = set(model.memory.state_dict())
        published = {name: w for name, w in weights.memory.items() if name in places}
        _fill(model.memory, published, "memory", optional={name for name in places if name.startswith("retention.")})
        if weights.lora:
            _add_adapter(model, weights.lora, lora_alpha)
    except unfit_errors(RuntimeError) as error:
        raise ValueError(f"the weights do not fit the backbone in {backbone_dir}: {first_line(error)}") from error
    with atomic_directory(out_dir) as unfinished:
        model.save_pretrained(unfinished, save_backbone=True)
        if has_tokenizer(str(backbone_dir)):
            load_tokenizer(str(backbone_dir), trust_remote_code=trust_remote_code).save_pretrained(unfinished)
    return model, weights.left_out + tuple(sorted(set(weights.memory) - places))


def _load_backbone(folder: Path, weights: dict[str, Tensor], trust_remote_code: bool) -> PreTrainedModel:
    """The backbone of a configuration, with these weights."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)

    def build() -> PreTrainedModel:
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)

    check_shapes(shapes_of(weights), build, config)
    backbone = build()
    tied = backbone.all_tied_weights_keys
    _fill(backbone, weights, "backbone", optional={*tied, *tied.values()})
    return backbone


def _add_adapter(model: HMTForCausalLM, weights: dict[str, Tensor], alpha: int) -> None:
    """Give the backbone a LoRA adapter with these weights."""
    ranks = {weight.shape[0] for name, weight in weights.items() if ".lora_A." in name}
    targets = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in weights})
    model.add_lora(rank=ranks.pop(), alpha=alpha, target_modules=targets)
    own = {name for name in model.backbone.state_dict() if ".lora_" not in name}
    _fill(model.backbone, weights, "LoRA adapter", optional=own)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Load all weights of a published checkpoint, under its own names.

    Raises:
        OSError: If there is nothing readable at the path.
    """
    if path.is_dir():
        return load_zero_checkpoint(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise OSError(f"cannot read weights from {path}: {first_line(error)}") from error
    state = read_pickle(path)
    weights = state.get("state_dict", state)
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise OSError(f"{path} is no table of weights")
    return weights


def sort_weights(weights: dict[str, Tensor]) -> LegacyWeights:
    """Sort weights by the published names.

    Raises:
        ValueError: If a weight has a name that the published program does not use.
    """
    backbone: dict[str, Tensor] = {}
    lora: dict[str, Tensor] = {}
    memory: dict[str, Tensor] = {}
    left_out = []
    for full_name, weight in weights.items():
        name = full_name
        for wrapper in WRAPPER_PREFIXES:
            name = name.removeprefix(wrapper)
        if name in MEMORY_NAMES:
            memory[MEMORY_NAMES[name]] = weight
        elif name.startswith(BACKBONE_PREFIX):
            inner = name.removeprefix(BACKBONE_PREFIX).removeprefix(PEFT_PREFIX).replace(".base_layer.", ".")
            (lora if ".lora_" in inner else backbone)[inner] = weight
        elif name.startswith("memory_cell.mem_map."):
            left_out.append(name)
        else:
            raise ValueError(f"{full_name!r} is no weight of the published program")
    return LegacyWeights(backbone, lora, memory, tuple(left_out))


def _fill(module: nn.Module, weights: dict[str, Tensor], what: str, optional: set[str]) -> None:
    """Load weights into a module, all of them and nothing else."""
    places = set(module.state_dict())
    check_names(places - set(weights) - optional, set(weights) - places, f"the {what}")
    check_shapes(shapes_of(weights), lambda: module)
    module.load_state_dict(weights, strict=False)
