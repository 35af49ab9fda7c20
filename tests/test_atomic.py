"""Files and directories are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmt.atomic import atomic_directory, atomic_file, check_output_directory


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as unfinished:
        unfinished.write_text(f"half {1 / 0}")
    assert path.read_text() == "old"
    with atomic_file(path) as unfinished:
        unfinished.write_text("new")
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "ckpt"
    path.mkdir(parents=True)  # an empty one may be taken
    with atomic_directory(path) as folder:
        (folder / "config.json").write_text('{"model_type": "hmt"}')
    with pytest.raises(FileNotFoundError), atomic_directory(path) as folder:
        (folder / "two").rename(path / "no" / "such")
    assert [file.name for file in path.iterdir()] == ["config.json"]
    with atomic_directory(path) as folder:
        (folder / "two").write_text("2")
    assert [file.name for file in path.iterdir()] == ["two"]
    assert [file.name for file in path.parent.iterdir()] == ["ckpt"]


def test_a_directory_with_anything_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="thesis"):
        check_output_directory(tmp_path / "thesis")
    with pytest.raises(FileExistsError, match="thesis"), atomic_directory(tmp_path / "thesis"):
        pass
    assert (tmp_path / "thesis/chapter1.txt").read_text() == "years of work"


def test_a_file_is_not_replaced_by_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("precious")
    with pytest.raises(FileExistsError, match="a"), atomic_directory(tmp_path / "a"):
        pass
    assert (tmp_path / "a").read_text() == "precious"
