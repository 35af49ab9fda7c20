"""Splits that a source lacks are taken from those it has, and never twice."""

from __future__ import annotations

from collections import Counter

import pytest

from hmt.text.documents import SPLITS
from hmt.text.tasks.splits import Portion, balanced, groups, portions

NAMES = [f"document {number}" for number in range(300)]


@pytest.mark.parametrize(
    ("own", "declared"),
    [((), ()), (("train",), ("train",)), (("train", "validation"), ("train", "validation")),
     (("train", "test"), ("train", "test")), (("train", "validation"), ("train", "test")),
     (("train", "validation", "test"), ("train", "validation", "test"))],
)  # fmt: skip
def test_three_splits_share_what_there_is(own: tuple[str, ...], declared: tuple[str, ...]) -> None:
    found = portions(own, declared)
    assert set(found) == set(SPLITS)
    kept = [(portion.own, name) for portion in found.values() for name in NAMES if portion.keeps(name)]
    assert len(kept) == len(set(kept)) == len(NAMES) * max(len(own), 1)


def test_validation_serves_as_test_only_where_the_source_has_no_test() -> None:
    assert portions(("train", "validation"), ("train", "validation"))["test"] == Portion("validation")
    assert portions(("train", "test"))["test"] == Portion("test")


def test_nothing_stands_in_for_a_split_that_a_copy_lacks() -> None:
    assert set(portions(("train", "validation"), SPLITS)) == {"train", "validation"}
    assert portions(("train",), SPLITS) == {"train": Portion("train")}
    assert set(portions(("validation", "test"), ("train", "validation"))) == {"validation", "test"}


def test_items_that_share_a_key_through_others_are_of_one_group() -> None:
    names = groups([["a", "b"], ["c"], ["b", "d"], ["e", "c"], ["f"]], lambda keys: keys)
    assert names == ["a", "c", "a", "c", "f"]


def test_groups_of_uneven_size_still_leave_a_tenth_to_validation_and_test() -> None:
    names = ["a"] * 24 + ["b"] * 8 + [f"pair {n // 2}" for n in range(26)] + [f"single {n}" for n in range(32)]
    found = balanced(names)
    assert Counter(found[name] for name in names) == {"train": 72, "validation": 9, "test": 9}
    assert balanced(names[::-1]) == found
