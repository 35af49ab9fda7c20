"""Windows of raw text show each target what they say; controls change what is recalled and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hmt.evaluation import readers
from hmt.evaluation.readers import WindowedBackbone, donors, score_with_other_banks
from hmt.text.batches import IGNORED
from tests.conftest import make_backbone, make_model, make_rolling, random_ids


def labelled(ids: Tensor, targets: int) -> Tensor:
    """Labels of the last targets."""
    return ids.masked_fill(torch.arange(ids.shape[1]) < ids.shape[1] - targets, IGNORED)


@torch.no_grad()
def nats(backbone: PreTrainedModel, context: Tensor, target: Tensor) -> Tensor:
    """Nats of one target (B,) after a context (B, T)."""
    return torch.nn.functional.cross_entropy(backbone(context).logits[:, -1].float(), target, reduction="none")


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "opt_projected", "gemma2", "mamba"])
@pytest.mark.parametrize("chunk", [1024, 16])
@torch.no_grad()
def test_a_window_that_holds_the_text_is_one_plain_forward_pass(
    family: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "CHUNK_POSITIONS", chunk)
    backbone, ids = make_backbone(family), random_ids(2, 60)
    output = WindowedBackbone(backbone, 512, 256).score(ids, labelled(ids, 25))
    expected = torch.nn.functional.cross_entropy(
        backbone(ids).logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none"
    )
    assert torch.allclose(output.nll[:, -25:], expected[:, -25:], atol=1e-4)
    assert not output.nll[:, :-25].any()
    assert output.scored_mask.sum() == 50
    assert float(output.loss) == pytest.approx(float(expected[:, -25:].mean()), abs=1e-4)


@pytest.mark.parametrize("stride", [1, 5, 8])
def test_a_sliding_window_is_what_brute_force_gives(stride: int) -> None:
    backbone, ids, window, targets = make_backbone(), random_ids(2, 50), 16, 23
    output = WindowedBackbone(backbone, window, stride).score(ids, labelled(ids, targets))
    first = ids.shape[1] - targets
    for column in range(first, ids.shape[1]):
        last = min(column - (column - first) % stride + stride, ids.shape[1]) - 1  # that shares the window
        context = ids[:, last - window : column]
        assert window - stride < context.shape[1] <= window
        expected = nats(backbone, context, ids[:, column])
        assert torch.allclose(output.nll[:, column - 1], expected, atol=1e-5)


def test_tokens_that_are_read_are_counted() -> None:
    backbone = make_backbone()
    assert WindowedBackbone(backbone, None).read_tokens(100, 20) == 100
    assert WindowedBackbone(backbone, 512, 256).read_tokens(100, 20) == 100
    # The first window of 8 targets ends before token 87 and begins at 71.
    assert WindowedBackbone(backbone, 16, 8).read_tokens(100, 20) == 100 - 71


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
