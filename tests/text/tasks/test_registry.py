"""What holds for every task: answers apart, splits apart, and no hub asked in vain."""

from __future__ import annotations

import re
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from hmt.text.documents import SPLITS
from hmt.text.questions import Question
from hmt.text.tasks import TASKS, find_task, load_documents, load_questions, where_from
from tests.text.tasks.copies import COPIES, NUM

QUESTIONS = [name for name, task in TASKS.items() if task.kind == "questions"]
VARIANTS = [
    (name, variant)
    for name in TASKS
    for variant in (TASKS[name].variants or (None,))
    if variant not in ("qa2", "qa3", "qa4", "qa5")  # the copy has qa1
]


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """A directory with marked books in each split."""
    for number, split in enumerate(SPLITS):
        folder = tmp_path / "books" / split
        folder.mkdir(parents=True)
        for book in range(4):
            lines = [f"B{4 * number + book} has line {line}, which is as long as others." for line in range(60)]
            (folder / f"{book}.txt").write_text("\n".join(lines))
    return tmp_path / "books"


def copy_of(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, mark: str = "first") -> None:
    """Make a copy of a task and map its name to it."""
    (folder / mark).mkdir(exist_ok=True)
    if name in COPIES:
        COPIES[name](folder / mark, mark)
        monkeypatch.setenv("HMT_HUB_MAP", f"{name}={folder / mark}")


def questions_of(name: str, split: str, variant: str | None, books: Path) -> list[Question]:
    """Questions of a variant."""
    settings: dict[str, Any] = {"haystack": str(books), "lengths": (120, 300), "per_cell": 2}
    return load_questions(name, split, subset=variant, **settings)


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_no_document_is_in_two_splits(
    name: str, variant: str | None, tmp_path: Path, books: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_of(name, tmp_path, monkeypatch)
    found, sources = [], []
    for split in SPLITS:
        if TASKS[name].kind == "questions":
            questions = questions_of(name, split, variant, books)
            texts = [question.context + question.prompt for question in questions]
            sources.append({question.source for question in questions})
            assert len({question.name for question in questions}) == len(questions)
        else:
            documents = load_documents(name, split)
            texts = [document.text for document in documents]
            sources.append({document.name for document in documents})
        marks = {mark for text in texts for mark in re.findall(r"\b[PBQ]\d+", text)}
        found.append(marks or set(texts))
        assert found[-1]
    for one, other in combinations(range(len(found)), 2):
        assert not found[one] & found[other]
        assert not sources[one] & sources[other]


@pytest.mark.parametrize(("name", "variant"), [(n, v) for n, v in VARIANTS if n in QUESTIONS and n in COPIES])
def test_nothing_that_is_shown_depends_on_the_answer(
    name: str, variant: str | None, tmp_path: Path, books: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    for mark in ("first", "second"):
        copy_of(name, tmp_path, monkeypatch, mark)
        loaded.append(questions_of(name, "test", variant, books))
    for one, other in zip(*loaded, strict=True):
        assert (one.context, one.prompt) == (other.context, other.prompt)
        assert one.answers != other.answers
        for start, end in one.supporting:
            assert 0 <= start < end <= len(one.context)
        if name != "pubmed_qa":  # its prompt names yes and no
            assert not any(answer in one.context + one.prompt for answer in one.answers)


def test_every_task_is_described_and_has_a_copy_or_is_made_here() -> None:
    for name, task in TASKS.items():
        assert all((task.about, task.authors, task.licence, task.local)), name
        assert task.made_here or name in COPIES, name


def test_a_stable_hash_splits_what_has_no_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_of("fineweb", tmp_path, monkeypatch)
    texts = {split: {d.text for d in load_documents("fineweb", split)} for split in SPLITS}
    assert sum(map(len, texts.values())) == NUM
    assert len(texts["train"]) > 4 * len(texts["test"])
    shuffled = [d.text for d in load_documents("fineweb", "train", shuffle=True, seed=1)]
    assert set(shuffled) == texts["train"]
    assert shuffled != [d.text for d in load_documents("fineweb", "train")]
    assert shuffled == [d.text for d in load_documents("fineweb", "train", shuffle=True, seed=1)]


def test_without_a_hub_the_local_copy_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HMT_HUB_MAP", raising=False)
    begun = time.monotonic()
    for name in ("wikitext", "eda_qa", "musique"):
        load = load_questions if name in QUESTIONS else load_documents
        with pytest.raises(OSError, match=f"--hub_map {name}=DIR"):
            load(name, "test")
    monkeypatch.setattr("hmt.text.tasks.offline_mode", lambda: False)  # the hub is then looked for, in vain
    for name in TASKS:
        if not TASKS[name].made_here:
            with pytest.raises(OSError, match=f"--hub_map {name}=DIR"):
                find_task(name, "test")
    assert time.monotonic() - begun < 10


def test_a_copy_that_is_not_there_or_not_of_this_task_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMT_HUB_MAP", f"musique={tmp_path / 'none'}")
    with pytest.raises(FileNotFoundError, match="hub_map"):
        find_task("musique", "test")
    assert str(tmp_path / "none") in where_from(TASKS["musique"])
    (tmp_path / "test.jsonl").write_text('{"text": "x"}\n')
    monkeypatch.setenv("HMT_HUB_MAP", f"qmsum={tmp_path}")
    with pytest.raises(ValueError, match="meeting_transcripts"):
        load_questions("qmsum", "test")
    with pytest.raises(FileNotFoundError, match="train"):
        load_questions("qmsum", "train")


def test_a_task_of_questions_gives_its_contexts_as_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_of("qmsum", tmp_path, monkeypatch)
    documents = load_documents("qmsum", "test")
    assert len(documents) == NUM // 3
    assert documents[0].text.startswith("S0: P2 is on the list.\n\nS1: P2")
    assert not load_questions("stdlib", "test")
