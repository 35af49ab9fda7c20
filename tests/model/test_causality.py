"""What may see what: a perturbed token changes nothing before it that is declared causal."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hmt import HMTForCausalLM
from tests.conftest import make_model, make_rolling, random_ids

FIELDS: list[dict[str, Any]] = [
    {"recall_query": "previous", "memory_injection": "published"},
    {"mode": "short_term"},
    {"mode": "rmt"},
    {"mode": "backbone"},
    {"dynamic_reading": True, "recall_query": "previous", "num_sensory": 8},
    {"sensory": "cache"},
    {"sensory": "cache", "recall_on": "segment"},
    {"sensory": "cache", "num_memory_tokens": 1, "num_sensory": 5},
]
READING_AHEAD: list[dict[str, Any]] = [
    {},
    {"memory_injection": "published"},
    {"dynamic_reading": True, "num_sensory": 8},
]
FEW = 20
"""Different tokens of a text whose segments are to have some in common."""


def make(fields: dict[str, Any]) -> HMTForCausalLM:
    """A tiny model with either form of sensory memory."""
    return make_rolling(**fields) if fields.get("sensory") == "cache" else make_model(**fields)


@pytest.mark.parametrize("fields", [*READING_AHEAD, *FIELDS], ids=str)
@torch.no_grad()
def test_no_causal_target_sees_a_later_token(fields: dict[str, Any]) -> None:
    model = make(fields)
    ids = 3 + random_ids(1, 60) % FEW
    base = model(ids, labels=ids)
    for place in range(1, 60, 2):
        changed = ids.clone()
        changed[0, place] = 3 + (changed[0, place] - 3 + 7) % FEW
        other = model(changed, labels=changed)
        # Target t is token t + 1: those of tokens before `place`.
        difference = (other.nll - base.nll)[0, : place - 1].abs()
        causal = base.causal_mask[0, : place - 1]
        assert not (difference[causal] > 1e-5).any(), place


@torch.no_grad()
def test_the_published_query_does_see_later_tokens_where_the_mask_says_so() -> None:
    """Otherwise the test above would pass for a mask that is False everywhere it need not be."""
    model = make_model(memory_injection="published")
    ids = random_ids(1, 56)
    base = model(ids, labels=ids)
    seen = torch.zeros(55, dtype=torch.bool)
    for place in range(1, 56):
        changed = ids.clone()
        changed[0, place] = (changed[0, place] - 3 + 7) % 200 + 3
        difference = (model(changed, labels=changed).nll - base.nll)[0].abs() > 1e-6
        seen[: place - 1] |= difference[: place - 1]
    # Within a segment, all but the last of the J = 7 summarised tokens are predicted by a prompt that read ahead.
    assert torch.equal(seen & base.causal_mask[0], torch.zeros_like(seen))
    assert seen[28:34].any()  # in segment 1 the bank holds one embedding, whatever the query
    assert (~base.causal_mask[0]).nonzero().flatten().tolist() == [
        t for n in (1, 2, 3) for t in range(14 * n, 14 * n + 6)
    ]


@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_all_targets_of_the_other_modes_are_causal(fields: dict[str, Any]) -> None:
    ids = random_ids(2, 45)
    assert make(fields)(ids).causal_mask.all()
