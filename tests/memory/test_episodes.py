"""Episodic recall: which segments are read again, and which of their tokens."""

from __future__ import annotations

import math
import random
import time

import pytest
import torch
from hmt.memory.episodes import (
    PHRASE_WEIGHTS,
    RARITY_STEPS,
    Episode,
    Past,
    candidate_slots,
    choose_episode,
    shared_phrases,
)
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hmt.memory.bank import Bank
from tests.conftest import make_model, random_ids


def bank_of(*segments: list[int], rows: int = 1, per_segment: int = 1) -> Bank:
    """A bank of these segments' tokens, the same in every row."""
    bank = Bank.empty(rows, 2, len(segments[0]), torch.device("cpu"), torch.float32)
    for number, tokens in enumerate(segments):
        every = torch.ones(rows, dtype=torch.bool)
        embeddings = torch.zeros(rows, per_segment, 2)
        bank = bank.append(embeddings, every, torch.full((rows,), number), torch.tensor([tokens]).expand(rows, -1))
    return bank


def lexical(bank: Bank, query: list[int], count: int, read: int | None = None) -> Episode:
    """What a query of tokens reads again, after `read` segments."""
    segments_read = torch.tensor([int(bank.segments.max()) + 2 if read is None else read])
    ids = torch.tensor([query])
    return choose_episode(bank, candidate_slots(bank, segments_read - 1), ids, torch.ones_like(ids).bool(), count)


BANK = bank_of([1, 2, 3, 4, 5, 6], [1, 7, 8, 9, 2, 3], [1, 10, 11, 12, 13, 14])


def by_hand(past: list[int], query: list[int], count: int) -> list[int]:
    """What each run of a text shares with a query, straight from the definition."""
    found = []
    for start in range(len(past)):
        run, total = past[start : start + count], 0
        for size, weight in PHRASE_WEIGHTS.items():
            runs, asked, told = (
                [tuple(ids[n : n + size]) for n in range(len(ids) - size + 1)] for ids in (run, query, past)
            )
            for phrase in set(runs) & set(asked):
                rarity = max(math.log((len(past) + 1) / (told.count(phrase) + 0.5)), 0.0)
                total += weight * math.ceil(RARITY_STEPS * rarity)
        found.append(total)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_shared_phrases_are_counted_as_they_are_defined(seed: int) -> None:
    chance = random.Random(seed)
    texts = [[chance.randrange(4) for _ in range(chance.randrange(20, 40))] for _ in range(3)]
    queries = [[chance.randrange(4) for _ in range(length)] for length in (12, 3, 1)]
    ids, valid = padded(texts, "right")
    asked, mask = padded(queries, "left")
    for count in (1, 2, 5, 9, 50):
        shared = shared_phrases(Past(ids, valid, torch.zeros_like(ids)), asked, mask, count)
        for row, (text, query) in enumerate(zip(texts, queries, strict=True)):
            assert shared[row, : len(text)].tolist() == by_hand(text, query, count)


def padded(texts: list[list[int]], side: str) -> tuple[Tensor, Tensor]:
    """Texts as rows of a batch, and their mask."""
    masks = pad_sequence([torch.ones(len(text)) for text in texts], batch_first=True, padding_side=side).bool()
    return pad_sequence([torch.tensor(text) for text in texts], batch_first=True, padding_side=side), masks


def test_the_run_with_most_of_the_query_is_read_again() -> None:
    episode = lexical(BANK, [9, 2, 3, 50], 3)
    assert episode.segments.tolist() == [[1, 1, 1]]
    assert episode.ids.tolist() == [[9, 2, 3]]
    assert episode.strongest.tolist() == [1]
    assert episode.valid.all()
    assert lexical(BANK, [2, 9, 50, 3], 3).ids.tolist() == [[12, 13, 14]]  # no phrase: what was read last


def test_a_run_goes_on_into_the_next_segment() -> None:
    episode = lexical(BANK, [6, 1, 7], 4)
    assert episode.ids.tolist() == [[6, 1, 7, 8]]
    assert episode.segments.tolist() == [[0, 1, 1, 1]]
    assert episode.chosen.tolist() == [[True, True, False]]
    longer = lexical(BANK, [6, 1, 7], 13)
    assert longer.ids.tolist() == [[6, 1, 7, 8, 9, 2, 3, 1, 10, 11, 12, 13, 14]]
    assert longer.strongest.tolist() == [1]
    everything = lexical(BANK, [6, 1, 7], 24)
    assert everything.segments.tolist() == [[0] * 6 + [1] * 6 + [2] * 6 + [-1] * 6]
    assert everything.valid.tolist() == [[True] * 18 + [False] * 6]


def test_the_segment_just_before_is_never_read_again() -> None:
    assert lexical(BANK, [10, 11, 2, 3], 3, read=3).segments.tolist() == [[1, 1, 1]]
    assert lexical(BANK, [10, 11, 12, 3], 3, read=4).segments.tolist() == [[2, 2, 2]]
    alone = lexical(bank_of([1, 2]), [1], 2, read=1)
    assert alone.segments.tolist() == [[-1, -1]]
    assert alone.strongest.tolist() == [-1]
    assert not alone.valid.any()
    assert not alone.chosen.any()


def test_a_segment_that_is_worth_most_is_the_one_that_is_read_again() -> None:
    ids, worth = torch.tensor([[10, 11, 12]]), torch.tensor([[0.2, 0.5, 0.3]])

    def chosen(count: int) -> list[int]:
        return choose_episode(BANK, BANK.valid, ids, ids > 0, count, worth).ids[0].tolist()

    assert chosen(3) == [9, 2, 3]
    assert chosen(10) == [1, 7, 8, 9, 2, 3, 1, 10, 11, 12]  # all of it, and more of the query's side


def test_several_slots_of_a_segment_are_one_segment() -> None:
    bank = bank_of([1, 2, 3], [4, 5, 6], [4, 8, 9], per_segment=2)
    episode = lexical(bank, [4, 5, 6], 5)
    assert episode.segments.tolist() == [[1, 1, 1, 2, 2]]
    assert episode.chosen.tolist() == [[False, False, True, True, True, True]]
    once = lexical(bank_of([1, 2, 3], [4, 5, 6], [4, 8, 9]), [4, 5, 6], 5)
    assert torch.equal(once.ids, episode.ids)


@pytest.mark.parametrize("mode", ["hmt", "backbone"])
@torch.no_grad()
def test_the_recalled_tokens_are_in_the_window_before_the_sensory_ones(mode: str) -> None:
    model = make_model(mode=mode, num_recalled_tokens=4, recall_query="previous", num_sensory=2)
    length = model.config.fresh_tokens
    ids = random_ids(1, 3 * length)
    query = ids[0, 2 * length : 3 * length][-model.config.summary_tokens :]
    ids[0, 3:5] = query[1:3]  # the first segment has two of the tokens that the third ends with
    state = model.remember(ids)
    output, _ = model.step(random_ids(1, length, seed=7), state)
    assert output.episode.segments[0, 0] == 0
    starts = [start for start in range(2 * length) if torch.equal(output.episode.ids[0], ids[0, start : start + 4])]
    assert starts == [3]  # the newest run that holds both
    if mode == "backbone":
        window = torch.cat([output.episode.ids, ids[:, -2:], random_ids(1, length, seed=7)], dim=1)
        torch.testing.assert_close(output.logits, model.backbone(window).logits[:, 6:], atol=1e-5, rtol=0)
        assert output.distances.tolist() == [3]
        assert state.bank.embeddings.shape == (1, 3, 0)


def copied(seed: int) -> Tensor:
    """A text of six segments of ten whose last but one begins like its second: what comes next was read before."""
    ids = random_ids(1, 60, seed=seed)
    ids[0, 40:45] = ids[0, 10:15]
    return ids


@pytest.mark.parametrize("selection", ["lexical", "attention", "similarity"])
@torch.no_grad()
def test_each_selection_takes_the_segment_that_is_worth_most_to_it(selection: str) -> None:
    model = make_model(num_recalled_tokens=4, recall_selection=selection)
    output = model(copied(3), output_recall=True)
    chosen = [int(episode.segments[0, 0]) for episode in output.recall.episodes]
    assert chosen[0] == -1  # there is only the segment just before
    if selection == "lexical":
        assert chosen[3] == 1
    if selection == "attention":
        for weights, segments, number in zip(output.recall.weights, output.recall.segments, chosen, strict=True):
            earlier = weights[0, 0] * (segments[0] < segments[0].max())
            assert number == -1 or number == int(segments[0, earlier.argmax()])


def test_what_was_read_again_can_be_read() -> None:
    model = make_model(num_recalled_tokens=4)
    out = model.generate(
        copied(3), max_new_tokens=30, eos_token_id=None, output_recall=True, return_dict_in_generate=True
    )
    text = out.sequences[0]
    runs = out.recall.read_again()
    assert runs
    for number, run in runs:
        segment = text[10 * number : 10 * number + 10].tolist()
        assert any(segment[start : start + 4] == run.tolist() for start in range(7))
    plain = make_model(mode="backbone", num_recalled_tokens=4)(copied(3), output_recall=True).recall
    assert sum(share for _, share in plain.strongest()) == pytest.approx(1)
    assert plain.distances


def test_a_full_bank_is_searched_in_milliseconds() -> None:
    bank = Bank.empty(1, 2, 222, torch.device("cpu"), torch.float32).append(
        torch.zeros(1, 300, 2), torch.tensor([True]), torch.tensor([0]), torch.zeros(1, 222, dtype=torch.long)
    )
    tokens = torch.randint(49152, (1, 300, 222), generator=torch.Generator().manual_seed(0)).int()
    bank = Bank(**vars(bank) | {"tokens": tokens, "segments": torch.arange(300)[None]})
    ids, seconds = torch.randint(49152, (1, 111)), []
    for _ in range(5):
        start = time.process_time()
        candidates = candidate_slots(bank, torch.tensor([300]))
        choose_episode(bank, candidates, ids, torch.ones_like(ids, dtype=torch.bool), 64)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.05
