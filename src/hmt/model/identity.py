"""A short digest of a model's weights, so that a memory is not read by a model that did not write it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import nn

SAMPLES = 16
"""Values taken from each parameter."""


@torch.no_grad()
def weights_digest(parameters: Iterable[nn.Parameter], exact: bool = False) -> str:
    """Digest of a few values of every parameter.

    Args:
        parameters: Of the model, in order.
        exact: Notice every change of those values; otherwise they are rounded to bfloat16, so that a model that was
            loaded in bfloat16 has the digest it has in float32.
    """
    samples = []
    for parameter in parameters:
        flat = parameter.detach().reshape(-1)
        stride = max(flat.numel() // SAMPLES, 1)
        sample = flat[::stride][:SAMPLES]
        samples.append((sample if exact else sample.to(torch.bfloat16)).float())
    values = torch.cat([sample.to(samples[0].device) for sample in samples]) if samples else torch.zeros(0)
    return hashlib.sha256(values.cpu().numpy().tobytes()).hexdigest()[:16]
