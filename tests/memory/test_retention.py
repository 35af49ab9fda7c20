"""Retention policies: what stays, exactly how much, in which order, and what learns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import hmt
from hmt.config import MemoryConfig
from hmt.memory.bank import Bank
from hmt.memory.recall import Memory
from hmt.memory.retention import POLICIES, MergeNeighbours, RetentionPolicy, register_policy, retention_policy
from tests.conftest import make_model, random_ids

BUILT_IN = ("fifo", "usage", "attention", "merge")
WIDTH = 8


def policy(name: str, seed: int = 0, **fields: Any) -> RetentionPolicy:
    """A policy as a new model has it."""
    torch.manual_seed(seed)
    config = MemoryConfig(memory_policy=name, **{"num_memory_tokens": 1} | fields)
    made = retention_policy(name)(config, WIDTH)
    with torch.no_grad():
        made.initialise()
    return made


def empty(rows: int = 1) -> Bank:
    """A bank of segments of two tokens."""
    return Bank.empty(rows, WIDTH, 2, torch.device("cpu"), torch.float32)


def append(bank: Bank, embeddings: Tensor, number: int, rows: list[bool] | None = None) -> Bank:
    """One more segment (B, R, D); its tokens are its number."""
    count = len(embeddings)
    numbers = torch.full((count,), number)
    return bank.append(embeddings, torch.tensor(rows or [True] * count), numbers, numbers[:, None].expand(-1, 2))


def kept(bank: Bank, row: int = 0) -> list[int]:
    """Numbers of the segments that a row keeps, in order."""
    numbers = bank.segments[row][bank.valid[row]]
    assert torch.equal(bank.tokens[row][bank.valid[row]][:, 0].long(), numbers)
    return numbers.tolist()


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("per_segment", [1, 2])
def test_each_row_holds_exactly_its_capacity_in_order_of_age_without_empty_slots(name: str, per_segment: int) -> None:
    torch.manual_seed(1)
    made, bank, read = policy(name, num_memory_tokens=per_segment, retention_protected=2), empty(3), [0, 0, 0]
    capacity = 4 * per_segment
    for number in range(12):
        rows = [True, number % 2 == 0, number < 3]
        bank = append(bank, torch.randn(3, per_segment, WIDTH), number, rows)
        if bank.valid.shape[1] > capacity:
            bank = made.make_room(bank, capacity)
        bank = bank.record_usage(torch.rand(3, 1, bank.valid.shape[1]), torch.ones(3, dtype=torch.bool))
        for row in range(3):
            read[row] += rows[row]
            numbers = kept(bank, row)
            assert len(numbers) == min(read[row], 4) * per_segment
            assert numbers == sorted(numbers)
            assert all(numbers.count(one) == per_segment for one in numbers)
            assert not bank.valid[row, len(numbers) :].any()
            assert bank.embeddings[row][bank.valid[row]].abs().sum(dim=-1).min() > 0
    assert bank.valid.shape[1] == capacity


@pytest.mark.parametrize("name", ["usage", "attention", "merge"])
def test_segments_stay_or_leave_whole_where_the_capacity_is_odd(name: str) -> None:
    torch.manual_seed(2)
    made, bank = policy(name, num_memory_tokens=2, retention_protected=1), empty()
    for number in range(6):
        bank = append(bank, torch.randn(1, 2, WIDTH), number)
        if bank.valid.shape[1] > 5:
            bank = made.make_room(bank, 5)
    assert len(kept(bank)) == 4
    assert all(kept(bank).count(number) == 2 for number in kept(bank))
    odd = policy("fifo").make_room(append(bank, torch.randn(1, 2, WIDTH), 6), 5)  # a part of a segment is left
    assert len(kept(odd)) == 5
    whole = made.make_room(append(odd, torch.randn(1, 2, WIDTH), 7), 5)
    assert len(kept(whole)) in (4, 5)
    assert kept(whole).count(7) == 2 or name == "attention"


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_bank_far_above_its_new_capacity_is_cut_at_once(name: str) -> None:
    torch.manual_seed(3)
    bank = empty(2)
    for number in range(9):
        bank = append(bank, torch.randn(2, 1, WIDTH), number, [True, number < 2])
    cut = policy(name, retention_protected=1).make_room(bank, 3)
    assert cut.valid.tolist() == [[True] * 3, [True, True, False]]
    assert kept(cut, 1) == [0, 1]


def test_the_least_used_leaves_and_the_newest_are_protected() -> None:
    bank = empty()
    for number in range(5):
        bank = append(bank, torch.ones(1, 1, WIDTH), number)
    bank = bank.record_usage(torch.tensor([[[0.5, 0.1, 0.3, 0.1, 0.0]]]), torch.tensor([True]))
    assert kept(policy("usage", retention_protected=1).make_room(bank, 3)) == [0, 2, 4]
    assert kept(policy("usage", retention_protected=2).make_room(bank, 3)) == [0, 3, 4]


def test_at_a_tie_the_older_leaves() -> None:
    bank = empty()
    for number in range(5):
        bank = append(bank, torch.ones(1, 1, WIDTH), number)
    assert kept(policy("usage", retention_protected=1).make_room(bank, 3)) == [2, 3, 4]


@torch.no_grad()
def test_attention_received_is_the_mean_over_heads_and_the_slots_of_other_segments() -> None:
    made, bank = policy("attention", retention_heads=2), empty(2)
    for number in range(4):
        bank = append(bank, torch.randn(2, 1, WIDTH), number, [True, number < 3])
    scores = made.scores(bank)
    for row, count in enumerate((4, 3)):
        values = bank.embeddings[row, :count]
        values = values / values.pow(2).mean(-1, keepdim=True).sqrt()
        expected = torch.zeros(count)
        for head in range(2):
            part = slice(16 * head, 16 * head + 16)
            logits = made.wq(values)[:, part] @ made.wk(values)[:, part].T
            expected += logits.fill_diagonal_(-torch.inf).softmax(-1).sum(0) / (count - 1) / 2
        torch.testing.assert_close(scores[row, :count], expected)
    assert kept(made.make_room(bank, 3)) == [n for n in range(4) if n != int(scores[0, :4].argmin())]
    assert made.recall_bias(append(empty(), torch.ones(1, 1, WIDTH), 0)).tolist() == [[0.0]]


def test_the_two_neighbours_most_alike_become_their_weighted_mean() -> None:
    bank = empty()
    axes = torch.eye(WIDTH)
    for number, embedding in enumerate((axes[0], 2 * axes[1], axes[1], axes[2], axes[1])):
        bank = append(bank, embedding[None, None], number)
    bank = bank.record_usage(torch.tensor([[[0.0, 0.2, 0.3, 0.1, 0.4]]]), torch.tensor([True]))
    merged = policy("merge").make_room(bank, 4)
    assert kept(merged) == [0, 2, 3, 4]
    torch.testing.assert_close(merged.embeddings[0, 1], 1.5 * axes[1])
    assert merged.merged.tolist() == [[1, 2, 1, 1]]
    assert merged.usage[0, 1].item() == pytest.approx(0.5)
    again = policy("merge").make_room(append(merged.keep(merged.valid[:, :2], 2), 3 * axes[1][None, None], 5), 2)
    torch.testing.assert_close(again.embeddings[0, 1], 2 * axes[1])  # (2 * 1.5 + 3) / 3
    assert again.merged.tolist() == [[1, 3]]
    assert kept(again) == [0, 2]  # the heavier gives the tokens


@pytest.mark.parametrize("name", BUILT_IN)
def test_gradients_flow_to_what_stays(name: str) -> None:
    torch.manual_seed(4)
    bank, parts = empty(), [torch.randn(1, 1, WIDTH, requires_grad=True) for _ in range(6)]
    made = policy(name, retention_protected=1)
    for number, part in enumerate(parts):
        bank = append(bank, part, number)
        if bank.valid.shape[1] > 3:
            bank = made.make_room(bank, 3)
    bank.embeddings.sum().backward()
    reached = [number for number, part in enumerate(parts) if part.grad is not None and part.grad.abs().max() > 0]
    assert reached == (list(range(6)) if name == "merge" else kept(bank))


def test_every_parameter_of_the_attention_policy_gets_a_gradient() -> None:
    model = make_model(memory_policy="attention").train()
    ids = random_ids(2, 140)
    model(ids, labels=ids, return_logits=False).loss.backward()
    for name, parameter in model.memory.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_a_model_in_half_precision_keeps_what_it_should() -> None:
    model = make_model(memory_policy="attention").to(torch.bfloat16)
    assert len(kept_by(model)) == 5
    bank = model.remember(random_ids(1, 140)).bank
    assert model.memory.retention.scores(bank).dtype == torch.float32


def marked_texts(count: int, segments: int) -> tuple[Tensor, Tensor, Tensor]:
    """Texts whose segments are noise, but for two that carry a mark and what will be asked: embeddings (B, n, D)."""
    embeddings = torch.randn(count, segments, WIDTH)
    embeddings[..., 0] = 0
    places = torch.stack([torch.randperm(segments)[:2] for _ in range(count)])
    embeddings[torch.arange(count)[:, None], places, 0] = 3.0
    wanted = embeddings[torch.arange(count)[:, None], places].mean(dim=1)
    return embeddings, wanted, places


def read_marked(memory: Memory, embeddings: Tensor, capacity: int) -> tuple[Tensor, Bank]:
    """What a neutral question recalls after all segments, and the bank."""
    bank = empty(len(embeddings))
    for number in range(embeddings.shape[1]):
        bank = append(bank, embeddings[:, number : number + 1], number)
        if bank.valid.shape[1] > capacity:
            bank = memory.retention.make_room(bank, capacity)
    question = torch.ones(len(embeddings), 1, WIDTH)
    recalled, _ = memory.recall(question, bank, memory.retention.recall_bias(bank))
    return recalled[:, 0], bank


def test_attention_learns_what_to_keep_and_beats_fifo_where_the_capacity_binds() -> None:
    config = MemoryConfig(memory_policy="attention", num_memory_tokens=1, mem_recall_hidden_dim=8, mem_recall_context=4)
    torch.manual_seed(5)
    memory = Memory(config, WIDTH)
    with torch.no_grad():
        memory.initialise(torch.zeros(WIDTH), torch.tensor(1.0))
        memory.recall.wq.weight.zero_()  # recall itself learns nothing: what is recalled is decided by the policy alone
    optimizer = torch.optim.Adam(memory.retention.parameters(), lr=0.02)
    for _ in range(150):
        embeddings, wanted, _ = marked_texts(32, 8)
        recalled, _ = read_marked(memory, embeddings, capacity=8)
        loss = (recalled - wanted).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    embeddings, _, places = marked_texts(64, 24)
    shares = {}
    for name in ("attention", "fifo"):
        chooser = memory if name == "attention" else Memory(MemoryConfig(num_memory_tokens=1), WIDTH)
        with torch.no_grad():
            _, bank = read_marked(chooser, embeddings, capacity=4)
        shares[name] = (bank.segments[:, :, None] == places[:, None]).any(dim=1).float().mean().item()
    assert shares["attention"] > 0.9
    assert shares["fifo"] < 0.4


@pytest.fixture
def newest_first() -> Iterator[str]:
    """A policy that users might write, for as long as a test lasts."""

    @register_policy("oldest_stays")
    class OldestStays(hmt.RetentionPolicy):
        def scores(self, bank: Bank) -> Tensor:
            return -bank.segments.float()

    yield "oldest_stays"
    del POLICIES["oldest_stays"]


def test_a_policy_of_ones_own_is_one_class_with_one_method(newest_first: str) -> None:
    model = make_model(memory_policy=newest_first)
    assert kept_by(model) == [0, 1, 2, 3, 4]
    assert kept_by(make_model().variant(memory_policy=newest_first)) == [0, 1, 2, 3, 4]


def kept_by(model: hmt.HMTForCausalLM) -> list[int]:
    """Segments in the bank after ten were read."""
    bank = model.remember(random_ids(1, 140)).bank
    return bank.segments[0][bank.valid[0]].tolist()


def test_names_are_taken_once_and_unknown_ones_refused(newest_first: str) -> None:
    with pytest.raises(ValueError, match="fifo"):
        register_policy("fifo")(MergeNeighbours)
    with pytest.raises(TypeError, match="RetentionPolicy"):
        register_policy("newest")(max)  # type: ignore[type-var]
    with pytest.raises(ValueError, match=r"memory_policy .*oldest_stays.*newest"):
        make_model(memory_policy="newest")


def test_a_model_read_with_another_policy_goes_on_from_the_same_memory() -> None:
    model = make_model()
    state = model.remember(random_ids(1, 100))
    for name in BUILT_IN:
        reader = model.variant(memory_policy=name)
        after = reader.remember(random_ids(1, 100, seed=1), state)
        assert after.bank.valid.sum() == 5
        assert model.remember(random_ids(1, 10), after).bank.valid.sum() == 5


def test_protection_that_leaves_nothing_to_drop_is_refused() -> None:
    with pytest.raises(ValueError, match=r"retention_protected .*5"):
        make_model(memory_policy="usage", retention_protected=5)


def test_a_checkpoint_is_read_with_the_policy_that_is_asked_for(tmp_path: Any) -> None:
    model = make_model(memory_policy="attention")
    with torch.no_grad():
        model.memory.retention.wq.bias.normal_()
    model.save_pretrained(tmp_path / "attention")
    again = hmt.HMTForCausalLM.from_pretrained(tmp_path / "attention")
    assert torch.equal(again.memory.retention.wq.bias, model.memory.retention.wq.bias)
    plain = hmt.HMTForCausalLM.from_pretrained(tmp_path / "attention", memory_policy="fifo")
    assert kept_by(plain) == [5, 6, 7, 8, 9]
    plain.save_pretrained(tmp_path / "fifo")
    fitted = hmt.HMTForCausalLM.from_pretrained(tmp_path / "fifo", memory_policy="attention")
    assert fitted.memory.retention.wq.weight.std() > 0  # a new policy, ready to be used
    assert torch.equal(fitted.memory.retention.wq.weight, fitted.memory.retention.wk.weight)
    assert len(kept_by(fitted)) == 5
