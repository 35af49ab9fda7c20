"""Questions about scientific papers: PubMedQA and Qasper."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from hmt.files import read_json
from hmt.text.documents import hash_split
from hmt.text.questions import Question, ask, joined
from hmt.text.tables import Row, table_rows
from hmt.text.tasks.task import Source, Task

DECISIONS = ("yes", "no", "maybe")


def pubmed_qa(source: Source, long_answer: bool) -> Iterator[Question]:
    """Questions of PubMedQA about so many abstracts at once, one of which holds the answer.

    Abstracts are put together only with others of the same split. The split is that of the authors where their list of
    test items is there, else a hash of the item.
    """
    split_of = _split_of(source)
    rows = [row for row in _abstracts(source) if split_of(row["id"]) == source.split]
    if not long_answer:
        rows = [row for row in rows if row["decision"] in DECISIONS]
    size = source.reading.fuse_size
    for start in range(0, len(rows), size):
        together = rows[start : start + size]
        for place, row in enumerate(together):
            context, supporting = joined([one["text"] for one in together], [place])
            yield Question(
                name=row["id"],
                source="+".join(one["id"] for one in together),
                context=context,
                prompt=ask(row["question"] if long_answer else f"{row['question'].strip()} (yes, no or maybe)"),
                answers=(row["long_answer"],) if long_answer else (row["decision"],),
                choices=() if long_answer else DECISIONS,
                supporting=supporting,
            )


def _abstracts(source: Source) -> Iterator[dict[str, str]]:
    """The items, from the authors' file or the rows of the hub, in one form."""
    for row in _pubmed_rows(source):
        authors = "QUESTION" in row
        contexts = row["CONTEXTS"] if authors else row["context"]["contexts"]
        yield {
            "id": str(row["id"] if authors else row["pubid"]),
            "question": row["QUESTION" if authors else "question"],
            "text": "\n".join(contexts),
            "long_answer": row["LONG_ANSWER" if authors else "long_answer"],
            "decision": row.get("final_decision") or "",
        }


def _pubmed_rows(source: Source) -> Iterator[Row]:
    letter = (source.subset or "pqa_labeled").removeprefix("pqa_")[0]
    if authors := source.file(f"ori_pqa{letter}.json"):
        yield from (row for _, row in table_rows(authors))
    else:
        yield from source.rows_of("train" if "train" in source.own_splits else None)


def _split_of(source: Source) -> Callable[[str], str]:
    truth = source.file("test_ground_truth.json")
    if truth is None:
        return hash_split
    test = set(read_json(truth))
    # What the authors left for training gives a tenth to validation.
    return lambda name: "test" if name in test else "validation" if hash_split(name) == "validation" else "train"


def qasper(source: Source) -> Iterator[Question]:
    """Questions about whole papers; the paragraphs that the annotators marked are the supporting ones."""
    papers = source.of_split(source.rows_of, lambda row: str(row["id"]))
    for paper in papers:
        passages = [str(paper["title"]), str(paper["abstract"]), *_paragraphs(paper["full_text"])]
        for number, question, answered in _asked(paper["qas"]):
            answers = tuple(dict.fromkeys(text for one in answered if (text := _answer(one))))
            if not answers:
                continue
            marked = {part for one in answered for part in one.get("evidence") or ()}
            context, supporting = joined(passages, [i for i, passage in enumerate(passages) if passage in marked])
            yield Question(number, str(paper["id"]), context, ask(question), answers, (), supporting)


def _paragraphs(full_text: Any) -> Iterator[str]:
    """Paragraphs of a paper: a list of sections (authors), or columns of them (hub)."""
    if isinstance(full_text, dict):
        sections = zip(full_text["section_name"], full_text["paragraphs"], strict=True)
    else:
        sections = ((section["section_name"], section["paragraphs"]) for section in full_text)  # type: ignore[assignment]
    for heading, paragraphs in sections:
        if heading:
            yield str(heading)
        yield from (str(paragraph) for paragraph in paragraphs if paragraph.strip())


def _asked(qas: Any) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Name, question and annotated answers."""
    if isinstance(qas, dict):
        for name, question, answers in zip(qas["question_id"], qas["question"], qas["answers"], strict=True):
            yield name, question, answers["answer"] if isinstance(answers, dict) else [one["answer"] for one in answers]
    else:
        for one in qas:
            yield one["question_id"], one["question"], [answer["answer"] for answer in one["answers"]]


def _answer(annotation: dict[str, Any]) -> str:
    if annotation.get("unanswerable"):
        return "unanswerable"
    if annotation.get("yes_no") is not None:
        return "yes" if annotation["yes_no"] else "no"
    return str(annotation.get("free_form_answer") or ", ".join(annotation.get("extractive_spans") or ()))


_PUBMED = Task(
    name="pubmed_qa",
    kind="questions",
    about="yes, no or maybe, about abstracts of PubMed; --fuse_size of them are put together",
    source="Jin et al., PubMedQA (arXiv:1909.06146)",
    licence="MIT",
    length="an abstract: 200 words; 1,000 questions labelled by experts, 500 of them for test",
    columns=("pubid", "question", "context", "long_answer", "final_decision"),
    local="ori_pqal.json, with test_ground_truth.json for the official test items; or the hub's tables",
    splits=("train",),
    hub_id="qiaojin/PubMedQA",
    subset="pqa_labeled",
    subsets=("pqa_labeled", "pqa_artificial", "pqa_unlabeled"),
    questions=partial(pubmed_qa, long_answer=False),
)

TASKS = (
    _PUBMED,
    replace(
        _PUBMED,
        name="pubmed_qa_long",
        about="the same questions, answered by the conclusion of the abstract",
        questions=partial(pubmed_qa, long_answer=True),
    ),
    Task(
        name="qasper",
        kind="questions",
        about="questions about whole papers on language processing, with the paragraphs that answer them",
        source="Dasigi et al., A Dataset of Information-Seeking Questions (arXiv:2105.03011)",
        licence="CC BY 4.0",
        length="a paper: 4,000 words; questions: 2,593 train, 1,005 validation, 1,451 test",
        columns=("id", "title", "abstract", "full_text", "qas"),
        local="qasper-train-v0.3.json, qasper-dev-v0.3.json, qasper-test-v0.3.json, or the hub's tables",
        hub_id="allenai/qasper",
        revision="refs/convert/parquet",
        questions=qasper,
    ),
)
