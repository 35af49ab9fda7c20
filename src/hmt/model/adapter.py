"""Adapters that PEFT puts around a backbone: made, saved in PEFT's format, loaded.

PEFT wraps modules, which renames their weights. A checkpoint has the names without wrappers; the adapter's own weights
are there in PEFT's format and, for a model that is restored from one state dict, behind "adapter.".
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from hmt.model.manifest import check_names
from hmt.pretrained import BUILT_INS

ADAPTER_FOLDER = "adapter"
ADAPTER_PREFIX = "adapter."
INNER_MODULES = ("base_layer", "original_module", "token_adapter")
"""Names under which PEFT's wrappers hold the module they wrap."""

LORA_TARGETS = {"mamba": ["x_proj", "in_proj"]}
"""Families for which PEFT's own choice includes layers that it cannot adapt."""


def freeze_backbone(model: Any) -> None:
    """Freeze the backbone's own weights; an adapter stays trainable if it was."""
    for stored, parameter in _backbone_parameters(model):
        parameter.requires_grad_(parameter.requires_grad and stored.startswith(ADAPTER_PREFIX))


def add_lora(
    model: Any,
    rank: int = 8,
    alpha: int = 32,
    dropout: float = 0.1,
    target_modules: list[str] | str | None = None,
) -> None:
    """Freeze the backbone and add a LoRA adapter to it; see `HMTForCausalLM.add_lora`."""
    try:
        from peft import LoraConfig
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TARGETS
    except ImportError as error:
        raise ImportError("LoRA needs PEFT, the extra lora: pip install peft") from error
    backbone = model.backbone
    family = backbone.config.model_type
    targets: Any = target_modules or LORA_TARGETS.get(family) or TARGETS.get(family, "all-linear")
    freeze_backbone(model)
    backbone.add_adapter(
        LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM")
    )
    _keep_float32(backbone)
    backbone.train(backbone.training)  # new layers start in training mode


def has_adapter(model: Any) -> bool:
    """True if the backbone carries a PEFT adapter."""
    return bool(getattr(model.backbone, "_hf_peft_config_loaded", False))


def backbone_weights(model: Any) -> dict[str, Tensor]:
    """Weights of the backbone without an adapter, by their names in a checkpoint."""
    weights = {f"backbone.{name}": weight for name, weight in model.backbone.state_dict(keep_vars=True).items()}
    own = {stored: weights[name] for name, stored in stored_names(model, weights).items()}
    return {name: own[name] for name in sorted(own) if name.startswith("backbone.")}


def stored_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Names in a checkpoint of weights by their names in the model.

    A weight that PEFT has wrapped keeps the name that it has without the wrapper; an adapter's own weights have theirs
    behind "adapter.".
    """
    wrappers = _wrappers(model)
    return {name: _stored_name(name, wrappers) for name in names}


def _stored_name(name: str, wrappers: set[str]) -> str:
    parts, kept = name.split("."), []
    for depth, part in enumerate(parts):
        if ".".join(parts[:depth]) not in wrappers:
            kept.append(part)
        elif part not in INNER_MODULES:
            return ADAPTER_PREFIX + name
    return ".".join(kept)


def _wrappers(model: nn.Module) -> set[str]:
    """Names of the modules that PEFT put around others."""
    if "peft" not in sys.modules:  # takes seconds to import
        return set()
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    modules = model.named_modules(remove_duplicate=False)
    return {name for name, module in modules if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)}


def _backbone_parameters(model: Any) -> list[tuple[str, nn.Parameter]]:
    """Parameters of the backbone and its adapter, with their names in a checkpoint."""
    named = {f"backbone.{name}": parameter for name, parameter in model.backbone.named_parameters()}
    return [(stored, named[name]) for name, stored in stored_names(model, named).items()]


def load_weights(model: Any, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
    """Load weights under their names in a checkpoint or in the model.

    Args:
        model: Is changed in place.
        state_dict: All weights, or those of the memory and the adapter alone.
        strict: Refuse any difference in names. Otherwise missing names are returned, except for weights that are tied
            to given ones and, if none was given, those of the backbone.
        assign: As in `torch.nn.Module.load_state_dict`.

    Raises:
        RuntimeError: If names (with `strict`) or shapes differ.
    """
    stored = stored_names(model, model.state_dict())
    names = {theirs: name for name, theirs in stored.items()}
    renamed = {names.get(name, name): weight for name, weight in state_dict.items()}
    result = nn.Module.load_state_dict(model, renamed, strict=strict, assign=assign)
    own = model.state_dict()
    given = {own[name].data_ptr() for name in renamed if name in own}
    with_backbone = any(name.startswith("backbone.") for name in state_dict)
    result.missing_keys[:] = [
        name
        for name in result.missing_keys
        if own[name].data_ptr() not in given and (with_backbone or not stored[name].startswith("backbone."))
    ]
    return result


def save_adapter(model: Any, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Save the active adapter as PEFT does."""
    from peft import get_peft_model_state_dict

    backbone, prefix = model.backbone, "backbone."
    name = backbone.active_adapters()[0]
    own = {key.removeprefix(prefix): weight for key, weight in weights.items() if key.startswith(prefix)}
    adapter = get_peft_model_state_dict(backbone, own, name, save_embedding_layers=False)
    config = copy.copy(backbone.peft_config[name])
    source = model.config.backbone_source
    config.base_model_name_or_path = BUILT_INS[source].hub_id if source in BUILT_INS else source or None
    config.revision = (source and model.config.backbone_revision) or None
    config.save_pretrained(folder)
    tensors = {f"base_model.model.{key}": weight.detach().cpu().clone() for key, weight in adapter.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def load_adapter(model: Any, weights: str | None, name: str) -> None:
    """Put a checkpoint's adapter around the backbone, in place of one that came with its source; it is frozen.

    Raises:
        OSError: If its weights are missing, or are not those that its settings need.
    """
    from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict

    if weights is None:
        raise FileNotFoundError(f"{name} has an adapter without weights: no {ADAPTER_FOLDER}/adapter_model.safetensors")
    backbone = model.backbone
    if has_adapter(model):
        backbone.delete_adapter(list(backbone.peft_config))
    backbone.add_adapter(PeftConfig.from_pretrained(str(Path(weights).parent)))
    _keep_float32(backbone)
    values = {key.removeprefix("base_model.model."): value for key, value in load_file(weights).items()}
    expected = set(get_peft_model_state_dict(backbone, save_embedding_layers=False))
    check_names(expected - set(values), set(values) - expected, str(Path(weights).parent))
    set_peft_model_state_dict(backbone, values)
    for stored, parameter in _backbone_parameters(model):
        if stored.startswith(ADAPTER_PREFIX):
            parameter.requires_grad_(False)


def _keep_float32(backbone: PreTrainedModel) -> None:
    """Cast the adapter to float32: half precision loses small updates."""
    from peft.tuners.tuners_utils import cast_adapter_dtype

    cast_adapter_dtype(backbone, adapter_name="default")
