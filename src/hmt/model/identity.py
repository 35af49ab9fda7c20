"""A short digest of a model's weights, so that a memory is not read by a model that did not write it."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

SAMPLES = 16
"""Values taken from each parameter."""


@torch.no_grad()
def weights_digest(model: nn.Module) -> str:
    """Digest of a few values of every parameter, rounded to bfloat16 so that it survives a change of dtype."""
    samples = []
    for parameter in model.parameters():
        flat = parameter.detach().reshape(-1)
        stride = max(flat.numel() // SAMPLES, 1)
        samples.append(flat[::stride][:SAMPLES].to(torch.bfloat16).float())
    values = torch.cat([sample.to(samples[0].device) for sample in samples]) if samples else torch.zeros(0)
    return hashlib.sha256(values.cpu().numpy().tobytes()).hexdigest()[:16]
