"""`hmt convert`: weights of the published HMT program to a native checkpoint."""

from __future__ import annotations

from typing import Any

from hmt.cli.writing import ConvertOptions
from hmt.model.legacy import convert_checkpoint


def run(options: ConvertOptions) -> tuple[dict[str, Any], str]:
    """Convert, and say what was left out.

    Returns:
        Figures of the new checkpoint, and a closing line.
    """
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
