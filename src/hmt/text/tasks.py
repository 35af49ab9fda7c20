"""Tasks by name: what to read, and where it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from hmt.pretrained import first_line, hub_is_reachable, hub_remedy, looks_like_a_path, mapped, offline_mode
from hmt.text.documents import Document, local_documents, split_files, stdlib_documents
from hmt.text.questions import Question, jsonl_questions


@dataclass(frozen=True)
class HubTask:
    """A data set of a hub."""

    hub_id: str
    subset: str | None = None
    text_column: str = "text"


BUILT_IN = "stdlib"
HUB_TASKS = {
    "wikitext": HubTask("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "pg19": HubTask("emozilla/pg19"),
}


def load_documents(
    task_name: str,
    split: str,
    *,
    subset: str | None = None,
    text_column: str = "text",
    limit: int | None = None,
) -> list[Document]:
    """Documents of a task.

    Args:
        task_name: "stdlib", a directory with splits, a task of this list, or a hub id.
        split: "train", "validation" or "test".
        subset: Configuration of a hub data set.
        text_column: Column that holds the text in tables.
        limit: At most so many documents.

    Raises:
        OSError: If there is no such task or split, or no hub to ask.
        ValueError: If a file cannot be read as text.
    """
    documents = list(islice(_source(task_name, split, subset, text_column), limit))
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise ValueError(f"{task_name} has no text in its {split} split")
    return documents


def load_questions(task_name: str, split: str, *, limit: int | None = None) -> list[Question]:
    """Questions of a task; none if the task is plain text.

    Args:
        task_name: A directory whose splits are files named as in `questions.test.jsonl`.
        split: "train", "validation" or "test".
        limit: At most so many questions.

    Raises:
        ValueError: If a file does not hold questions.
    """
    directory = _directory(task_name)
    files = [file for file in split_files(directory, split) if file.name.startswith("questions.")]
    return list(islice((question for file in files for question in jsonl_questions(file)), limit))


def find_task(task_name: str, split: str) -> None:
    """Make sure that a task can be read, as far as that can be seen without reading it.

    Raises:
        OSError: If the name is none of "stdlib", a directory, or a data set with a hub at hand.
    """
    directory = _directory(task_name)
    if task_name == BUILT_IN or directory.is_dir():
        return
    if directory.exists():
        raise NotADirectoryError(
            f"{task_name} is a file; give the directory that holds its split, such as DIR/test.txt"
        )
    if looks_like_a_path(task_name):
        raise FileNotFoundError(f"no task directory at {task_name}")
    if not offline_mode() and not hub_is_reachable():
        known = ", ".join((BUILT_IN, *HUB_TASKS))
        raise OSError(
            f"no task {task_name!r}: it is no local directory, and the hub cannot be reached (HF_HUB_OFFLINE=1 uses "
            f"what is cached); give a directory with {split}.txt, .jsonl or .parquet, or one of {known}"
        )


def _source(task_name: str, split: str, subset: str | None, text_column: str) -> Iterator[Document]:
    find_task(task_name, split)
    if task_name == BUILT_IN:
        return stdlib_documents(split)
    directory = _directory(task_name)
    if directory.is_dir():
        return local_documents(directory, split, text_column)
    task = HUB_TASKS.get(task_name, HubTask(task_name))
    return _hub_documents(task, split, subset or task.subset, text_column)


def _directory(task_name: str) -> Path:
    """The directory that a task's name means, or stands for."""
    stands_for = mapped(task_name)
    if stands_for == task_name and task_name in HUB_TASKS:
        stands_for = mapped(HUB_TASKS[task_name].hub_id)
    return Path(stands_for).expanduser()


def _hub_documents(task: HubTask, split: str, subset: str | None, text_column: str) -> Iterator[Document]:
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise ImportError(
            f"reading {task.hub_id} from a hub needs datasets, the extra data: pip install datasets"
        ) from error
    try:
        rows = datasets.load_dataset(task.hub_id, subset, split=split)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise OSError(f"cannot load {task.hub_id} ({split}): {hub_remedy(error) or first_line(error)}") from error
    if text_column not in rows.column_names:
        raise ValueError(
            f"{task.hub_id} has no text column {text_column!r}; it has {', '.join(rows.column_names)}; "
            "name one with --text_column"
        )
    return (Document(f"{task.hub_id}:{number}", row[text_column]) for number, row in enumerate(rows))
