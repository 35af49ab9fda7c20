"""The proving ground's tasks are what they say, and its recipe teaches a small model to recall."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from proving.measure import accuracy_by_distance
from proving.recipe import Recipe, make_model, train
from proving.tasks import ASK, IGNORED, MARK, TASKS, Recall, Task


class TwoFacts(Recall):
    """The smallest version: texts of five segments."""

    facts: ClassVar[int] = 2
    asked: ClassVar[int] = 2


def value_of(segment: list[int], key: int) -> int | None:
    """The value that a segment gives to a key in a marked fact."""
    facts = [segment[at + 1 : at + 3] for at, token in enumerate(segment[:-2]) if token == MARK]
    return next((value for name, value in facts if name == key), None)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_question_is_answered_by_the_segment_that_supports_it(task: Task) -> None:
    sample = task.sample(torch.Generator().manual_seed(0), rows=8)
    assert sample.ids.shape[1] == 9
    for ids, labels, supporting in zip(sample.ids.tolist(), sample.labels, sample.supporting, strict=True):
        asked = [number for number, segment in enumerate(ids) if segment[0] == ASK]
        assert len(asked) == 4
        for number in asked:
            *topic, key = ids[number][1 : task.question_tokens]
            (support,) = supporting[number].nonzero().flatten().tolist()
            scored = (labels[number] != IGNORED).nonzero().flatten().tolist()
            assert support < number
            assert ids[support][: len(topic)] == topic
            assert scored == [task.question_tokens]
            assert labels[number, task.question_tokens] == value_of(ids[support], key)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_distractors_hold_no_marked_fact(task: Task) -> None:
    generator = torch.Generator().manual_seed(0)
    opening = task.opening(generator, rows=4)
    assert not (task.distractors(generator, opening, 50) == MARK).any()


@pytest.mark.slow
def test_the_recipe_teaches_recall_from_far_beyond_the_training_distance() -> None:
    task, recipe = TwoFacts(), Recipe()
    model = make_model(task, "hmt", 0, recipe)
    for _ in train(model, task, 0, recipe, steps=200):
        pass
    near, far = accuracy_by_distance(model, task, 0, [1, 64], rows=64)
    assert near["accuracy"] > 0.6  # chance is 1 in 32
    assert far["accuracy"] > 0.6
    assert far["retrieved"] > 0.6
    assert far["shuffled"] < 0.15
