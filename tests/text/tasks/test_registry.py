"""What holds for every task: answers apart, splits apart, and no hub asked in vain."""

from __future__ import annotations

import re
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from hmt import pretrained
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
MADE = ("needle", "recite")
"""Tasks of which there is no copy: their answers are of their context."""


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


def settings(books: Path, **more: Any) -> dict[str, Any]:
    return {"haystack": str(books), "lengths": (120, 300), "per_cell": 2, **more}


def questions_of(name: str, split: str, variant: str | None, books: Path) -> list[Question]:
    """Questions of a variant."""
    return load_questions(name, split, subset=variant, **settings(books))


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_no_document_is_in_two_splits(
    name: str, variant: str | None, tmp_path: Path, books: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_of(name, tmp_path, monkeypatch)
    found, sources = [], []
    for split in SPLITS if TASKS[name].splits != ("test",) else ("test",):
        if TASKS[name].kind == "questions":
            questions = questions_of(name, split, variant, books)
            texts = [question.shown for question in questions]
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


@pytest.mark.parametrize(("name", "variant"), [(n, v) for n, v in VARIANTS if n in QUESTIONS and n not in MADE])
def test_nothing_that_is_shown_depends_on_the_answer(
    name: str, variant: str | None, tmp_path: Path, books: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    for mark in ("first", "second"):
        copy_of(name, tmp_path, monkeypatch, mark)
        loaded.append(questions_of(name, "test", variant, books))
    first, second = loaded
    assert [(q.context, q.prompt) for q in first] == [(q.context, q.prompt) for q in second]
    for one, other in zip(first, second, strict=True):
        assert one.answers != other.answers
        if not one.choices or name.startswith("babi"):
            assert not any(answer in one.shown for answer in one.answers)


@pytest.mark.parametrize("name", QUESTIONS)
def test_prompts_do_not_hold_the_answer(
    name: str, tmp_path: Path, books: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_of(name, tmp_path, monkeypatch)
    for question in load_questions(name, "test", **settings(books)):
        offered = question.prompt.replace("(yes, no or maybe)", "")
        assert not any(answer in offered for answer in question.answers)
        for start, end in question.supporting:
            assert 0 <= start < end <= len(question.context)


def test_every_task_is_described_and_has_a_copy_or_is_made_here() -> None:
    for name, task in TASKS.items():
        described = (task.about, task.source, task.licence, task.length, task.local)
        assert all(described), name
        assert task.made_here or name in COPIES, name
        assert (task.questions is None) == (task.kind == "text"), name
        assert task.made_here or task.hub_id is None or task.columns, name


def test_a_stable_hash_splits_what_has_no_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_of("fineweb", tmp_path, monkeypatch)
    texts = {split: {d.text for d in load_documents("fineweb", split)} for split in SPLITS}
    assert sum(map(len, texts.values())) == NUM
    assert len(texts["train"]) > 4 * len(texts["test"])
    shuffled = [d.text for d in load_documents("fineweb", "train", shuffle=True, seed=1)]
    assert set(shuffled) == texts["train"]
    assert shuffled != [d.text for d in load_documents("fineweb", "train")]
    assert shuffled == [d.text for d in load_documents("fineweb", "train", shuffle=True, seed=1)]


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if not task.made_here])
def test_without_a_hub_the_local_copy_is_named_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HMT_HUB_MAP", raising=False)
    load = load_questions if name in QUESTIONS else load_documents
    begun = time.monotonic()
    with pytest.raises(OSError, match=rf"--hub_map {name}=DIR"):
        load(name, "test")
    monkeypatch.setattr("hmt.text.tasks.loading.offline_mode", lambda: False)
    monkeypatch.setattr("hmt.text.tasks.loading.hub_is_reachable", lambda: False)
    with pytest.raises(OSError, match=rf"--hub_map {name}=DIR"):
        find_task(name, "test")
    assert time.monotonic() - begun < 3
    assert pretrained.hub_is_reachable() is False


def test_a_copy_that_is_not_there_or_not_of_this_task_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMT_HUB_MAP", f"musique={tmp_path / 'none'}")
    with pytest.raises(FileNotFoundError, match="which hub_map names for musique"):
        find_task("musique", "test")
    assert where_from(TASKS["musique"]).endswith("(not there)")
    (tmp_path / "test.jsonl").write_text('{"text": "x"}\n')
    monkeypatch.setenv("HMT_HUB_MAP", f"qmsum={tmp_path}")
    with pytest.raises(
        ValueError, match=r"is not as qmsum should be \(KeyError: 'meeting_transcripts'\): expected train"
    ):
        load_questions("qmsum", "test")
    with pytest.raises(FileNotFoundError, match=r"qmsum has no train split in .*: found test"):
        load_questions("qmsum", "train")


def test_a_task_of_questions_gives_its_contexts_as_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_of("qmsum", tmp_path, monkeypatch)
    documents = load_documents("qmsum", "test")
    assert len(documents) == NUM // 3
    assert documents[0].text.startswith("S0: P2 is on the list.\n\nS1: P2")
    assert not load_questions("stdlib", "test")
