"""Recall across topics, by hand."""

from __future__ import annotations

import pytest
import torch

from hmt.metrics.topics import TopicRecall, segment_shares
from hmt.model.outputs import RecallTrace
from tests.conftest import make_model, random_ids


def trace(*weights: list[float]) -> RecallTrace:
    """One row of segments of two tokens; segment n recalls what the n-th list says of the segments before it."""
    return RecallTrace(
        weights=tuple(torch.tensor([[one]]) for one in weights),
        segments=tuple(torch.arange(len(one))[None] for one in weights),
        by_segment=tuple(torch.ones(1) for _ in range(len(weights) + 1)),
        starts=tuple(torch.tensor([2 * number]) for number in range(len(weights) + 1)),
    )


def test_recall_of_the_own_document_is_told_from_chance() -> None:
    # Segments of two tokens: A, B, filler, A, half A half B with one A more.
    origins = torch.tensor([0, 0, 1, 1, -1, -1, 0, 0, 0, 1])
    topics = TopicRecall()
    topics.add(trace([1.0], [0.5, 0.5], [0.6, 0.3, 0.1], [0.0, 0.25, 0.25, 0.5]), origins)
    found = topics.result()
    assert found["segments"] == 3  # the filler asks for nothing
    # B recalls A; A recalls A 0.6, B 0.3, filler 0.1; the mixed one counts as A: 0.5 of A, 0.25 of B, 0.25 of filler
    assert found["recalled_own"] == pytest.approx((0 + 0.6 + 0.5) / 3)
    assert found["recalled_filler"] == pytest.approx((0 + 0.1 + 0.25) / 3)
    assert found["recalled_other"] == pytest.approx((1 + 0.3 + 0.25) / 3)
    assert found["chance_own"] == pytest.approx((0 + 1 / 3 + 2 / 4) / 3)
    assert found["chance_filler"] == pytest.approx((0 + 1 / 3 + 1 / 4) / 3)


def test_shares_of_a_segment_are_those_of_its_tokens() -> None:
    shares, names = segment_shares(torch.tensor([3, 3, 3, -1, 5, 5, -1]), [4, 3])
    assert names.tolist() == [-1, 3, 5]
    assert shares.tolist() == [[0.25, 0.75, 0.0], [pytest.approx(1 / 3), 0.0, pytest.approx(2 / 3)]]


def test_even_weights_are_chance_whatever_the_model_read() -> None:
    model = make_model(mem_recall_context=3)
    with torch.no_grad():
        model.memory.recall.wq.weight.zero_()
    output = model(random_ids(2, 90), output_recall=True, return_logits=False)
    origins = torch.arange(90) // 20 % 2
    topics = TopicRecall()
    for row in range(2):
        topics.add(output.recall, origins, row)
    found = topics.result()
    assert found["segments"] == 2 * 6
    for part in ("own", "filler", "other"):
        assert found[f"recalled_{part}"] == pytest.approx(found[f"chance_{part}"])
    assert sum(found[f"recalled_{part}"] for part in ("own", "filler", "other")) == pytest.approx(1)


def test_rows_of_different_length_count_their_own_segments() -> None:
    model = make_model()
    ids, short = random_ids(2, 90), 40
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, short:] = False
    output = model(ids, attention_mask=mask, output_recall=True, return_logits=False)
    alone = model(ids[1:, :short], output_recall=True, return_logits=False)
    origins = torch.arange(short) // 10 % 2
    together, single = TopicRecall(), TopicRecall()
    together.add(output.recall, origins, row=1)
    single.add(alone.recall, origins)
    assert together.result() == pytest.approx(single.result(), abs=1e-4)
    assert together.segments == 2
