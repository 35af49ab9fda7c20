"""Controls change what is recalled and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hmt.evaluation.controls import donors, score_with_other_banks
from hmt.text.batches import IGNORED
from tests.conftest import make_model, make_rolling, random_ids

FRESH = 14


def sample(ids: Tensor, targets: int) -> tuple[Tensor, Tensor]:
    """A batch and its labels."""
    return ids, ids.masked_fill(torch.arange(ids.shape[1]) < ids.shape[1] - targets, IGNORED)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"recall_query": "previous"},
        {"num_memory_tokens": 2},
        {"recall_query": "previous", "dynamic_reading": True},
        {"sensory": "cache", "num_memory_tokens": 1},
    ],
    ids=str,
)
def test_equal_texts_may_exchange_their_banks(fields: dict[str, Any]) -> None:
    rolling = fields.get("sensory") == "cache"
    room = {"segment_length": 22} if "num_memory_tokens" in fields and not rolling else {}
    model = (make_rolling if rolling else make_model)(**room, **fields)
    for context in (3 * FRESH, 2 * FRESH + 5, 6):
        ids, labels = sample(random_ids(1, context + 20), 20)
        (first, second) = score_with_other_banks(model, [(ids, labels), (ids, labels)], [0, 1])
        expected = model(ids, labels=labels)
        for output in (first, second):
            assert torch.allclose(output.nll, expected.nll, atol=1e-4)
            assert torch.equal(output.scored_mask, expected.scored_mask)
            assert torch.equal(output.causal_mask, expected.causal_mask)


def test_another_texts_bank_changes_the_targets_but_the_first() -> None:
    model = make_model(memory_gain=2.0)
    ids, labels = sample(random_ids(2, 3 * FRESH + 20), 20)
    (shuffled,) = score_with_other_banks(model, [(ids, labels)], [0, 1])
    own = model(ids, labels=labels).nll
    assert torch.allclose(shuffled.nll[:, -20], own[:, -20], atol=1e-5)  # predicted from the segment before
    assert (shuffled.nll[:, -19:] - own[:, -19:]).abs().max() > 1e-3
    # The same by hand: read the context, exchange the banks, read on.
    one, other = (model.remember(row[None, : 3 * FRESH]) for row in ids)
    by_hand = model(ids[:1, 3 * FRESH :], memory=type(one)(**{**vars(one), "bank": other.bank}), labels=ids[:1, 42:])
    assert torch.allclose(shuffled.nll[0, -19:], by_hand.nll[0], atol=1e-5)


def test_one_by_one_is_side_by_side() -> None:
    model = make_model()
    ids, labels = sample(random_ids(3, 60), 18)
    (together,) = score_with_other_banks(model, [(ids, labels)], [0, 1, 2])
    apart = score_with_other_banks(model, [(ids[n : n + 1], labels[n : n + 1]) for n in range(3)], [0, 1, 2])
    assert torch.allclose(together.nll, torch.cat([output.nll for output in apart]), atol=1e-5)


def test_a_donor_is_of_another_document_where_there_is_one() -> None:
    assert donors([0, 0, 1]) == [2, 2, 0]
    assert donors([5, 5]) == [1, 0]
    with pytest.raises(ValueError, match="max_documents"):
        donors([0])
