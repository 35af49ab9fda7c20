"""The entry of a task, and the source that its function reads.

A task is one entry (`Task`) and one function that makes documents or questions of a `Source`. Reading rows from a local
copy or the hub, and choosing those of a split, is the same for all tasks and done here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from hmt.files import is_visible
from hmt.pretrained import mapped
from hmt.text.documents import SPLITS, TABLE_SUFFIXES, Document, Row, hash_split, hub_rows, split_files, table_rows

Item = TypeVar("Item")
ALL = frozenset(SPLITS)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Settings of a run that tasks depend on.

    Attributes:
        subset: Configuration or variant of the task; its own default where None.
        text_column: Column of the text in tables.
        seed: Random seed.
        shuffle: Take documents and questions in an order drawn with the seed.
        streaming: Read a hub's data set row by row instead of fetching it first.
        fuse_size: Number of pubmed_qa abstracts in one context.
        haystack: Text task that generated questions are hidden in; the task's own where None.
        lengths: Lengths of generated contexts, as `count_tokens` counts.
        depths: Depths (0 to 1) of needles in generated contexts.
        per_cell: Generated questions for each pair of length and depth.
        count_tokens: Length of a text; words where no tokenizer is at hand.
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
    count_tokens: Callable[[str], int] = lambda text: len(text.split())


@dataclass(frozen=True, kw_only=True)
class Task:
    """An entry of the registry.

    Attributes:
        name: Name for `--task_name`.
        kind: "text", or "questions" with answers.
        about: One line on its content and size.
        authors: Authors and paper.
        licence: Licence as its authors state it.
        local: Files that a local copy holds.
        read: Makes the documents or questions of a source.
        splits: Splits that the authors made; () where there are none.
        hub_id: Data set of the hub; None where there is none.
        subset: Configuration on the hub that is read by default.
        revision: Branch on the hub, where it is not the main one.
        variants: Questions that can be made of the same rows, chosen like a configuration; the first by default.
        made_here: True if it needs neither a hub nor a local copy.
    """

    name: str
    kind: Literal["text", "questions"]
    about: str
    authors: str
    licence: str
    local: str
    read: Callable[[Source], Iterable[Any]]
    splits: tuple[str, ...] = SPLITS
    hub_id: str | None = None
    subset: str | None = None
    revision: str | None = None
    variants: tuple[str, ...] = ()
    made_here: bool = False

    @property
    def directory(self) -> Path | None:
        """The local directory that $HMT_HUB_MAP names for the task or its hub id."""
        for name in (self.name, self.hub_id):
            if name is not None and (stands_for := mapped(name)) != name:
                return Path(stands_for).expanduser()
        return None

    @property
    def instead(self) -> str:
        """Remedy where the hub is not at hand."""
        if self.name == self.hub_id:  # a data set that the registry does not know
            return "give a directory with train, validation and test as .txt, .jsonl or .parquet"
        return f"give a copy with --hub_map {self.name}=DIR ({self.local})"


@dataclass(frozen=True, kw_only=True)
class Source:
    """One split of a task, wherever its rows come from.

    Attributes:
        task: Entry of the task.
        split: "train", "validation" or "test".
        reading: Settings of the run.
        texts: Documents of another task by its name, of the same split, for haystacks.
    """

    task: Task
    split: str
    reading: Reading
    texts: Callable[[str], Iterator[Document]] = field(repr=False)

    @property
    def subset(self) -> str | None:
        """The configuration that is read."""
        return self.task.subset if self.reading.subset in (None, *self.task.variants) else self.reading.subset

    @property
    def variant(self) -> str:
        """The variant of the questions that is made.

        Raises:
            ValueError: If there is none of that name.
        """
        chosen, variants = self.reading.subset or self.task.variants[0], self.task.variants
        if chosen not in variants:
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

    @property
    def where(self) -> str:
        """The local copy or the hub id, for messages."""
        return str(self.directory or self.task.hub_id or "no place")

    def file(self, pattern: str) -> Path | None:
        """The first file of the local copy, anywhere in it, that matches a pattern."""
        if self.directory is None:
            return None
        found = sorted(self.directory.rglob(pattern))
        return next((file for file in found if is_visible(file, self.directory)), None)

    def needed_file(self, name: str) -> Path:
        """A file of the local copy.

        Raises:
            FileNotFoundError: If it is not there.
        """
        if (file := self.file(name)) is None:
            raise FileNotFoundError(f"{self.where} has no {name}; expected {self.task.local}")
        return file

    def random(self, *of: Hashable) -> random.Random:
        """Random numbers that depend on the seed, the split and the arguments, and on nothing else."""
        return random.Random(repr((self.reading.seed, self.task.name, self.split, *of)))

    @cached_property
    def own_splits(self) -> tuple[str, ...]:
        """Splits that a local copy has files of, or those of the authors on the hub."""
        if self.directory is None:
            return self.task.splits
        return tuple(split for split in SPLITS if split_files(self.directory, split))

    def of_split(
        self,
        read: Callable[[str | None], Iterable[Item]],
        document: Callable[[Item], str],
        own: tuple[str, ...] | None = None,
    ) -> Iterator[Item]:
        """Items of this split (see `split_parts`).

        Args:
            read: Gives the items of one of the source's own splits, or all items for None.
            document: Gives the name of the document behind an item.
            own: The source's own splits, where the names of its files do not tell.

        Raises:
            FileNotFoundError: If there is no such split, and nothing to take it from.
        """
        own = self.own_splits if own is None else own
        if self.split not in (parts := split_parts(own, self.task.splits)):
            raise FileNotFoundError(
                f"{self.task.name} has no {self.split} split in {self.where}: found {', '.join(own)}"
            )
        part, drawn = parts[self.split]
        return (item for item in read(part) if drawn == ALL or hash_split(document(item)) in drawn)

    def rows(self, document: Callable[[Row], str]) -> Iterator[Row]:
        """Rows of this split, of the documents named by `document`."""
        return self.of_split(self.rows_of, document)

    def rows_of(self, split: str | None) -> Iterator[Row]:
        """Rows of one of the source's own splits; all rows for None.

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
        files = split_files(self.directory, split, TABLE_SUFFIXES)
        if not files:
            raise FileNotFoundError(f"{self.directory} holds no {self.task.name}: expected {self.task.local}")
        for file in files:
            for _, row in table_rows(file):
                yield row


def split_parts(own: Collection[str], authored: Collection[str]) -> dict[str, tuple[str | None, frozenset[str]]]:
    """The part of a source that makes each split; a split is absent where there is nothing to take it from.

    A split that is there is read as it is. Where the source has none of a name, validation is a tenth of its train
    split; test is its validation split where it has one (validation then comes from train), else another tenth of
    train. A source without splits is cut up likewise. The train split is always without what it lends.

    Args:
        own: Splits that are there.
        authored: Splits that the authors made: where a copy lacks one of them, nothing stands in.

    Returns:
        For each split one of the source's own splits (None for all of it), and the hashes (see `hash_split`) of the
        documents that belong to it.
    """
    if not own:
        return {split: (None, frozenset({split})) for split in SPLITS}
    parts: dict[str, tuple[str | None, frozenset[str]]] = {split: (split, ALL) for split in SPLITS if split in own}
    if "train" not in own:
        return parts
    missing = ALL - set(own) - set(authored)
    if "test" not in own and "validation" in own and not {"test", "validation"} <= set(authored):
        parts["test"] = parts.pop("validation")
        missing = frozenset({"validation"})
    parts |= {split: ("train", frozenset({split})) for split in missing}
    if missing:
        parts["train"] = ("train", ALL - missing)
    return parts


def groups(items: list[Item], keys: Callable[[Item], Iterable[str]]) -> list[str]:
    """The name of each item's group: items that share a key, directly or through others, are of one group."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for item in items:
        first, *others = sorted({root(key) for key in keys(item)})
        parent.update(dict.fromkeys(others, first))
    return [root(next(iter(keys(item)))) for item in items]
