"""Rows of data sets come through datasets, whole or as a stream."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hmt.text.hub import hub_rows


@pytest.fixture
def data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data set in the hub's layout; datasets takes a directory in place of an id."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"text": [str(n) for n in range(50)]}), tmp_path / "data" / "train-00000-of-00001.parquet")
    return str(tmp_path / "data")


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_come_in_order_or_in_that_of_the_seed(streaming: bool, data_set: str) -> None:
    rows = [row["text"] for row in hub_rows(data_set, "train", streaming=streaming)]
    assert rows == [str(n) for n in range(50)]
    drawn = [
        [row["text"] for row in hub_rows(data_set, "train", streaming=streaming, shuffle_seed=seed)]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert sorted(drawn[0]) == sorted(rows)


def test_what_cannot_be_loaded_says_what_to_do_instead(data_set: str) -> None:
    with pytest.raises(OSError, match=r"cannot load .* \(test\): .*; give a copy"):
        list(hub_rows(data_set, "test", instead="; give a copy"))
