"""DCT bottleneck: the input of each MLP of the backbone loses a band of its cosine coefficients.

The hidden dimension is taken apart by an orthonormal discrete cosine transform, the lowest and the highest coefficients
are dropped, and it is put together again: a projection without weights. It acts while the body of this model runs, so
variants of a model over one backbone may read with it and without.

Shape legend: D hidden size of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hmt.config import MemoryConfig
from hmt.extensions import Extension, register_extension

MLP_NAMES = ("mlp", "feed_forward", "feedforward", "ffn", "block_sparse_moe", "fc1")
"""Names that families give to the MLP of a layer, or to its first projection where it has no module of its own."""


def cosine_transform(size: int) -> Tensor:
    """The orthonormal discrete cosine transform (type II), (size, size) float32; row k is the k-th frequency."""
    place = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (place + 0.5) * place[:, None]) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def mlps(backbone: nn.Module) -> list[nn.Module]:
    """The MLPs of a backbone's layers, found by name.

    Raises:
        ValueError: If there are none; names the family.
    """
    found: dict[str, nn.Module] = {}
    for name, module in backbone.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if name.rpartition(".")[2] in MLP_NAMES and not inside:
            found[name] = module
    if not found:
        family = getattr(getattr(backbone, "config", None), "model_type", type(backbone).__name__)
        raise ValueError(
            f"inject_autoencoder needs MLPs, and family {family} has no module named {', '.join(MLP_NAMES)}"
        )
    return list(found.values())


@register_extension("dct_bottleneck")
class DctBottleneck(Extension):
    """Drops bands of cosine coefficients before the MLPs, and adds up what that loses."""

    def __init__(self, config: MemoryConfig, width: int, vocabulary: int) -> None:
        super().__init__(config, width, vocabulary)
        self._projections: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}
        self.reset()

    @staticmethod
    def enabled(config: MemoryConfig) -> bool:
        """True with `inject_autoencoder`."""
        return config.inject_autoencoder

    def initialise(self, backbone: nn.Module) -> None:
        """Refuse a backbone without MLPs."""
        mlps(backbone)

    def projection(self, size: int) -> Tensor:
        """Projection of a hidden state of this size, (D, D) float32."""
        low, high = (round(share * size) for share in (self.config.autoencoder_low, self.config.autoencoder_high))
        kept = cosine_transform(size)[low : size - high]
        return kept.T @ kept

    @contextmanager
    def around_body(self, backbone: nn.Module) -> Iterator[None]:
        """Project the input of the MLPs while the body runs."""
        handles = [mlp.register_forward_pre_hook(self._drop) for mlp in mlps(backbone)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @property
    def error(self) -> float | None:
        """Norm of the dropped part relative to the whole, mean over positions and layers; None before any."""
        return float(self._lost) / self._count if self._count else None

    def reset(self) -> None:
        """Count the error anew."""
        self._lost: Tensor | float = 0.0
        self._count = 0

    def _drop(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = inputs
        key = hidden.shape[-1], hidden.device, hidden.dtype
        if key not in self._projections:
            self._projections[key] = self.projection(hidden.shape[-1]).to(hidden.device, hidden.dtype)
        left = hidden @ self._projections[key]
        with torch.no_grad():
            whole, lost = (part.detach().float().norm(dim=-1) for part in (hidden, hidden - left))
            self._lost = self._lost + (lost / whole.clamp(min=1e-12)).sum()
            self._count += whole.numel()
        return (left, *rest)
