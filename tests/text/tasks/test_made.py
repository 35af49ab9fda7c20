"""Haystacks: what is hidden in them can be found at the depth and in the length asked for."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hmt.text.documents import hash_split
from hmt.text.questions import Question
from hmt.text.tasks import count_words, load_questions
from hmt.text.tasks.babi import PEOPLE, made, stories_of
from hmt.text.tasks.haystack import plant
from tests.conftest import byte_tokenizer

BYTES = byte_tokenizer()


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


@pytest.mark.parametrize(("task", "subset"), [("needle", "passkey"), ("needle", "key_value"), ("babi", "qa2")])
def test_every_length_and_depth_comes_as_often_and_is_met(task: str, subset: str, book: str) -> None:
    questions = ask(task, book, subset=subset)
    cells = [(question.length, question.depth) for question in questions]
    assert cells == 2 * list(itertools.product((2000, 6000), (0.0, 0.3, 1.0)))
    for question in questions:
        assert question.length is not None
        assert question.depth is not None
        assert 0.97 * question.length < len(question.context) <= question.length
        assert misplaced(question, len) < 0.03


def misplaced(question: Question, count: Callable[[str], int]) -> float:
    """The share of the context by which the last supporting range misses the depth."""
    start, end = question.supporting[-1]
    assert question.depth is not None
    room = count(question.context) - count(question.context[start:end])
    return abs(count(question.context[:start]) / room - question.depth)


def in_bytes(text: str) -> int:
    """Tokens of the tokenizer of bytes."""
    return len(BYTES(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("count", [in_bytes, count_words])
@pytest.mark.parametrize("subset", ["passkey", "key_value", "qa1", "qa2", "qa3"])
def test_length_and_depth_are_those_of_tokens_in_a_short_context_of_uneven_lines(
    subset: str, count: Callable[[str], int], tmp_path: Path
) -> None:
    rng = random.Random(0)
    lines = ["".join(rng.choices("abc é", k=rng.choice((5, 50, 1500)))) for _ in range(400)]
    (tmp_path / "test.txt").write_text("\n".join(lines))
    task = "babi" if subset.startswith("qa") else "needle"
    found = ask(task, str(tmp_path), subset=subset, lengths=(1024,), depths=(0.0, 0.3, 1.0), count_tokens=count)
    for question in found:
        assert 0.97 * 1024 < count(question.context) <= 1024
        # Two facts must stand before the last one that qa3 rests on: its depth cannot be 0.
        assert misplaced(question, count) < (0.07 if (subset, question.depth) == ("qa3", 0.0) else 0.03)


@pytest.mark.parametrize("subset", ["passkey", "key_value", "qa1", "qa2", "qa3"])
def test_what_does_not_fit_is_refused(subset: str, book: str) -> None:
    task = "babi" if subset.startswith("qa") else "needle"
    with pytest.raises(ValueError, match=r"context_lengths must leave room for what is hidden .* got 16"):
        ask(task, book, subset=subset, lengths=(16,))


def test_a_story_takes_at_most_half_of_the_length_where_one_can(book: str) -> None:
    for subset in ("qa1", "qa2", "qa3"):
        for question in ask("babi", book, subset=subset, lengths=(700,)):
            told = [line for line in question.context.split("\n") if line.startswith(PEOPLE)]
            assert len("\n".join(told)) <= 350


def test_the_needle_stands_where_it_is_said_to_stand(book: str) -> None:
    for question in ask("needle", book):
        ((start, end),) = question.supporting
        told = question.context[start:end]
        assert told.count(question.answers[0]) == 2
        assert question.answers[0] not in question.context[:start] + question.context[end:] + question.prompt
    for question in ask("needle", book, subset="key_value"):
        ((start, end),) = question.supporting
        key = re.findall(r"\d+", question.prompt)[0]
        assert question.context[start:end] == f"The value of key {key} is {question.answers[0]}."
        assert len(re.findall("The value of key", question.context)) == 16


def test_what_is_made_is_that_of_the_seed_and_of_the_split(book: str) -> None:
    for task in ("needle", "babi"):
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


def test_a_passage_is_recited_from_one_book(book: str) -> None:
    for question in ask("recite", book):
        assert question.answers == (question.context,)
        assert question.length is not None
        assert 0.97 * question.length < len(question.context) <= question.length
        numbers = [int(number) for number in re.findall(r"line (\d+)", question.context)]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_needles_are_lines_in_their_order_with_their_ranges() -> None:
    context, ranges = plant([("d", True), ("p", False), ("a", True), ("b", True), ("q", False), ("c", True)])
    assert context == "d\np\na\nb\nq\nc"
    assert [context[start:end] for start, end in ranges] == ["d", "a", "b", "c"]


def test_a_passage_is_of_a_book_that_is_long_enough(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    for name, lines in (("a", 10), ("b", 100), ("c", 10)):
        (tmp_path / "test" / f"{name}.txt").write_text("\n".join(f"line {n} of {name}" for n in range(lines)))
    passages = ask("recite", str(tmp_path), lengths=(500,))
    assert {question.source for question in passages} == {"test/b.txt"}
    assert all(485 < len(question.context) <= 500 for question in passages)


def test_a_haystack_that_cannot_be_read_is_named_with_its_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmt.text.tasks.loading.hub_is_reachable", lambda: False)
    monkeypatch.setattr("hmt.text.tasks.loading.offline_mode", lambda: False)
    with pytest.raises(OSError, match=r"recite cannot read its text; --haystack names another, .*no task 'fineweb'"):
        load_questions("recite", "test")


def follow(facts: tuple[str, ...]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Where people are, and where things have been, told anew from the facts."""
    people: dict[str, str] = {}
    holders: dict[str, str] = {}
    been: dict[str, list[str]] = {}
    for fact in facts:
        person, *_, last = fact.rstrip(".").removesuffix(" there").split()
        if last in ("apple", "football", "milk"):
            if re.search("dropped|put down|left|discarded", fact):
                del holders[last]
            else:
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
        told = " ".join(story.facts[index] for index in story.supporting)
        assert story.answer in told


def test_what_only_the_authors_tell_is_refused_without_their_files(book: str) -> None:
    with pytest.raises(ValueError, match="babi qa5 needs the authors' files: --hub_map babi=DIR"):
        ask("babi", book, subset="qa5")
    with pytest.raises(ValueError, match=r"task_subset of babi must be one of qa1, qa2, .*, got 'qa9'"):
        ask("babi", book, subset="qa9")


def test_questions_of_a_bAbI_file_know_the_facts_before_them(tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_text("1 A went.\n2 Where? \tx\t1\n3 B went.\n4 Who? \ty\t3 1\n1 C.\n2 What? \tz\t1\n")
    first, second, third = stories_of(tmp_path / "f.txt")
    assert (first.facts, first.supporting) == (("A went.",), (0,))
    assert (second.facts, second.answer, second.supporting) == (("A went.", "B went."), "y", (1, 0))
    assert third.facts == ("C.",)
    (tmp_path / "f.txt").write_text("1 A went.\nnonsense\n")
    with pytest.raises(ValueError, match="line 2, is no line of bAbI"):
        list(stories_of(tmp_path / "f.txt"))
