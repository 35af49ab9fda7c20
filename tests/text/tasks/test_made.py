"""Haystacks: needles can be found at the depth and in the length asked for, and stories are true."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path
from typing import Any

import pytest

from hmt.text.documents import hash_split
from hmt.text.questions import Question
from hmt.text.tasks import load_questions
from hmt.text.tasks.babi import made, stories_of

SUBSETS = [("needle", "passkey"), ("needle", "key_value"), ("babi", "qa1"), ("babi", "qa2"), ("babi", "qa3")]


@pytest.fixture
def book(tmp_path: Path) -> str:
    """A directory with one book a split."""
    for split in ("train", "test"):
        lines = [f"{split} line {number} goes on and on for a while." for number in range(500)]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines))
    return str(tmp_path)


def ask(task: str, book: str, **more: Any) -> list[Question]:
    """Questions of a generated task, measured in characters."""
    settings = {"lengths": (2000, 6000), "depths": (0.0, 0.3, 1.0), "per_cell": 2, "count_tokens": len} | more
    return load_questions(task, "test", haystack=book, **settings)


def misplaced(question: Question) -> float:
    """The share of the context by which the last supporting range misses the depth."""
    start, end = question.supporting[-1]
    assert question.depth is not None
    return abs(start / (len(question.context) - (end - start)) - question.depth)


@pytest.mark.parametrize(("task", "subset"), SUBSETS)
def test_every_length_and_depth_comes_as_often_and_is_met(task: str, subset: str, book: str) -> None:
    questions = ask(task, book, subset=subset)
    cells = [(question.length, question.depth) for question in questions]
    assert cells == 2 * list(itertools.product((2000, 6000), (0.0, 0.3, 1.0)))
    for question in questions:
        assert question.length is not None
        assert 0.97 * question.length < len(question.context) <= question.length
        # Two facts stand before the last one that qa3 rests on: its depth cannot be 0.
        assert misplaced(question) < (0.06 if subset == "qa3" else 0.03)


def test_long_and_empty_lines_make_a_haystack_of_the_same_length(tmp_path: Path) -> None:
    rng = random.Random(0)
    lines = ["".join(rng.choices("abc é", k=rng.choice((0, 50, 1500)))) for _ in range(400)]
    (tmp_path / "test.txt").write_text("\n".join(lines))
    for count in (lambda text: len(text.encode()), lambda text: len(text.split())):
        for question in ask("needle", str(tmp_path), lengths=(4096,), count_tokens=count):
            assert 0.96 * 4096 < count(question.context) <= 4096
            assert misplaced(question) < 0.03


@pytest.mark.parametrize(("task", "subset"), [*SUBSETS, ("recite", None)])
def test_what_does_not_fit_is_refused(task: str, subset: str | None, book: str) -> None:
    with pytest.raises(ValueError, match="context_lengths"):
        ask(task, book, subset=subset, lengths=(16,))


def test_the_needle_stands_where_it_is_said_to_stand(book: str) -> None:
    for question in ask("needle", book):
        ((start, end),) = question.supporting
        assert question.context[start:end].count(question.answers[0]) == 2
        assert question.answers[0] not in question.context[:start] + question.context[end:] + question.prompt
    for question in ask("needle", book, subset="key_value"):
        ((start, end),) = question.supporting
        key = re.findall(r"\d+", question.prompt)[0]
        assert question.context[start:end] == f"The value of key {key} is {question.answers[0]}."
        assert len(re.findall("^The value of key", question.context, re.MULTILINE)) == 16


def test_what_is_made_is_that_of_the_seed_and_of_the_split(book: str) -> None:
    for task in ("needle", "babi", "recite"):
        assert ask(task, book) == ask(task, book)
        assert ask(task, book) != ask(task, book, seed=1)
        train = load_questions(task, "train", haystack=book, lengths=(2000,), per_cell=1, count_tokens=len)
        assert "train line" in train[0].context
        assert "test line" not in train[0].context


def test_no_key_of_training_is_asked_for_in_a_test(book: str) -> None:
    for subset in ("passkey", "key_value"):
        for split in ("train", "test"):
            settings = {"subset": subset, "haystack": book, "lengths": (2000,), "per_cell": 4, "count_tokens": len}
            for question in load_questions("needle", split, **settings):
                assert hash_split(question.answers[0]) == split


def test_more_text_than_the_books_have_goes_round(book: str) -> None:
    (question,) = ask("needle", book, lengths=(100_000,), depths=(0.5,), per_cell=1)
    assert 99_000 < len(question.context) <= 100_000


def test_a_passage_is_recited_from_its_beginning(book: str) -> None:
    for question in ask("recite", book):
        assert question.answers == (question.context,)
        assert question.length is not None
        assert 0.97 * question.length < len(question.context) <= question.length
        first, *others = [int(number) for number in re.findall(r"line (\d+)", question.context)]
        assert others == [(first + number) % 500 for number in range(1, len(others) + 1)]


def test_a_haystack_that_cannot_be_read_is_named_with_its_flag() -> None:
    with pytest.raises(OSError, match="--haystack"):
        load_questions("recite", "test")


def follow(facts: tuple[str, ...]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Places of people, and places that things have been at, told anew from the facts."""
    people: dict[str, str] = {}
    holders: dict[str, str] = {}
    been: dict[str, list[str]] = {}
    for fact in facts:
        person, *_, last = fact.rstrip(".").removesuffix(" there").split()
        if last in ("apple", "football", "milk"):
            if re.search("dropped|put down|left|discarded", fact):
                assert holders.pop(last) == person
            else:
                assert last not in holders
                holders[last] = person
                if been.setdefault(last, [])[-1:] != [people[person]]:
                    been[last].append(people[person])
        else:
            people[person] = last
            for thing, holder in holders.items():
                if holder == person:
                    been[thing].append(last)
    return people, been


@pytest.mark.parametrize("variant", ["qa1", "qa2", "qa3"])
def test_stories_made_here_are_answered_by_their_facts(variant: str) -> None:
    for seed in range(30):
        story = made(variant, "train", random.Random(seed))
        people, been = follow(story.facts)
        asked = re.findall(r"\w+", story.question)
        if variant == "qa1":
            assert story.answer == people[asked[-1]]
        elif variant == "qa2":
            assert story.answer == been[asked[-1]][-1]
        else:
            assert been[asked[3]][-2:] == [story.answer, asked[-1]]
        assert story.answer in " ".join(story.facts[index] for index in story.supporting)


def test_what_only_the_authors_tell_is_refused_without_their_files(book: str) -> None:
    for subset in ("qa5", "qa9"):
        with pytest.raises(ValueError, match=subset):
            ask("babi", book, subset=subset)


def test_questions_of_a_bAbI_file_know_the_facts_before_them(tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_text("1 A went.\n2 Where? \tx\t1\n3 B went.\n4 Who? \ty\t3 1\n1 C.\n2 What? \tz\t1\n")
    first, second, third = stories_of(tmp_path / "f.txt")
    assert (first.facts, first.supporting) == (("A went.",), (0,))
    assert (second.facts, second.answer, second.supporting) == (("A went.", "B went."), "y", (1, 0))
    assert third.facts == ("C.",)
    (tmp_path / "f.txt").write_text("1 A went.\nnonsense\n")
    with pytest.raises(ValueError, match=r"f\.txt, line 2"):
        list(stories_of(tmp_path / "f.txt"))
