"""Questions about what one reads at length: meetings, novels, several articles, long documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hmt.text.documents import fingerprint
from hmt.text.questions import PASSAGE_BREAK, Question, ask, joined
from hmt.text.tables import Row
from hmt.text.tasks.splits import groups
from hmt.text.tasks.task import Source, Task


def musique(source: Source) -> Iterator[Question]:
    """Questions that need two to four of twenty paragraphs.

    Where a split is cut out of another, questions that rest on the same paragraph stay together.
    """
    grouped: dict[str, str] = {}

    def rows(own: str | None) -> list[Row]:
        found = [row for row in source.rows_of(own) if row.get("answer") and row.get("answerable", True)]
        for row, group in zip(found, groups(found, _supporting_paragraphs), strict=True):
            grouped[str(row["id"])] = fingerprint(group)
        return found

    for row in source.of_split(rows, lambda row: grouped[str(row["id"])]):
        paragraphs = [f"{one['title']}\n{one['paragraph_text']}" for one in row["paragraphs"]]
        marked = [index for index, one in enumerate(row["paragraphs"]) if one.get("is_supporting")]
        context, supporting = joined(paragraphs, marked)
        answers = tuple(dict.fromkeys((row["answer"], *(row.get("answer_aliases") or ()))))
        yield Question(str(row["id"]), grouped[str(row["id"])], context, ask(row["question"]), answers, (), supporting)


def _supporting_paragraphs(row: Row) -> list[str]:
    marked = [one["paragraph_text"] for one in row["paragraphs"] if one.get("is_supporting")]
    return marked or [one["paragraph_text"] for one in row["paragraphs"]]


def qmsum(source: Source) -> Iterator[Question]:
    """Queries about meetings, general and specific; the turns that a specific one is about are known."""
    meetings = source.of_split(source.rows_of, lambda row: _meeting(row)[1])
    for row in meetings:
        turns, name = _meeting(row)
        queries = [*(row.get("general_query_list") or ()), *(row.get("specific_query_list") or ())]
        for number, query in enumerate(queries):
            about = [
                turn
                for first, last in query.get("relevant_text_span") or ()
                for turn in range(int(first), min(int(last) + 1, len(turns)))
            ]
            context, supporting = joined(turns, about)
            yield Question(f"{name}:{number}", name, context, ask(query["query"]), (query["answer"],), (), supporting)


def _meeting(row: Row) -> tuple[list[str], str]:
    """The turns of a meeting, and a name for it: it has none."""
    turns = [f"{turn['speaker']}: {turn['content'].strip()}" for turn in row["meeting_transcripts"]]
    return turns, fingerprint(PASSAGE_BREAK.join(turns))


def narrativeqa(source: Source) -> Iterator[Question]:
    """Questions about a book or film script (subset story), or about its summary (subset summary)."""
    variant = source.variant
    for row in source.of_split(source.rows_of, lambda row: str(row["document"]["id"])):
        document = row["document"]
        text = document["summary"]["text"] if variant == "summary" else document["text"]
        name = str(document["id"])
        question = row["question"]["text"]
        answers = tuple(dict.fromkeys(answer["text"].strip() for answer in row["answers"]))
        yield Question(f"{name}:{fingerprint(question)}", name, str(text), ask(question), answers)


def chatqa2(source: Source) -> Iterator[Question]:
    """Long documents with an instruction or question at their end, which the rows hold as one turn of a talk."""
    for row in source.of_split(source.rows_of, lambda row: fingerprint(_talk(row)[0])):
        context, question = _talk(row)
        answers = row.get("answers") or row.get("answer")
        answers = (answers,) if isinstance(answers, str) else tuple(_text(answer) for answer in answers or ())
        if any(answer.strip() for answer in answers):
            name = fingerprint(context)
            prompt = f"{PASSAGE_BREAK}{question}\n\nAssistant:"
            yield Question(f"{name}:{fingerprint(question)}", name, context, prompt, tuple(a.strip() for a in answers))


def _talk(row: Row) -> tuple[str, str]:
    """Document and question of a row: a column each, or both in the question, the last paragraph of which asks."""
    turn = str(row["question"]).strip().removeprefix("User:").removesuffix("Assistant:").strip()
    for column in ("sub-paragraphs", "document"):
        if row.get(column):
            return str(row[column]), turn
    context, _, question = turn.rpartition("\n\n")
    return context, question


def _text(answer: Any) -> str:
    return str(answer["text"]) if isinstance(answer, dict) else str(answer)


TASKS = (
    Task(
        name="musique",
        kind="questions",
        about="questions of two to four steps over twenty paragraphs, the supporting ones known",
        source="Trivedi et al., MuSiQue (arXiv:2108.00573); validation serves as test, whose answers are secret",
        licence="CC BY 4.0",
        length="twenty paragraphs: 1,700 words; 19,938 questions train, 2,417 validation",
        columns=("id", "paragraphs", "question", "question_decomposition", "answer", "answer_aliases", "answerable"),
        local="musique_ans_v1.0_train.jsonl and musique_ans_v1.0_dev.jsonl, or one .jsonl, which is then split",
        splits=("train", "validation"),
        hub_id="dgslibisey/MuSiQue",
        questions=musique,
    ),
    Task(
        name="qmsum",
        kind="questions",
        about="summaries of meetings and of their parts, asked for by queries",
        source="Zhong et al., QMSum (arXiv:2104.05938)",
        licence="MIT",
        length="a meeting: 9,000 words; 162 meetings train, 35 validation, 35 test, about 8 queries each",
        columns=("topic_list", "general_query_list", "specific_query_list", "meeting_transcripts"),
        local="train.jsonl, val.jsonl, test.jsonl of the authors' data/ALL/jsonl",
        questions=qmsum,
    ),
    Task(
        name="narrativeqa",
        kind="questions",
        about="questions about whole books and film scripts, or about their summaries (--task_subset summary)",
        source="Kočiský et al., The NarrativeQA Reading Comprehension Challenge (arXiv:1712.07040)",
        licence="Apache-2.0",
        length="a book: 60,000 words; 32,747 questions train, 3,461 validation, 10,557 test",
        columns=("document", "question", "answers"),
        local="the hub's tables, train, validation and test",
        hub_id="deepmind/narrativeqa",
        variants=("story", "summary"),
        questions=narrativeqa,
    ),
    Task(
        name="chatqa2",
        kind="questions",
        about="long documents with an instruction, for fine-tuning (ChatQA2 long SFT)",
        source="Xu et al., ChatQA 2 (arXiv:2407.14482)",
        licence="CC BY-NC 2.0",
        length="a document: up to 32,000 tokens (long_sft) or 131,072 (NarrativeQA_131072)",
        columns=("question", "answer"),
        local="long_sft_QA_train.json, long_sft_QA_dev.json, or folders of these by configuration",
        splits=("train", "test"),
        hub_id="nvidia/ChatQA2-Long-SFT-data",
        subset="long_sft",
        subsets=("long_sft", "NarrativeQA_131072"),
        questions=chatqa2,
    ),
)
