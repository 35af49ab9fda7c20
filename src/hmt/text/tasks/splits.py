"""Which documents belong to a split, where a source has splits of its own and where it has not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hmt.text.documents import SPLITS, fingerprint, hash_split

Item = TypeVar("Item")


@dataclass(frozen=True)
class Portion:
    """Part of a source: one of its own splits, or all of it where `own` is None.

    Attributes:
        own: Split of the source.
        drawn: Of that split, the documents whose stable hash falls into these splits; all where None.
    """

    own: str | None
    drawn: frozenset[str] | None = None

    def keeps(self, document: str) -> bool:
        """Whether a document belongs to it."""
        return self.drawn is None or hash_split(document) in self.drawn


def portions(own: Collection[str], declared: Collection[str] = ()) -> dict[str, Portion]:
    """Where each split comes from; a split is absent where there is nothing to take it from.

    A split that is there is read as it is. Where the source has none of a name, validation is a tenth of its train
    split; test is its validation split where it has one (validation then comes from train), else another tenth of
    train. A source without splits is cut up likewise. Whatever is lent, the train split is without it.

    Args:
        own: Splits that are there.
        declared: Splits that the source has, here or elsewhere: where a copy lacks one of them nothing stands in.
    """
    if not own:
        return {split: Portion(None, frozenset({split})) for split in SPLITS}
    found = {split: Portion(split) for split in SPLITS if split in own}
    if "train" not in own:
        return found
    if "test" not in own and "validation" in own and not {"test", "validation"} <= set(declared):
        found["test"] = Portion("validation")
        del found["validation"]
        declared = ()
    lent = {split for split in ("validation", "test") if split not in found and split not in declared}
    found |= {split: Portion("train", frozenset({split})) for split in lent}
    if lent:
        found["train"] = Portion("train", frozenset(set(SPLITS) - lent))
    return found


def groups(items: Sequence[Item], keys: Callable[[Item], Iterable[str]]) -> list[str]:
    """For each item the name of its group: items that share a key, directly or through others, are of one group.

    Questions that rest on the same passage must not be in two splits.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for item in items:
        roots = sorted({root(key) for key in keys(item)})
        for other in roots[1:]:
            parent[other] = roots[0]
    return [root(next(iter(keys(item)))) for item in items]


def balanced(names: Sequence[str]) -> dict[str, str]:
    """The split of each group: a tenth of all items each for validation and test, as nearly as whole groups allow.

    Where a few groups hold most of the items, a hash of each leaves splits all but empty. So the largest group comes
    first, each goes to the split that lacks most of its share, and equally large ones come in the order of a hash. A
    source with other items is cut up anew.

    Args:
        names: The group of each item.
    """
    sizes = Counter(names)
    lacking = {"train": 8 * len(names), "validation": len(names), "test": len(names)}  # tenths of items
    found = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], fingerprint(name))):
        split = max(lacking, key=lambda split: lacking[split])
        lacking[split] -= 10 * sizes[name]
        found[name] = split
    return found
