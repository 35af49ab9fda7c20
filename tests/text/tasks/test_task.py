"""Splits that a source lacks are taken from those it has, and never twice."""

from __future__ import annotations

import pytest

from hmt.text.documents import SPLITS, hash_split
from hmt.text.tasks.task import ALL, groups, split_parts

NAMES = [f"document {number}" for number in range(300)]


@pytest.mark.parametrize(
    ("own", "authored"),
    [((), ()), (("train",), ("train",)), (("train", "validation"), ("train", "validation")),
     (("train", "test"), ("train", "test")), (("train", "validation"), ("train", "test")),
     (("train", "validation", "test"), ("train", "validation", "test"))],
)  # fmt: skip
def test_three_splits_share_what_there_is(own: tuple[str, ...], authored: tuple[str, ...]) -> None:
    parts = split_parts(own, authored)
    assert set(parts) == set(SPLITS)
    kept = [(part, name) for part, drawn in parts.values() for name in NAMES if hash_split(name) in drawn]
    assert len(kept) == len(set(kept)) == len(NAMES) * max(len(own), 1)


def test_validation_serves_as_test_only_where_the_source_has_no_test() -> None:
    assert split_parts(("train", "validation"), ("train", "validation"))["test"] == ("validation", ALL)
    assert split_parts(("train", "test"), ())["test"] == ("test", ALL)


def test_nothing_stands_in_for_a_split_that_a_copy_lacks() -> None:
    assert set(split_parts(("train", "validation"), SPLITS)) == {"train", "validation"}
    assert split_parts(("train",), SPLITS) == {"train": ("train", ALL)}
    assert set(split_parts(("validation", "test"), ("train", "validation"))) == {"validation", "test"}


def test_items_that_share_a_key_through_others_are_of_one_group() -> None:
    names = groups([["a", "b"], ["c"], ["b", "d"], ["e", "c"], ["f"]], lambda keys: keys)
    assert names == ["a", "c", "a", "c", "f"]
