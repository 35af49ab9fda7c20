"""Compiled backbones.

For reading, the body is compiled for the shapes that come again: whole windows, and groups of whole summaries.
Everything else (a text's last, shorter segment, a single summary, writing) runs as it is, so no shape is compiled for
one use. For training, the layers are compiled, for all shapes.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from hmt.model.backbone import body

SUMMARIES = 4
"""Segments summarised in one call of a compiled body: a group of few, so that few are left over."""


class CompiledBody:
    """A backbone's body, compiled anew for each shape it is called with.

    On a CPU bfloat16 weights are packed for the shape, so they must not change any more; packing float32 ones takes as
    much memory as they do and gains nothing.
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        def run(embeddings: Tensor) -> Tensor:
            return body(backbone, embeddings)

        self._run = torch.compile(run, dynamic=False)
        self._packs = backbone.device.type == "cpu" and backbone.dtype != torch.float32

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Last hidden states (B, M, D) of a window."""
        import torch._inductor.config as inductor

        packed = inductor.patch(freezing=True) if self._packs else contextlib.nullcontext()
        with packed:
            return self._run(embeddings)


def compile_layers(backbone: PreTrainedModel) -> None:
    """Compile a backbone's layers in place, one code for all of them and for windows of any length: for training.

    Unlike a `CompiledBody` they may change, and they keep less for the backward pass: what is cheap to compute again is
    computed again there.

    Raises:
        ValueError: If transformers does not tell what the layers of this family are.
    """
    layers = [module for module in backbone.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(f"the layers of {type(backbone).__name__} cannot be compiled one by one; leave out --compile")
    for layer in layers:
        layer.compile()
