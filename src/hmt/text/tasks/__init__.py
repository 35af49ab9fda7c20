"""Tasks by name: documents and questions of the registry, of a path, or of a hub."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hmt.files import is_stream, kind_of, read_text
from hmt.options import TaskOptions
from hmt.pretrained import hub_is_reachable, looks_like_a_path, mapped, offline_mode
from hmt.text.documents import QUESTIONS_PREFIX, SPLITS, SUFFIXES, Document, file_documents, fingerprint, split_files
from hmt.text.questions import Question, file_questions, holds_questions
from hmt.text.tasks import babi, corpora, haystack, question_sets
from hmt.text.tasks.task import Reading, Source, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Item = TypeVar("Item")

TASKS: dict[str, Task] = {task.name: task for file in (corpora, question_sets, haystack, babi) for task in file.TASKS}
"""All tasks of the registry by name."""


def load_documents(task_name: str, split: str, *, limit: int | None = None, **settings: Any) -> list[Document]:
    """Documents of a task; of a task of questions their contexts, each once.

    Args:
        task_name: A task of the registry, a directory with splits, a file (whatever the split), a pipe with one text,
            or a hub id.
        split: "train", "validation" or "test".
        limit: Most documents to load; blank ones do not count.
        settings: Fields of `Reading`, such as `subset`, `text_column`, `seed`, `shuffle`, `streaming`.

    Raises:
        OSError: If there is no such task or split, or no hub to ask.
        ValueError: If a file cannot be read as text, or there is none.
    """
    found = list(islice(iter_documents(task_name, split, **settings), limit))
    if not found:
        raise ValueError(f"{task_name} has no text in its {split} split")
    return found


def iter_documents(task_name: str, split: str, **settings: Any) -> Iterator[Document]:
    """Documents of a task one by one, blank ones left out.

    No more is read than is taken, except that `shuffle` reads all documents first, unless they are a stream of the hub.

    Args:
        task_name: As for `load_documents`.
        split: "train", "validation" or "test".
        settings: Fields of `Reading`.

    Raises:
        OSError: If there is no such task or split, or no hub to ask.
        ValueError: If a file cannot be read as text.
    """
    reading = Reading(**settings)
    documents = _in_order(_documents(task_name, split, reading), reading)
    return (document for document in documents if not document.is_blank)


def load_questions(task_name: str, split: str, *, limit: int | None = None, **settings: Any) -> list[Question]:
    """Questions of a task; none if the task is plain text.

    Args:
        task_name: A task of the registry, a directory with files named as in `questions.test.jsonl`, or a file of
            questions.
        split: "train", "validation" or "test".
        limit: Most questions to load.
        settings: Fields of `Reading`, such as `subset`, `seed`, `haystack`, `lengths`, `depths`, `count_tokens`.

    Raises:
        OSError: If there is no such task or split, or no hub to ask.
        ValueError: If a file does not hold questions, or a task of questions has none in this split.
    """
    reading = Reading(**settings)
    found = list(islice(_in_order(_questions(task_name, split, reading), reading), limit))
    task = _entry(task_name)
    if not found and task is not None and task.kind == "questions":
        raise ValueError(f"{task_name} has no questions in its {split} split")
    return found


def settings_of(options: TaskOptions, tokenizer: PreTrainedTokenizerBase | None = None) -> dict[str, Any]:
    """Settings for `load_documents` and `load_questions`.

    Args:
        options: Options of the run.
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
    """Check that a task can be read, as far as that can be seen without reading it.

    Raises:
        OSError: If the name is none of a task that is at hand, a path, or a data set with a hub at hand.
        ValueError: If it is a file of no known kind.
    """
    task, path = _entry(task_name), _path(task_name)
    if task is not None and task.directory is not None:
        if not task.directory.is_dir():
            raise FileNotFoundError(f"no directory at {task.directory}, which hub_map names for {task_name}")
    elif path.is_dir() or is_stream(path) or (task is not None and task.made_here):
        return
    elif path.is_file():
        if kind_of(path) not in SUFFIXES:
            raise ValueError(f"{task_name} is no text: expected {', '.join(SUFFIXES)}")
    elif looks_like_a_path(task_name):
        raise FileNotFoundError(f"no task directory at {task_name}")
    elif task is not None and task.hub_id is None:
        raise FileNotFoundError(f"{task_name} is on no hub: {task.instead}")
    elif not offline_mode() and not hub_is_reachable():
        names = f"give a directory with {split}.txt, .jsonl or .parquet, or one of {', '.join(TASKS)}"
        raise OSError(
            f"no task {task_name!r}: it is no local directory, and the hub cannot be reached (HF_HUB_OFFLINE=1 uses "
            f"what is cached); {names if task is None else task.instead}"
        )


def where_from(task: Task) -> str:
    """The place that a task of the registry is read from here, for a person."""
    if task.directory is not None:
        return str(task.directory) if task.directory.is_dir() else f"{task.directory} (not there)"
    if task.made_here:
        return "made here"
    return f"hub: {task.hub_id}" if task.hub_id else f"give --hub_map {task.name}=DIR"


def _documents(task_name: str, split: str, reading: Reading) -> Iterator[Document]:
    find_task(task_name, split)
    path, task = _path(task_name), _entry(task_name)
    if task is None and path.is_dir():
        files = split_files(path, split)
        texts = [file for file in files if not file.name.startswith(QUESTIONS_PREFIX)]
        if files and not texts:
            return _contexts(_questions(task_name, split, reading))
        return _directory_documents(path, split, texts, reading.text_column)
    if task is None and path.is_file():
        return _contexts(file_questions(path)) if holds_questions(path) else file_documents(path, reading.text_column)
    if task is None and is_stream(path):
        return iter([Document(path.name, read_text(path))])
    source = _source(_of_the_hub(task_name) if task is None else task, split, reading)
    return _checked(source) if source.task.kind == "text" else _contexts(_checked(source))


def _directory_documents(directory: Path, split: str, files: list[Path], text_column: str) -> Iterator[Document]:
    if not files:
        found = [name for name in SPLITS if split_files(directory, name)]
        raise FileNotFoundError(
            f"{directory} has no {split} split: expected {split}/*.txt or {split}.txt, .jsonl or .parquet, "
            f"found {', '.join(found) or 'no split at all'}"
        )
    for file in files:
        yield from file_documents(file, text_column, file.relative_to(directory).as_posix())


def _questions(task_name: str, split: str, reading: Reading) -> Iterator[Question]:
    find_task(task_name, split)
    path, task = _path(task_name), _entry(task_name)
    if task is not None:
        return _checked(_source(task, split, reading)) if task.kind == "questions" else iter(())
    files = [path] if path.is_file() and holds_questions(path) else []
    if path.is_dir():
        files = [file for file in split_files(path, split) if file.name.startswith(QUESTIONS_PREFIX)]
    return (question for file in files for question in file_questions(file))


def _checked(source: Source) -> Iterator[Any]:
    """Documents or questions of a source; names the source if its rows are of another form."""
    try:
        yield from source.task.read(source)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{source.where} is not as {source.task.name} should be ({type(error).__name__}: {error}): "
            f"expected {source.task.local}"
        ) from error


def _contexts(questions: Iterable[Question]) -> Iterator[Document]:
    seen = set()
    for question in questions:
        if (name := f"{question.source}:{fingerprint(question.context)}") not in seen:
            seen.add(name)
            yield Document(name, question.context)


def _in_order(items: Iterable[Item], reading: Reading) -> Iterator[Item]:
    """Items in an order drawn with the seed if asked for; a stream of the hub is shuffled where it is read."""
    if not reading.shuffle or reading.streaming:
        return iter(items)
    shuffled = list(items)
    random.Random(reading.seed).shuffle(shuffled)
    return iter(shuffled)


def _source(task: Task, split: str, reading: Reading) -> Source:
    def texts(name: str) -> Iterator[Document]:
        # A haystack has no subset or order: those are of the task that hides something in it.
        return _documents(name, split, Reading(seed=reading.seed, text_column=reading.text_column))

    return Source(task=task, split=split, reading=reading, texts=texts)


def _entry(task_name: str) -> Task | None:
    """The registry's task of a name or hub id, unless the name is a path: a directory of that name goes first."""
    if looks_like_a_path(task_name):
        return None
    task = TASKS.get(task_name) or next((task for task in TASKS.values() if task.hub_id == task_name), None)
    if task is not None and task.directory is None and not task.made_here and _path(task_name).exists():
        return None
    return task


def _of_the_hub(hub_id: str) -> Task:
    """Any data set of a hub as a task of plain text."""
    return Task(
        name=hub_id, kind="text", about="", authors="", licence="", local="tables with text", hub_id=hub_id,
        read=corpora.whole_texts,
    )  # fmt: skip


def _path(task_name: str) -> Path:
    """The path that a task's name means, or stands for."""
    return Path(mapped(task_name)).expanduser()
