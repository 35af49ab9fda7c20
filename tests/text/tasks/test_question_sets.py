"""The same questions from the authors' files and from the hub's rows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hmt.text.questions import Question
from hmt.text.tasks import load_questions
from tests.text.tasks import copies


def read(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[Question]:
    monkeypatch.setenv("HMT_HUB_MAP", f"{name}={folder}")
    return load_questions(name, "test", **settings)


def test_pubmed_qa_in_both_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies.pubmed(tmp_path, "first")
    authors = read("pubmed_qa", tmp_path, monkeypatch)
    items = json.loads((tmp_path / "ori_pqal.json").read_text())
    (tmp_path / "ori_pqal.json").unlink()
    rows = [
        {
            "pubid": int(key),
            "question": item["QUESTION"],
            "context": {"contexts": item["CONTEXTS"], "labels": [], "meshes": []},
            "long_answer": item["LONG_ANSWER"],
            "final_decision": item["final_decision"],
        }
        for key, item in items.items()
    ]
    copies.jsonl(tmp_path / "train-00000-of-00001.jsonl", rows)
    assert read("pubmed_qa", tmp_path, monkeypatch) == authors
    assert {question.name for question in authors} == {str(n) for n in range(0, copies.NUM, 3)}


def test_abstracts_are_fused_and_the_own_one_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies.pubmed(tmp_path, "first")
    questions = read("pubmed_qa", tmp_path, monkeypatch, fuse_size=4)
    for place, question in enumerate(questions[:4]):
        assert question.context == questions[0].context
        ((start, end),) = question.supporting
        assert question.context[start:end] == f"P{3 * place} was looked at.\nIt was."
        assert question.choices == ("yes", "no", "maybe")
    assert questions[0].context.count("was looked at") == 4


def test_qasper_in_both_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("authors", "hub"):
        (tmp_path / kind).mkdir()
    copies.qasper(tmp_path / "authors", "first")
    papers = json.loads((tmp_path / "authors" / "qasper-test-v0.3.json").read_text())
    rows = [
        {
            "id": key,
            "title": paper["title"],
            "abstract": paper["abstract"],
            "full_text": {
                "section_name": [section["section_name"] for section in paper["full_text"]],
                "paragraphs": [section["paragraphs"] for section in paper["full_text"]],
            },
            "qas": {
                "question": [one["question"] for one in paper["qas"]],
                "question_id": [one["question_id"] for one in paper["qas"]],
                "answers": [{"answer": [a["answer"] for a in one["answers"]]} for one in paper["qas"]],
            },
        }
        for key, paper in papers.items()
    ]
    copies.jsonl(tmp_path / "hub" / "test.jsonl", rows)
    authors = read("qasper", tmp_path / "authors", monkeypatch)
    assert read("qasper", tmp_path / "hub", monkeypatch) == authors
    ((start, end),) = authors[0].supporting
    assert authors[0].context[start:end] == "P2 is good."


@pytest.mark.parametrize(
    ("annotation", "answer"),
    [({"unanswerable": True}, "unanswerable"), ({"yes_no": False}, "no"), ({"extractive_spans": ["a", "b"]}, "a, b")],
)
def test_each_kind_of_answer_of_qasper_is_written_out(
    annotation: dict[str, Any], answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qas = [{"question": "?", "question_id": "q", "answers": [{"answer": annotation}]}]
    paper = {"title": "T", "abstract": "A", "full_text": [], "qas": qas}
    (tmp_path / "qasper-test-v0.3.json").write_text(json.dumps({"p": paper}))
    assert read("qasper", tmp_path, monkeypatch)[0].answers == (answer,)


def test_passages_of_openroad_lose_the_line_that_names_them_and_hard_ones_get_distractors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies.eda_qa(tmp_path, "first")
    simple = read("eda_qa", tmp_path, monkeypatch)
    hard = read("eda_qa", tmp_path, monkeypatch, subset="hard")
    for one, other in zip(simple, hard, strict=True):
        supports = [[q.context[start:end] for start, end in q.supporting] for q in (one, other)]
        assert sorted(supports[0]) == sorted(supports[1])
        assert one.context == "\n\n".join(supports[0])
        assert "id:" not in other.context
        assert other.context.count("is a command") == len(supports[1]) + 12
    assert any(not q.context.startswith(q.context[slice(*q.supporting[0])]) for q in hard)


def test_turns_of_a_meeting_that_a_query_is_about_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies.qmsum(tmp_path, "first")
    general, specific = read("qmsum", tmp_path, monkeypatch)[:2]
    assert not general.supporting
    assert [specific.context[start:end][:3] for start, end in specific.supporting] == ["S1:", "S2:"]


def test_paragraphs_that_support_a_question_of_musique_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies.musique(tmp_path, "first")
    question = read("musique", tmp_path, monkeypatch)[0]
    number = int(question.name.removeprefix("2hop__"))
    told = [question.context[start:end] for start, end in question.supporting]
    assert told == [f"T\nP{10 * (number - number % 2) + 1} says so.", f"T\nP{10 * number + 3} says so."]
    assert question.answers == (f"first {number}", f"first the {number}th")


def test_the_document_of_chatqa2_is_told_from_its_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"question": "User: One.\n\nTwo.\n\nQ: What?\n\nAssistant:", "answer": "x"}
    apart = {"question": "What?", "sub-paragraphs": "One.\n\nTwo.", "answers": ["x", "y"]}
    copies.jsonl(tmp_path / "test.jsonl", [row, apart])
    first, second = read("chatqa2", tmp_path, monkeypatch)
    assert first.context == second.context == "One.\n\nTwo."
    assert (first.prompt, second.prompt) == ("\n\nQ: What?\n\nAssistant:", "\n\nWhat?\n\nAssistant:")
    assert (first.answers, second.answers) == (("x",), ("x", "y"))


def test_stories_are_asked_about_whole_or_in_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies.narrativeqa(tmp_path, "first")
    story = read("narrativeqa", tmp_path, monkeypatch)[0]
    summary = read("narrativeqa", tmp_path, monkeypatch, subset="summary")[0]
    assert story.context.endswith("went home.")
    assert summary.context == "Home."
    assert story.answers == summary.answers


def test_a_task_with_an_answer_that_is_blank_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies.eda_qa(tmp_path, "first")
    file = tmp_path / "ORD-QA.jsonl"
    file.write_text(re.sub(r'"answer": "[^"]*"', '"answer": " "', file.read_text()))
    with pytest.raises(ValueError, match="ORD-QA"):
        read("eda_qa", tmp_path, monkeypatch)
