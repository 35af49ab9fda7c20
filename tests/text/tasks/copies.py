"""Small made copies of every task, in the formats of their authors. P17 marks passage 17 wherever it stands."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

NUM = 90
"""Documents of a copy."""


def jsonl(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def thirds(folder: Path, rows: list[dict[str, Any]], names: tuple[str, str, str]) -> None:
    """Write a third of the rows to each file."""
    for number, name in enumerate(names):
        jsonl(folder / name, rows[number::3])


def passages(folder: Path, mark: str) -> None:
    """Texts as rows."""
    thirds(folder, [{"text": f"P{n} is a text."} for n in range(NUM)], ("train.jsonl", "val.jsonl", "test.jsonl"))


def one_split(folder: Path, mark: str) -> None:
    """Texts of a source that has only a train split."""
    jsonl(folder / "train.jsonl", [{"text": f"P{n} is a text."} for n in range(NUM)])


def wikitext(folder: Path, mark: str) -> None:
    """Articles in three files."""
    for start, name in ((0, "train"), (20, "valid"), (40, "test")):
        articles = [
            f" \n = P{n} = \n \n P{n} is known .\n \n = = Life = = \n \n It was long .\n"
            for n in range(start, start + 20)
        ]
        (folder / f"wiki.{name}.tokens").write_text("".join(articles))


def pubmed(folder: Path, mark: str) -> None:
    """Labelled items; every third is one of the official test."""
    items = {
        str(n): {
            "QUESTION": f"Is {n} so?",
            "CONTEXTS": [f"P{n} was looked at.", "It was."],
            "LONG_ANSWER": f"{mark} for {n}.",
            "final_decision": "yes" if mark == "first" else "no",
        }
        for n in range(NUM)
    }
    (folder / "ori_pqal.json").write_text(json.dumps(items))
    (folder / "test_ground_truth.json").write_text(json.dumps({str(n): "yes" for n in range(0, NUM, 3)}))


def qasper(folder: Path, mark: str) -> None:
    """Papers as the authors' files have them."""
    for number, name in enumerate(("train", "dev", "test")):
        papers = {
            f"paper{n}": {
                "title": f"On P{n}",
                "abstract": "We look.",
                "full_text": [{"section_name": "Results", "paragraphs": [f"P{n} is good.", "So are others."]}],
                "qas": [
                    {
                        "question": "Is it good?",
                        "question_id": f"q{n}",
                        "answers": [{"answer": {"free_form_answer": f"{mark} {n}", "evidence": [f"P{n} is good."]}}],
                    }
                ],
            }
            for n in range(number, NUM, 3)
        }
        (folder / f"qasper-{name}-v0.3.json").write_text(json.dumps(papers))


def eda_qa(folder: Path, mark: str) -> None:
    """Questions on one or two passages each, among more that nobody asks about."""
    contents = [{"id": f"doc_{n}", "content": f"id:doc_{n}\nP{n} is a command."} for n in range(3 * NUM)]
    documentation = [{"source": "doc", "amount": len(contents), "knowledge": contents}]
    (folder / "openroad_documentation.json").write_text(json.dumps(documentation))
    rows = []
    for n in range(NUM):
        reference = [n, n + 1] if n % 2 else [n]
        rows.append(
            {
                "id": n,
                "question": f" What of {n}?\n",
                "reference": [f"doc_{i}" for i in reference],
                "reference_content": [contents[i]["content"] for i in reference],
                "answer": f" {mark} {n}",
            }
        )
    jsonl(folder / "ORD-QA.jsonl", rows)


def eda_corpus(folder: Path, mark: str) -> None:
    """Pairs, every second question asked twice."""
    with (folder / "qa.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Prompts", "Answers"])
        for n in range(NUM):
            writer.writerow([f"What is Q{n - n % 2}?", f"{mark}, {n}\nindeed"])


def musique(folder: Path, mark: str) -> None:
    """Questions on two of four paragraphs; pairs of questions share one of these."""
    rows = []
    for n in range(NUM):
        numbers = [10 * n, 10 * (n - n % 2) + 1, 10 * n + 2, 10 * n + 3]
        rows.append(
            {
                "id": f"2hop__{n}",
                "paragraphs": [
                    {"idx": i, "title": "T", "paragraph_text": f"P{p} says so.", "is_supporting": i in (1, 3)}
                    for i, p in enumerate(numbers)
                ],
                "question": f"Who is {n}?",
                "answer": f"{mark} {n}",
                "answer_aliases": [f"{mark} the {n}th"],
                "answerable": True,
            }
        )
    jsonl(folder / "musique_ans_all.jsonl", rows)


def qmsum(folder: Path, mark: str) -> None:
    """Meetings with a general and a specific query."""
    rows = [
        {
            "general_query_list": [{"query": "Sum up.", "answer": f"{mark} {n}"}],
            "specific_query_list": [
                {"query": "What of it?", "answer": f"{mark} it {n}", "relevant_text_span": [["1", "2"]]}
            ],
            "meeting_transcripts": [{"speaker": f"S{i}", "content": f"P{n} is on the list."} for i in range(4)],
        }
        for n in range(NUM)
    ]
    thirds(folder, rows, ("train.jsonl", "val.jsonl", "test.jsonl"))


def narrativeqa(folder: Path, mark: str) -> None:
    """Rows as on the hub, two questions a story."""
    rows = [
        {
            "document": {"id": f"story{n // 6}", "text": f"P{n // 6} went home.", "summary": {"text": "Home."}},
            "question": {"text": f"Who went, {n}?"},
            "answers": [{"text": f"{mark} {n}"}, {"text": f"{mark} number {n}"}],
        }
        for number in range(3)
        for n in range(6 * number, 6 * NUM, 18)
        for n in (n, n + 1)
    ]
    by_story = [[row for row in rows if int(row["document"]["id"][5:]) % 3 == third] for third in range(3)]
    for part, name in zip(by_story, ("train", "validation", "test"), strict=True):
        jsonl(folder / f"{name}-00000-of-00001.jsonl", part)


def chatqa2(folder: Path, mark: str) -> None:
    """Rows as on the hub."""
    rows = [
        {"question": f"User: P{n} is long.\n\nQ: What is long, {n}?\n\nAssistant:", "answer": f"{mark} {n}"}
        for n in range(NUM)
    ]
    (folder / "long_sft").mkdir()
    (folder / "long_sft" / "long_sft_QA_train.json").write_text(json.dumps(rows[: NUM // 2]))
    (folder / "long_sft" / "long_sft_QA_dev.json").write_text(json.dumps(rows[NUM // 2 :]))


def babi(folder: Path, mark: str) -> None:
    """Tales of three facts with two questions."""
    for number, own in enumerate(("train", "test")):
        lines = []
        for n in range(number * NUM, (number + 1) * NUM):
            lines += [f"1 P{n} went to the garden.", "2 John slept.", f"3 Where is P{n}? \t{mark}\t1"]
            lines += [f"4 P{n} went to bed.", f"5 Where is P{n}? \t{mark} bed\t4"]
        (folder / "en").mkdir(exist_ok=True)
        (folder / "en" / f"qa1_single-supporting-fact_{own}.txt").write_text("\n".join(lines) + "\n")


COPIES: dict[str, Callable[[Path, str], None]] = {
    "wikitext": wikitext,
    "pg19": passages,
    "arxiv": passages,
    "fineweb": one_split,
    "pubmed_qa": pubmed,
    "qasper": qasper,
    "eda_qa": eda_qa,
    "eda_corpus": eda_corpus,
    "musique": musique,
    "qmsum": qmsum,
    "narrativeqa": narrativeqa,
    "chatqa2": chatqa2,
    "babi": babi,
}
"""Task -> what writes a copy of it; the answers bear a mark."""
