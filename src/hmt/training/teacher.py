"""What a memory has to make up for: what the backbone predicts that has all of the text before it.

Shape legend: B rows, T tokens, D embedding size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hmt.model.backbone import body, embed, judging, max_positions
from hmt.model.modeling_hmt import HMTForCausalLM


class Teacher:
    """A model's own backbone, without memory, reading whole samples.

    Where a sample is longer than the backbone was made for, it is read in windows of that length which overlap by half,
    so that no token has less than half a window before it.

    Args:
        model: Whose backbone is frozen.
        adapted: Read with the model's adapter, as it has become by then; else without.
    """

    def __init__(self, model: HMTForCausalLM, adapted: bool = False) -> None:
        self._model = model
        self._adapted = adapted
        self._window = max_positions(model.backbone.config)

    @torch.no_grad()
    def states(self, input_ids: Tensor) -> Tensor:
        """Last hidden states (B, T, D) of input_ids (B, T), padded on the right where rows are shorter."""
        backbone = self._model.backbone
        with judging(backbone, self._adapted):
            embeddings, window = embed(backbone, input_ids), self._window or input_ids.shape[1]
            parts = [body(backbone, embeddings[:, :window])]
            for start in range(window // 2, embeddings.shape[1] - window // 2, window // 2):
                parts.append(body(backbone, embeddings[:, start : start + window])[:, window // 2 :])
            return torch.cat(parts, dim=1)[:, : input_ids.shape[1]]
