"""Dynamic reading speed: shorter sensory memory and longer segments where the text stays on its topic.

After a segment that recalled one of the last two segments most, the next one is read fast: half the sensory tokens, and
as many more fresh ones. A learned linear map carries memory embeddings between the two speeds: the bank holds those of
both in the space of the normal one.

Source: the released program of HMT (arXiv:2405.06067), `--dynamic` and `--train_memory_map`.

Shape legend: B rows, R memory embeddings per segment, D embedding size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init

from hmt.config import MemoryConfig
from hmt.extensions import Extension, register_extension
from hmt.memory.state import MemoryState

FAST = "fast"
"""Name of the state: (B,) bool, rows whose segment at hand is read fast."""


@register_extension("dynamic_reading")
class DynamicReading(Extension):
    """Two reading speeds and the map between them.

    Attributes:
        weight: (D, D), from the normal speed to the fast one.
    """

    def __init__(self, config: MemoryConfig, width: int, vocabulary: int) -> None:
        super().__init__(config, width, vocabulary)
        self.weight = nn.Parameter(torch.eye(width))

    @staticmethod
    def enabled(config: MemoryConfig) -> bool:
        """True with `dynamic_reading` in mode hmt."""
        return config.speed_tokens > 0

    def initialise(self, backbone: nn.Module) -> None:
        """Start as the identity."""
        init.eye_(self.weight)

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        """All rows begin at the normal speed."""
        return {FAST: torch.zeros(batch_size, dtype=torch.bool)}

    def window_tokens(self, state: MemoryState, fresh: Tensor, sensory: Tensor) -> tuple[Tensor, Tensor]:
        """Move K // 2 tokens from sensory to fresh in rows that are read fast."""
        moved = self.config.speed_tokens * state.extras[FAST].long()
        return fresh + moved, sensory - moved

    def map_recalled(self, state: MemoryState, recalled: Tensor) -> Tensor:
        """Recalled embeddings of rows that are read fast go through the map."""
        with torch.autocast(recalled.device.type, enabled=False):
            mapped = (recalled.float() @ self.weight.float().T).to(recalled.dtype)
        return torch.where(state.extras[FAST].to(recalled.device)[:, None, None], mapped, recalled)

    def after_segment(
        self, state: MemoryState, left_behind: Tensor, complete: Tensor, near: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Embeddings of rows that were read fast go back through the map; near rows are read fast next."""
        fast = state.extras[FAST]
        if fast.any():
            with torch.autocast(left_behind.device.type, enabled=False):
                flat = left_behind.float().flatten(0, 1)
                solved = torch.linalg.solve(self.weight.float().T, flat, left=False).view_as(left_behind)
            rows = fast.to(left_behind.device)[:, None, None]
            left_behind = torch.where(rows, solved.to(left_behind.dtype), left_behind)
        return left_behind, {FAST: torch.where(complete, near, fast)}
