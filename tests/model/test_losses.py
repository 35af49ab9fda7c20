"""The retrieval loss: what recall should have looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from hmt.text.batches import Batch
from tests.conftest import make_model, random_ids

IDS = random_ids(2, 14 * 4)
SUPPORTING = torch.tensor([[True, False, False], [False, True, True]])


def model(**fields: Any) -> Any:
    """A tiny model whose recall is not even."""
    made = make_model(**fields)
    with torch.no_grad():
        made.memory.recall.wq.weight.mul_(5)
    return made


@torch.no_grad()
def test_it_is_minus_the_logarithm_of_the_weight_on_supporting_segments() -> None:
    output = model()(IDS, labels=IDS, supporting=SUPPORTING, output_recall=True, retrieval_loss_weight=0.5)
    last = output.recall.weights[-1][:, 0]
    expected = -torch.stack([last[0, 0], last[1, 1] + last[1, 2]]).log().mean()
    torch.testing.assert_close(output.retrieval_loss, expected)
    plain = model()(IDS, labels=IDS).loss
    torch.testing.assert_close(output.loss, plain + 0.5 * expected)
    torch.testing.assert_close(model()(IDS, labels=IDS, supporting=SUPPORTING).loss, plain + expected)  # weight 1
    by_number = model()(IDS, supporting=[[0], [1, 2]])
    torch.testing.assert_close(by_number.retrieval_loss, expected)
    assert by_number.loss is None


@torch.no_grad()
def test_each_segment_may_have_its_own_support() -> None:
    supporting = torch.zeros(2, 4, 4, dtype=torch.bool)
    supporting[0, 2, 1] = supporting[1, 3, 0] = True
    output = model()(IDS, supporting=supporting, output_recall=True)
    expected = -torch.stack([output.recall.weights[1][0, 0, 1], output.recall.weights[2][1, 0, 0]]).log().mean()
    torch.testing.assert_close(output.retrieval_loss, expected)
    assert model()(IDS, supporting=torch.zeros(2, 4, 4)).retrieval_loss == 0


@torch.no_grad()
def test_rows_of_different_length_ask_at_their_own_end_and_memories_count_from_their_beginning() -> None:
    reader = model()
    mask = torch.ones(2, 56)
    mask[1, 40:] = 0
    both = reader(IDS, attention_mask=mask, supporting=[[1], [0]]).retrieval_loss
    alone = [reader(IDS[:1], supporting=[[1]]), reader(IDS[1:, :40], supporting=[[0]])]
    torch.testing.assert_close(both, torch.stack([one.retrieval_loss for one in alone]).mean())
    before = reader(IDS[:1, :28]).memory
    later = reader(IDS[:1, 28:], memory=before, supporting=[[1]]).retrieval_loss
    torch.testing.assert_close(later, alone[0].retrieval_loss)


@torch.no_grad()
def test_what_the_bank_no_longer_keeps_cannot_be_asked_for() -> None:
    small = model(mem_recall_context=2)
    assert small(IDS, supporting=[[0], [0]]).retrieval_loss == 0
    first = small(IDS[1:], supporting=[[2]]).retrieval_loss
    torch.testing.assert_close(small(IDS, supporting=[[0], [2]]).retrieval_loss, first)
    assert model()(IDS, supporting=[[7], [9]]).retrieval_loss == 0


@pytest.mark.parametrize("fields", [{}, {"memory_policy": "attention"}, {"num_memory_tokens": 2}], ids=str)
def test_it_teaches_the_projections_alone_to_recall_the_support(fields: dict[str, Any]) -> None:
    learner = make_model(**fields).train()
    parts = [learner.memory.recall.wq.weight, learner.memory.recall.wk.weight]
    optimizer = torch.optim.Adam([*parts, *learner.memory.retention.parameters()], lr=0.01)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = learner(IDS, supporting=SUPPORTING, return_logits=False).retrieval_loss
        loss.backward()
        assert all(part.grad.abs().max() > 0 for part in parts)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@torch.no_grad()
def test_the_retention_loss_is_minus_the_logarithm_of_what_supporting_slots_are_worth() -> None:
    learner = make_model(memory_policy="attention", mem_recall_context=3)
    output = learner(IDS, labels=IDS, supporting=SUPPORTING, retrieval_loss_weight=0.5)
    worth = learner.memory.retention.scores(output.memory.bank)
    shares = worth / worth.sum(dim=1, keepdim=True)
    numbers = output.memory.bank.segments
    wanted = [
        shares[row, (numbers[row] == n).nonzero()[0, 0]] for row, n in ((0, 0), (1, 1), (1, 2)) if n in numbers[row]
    ]
    torch.testing.assert_close(output.retention_loss, -torch.stack(wanted).log().mean())
    extra = 0.5 * (output.retrieval_loss + output.retention_loss)
    torch.testing.assert_close(output.loss, learner(IDS, labels=IDS).loss + extra)
    assert make_model()(IDS, labels=IDS, supporting=SUPPORTING).retention_loss is None


def test_the_retention_loss_teaches_a_policy_to_keep_what_is_asked_for() -> None:
    learner = make_model(memory_policy="attention").train()
    optimizer = torch.optim.Adam(learner.memory.retention.parameters(), lr=0.03)
    for _ in range(30):
        optimizer.zero_grad()
        learner(IDS, supporting=[[0], [0]], return_logits=False).retention_loss.backward()
        optimizer.step()
    small = learner.eval().variant(mem_recall_context=2)
    assert (small(IDS).memory.bank.segments[:, 0] == 0).all()
    assert (make_model(mem_recall_context=2)(IDS).memory.bank.segments[:, 0] > 0).all()  # fifo


def test_modes_that_recall_nothing_have_no_retrieval_loss() -> None:
    output = make_model(mode="short_term")(IDS, labels=IDS, supporting=SUPPORTING)
    assert output.retrieval_loss is None
    torch.testing.assert_close(output.loss, make_model(mode="short_term")(IDS, labels=IDS).loss)


@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 3), (2,)])
def test_a_shape_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"supporting must be \(rows, segments\) .* with 2 row\(s\), got"):
        model()(IDS, supporting=torch.ones(shape))


def test_a_batch_in_parts_keeps_its_supporting_segments() -> None:
    batch = Batch(IDS, torch.ones_like(IDS, dtype=torch.bool), IDS, SUPPORTING)
    assert [part.supporting.tolist() for part in batch.split(1)] == [[row] for row in SUPPORTING.tolist()]
    assert Batch(IDS, IDS.bool(), IDS).split(1)[0].supporting is None


def test_it_works_through_a_wrapper_that_waits_for_every_gradient(tmp_path: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        learner = make_model(memory_policy="attention").train()
        learner.freeze_backbone()
        wrapped = DistributedDataParallel(learner)
        for supporting in (SUPPORTING, None, torch.zeros(2, 3)):  # a second step fails where a gradient was missing
            output = wrapped(IDS, labels=IDS, supporting=supporting, return_logits=False)
            output.loss.backward()
        assert all(p.grad.abs().max() > 0 for p in learner.memory.parameters())
    finally:
        distributed.destroy_process_group()
