"""What a task is, and what its reader is given.

A task is one entry (`Task`) and one function that makes documents or questions of a `Source`. Where the rows come from
(a local copy or the hub) and which of them belong to a split is the same for all tasks and decided here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

from hmt.files import is_visible, kind_of
from hmt.pretrained import mapped
from hmt.text.documents import SPLITS, TEXT_SUFFIXES, Document, split_files
from hmt.text.hub import hub_rows
from hmt.text.questions import Question
from hmt.text.tables import TABLE_SUFFIXES, Row, table_rows
from hmt.text.tasks.splits import portions

Item = TypeVar("Item")

HAYSTACK = "stdlib"
"""Text that needles are hidden in where none is named: it is there without any hub."""


def count_words(text: str) -> int:
    """Words of a text: what lengths mean where no tokenizer is at hand."""
    return len(text.split())


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How tasks are read: the settings of a run that tasks know of.

    Attributes:
        subset: Configuration or variant of the task; its own default where None.
        text_column: Column that holds the text in tables.
        seed: Of everything drawn at random.
        shuffle: Take documents and questions in an order drawn with the seed.
        streaming: Read a hub's data set row by row instead of fetching it first.
        fuse_size: Items whose contexts are put together into one.
        haystack: Text task that generated questions are hidden in; the task's own where None.
        lengths: Lengths of generated contexts, in what `count_tokens` counts.
        depths: Depths (0 to 1) of what is asked for in generated contexts.
        per_cell: Generated questions for each pair of length and depth.
        count_tokens: Measures a text.
    """

    subset: str | None = None
    text_column: str = "text"
    seed: int = 0
    shuffle: bool = False
    streaming: bool = False
    fuse_size: int = 2
    haystack: str | None = None
    lengths: tuple[int, ...] = (1024, 4096)
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    per_cell: int = 10
    count_tokens: Callable[[str], int] = count_words


@dataclass(frozen=True, kw_only=True)
class Task:
    """An entry of the registry.

    Attributes:
        name: As in `--task_name`.
        kind: "text", or "questions" with answers.
        about: What it is, in one line.
        source: Who made it, and where it is described.
        licence: As its source states it.
        length: How long its texts are.
        columns: Columns of its rows on the hub.
        local: What a local copy holds: files of its authors, or of the hub.
        splits: Splits that the source itself has; () where it has none.
        hub_id: Where it is on the hub; None where it is on none, or is made here.
        subset: Configuration that is read where none is named.
        subsets: Configurations that there are.
        variants: What can be made of the same rows, named like a configuration; the first where none is named.
        revision: Branch on the hub, where it is not the main one.
        made_here: It can be had without a hub and without a local copy.
        documents: Makes documents of a source.
        questions: Makes questions of a source.
    """

    name: str
    kind: Literal["text", "questions"]
    about: str
    source: str
    licence: str
    length: str
    columns: tuple[str, ...]
    local: str
    splits: tuple[str, ...] = ("train", "validation", "test")
    hub_id: str | None = None
    subset: str | None = None
    subsets: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    revision: str | None = None
    made_here: bool = False
    documents: Callable[[Source], Iterable[Document]] | None = None
    questions: Callable[[Source], Iterable[Question]] | None = None

    @property
    def directory(self) -> Path | None:
        """The local directory that $HMT_HUB_MAP names for the task or its hub id."""
        for name in (self.name, self.hub_id):
            if name is not None and (stands_for := mapped(name)) != name:
                return Path(stands_for).expanduser()
        return None

    @property
    def instead(self) -> str:
        """What to do where the hub is not at hand."""
        if self.name == self.hub_id:  # a data set that the registry does not know
            return "give a directory with train, validation and test as .txt, .jsonl or .parquet"
        return f"give a copy with --hub_map {self.name}=DIR ({self.local})"


@dataclass(frozen=True, kw_only=True)
class Source:
    """One split of a task, wherever its rows come from.

    Attributes:
        task: The entry.
        split: "train", "validation" or "test".
        reading: Settings of the run.
        texts: Documents of another task, by name and split: what haystacks are made of.
    """

    task: Task
    split: str
    reading: Reading
    texts: Callable[[str, str], Iterator[Document]] = field(repr=False)

    @property
    def subset(self) -> str | None:
        """The configuration that is read."""
        chosen = self.reading.subset
        return self.task.subset if chosen is None or chosen in self.task.variants else chosen

    @property
    def variant(self) -> str:
        """Which of the task's variants is made.

        Raises:
            ValueError: If there is none of that name, and no configuration either.
        """
        chosen, variants = self.reading.subset or self.task.variants[0], self.task.variants
        if chosen not in variants and chosen not in self.task.subsets:
            raise ValueError(f"task_subset of {self.task.name} must be one of {', '.join(variants)}, got {chosen!r}")
        return chosen

    @cached_property
    def directory(self) -> Path | None:
        """The local copy: the mapped directory, or the folder of the subset or of the data in it."""
        directory = self.task.directory
        if directory is None:
            return None
        names = [] if self.subset is None else [self.subset, self.subset.removesuffix("-v1")]
        folders = [directory / name for name in (*names, "data")]
        return next((folder for folder in folders if folder.is_dir()), directory)

    def file(self, pattern: str) -> Path | None:
        """The first file of the local copy, anywhere in it, that matches a pattern."""
        if self.directory is None:
            return None
        found = sorted(self.directory.rglob(pattern))
        return next((file for file in found if is_visible(file, self.directory)), None)

    def random(self, *of: Hashable) -> random.Random:
        """Random numbers that depend on the seed, the split and whatever else is named, and on nothing else."""
        return random.Random(repr((self.reading.seed, self.task.name, self.split, *of)))

    def of_split(
        self,
        read: Callable[[str | None], Iterable[Item]],
        document: Callable[[Item], str],
        own: tuple[str, ...] | None = None,
    ) -> Iterator[Item]:
        """What belongs to this split (see `portions`).

        Args:
            read: Gives what is in one split of the source; with None all there is.
            document: Name of the document behind an item.
            own: Splits of the source, where the names of its files do not tell.

        Raises:
            FileNotFoundError: If there is no such split, and nothing to take it from.
        """
        own = self.own_splits if own is None else own
        portion = portions(own, self.task.splits).get(self.split)
        if portion is None:
            raise FileNotFoundError(
                f"{self.task.name} has no {self.split} split in {self.where}: found {', '.join(own)}"
            )
        return (item for item in read(portion.own) if portion.drawn is None or portion.keeps(document(item)))

    @cached_property
    def own_splits(self) -> tuple[str, ...]:
        """Splits of the source: those whose files a local copy has, or those of the data set on the hub."""
        if self.directory is None:
            return self.task.splits
        return tuple(split for split in SPLITS if self.files(split))

    def files(self, split: str | None, suffixes: tuple[str, ...] = TEXT_SUFFIXES + TABLE_SUFFIXES) -> list[Path]:
        """Files of one split of the local copy; with None all of them."""
        assert self.directory is not None
        if split is not None:
            return split_files(self.directory, split, suffixes, between="._-")
        found = (file for file in self.directory.rglob("*") if kind_of(file) in suffixes)
        return sorted(file for file in found if is_visible(file, self.directory))

    @property
    def where(self) -> str:
        """Where the task is read from, for a person."""
        return str(self.directory or self.task.hub_id or "no place")

    def rows_of(self, split: str | None) -> Iterator[Row]:
        """The rows of one split of the source; with None of all of it.

        Raises:
            FileNotFoundError: If a local copy has no table.
        """
        if self.directory is None:
            assert self.task.hub_id is not None
            yield from hub_rows(
                self.task.hub_id,
                split or "train",
                subset=self.subset,
                revision=self.task.revision,
                streaming=self.reading.streaming,
                shuffle_seed=self.reading.seed if self.reading.shuffle else None,
                instead=f"; {self.task.instead}",
            )
            return
        files = self.files(split, TABLE_SUFFIXES)
        if not files:
            raise FileNotFoundError(f"{self.directory} holds no {self.task.name}: expected {self.task.local}")
        for file in files:
            for _, row in table_rows(file):
                yield row
