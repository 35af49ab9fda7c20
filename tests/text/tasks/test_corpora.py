"""Articles of wikitext are whole, and the same whether they come from files or from the hub's rows."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hmt.text.tasks import load_documents

LEAD = " \n = Kakapo = \n \n A parrot .\u2028 Still the same line . \n \n = = Name = = \n \n Night parrot . \n"
FORMULA = " It is given by k \n = 1 rad / s and = \n 2 . \n \n = = = Deeper = = = \n \n More . \n"
SECOND = " \n = Moa = \n \n Gone . \n"
ARTICLES = [LEAD + FORMULA, SECOND]


def rows() -> list[str]:
    """The lines as the hub has them: an empty text where a line is blank."""
    return [f"{line}\n" if line.strip() else "" for line in (LEAD + FORMULA + SECOND).split("\n")[:-1]]


def read(folder: Path, monkeypatch: pytest.MonkeyPatch, subset: str | None = None) -> list[str]:
    monkeypatch.setenv("HMT_HUB_MAP", f"Salesforce/wikitext={folder}")
    return [document.text for document in load_documents("wikitext", "test", subset=subset)]


def test_rows_and_files_give_the_same_articles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("files", "parquet", "jsonl"):
        (tmp_path / kind).mkdir()
    (tmp_path / "files" / "wiki.test.tokens").write_text(LEAD + FORMULA + SECOND)
    pq.write_table(pa.table({"text": rows()}), tmp_path / "parquet" / "test-00000-of-00001.parquet")
    lines = [json.dumps({"text": row}) for row in rows()]
    (tmp_path / "jsonl" / "test.jsonl").write_text("\n".join(lines))
    for kind in ("files", "parquet", "jsonl"):
        assert read(tmp_path / kind, monkeypatch) == ARTICLES, kind


def test_rows_of_an_article_may_lie_in_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = len(rows()) // 2
    pq.write_table(pa.table({"text": rows()[:half]}), tmp_path / "test-00000-of-00002.parquet")
    pq.write_table(pa.table({"text": rows()[half:]}), tmp_path / "test-00001-of-00002.parquet")
    assert read(tmp_path, monkeypatch) == ARTICLES


def test_the_configuration_chooses_the_folder_or_the_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("wikitext-2-raw", "wikitext-103-v1", "both"):
        (tmp_path / folder).mkdir()
    (tmp_path / "wikitext-2-raw" / "wiki.test.raw").write_text(SECOND)
    (tmp_path / "wikitext-103-v1" / "wiki.test.tokens").write_text(LEAD)
    assert read(tmp_path, monkeypatch) == [SECOND]
    assert read(tmp_path, monkeypatch, "wikitext-103-v1") == [LEAD]
    (tmp_path / "both" / "wiki.test.raw").write_text(SECOND)
    (tmp_path / "both" / "wiki.test.tokens").write_text(LEAD)
    assert read(tmp_path / "both", monkeypatch, "wikitext-2-raw-v1") == [SECOND]
    assert read(tmp_path / "both", monkeypatch, "wikitext-2-v1") == [LEAD]


def test_by_path_a_file_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "wiki.test.tokens").write_text("".join(ARTICLES))
    assert [document.text for document in load_documents(str(tmp_path), "test")] == ["".join(ARTICLES)]


def test_a_file_is_the_split_asked_for(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("A book.")
    (tmp_path / "rows.jsonl").write_text('{"body": "a"}\n{"body": "b"}\n')
    for split in ("train", "test"):
        assert [d.text for d in load_documents(str(tmp_path / "book.txt"), split)] == ["A book."]
        found = load_documents(str(tmp_path / "rows.jsonl"), split, text_column="body", limit=1)
        assert [d.text for d in found] == ["a"]
