"""Documents and questions of a task by name: of the registry, of a path, or of a hub."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hmt.files import kind_of
from hmt.options import TaskOptions
from hmt.pretrained import hub_is_reachable, looks_like_a_path, mapped, offline_mode
from hmt.text.documents import (
    QUESTIONS_PREFIX,
    ROW_SUFFIXES,
    TEXT_SUFFIXES,
    Document,
    file_documents,
    fingerprint,
    local_documents,
    split_files,
)
from hmt.text.questions import Question, file_questions, holds_questions
from hmt.text.tasks.passages import whole_texts
from hmt.text.tasks.registry import TASKS, task_of
from hmt.text.tasks.task import Reading, Source, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Item = TypeVar("Item")


def load_documents(task_name: str, split: str, *, limit: int | None = None, **settings: Any) -> list[Document]:
    """Documents of a task; of one of questions their contexts, each once.

    Args:
        task_name: A task of the registry, a directory with splits, a file (which is the split asked for), or a hub id.
        split: "train", "validation" or "test".
        limit: At most so many documents; blank ones do not count.
        settings: Fields of `Reading`, such as `subset`, `text_column`, `seed`, `shuffle`, `streaming`.

    Raises:
        OSError: If there is no such task or split, or no hub to ask.
        ValueError: If a file cannot be read as text.
    """
    found = list(islice(iter_documents(task_name, split, **settings), limit))
    if not found:
        raise ValueError(f"{task_name} has no text in its {split} split")
    return found


def iter_documents(task_name: str, split: str, **settings: Any) -> Iterator[Document]:
    """Documents of a task one by one, as `load_documents` gives them: no more is read than is taken.

    Only to `shuffle` them all are read first, unless they are a stream of the hub. Blank ones are left out.

    Args:
        task_name: As for `load_documents`.
        split: "train", "validation" or "test".
        settings: Fields of `Reading`.

    Raises:
        OSError: If there is no such task or split, or no hub to ask.
        ValueError: If a file cannot be read as text.
    """
    reading = Reading(**settings)
    documents = _in_order(_documents(task_name, split, reading), task_name, reading)
    return (document for document in documents if not document.is_blank)


def load_questions(task_name: str, split: str, *, limit: int | None = None, **settings: Any) -> list[Question]:
    """Questions of a task; none if the task is plain text.

    Args:
        task_name: A task of the registry, a directory with files named as in `questions.test.jsonl`, or a file of
            questions.
        split: "train", "validation" or "test".
        limit: At most so many questions.
        settings: Fields of `Reading`, such as `subset`, `seed`, `fuse_size`, `haystack`, `lengths`, `depths`,
            `count_tokens`.

    Raises:
        OSError: If there is no such task or split, or no hub to ask.
        ValueError: If a file does not hold questions, or a task of questions has none in this split.
    """
    reading = Reading(**settings)
    found = list(islice(_in_order(_questions(task_name, split, reading), task_name, reading), limit))
    task = _entry(task_name)
    if not found and task is not None and task.kind == "questions":
        raise ValueError(f"{task_name} has no questions in its {split} split")
    return found


def settings_of(options: TaskOptions, tokenizer: PreTrainedTokenizerBase | None = None) -> dict[str, Any]:
    """The settings of a run that tasks know of, for `load_documents` and `load_questions`.

    Args:
        options: Of the run.
        tokenizer: Measures generated contexts; without it their lengths are in words.
    """
    measure = {} if tokenizer is None else {"count_tokens": partial(_count_tokens, tokenizer)}
    return measure | {
        "subset": options.task_subset,
        "text_column": options.text_column,
        "seed": options.seed,
        "shuffle": options.shuffle,
        "streaming": options.streaming,
        "fuse_size": options.fuse_size,
        "haystack": options.haystack,
        "lengths": tuple(options.haystack_lengths),
        "depths": tuple(options.haystack_depths),
        "per_cell": options.per_cell,
    }


def _count_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def find_task(task_name: str, split: str) -> None:
    """Make sure that a task can be read, as far as that can be seen without reading it.

    Raises:
        OSError: If the name is none of a task that is at hand, a path, or a data set with a hub at hand.
    """
    task = _entry(task_name)
    if task is not None and task.directory is not None:
        if not task.directory.is_dir():
            raise FileNotFoundError(f"no directory at {task.directory}, which hub_map names for {task_name}")
        return
    path = _path(task_name)
    if path.is_dir() or (task is not None and task.made_here):
        return
    if path.is_file():
        if kind_of(path) not in TEXT_SUFFIXES + ROW_SUFFIXES:
            raise ValueError(f"{task_name} is no text: expected {', '.join(TEXT_SUFFIXES + ROW_SUFFIXES)}")
        return
    if looks_like_a_path(task_name):
        raise FileNotFoundError(f"no task directory at {task_name}")
    if task is not None and task.hub_id is None:
        raise FileNotFoundError(f"{task_name} is on no hub: {task.instead}")
    if not offline_mode() and not hub_is_reachable():
        local = (
            task.instead
            if task is not None
            else f"give a directory with {split}.txt, .jsonl or .parquet, or one of {', '.join(TASKS)}"
        )
        raise OSError(
            f"no task {task_name!r}: it is no local directory, and the hub cannot be reached (HF_HUB_OFFLINE=1 uses "
            f"what is cached); {local}"
        )


def where_from(task: Task) -> str:
    """Where a task of the registry is read from here, for a person."""
    if task.directory is not None:
        return str(task.directory) if task.directory.is_dir() else f"{task.directory} (not there)"
    if task.made_here:
        return "made here"
    return f"hub: {task.hub_id}" if task.hub_id else f"give --hub_map {task.name}=DIR"


def _documents(task_name: str, split: str, reading: Reading) -> Iterator[Document]:
    find_task(task_name, split)
    path, task = _path(task_name), _entry(task_name)
    if task is not None:
        source = _source(task, split, reading)
        if task.documents is not None:
            return iter(task.documents(source))
        return _contexts(_checked(task, source))
    if path.is_dir():
        files = split_files(path, split)
        if files and all(file.name.startswith(QUESTIONS_PREFIX) for file in files):
            return _contexts(_questions(task_name, split, reading))
        return local_documents(path, split, reading.text_column)
    if path.is_file():
        return _contexts(file_questions(path)) if _is_questions(path) else file_documents(path, reading.text_column)
    return whole_texts(_source(_of_the_hub(task_name), split, reading))


def _questions(task_name: str, split: str, reading: Reading) -> Iterator[Question]:
    find_task(task_name, split)
    path, task = _path(task_name), _entry(task_name)
    if task is not None:
        return _checked(task, _source(task, split, reading)) if task.questions is not None else iter(())
    files = [path] if path.is_file() and _is_questions(path) else []
    if path.is_dir():
        files = [file for file in split_files(path, split) if file.name.startswith(QUESTIONS_PREFIX)]
    return (question for file in files for question in file_questions(file))


def _is_questions(file: Path) -> bool:
    if kind_of(file) not in ROW_SUFFIXES:
        return False
    return file.name.startswith(QUESTIONS_PREFIX) or holds_questions(file)


def _checked(task: Task, source: Source) -> Iterator[Question]:
    """Questions of a task; what a file or hub has in another form is named."""
    assert task.questions is not None
    try:
        yield from task.questions(source)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{source.where} is not as {task.name} should be ({type(error).__name__}: {error}): expected {task.local}"
        ) from error


def _contexts(questions: Iterable[Question]) -> Iterator[Document]:
    seen = set()
    for question in questions:
        if (text := question.context) not in seen:
            seen.add(text)
            yield Document(f"{question.source}:{fingerprint(text)}", text)


def _in_order(items: Iterable[Item], task_name: str, reading: Reading) -> Iterator[Item]:
    """As they come, or in an order drawn with the seed; a stream of the hub is shuffled where it is read."""
    if not reading.shuffle or reading.streaming:
        return iter(items)
    shuffled = list(items)
    random.Random(reading.seed).shuffle(shuffled)
    return iter(shuffled)


def _source(task: Task, split: str, reading: Reading) -> Source:
    def texts(name: str, split: str) -> Iterator[Document]:
        # A haystack is read as it is by itself: the settings are those of the task that hides something in it.
        return _documents(name, split, replace(Reading(), seed=reading.seed, text_column=reading.text_column))

    return Source(task=task, split=split, reading=reading, texts=texts)


def _entry(task_name: str) -> Task | None:
    """The registry's task of a name or hub id, unless the name is a path: a directory of that name goes first."""
    task = None if looks_like_a_path(task_name) else task_of(task_name)
    if task is not None and task.directory is None and not task.made_here and _path(task_name).exists():
        return None
    return task


def _of_the_hub(hub_id: str) -> Task:
    """Any data set of a hub as a task of plain text."""
    return Task(
        name=hub_id, kind="text", about="", source="", licence="", length="", columns=(), local="tables with text",
        hub_id=hub_id, documents=whole_texts,
    )  # fmt: skip


def _path(task_name: str) -> Path:
    """The path that a task's name means, or stands for."""
    return Path(mapped(task_name)).expanduser()
