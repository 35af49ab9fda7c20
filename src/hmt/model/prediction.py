"""From hidden states to logits: the backbone's head, and what copying adds to it.

Shape legend: B rows, l tokens of a step, n places, D embedding size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hmt.memory.copying import Copies
from hmt.model.backbone import head


def predict(backbone: PreTrainedModel, states: Tensor, copies: Copies | None, places: Tensor) -> Tensor:
    """Logits (n, V) float32 of the token after some places.

    Args:
        backbone: Gives the head.
        states: Last hidden states, (n, D).
        copies: Of the step that they are from, or None without copying.
        places: (n,) int64, where in that step they are: row times its columns, plus column.
    """
    logits = head(backbone, states).float()
    return logits if copies is None else copies.add_to(logits, places)


def predict_all(backbone: PreTrainedModel, hidden: Tensor, copies: Copies | None) -> Tensor:
    """Logits (B, l, V) of a whole step from its hidden states (B, l, D); float32 where something is copied."""
    if copies is None:
        return head(backbone, hidden)
    places = torch.arange(hidden.shape[0] * hidden.shape[1], device=hidden.device)
    return predict(backbone, hidden.flatten(0, 1), copies, places).unflatten(0, hidden.shape[:2])
