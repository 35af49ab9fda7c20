"""Arguments that libraries pass to any causal LM, and what a model with a memory does with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

REFUSED = ("inputs_embeds", "past_key_values", "output_attentions", "output_hidden_states")
"""Arguments of a causal LM that a memory cannot serve at other than neutral values."""

IGNORABLE = ("use_cache", "cache_position", "logits_to_keep", "token_type_ids")
"""Arguments of a causal LM that change nothing here."""


def token_ids(input_ids: Tensor | None, neutral: dict[str, Any]) -> Tensor:
    """Check that all other arguments of a call are neutral, and return its token ids.

    Raises:
        ValueError: If one is not; names it.
    """
    for name in REFUSED:
        value = neutral.pop(name, None)
        if value is not None and value is not False:
            raise ValueError(f"{name} cannot be served by a model with a memory; leave it out")
    if input_ids is None:
        raise ValueError("input_ids is missing")
    positions = neutral.pop("position_ids", None)
    if positions is not None:
        expected = torch.arange(input_ids.shape[-1], device=positions.device).expand_as(positions)
        if not torch.equal(positions.long(), expected):
            raise ValueError("position_ids are counted by the memory; leave them out or count from 0")
    for name in IGNORABLE:
        neutral.pop(name, None)
    if neutral:
        raise ValueError(f"forward does not take {', '.join(sorted(neutral))}")
    return input_ids
