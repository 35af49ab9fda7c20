"""The bank: what is appended, packed and noted, row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from hmt.config import MemoryConfig
from hmt.memory.bank import Bank
from hmt.memory.retention import Fifo

FIFO = Fifo(MemoryConfig(), 3)


def fill(bank: Bank, count: int, capacity: int, rows: list[bool] | None = None, per_segment: int = 1) -> Bank:
    """Append `count` segments whose embeddings hold their own number."""
    batch = bank.valid.shape[0]
    active = torch.tensor(rows or [True] * batch)
    read = bank.segments.masked_fill(~bank.valid, -1).max(dim=1).values + 1 if bank.valid.shape[1] else 0
    for number in range(count):
        segments = torch.full((batch,), number) + read
        embeddings = segments[:, None, None].float().expand(batch, per_segment, 3)
        tokens = segments[:, None].expand(batch, 2) if active.any() else segments[:, None][:, :0]
        bank = FIFO.make_room(bank.append(embeddings, active, segments, tokens), capacity)
    return bank


def empty(batch: int = 1) -> Bank:
    """A bank of width 3, of segments of two tokens."""
    return Bank.empty(batch, 3, 2, torch.device("cpu"), torch.float32)


def contents(bank: Bank, row: int = 0) -> list[int]:
    """What a row holds, in order."""
    held: Tensor = bank.embeddings[row][bank.valid[row]][:, 0]
    assert torch.equal(held.long(), bank.segments[row][bank.valid[row]])
    assert torch.equal(held.int()[:, None].expand(-1, 2), bank.tokens[row][bank.valid[row]])
    return held.long().tolist()


def test_a_full_bank_drops_the_oldest_and_never_holds_one_too_many() -> None:
    for count in range(10):
        bank = fill(empty(), count, capacity=4)
        assert contents(bank) == list(range(max(count - 4, 0), count))
        assert bank.valid.shape[1] <= 4


def test_each_row_has_its_own_capacity() -> None:
    bank = fill(empty(2), 3, capacity=4)
    bank = fill(bank, 4, capacity=4, rows=[True, False])
    assert contents(bank, 0) == [3, 4, 5, 6]
    assert contents(bank, 1) == [0, 1, 2]
    assert bank.valid[1].tolist() == [True, True, True, False]


def test_several_embeddings_per_segment_leave_together_with_others_when_the_capacity_is_odd() -> None:
    bank = fill(empty(), 4, capacity=5, per_segment=2)
    assert contents(bank) == [1, 2, 2, 3, 3]


def test_the_last_embeddings_are_those_of_each_row() -> None:
    bank = fill(fill(empty(2), 2, capacity=5), 2, capacity=5, rows=[False, True])
    assert bank.last(1)[:, 0, 0].tolist() == [1.0, 3.0]


def test_gradients_flow_through_a_bank_that_overflows() -> None:
    embeddings = [torch.ones(1, 1, 3, requires_grad=True) for _ in range(6)]
    bank = empty()
    for number, embedding in enumerate(embeddings):
        bank = bank.append(embedding, torch.tensor([True]), torch.tensor([number]), torch.zeros(1, 2))
        bank = FIFO.make_room(bank, 4)
    bank.embeddings.sum().backward()
    assert [embedding.grad.sum().item() for embedding in embeddings] == [0, 0, 3, 3, 3, 3]


def test_usage_is_noted_for_the_rows_that_recalled() -> None:
    bank = fill(empty(2), 3, capacity=4).record_usage(torch.full((2, 2, 3), 0.5), torch.tensor([True, False]))
    assert bank.usage.tolist() == [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]


def test_values_are_averaged_within_a_segment_and_never_across_empty_slots() -> None:
    bank = fill(fill(empty(2), 2, capacity=9, per_segment=2), 1, capacity=9, rows=[True, False], per_segment=2)
    values = torch.tensor([[1.0, 3.0, 5.0, 5.0, 7.0, 9.0], [0.0, 2.0, 4.0, 4.0, 6.0, 6.0]])
    assert bank.per_segment(values).tolist() == [[2, 2, 5, 5, 8, 8], [1, 1, 4, 4, 6, 6]]
