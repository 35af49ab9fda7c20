"""`hmt convert`: turn weights of the published HMT program into a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmt.atomic import check_output_directory
from hmt.options import PublishedMemory


@dataclass(kw_only=True)
class ConvertOptions(PublishedMemory):
    """Convert weights of the published HMT program to a checkpoint of this library."""

    state: Path
    """Weights: .safetensors, .pth or .bin (read without executing code), or a DeepSpeed directory."""
    backbone: Path
    """Directory with the backbone's config.json; its tokenizer is copied if there is one."""
    out: Path
    """Output directory of the checkpoint."""
    lora_alpha: int = 32
    """Alpha of the LoRA adapter, which the weights do not store."""
    trust_remote_code: bool = False
    """Allow the backbone's own Python code to run."""

    def check_outputs(self) -> None:
        """Raise an OSError if the checkpoint cannot be written."""
        check_output_directory(self.out)


def run(options: ConvertOptions) -> tuple[dict[str, Any], str]:
    """Convert, and name the weights that were left out.

    Returns:
        Figures of the new checkpoint, and a closing line.
    """
    from hmt.compat.legacy import convert_checkpoint

    model, left_out = convert_checkpoint(
        options.state,
        options.backbone,
        options.out,
        options,
        options.lora_alpha,
        trust_remote_code=options.trust_remote_code,
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    figures = {"out": str(options.out), "mode": model.config.mode, "parameters": parameters, "left_out": left_out}
    note = f"; left out: {', '.join(left_out)}" if left_out else ""
    return figures, f"converted {parameters:,} parameters, mode {model.config.mode}, to {options.out}{note}"
